"""Order: what a customer bought, from placing to completion. Amounts are integer minor units of its one currency.

placed → confirmed → paid → shipped → delivered → completed; cancelled until the first parcel leaves. Once paid it can be refunded, in
parts and several at a time; what goes back is decided here, so that it never is more than was paid or bought (the rules are
`aggregates/kernel/refunding.py`'s).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

from aggregates.kernel import Aggregate, NotFound, event, require
from aggregates.kernel.currency import digits
from aggregates.kernel.money import Line, Tender, price
from aggregates.kernel.refunding import Claim, Rest, Return
from aggregates.kernel.tender import tendered
from aggregates.kernel.text import line as one_line
from aggregates.order.events import (
    Cancelled,
    Completed,
    Confirmed,
    Delivered,
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
    Status,
)
from aggregates.order.number import number_of
from schemas import Address, Sealed

__all__ = [
    "Cancelled",
    "Completed",
    "Confirmed",
    "Delivered",
    "Order",
    "Paid",
    "Part",
    "PaymentReversed",
    "PaymentSettled",
    "Placed",
    "RefundBegun",
    "RefundDropped",
    "Refunded",
    "SentAll",
    "Shipped",
    "Status",
    "number_of",
]

CARRIER_CHARS_MAX = 100
SHIPMENTS_MAX = 200
REFUNDS_MAX = 50  # of one order, dropped ones too


# What is allowed.
class Order(Aggregate):
    """`tenders`: what it was paid with; `unshipped`: what is left to send by SKU; `shipments`: whether each parcel has arrived.

    `rest`: what can be refunded still, once anything was; `refunds` are on their way; `refunded` has the amounts of those that
    ended, 0 for dropped ones. `since`: when it was paid or, later, when the last parcel arrived. `owed`: of captures that were
    reversed, until somebody has seen to it: nothing more is shipped meanwhile.
    """

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
        self.since: datetime | None = None
        self.rest: Rest | None = None
        self.refunds: dict[UUID, Claim] = {}
        self.refunded: dict[UUID, int] = {}
        self.reversed: set[UUID] = set()
        self.owed = 0

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
        return cls._create(
            Placed,
            id=id,
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
        require(not self.owed, f"{self.owed} {self.currency} of its payment were reversed: somebody has to see to it")
        require(len(self.shipments) < SHIPMENTS_MAX, f"an order goes in at most {SHIPMENTS_MAX} parcels")
        sent = parts or [Part(sku, left) for sku, left in self.unshipped.items() if left]
        require(bool(sent), "what is left to send is being refunded")
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
            last=not any(left.values()) and not self._held_back,
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

    def cancel(self, because: Sealed | None, reason: str = "") -> None:
        """Until the first parcel leaves. What was paid is to be given back, and sold pieces return to stock.

        `because`: somebody's own words; else `reason` is ours.
        """
        if self.status == "cancelled":
            return
        require(self.status in ("placed", "confirmed", "paid"), f"a {self.status} order can't be cancelled")
        require(not self.shipments, "a part of the order has been shipped")
        require(
            not self.refunds and not any(self.refunded.values()), "a part of the order is refunded: refund the rest"
        )
        self._cancel(reason, because)

    # Money that was thought to be ours.
    def payment_reversed(self, payment: UUID, capture: UUID, amount: int, reason: str) -> None:
        """A capture that was done has failed after all, once for a capture. Of a payment that did not pay for it, nothing."""
        ours = not self.paid or any(one.source == payment for one in self.tenders)
        if ours and capture not in self.reversed:
            self.trigger_event(
                PaymentReversed,
                payment=payment,
                capture=capture,
                amount=amount,
                currency=self.currency,
                reason=reason,
            )

    def settle_payment(self, by: UUID, because: Sealed | None) -> None:
        """Staff have seen to it: what is left to send can be sent."""
        if self.owed:
            self.trigger_event(
                PaymentSettled, amount=self.owed, currency=self.currency, by=by, reason="", because=because
            )

    # Money that goes back. `streams/refund.py` begins a refund here, gives the money back, and settles it here.
    def begin_refund(
        self,
        refund: UUID,
        asked: Sequence[Return],
        customer: UUID,
        asked_at: datetime,
        window: timedelta | None,
        shipping: bool | None = None,
    ) -> None:
        """Set aside what a refund takes, so that no other has it. The same again does nothing; one that ended stays closed.

        `window`: how long after the last parcel's arrival, or the payment, it may be asked for; None for ever. What has not left
        yet goes back first, and is not shipped meanwhile.
        """
        if refund in self.refunds or self.refunded.get(refund):
            return
        require(refund not in self.refunded, f"refund {refund} was dropped")
        if customer != self.customer:
            raise NotFound(f"there is no order {self.id}")
        require(self.paid and self.status != "cancelled", f"a {self.status} order has nothing to refund")
        require(len(self.refunds) + len(self.refunded) < REFUNDS_MAX, f"an order has at most {REFUNDS_MAX} refunds")
        assert self.since is not None
        if window is not None:
            require(
                asked_at <= self.since + window,
                f"refunds are taken for {window.days} days, until {self.since + window:%d %B %Y}",
            )
        rest = self.rest or Rest.of(self.lines, self.total, self.tenders)
        claim = rest.claim(asked, shipping, self.lines, self.unshipped)
        altogether = self.total - rest.amount + claim.amount
        self._of_refund(RefundBegun, refund, claim, altogether=altogether)

    def drop_refund(self, refund: UUID) -> None:
        """It was turned down. With nothing begun it closes the refund: one that begins late finds it closed."""
        require(not self.refunded.get(refund), f"refund {refund} has been given back")
        if refund not in self.refunded:
            self._of_refund(RefundDropped, refund, self.refunds.get(refund) or Claim((), 0, ()))

    def settle_refund(self, refund: UUID) -> None:
        """The customer has the money. An order of which nothing is left to send is shipped then, or was never to be."""
        if self.refunded.get(refund):
            return
        require(refund in self.refunds, f"refund {refund} was not begun")
        self._of_refund(Refunded, refund, self.refunds[refund])
        if self.status == "paid" and not any(self.unshipped.values()) and not self._held_back:
            if self.shipments:
                self.trigger_event(SentAll, arrived=all(self.shipments.values()))
            else:
                self._cancel("all of it was refunded", given_back=True)

    @property
    def _held_back(self) -> bool:
        """Whether pieces that have not left are kept for refunds on their way."""
        return any(line.unsent for claim in self.refunds.values() for line in claim.lines)

    def _of_refund(
        self, kind: type[RefundBegun | Refunded | RefundDropped], refund: UUID, claim: Claim, **more: object
    ) -> None:
        self.trigger_event(
            kind,
            refund=refund,
            currency=self.currency,
            customer=self.customer,
            lines=claim.lines,
            shipping=claim.shipping,
            amount=claim.amount,
            tenders=claim.tenders,
            **more,
        )

    def _cancel(self, reason: str = "", because: Sealed | None = None, given_back: bool = False) -> None:
        due = self.paid and not given_back
        self.trigger_event(
            Cancelled,
            reason=reason,
            because=because,
            payment=self.payment,
            amount=self.total if due else 0,
            currency=self.currency,
            customer=self.customer,
            lines=self.lines if due else (),
            tenders=self.tenders if due else (),
        )

    def check(self) -> None:
        assert self.total == self.subtotal - self.discount + self.shipping + self.tax
        assert sum(line.discount for line in self.lines) == self.discount
        assert sum(one.amount for one in self.tenders) == (self.total if self.paid else 0)
        assert all(0 <= self.unshipped[line.sku] <= line.quantity for line in self.lines)
        assert not (self.status == "cancelled" and self.shipments)
        assert self.owed >= 0 and (self.reversed or not self.owed)
        if self.rest is not None:
            self.rest.check()
            gone = sum(claim.amount for claim in self.refunds.values()) + sum(self.refunded.values())
            assert gone + self.rest.amount == self.total
