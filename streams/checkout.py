"""Checkout: the cart becomes a paid order, or everything taken for it is given back."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from aggregates.cart import Cart
from aggregates.checkout import Checkout, Started
from aggregates.inventory import Stock, stock_id
from aggregates.kernel import Event, Money, clock
from aggregates.order import Order
from aggregates.payment import Authorised, Captured, CaptureFailed, Declined, Payment, Voided
from streams.kernel import Saga, Step, Tell, open_as, tell


def order_of(e: Event) -> UUID:
    """The checkout that a payment's event is for: the order has its id."""
    order: UUID = e.order  # type: ignore[attr-defined]  # every event of a payment names its order
    return order


def reserve(c: Checkout) -> list[Tell]:
    return [
        tell(stock_id(one.sku, one.location), Stock.reserve, c.id, one.quantity, c.reserved_until) for one in c.lines
    ]


def release(c: Checkout) -> list[Tell]:
    return [tell(stock_id(one.sku, one.location), Stock.release, c.id) for one in c.lines]


def commit(c: Checkout) -> list[Tell]:
    return [tell(stock_id(one.sku, one.location), Stock.commit, c.id) for one in c.lines]


checkout = Saga(
    Checkout,
    starts=Started,
    pivot="take the money",
    steps=[
        Step(
            "lock the cart",
            within=timedelta(seconds=30),
            do=lambda c: tell(c.cart, Cart.lock, c.id, c.contents),
            undo=lambda c: tell(c.cart, Cart.unlock, c.id, clock.now()),
        ),
        Step("reserve the stock", within=timedelta(seconds=30), do=reserve, undo=release),
        Step(
            "authorise the payment",
            within=timedelta(minutes=15),  # the customer may have to confirm it at the bank
            until=Authorised,
            unless=(Declined, Voided),
            match=order_of,
            do=lambda c: open_as(c.payment, Payment, c.id, c.customer, Money(c.total, c.currency), c.method),
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
            undo=lambda c: tell(c.id, Order.cancel, "the checkout failed"),
        ),
        Step(
            "take the money",
            within=timedelta(minutes=5),
            until=Captured,
            unless=CaptureFailed,
            match=order_of,
            do=lambda c: tell(c.payment, Payment.capture, c.capture, Money(c.total, c.currency)),
        ),
        Step(
            "mark the order paid",
            within=timedelta(minutes=1),
            do=lambda c: tell(c.id, Order.pay, c.payment, c.total),
        ),
        Step("take the stock", within=timedelta(minutes=1), do=commit),
        Step("clear the cart", within=timedelta(minutes=1), do=lambda c: tell(c.cart, Cart.check_out, c.id)),
    ],
)
