"""Three generations of a schema in one log: loaded, relayed, projected live, replayed and followed as today's events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis as redis_client

from aggregates.kernel import Event, Recorded, Store, snapshot, wire
from aggregates.kernel.event import RENAMED
from aggregates.kernel.migrate import migrate as migrate_events
from infra.kafka import topics
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.clickhouse import client_of
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.migrate import migrate
from projections.kernel.parking import PostgresParking
from projections.kernel.postgres import connect
from projections.kernel.runner import Runner
from projections.kernel.sinks import sink_of
from replay import projection
from replay.store import restore
from streams.kernel.follow import Follower, Positions
from tests.kernel.eventlog import stored
from tests.kernel.letters import DOMAIN, Franked, Letter, Sent, Written, letters, past, routes
from tests.kernel.pipeline import following, projected, relayed, relaying, store_rows
from tests.kernel.platform import wait_for
from tests.kernel.servers import Stack, database
from tests.kernel.topic import deliveries, rows_in, settings_of

LETTERS = PROJECTIONS["tests.kernel.letters"]
PAST = list(past(12, seed=7))
ROWS = [row for row, _ in PAST]


def kinds() -> Counter[str]:
    return Counter(row.event_type.partition(".")[2] for row in ROWS)


def expected() -> tuple[dict[UUID, dict[str, Any]], dict[UUID, dict[str, Any]], list[tuple[UUID, int, str]]]:
    """What the three tables hold, folded by hand from what the writers meant."""
    in_postgres: dict[UUID, dict[str, Any]] = {}
    in_redis: dict[UUID, dict[str, Any]] = {}
    in_clickhouse = []
    for row, means in PAST:
        id, kind = row.originator_id, row.event_type.partition(".")[2]
        if kind == "Written":
            in_postgres[id] = {"id": id, **means, "postage": 0}
            in_redis[id] = {"id": id, "sent": 0, "last": None, "paid": {}}
        elif kind in ("Stamped", "Franked"):
            in_postgres[id]["postage"] += means["postage"]
            paid = in_redis[id]["paid"]
            paid[means["currency"]] = paid.get(means["currency"], 0) + means["postage"]
            in_clickhouse.append((id, means["postage"], means["currency"]))
        elif kind == "Sent":
            in_redis[id] |= {"sent": in_redis[id]["sent"] + 1, "last": means["way"]}
        in_postgres[id]["version"] = row.originator_version
    return in_postgres, in_redis, in_clickhouse


def test_the_past_has_all_of_three_generations() -> None:
    assert kinds().keys() == {"Written", "Stamped", "Franked", "Sent", "Returned"}
    schemas = {row.state[:5] for row in ROWS}
    assert len(schemas) == 3 + 2 + 2 + 2  # Written changed twice, the others once


def test_what_was_renamed_is_delivered_under_todays_name() -> None:
    """Whoever chooses events by their type would pass over the old ones in silence."""
    assert RENAMED["letter.Stamped"] == "letter.Franked"
    found = Counter(delivery.type for delivery in deliveries(_numbered(), 4))
    assert found["letter.Franked"] == kinds()["Stamped"] + kinds()["Franked"]
    assert "letter.Stamped" not in found
    for delivery, (_, means) in zip(deliveries(_numbered(), 4), PAST, strict=True):
        assert {name: getattr(delivery.event(), name) for name in means} == means
        assert delivery.event().type == delivery.type


def test_what_happened_is_what_the_body_says(postgres: str, redis: str, tmp_path: Path) -> None:
    """A header that names a type which nobody knows any more loses no event whose bytes are read all the same."""
    settings = settings_of(postgres, redis, tmp_path)
    migrate(settings, ["postgres"], [LETTERS])
    sink = sink_of("postgres", settings)
    runner = Runner(sink, [LETTERS], [DOMAIN])
    runner.assign([(DOMAIN, 0)])
    runner.handle(deliveries([_numbered()[0]._replace(event_type="letter.Forgotten")], 1))
    sink.close()
    assert len(rows_in(settings, letters)) == 1


def _numbered() -> list[wire.Row]:
    return [row._replace(notification_id=n) for n, row in enumerate(ROWS, start=1)]


def test_a_snapshot_does_not_outlive_the_schema_that_its_events_were_read_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another default in the .avsc is another state of old aggregates, with no line of Python changed."""
    before = snapshot.fingerprint(Letter)
    snapshot.fingerprint.cache_clear()
    assert snapshot.fingerprint(Letter) == before
    monkeypatch.setattr("schemas.today", lambda domain: "the same with another default")
    snapshot.fingerprint.cache_clear()
    assert snapshot.fingerprint(Letter) != before
    snapshot.fingerprint.cache_clear()


def test_three_generations_from_the_store_to_every_read_model_and_back_from_the_topic(
    settings: Settings, stack: Stack
) -> None:
    migrate_events(settings.postgres, [DOMAIN])
    migrate(settings, of=[LETTERS])
    topics.create(settings, [DOMAIN])
    store_rows(settings.postgres, DOMAIN, ROWS)
    with relaying(settings), following(settings, [LETTERS], [DOMAIN]):
        wait_for(lambda: relayed(settings, DOMAIN), "the relay has published the past")
        wait_for(lambda: projected(settings, [LETTERS], DOMAIN, settings.partitions), "the worker has projected it")
    _holds(settings)
    _replayed(settings)
    with database(stack) as into:
        _restored(settings, into)
    asyncio.run(_loaded(settings))
    asyncio.run(_followed(settings))


def _holds(settings: Settings) -> None:
    for compare in _compared(settings):
        compare()


def _compared(settings: Settings) -> list[Callable[[], None]]:
    """A comparison for each store."""
    rows, hashes, sums = expected()

    def in_postgres() -> None:
        assert {id: row for (id,), row in rows_in(settings, letters).items()} == rows

    def in_redis() -> None:
        assert {id: row for (id,), row in rows_in(settings, routes).items()} == hashes

    def in_clickhouse() -> None:
        with closing(client_of(settings.clickhouse)) as client:
            found = client.query("SELECT letter, postage, currency, kind FROM postages FINAL").result_rows
        assert Counter(row[:3] for row in found) == Counter(sums)
        assert {row[3] for row in found} == {"letter.Franked"}

    return [in_postgres, in_redis, in_clickhouse]


def _replayed(settings: Settings) -> None:
    """Damaged read models are rebuilt by the command, in all stores at once: with its loaders' processes, and its switch."""
    with connect(settings.postgres) as connection:
        connection.execute("UPDATE letters SET postage = postage + 1, urgent = NOT urgent")
    with redis_client.Redis.from_url(settings.redis) as redis:
        lost = next(routes.suffixes(redis, settings.namespace))
        redis.delete(routes.row_key(settings.namespace, routes.key_of(lost)))
    with closing(ClickHouseSink(settings.clickhouse)) as click:
        click.command("DELETE FROM postages WHERE log_id % 2 = 0")
    for compare in _compared(settings):
        with pytest.raises(AssertionError):
            compare()
    assert projection.main(["letters", "routes", "postages", "--workers", "2"], [LETTERS], settings) == 0
    _holds(settings)


def _restored(settings: Settings, into: str) -> None:
    """The store made from the topic has what was written, not what today's code would write."""
    [done] = restore(settings, [DOMAIN], into)
    assert (done.events, done.gaps, done.unreadable, done.foreign) == (len(ROWS), [], 0, 0)
    with connect(into) as connection:
        assert stored(connection, DOMAIN) == _numbered()


async def _loaded(settings: Settings) -> None:
    rows, _, _ = expected()
    async with Store.open(settings.postgres) as store:
        for id, row in rows.items():
            letter = await store.load(Letter, id)
            assert (letter.sender, letter.length, letter.urgent) == (row["sender"], row["length"], row["urgent"])
            assert (letter.version, sum(letter.paid.values())) == (row["version"], row["postage"])
            history = await store.history(Letter, id)
            own = [means for one, means in PAST if one.originator_id == id]
            assert [{name: getattr(r.event, name) for name in m} for r, m in zip(history, own, strict=True)] == own
            assert isinstance(history[0].event, Written)
            await store.snapshot(letter)
            assert await store.load(Letter, id, version=1) == history[0].event.mutate(None)
    async with Store.open(settings.postgres) as store:  # from the snapshots
        for id, row in rows.items():
            assert (await store.load(Letter, id)).version == row["version"]


async def _followed(settings: Settings) -> None:
    """A saga's or reactor's consumer, which asks for today's type, gets what was written under the old one."""
    got: list[Recorded[Event]] = []
    wanted = sum(isinstance(delivery.event(), Franked | Sent) for delivery in deliveries(_numbered(), 4))

    async def handle(recorded: Recorded[Event]) -> None:
        got.append(recorded)

    async def heads(domains: object) -> dict[str, int]:
        return {}

    async with Positions(settings.postgres) as positions:
        follower = Follower(
            "clerk", settings, positions, {DOMAIN: [Franked.type, Sent.type]}, handle,
            heads=heads, parking=PostgresParking(settings.postgres), from_start=[DOMAIN],
        )  # fmt: skip
        stop = asyncio.Event()
        running = asyncio.create_task(follower.run(stop))
        async with asyncio.timeout(30):
            while len(got) < wanted and not running.done():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        stop.set()
        await running
    assert len(got) == wanted
    assert {type(one.event) for one in got} == {Franked, Sent}
