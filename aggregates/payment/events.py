"""What can happen to a payment. Every event but the first names the order, so that a saga finds its own."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from aggregates.kernel import Cancel, Created, Event, Money, Timer
from aggregates.kernel.money import payable
from aggregates.kernel.token import payment_token
from aggregates.payment.parts import Operation

if TYPE_CHECKING:
    from aggregates.payment import Payment


class Requested(Created):
    order: UUID
    customer: UUID
    amount: Money
    method: str  # a gateway's token for a card or account, never its number
    gateway: str

    def __post_init__(self) -> None:  # history is read past this: it holds for new payments only
        payable(self.amount)
        payment_token(self.method)


class ActionRequired(Event):
    order: UUID
    url: str  # where the customer confirms, until `expires_at`
    expires_at: datetime

    def apply(self, payment: Payment) -> None:
        payment.authorisation, payment.url, payment.expires_at = "action_required", self.url, self.expires_at
        payment.waiting.pop(self.id, None)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [_expiry(self.expires_at)]


class Authorised(Event):
    order: UUID
    amount: Money
    transaction: str  # the gateway's own name of it
    expires_at: datetime

    def apply(self, payment: Payment) -> None:
        payment.authorisation, payment.url, payment.expires_at = "authorised", "", self.expires_at
        payment.transaction = self.transaction
        payment.waiting.pop(self.id, None)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [_expiry(self.expires_at)]


class Declined(Event):
    order: UUID
    code: str
    reason: str
    customer: UUID | None  # None: older than the field

    def apply(self, payment: Payment) -> None:
        payment.authorisation, payment.url, payment.expires_at = "declined", "", None
        payment.waiting.clear()

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


class CaptureRequested(Event):
    order: UUID
    capture: UUID
    amount: Money

    def apply(self, payment: Payment) -> None:
        payment.captures[self.capture] = Operation(self.amount.amount)
        payment.waiting[self.capture] = 0


class Captured(Event):
    order: UUID
    capture: UUID
    amount: Money
    left: int  # authorised still, minor units

    def apply(self, payment: Payment) -> None:
        payment.captures[self.capture] = Operation(self.amount.amount, "done")
        payment.waiting.pop(self.capture, None)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [] if self.left else [Cancel("expire")]


class CaptureFailed(Event):
    order: UUID
    capture: UUID
    amount: Money
    code: str
    reason: str

    def apply(self, payment: Payment) -> None:
        payment.captures[self.capture] = Operation(self.amount.amount, "failed")
        payment.waiting.pop(self.capture, None)


class VoidRequested(Event):
    order: UUID
    cause: Literal["asked", "expired"]

    def apply(self, payment: Payment) -> None:
        payment.voiding = True
        payment.waiting[payment.void_id] = 0


class Voided(Event):
    order: UUID
    transaction: str  # empty: the gateway had never heard of it, and has closed its reference

    def apply(self, payment: Payment) -> None:
        payment.authorisation, payment.url, payment.expires_at = "voided", "", None
        payment.transaction = self.transaction
        payment.waiting.pop(self.id, None)
        payment.waiting.pop(payment.void_id, None)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


class RefundRequested(Event):
    order: UUID
    refund: UUID
    amount: Money

    def apply(self, payment: Payment) -> None:
        payment.refunds[self.refund] = Operation(self.amount.amount)
        payment.waiting[self.refund] = 0


class Refunded(Event):
    order: UUID
    refund: UUID
    amount: Money

    def apply(self, payment: Payment) -> None:
        payment.refunds[self.refund] = Operation(self.amount.amount, "done")
        payment.waiting.pop(self.refund, None)


class RefundFailed(Event):
    order: UUID
    refund: UUID
    amount: Money
    code: str
    reason: str

    def apply(self, payment: Payment) -> None:
        payment.refunds[self.refund] = Operation(self.amount.amount, "failed")
        payment.waiting.pop(self.refund, None)


class Unresolved(Event):
    """Whether the gateway did it is not known: it is asked at `ask_at`."""

    order: UUID
    intent: UUID  # the payment, capture or refund, or `void_id`
    times: int
    reason: str
    ask_at: datetime

    def apply(self, payment: Payment) -> None:
        payment.waiting[self.intent] = self.times

    def timers(self) -> Iterable[Timer | Cancel]:
        from aggregates.payment import Payment

        return [Timer(f"ask:{self.intent}", self.ask_at, Payment.ask, (str(self.intent), self.times))]


class Asked(Event):
    order: UUID
    intent: UUID
    times: int

    def apply(self, payment: Payment) -> None:
        """Only the gateway's answer changes anything."""


def _expiry(at: datetime) -> Timer:
    from aggregates.payment import Payment

    return Timer("expire", at, Payment.expire)
