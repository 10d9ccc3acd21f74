"""The books notice whatever money is not where it should be: each kind of it once, and none where all is well."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from aggregates.checkout import Checkout, payment_of
from aggregates.kernel import Aggregate, Money
from aggregates.kernel.event import under_id
from aggregates.kernel.money import Line, Tender
from aggregates.kernel.process import Ending
from aggregates.kernel.refunding import Return
from aggregates.kernel.token import Way
from aggregates.order import Order
from aggregates.payment import Payment
from aggregates.refund import Refund
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet
from infra.books import FOLDED, Books
from schemas import Address, Sealed
from streams.cancellation import refund_of
from tests.kernel import SAID

NOW = datetime.now(UTC)
ADA, ID, CAPTURE, REFUND = (uuid4() for _ in range(4))
SEALED = Sealed("sealed:1:ada:a")
HOME = Address(SEALED, SEALED, SEALED, SEALED, "CH")
MUGS = Line("mug", uuid4(), "A mug", 2, 500, 0, 0, 0, "main")


def eur(amount: int) -> Money:
    return Money(amount, "EUR")


class Shop:
    """One purchase by voucher, wallet and card, and everything that could be left out of it or done besides."""

    def __init__(self) -> None:
        self.voucher = Voucher.gift(eur(300), "hash", "hint", None, NOW)
        self.wallet = Wallet.open(ADA, "EUR")
        self.wallet.deposit(eur(600), "credit", uuid4())
        self.voucher.reserve(ID, eur(300), ADA, None, NOW)
        self.wallet.hold(ID, eur(500), None)
        offers = Tender("voucher", self.voucher.id, 300), Tender("wallet", self.wallet.id, 500)
        with under_id(ID):
            self.checkout = Checkout.start(ADA, uuid4(), 2, "EUR", [MUGS], HOME, Way("tok_visa"), offers=offers)
            self.order = Order.place(ADA, "EUR", [MUGS], HOME, NOW)
        with under_id(payment_of(ID)):
            self.payment = Payment(ID, ADA, eur(200), "tok_visa")
        self.payment.authorised("txn", NOW + timedelta(days=7))
        self.payment.capture(CAPTURE, eur(200))
        self.all: list[Aggregate] = [self.voucher, self.wallet, self.checkout, self.order, self.payment]

    def pay(self) -> None:
        self.payment.captured(CAPTURE, eur(200))
        self.voucher.confirm(ID)
        self.wallet.spend(ID, ID, eur(500))
        self.order.pay(self.payment.id, 1_000, self.checkout.tenders)
        self.end()

    def end(self) -> None:
        self.checkout.progress.ended = Ending.DONE

    def give_back(self, *to: str) -> None:
        refund = refund_of(ID)
        self.order.cancel(SAID)
        if "card" in to:
            self.payment.refund(refund, eur(200))
            self.payment.refunded(refund, eur(200))
        if "wallet" in to:
            self.wallet.deposit(eur(500), "refund", refund)
        if "voucher" in to:
            self.voucher.refund(refund, eur(300), ADA, NOW)
        if "credit" in to:
            with under_id(uuid5(refund, f"credit for {self.voucher.id}")):
                self.all.append(Voucher.credit(eur(300), ADA, None, NOW))

    def refund(self, card: int, wallet: int, settled: bool = True) -> None:
        """One of two mugs, for 500: 200 are the card's and 300 the wallet's. What they get is the test's."""
        self.order.begin_refund(REFUND, [Return("mug", 1)], ADA, NOW, None)
        claim = self.order.refunds[REFUND]
        with under_id(REFUND):
            asked = Refund.request(ID, ADA, [Return("mug", 1)], SAID, NOW)
        asked.allot("EUR", claim.lines, claim.shipping, claim.amount, claim.tenders, claim.amount)
        asked.approve(uuid4())
        self.all.append(asked)
        if card:
            self.payment.refund(REFUND, eur(card))
            self.payment.refunded(REFUND, eur(card))
        self.wallet.deposit(eur(wallet), "refund", REFUND)
        if settled:
            self.order.settle_refund(REFUND)
        asked.progress.ended = Ending.DONE

    def differences(self) -> list[tuple[str, Any, int, int]]:
        states: dict[type[Aggregate], dict[UUID, Any]] = {cls: {} for cls in FOLDED}
        for one in self.all:
            states[type(one)][one.id] = one
        books = Books(states)
        for one in self.all:
            for event in one.collect_events():
                books.see(event)
        return [tuple(one) for one in books.differences()]


def paid_and(*to: str) -> Callable[[Shop], None]:
    def happens(shop: Shop) -> None:
        shop.pay()
        if to:
            shop.give_back(*to)

    return happens


def refunded(card: int, wallet: int, settled: bool = True) -> Callable[[Shop], None]:
    def happens(shop: Shop) -> None:
        shop.pay()
        shop.refund(card, wallet, settled)

    return happens


@pytest.mark.parametrize(
    "happens",
    [
        lambda shop: None, paid_and(), paid_and("card", "wallet", "voucher"), paid_and("card", "wallet", "credit"),
        refunded(200, 300), refunded(0, 500),
    ],
)  # fmt: skip
def test_what_is_in_order_is_not_told_of(happens: Callable[[Shop], None]) -> None:
    shop = Shop()
    happens(shop)
    assert shop.differences() == []


def late(shop: Shop) -> None:
    shop.end()


def unpaid(shop: Shop) -> None:
    shop.order.pay(shop.payment.id, 1_000, shop.checkout.tenders)


def spent_in_vain(shop: Shop) -> None:
    shop.payment.captured(CAPTURE, eur(200))
    shop.voucher.confirm(ID)
    shop.wallet.spend(ID, ID, eur(500))


def gave_too_much(shop: Shop) -> None:
    shop.pay()
    shop.give_back("card", "wallet", "voucher", "credit")


def forgot_the_wallet(shop: Shop) -> None:
    shop.pay()
    shop.give_back("card", "voucher")


def paid_nobody(shop: Shop) -> None:
    shop.pay()
    shop.payment.refund(ID, eur(1))
    shop.payment.refunded(ID, eur(1))


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (late, [("still reserved", 300, 0), ("still held", 500, 0)]),
        (unpaid, [("taken", 0, 200), ("taken", 0, 300), ("taken", 0, 500)]),
        (spent_in_vain, [("taken", 200, 0), ("taken", 300, 0), ("taken", 500, 0)]),
        (gave_too_much, [("back", 1_300, 1_000)]),
        (forgot_the_wallet, [("back", 500, 1_000)]),
        (paid_nobody, [("back", 1, 0)]),
        (refunded(200, 299), [("back", 499, 500)]),
        (refunded(200, 500), [("back", 700, 500)]),
        (refunded(200, 300, settled=False), [("settled on the order", 0, 500), ("back", 200, 0)]),
    ],
)
def test_each_thing_that_is_not_is_told(happens: Callable[[Shop], None], told: list[tuple[str, int, int]]) -> None:
    shop = Shop()
    happens(shop)
    found = shop.differences()
    assert [one[2:] for one in found] == [one[1:] for one in told]
    assert all(word in what for (what, *_), (word, *_) in zip(found, told, strict=True)), found


@pytest.mark.parametrize(("credited", "differs"), [(0, [(70, 0)]), (69, [(70, 69)]), (70, [])])
def test_a_top_up_was_taken_from_a_card(credited: int, differs: list[tuple[int, int]]) -> None:
    shop = Shop()
    shop.pay()
    topped_up = uuid4()
    payment = Payment(topped_up, ADA, eur(70), "tok_visa")
    payment.authorised("txn", NOW)
    payment.capture(CAPTURE, eur(70))
    payment.captured(CAPTURE, eur(70))
    shop.all.append(payment)
    if credited:
        shop.wallet.deposit(eur(credited), "topup", topped_up)
    assert [(told, true) for _, _, told, true in shop.differences()] == differs
