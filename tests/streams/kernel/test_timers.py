"""Durable timers on a real Postgres, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from aggregates.kernel import Origin, Store
from aggregates.kernel.migrate import migrate
from streams.kernel.follow import patiently
from streams.kernel.timers import TRIES_MAX, Timers
from tests.kernel.bell import Bell
from tests.kernel.connections import connected
from tests.kernel.tally import Tally
from tests.kernel.told import logged

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ME = Origin("user:test")
DOMAINS = ["bell", "tally"]


class Hand:
    """A clock's hand, moved by the test."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, DOMAINS)
    return postgres


def run(dsn: str, work: Callable[[Store, Timers, Hand], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store.open(dsn) as store:
            hand = Hand()
            await work(store, Timers(store, DOMAINS, hand), hand)

    asyncio.run(main())


async def cast(store: Store) -> UUID:
    return (await store.commands(ME).open(Bell)).id


def left(dsn: str) -> list[tuple[object, ...]]:
    with connected(dsn) as connection:
        return connection.execute("SELECT key, due::text, attempts, error FROM bell_timers ORDER BY key").fetchall()


def test_it_fires_when_it_is_due_and_not_before(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id = await cast(store)
        await store.commands(ME).tell(id, Bell.wind, "late", NOON + 2 * HOUR)
        await store.commands(ME).tell(id, Bell.wind, "early", NOON + HOUR)
        assert await timers.fire_due() == 0
        hand.now = NOON + HOUR
        assert await timers.fire_due() == 1
        hand.now = NOON + 3 * HOUR
        assert await timers.fire_due() == 1
        assert (await store.load(Bell, id)).rings == [("early", NOON + HOUR), ("late", NOON + 3 * HOUR)]
        assert {one.actor for one in await store.history(Bell, id, after=3)} == {"timer"}
        assert await timers.fire_due() == 0

    run(dsn, work)
    assert left(dsn) == []


def test_cancelled_or_replaced_it_does_not_fire(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id = await cast(store)
        for key in ("cancelled", "replaced"):
            await store.commands(ME).tell(id, Bell.wind, key, NOON + HOUR)
        await store.commands(ME).tell(id, Bell.hush, "cancelled")
        await store.commands(ME).tell(id, Bell.wind, "replaced", NOON + 3 * HOUR)
        hand.now = NOON + 2 * HOUR
        assert await timers.fire_due() == 0

    run(dsn, work)
    assert [row[0] for row in left(dsn)] == ["replaced"]


def test_several_processes_fire_each_timer_once(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        ids = [await cast(store) for _ in range(20)]
        for id in ids:
            for n in range(3):
                await store.commands(ME).tell(id, Bell.wind, str(n), NOON + timedelta(seconds=n))
        hand.now = NOON + HOUR
        async with Store.open(dsn) as second, Store.open(dsn) as third:
            others = [Timers(one, DOMAINS, hand) for one in (second, third)]
            await asyncio.gather(*(one.fire_due() for one in (timers, *others)))
        for id in ids:
            assert sorted(key for key, _ in (await store.load(Bell, id)).rings) == ["0", "1", "2"]

    run(dsn, work)
    assert left(dsn) == []


def test_of_all_domains(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id, tally = await cast(store), (await store.commands(ME).open(Tally, 1)).id
        await store.commands(ME).tell(id, Bell.wind, "one", NOON)
        await store.commands(ME).tell(tally, Tally.schedule, NOON)
        assert await timers.fire_due() == 2
        assert (await store.load(Tally, tally)).ended

    run(dsn, work)


def test_one_that_sets_itself_again_fires_again(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id = await cast(store)
        await store.commands(ME).tell(id, Bell.wind, "hourly", NOON, "ring_thrice")
        for n in range(5):
            hand.now = NOON + n * HOUR
            await timers.fire_due()
        assert (await store.load(Bell, id)).rings == [("hourly", NOON + n * HOUR) for n in range(3)]

    run(dsn, work)
    assert left(dsn) == []


def test_whose_command_does_nothing_or_is_refused_is_gone(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id = await cast(store)
        await store.commands(ME).tell(id, Bell.wind, "a", NOON, "nothing")
        await store.commands(ME).tell(id, Bell.wind, "b", NOON, "refuse")
        assert await timers.fire_due() == 2
        assert (await store.load(Bell, id)).version == 3

    run(dsn, work)
    assert left(dsn) == []


def test_set_again_for_the_time_at_which_it_was_fired_it_is_not_fired_twice(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id = await cast(store)
        for _ in range(2):
            await store.commands(ME).tell(id, Bell.wind, "a", NOON)
            await timers.fire_due()
        assert len((await store.load(Bell, id)).rings) == 1

    run(dsn, work)
    assert left(dsn) == []


def test_a_bug_is_repeated_ever_less_often_then_stays_and_holds_up_no_other(dsn: str) -> None:
    async def work(store: Store, timers: Timers, hand: Hand) -> None:
        id = await cast(store)
        await store.commands(ME).tell(id, Bell.wind, "bad", NOON, "burst")
        for n in range(TRIES_MAX):
            assert left(dsn)[0][2] == n
            await store.commands(ME).tell(id, Bell.wind, f"good {n}", hand.now)
            assert await timers.fire_due() == 2
            hand.now += 2 * HOUR
        assert await timers.fire_due() == 0
        assert len((await store.load(Bell, id)).rings) == TRIES_MAX

    with logged() as lines:
        run(dsn, work)
    told = [line for line in lines() if line["event"].startswith("timer bad of bell")]
    assert len(told) == TRIES_MAX and all(line["correlation"] for line in told)
    assert left(dsn) == [("bad", "infinity", TRIES_MAX, "ZeroDivisionError: bad")]


def test_it_runs_by_itself_and_waits_for_a_database_that_is_away(dsn: str) -> None:
    @asynccontextmanager
    async def running(timers: Timers) -> AsyncIterator[None]:
        stop = asyncio.Event()
        task = asyncio.create_task(timers.run(stop))
        yield
        stop.set()
        await task

    async def work(store: Store, _: Timers, hand: Hand) -> None:
        id = await cast(store)
        async with running(Timers(store, DOMAINS)):
            await store.commands(ME).tell(id, Bell.wind, "now", datetime.now(UTC))
            await rung(store, id, 1)
            with psycopg.connect(dsn, autocommit=True) as killer:
                killer.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            soon = datetime.now(UTC) + timedelta(seconds=0.5)
            await patiently("test", lambda: store.commands(ME).tell(id, Bell.wind, "soon", soon))
            await rung(store, id, 2)

    async def rung(store: Store, id: UUID, times: int) -> None:
        async with asyncio.timeout(20):
            while len((await patiently("test", lambda: store.load(Bell, id))).rings) < times:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    run(dsn, work)
