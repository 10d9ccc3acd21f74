"""Order: what a customer bought, from placing to completion. Amounts are integer minor units of its one currency.

placed → confirmed → paid → shipped → delivered → completed; cancelled until the first parcel leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, cast
from uuid import UUID

from aggregates.kernel import Aggregate, Created, Event, Free, Take, event, require
from aggregates.kernel.currency import digits
from aggregates.kernel.event import under_id
from aggregates.kernel.money import Line, Tender, price
from aggregates.kernel.tender import stated, tendered
from aggregates.kernel.text import line as one_line
from schemas import Address
from schemas.values import value

REASON_CHARS_MAX = 500
CARRIER_CHARS_MAX = 100
SHIPMENTS_MAX = 200

Status = Literal["placed", "confirmed", "paid", "shipped", "delivered", "completed", "cancelled"]


@value
class Part:
    """Some pieces of one line, in a parcel."""

    sku: str
    quantity: int


# What can happen. `apply` only records: it never refuses, so old events always load.
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
        if self.last:
            order.status = "delivered"


class Completed(Event):
    def apply(self, order: Order) -> None:
        order.status = "completed"


class Cancelled(Event):
    reason: str
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


# What is allowed.
class Order(Aggregate):
    """`tenders`: what it was paid with; `unshipped`: what is left to send by SKU; `shipments`: whether each parcel has arrived."""

    @event(Placed)
    def __init__(
        self,
        number: str,
        customer: UUID,
        currency: str,
        lines: tuple[Line, ...],
        subtotal: int,
        discount: int,
        shipping: int,
        tax: int,
        total: int,
        address: Address,
    ) -> None:
        self.number, self.customer, self.currency, self.lines = number, customer, currency, lines
        self.subtotal, self.discount, self.shipping, self.tax, self.total = subtotal, discount, shipping, tax, total
        self.address = address
        self.status: Status = "placed"
        self.paid, self.payment = False, cast("UUID | None", None)
        self.tenders: tuple[Tender, ...] = ()
        self.unshipped = {line.sku: line.quantity for line in lines}
        self.shipments: dict[UUID, bool] = {}

    @classmethod
    def place(
        cls,
        customer: UUID,
        currency: str,
        lines: Sequence[Line],
        address: Address,
        now: datetime,
        discount: int = 0,
        shipping: int = 0,
        shipping_tax_bp: int = 0,
        total: int | None = None,
    ) -> Order:
        """A new order, priced by `aggregates.kernel.money.price`. With `total` it must come to that: what was authorised."""
        digits(currency)  # raises for what is no currency
        require(len({line.sku for line in lines}) == len(lines), "each SKU stands on one line of an order")
        priced, sums = price(lines, discount, shipping, shipping_tax_bp)
        require(total is None or total == sums.total, f"the order comes to {sums.total}, not {total}")
        id = cls.create_id()
        with under_id(id):
            return cls(
                number=number_of(id, now),
                customer=customer,
                currency=currency,
                lines=tuple(priced),
                subtotal=sums.subtotal,
                discount=sums.discount,
                shipping=sums.shipping,
                tax=sums.tax,
                total=sums.total,
                address=address,
            )

    def confirm(self) -> None:
        if self.status == "placed":
            self.trigger_event(Confirmed)
            return
        require(self.status != "cancelled", "the order is cancelled")

    def pay(self, payment: UUID | None, amount: int, tenders: Sequence[Tender] = ()) -> None:
        """The whole amount was taken: by the card's payment alone, or as the tenders say.

        It confirms the order; money for one that was cancelled meanwhile goes straight back.
        """
        if self.paid and self.payment == payment and (not tenders or self.tenders == tuple(tenders)):
            return  # asked again
        require(not self.paid, f"the order is paid by {', '.join(f'{one.kind} {one.source}' for one in self.tenders)}")
        require(amount == self.total, f"the order comes to {self.total}, not {amount}")
        parts = tendered(tenders, payment, amount)
        late = self.status == "cancelled"
        if not late:
            self.confirm()
        self.trigger_event(
            Paid,
            payment=payment,
            amount=amount,
            currency=self.currency,
            customer=self.customer,
            lines=self.lines,
            tenders=parts,
        )
        if late:
            self._cancel("it had been cancelled before it was paid")

    def ship(self, shipment: UUID, parts: Sequence[Part], carrier: str, tracking: str = "") -> None:
        """A parcel leaves with some pieces of some lines, or with all that is left when no parts are named."""
        if shipment in self.shipments:
            return  # asked again
        require(self.status == "paid", f"a {self.status} order can't be shipped")
        require(len(self.shipments) < SHIPMENTS_MAX, f"an order goes in at most {SHIPMENTS_MAX} parcels")
        sent = parts or [Part(sku, left) for sku, left in self.unshipped.items() if left]
        left = dict(self.unshipped)
        for part in sent:
            require(part.quantity > 0, "a parcel has at least one piece of each line in it")
            require(part.sku in left, f"{part.sku} is not on the order")
            require(
                part.quantity <= left[part.sku], f"{part.quantity} of {part.sku} is more than the {left[part.sku]} left"
            )
            left[part.sku] -= part.quantity
        self.trigger_event(
            Shipped,
            shipment=shipment,
            parts=tuple(sent),
            carrier=one_line(carrier, "a carrier", CARRIER_CHARS_MAX),
            tracking=one_line(tracking, "a tracking number", CARRIER_CHARS_MAX) if tracking else "",
            last=not any(left.values()),
        )

    def deliver(self, shipment: UUID) -> None:
        require(shipment in self.shipments, f"there is no shipment {shipment}")
        if self.shipments[shipment]:
            return  # asked again
        others = (arrived for other, arrived in self.shipments.items() if other != shipment)
        self.trigger_event(Delivered, shipment=shipment, last=self.status == "shipped" and all(others))

    def complete(self) -> None:
        if self.status == "completed":
            return
        require(self.status == "delivered", f"a {self.status} order can't be completed")
        self.trigger_event(Completed)

    def cancel(self, reason: str) -> None:
        """Until the first parcel leaves. What was paid is to be given back, and sold pieces return to stock."""
        if self.status == "cancelled":
            return
        require(self.status in ("placed", "confirmed", "paid"), f"a {self.status} order can't be cancelled")
        require(not self.shipments, "a part of the order has been shipped")
        self._cancel(one_line(reason, "a reason", REASON_CHARS_MAX))

    def _cancel(self, reason: str) -> None:
        self.trigger_event(
            Cancelled,
            reason=reason,
            payment=self.payment,
            amount=self.total if self.paid else 0,
            currency=self.currency,
            customer=self.customer,
            lines=self.lines if self.paid else (),
            tenders=self.tenders,
        )

    def check(self) -> None:
        assert self.total == self.subtotal - self.discount + self.shipping + self.tax
        assert sum(line.discount for line in self.lines) == self.discount
        assert sum(one.amount for one in self.tenders) == (self.total if self.paid else 0)
        assert all(0 <= self.unshipped[line.sku] <= line.quantity for line in self.lines)
        assert not (self.status == "cancelled" and self.shipments)


# Crockford's base 32 in place of RFC 4648's: no I, L, O, U to be misread.
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAIRS = [a + b for a in CROCKFORD for b in CROCKFORD]


def number_of(id: UUID, now: datetime) -> str:
    """The order's number for people: its UTC day and 45 bits of its id's digest. Unique by claim; it says nothing of sales."""
    bits = int.from_bytes(hashlib.sha256(id.bytes).digest()[:6]) >> 3
    left = f"{PAIRS[bits >> 35]}{PAIRS[bits >> 25 & 1023]}{CROCKFORD[bits >> 20 & 31]}"
    right = f"{PAIRS[bits >> 10 & 1023]}{PAIRS[bits & 1023]}"
    return f"T{now.year % 100:02}{now.month:02}{now.day:02}-{left}-{right}"
