"""What can happen to an order. `apply` only records: it never refuses, so old events always load."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from aggregates.kernel import Created, Event, Free, Take
from aggregates.kernel.money import Line, Tender
from aggregates.kernel.refunding import Claim, Rest, Returned
from aggregates.kernel.tender import stated
from schemas import Address, Sealed
from schemas.values import value

if TYPE_CHECKING:
    from aggregates.order import Order

Status = Literal["placed", "confirmed", "paid", "shipped", "delivered", "completed", "cancelled"]


@value
class Part:
    """Some pieces of one line, in a parcel."""

    sku: str
    quantity: int


class Placed(Created):
    number: str
    customer: UUID
    currency: str
    lines: tuple[Line, ...]
    subtotal: int
    discount: int
    shipping: int
    tax: int
    total: int
    address: Address

    def claims(self) -> Iterable[Take | Free]:
        return [Take("number", self.number)]


class Confirmed(Event):
    def apply(self, order: Order) -> None:
        order.status = "confirmed"


class Paid(Event):
    payment: UUID | None  # the card's, if a card paid
    amount: int
    currency: str
    customer: UUID
    lines: tuple[Line, ...]
    tenders: tuple[Tender, ...]

    @property
    def parts(self) -> tuple[Tender, ...]:
        """What it was paid with: old events, which do not say so, are all of cards."""
        return stated(self.tenders, self.payment, self.amount)

    def apply(self, order: Order) -> None:
        order.status, order.paid, order.payment, order.tenders = "paid", True, self.payment, self.parts
        order.since = self.at


class Shipped(Event):
    shipment: UUID
    parts: tuple[Part, ...]
    carrier: str
    tracking: str
    last: bool

    def apply(self, order: Order) -> None:
        order.shipments[self.shipment] = False
        for part in self.parts:
            order.unshipped[part.sku] -= part.quantity
        if self.last:
            order.status = "shipped"


class Delivered(Event):
    shipment: UUID
    last: bool

    def apply(self, order: Order) -> None:
        order.shipments[self.shipment] = True
        order.since = self.at
        if self.last:
            order.status = "delivered"


class Completed(Event):
    def apply(self, order: Order) -> None:
        order.status = "completed"


class Cancelled(Event):
    """`because`: what somebody typed, sealed for the customer; without it `reason` is ours, or of an event older than that."""

    reason: str
    because: Sealed | None
    payment: UUID | None
    amount: int
    currency: str
    customer: UUID
    lines: tuple[Line, ...]
    tenders: tuple[Tender, ...]

    @property
    def parts(self) -> tuple[Tender, ...]:
        """What goes back to where: old events, which do not say so, are all of cards."""
        return stated(self.tenders, self.payment, self.amount)

    def apply(self, order: Order) -> None:
        order.status = "cancelled"


class _OfRefund(Event):
    """What one refund takes of an order: lines, shipping with its tax, and which part of it goes back to where."""

    refund: UUID
    currency: str
    customer: UUID
    lines: tuple[Returned, ...]
    shipping: int
    amount: int
    tenders: tuple[Tender, ...]

    @property
    def claim(self) -> Claim:
        return Claim(self.lines, self.shipping, self.tenders)


class RefundBegun(_OfRefund):
    """A part of the order is on its way back: nothing else can have it. `altogether`: with all earlier refunds."""

    altogether: int

    def apply(self, order: Order) -> None:
        if order.rest is None:
            order.rest = Rest.of(order.lines, order.total, order.tenders)
        order.rest.take(self.claim)
        order.refunds[self.refund] = self.claim
        for line in self.lines:
            order.unshipped[line.sku] -= line.unsent


class Refunded(_OfRefund):
    """It is back with the customer."""

    def apply(self, order: Order) -> None:
        del order.refunds[self.refund]
        order.refunded[self.refund] = self.amount


class RefundDropped(_OfRefund):
    """It does not go back after all. With nothing begun yet it is only closed: `amount` 0."""

    def apply(self, order: Order) -> None:
        order.refunded[self.refund] = 0
        if (claim := order.refunds.pop(self.refund, None)) and order.rest:
            order.rest.put_back(claim)
            for line in self.lines:
                order.unshipped[line.sku] += line.unsent


class PaymentReversed(Event):
    """The bank has taken captured money from us again: the order is not paid, or not all of it."""

    payment: UUID
    capture: UUID
    amount: int
    currency: str
    reason: str

    def apply(self, order: Order) -> None:
        order.reversed.add(self.capture)
        order.owed += self.amount


class PaymentSettled(Event):
    """Staff have seen to what was taken from us: it was paid otherwise, or is let be."""

    amount: int
    currency: str
    by: UUID
    reason: str
    because: Sealed | None  # what they typed, sealed for the customer; older events have it as `reason`

    def apply(self, order: Order) -> None:
        order.owed = 0


class SentAll(Event):
    """What was left to send was refunded: the rest is under way, or has arrived."""

    arrived: bool

    def apply(self, order: Order) -> None:
        order.status = "delivered" if self.arrived else "shipped"
