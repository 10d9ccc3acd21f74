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
    gateway: str  # the only one that may take it; empty: the rules of routing say which
    country: str | None

    def __post_init__(self) -> None:  # history is read past this: it holds for new payments only
        payable(self.amount)
        payment_token(self.method)


class Routed(Event):
    """Stored before the gateway is asked for the first time."""

    order: UUID
    gateway: str
    reason: str

    def apply(self, payment: Payment) -> None:
        payment.gateway = self.gateway


class Leaving(Event):
    order: UUID
    gateway: str
    reason: str

    def apply(self, payment: Payment) -> None:
        payment.leaving = True


class Left(Event):
    order: UUID
    gateway: str
    reason: str
    closed: bool

    def apply(self, payment: Payment) -> None:
        payment.gateway, payment.leaving = "", False
        payment.left = (*payment.left, self.gateway)
        payment.waiting[self.id] = 0
        if not self.closed:
            payment.closing[payment.close_id_of(self.id, self.gateway)] = self.gateway
            payment.waiting[payment.close_id_of(self.id, self.gateway)] = 0


class Closed(Event):
    order: UUID
    gateway: str

    def apply(self, payment: Payment) -> None:
        intent = payment.close_id_of(self.id, self.gateway)
        payment.closing.pop(intent, None)
        payment.waiting.pop(intent, None)


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
        payment.leaving = False
        payment.waiting.pop(self.id, None)
        payment.waiting.pop(payment.void_id, None)

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
    accepted: bool  # at first, so that the gateway's word that it was done may come after this

    def apply(self, payment: Payment) -> None:
        payment.captures[self.capture] = Operation(self.amount.amount, "reversed" if self.accepted else "failed")
        payment.waiting.pop(self.capture, None)


class CaptureReversed(Event):
    """It was done, and the money has been taken from us again."""

    order: UUID
    capture: UUID
    amount: Money
    code: str
    reason: str
    expires_at: datetime | None  # of what is authorised; None: nothing is

    def apply(self, payment: Payment) -> None:
        payment.captures[self.capture] = Operation(self.amount.amount, "reversed")

    def timers(self) -> Iterable[Timer | Cancel]:
        return [_expiry(self.expires_at)] if self.expires_at else []


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
        payment.leaving = False
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
    accepted: bool  # at first, so that the gateway's word that it was done may come after this

    def apply(self, payment: Payment) -> None:
        payment.refunds[self.refund] = Operation(self.amount.amount, "reversed" if self.accepted else "failed")
        payment.waiting.pop(self.refund, None)


class RefundReversed(Event):
    """It was done, and the money has come back to us: the customer does not have it."""

    order: UUID
    refund: UUID
    amount: Money
    code: str
    reason: str

    def apply(self, payment: Payment) -> None:
        payment.refunds[self.refund] = Operation(self.amount.amount, "reversed")


class Unresolved(Event):
    """Whether the gateway did it is not known: it is asked at `ask_at`."""

    order: UUID
    intent: UUID  # the payment, capture or refund, `void_id`, or one of `closing`
    times: int
    reason: str
    ask_at: datetime
    gateway: str | None  # one that was left and is to close our reference

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
