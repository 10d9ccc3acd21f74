"""Refunds and cancellations on a real store: each part of an order's money goes back once, wherever a process dies; the bank's word is
the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

import streams.cancellation
import streams.reversal
from aggregates.inventory import Stock
from aggregates.kernel import Commands, Money, NotFound, Origin, Refused, Store, wire
from aggregates.kernel.migrate import migrate
from aggregates.kernel.money import Line, Tender
from aggregates.kernel.process import Ending
from aggregates.kernel.refunding import Return
from aggregates.order import Order
from aggregates.payment import Payment
from aggregates.refund import TO_CARD, TO_VOUCHERS, Refund, Rejected
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet, wallet_id
from schemas import Address, Sealed
from streams.kernel.reactor import Reactor
from streams.kernel.runner import SagaRunner, StoreDoor
from streams.kernel.timers import Timers
from streams.refund import refund as saga
from tests.kernel import SAID
from tests.kernel.topic import stored

NOON = datetime.now(UTC)
DOMAINS = ["inventory", "order", "payment", "refund", "voucher", "wallet"]
SEALED = Sealed("sealed:1:ada:a")
HOME = Address(SEALED, SEALED, SEALED, SEALED, "CH")
EUR, TOTAL = "EUR", 1_000  # four pieces for 225 each and 100 for shipping, without tax
STAFF = UUID(int=99)
REACTORS = {
    kind: one
    for module in (streams.cancellation, streams.reversal)
    for one in vars(module).values()
    if isinstance(one, Reactor)
    for kind in one.kinds
}


def eur(amount: int) -> Money:
    return Money(amount, EUR)


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, DOMAINS)
    return postgres


class Shop:
    """The saga, and what gives cancelled orders' money back, at the logs; the bank says what the test says."""

    def __init__(self, store: Store, dsn: str) -> None:
        self.store, self.dsn, self.now = store, dsn, NOON
        self.commands = store.commands(Origin("user:test"))
        self.timers = Timers(store, DOMAINS, lambda: self.now)
        self.seen = dict.fromkeys(("refund", "order", "payment"), 0)
        self.ada = uuid4()
        self.times = 2  # that each event is handled
        self.sku = f"MUG-{uuid4().hex[:8]}"

    async def open(self) -> None:
        self.shelf = (await self.commands.open(Stock.open, self.sku)).id

    async def sold(self, *, wallet: int = 0, voucher: int = 0) -> UUID:
        """An order that was paid with so much of a wallet and a voucher, and the rest by card."""
        line = Line(self.sku, uuid4(), "A mug", 4, 225, 0, 0, 0, "main")
        order = (await self.commands.open(Order.place, self.ada, EUR, [line], HOME, NOON, shipping=100)).id
        tenders = []
        if voucher:
            self.voucher = (await self.commands.open(Voucher.gift, eur(1_000), uuid4().hex, "hint", None, NOON)).id
            await self.commands.tell(self.voucher, Voucher.redeem, order, eur(voucher), self.ada, NOON)
            tenders.append(Tender("voucher", self.voucher, voucher))
        if wallet:
            purse = (await self.commands.open(Wallet.open, self.ada, EUR)).id
            tenders.append(Tender("wallet", purse, wallet))
        self.payment = None
        if card := TOTAL - wallet - voucher:
            made = await self.commands.open(Payment, order, self.ada, eur(card), "tok_visa")
            self.payment, capture = made.id, uuid4()
            await self.commands.tell(made.id, Payment.authorised, "txn", NOON + timedelta(days=7))
            await self.commands.tell(made.id, Payment.capture, capture, eur(card))
            await self.commands.tell(made.id, Payment.captured, capture, eur(card))
            tenders.append(Tender("card", made.id, card))
        await self.commands.tell(order, Order.pay, self.payment, TOTAL, tenders)
        return order

    async def ask(self, order: UUID, *asked: Return, **more: Any) -> UUID:
        made = await self.commands.open(Refund.request, order, self.ada, list(asked), SAID, NOON, **more)
        await self.go_on()
        return made.id

    async def approve(self, id: UUID) -> None:
        await self.commands.tell(id, Refund.approve, STAFF)
        await self.go_on()

    async def go_on(self, runner: SagaRunner[Refund] | None = None) -> None:
        """Everything that is stored is handled, as often, until nothing comes of it any more."""
        runner = runner or SagaRunner(saga, self.store, lambda: self.now)
        while any([await self._handle(domain, runner) for domain in self.seen]):
            pass

    async def _handle(self, domain: str, runner: SagaRunner[Refund]) -> bool:
        rows = stored(self.dsn, domain, self.seen[domain])
        for recorded in [wire.recorded(domain, row) for row in rows for _ in range(self.times)]:
            await runner.handle(recorded)
            if reactor := REACTORS.get(type(recorded.event)):
                commands = self.store.commands(Origin("reactor", recorded.correlation, recorded.event_id))
                await reactor.call(recorded, commands)
            self.seen[domain] = recorded.position
        return bool(rows)

    async def bank(self, yes: bool = True) -> None:
        """It carries out, or refuses, what refunds there are."""
        assert self.payment
        for id, one in (await self.store.load(Payment, self.payment)).refunds.items():
            if one.state == "asked" and yes:
                await self.commands.tell(self.payment, Payment.refunded, id, eur(one.amount))
            elif one.state == "asked":
                await self.commands.tell(self.payment, Payment.refund_failed, id, eur(one.amount), "no", "closed")
        await self.go_on()

    async def takes_back(self) -> None:
        """The bank: all that it had done of the last payment. Nothing is handled yet."""
        assert self.payment
        found = await self.store.load(Payment, self.payment)
        for call, known in ((Payment.refund_reversed, found.refunds), (Payment.capture_reversed, found.captures)):
            for id, one in known.items():
                if one.state == "done":
                    await self.commands.tell(self.payment, call, id, eur(one.amount), "no", "closed")
                    return

    async def forget(self) -> None:
        """Nobody knows any more which commands were given."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            for domain in DOMAINS:
                await connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(f"{domain}_commands")))

    async def passes(self, time: timedelta) -> None:
        self.now += time
        while await self.timers.fire_due():
            pass
        await self.go_on()

    async def ended(self, id: UUID) -> tuple[Ending | None, str]:
        progress = (await self.store.load(Refund, id)).progress
        return progress.ended, progress.why

    async def card(self) -> int:
        """What went back to it."""
        return (await self.store.load(Payment, self.payment)).returned if self.payment else 0

    async def purse(self) -> int:
        try:
            return (await self.store.load(Wallet, wallet_id(self.ada, EUR))).balance
        except NotFound:
            return 0

    async def code(self) -> int:
        """What went back to the voucher."""
        return sum((await self.store.load(Voucher, self.voucher)).refunds.values())

    async def shelved(self) -> int:
        return (await self.store.load(Stock, self.shelf)).on_hand


def run(dsn: str, work: Callable[[Shop], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store.open(dsn) as store:
            shop = Shop(store, dsn)
            await shop.open()
            await work(shop)

    asyncio.run(main())


def test_a_part_goes_back_and_then_the_rest_to_the_unit(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=300, voucher=200)
        first = await shop.ask(order, Return(shop.sku, 1))
        assert (await shop.store.load(Order, order)).refunds.keys() == {first}
        assert await shop.card() == 0, "nobody has decided"
        await shop.approve(first)
        await shop.bank()
        assert await shop.ended(first) == (Ending.DONE, "")
        assert (await shop.card(), await shop.purse(), await shop.code(), await shop.shelved()) == (225, 0, 0, 1)
        rest = await shop.ask(order)
        await shop.approve(rest)
        await shop.bank()
        assert await shop.ended(rest) == (Ending.DONE, "")
        assert (await shop.card(), await shop.purse(), await shop.code(), await shop.shelved()) == (500, 300, 200, 4)
        found = await shop.store.load(Order, order)
        assert (found.refunded, found.status) == ({first: 225, rest: 775}, "cancelled")
        more = await shop.ask(order)
        assert await shop.ended(more) == (Ending.UNDONE, "a cancelled order has nothing to refund")

    run(dsn, work)


def test_what_a_bank_refuses_and_what_a_voucher_cant_take_are_the_customers_all_the_same(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(voucher=400)
        await shop.commands.tell(shop.voucher, Voucher.void, SAID)
        id = await shop.ask(order)
        await shop.approve(id)
        await shop.bank(yes=False)
        assert await shop.ended(id) == (Ending.DONE, "the voucher is void")
        found = await shop.store.load(Refund, id)
        assert found.refused(TO_CARD) and found.refused(TO_VOUCHERS)
        assert (await shop.card(), await shop.purse(), await shop.code()) == (0, 600, 0)
        credit = await shop.store.load(Voucher, found.credit)
        assert (credit.balance, credit.holder, credit.expires_at) == (400, shop.ada, None)
        assert (await shop.store.load(Order, order)).refunded == {id: 1_000}

    run(dsn, work)


def test_to_the_wallet_goes_what_is_money_and_to_vouchers_what_is_theirs(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=100, voucher=200)
        id = await shop.ask(order, destination="wallet", restock=False)
        await shop.approve(id)
        assert await shop.ended(id) == (Ending.DONE, "")
        assert (await shop.card(), await shop.purse(), await shop.code()) == (0, 800, 200)
        assert await shop.shelved() == 4, "they had never left"

    run(dsn, work)


def test_money_that_was_taken_elsewhere_goes_to_the_wallet(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        line = Line(shop.sku, uuid4(), "A mug", 1, TOTAL, 0, 0, 0, "main")
        order = (await shop.commands.open(Order.place, shop.ada, EUR, [line], HOME, NOON)).id
        await shop.commands.tell(order, Order.pay, uuid4(), TOTAL)
        id = await shop.ask(order)
        await shop.approve(id)
        assert (await shop.ended(id))[0] is Ending.DONE
        assert await shop.purse() == TOTAL

    run(dsn, work)


def test_what_the_payment_has_not_is_withheld_and_nothing_is_repeated(dsn: str) -> None:
    """Somebody gave money back past the order: a part of the card's has gone, and neither bank nor wallet pays it once more."""

    async def short(shop: Shop) -> UUID:
        order = await shop.sold(wallet=300)
        assert shop.payment
        await shop.commands.tell(shop.payment, Payment.refund, uuid4(), eur(1))
        await shop.bank()
        return order

    async def work(shop: Shop) -> None:
        order = await short(shop)
        id = await shop.ask(order)
        await shop.approve(id)
        found = await shop.store.load(Refund, id)
        assert (found.progress.ended, found.withheld, found.progress.trouble) == (Ending.DONE, 700, "")
        assert (await shop.card(), await shop.purse(), await shop.shelved()) == (1, 300, 4)
        assert "700 EUR is more than the 699 EUR left" in found.progress.why
        shop.ada = uuid4()
        order = await short(shop)
        await shop.commands.tell(order, Order.cancel, SAID)
        await shop.go_on()
        assert (await shop.card(), await shop.purse()) == (1, 300)

    run(dsn, work)


def test_what_is_turned_down_withdrawn_or_not_decided_is_free_again(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold()
        no = await shop.ask(order)
        await shop.commands.tell(no, Refund.reject, STAFF, SAID)
        await shop.go_on()
        assert await shop.ended(no) == (Ending.UNDONE, Rejected.type)  # why is sealed, in the decision
        back = await shop.ask(order)
        await shop.commands.tell(back, Refund.withdraw, shop.ada)
        await shop.go_on()
        assert (await shop.ended(back))[0] is Ending.UNDONE
        late = await shop.ask(order)
        await shop.passes(timedelta(days=30, seconds=1))
        assert await shop.ended(late) == (Ending.UNDONE, "nobody decided within 30 days")
        found = await shop.store.load(Order, order)
        assert found.refunded == {no: 0, back: 0, late: 0} and not found.refunds
        assert await shop.card() == 0
        await shop.approve(id := await shop.ask(order))
        await shop.bank()
        assert await shop.ended(id) == (Ending.DONE, "") and await shop.card() == TOTAL

    run(dsn, work)


def test_another_customers_order_and_one_that_is_long_delivered_are_refused(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order, parcel = await shop.sold(), uuid4()
        await shop.commands.tell(order, Order.ship, parcel, [], "DHL")
        await shop.commands.tell(order, Order.deliver, parcel)
        made = await shop.commands.open(Refund.request, order, uuid4(), [], SAID, NOON)
        late = await shop.commands.open(
            Refund.request, order, shop.ada, [], SAID, NOON + timedelta(days=31), window_days=30
        )
        await shop.go_on()
        assert await shop.ended(made.id) == (Ending.UNDONE, f"there is no order {order}")
        ended, why = await shop.ended(late.id)
        assert ended is Ending.UNDONE and why.startswith("refunds are taken for 30 days, until")
        assert not (await shop.store.load(Order, order)).refunds

    run(dsn, work)


def test_a_small_sum_needs_nobody_but_many_small_ones_do(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=TOTAL)
        first, second = [await shop.ask(order, Return(shop.sku, 1), auto_max=449) for _ in range(2)]
        assert (await shop.ended(first))[0] is Ending.DONE
        assert (await shop.store.load(Refund, second)).decision == ""  # 450 altogether
        assert await shop.purse() == 225

    run(dsn, work)


def test_many_at_once_take_no_more_than_there_is_and_all_of_it(dsn: str) -> None:
    """Eight refunds of a piece each, of four pieces, by two processes that know nothing of each other."""

    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=300, voucher=300)
        made = [
            await shop.commands.open(Refund.request, order, shop.ada, [Return(shop.sku, 1)], SAID, NOON, auto_max=TOTAL)
            for _ in range(8)
        ]
        async with Store.open(dsn) as rival:
            runners = [SagaRunner(saga, store, lambda: NOON) for store in (shop.store, rival)]
            started = [wire.recorded("refund", row) for row in stored(dsn, "refund")]
            await asyncio.gather(*(runner.handle(one) for one in started for runner in runners))
        await shop.go_on()
        await shop.bank()
        endings = [(await shop.ended(one.id))[0] for one in made]
        assert endings.count(Ending.DONE) == 4 and endings.count(Ending.UNDONE) == 4
        assert (await shop.card(), await shop.purse(), await shop.code()) == (400, 300, 300)
        assert await shop.shelved() == 4
        assert sum((await shop.store.load(Order, order)).refunded.values()) == TOTAL

    run(dsn, work)


class Killed(BaseException):
    """The process died."""


@contextmanager
def dying(at: int) -> Iterator[None]:
    """The process dies before its `at`th call of the store; between that and the call before it nothing happens."""
    calls = 0
    ask, record = StoreDoor.ask, StoreDoor.record

    def mortal(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def called(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Killed
            return await call(*args)

        return called

    with patch.object(StoreDoor, "ask", mortal(ask)), patch.object(StoreDoor, "record", mortal(record)):
        yield


@contextmanager
def dying_reactor(at: int) -> Iterator[None]:
    """The process dies before its `at`th command."""
    given = 0

    def mortal(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal given
            given += 1
            if given == at:
                raise Killed
            return await call(*args, **kwargs)

        return called

    tell, open_as = mortal(Commands.tell), mortal(Commands.open_as)
    with patch.object(Commands, "tell", tell), patch.object(Commands, "open_as", open_as):
        yield


def test_wherever_a_process_dies_a_refund_that_came_back_is_in_the_wallet_once(dsn: str) -> None:
    """It dies before each command in turn; then another goes on, and at last one on a store that knows of no command any more."""

    async def once(shop: Shop, at: int) -> bool:
        """Whether it died."""
        payment = (await shop.commands.open(Payment, uuid4(), shop.ada, eur(700), "tok_visa")).id
        refund = (await shop.commands.open(Refund.request, uuid4(), shop.ada, [], SAID, NOON)).id
        said: list[tuple[Any, ...]] = [
            (Payment.authorised, "txn", NOON + timedelta(days=7)), (Payment.capture, uuid4(), eur(700)),
            (Payment.refund, refund, eur(700)), (Payment.refunded, refund, eur(700)),
            (Payment.refund_reversed, refund, eur(700), "no", "closed"),
        ]  # fmt: skip
        said.insert(2, (Payment.captured, said[1][1], eur(700)))
        for call, *args in said:
            await shop.commands.tell(payment, call, *args)
        recorded = (await shop.store.history(Payment, payment))[-1]
        died = False
        for attempt in range(3):
            with dying_reactor(0 if attempt else at):
                commands = shop.store.commands(Origin("reactor.reversal", recorded.correlation, recorded.event_id))
                try:
                    await REACTORS[type(recorded.event)].call(recorded, commands)
                except Killed:
                    died = True
            if attempt:
                await shop.forget()
                assert (await shop.purse(), (await shop.store.load(Refund, refund)).reversed) == (700, True), at
        return died

    async def work(shop: Shop) -> None:
        at = 1
        while await once(shop, at):
            at, shop.ada = at + 1, uuid4()
        assert at == 4, "it opens a wallet, fills it and tells the refund"

    run(dsn, work)


def test_what_a_cancelled_order_gave_back_and_comes_back_is_the_wallets(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=300)
        await shop.commands.tell(order, Order.cancel, SAID)
        await shop.go_on()
        await shop.bank()
        assert (await shop.card(), await shop.purse()) == (700, 300)
        await shop.takes_back()
        await shop.go_on()
        assert (await shop.card(), await shop.purse()) == (0, 1_000)

    run(dsn, work)


def test_a_refund_that_comes_back_while_the_saga_is_at_it_is_given_once(dsn: str) -> None:
    """The bank's two words are there before anybody has handled the first."""

    async def work(shop: Shop) -> None:
        await shop.approve(id := await shop.ask(await shop.sold()))
        assert shop.payment
        await shop.commands.tell(shop.payment, Payment.refunded, id, eur(TOTAL))
        await shop.commands.tell(shop.payment, Payment.refund_reversed, id, eur(TOTAL), "no", "closed")
        await shop.go_on()
        assert (await shop.ended(id))[0] is Ending.DONE
        assert (await shop.card(), await shop.purse()) == (0, TOTAL)

    run(dsn, work)


def test_an_order_whose_capture_is_reversed_waits_for_somebody_and_gives_back_no_money_that_never_came(
    dsn: str,
) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=300)
        await shop.takes_back()
        await shop.go_on()
        assert (await shop.store.load(Order, order)).owed == 700
        with pytest.raises(Refused, match="700 EUR of its payment were reversed"):
            await shop.commands.tell(order, Order.ship, uuid4(), [], "DHL")
        await shop.approve(id := await shop.ask(order, Return(shop.sku, 2)))
        assert (await shop.store.load(Refund, id)).withheld == 450
        shop.ada = uuid4()
        order = await shop.sold(wallet=300)
        await shop.takes_back()
        await shop.commands.tell(order, Order.cancel, SAID)
        await shop.go_on()
        assert (await shop.card(), await shop.purse()) == (0, 300)

    run(dsn, work)


def test_of_a_refund_and_its_capture_that_are_both_reversed_nobody_gets_anything(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=300)
        await shop.approve(id := await shop.ask(order))
        await shop.bank()
        assert shop.payment
        [capture] = (await shop.store.load(Payment, shop.payment)).captures
        await shop.commands.tell(shop.payment, Payment.capture_reversed, capture, eur(700), "no", "closed")
        await shop.go_on()
        assert (await shop.store.load(Order, order)).owed == 700
        await shop.takes_back()
        await shop.go_on()
        found = await shop.store.load(Refund, id)
        assert (found.withheld, found.reversed, await shop.purse()) == (700, False, 300)

    run(dsn, work)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_wherever_a_process_dies_each_part_goes_back_once(dsn: str, rebuilt: bool) -> None:
    """It dies before every call in turn, and another goes on from what is stored, handling the last event again. `rebuilt`: from its
    topics, so that the store knows of no command that a saga gave."""

    async def once(shop: Shop, at: int) -> bool:
        """Whether it died."""
        order = await shop.sold(wallet=300, voucher=300)
        before = await shop.purse(), await shop.shelved()
        await shop.commands.tell(shop.voucher, Voucher.void, SAID)
        died = False
        with dying(at):
            made = await shop.commands.open(Refund.request, order, shop.ada, [], SAID, NOON, auto_max=TOTAL)
            steps: list[Callable[[], Awaitable[None]]] = [shop.go_on, partial(shop.bank, yes=False)]
            for step in steps:
                try:
                    await step()
                except Killed:
                    died = True
                    if rebuilt:
                        await shop.forget()
                    await shop.go_on()
        found = await shop.store.load(Refund, made.id)
        assert found.progress.ended is Ending.DONE, (at, found.progress)
        purse = await shop.store.load(Wallet, wallet_id(shop.ada, EUR))
        assert (purse.balance, await shop.shelved()) == (before[0] + 700, before[1] + 4), at
        assert (await shop.store.load(Voucher, found.credit)).balance == 300
        assert await shop.card() == 0
        assert (await shop.store.load(Order, order)).refunded == {made.id: TOTAL}
        return died

    async def work(shop: Shop) -> None:
        at, shop.times = 1, 1
        while await once(shop, at):
            at, shop.ada = at + 1, uuid4()
        assert at > 2 * len(saga.steps), f"each step asks and records, and there were {at} calls"

    run(dsn, work)


def test_what_a_cancelled_order_gives_back_comes_once_to_a_store_that_was_rebuilt(dsn: str) -> None:
    """All that happened is handled once more, and none of the commands that it led to is known."""

    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=500)
        await shop.commands.tell(order, Order.cancel, SAID)
        await shop.go_on()
        await shop.bank(yes=False)
        for _ in range(2):  # the wallet has its own part, and the card's
            assert (await shop.card(), await shop.purse(), await shop.shelved()) == (0, 1_000, 4)
            await shop.forget()
            shop.seen = dict.fromkeys(shop.seen, 0)
            await shop.go_on()

    run(dsn, work)


def test_a_cancelled_order_gives_each_part_back_and_makes_up_for_what_cant_take_it(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        order = await shop.sold(wallet=300, voucher=200)
        await shop.commands.tell(order, Order.cancel, SAID)
        await shop.go_on()
        await shop.bank()
        assert (await shop.card(), await shop.purse(), await shop.code(), await shop.shelved()) == (500, 300, 200, 4)
        shop.ada = uuid4()
        order = await shop.sold(voucher=200)
        await shop.commands.tell(shop.voucher, Voucher.void, SAID)
        await shop.commands.tell(order, Order.cancel, SAID)
        await shop.go_on()
        await shop.bank(yes=False)
        assert (await shop.card(), await shop.purse(), await shop.code()) == (0, 800, 0)
        credit = streams.cancellation.credit_of(streams.cancellation.refund_of(order), shop.voucher)
        assert (await shop.store.load(Voucher, credit)).balance == 200

    run(dsn, work)
