"""Checkouts whose cards are charged by real gateways, each a process of its own: which one it is, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from aggregates.cart import Cart
from aggregates.checkout import Checkout, payment_of
from aggregates.kernel import Money
from aggregates.kernel.migrate import migrate
from aggregates.kernel.money import Tender
from aggregates.kernel.process import Ending
from aggregates.payment import Methods, Payment, Routed, Unresolved
from aggregates.wallet import Wallet
from infra.servers import free_port
from streams.gateways.routing import Rule, Terms
from streams.gateways.settings import GatewaySettings
from tests.kernel.buying import DOMAINS, EUR, TOTAL, Shop, run
from tests.kernel.gateway import gateway_settings, running_gateway
from tests.kernel.paying import Desk, at_desk, held_by_gateway

RULES = (Rule(countries=frozenset({"CH"}), gateways=("alps", "plain")), Rule(gateways=("plain", "alps")))
UP = ("alps", "plain")


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, DOMAINS)
    return postgres


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


CARD = uuid4()


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

    async def buy(self, gateway: str, country: str = "CH", offers: Sequence[Tender] = ()) -> UUID:
        """A checkout by the saved method, which is of that gateway."""
        await self.shop.save(CARD, gateway)
        return await self.shop.start(*offers, country=country, saved=CARD, gateway=gateway)


def at_till(dsn: str, settings: GatewaySettings, work: Callable[[Till], Awaitable[None]]) -> None:
    async def main() -> None:
        async with at_desk(dsn, settings, new=False) as desk:
            shop = Shop(desk.store, dsn)
            await shop.open()
            await work(Till(shop, desk))

    asyncio.run(main())


def test_a_rule_by_country_says_which_gateway_a_checkout_is_paid_at(dsn: str, settings: GatewaySettings) -> None:
    async def work(till: Till) -> None:
        for country, gateway, rule in (("CH", "alps", "rule 1"), ("DE", "plain", "rule 2")):
            id = await till.shop.start(country=country)
            await till.go_on()
            assert await till.shop.ended(id) == (Ending.DONE, "")
            assert till.captured(id) == {gateway: TOTAL}
            [routed] = [one for one in await till.desk.history(payment_of(id)) if isinstance(one, Routed)]
            assert (routed.gateway, routed.reason) == (gateway, rule)

    at_till(dsn, settings, work)


def test_a_saved_method_is_paid_at_its_own_gateway_and_refunded_there(dsn: str, settings: GatewaySettings) -> None:
    """Whatever the rules of routing say."""

    async def work(till: Till) -> None:
        id = await till.buy("plain")
        await till.go_on()
        assert await till.shop.ended(id) == (Ending.DONE, "")
        assert till.captured(id) == {"plain": TOTAL}
        assert await till.desk.kinds(payment_of(id)) == ["Requested", "Authorised", "CaptureRequested", "Captured"]
        await till.desk.commands.tell(payment_of(id), Payment.refund, uuid4(), Money(TOTAL, EUR))
        await till.go_on()
        assert held_by_gateway(settings.at("plain"), payment_of(id))["refunded"] == TOTAL

    at_till(dsn, settings, work)


def test_while_the_gateway_of_a_saved_method_is_away_no_other_one_is_asked(dsn: str, settings: GatewaySettings) -> None:
    async def work(till: Till) -> None:
        wallet = await till.shop.wallet(400)
        id = await till.buy("away", offers=[Tender("wallet", wallet, 400)])
        await till.go_on()
        waiting = (await till.desk.history(payment_of(id)))[-1]
        assert isinstance(waiting, Unresolved) and waiting.reason.endswith("no other gateway knows this method")
        await till.shop.passes(timedelta(minutes=15))
        await till.go_on()
        assert await till.shop.ended(id) == (Ending.UNDONE, "authorise the payment: no answer in time")
        assert till.captured(id) == {}
        assert (await till.shop.store.load(Wallet, wallet)).balance == 400
        assert "Routed" not in await till.desk.kinds(payment_of(id))

    at_till(dsn, settings, work)


async def removes(shop: Shop) -> None:
    await shop.commands.tell(shop.ada, Methods.remove, CARD)


async def renews(shop: Shop) -> None:
    await shop.save(CARD, "alps")


async def lets_it_expire(shop: Shop) -> None:
    await shop.save(CARD, "plain", expires="2020-01")


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (removes, f"there is no payment method {CARD}"),
        (renews, "this way to pay was changed meanwhile"),
        (lets_it_expire, "this way to pay has expired"),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
def test_a_method_that_is_not_what_it_was_when_chosen_sets_nothing_aside(
    dsn: str, does: Callable[[Shop], Awaitable[None]], why: str
) -> None:
    async def work(shop: Shop) -> None:
        await shop.save(CARD, "plain")
        id = await shop.start(saved=CARD, gateway="plain")
        await does(shop)
        await shop.go_on()
        assert await shop.ended(id) == (Ending.UNDONE, why)
        assert set((found := await shop.store.load(Checkout, id)).progress.steps) == {"use the saved method"}
        assert (await shop.store.load(Cart, found.cart)).status == "open"

    run(dsn, work)
