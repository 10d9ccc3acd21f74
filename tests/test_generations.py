"""Three generations of a schema in one log: loaded, relayed, projected live, replayed and followed as today's events."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from aggregates.kernel import Event, Recorded, Store, snapshot, wire
from aggregates.kernel.event import RENAMED
from aggregates.kernel.migrate import migrate as migrate_events
from infra.kafka import topics
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.clickhouse import ClickTable, client_of, create
from projections.kernel.migrate import migrate
from projections.kernel.parking import PostgresParking
from projections.kernel.postgres import connect
from projections.kernel.postgres import migrate as migrate_postgres
from projections.kernel.runner import Runner
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from replay.log import read, spans
from streams.kernel.follow import Follower, Positions
from tests.kernel.letters import DOMAIN, Franked, Letter, Sent, Written, letters, past, postages, routes
from tests.kernel.pipeline import following, projected, relayed, relaying, store_rows
from tests.kernel.platform import wait_for
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


def test_three_generations_from_the_store_to_every_read_model_and_back_from_the_topic(settings: Settings) -> None:
    migrate_events(settings.postgres, [DOMAIN])
    migrate(settings, of=[LETTERS])
    topics.create(settings, [DOMAIN])
    store_rows(settings.postgres, DOMAIN, ROWS)
    with relaying(settings), following(settings, [LETTERS], [DOMAIN]):
        wait_for(lambda: relayed(settings, DOMAIN), "the relay has published the past")
        wait_for(lambda: projected(settings, [LETTERS], DOMAIN, settings.partitions), "the worker has projected it")
    _holds(settings, "letters", "routes", "postages")
    _replayed(settings)
    asyncio.run(_loaded(settings))
    asyncio.run(_followed(settings))


def _holds(settings: Settings, in_postgres: str, in_redis: str, in_clickhouse: str) -> None:
    rows, hashes, sums = expected()
    assert {id: row for (id,), row in rows_in(settings, letters.named(in_postgres)).items()} == rows
    assert {id: row for (id,), row in rows_in(settings, routes.named(in_redis)).items()} == hashes
    client = client_of(settings.clickhouse)
    found = client.query(f"SELECT letter, postage, currency, kind FROM {in_clickhouse} FINAL").result_rows
    client.close()
    assert Counter(row[:3] for row in found) == Counter(sums)
    assert {row[3] for row in found} == {"letter.Franked"}


def _replayed(settings: Settings) -> None:
    """Read back from the topic in bulk, into tables of another name."""
    again = letters.named("letters_again")
    shadows: dict[AnyTable, AnyTable] = {letters: again}
    shadows |= {table: table.named(f"{table.name}_again") for table in (routes, postages)}
    with connect(settings.postgres) as connection:
        migrate_postgres(connection, [again])
    client = client_of(settings.clickhouse)
    client.command(create(cast(ClickTable, shadows[postages]), "postages~again"))
    client.close()
    with ExitStack() as stack:
        runners = []
        for name in ("postgres", "redis", "clickhouse"):
            sink = sink_of(name, settings)
            stack.callback(sink.close)
            mine = {table: shadow for table, shadow in shadows.items() if table.sink == name}
            runners.append(Runner(sink, [LETTERS], [DOMAIN], targets=mine))
        found = spans(settings, [DOMAIN])
        for runner in runners:
            runner.assign([(span.domain, span.partition) for span in found])
        assert sum(span.records for span in found) == len(ROWS)
        for batch in read(settings, found):
            for runner in runners:
                runner.handle(batch)
    _holds(settings, *(shadow.name for shadow in shadows.values()))


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
