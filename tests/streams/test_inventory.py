"""Reservations run out by their timers: each once, at its time, whoever is alive, and never what was ended before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest

from aggregates.inventory import Committed, Expired, Reserved, Stock, stock_id
from aggregates.kernel import Commands, Origin, Refused, Store
from aggregates.kernel.migrate import migrate
from streams.kernel.timers import Timers

T = TypeVar("T")
NOON = datetime(2031, 1, 1, 12, tzinfo=UTC)
MUG, CUP = stock_id("MUG"), stock_id("CUP")


class Clock:
    """A time that only the test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, ["inventory"])
    return postgres


def run(dsn: str, work: Callable[[Store, Commands, Clock, Timers], Awaitable[T]]) -> T:
    """Ten mugs and ten cups, and a clock that stands at noon."""

    async def main() -> T:
        async with Store.open(dsn) as store:
            commands, clock = store.commands(Origin("user:test")), Clock()
            for sku in ("MUG", "CUP"):
                opened = await commands.open(Stock.open, sku)
                await commands.tell(opened.id, Stock.receive, 10, "note")
            return await work(store, commands, clock, Timers(store, ["inventory"], clock))

    return asyncio.run(main())


async def reserve(commands: Commands, minutes: int, pieces: int) -> UUID:
    """So many mugs and cups, for so many minutes from noon."""
    cause = uuid4()
    until = NOON + timedelta(minutes=minutes)
    await commands.tell_all([(id, Stock.reserve, (cause, pieces, until)) for id in (MUG, CUP)])
    return cause


def test_a_reservation_expires_when_its_time_is_over(dsn: str) -> None:
    async def work(store: Store, commands: Commands, clock: Clock, timers: Timers) -> None:
        short, long = await reserve(commands, 15, 7), await reserve(commands, 30, 3)
        clock.now += timedelta(minutes=15) - timedelta(microseconds=1)
        assert await timers.fire_due() == 0
        with pytest.raises(Refused, match="more than the 0 left"):
            await reserve(commands, 60, 1)
        clock.now += timedelta(microseconds=1)
        assert await timers.fire_due() == 2
        assert await timers.fire_due() == 0
        for id in (MUG, CUP):
            stock = await store.load(Stock, id)
            assert (stock.available, set(stock.quota.holds)) == (7, {long})
            assert stock.quota.closed[short].ending == "expired"
        with pytest.raises(Refused, match="already expired"):
            await commands.tell(MUG, Stock.commit, short)
        await reserve(commands, 60, 7)

    run(dsn, work)


def test_what_ended_before_does_not_expire(dsn: str) -> None:
    async def work(store: Store, commands: Commands, clock: Clock, timers: Timers) -> None:
        sold, freed = await reserve(commands, 15, 2), await reserve(commands, 15, 2)
        await commands.tell_all([(id, Stock.commit, (sold,)) for id in (MUG, CUP)])
        await commands.tell_all([(id, Stock.release, (freed,)) for id in (MUG, CUP)])
        clock.now += timedelta(hours=1)
        assert await timers.fire_due() == 0
        assert (await store.load(Stock, MUG)).available == 8

    run(dsn, work)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM inventory_timers").fetchone() == (0,)


def test_of_two_processes_one_fires_each_timer(dsn: str) -> None:
    async def work(store: Store, commands: Commands, clock: Clock, timers: Timers) -> None:
        causes = [await reserve(commands, 15, 1) for _ in range(10)]
        clock.now += timedelta(minutes=15)
        async with Store.open(dsn) as other:
            rivals = [timers, Timers(other, ["inventory"], clock)] * 2
            await asyncio.gather(*(one.fire_due() for one in rivals))
        for id in (MUG, CUP):
            expired = [
                one.event.reservation for one in await store.history(Stock, id) if isinstance(one.event, Expired)
            ]
            assert sorted(expired) == sorted(causes)
            assert (await store.load(Stock, id)).available == 10

    run(dsn, work)


def test_a_sale_that_races_with_the_timer_has_one_end(dsn: str) -> None:
    async def work(store: Store, commands: Commands, clock: Clock, timers: Timers) -> None:
        causes = [await reserve(commands, 15, 1) for _ in range(10)]
        clock.now += timedelta(minutes=15)
        async with Store.open(dsn) as other:
            rival = other.commands(Origin("user:other"))
            sales = [rival.tell(MUG, Stock.commit, cause) for cause in causes]
            _, *results = await asyncio.gather(timers.fire_due(), *sales, return_exceptions=True)
        history = [one.event for one in await store.history(Stock, MUG)]
        sold = {event.reservation for event in history if isinstance(event, Committed)}
        expired = {event.reservation for event in history if isinstance(event, Expired)}
        assert sold == {cause for cause, result in zip(causes, results, strict=True) if not isinstance(result, Refused)}
        assert (sold | expired, sold & expired) == (set(causes), set())
        assert sum(isinstance(event, Reserved | Committed | Expired) for event in history) == 20
        assert (await store.load(Stock, MUG)).on_hand == 10 - len(sold)

    run(dsn, work)
