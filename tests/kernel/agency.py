"""The toy saga with a boss who answers, served as `python -m streams.sagas` serves the shop's. Also a process: see `main`."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Sequence
from uuid import UUID

import psycopg
import uvloop

from aggregates.kernel import Commands, Origin, Recorded, Store
from aggregates.kernel.migrate import migrate as event_tables
from aggregates.kernel.process import Ending
from infra.kafka import topics
from infra.settings import Settings
from projections.kernel import parking
from streams.kernel import reacts
from streams.kernel.migrate import migrate
from streams.sagas import serve
from tests.kernel.desk import Asked, Confirmed, Desk, Held
from tests.kernel.journey import booking, journey
from tests.kernel.trip import Trip

DOMAINS = ["trip", "desk"]
ME = Origin("user:test")


@reacts
async def boss(r: Recorded[Asked], commands: Commands) -> None:
    """Grants leave; stands for whatever is outside."""
    await commands.tell(r.event.id, Desk.answer, r.event.trip)


def set_up(settings: Settings) -> None:
    event_tables(settings.postgres, DOMAINS)
    migrate(settings)
    with psycopg.connect(settings.postgres) as connection:
        connection.execute(parking.SCHEMA.encode())
    topics.create(settings, DOMAINS)


async def plan(store: Store, trips: int, room: int = 1) -> list[UUID]:
    """Trips that need three desks of their own each."""

    async def one() -> UUID:
        opened = await asyncio.gather(*(store.commands(ME).open(Desk, room) for _ in range(3)))
        return (await store.commands(ME).open(Trip, *(desk.id for desk in opened))).id

    return list(await asyncio.gather(*(one() for _ in range(trips))))


async def ended(store: Store, trips: Sequence[UUID], within_s: float = 60) -> None:
    """Return when all of them have ended."""
    async with asyncio.timeout(within_s):
        for trip in trips:
            while (await store.load(Trip, trip)).progress.ended is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def judge(store: Store, trips: Sequence[UUID]) -> None:
    """Each trip is done, and each of its effects happened once."""
    for id in trips:
        trip = await store.load(Trip, id)
        assert trip.progress.ended is Ending.DONE, trip.progress
        for desk, effects in ((trip.seats, (Held, Confirmed)), (trip.till, (Held,)), (booking(id), (Held, Confirmed))):
            happened = [type(one.event) for one in await store.history(Desk, desk)]
            assert happened[1:] == list(effects)


async def _serve() -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    print("begun", flush=True)  # from here on SIGTERM is an orderly end; before, it just ends what has done nothing yet
    await serve(Settings(), stop, [journey], [boss])


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    uvloop.run(_serve())
