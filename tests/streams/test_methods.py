"""Ways to pay that are used no more: their gateway forgets them, however often it has to be asked, and all of them with the person."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from unittest.mock import patch
from uuid import UUID, uuid4

import pytest

import streams.methods
from aggregates.kernel import Commands, Event, Origin, Sealed, Store, Unavailable, wire
from aggregates.kernel.migrate import migrate
from aggregates.payment import ALL, Detached, Methods
from aggregates.user import User
from streams.gateways.interface import Gateway, open_gateway
from streams.gateways.settings import GatewaySettings
from streams.kernel import Reactor
from tests.kernel.gateway import client, gateway_settings, with_gateways
from tests.kernel.topic import stored

REACTORS = {kind: one for one in vars(streams.methods).values() if isinstance(one, Reactor) for kind in one.kinds}
DIGITS = Sealed("sealed:1:somebody:digits")


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, ["payment", "user"])
    return postgres


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySettings]:
    folder: Path = tmp_path_factory.mktemp("methods")
    with with_gateways(gateway_settings(folder)) as settings:
        yield settings


class Desk:
    """A store, the reactor at its logs, and the gateway that it asks."""

    def __init__(self, store: Store, dsn: str, gateway: Gateway, settings: GatewaySettings) -> None:
        self.store, self.dsn, self.gateway, self.settings = store, dsn, gateway, settings
        self.commands: Commands = store.commands(Origin("user:test"))
        self.ada = uuid4()
        self.seen = {"user": 0, "payment": 0}

    async def attach(self, token: str) -> UUID:
        """As the API does: asked for, done and saved."""
        await self.ask(method := uuid4(), token)
        await self.commands.tell(self.ada, Methods.attached, method, "test", token)
        return method

    async def ask(self, method: UUID, token: str) -> None:
        """As far as an API does that is stopped before it could save what the gateway has answered."""
        await self.commands.tell(self.ada, Methods.ask, method, "test", token, "visa", DIGITS, "2099-12")
        await self.gateway.attach(self.ada, method, token, {})

    async def react(self) -> None:
        """Handle all that is stored by now, in its order."""
        for domain, seen in self.seen.items():
            for row in stored(self.dsn, domain, seen):
                recorded = wire.recorded(domain, row)
                if reactor := REACTORS.get(type(recorded.event)):
                    await reactor.call(recorded, self.store.commands(Origin("reactor", command=recorded.event_id)))
                self.seen[domain] = row.notification_id

    def kept(self) -> set[str]:
        with client(self.settings.at("test")) as shop:
            return set(shop.get(f"/customers/{self.ada}/methods").json()["methods"])

    async def told(self) -> list[tuple[str, str]]:
        events: list[Event] = [one.event for one in await self.store.history(Methods, self.ada)]
        return [(one.gateway, one.token) for one in events if isinstance(one, Detached)]


def at_desk(dsn: str, settings: GatewaySettings, work: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        gateways = {"test": open_gateway("test", settings)}
        with patch.multiple(streams.methods, settings=lambda: settings, GATEWAYS=gateways):
            async with Store.open(dsn) as store:
                desk = Desk(store, dsn, gateways["test"], settings)
                await desk.commands.open_as(desk.ada, Methods)
                await work(desk)
        for gateway in {*gateways.values(), desk.gateway}:
            await gateway.close()

    asyncio.run(main())


def test_what_is_removed_is_forgotten_by_its_gateway_once_it_answers(dsn: str, settings: GatewaySettings) -> None:
    async def work(desk: Desk) -> None:
        gone, _ = [await desk.attach(token) for token in ("tok_timeoutDetach", "tok_visa")]
        await desk.commands.tell(desk.ada, Methods.remove, gone)
        with pytest.raises(Unavailable, match="the gateway test: no answer"):
            await desk.react()
        assert await desk.told() == []
        for _ in range(2):
            await desk.react()
            assert (desk.kept(), await desk.told()) == ({"tok_visa"}, [("test", "tok_timeoutDetach")])

    at_desk(dsn, settings, work)


def test_what_replaces_another_one_has_that_forgotten(dsn: str, settings: GatewaySettings) -> None:
    async def work(desk: Desk) -> None:
        method = await desk.attach("tok_visa")
        await desk.ask(method, "tok_mastercard")
        await desk.commands.tell(desk.ada, Methods.attached, method, "test", "tok_mastercard")
        await desk.react()
        assert (desk.kept(), await desk.told()) == ({"tok_mastercard"}, [("test", "tok_visa")])

    at_desk(dsn, settings, work)


def test_with_the_person_everything_is_forgotten_even_what_nobody_knew_of(dsn: str, settings: GatewaySettings) -> None:
    async def work(desk: Desk) -> None:
        await desk.commands.open_as(desk.ada, User)
        await desk.attach("tok_visa")
        await desk.ask(uuid4(), "tok_mastercard")
        assert desk.kept() == {"tok_visa", "tok_mastercard"}
        for method in (User.ask_erasure, User.erased):
            await desk.commands.tell(desk.ada, method)
        for _ in range(2):
            await desk.react()
            assert desk.kept() == set()
        assert await desk.told() == [("test", ALL), ("test", "tok_visa")]
        nobody = uuid4()
        await desk.commands.open_as(nobody, User)
        for method in (User.ask_erasure, User.erased):
            await desk.commands.tell(nobody, method)
        await desk.react()

    at_desk(dsn, settings, work)
