"""Order's rules: what may follow what, to the unit and to the piece."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import ParamSpec
from uuid import UUID, uuid4

from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import Event, NotFound, Refused
from aggregates.kernel.money import Line, Tender, price
from aggregates.kernel.refunding import Return, Returned
from aggregates.order import (
    Cancelled,
    Completed,
    Confirmed,
    Delivered,
    Order,
    Paid,
    Part,
    PaymentReversed,
    PaymentSettled,
    Placed,
    RefundBegun,
    RefundDropped,
    Refunded,
    SentAll,
    Shipped,
    number_of,
)
from schemas import Address, Sealed
from tests.kernel import SAID, Fact, fact, given, through_avro

P = ParamSpec("P")
ADA, PRODUCT, PAYMENT, PARCEL, SECOND, BOB = (UUID(int=n) for n in range(1, 7))
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
        Cancelled, reason="", because=SAID, payment=PAYMENT if paid else None, amount=4271 if paid else 0, currency="EUR",
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
    outcome = given(Order, PLACED, mixed).when(Order.cancel, SAID)
    assert [one.fields["tenders"] for one in outcome.facts] == [MIXED]
    old = fact(Paid, payment=PAYMENT, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=())
    given(Order, PLACED, old).when(Order.cancel, SAID).then(cancelled(paid=True))


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
    given(Order, PLACED).when(Order.cancel, SAID).then(cancelled(paid=False))
    given(Order, PLACED, PAID).when(Order.cancel, SAID).then(cancelled(paid=True))
    given(Order, PLACED, cancelled(paid=False)).when(Order.cancel, SAID).nothing()


def test_an_order_under_way_is_not_cancelled() -> None:
    part = fact(Shipped, shipment=PARCEL, parts=(Part("mug", 1),), carrier="DHL", tracking="", last=False)
    given(Order, PLACED, PAID, part).when(Order.cancel, SAID).refused("has been shipped")
    given(Order, PLACED, PAID, SENT).when(Order.cancel, SAID).refused("a shipped order can't be cancelled")


def test_money_for_a_cancelled_order_goes_straight_back() -> None:
    back = cancelled(paid=True)
    back.fields["reason"], back.fields["because"] = "it had been cancelled before it was paid", None
    past = given(Order, PLACED, cancelled(paid=False))
    past.when(Order.pay, PAYMENT, 4271).then(PAID, back)
    given(Order, PLACED, cancelled(paid=False), PAID, back).when(Order.pay, PAYMENT, 4271).nothing()


LOST = fact(PaymentReversed, payment=PAYMENT, capture=SECOND, amount=4271, currency="EUR", reason="Closed account")
SEEN_TO = fact(PaymentSettled, amount=4271, currency="EUR", by=BOB, reason="", because=SAID)


def test_an_order_whose_money_was_reversed_ships_nothing_until_somebody_has_seen_to_it() -> None:
    reversal = (PAYMENT, SECOND, 4271, "Closed account")
    given(Order, PLACED, PAID).when(Order.payment_reversed, *reversal).then(LOST)
    lost = given(Order, PLACED, PAID, LOST)
    lost.when(Order.payment_reversed, *reversal).nothing()
    lost.when(Order.ship, PARCEL, [], "DHL").refused("4271 EUR of its payment were reversed")
    lost.when(Order.cancel, SAID).then(cancelled(paid=True))
    lost.when(Order.settle_payment, BOB, SAID).then(SEEN_TO)
    settled = given(Order, PLACED, PAID, LOST, SEEN_TO)
    settled.when(Order.settle_payment, BOB, SAID).nothing()
    settled.when(Order.payment_reversed, *reversal).nothing()  # told again, late
    settled.when(Order.ship, PARCEL, [], "DHL").then(SENT)
    given(Order, PLACED, PAID).when(Order.settle_payment, BOB, SAID).nothing()
    # Between the capture and its being told of the order is not paid yet; of another payment it has nothing.
    given(Order, PLACED).when(Order.payment_reversed, *reversal).then(LOST)
    given(Order, PLACED, LOST, PAID).when(Order.ship, PARCEL, [], "DHL").refused("were reversed")
    given(Order, PLACED, PAID).when(Order.payment_reversed, SECOND, *reversal[1:]).nothing()
    given(Order, PLACED, PAID, SENT, ARRIVED).when(Order.payment_reversed, *reversal).then(LOST)


R1, R2, R3 = (UUID(int=n) for n in range(31, 34))
MONTH = timedelta(days=30)
MUGS_BACK = Returned("mug", PRODUCT, "A mug", "main", 2, 0, 1309, 1100, 209)


def on_its_way(
    refund: UUID, *lines: Returned, shipping: int = 0, tenders: tuple[Tender, ...] = (), **more: int
) -> Fact:
    amount = shipping + sum(one.amount for one in lines)
    parts = tenders or (Tender("card", PAYMENT, amount),)
    return fact(
        RefundBegun, refund=refund, currency="EUR", customer=ADA, lines=lines, shipping=shipping, amount=amount, tenders=parts,
        altogether=more.get("altogether", amount),
    )  # fmt: skip


def then_it(kind: type[Event], begun: Fact) -> Fact:
    """What follows upon a refund that was begun."""
    return fact(kind, **{name: value for name, value in begun.fields.items() if name != "altogether"})


def one_mug(worth: int, net: int, tax: int, unsent: int = 0) -> Returned:
    return Returned("mug", PRODUCT, "A mug", "main", 1, unsent, worth, net, tax)


SOLD = (PLACED, PAID, SENT, ARRIVED)
POT_BACK = Returned("pot", PRODUCT, "A pot", "main", 1, 0, 2379, 1999, 380)


def test_the_last_refund_of_a_line_gives_the_rest_and_of_an_order_the_shipping() -> None:
    """1309 for two mugs are 655 and 654; with the pot goes what shipping and its tax came to: 4271 in all, exactly."""
    first = on_its_way(R1, one_mug(655, 550, 105))
    second = on_its_way(R2, one_mug(654, 550, 104), altogether=1309)
    third = on_its_way(R3, POT_BACK, shipping=583, altogether=4271)
    given(Order, *SOLD).when(Order.begin_refund, R1, [Return("mug", 1)], ADA, NOW, None).then(first)
    given(Order, *SOLD, first).when(Order.begin_refund, R2, [Return("mug", 1)], ADA, NOW, None).then(second)
    given(Order, *SOLD, first, second).when(Order.begin_refund, R3, [Return("pot", 1)], ADA, NOW, None).then(third)
    everything = on_its_way(R1, MUGS_BACK, POT_BACK, shipping=583)
    given(Order, *SOLD).when(Order.begin_refund, R1, [], ADA, NOW, None).then(everything)
    assert everything.fields["amount"] == 4271
    rest = on_its_way(R3, one_mug(654, 550, 104), POT_BACK, shipping=583, altogether=4271)
    given(Order, *SOLD, first).when(Order.begin_refund, R3, [], ADA, NOW, None).then(rest)


def test_two_refunds_never_have_the_same_piece_or_money() -> None:
    first = on_its_way(R1, one_mug(655, 550, 105))
    past = given(Order, *SOLD, first)
    past.when(Order.begin_refund, R2, [Return("mug", 2)], ADA, NOW, None).refused("2 of mug is more than the 1 left")
    past.when(Order.begin_refund, R1, [Return("mug", 1)], ADA, NOW, None).nothing()
    all_of_it = on_its_way(R1, MUGS_BACK, POT_BACK, shipping=583)
    given(Order, *SOLD, all_of_it).when(Order.begin_refund, R2, [], ADA, NOW, None).refused("nothing to give back")
    given(Order, *SOLD).when(Order.begin_refund, R1, [Return("mug", 1), Return("mug", 1)], ADA, NOW, None).refused(
        "another SKU"
    )
    given(Order, *SOLD).when(Order.begin_refund, R1, [Return("cup", 1)], ADA, NOW, None).refused(
        "cup is not on the order"
    )
    given(Order, *SOLD).when(Order.begin_refund, R1, [Return("mug", -1)], ADA, NOW, None).refused("not negative")


def test_a_refund_may_be_of_less_than_the_pieces_are_worth_or_of_money_alone() -> None:
    past = given(Order, *SOLD)
    half = Returned("mug", PRODUCT, "A mug", "main", 1, 0, 655, 252, 48)
    past.when(Order.begin_refund, R1, [Return("mug", 1, 300)], ADA, NOW, None).then(on_its_way(R1, half))
    past.when(Order.begin_refund, R1, [Return("mug", 1, 656)], ADA, NOW, None).refused(
        "656 for mug is more than the 655"
    )
    scratched = Returned("pot", PRODUCT, "A pot", "main", 0, 0, 0, 840, 160)
    discount = on_its_way(R1, scratched)
    past.when(Order.begin_refund, R1, [Return("pot", 0, 1000)], ADA, NOW, None).then(discount)
    past.when(Order.begin_refund, R1, [Return("pot", 0, 2380)], ADA, NOW, None).refused("more than the 2379")
    past.when(Order.begin_refund, R1, [Return("pot", 0)], ADA, NOW, None).refused("neither pieces nor money")
    rest = on_its_way(R2, Returned("pot", PRODUCT, "A pot", "main", 1, 0, 2379, 1159, 220), altogether=2379)
    given(Order, *SOLD, discount).when(Order.begin_refund, R2, [Return("pot", 1)], ADA, NOW, None).then(rest)
    late = on_its_way(R1, shipping=583)
    past.when(Order.begin_refund, R1, [], ADA, NOW, None, shipping=True).then(late)
    given(Order, *SOLD, late).when(Order.begin_refund, R2, [], ADA, NOW, None, shipping=True).refused(
        "nothing to give back"
    )
    kept = on_its_way(R1, MUGS_BACK, POT_BACK)
    past.when(Order.begin_refund, R1, [], ADA, NOW, None, shipping=False).then(kept)


def test_money_goes_back_to_the_card_first_and_to_vouchers_last() -> None:
    mixed = fact(Paid, payment=PAYMENT, amount=4271, currency="EUR", customer=ADA, lines=LINES, tenders=MIXED)
    voucher, wallet, card = MIXED
    pot = on_its_way(R1, POT_BACK, tenders=(Tender("card", PAYMENT, 2379),))
    given(Order, PLACED, mixed, SENT).when(Order.begin_refund, R1, [Return("pot", 1)], ADA, NOW, None).then(pot)
    left = (Tender("card", PAYMENT, 621), wallet, Tender("voucher", voucher.source, 1_000))
    mugs = on_its_way(R2, MUGS_BACK, shipping=583, tenders=left, altogether=4271)
    given(Order, PLACED, mixed, SENT, pot).when(Order.begin_refund, R2, [], ADA, NOW, None).then(mugs)
    assert card.amount == 2379 + 621


def test_refunds_are_asked_for_in_time_by_who_bought() -> None:
    order = given(Order, *SOLD).state
    assert order.since is not None
    last = order.since + MONTH
    given(Order, *SOLD).when(Order.begin_refund, R1, [], ADA, last + timedelta(seconds=1), MONTH).refused("for 30 days")
    given(Order, PLACED).when(Order.begin_refund, R1, [], ADA, NOW, None).refused(
        "a placed order has nothing to refund"
    )
    given(Order, PLACED, PAID, cancelled(paid=True)).when(Order.begin_refund, R1, [], ADA, NOW, None).refused(
        "a cancelled"
    )
    order.begin_refund(R1, [], ADA, last, MONTH)
    with suppress(NotFound):
        order.begin_refund(R2, [], PAYMENT, NOW, None)
        raise AssertionError("it is Ada's")


def test_a_refund_that_was_dropped_stays_closed_and_frees_what_it_had() -> None:
    begun = on_its_way(R1, MUGS_BACK)
    dropped = then_it(RefundDropped, begun)
    given(Order, *SOLD, begun).when(Order.drop_refund, R1).then(dropped)
    past = given(Order, *SOLD, begun, dropped)
    past.when(Order.drop_refund, R1).nothing()
    past.when(Order.begin_refund, R1, [], ADA, NOW, None).refused("was dropped")
    past.when(Order.settle_refund, R1).refused("was not begun")
    past.when(Order.begin_refund, R2, [Return("mug", 2)], ADA, NOW, None).then(on_its_way(R2, MUGS_BACK))
    unknown = fact(
        RefundDropped, refund=R1, currency="EUR", customer=ADA, lines=(), shipping=0, amount=0, tenders=()
    )  # fmt: skip
    given(Order, *SOLD).when(Order.drop_refund, R1).then(unknown)
    given(Order, *SOLD, unknown).when(Order.begin_refund, R1, [], ADA, NOW, None).refused("was dropped")
    settled = then_it(Refunded, begun)
    given(Order, *SOLD, begun).when(Order.settle_refund, R1).then(settled)
    given(Order, *SOLD, begun, settled).when(Order.settle_refund, R1).nothing()
    given(Order, *SOLD, begun, settled).when(Order.drop_refund, R1).refused("has been given back")
    given(Order, *SOLD, begun, settled).when(Order.begin_refund, R1, [], ADA, NOW, None).nothing()


def test_what_has_not_left_goes_back_first_and_is_not_shipped() -> None:
    begun = on_its_way(R1, one_mug(655, 550, 105, unsent=1))
    past = given(Order, PLACED, PAID, begun)
    past.when(Order.ship, PARCEL, [Part("mug", 2)], "DHL").refused("2 of mug is more than the 1 left")
    past.when(Order.cancel, SAID).refused("refund the rest")
    rest = fact(
        Shipped, shipment=PARCEL, parts=(Part("mug", 1), Part("pot", 1)), carrier="DHL", tracking="", last=False
    )
    past.when(Order.ship, PARCEL, [], "DHL").then(rest)
    given(Order, PLACED, PAID, begun, rest).when(Order.ship, SECOND, [], "DHL").refused("is being refunded")
    settled = then_it(Refunded, begun)
    given(Order, PLACED, PAID, begun, rest).when(Order.settle_refund, R1).then(settled, fact(SentAll, arrived=False))
    here = fact(Delivered, shipment=PARCEL, last=False)
    given(Order, PLACED, PAID, begun, rest, here).when(Order.settle_refund, R1).then(
        settled, fact(SentAll, arrived=True)
    )
    sent_all = given(Order, PLACED, PAID, begun, rest, settled, fact(SentAll, arrived=False))
    sent_all.when(Order.deliver, PARCEL).then(fact(Delivered, shipment=PARCEL, last=True))
    free = given(Order, PLACED, PAID, begun, rest, then_it(RefundDropped, begun))
    last = fact(Shipped, shipment=SECOND, parts=(Part("mug", 1),), carrier="DHL", tracking="", last=True)
    free.when(Order.ship, SECOND, [], "DHL").then(last)


def test_an_order_that_is_refunded_before_it_leaves_is_cancelled_with_nothing_to_give_back() -> None:
    lines = tuple(
        Returned(one.sku, one.product, one.title, one.location, one.quantity, one.quantity, one.worth, one.net, one.tax)
        for one in (MUGS_BACK, POT_BACK)
    )
    begun = on_its_way(R1, *lines, shipping=583)
    over = fact(
        Cancelled, reason="all of it was refunded", because=None, payment=PAYMENT, amount=0, currency="EUR", customer=ADA, lines=(), tenders=()
    )  # fmt: skip
    given(Order, PLACED, PAID).when(Order.begin_refund, R1, [], ADA, NOW, None).then(begun)
    given(Order, PLACED, PAID, begun).when(Order.settle_refund, R1).then(then_it(Refunded, begun), over)


class Machine(RuleBasedStateMachine):
    """Any commands in any order: each piece is shipped at most once, and no money or piece comes back that did not go out.

    It is paid in three parts of which each gets back what it gave at the most; what is dropped can be refunded again.
    """

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

    @rule(payment=st.sampled_from([PAYMENT, SECOND]), short=st.sampled_from([0, 0, 1]), mixed=st.booleans())
    def pay(self, payment: UUID, short: int, mixed: bool) -> None:
        total = self.order.total - short
        parts = [*MIXED[:2], Tender("card", payment, total - 1_271)] if mixed else []
        self.do(self.order.pay, payment, total, parts)

    refunds = st.sampled_from([UUID(int=n) for n in range(40, 46)])

    @rule(
        refund=refunds,
        mugs=st.integers(-1, 3),
        pots=st.integers(0, 2),
        amount=st.none() | st.integers(0, 1_500),
        shipping=st.sampled_from([None, None, True, False]),
    )
    def begin_refund(self, refund: UUID, mugs: int, pots: int, amount: int | None, shipping: bool | None) -> None:
        asked = [Return("mug", mugs, amount)] * (mugs != 0 or amount is not None) + [Return("pot", pots)] * (pots != 0)
        self.do(self.order.begin_refund, refund, asked, ADA, NOW, None, shipping)

    @rule(refund=refunds, settle=st.booleans())
    def end_refund(self, refund: UUID, settle: bool) -> None:
        self.do(self.order.settle_refund if settle else self.order.drop_refund, refund)

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
        self.do(self.order.cancel, SAID)

    @rule(payment=st.sampled_from([PAYMENT, SECOND]), capture=parcels, settle=st.booleans())
    def reverse(self, payment: UUID, capture: UUID, settle: bool) -> None:
        if settle:
            self.do(self.order.settle_payment, BOB, SAID)
        else:
            self.do(self.order.payment_reversed, payment, capture, 100, "closed")

    @invariant()
    def history_makes_sense(self) -> None:
        self.order.check()
        events = self.events
        paid = sum(one.amount for one in events if isinstance(one, Paid))
        back = sum(one.amount for one in events if isinstance(one, Cancelled))
        assert paid in (0, self.order.total) and back in (0, paid)
        begun = {one.refund: one for one in events if isinstance(one, RefundBegun)}
        for one in events:
            if isinstance(one, RefundDropped):
                begun.pop(one.refund, None)
        assert back + sum(one.amount for one in begun.values()) <= paid
        given_by = {one.source: one.amount for one in self.order.tenders}
        for one in begun.values():
            assert one.amount == sum(part.amount for part in one.tenders)
            for part in one.tenders:
                given_by[part.source] -= part.amount
        assert all(left >= 0 for left in given_by.values())
        for line in self.order.lines:
            its = [back for one in begun.values() for back in one.lines if back.sku == line.sku]
            assert sum(back.quantity for back in its) <= line.quantity
            assert sum(back.net for back in its) <= line.net and sum(back.tax for back in its) <= line.tax
        ended = {one.refund for one in events if isinstance(one, Refunded)}
        assert ended <= begun.keys(), "settled, and dropped or never begun"
        sent = {line.sku: 0 for line in self.order.lines}
        for one in events:
            if isinstance(one, Shipped):
                for some in one.parts:
                    sent[some.sku] += some.quantity
        held = {line.sku: sum(p.unsent for o in begun.values() for p in o.lines if p.sku == line.sku) for line in LINES}
        assert all(
            sent[sku] + held[sku] + left == {"mug": 2, "pot": 1}[sku] for sku, left in self.order.unshipped.items()
        )
        assert not (back and any(sent.values()))
        owed = 0
        for one in events:
            assert not (isinstance(one, Shipped) and owed), "shipped, and not paid any more"
            owed = owed + one.amount if isinstance(one, PaymentReversed) else owed
            owed = 0 if isinstance(one, PaymentSettled) else owed
        assert owed == self.order.owed
        assert self.order.status != "delivered" or all(self.order.shipments.values())


TestOrder = Machine.TestCase


@hypothesis_given(
    quantity=st.integers(1, 12), unit_price=st.integers(0, 5_000), tax_bp=st.integers(0, 2_500), discount=st.integers(0, 3_000),
    shipping=st.integers(0, 2_000), by=st.integers(1, 5), drop=st.booleans(),
)  # fmt: skip
def test_piece_by_piece_all_comes_back_exactly(
    quantity: int, unit_price: int, tax_bp: int, discount: int, shipping: int, by: int, drop: bool
) -> None:
    off = min(discount, quantity * unit_price + 1999)
    order = Order.place(
        ADA, "EUR", [line("mug", quantity, unit_price, tax_bp), POT], HOME, NOW, discount=off, shipping=shipping
    )
    if not order.total:
        return
    order.pay(PAYMENT, order.total)
    numbers = (UUID(int=n) for n in range(100, 150))
    while left := order.rest.lines["mug"].pieces if order.rest else quantity:
        refund = next(numbers)
        with suppress(Refused):  # pieces that are worth nothing
            order.begin_refund(refund, [Return("mug", min(by, left))], ADA, NOW, None)
        if refund not in order.refunds:
            break
        if drop:  # and once more
            order.drop_refund(refund)
            drop = False
        else:
            order.settle_refund(refund)
    last = next(numbers)
    with suppress(Refused):
        order.begin_refund(last, [], ADA, NOW, None)
        order.settle_refund(last)
    order.check()
    assert sum(order.refunded.values()) == order.total
    assert order.status == "cancelled"


def test_numbers_differ_and_can_be_read_out() -> None:
    numbers = {number_of(uuid4(), NOW) for _ in range(1_000)}
    assert len(numbers) == 1_000 and not set("ILOU") & set("".join(numbers))
