"""The payment reactor without Kafka: a real store, real gateways, the reactor at its log, and a clock that is moved."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import streams.payment
from aggregates.kernel import Event, Money, Origin, Recorded, Store, clock, wire
from aggregates.kernel.migrate import migrate
from aggregates.payment import Payment
from streams.gateways.settings import GatewaySettings
from streams.kernel import Reactor
from streams.kernel.timers import Timers
from tests.kernel.gateway import client
from tests.kernel.topic import stored

EUR = "EUR"
REACTORS = {kind: one for one in vars(streams.payment).values() if isinstance(one, Reactor) for kind in one.kinds}


class Desk:
    """A store, the reactor at its log, timers, and a clock that is moved."""

    def __init__(self, store: Store, dsn: str, settings: GatewaySettings) -> None:
        self.store, self.dsn, self.settings = store, dsn, settings
        self.origin = Origin("user:test")
        self.commands = store.commands(self.origin)
        self.seen = 0
        self.later = timedelta()
        self.timers = Timers(store, ["payment"], self.now)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    async def handle(self, recorded: Recorded[Any]) -> None:
        """What the process of reactors does with an event."""
        commands = self.store.commands(Origin("reactor.payment", recorded.correlation, recorded.event_id))
        await REACTORS[type(recorded.event)].call(recorded, commands)

    async def pay(self, token: str, amount: int = 1000, currency: str = EUR, gateway: str = "") -> UUID:
        made = await self.commands.open(Payment, uuid4(), uuid4(), Money(amount, currency), token, gateway)
        return made.id

    async def react(self) -> None:
        """Handle all intents that are stored by now, each payment's in its order, and those that come of it."""
        while rows := stored(self.dsn, "payment", self.seen):
            self.seen = rows[-1].notification_id
            wanted = [one for row in rows if type((one := wire.recorded("payment", row)).event) in REACTORS]
            lanes: dict[UUID, list[Any]] = {}
            for one in wanted:
                lanes.setdefault(one.event.id, []).append(one)

            async def lane(its: list[Any]) -> None:
                for one in its:
                    await self.handle(one)

            await asyncio.gather(*map(lane, lanes.values()))

    async def move(self, by: timedelta) -> None:
        """Time passes: what is due is fired and reacted to."""
        self.later += by
        await self.timers.fire_due()
        await self.react()

    async def history(self, id: UUID) -> list[Event]:
        return [one.event for one in await self.store.history(Payment, id)]

    async def kinds(self, id: UUID) -> list[str]:
        return [event.type.partition(".")[2] for event in await self.history(id)]

    async def payment(self, id: UUID) -> Payment:
        return await self.store.load(Payment, id)


@asynccontextmanager
async def at_desk(dsn: str, settings: GatewaySettings, new: bool = True) -> AsyncIterator[Desk]:
    """With gateways and circuits of its own, as in a process that has just begun. `new`: the store may be."""
    settings = settings.model_copy(update={"postgres": dsn})
    if new:
        migrate(dsn, ["payment"])
    with patch.multiple(streams.payment, settings=lambda: settings, GATEWAYS={}, CIRCUITS={}):
        async with Store.open(dsn) as store:
            desk = Desk(store, dsn, settings)
            real = clock.set_clock(desk.now)
            try:
                yield desk
            finally:
                clock.set_clock(real)
                for gateway in streams.payment.GATEWAYS.values():
                    await gateway.close()


def held_by_gateway(settings: GatewaySettings, id: UUID) -> dict[str, Any]:
    """What the gateway of these settings knows of a payment; nothing when it has not heard of it."""
    with client(settings) as shop:
        answer = shop.get(f"/payments/{id}")
    found: dict[str, Any] = answer.json()
    return found if answer.status_code == 200 else {}
