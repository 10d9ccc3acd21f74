"""Reads, migrations and what each store makes of every type of column."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
import redis as redis_client
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from aggregates.kernel import Invalid
from infra.settings import Settings
from projections.kernel import ClickTable, Pool, RedisTable, Table
from projections.kernel import clickhouse as click
from projections.kernel.clickhouse import client_of
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.postgres import PostgresSink, migrate
from projections.kernel.redis import Asked, get_together
from projections.kernel.redis_sink import RedisSink
from projections.kernel.runner import START, Batch, Broken, Delivery, Move, Position, Sink
from projections.kernel.tables import AnyTable, Change

T = TypeVar("T")


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Shape:
    corners: int
    id: UUID


COLUMNS: dict[str, Any] = {
    "a_str": str, "a_int": int, "a_bool": bool, "a_float": float, "a_decimal": Decimal, "a_uuid": UUID,
    "a_datetime": datetime, "a_date": date, "a_bytes": bytes, "a_colour": Colour, "a_list": list[str],
    "a_shape": Shape, "shapes": list[Shape], "maybe": str | None, "when": datetime | None, "select": int,
}  # fmt: skip
SHAPE = Shape(3, UUID(int=3))
FULL: dict[str, Any] = {
    "a_str": 'quoted "\\ \n\t ü 🛒 %s {x}', "a_int": 2**63 - 1, "a_bool": True, "a_float": -0.1, "a_decimal": Decimal("12.5"),
    "a_uuid": UUID(int=5), "a_datetime": datetime(2026, 2, 28, 23, 59, 59, 999999, UTC), "a_date": date(2024, 2, 29),
    "a_bytes": b"\x00\xff", "a_colour": Colour.RED, "a_list": ["a", 'b"'], "a_shape": SHAPE, "shapes": [SHAPE],
    "maybe": None, "when": datetime(1970, 1, 1, tzinfo=UTC), "select": -1,
}  # fmt: skip
AS_JSON = {"corners": 3, "id": str(UUID(int=3))}
things = Table("things", key="id", id=UUID, **COLUMNS, indexes=[("a_int", "id"), "USING gin (a_list)"])
lines = Table("lines", key=("basket", "sku"), basket=int, sku=str, quantity=int)
rows = RedisTable("rows", key="id", id=UUID, **COLUMNS, counts=dict[str, int], owned=dict[str, Shape])
facts = ClickTable("facts", order_by=("a_datetime",), **COLUMNS, words=dict[str, str], counts=dict[str, int])
posts = Table(
    "posts", key="id", id=int, owner=UUID, at=datetime, score=int, title=str | None, indexes=[("owner", "at", "id")]
)


def apply(sink: Sink, *changes: Change) -> None:
    """One batch, in a partition of its own."""
    by_table: dict[AnyTable, list[tuple[Delivery, Change]]] = {}
    delivery = Delivery("toy", 0, 0, b"", b"", [("notification-id", b"1")])
    for change in changes:
        by_table.setdefault(change.table, []).append((delivery, change))
    partition = uuid4().int % 2**31
    for table in by_table:
        sink.positions([table], "toy", [partition])
    moves = [Move(table, "toy", partition, START, Position(1, 0)) for table in by_table]
    sink.apply(Batch(by_table, moves))


@pytest.fixture
def views(postgres: str) -> str:
    with psycopg.connect(postgres, autocommit=True) as connection:
        migrate(connection, [things, lines, posts])
    return postgres


def reading(dsn: str, work: Callable[[Pool], Awaitable[T]]) -> T:
    async def main() -> T:
        async with AsyncConnectionPool(dsn, kwargs={"options": "-c timezone=UTC"}) as pool:
            return await work(pool)

    return asyncio.run(main())


def test_postgres_gives_back_what_was_put(views: str) -> None:
    sink, id, empty = PostgresSink(views), uuid4(), uuid4()
    apply(sink, things.put(id, **FULL), things.add(empty, a_int=1), things.put(uuid4()))
    sink.close()
    stored = FULL | {"a_shape": AS_JSON, "shapes": [AS_JSON]}
    assert reading(views, lambda pool: things.get(pool, id)) == {"id": id, **stored}
    blank: dict[str, Any] = {
        name: None if "date" in name or name in ("a_uuid", "when", "maybe") else "" for name in COLUMNS
    }
    blank |= {
        "a_int": 1, "a_bool": False, "a_float": 0.0, "a_decimal": Decimal(0), "a_bytes": b"", "a_list": [], "a_shape": [],
        "shapes": [], "select": 0,
    }  # fmt: skip
    assert reading(views, lambda pool: things.get(pool, empty)) == {"id": empty, **blank}
    assert reading(views, lambda pool: things.get(pool, uuid4())) is None
    assert set(reading(views, lambda pool: things.get_many(pool, [id, empty, uuid4()]))) == {id, empty}


def test_keys_of_several_columns(views: str) -> None:
    sink = PostgresSink(views)
    apply(sink, lines.put((1, "a"), quantity=2), lines.add((1, "b"), quantity=3), lines.put((2, "a"), quantity=9))
    apply(sink, lines.drop((2, "a")), lines.add((1, "a"), quantity=1))
    sink.close()
    assert reading(views, lambda pool: lines.get(pool, (1, "a"))) == {"basket": 1, "sku": "a", "quantity": 3}
    page = reading(views, lambda pool: lines.page(pool))
    assert [tuple(row.values()) for row in page.rows] == [(1, "a", 3), (1, "b", 3)]


@pytest.mark.parametrize("order", ["", "at", "-at", "score", "-id"])
@pytest.mark.parametrize("limit", [1, 3, 8, 50])
def test_pages_give_each_row_once_in_order(views: str, order: str, limit: int) -> None:
    sink, mine = PostgresSink(views), uuid4()
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for n in range(16):  # every third at the same time
        owner = mine if n % 2 else uuid4()
        apply(sink, posts.put(n, owner=owner, at=start + timedelta(microseconds=n // 3), score=n % 4, title=None))
    sink.close()

    async def all_pages(pool: Pool) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = None
        while True:
            page = await posts.page(pool, where={"owner": mine}, order=order, after=after, limit=limit)
            found += page.rows
            assert len(page.rows) <= limit
            after = page.after
            if after is None:
                return found

    found = [row["id"] for row in reading(views, all_pages)]
    name = order.lstrip("-") or "id"
    value = {"at": lambda n: (n // 3, n), "score": lambda n: (n % 4, n), "id": lambda n: n}[name]
    assert found == sorted(range(1, 16, 2), key=value, reverse=order.startswith("-"))


def test_pages_by_condition(views: str) -> None:
    sink, one = PostgresSink(views), uuid4()
    for n in range(6):
        apply(sink, posts.put(n, owner=one, at=datetime(2026, 1, 1, tzinfo=UTC), score=n, title="x" if n % 2 else None))
    sink.close()

    def ids(where: dict[str, Any]) -> list[int]:
        return [row["id"] for row in reading(views, lambda pool: posts.page(pool, where=where)).rows]

    assert ids({"title": None}) == [0, 2, 4]
    assert ids({"score": {1, 5}}) == [1, 5]
    assert ids({"score >=": 2, "score <": 4, "owner": one}) == [2, 3]
    with pytest.raises(TypeError, match="no column evil"):
        ids({"evil; DROP": 1})
    with pytest.raises(ValueError, match="no operator"):
        ids({"score OR": 1})


@pytest.mark.parametrize("cursor", ["", "x", "bm90IGpzb24", "WyJhdCIsMV0", "WyIiLCJub3QgYSBudW1iZXIiXQ", "é", "=" * 9])
def test_a_cursor_of_something_else_is_invalid(views: str, cursor: str) -> None:
    with pytest.raises(Invalid, match="not a cursor of this list"):
        reading(views, lambda pool: posts.page(pool, after=cursor))


@pytest.mark.parametrize("limit", [0, -1, 501])
def test_a_page_has_a_size(views: str, limit: int) -> None:
    with pytest.raises(Invalid, match="1 to 500"):
        reading(views, lambda pool: posts.page(pool, limit=limit))


def test_migrating_again_does_nothing_and_adds_what_is_missing(views: str) -> None:
    with psycopg.connect(views, autocommit=True) as connection:
        assert migrate(connection, [things, lines, posts]) == []
        more = Table("lines", key=("basket", "sku"), basket=int, sku=str, quantity=int, note=str, indexes=[("note",)])
        done = migrate(connection, [more])
        assert [line.partition(":")[0] for line in done] == ["column lines.note added", "index of lines made"]
        assert migrate(connection, [more, lines]) == []
        with pytest.raises(Broken, match=r"column lines\.quantity is bigint and should be text: rebuild the table"):
            migrate(connection, [Table("lines", key=("basket", "sku"), basket=int, sku=str, quantity=str)])


def test_a_table_that_was_dropped_begins_at_the_beginning(views: str) -> None:
    sink = PostgresSink(views)
    apply(sink, lines.put((1, "a"), quantity=2))
    with psycopg.connect(views, autocommit=True) as connection:
        connection.execute("DROP TABLE lines")
        migrate(connection, [lines])
        assert connection.execute("SELECT count(*) FROM projection_positions").fetchone() == (0,)
    sink.close()


def test_many_migrate_at_once(postgres: str) -> None:
    async def main() -> None:
        def one() -> list[str]:
            with psycopg.connect(postgres, autocommit=True) as connection:
                return migrate(connection, [things, lines, posts])

        done = await asyncio.gather(*(asyncio.to_thread(one) for _ in range(8)))
        assert sorted(map(len, done)) == [0] * 7 + [6]

    asyncio.run(main())


def test_redis_gives_back_what_was_put(redis: str) -> None:
    sink, id, empty = RedisSink(redis, "toy"), uuid4(), uuid4()
    maps = {"counts": {"a": 1, "b:c": 2}, "owned": {"x": SHAPE}}
    apply(sink, rows.put(id, **FULL, **maps), rows.add(empty, a_int=1, a_float=0.5), rows.put(uuid4(), a_str="gone"))
    changed = rows.put(id, maybe="now", when=None, counts={"z": 26})
    apply(sink, changed, rows.add_item(id, "counts", "z", -1), rows.drop_item(id, "owned", "x"))

    async def all_rows(client: Redis) -> dict[Any, dict[str, Any]]:
        return await rows.get_many(client, [id, empty], "toy")

    async def read() -> tuple[Any, Any, Any]:
        async with Redis.from_url(redis) as client:
            many = await rows.get_many(client, [id, uuid4()], "toy")
            assert many == {id: await rows.get(client, id, "toy")}
            some = {one: {name: row[name] for name in FULL} for one, row in (await all_rows(client)).items()}
            wanted = [id, uuid4(), empty]
            await client.script_flush()
            for _ in range(2):  # at first the server does not know the script
                columns, items = (
                    Asked(rows, wanted, tuple(FULL)),
                    Asked(rows, wanted, ("a_int", "counts:z", "counts:y")),
                )
                found, counted = await get_together(client, "toy", columns, items)
                assert found == {one: some[one] for one in (id, empty)}
                assert [*counted[id].values()] == [FULL["a_int"], 25, None]
                assert [*counted[empty].values()] == [1, None, None]
            return many[id], await rows.get(client, empty, "toy"), await rows.get(client, uuid4(), "toy")

    full, blank, none = asyncio.run(read())
    stored = FULL | {"a_shape": AS_JSON, "shapes": [AS_JSON], "maybe": "now", "when": None}
    assert full == {"id": id, **stored, "counts": {"z": 25}, "owned": {}}
    assert (blank["a_int"], blank["a_float"], blank["a_str"], blank["counts"], blank["when"]) == (1, 0.5, "", {}, None)
    assert none is None
    with redis_client.Redis.from_url(redis) as client:
        assert [row for row in rows.scan(client, "toy") if row["id"] == id] == [full]
        assert len(list(rows.scan(client, "toy"))) == 3
    sink.close()


def test_clickhouse_gives_back_what_was_put(settings: Settings) -> None:
    click.migrate(settings.clickhouse, [facts])
    sink = ClickHouseSink(settings.clickhouse)
    apply(sink, facts.row(**FULL, words={"a": "b"}, counts={"n": 1}))
    apply(sink, facts.row(a_datetime=FULL["a_datetime"] + timedelta(seconds=1)))
    found = client_of(settings.clickhouse).query("SELECT * FROM facts FINAL ORDER BY a_datetime")
    full, blank = (dict(zip(found.column_names, row, strict=True)) for row in found.result_rows)
    assert full["a_decimal"] == Decimal("12.5")
    assert (full["a_str"], full["a_int"], full["a_list"], full["words"]) == (
        FULL["a_str"], 2**63 - 1, ["a", 'b"'], {"a": "b"},
    )  # fmt: skip
    assert full["a_datetime"].replace(tzinfo=UTC) == FULL["a_datetime"]  # the client leaves UTC out
    assert (full["a_colour"], full["a_uuid"], full["a_date"], full["maybe"]) == (
        "red",
        UUID(int=5),
        date(2024, 2, 29),
        None,
    )
    assert (blank["a_str"], blank["a_int"], blank["a_list"], blank["words"], blank["a_uuid"]) == (
        "",
        0,
        [],
        {},
        UUID(int=0),
    )
    assert blank["when"] is None
    assert click.migrate(settings.clickhouse, [facts]) == []
    sink.close()
