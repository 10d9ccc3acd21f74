"""After Postgres is lost, sagas, reactors and rules go on where they were: nothing of history again, nothing in flight lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from aggregates.kernel import Commands, Recorded, Store
from infra.settings import Settings
from replay import followers
from replay.log import spans
from replay.store import restore
from streams.kernel import Reactor, follow, reacts
from streams.kernel.rules import Hit, Window, rule
from streams.sagas import serve
from tests.kernel.agency import DOMAINS, ME, boss, ended, judge, plan, set_up
from tests.kernel.connections import connected
from tests.kernel.desk import Desk, Held
from tests.kernel.journey import journey
from tests.kernel.pipeline import relayed, relaying
from tests.kernel.platform import wait_for
from tests.kernel.servers import Stack, database

ME_TOO = "reactor.test_followers"
CAUSES = [UUID(int=number) for number in range(40)]


@rule(version=1, window_s=60, key=lambda e: e.id)
def crowded(e: Held, window: Window[Held]) -> Hit | None:
    return None


@asynccontextmanager
async def serving(of: Settings, reactors: Collection[Reactor]) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(serve(of, stop, [journey], reactors))
    try:
        yield
    finally:
        stop.set()
        await task


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def asked(dsn: str, query: str) -> list[tuple[object, ...]]:
    with connected(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


def in_kafka(of: Settings, name: str, domain: str) -> bool:
    """Whether a follower has committed to Kafka how far it is: to the ends of a domain's partitions."""
    its = followers._committed(of).get(name, {})
    ends = {(span.domain, span.partition): span.end for span in spans(of, [domain])}
    return all(lane in its and its[lane].offset == end for lane, end in ends.items())


def commit(of: Settings, group: str, domain: str) -> None:
    """As a group whose consumers are at the ends of a domain's partitions."""
    consumer = Consumer({"bootstrap.servers": of.kafka, "group.id": f"{of.namespace}.{group}"})
    ends = [TopicPartition(of.topic(domain), span.partition, span.end) for span in spans(of, [domain])]
    consumer.commit(offsets=ends, asynchronous=False)
    consumer.close()


@pytest.mark.parametrize("again", [timedelta(0), timedelta(hours=1)], ids=["where they were", "an hour before"])
def test_who_reacts_goes_on_in_a_database_made_from_the_topics(
    settings: Settings, stack: Stack, again: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followers, "AGAIN", again)
    monkeypatch.setattr(followers, "discover", lambda: [crowded])
    monkeypatch.setattr(follow, "REPORT_S", 0.1)
    seen: list[UUID] = []

    @reacts
    async def outside(r: Recorded[Held], commands: Commands) -> None:
        seen.append(r.event.cause)

    async def before() -> tuple[list[UUID], int]:
        async with Store.open(settings.postgres) as store:
            desks = [(await store.commands(ME).open(Desk, 100)).id for _ in range(3)]
            for number, cause in enumerate(CAUSES[:10]):  # history: nobody reacts yet
                await store.commands(ME).tell(desks[number % 3], Desk.hold, cause)
            async with serving(settings, [boss, outside]):
                await until(
                    lambda: asked(settings.postgres, f"SELECT FROM follower_watermarks WHERE follower = '{ME_TOO}'")
                )
                for number, cause in enumerate(CAUSES[10:20]):
                    await store.commands(ME).tell(desks[number % 3], Desk.hold, cause)
                trips = await plan(store, 2)
                await ended(store, trips)
                await asyncio.to_thread(wait_for, lambda: in_kafka(settings, ME_TOO, "desk"), "it is told to Kafka")
            commit(settings, "faust", "desk")
            last = asked(settings.postgres, "SELECT last FROM log_heads WHERE domain = 'desk'")[0][0]
            for number, cause in enumerate(CAUSES[20:30]):  # in flight when it all ends
                await store.commands(ME).tell(desks[number % 3], Desk.hold, cause)
            trips += await plan(store, 2)
            return trips, int(str(last))

    async def after(dsn: str, trips: list[UUID]) -> None:
        new = settings.model_copy(update={"postgres": dsn})
        with relaying(new):
            async with Store.open(dsn) as store, serving(new, [boss, outside]):
                trips += await plan(store, 1)
                await ended(store, trips)
                await judge(store, trips)
                await until(lambda: {*CAUSES[20:30]} <= {*seen})

    set_up(settings)
    with relaying(settings):
        trips, last = asyncio.run(before())
        for domain in DOMAINS:
            wait_for(lambda: relayed(settings, domain), "the log is in the topic")  # noqa: B023
    assert {*CAUSES[10:20]} <= {*seen} and not {*CAUSES[:10], *CAUSES[20:30]} & {*seen}
    seen.clear()
    with database(stack) as dsn:
        set_up(
            settings.model_copy(update={"postgres": dsn})
        )  # migrated while it is empty: everybody is at the beginning
        with psycopg.connect(dsn) as connection:
            connection.execute(
                "INSERT INTO follower_watermarks VALUES (%s, 'desk', 0), ('reactor.new', 'desk', 0)", [ME_TOO]
            )
            connection.execute("INSERT INTO rule_starts VALUES (%s, 'desk', 0)", [crowded.id])
        done = {one.domain: one for one in restore(settings, DOMAINS, dsn)}
        assert done["desk"].followers == ["reactor.agency", ME_TOO, "saga.trip"]
        head = done["desk"].head
        assert asked(dsn, "SELECT notification_id FROM follower_watermarks WHERE follower = 'reactor.new'") == [(head,)]
        asyncio.run(after(dsn, trips))
        assert not {*CAUSES[:10]} & {*seen}  # from before it was first started
        if not again:
            assert not {*CAUSES[10:20]} & {*seen}
            assert asked(dsn, f"SELECT notification_id FROM rule_starts WHERE rule = '{crowded.id}'") == [(last,)]
