"""Checkout: the cart becomes a paid order, or everything taken for it is given back.

Vouchers pay first, then the wallet, then a card the rest. The stock and what they pay are set aside before a card is asked, without a
time at which they would be free again: the saga always ends, and takes them or gives them back. However late a gateway answers, they
are there still. A saved method is looked at first: one that was removed since it was chosen pays nothing, and nothing is set aside.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from aggregates.cart import Cart
from aggregates.checkout import Checkout, Started
from aggregates.inventory import Stock, stock_id
from aggregates.kernel import Event, Money, clock
from aggregates.kernel.money import TenderKind
from aggregates.order import Order
from aggregates.payment import Authorised, Captured, CaptureFailed, Declined, Methods, Payment, Voided
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet
from streams.kernel import NOTHING, OpenAs, Saga, Step, Tell, open_as, tell


def order_of(e: Event) -> UUID:
    """The checkout that a payment's event is for: the order has its id."""
    order: UUID = e.order  # type: ignore[attr-defined]  # every event of a payment names its order
    return order


def reserve(c: Checkout) -> list[Tell]:
    return [tell(stock_id(one.sku, one.location), Stock.reserve, c.id, one.quantity, None) for one in c.lines]


def release(c: Checkout) -> list[Tell]:
    return [tell(stock_id(one.sku, one.location), Stock.release, c.id) for one in c.lines]


def commit(c: Checkout) -> list[Tell]:
    return [tell(stock_id(one.sku, one.location), Stock.commit, c.id) for one in c.lines]


def reserve_vouchers(c: Checkout) -> list[Tell]:
    now = clock.now()
    return [
        tell(one.source, Voucher.reserve, c.id, Money(one.amount, c.currency), c.customer, None, now)
        for one in c.paid_by("voucher")
    ]


def release_vouchers(c: Checkout) -> list[Tell]:
    return [tell(one.source, Voucher.release, c.id) for one in c.paid_by("voucher")]


def confirm_vouchers(c: Checkout) -> list[Tell]:
    return [tell(one.source, Voucher.confirm, c.id) for one in c.paid_by("voucher")]


def hold(c: Checkout) -> list[Tell]:
    return [tell(one.source, Wallet.hold, c.id, Money(one.amount, c.currency), None) for one in c.paid_by("wallet")]


def let_go(c: Checkout) -> list[Tell]:
    return [tell(one.source, Wallet.release, c.id) for one in c.paid_by("wallet")]


def spend(c: Checkout) -> list[Tell]:
    return [tell(one.source, Wallet.spend, c.id, c.id, Money(one.amount, c.currency)) for one in c.paid_by("wallet")]


def use_saved(c: Checkout) -> Tell:
    assert c.saved is not None
    return tell(c.customer, Methods.use, c.saved, c.gateway, c.method, clock.now())


def pay(c: Checkout) -> OpenAs:
    """The card's part: at the gateway of a saved method, else by rules of routing that may ask for the country that it goes to."""
    amount = Money(c.by_card, c.currency)
    return open_as(c.payment, Payment, c.id, c.customer, amount, c.method, c.gateway, c.address.country)


def paid_by(kind: TenderKind) -> Callable[[Checkout], bool]:
    """Whether something of a checkout is paid so."""
    return lambda c: bool(c.paid_by(kind))


checkout = Saga(
    Checkout,
    starts=Started,
    pivot="take the money",
    steps=[
        Step(
            "use the saved method",
            within=timedelta(seconds=30),
            when=lambda c: c.saved is not None,
            do=use_saved,
            undo=NOTHING,
        ),
        Step(
            "lock the cart",
            within=timedelta(seconds=30),
            do=lambda c: tell(c.cart, Cart.lock, c.id, c.contents),
            undo=lambda c: tell(c.cart, Cart.unlock, c.id, clock.now()),
        ),
        Step("reserve the stock", within=timedelta(seconds=30), do=reserve, undo=release),
        Step(
            "reserve the vouchers",
            within=timedelta(seconds=30),
            when=paid_by("voucher"),
            do=reserve_vouchers,
            undo=release_vouchers,
        ),
        Step(
            "hold in the wallet",
            within=timedelta(seconds=30),
            when=paid_by("wallet"),
            do=hold,
            undo=let_go,
        ),
        Step(
            "authorise the payment",
            within=timedelta(minutes=15),  # the customer may have to confirm it at the bank
            until=Authorised,
            unless=(Declined, Voided),
            match=order_of,
            when=paid_by("card"),
            do=pay,
            undo=lambda c: tell(c.payment, Payment.void),
        ),
        Step(
            "place the order",
            within=timedelta(seconds=30),
            do=lambda c: open_as(
                c.id,
                Order.place,
                c.customer,
                c.currency,
                c.lines,
                c.address,
                clock.now(),
                c.discount,
                c.shipping,
                c.shipping_tax_bp,
                c.total,
            ),
            undo=lambda c: tell(c.id, Order.cancel, None, "the checkout failed"),
        ),
        Step(
            "take the money",
            within=timedelta(minutes=5),
            until=Captured,
            unless=CaptureFailed,
            match=order_of,
            when=paid_by("card"),
            do=lambda c: tell(c.payment, Payment.capture, c.capture, Money(c.by_card, c.currency)),
        ),
        Step(
            "confirm the vouchers",
            within=timedelta(minutes=1),
            when=paid_by("voucher"),
            do=confirm_vouchers,
        ),
        Step("spend from the wallet", within=timedelta(minutes=1), when=paid_by("wallet"), do=spend),
        Step(
            "mark the order paid",
            within=timedelta(minutes=1),
            do=lambda c: tell(c.id, Order.pay, c.payment if c.by_card else None, c.total, c.tenders),
        ),
        Step("take the stock", within=timedelta(minutes=1), do=commit),
        Step("clear the cart", within=timedelta(minutes=1), do=lambda c: tell(c.cart, Cart.check_out, c.id)),
    ],
)
