"""Checkouts whose cards are charged by real gateways, each a process of its own: which one it is, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from uuid import UUID

import pytest

from aggregates.checkout import payment_of
from aggregates.kernel.migrate import migrate
from aggregates.kernel.process import Ending
from aggregates.payment import Routed
from infra.servers import free_port
from streams.gateways.routing import Rule, Terms
from streams.gateways.settings import GatewaySettings
from tests.kernel.buying import DOMAINS, TOTAL, Shop
from tests.kernel.gateway import gateway_settings, running_gateway
from tests.kernel.paying import Desk, at_desk, held_by_gateway

RULES = (Rule(countries=frozenset({"CH"}), gateways=("alps", "plain")), Rule(gateways=("plain", "alps")))
UP = ("alps", "plain")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySettings]:
    """Two gateways, one for a country and one for all others, and one that is never there."""
    terms = {
        name: Terms(adapter="test", set={"test_gateway": f"http://127.0.0.1:{free_port()}"}) for name in (*UP, "away")
    }
    made = gateway_settings(tmp_path_factory.mktemp("gateways"), gateways=terms, routes=RULES)
    with ExitStack() as stack:
        for name in UP:
            stack.enter_context(running_gateway(made.at(name)))
        yield made


class Till:
    """A shop, and the reactor that asks its gateways."""

    def __init__(self, shop: Shop, desk: Desk) -> None:
        self.shop, self.desk = shop, desk

    async def go_on(self) -> None:
        """Until nothing comes of what is stored any more."""
        seen = -1
        while seen != self.desk.seen:
            seen = self.desk.seen
            await self.shop.go_on()
            await self.desk.react()

    def captured(self, id: UUID) -> dict[str, int]:
        """What each gateway has taken for a checkout; those that never heard of it are left out."""
        known = {name: held_by_gateway(self.desk.settings.at(name), payment_of(id)) for name in UP}
        return {name: found["captured"] for name, found in known.items() if found}


def at_till(dsn: str, settings: GatewaySettings, work: Callable[[Till], Awaitable[None]]) -> None:
    async def main() -> None:
        migrate(dsn, DOMAINS)
        async with at_desk(dsn, settings, new=False) as desk:
            shop = Shop(desk.store, dsn)
            await shop.open()
            await work(Till(shop, desk))

    asyncio.run(main())


def test_a_rule_by_country_says_which_gateway_a_checkout_is_paid_at(postgres: str, settings: GatewaySettings) -> None:
    async def work(till: Till) -> None:
        for country, gateway, rule in (("CH", "alps", "rule 1"), ("DE", "plain", "rule 2")):
            id = await till.shop.start(country=country)
            await till.go_on()
            assert await till.shop.ended(id) == (Ending.DONE, "")
            assert till.captured(id) == {gateway: TOTAL}
            [routed] = [one for one in await till.desk.history(payment_of(id)) if isinstance(one, Routed)]
            assert (routed.gateway, routed.reason) == (gateway, rule)

    at_till(postgres, settings, work)
