"""Checkout: one attempt at buying a cart. Its steps are in `streams/checkout.py`; here is what it knows and what happened.

One purchase, one id: the order that comes of it has the checkout's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from aggregates.kernel import Created, event, process, require
from aggregates.kernel.currency import digits
from aggregates.kernel.money import Line, price
from aggregates.kernel.process import Process, Progress
from aggregates.kernel.token import payment_token
from schemas import Address

RESERVED = timedelta(days=7)
"""Stock is set aside for so long. The saga gives it back when it fails; this ends what is left should a saga get stuck."""


# What can happen. `apply` only records: it never refuses, so old events always load.
class Started(Created):
    customer: UUID
    cart: UUID
    contents: int
    currency: str
    lines: tuple[Line, ...]
    discount: int
    shipping: int
    shipping_tax_bp: int
    total: int
    address: Address
    method: str
    reserved_until: datetime


class StepBegun(process.StepBegun): ...


class StepDone(process.StepDone): ...


class StepRefused(process.StepRefused): ...


class StepOverdue(process.StepOverdue): ...


class StepUndone(process.StepUndone): ...


class StepFailed(process.StepFailed): ...


class StepRetried(process.StepRetried): ...


class Finished(process.Finished): ...


# What is allowed.
class Checkout(Process):
    """`total` is what the payment is authorised for, and what the order must come to."""

    @event(Started)
    def __init__(
        self,
        customer: UUID,
        cart: UUID,
        contents: int,
        currency: str,
        lines: tuple[Line, ...],
        discount: int,
        shipping: int,
        shipping_tax_bp: int,
        total: int,
        address: Address,
        method: str,
        reserved_until: datetime,
    ) -> None:
        self.customer, self.cart, self.contents, self.currency, self.lines = customer, cart, contents, currency, lines
        self.discount, self.shipping, self.shipping_tax_bp, self.total = discount, shipping, shipping_tax_bp, total
        self.address, self.method, self.reserved_until = address, method, reserved_until
        self.progress = Progress()

    @classmethod
    def start(
        cls,
        customer: UUID,
        cart: UUID,
        contents: int,
        currency: str,
        lines: Sequence[Line],
        address: Address,
        method: str,
        now: datetime,
        discount: int = 0,
        shipping: int = 0,
        shipping_tax_bp: int = 0,
    ) -> Checkout:
        """A checkout of a cart at its version `contents`, priced by `aggregates.kernel.money.price`."""
        digits(currency)  # raises for what is no currency
        priced, sums = price(lines, discount, shipping, shipping_tax_bp)
        require(sums.total > 0, "there is nothing to pay")
        return cls(
            customer=customer,
            cart=cart,
            contents=contents,
            currency=currency,
            lines=tuple(priced),
            discount=discount,
            shipping=shipping,
            shipping_tax_bp=shipping_tax_bp,
            total=sums.total,
            address=address,
            method=payment_token(method),
            reserved_until=now + RESERVED,
        )

    @property
    def payment(self) -> UUID:
        """The payment of this checkout."""
        return payment_of(self.id)

    @property
    def capture(self) -> UUID:
        """The one capture of that payment."""
        return uuid5(self.id, "capture")


def payment_of(checkout: UUID) -> UUID:
    """The payment of a checkout: its id follows from the checkout's."""
    return uuid5(checkout, "payment")
