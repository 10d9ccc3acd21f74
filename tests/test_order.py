"""Order's rules: what may follow what, to the unit and to the piece."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import ParamSpec
from uuid import UUID, uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import Event, Refused
from aggregates.kernel.money import Line, Tender, price
from aggregates.order import (
    Cancelled,
    Completed,
    Confirmed,
    Delivered,
    Order,
    Paid,
    Part,
    Placed,
    Shipped,
    number_of,
)
from schemas import Address, Sealed
from tests.kernel import Fact, fact, given, through_avro

P = ParamSpec("P")
ADA, PRODUCT, PAYMENT, PARCEL, SECOND = (UUID(int=n) for n in range(1, 6))
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOME = Address(
    Sealed("sealed:1:ada:a"), Sealed("sealed:1:ada:b"), Sealed("sealed:1:ada:c"), Sealed("sealed:1:ada:d"), "DE"
)


def line(sku: str, quantity: int, unit_price: int, tax_bp: int = 1900) -> Line:
    return Line(sku, PRODUCT, f"A {sku}", quantity, unit_price, 0, tax_bp, 0, "main")


MUGS, POT = line("mug", 2, 550), line("pot", 1, 1999)
LINES = tuple(price([MUGS, POT], shipping=490, shipping_tax_bp=1900)[0])
PLACED = fact(
    Placed, number="T261124-00000-0000", customer=ADA, currency="EUR", lines=LINES, subtotal=3099, discount=0, shipping=490,
    tax=682, total=4271, address=HOME,
)  # fmt: skip
BY_CARD = (Tender("card", PAYMENT, 4271),)
MIXED = (Tender("voucher", UUID(int=11), 1_000), Tender("wallet", UUID(int=12), 271), Tender("card", PAYMENT, 3_000))
PAID = fact(Paid, payment=PAYMENT, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=BY_CARD)
SENT = fact(Shipped, shipment=PARCEL, parts=(Part("mug", 2), Part("pot", 1)), carrier="DHL", tracking="", last=True)
ARRIVED = fact(Delivered, shipment=PARCEL, last=True)


def cancelled(paid: bool) -> Fact:
    return fact(
        Cancelled, reason="changed my mind", payment=PAYMENT if paid else None, amount=4271 if paid else 0, currency="EUR",
        customer=ADA, lines=LINES if paid else (), tenders=BY_CARD if paid else (),
    )  # fmt: skip


def test_an_order_is_priced_when_it_is_placed() -> None:
    order = Order.place(ADA, "EUR", [MUGS, POT], HOME, NOW, shipping=490, shipping_tax_bp=1900)
    assert (order.subtotal, order.discount, order.shipping, order.tax, order.total) == (3099, 0, 490, 682, 4271)
    assert order.number == number_of(order.id, NOW) and order.number.startswith("T261124-")


def test_an_order_must_come_to_what_was_authorised() -> None:
    given(Order).opening(Order.place, ADA, "EUR", [MUGS], HOME, NOW, total=1).refused("comes to 1309, not 1")


def test_a_sku_stands_on_one_line() -> None:
    given(Order).opening(Order.place, ADA, "EUR", [MUGS, MUGS], HOME, NOW).refused("one line")


def test_an_order_without_lines_is_none() -> None:
    given(Order).opening(Order.place, ADA, "EUR", [], HOME, NOW).refused("1 to 200 lines")


def test_an_order_is_in_a_currency() -> None:
    given(Order).opening(Order.place, ADA, "XXX", [MUGS], HOME, NOW).refused("not a currency")


def test_paying_confirms_an_order() -> None:
    given(Order, PLACED).when(Order.pay, PAYMENT, 4271).then(fact(Confirmed), PAID)
    given(Order, PLACED, fact(Confirmed)).when(Order.pay, PAYMENT, 4271).then(PAID)


def test_an_order_is_paid_once_and_whole() -> None:
    given(Order, PLACED).when(Order.pay, PAYMENT, 4270).refused("comes to 4271, not 4270")
    given(Order, PLACED, PAID).when(Order.pay, PAYMENT, 4271).nothing()
    given(Order, PLACED, PAID).when(Order.pay, SECOND, 4271).refused("is paid by")


def test_an_order_is_paid_in_parts_that_come_to_it() -> None:
    past = given(Order, PLACED, fact(Confirmed))
    mixed = fact(Paid, payment=PAYMENT, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=MIXED)
    past.when(Order.pay, PAYMENT, 4271, MIXED).then(mixed)
    given(Order, PLACED, mixed).when(Order.pay, PAYMENT, 4271, MIXED).nothing()
    given(Order, PLACED, mixed).when(Order.pay, PAYMENT, 4271, BY_CARD).refused("is paid by voucher")
    past.when(Order.pay, PAYMENT, 4271, MIXED[1:]).refused("come to 3271, not 4271")
    past.when(Order.pay, SECOND, 4271, MIXED).refused("the card's part is the payment's")
    past.when(Order.pay, None, 4271, MIXED).refused("the card's part is the payment's")
    past.when(Order.pay, PAYMENT, 4271, (*MIXED, MIXED[0])).refused("a source of its own")
    free = (Tender("voucher", UUID(int=11), 4271), Tender("wallet", UUID(int=12), 0))
    past.when(Order.pay, None, 4271, free).refused("at least 1")
    prepaid = fact(Paid, payment=None, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=free[:1])
    past.when(Order.pay, None, 4271, free[:1]).then(prepaid)
    given(Order, PLACED, prepaid).when(Order.pay, PAYMENT, 4271).refused("is paid by voucher")
    many = [Tender("voucher", UUID(int=n), 1) for n in range(100, 113)]
    past.when(Order.pay, None, 4271, many).refused("at most 12 parts")


def test_cancelling_gives_each_part_back_and_an_old_event_is_of_a_card() -> None:
    mixed = fact(Paid, payment=PAYMENT, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=MIXED)
    outcome = given(Order, PLACED, mixed).when(Order.cancel, "changed my mind")
    assert [one.fields["tenders"] for one in outcome.facts] == [MIXED]
    old = fact(Paid, payment=PAYMENT, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=())
    given(Order, PLACED, old).when(Order.cancel, "changed my mind").then(cancelled(paid=True))


def test_confirming_again_does_nothing() -> None:
    given(Order, PLACED).when(Order.confirm).then(fact(Confirmed))
    given(Order, PLACED, fact(Confirmed)).when(Order.confirm).nothing()
    given(Order, PLACED, cancelled(paid=False)).when(Order.confirm).refused("cancelled")


def test_a_parcel_without_parts_takes_all_that_is_left() -> None:
    given(Order, PLACED, PAID).when(Order.ship, PARCEL, [], "DHL").then(SENT)


def test_an_order_may_go_in_several_parcels() -> None:
    first = fact(Shipped, shipment=PARCEL, parts=(Part("mug", 1),), carrier="DHL", tracking="42", last=False)
    rest = fact(Shipped, shipment=SECOND, parts=(Part("mug", 1), Part("pot", 1)), carrier="DHL", tracking="", last=True)
    given(Order, PLACED, PAID).when(Order.ship, PARCEL, [Part("mug", 1)], "DHL", "42").then(first)
    given(Order, PLACED, PAID, first).when(Order.ship, SECOND, [], "DHL").then(rest)
    early = fact(Delivered, shipment=PARCEL, last=False)
    given(Order, PLACED, PAID, first).when(Order.deliver, PARCEL).then(early)
    given(Order, PLACED, PAID, first, early, rest).when(Order.deliver, SECOND).then(
        fact(Delivered, shipment=SECOND, last=True)
    )


def test_no_more_is_shipped_than_was_ordered() -> None:
    past = given(Order, PLACED, PAID)
    past.when(Order.ship, PARCEL, [Part("mug", 3)], "DHL").refused("3 of mug is more than the 2 left")
    past.when(Order.ship, PARCEL, [Part("mug", 1), Part("mug", 2)], "DHL").refused("2 of mug is more than the 1 left")
    past.when(Order.ship, PARCEL, [Part("cup", 1)], "DHL").refused("cup is not on the order")
    past.when(Order.ship, PARCEL, [Part("mug", 0)], "DHL").refused("at least one piece")


def test_an_order_is_shipped_only_when_paid() -> None:
    given(Order, PLACED).when(Order.ship, PARCEL, [], "DHL").refused("a placed order can't be shipped")


def test_the_same_parcel_again_does_nothing() -> None:
    given(Order, PLACED, PAID, SENT).when(Order.ship, PARCEL, [], "DHL").nothing()
    given(Order, PLACED, PAID, SENT, ARRIVED).when(Order.deliver, PARCEL).nothing()


def test_only_what_was_shipped_arrives() -> None:
    given(Order, PLACED, PAID, SENT).when(Order.deliver, SECOND).refused("no shipment")


def test_a_delivered_order_is_completed_once() -> None:
    given(Order, PLACED, PAID, SENT).when(Order.complete).refused("a shipped order")
    given(Order, PLACED, PAID, SENT, ARRIVED).when(Order.complete).then(fact(Completed))
    given(Order, PLACED, PAID, SENT, ARRIVED, fact(Completed)).when(Order.complete).nothing()


def test_cancelling_names_what_goes_back() -> None:
    given(Order, PLACED).when(Order.cancel, "changed my mind").then(cancelled(paid=False))
    given(Order, PLACED, PAID).when(Order.cancel, "changed my mind").then(cancelled(paid=True))
    given(Order, PLACED, cancelled(paid=False)).when(Order.cancel, "again").nothing()


def test_an_order_under_way_is_not_cancelled() -> None:
    part = fact(Shipped, shipment=PARCEL, parts=(Part("mug", 1),), carrier="DHL", tracking="", last=False)
    given(Order, PLACED, PAID, part).when(Order.cancel, "late").refused("has been shipped")
    given(Order, PLACED, PAID, SENT).when(Order.cancel, "late").refused("a shipped order can't be cancelled")


def test_money_for_a_cancelled_order_goes_straight_back() -> None:
    back = cancelled(paid=True)
    back.fields["reason"] = "it had been cancelled before it was paid"
    past = given(Order, PLACED, cancelled(paid=False))
    past.when(Order.pay, PAYMENT, 4271).then(PAID, back)
    given(Order, PLACED, cancelled(paid=False), PAID, back).when(Order.pay, PAYMENT, 4271).nothing()


class Machine(RuleBasedStateMachine):
    """Any commands in any order: each piece is shipped at most once, money goes one way or comes back whole."""

    parcels = st.sampled_from([UUID(int=n) for n in range(10, 14)])

    def __init__(self) -> None:
        super().__init__()
        self.order = Order.place(ADA, "EUR", [MUGS, POT], HOME, NOW, shipping=490)
        self.events: list[Event] = []

    def do(self, method: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        with suppress(Refused):
            method(*args, **kwargs)
        self.events += [through_avro(one) for one in self.order.collect_events()]

    @rule()
    def confirm(self) -> None:
        self.do(self.order.confirm)

    @rule(payment=st.sampled_from([PAYMENT, SECOND]), short=st.sampled_from([0, 0, 1]))
    def pay(self, payment: UUID, short: int) -> None:
        self.do(self.order.pay, payment, self.order.total - short)

    @rule(parcel=parcels, mugs=st.integers(-1, 3), pots=st.integers(0, 2))
    def ship(self, parcel: UUID, mugs: int, pots: int) -> None:
        parts = [Part(sku, n) for sku, n in (("mug", mugs), ("pot", pots)) if n]
        self.do(self.order.ship, parcel, parts, "DHL")

    @rule(parcel=parcels)
    def deliver(self, parcel: UUID) -> None:
        self.do(self.order.deliver, parcel)

    @rule()
    def complete(self) -> None:
        self.do(self.order.complete)

    @rule()
    def cancel(self) -> None:
        self.do(self.order.cancel, "no more")

    @invariant()
    def history_makes_sense(self) -> None:
        self.order.check()
        events = self.events
        paid = sum(one.amount for one in events if isinstance(one, Paid))
        back = sum(one.amount for one in events if isinstance(one, Cancelled))
        assert paid in (0, self.order.total) and back in (0, paid)
        sent = {line.sku: 0 for line in self.order.lines}
        for one in events:
            if isinstance(one, Shipped):
                for part in one.parts:
                    sent[part.sku] += part.quantity
        assert all(sent[sku] + left == {"mug": 2, "pot": 1}[sku] for sku, left in self.order.unshipped.items())
        assert not (back and any(sent.values()))
        assert self.order.status != "delivered" or all(self.order.shipments.values())


TestOrder = Machine.TestCase


def test_numbers_differ_and_can_be_read_out() -> None:
    numbers = {number_of(uuid4(), NOW) for _ in range(1_000)}
    assert len(numbers) == 1_000 and not set("ILOU") & set("".join(numbers))
