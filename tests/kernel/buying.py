"""Checkouts without Kafka: the saga at the logs of a real store, on shelves, carts, vouchers and wallets of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from aggregates.cart import Cart
from aggregates.checkout import Checkout, payment_of
from aggregates.inventory import Stock
from aggregates.kernel import Conflict, Money, NotFound, Origin, Store, wire
from aggregates.kernel.money import Line, Tender
from aggregates.kernel.process import Ending
from aggregates.kernel.token import Way
from aggregates.order import Order
from aggregates.payment import Methods, Payment
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet
from schemas import Address, Sealed
from streams.checkout import checkout
from streams.kernel.runner import SagaRunner
from streams.kernel.timers import Timers
from tests.kernel.topic import stored

NOON = datetime.now(UTC)
DOMAINS = ["cart", "checkout", "inventory", "order", "payment", "voucher", "wallet"]
SEALED = Sealed("sealed:1:ada:a")
HOME = Address(SEALED, SEALED, SEALED, SEALED, "CH")
EUR, TOTAL = "EUR", 1_000  # two pieces for 500 each, without tax


def eur(amount: int) -> Money:
    return Money(amount, EUR)


class Shop:
    """The saga at the logs of checkouts and payments; the bank says what the test says."""

    def __init__(self, store: Store, dsn: str) -> None:
        self.store, self.dsn, self.now = store, dsn, NOON
        self.commands = store.commands(Origin("gateway:test"))
        self.runner = SagaRunner(checkout, store, lambda: self.now)
        self.timers = Timers(store, DOMAINS, lambda: self.now)
        self.seen = {"checkout": 0, "payment": 0}
        self.ada = uuid4()
        self.sku = f"MUG-{uuid4().hex[:8]}"

    async def open(self, pieces: int = 100) -> None:
        self.shelf = (await self.commands.open(Stock.open, self.sku)).id
        await self.commands.tell(self.shelf, Stock.receive, pieces, "delivery")

    async def voucher(self, amount: int) -> UUID:
        return (await self.commands.open(Voucher.gift, eur(amount), uuid4().hex, "hint", None, NOON)).id

    async def wallet(self, amount: int) -> UUID:
        id = (await self.commands.open(Wallet.open, self.ada, EUR)).id
        await self.commands.tell(id, Wallet.deposit, eur(amount), "credit", uuid4())
        return id

    async def save(self, method: UUID, gateway: str, token: str = "tok_visa", expires: str = "2099-12") -> None:
        """A way to pay that the customer keeps."""
        with suppress(Conflict):
            await self.commands.open_as(self.ada, Methods)
        await self.commands.tell(self.ada, Methods.ask, method, gateway, token, "visa", SEALED, expires)
        await self.commands.tell(self.ada, Methods.attached, method, gateway, token)

    async def start(
        self,
        *offers: Tender,
        method: str | None = "tok_visa",
        country: str = HOME.country,
        saved: UUID | None = None,
        gateway: str = "",
    ) -> UUID:
        """A cart, and a checkout of it by what is offered; nobody has gone on with it yet."""
        product = uuid4()
        cart = (await self.commands.open(Cart.take, self.ada, EUR, NOON)).id
        await self.commands.tell(cart, Cart.add, self.sku, product, "A mug", 2, TOTAL // 2, NOON)
        line = Line(self.sku, product, "A mug", 2, TOTAL // 2, 0, 0, 0, "main")
        home = replace(HOME, country=country)
        way = Way(method, saved, gateway) if method else None
        made = await self.commands.open(Checkout.start, self.ada, cart, 2, EUR, [line], home, way, offers=offers)
        return made.id

    async def buy(self, *offers: Tender, method: str | None = "tok_visa") -> UUID:
        id = await self.start(*offers, method=method)
        await self.go_on()
        return id

    async def go_on(self) -> None:
        """Everything that is stored is handled, twice, until nothing comes of it any more."""
        while any([await self._handle(domain) for domain in self.seen]):
            pass

    async def _handle(self, domain: str) -> bool:
        rows = stored(self.dsn, domain, self.seen[domain])
        for recorded in [wire.recorded(domain, row) for row in rows for _ in range(2)]:
            self.seen[domain] = recorded.position
            await self.runner.handle(recorded)
        return bool(rows)

    async def passes(self, time: timedelta) -> None:
        """Time passes, and every timer rings."""
        self.now += time
        while await self.timers.fire_due():
            pass
        await self.go_on()

    async def bank(self, id: UUID, method: Callable[..., None], *args: object) -> None:
        await self.commands.tell(payment_of(id), method, *args)
        await self.go_on()

    async def authorises(self, id: UUID) -> None:
        await self.bank(id, Payment.authorised, "txn", self.now + timedelta(days=7))

    async def captures(self, id: UUID) -> None:
        [(capture, asked)] = (await self.store.load(Payment, payment_of(id))).captures.items()
        await self.bank(id, Payment.captured, capture, eur(asked.amount))

    async def ended(self, id: UUID) -> tuple[Ending | None, str]:
        progress = (await self.store.load(Checkout, id)).progress
        return progress.ended, progress.why

    async def nothing_is_left_behind(self, id: UUID, voucher: UUID | None = None, wallet: UUID | None = None) -> None:
        """Of a checkout that failed."""
        shelf = await self.store.load(Stock, self.shelf)
        assert shelf.reserved == 0 and id in shelf.quota.closed
        found = await self.store.load(Checkout, id)
        assert (await self.store.load(Cart, found.cart)).status == "open"
        try:
            assert (await self.store.load(Order, id)).status == "cancelled"
        except NotFound:
            assert "place the order" not in found.progress.steps
        if voucher:
            quota = (await self.store.load(Voucher, voucher)).quota
            assert id not in quota.holds and quota.closed[id].ending == "released"
        if wallet:
            escrow = (await self.store.load(Wallet, wallet)).escrow(id)
            assert escrow and escrow.ending == "released"


def run(dsn: str, work: Callable[[Shop], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store.open(dsn) as store:
            shop = Shop(store, dsn)
            await shop.open()
            await work(shop)

    asyncio.run(main())
