"""Payment: the money of one order at a gateway, authorised, captured and refunded. Amounts are integer minor units.

What a gateway is to do is an intent event first (`Requested`, `CaptureRequested`, `VoidRequested`, `RefundRequested`), carried out
by `streams/payment.py` under our own reference: the payment's, capture's or refund's id. What came of it is recorded once,
whichever of answer, webhook and look-up tells it first, and in any order. What a gateway has accepted may fail days later, even once
it was done (`CaptureReversed`, `RefundReversed`): that is its last word, and counts whenever its earlier one arrives.

Which gateway is in charge is written down (`Routed`) before it is asked. It is left for another one while nothing is held, and only
when it certainly has not carried out what it was asked: it was not reached, or it has closed our reference (`Leaving`, `Left`). One
that was not reached is told to close it, too, as soon as it is (`Closed`): a request of a process that was stopped may come late.
"""

from __future__ import annotations

from copy import copy
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from aggregates.kernel import Aggregate, Money, event, require
from aggregates.kernel.money import payable
from aggregates.payment.events import (
    ActionRequired,
    Asked,
    Authorised,
    Captured,
    CaptureFailed,
    CaptureRequested,
    CaptureReversed,
    Closed,
    Declined,
    Leaving,
    Left,
    Refunded,
    RefundFailed,
    RefundRequested,
    RefundReversed,
    Requested,
    Routed,
    Unresolved,
    Voided,
    VoidRequested,
)
from aggregates.payment.methods import (
    ALL,
    METHODS_MAX,
    AttachDeclined,
    AttachRequested,
    Brand,
    Detached,
    Method,
    MethodPreferred,
    MethodRemoved,
    Methods,
    MethodSaved,
    MethodsForgotten,
    MethodsKept,
)
from aggregates.payment.parts import Authorisation, Operation, State, total
from aggregates.payment.reconciliation import (
    Compared,
    DayOpened,
    Difference,
    DifferenceFound,
    Reconciliation,
    ReportDue,
    ReportMissing,
)

__all__ = [
    "NOT_COVERED",
    "Compared",
    "DayOpened",
    "Difference",
    "DifferenceFound",
    "Reconciliation",
    "ReportDue",
    "ReportMissing",
    "ALL",
    "METHODS_MAX",
    "AttachDeclined",
    "AttachRequested",
    "Brand",
    "Detached",
    "Method",
    "MethodPreferred",
    "MethodRemoved",
    "MethodSaved",
    "Methods",
    "MethodsForgotten",
    "MethodsKept",
    "ActionRequired",
    "Asked",
    "Authorisation",
    "Authorised",
    "CaptureFailed",
    "CaptureRequested",
    "CaptureReversed",
    "Captured",
    "Closed",
    "Declined",
    "Leaving",
    "Left",
    "Operation",
    "Payment",
    "RefundFailed",
    "RefundRequested",
    "RefundReversed",
    "Refunded",
    "Requested",
    "Routed",
    "State",
    "Unresolved",
    "VoidRequested",
    "Voided",
    "total",
]

NOT_COVERED = (
    "not_covered"  # code of a refund that failed and that the payment itself has not enough for: nobody is owed it
)
OPERATIONS_MAX = 100  # captures, and refunds, of one payment
ASK_FIRST, ASK_LAST = timedelta(seconds=1), timedelta(minutes=15)  # an unknown outcome is asked for, ever more rarely
WORDS_MAX = 200  # characters kept of what a gateway says


class Payment(Aggregate):
    """`captures` and `refunds` by our reference; `waiting` holds the intents without an outcome, and how often they had none.

    `gateway`: the one in charge, empty while there is none; `left`: those that were, `closing` of them those that were not reached, by
    the intent that they close our reference. A `pinned` one, the only one that knows the method, is never left.
    """

    snapshot_every = 0

    @event(Requested)
    def __init__(
        self, order: UUID, customer: UUID, amount: Money, method: str, gateway: str = "", country: str | None = None
    ) -> None:
        self.order, self.customer, self.amount, self.method, self.gateway = order, customer, amount, method, gateway
        self.country, self.pinned = country, bool(gateway)
        self.left: tuple[str, ...] = ()
        self.leaving = False
        self.closing: dict[UUID, str] = {}
        self.authorisation: Authorisation = "requested"
        self.transaction, self.url = "", ""
        self.expires_at: datetime | None = None
        self.voiding = False
        self.captures: dict[UUID, Operation] = {}
        self.refunds: dict[UUID, Operation] = {}
        self.waiting: dict[UUID, int] = {self.id: 0}

    def capture(self, capture: UUID, amount: Money) -> None:
        """Take authorised money. Several, up to what is authorised."""
        if not self._new("capture", self.captures, capture, amount):
            return
        require(self.authorisation == "authorised", f"a payment that is {self.authorisation} cannot be captured")
        require(not self.voiding, "the payment is being voided")
        left = self.amount.amount - total(self.captures, "asked", "done")
        require(amount.amount <= left, f"{amount.amount} is more than the {left} left of what is authorised")
        self.trigger_event(CaptureRequested, order=self.order, capture=capture, amount=amount)

    def void(self) -> None:
        """Give back what is authorised and not captured. Told before the gateway was, it never is authorised."""
        if self.voiding or self.authorisation in ("declined", "voided"):
            return
        require(not total(self.captures, "asked"), "a capture is under way: refund it when it is done")
        require(self.held or self.authorisation != "authorised", "all of it is captured: refund it")
        self.trigger_event(VoidRequested, order=self.order, cause="asked")

    def expire(self, now: datetime) -> None:
        """The authorisation, or the time to confirm it, has run out."""
        waits = self.authorisation == "action_required" or self.held > 0
        if waits and not self.voiding and self.expires_at is not None and now >= self.expires_at:
            self.trigger_event(VoidRequested, order=self.order, cause="expired")

    def refund(self, refund: UUID, amount: Money) -> None:
        """Give captured money back. Several, up to what is captured."""
        if not self._new("refund", self.refunds, refund, amount):
            return
        left = self.refundable
        require(amount.amount <= left, f"{amount.amount} is more than the {left} left of what is captured")
        self.trigger_event(RefundRequested, order=self.order, refund=refund, amount=amount)

    def give_back(self, refund: UUID, amount: Money) -> None:
        """`refund`, for who relies on what an order believes of the payment: more than is left has failed, and says so."""
        payable(amount)
        left = self.refundable
        if before := self.refunds.get(refund):
            require(before.amount == amount.amount, f"refund {refund} is of {before.amount}, not {amount.amount}")
        elif amount.currency == self.amount.currency and amount.amount <= left:
            self.refund(refund, amount)
        else:
            asked = f"{amount.amount} {amount.currency}"
            reason = f"{asked} is more than the {left} {self.amount.currency} left of what is captured"
            self.trigger_event(RefundRequested, order=self.order, refund=refund, amount=amount)
            self.trigger_event(
                RefundFailed,
                order=self.order,
                refund=refund,
                amount=amount,
                code=NOT_COVERED,
                reason=reason,
                accepted=False,
            )

    # Which gateway is in charge. Of two processes that see to one payment the second is refused, and does nothing.
    def route(self, gateway: str, reason: str) -> None:
        """This gateway is going to be asked, for the first time."""
        self._undecided("")
        require(gateway not in self.left, f"{gateway} has been left")
        self.trigger_event(Routed, order=self.order, gateway=gateway, reason=reason[:WORDS_MAX])

    def leave(self, gateway: str, reason: str) -> None:
        """It was not reached, and nobody had asked it before: another one may be asked."""
        self._undecided(gateway)
        self.trigger_event(Left, order=self.order, gateway=gateway, reason=reason[:WORDS_MAX], closed=False)

    def close(self, gateway: str, reason: str) -> None:
        """It has been asked, and says that it never was. `voided` from it is the end of it; another one may be asked then."""
        self._undecided(gateway)
        if not self.leaving:
            self.trigger_event(Leaving, order=self.order, gateway=gateway, reason=reason[:WORDS_MAX])

    def closed(self, gateway: str) -> None:
        """A gateway that was left has closed our reference."""
        if gateway in self.closing.values():
            self.trigger_event(Closed, order=self.order, gateway=gateway)

    def speaks(self, gateway: str) -> None:
        """Refuse what a gateway says that is not in charge. Told in one commit with it."""
        require(gateway == self.gateway, f"{gateway} is not in charge, but {self.gateway or 'no gateway'}")

    # What the gateway says. Said again it does nothing; two outcomes of one intent contradict each other and are refused.
    def action_required(self, url: str, expires_at: datetime) -> None:
        if self.authorisation == "requested" and not self.leaving:
            self.trigger_event(ActionRequired, order=self.order, url=url, expires_at=expires_at)

    def authorised(self, transaction: str, expires_at: datetime) -> None:
        if self.authorisation in ("authorised", "voided") and self.transaction == transaction:
            return
        if self.leaving and not self.voiding:
            return  # it was asked late, and has been told to close the reference: that gives the money back
        require(self.authorisation in ("requested", "action_required"), f"authorised, but it is {self.authorisation}")
        self.trigger_event(
            Authorised, order=self.order, amount=self.amount, transaction=transaction, expires_at=expires_at
        )

    def declined(self, code: str, reason: str) -> None:
        if self.authorisation != "declined":
            require(self.authorisation in ("requested", "action_required"), f"declined, but it is {self.authorisation}")
            self.trigger_event(Declined, order=self.order, code=code, reason=reason[:WORDS_MAX], customer=self.customer)

    def voided(self, transaction: str) -> None:
        if self.leaving and not self.voiding:
            reason = "it has closed our reference"
            self.trigger_event(Left, order=self.order, gateway=self.gateway, reason=reason, closed=True)
        elif self.authorisation != "voided":
            require(self.authorisation != "declined", "voided, but it is declined")
            self.trigger_event(Voided, order=self.order, transaction=transaction)

    def captured(self, capture: UUID, amount: Money) -> None:
        if self._outcome("capture", self.captures, capture, amount, "done"):
            left = self.held - amount.amount if self.authorisation == "authorised" else 0
            self.trigger_event(Captured, order=self.order, capture=capture, amount=amount, left=left)

    def capture_failed(self, capture: UUID, amount: Money, code: str, reason: str) -> None:
        if self._outcome("capture", self.captures, capture, amount, "failed"):
            self._capture_failed(capture, amount, code, reason, accepted=False)

    def capture_reversed(self, capture: UUID, amount: Money, code: str, reason: str) -> None:
        """It failed once it was accepted: as if it had never been made."""
        match self._state("capture", self.captures, capture, amount):
            case "asked":
                self._capture_failed(capture, amount, code, reason, accepted=True)
            case "done":
                self.trigger_event(
                    CaptureReversed,
                    order=self.order,
                    capture=capture,
                    amount=amount,
                    code=code,
                    reason=reason[:WORDS_MAX],
                    expires_at=self.expires_at if self.authorisation == "authorised" else None,
                )

    def refunded(self, refund: UUID, amount: Money) -> None:
        if self._outcome("refund", self.refunds, refund, amount, "done"):
            self.trigger_event(Refunded, order=self.order, refund=refund, amount=amount)

    def refund_failed(self, refund: UUID, amount: Money, code: str, reason: str) -> None:
        if self._outcome("refund", self.refunds, refund, amount, "failed"):
            self._refund_ended(RefundFailed, refund, amount, code, reason, accepted=False)

    def refund_reversed(self, refund: UUID, amount: Money, code: str, reason: str) -> None:
        """It failed once it was accepted: the money is with us, whatever was said before."""
        match self._state("refund", self.refunds, refund, amount):
            case "asked":
                self._refund_ended(RefundFailed, refund, amount, code, reason, accepted=True)
            case "done":
                self._refund_ended(RefundReversed, refund, amount, code, reason)

    def unresolved(self, intent: UUID, times: int, reason: str, now: datetime) -> None:
        """The gateway was asked, after `times` tries in vain, and the outcome is not known still."""
        if self.waiting.get(intent) == times:
            ask_at = now + min(ASK_FIRST * 2 ** min(times, 20), ASK_LAST)
            self.trigger_event(
                Unresolved,
                order=self.order,
                intent=intent,
                times=times + 1,
                reason=reason[:WORDS_MAX],
                ask_at=ask_at,
                gateway=self.closing.get(intent),
            )

    def ask(self, intent: str, times: int) -> None:
        """The timer's: look at the gateway what became of it."""
        if self.waiting.get(UUID(intent)) == times:
            self.trigger_event(Asked, order=self.order, intent=UUID(intent), times=times)

    @property
    def void_id(self) -> UUID:
        """The intent to void, beside captures and refunds in `waiting`."""
        return self.void_id_of(self.id)

    @staticmethod
    def void_id_of(payment: UUID) -> UUID:
        """The intent to void the payment of that id."""
        return uuid5(payment, "void")

    @staticmethod
    def close_id_of(payment: UUID, gateway: str) -> UUID:
        """The intent that a gateway which was left closes our reference to that payment."""
        return uuid5(payment, f"close {gateway}")

    def as_left(self) -> Payment:
        """The payment as a gateway that was left knows it: by our reference, if at all, and without operations."""
        seen = copy(self)
        seen.transaction, seen.url, seen.expires_at, seen.captures, seen.refunds = "", "", None, {}, {}
        return seen

    @property
    def taken(self) -> int:
        """Captured, minor units, whatever was refunded of it."""
        return total(self.captures, "done")

    @property
    def returned(self) -> int:
        """Refunded, minor units."""
        return total(self.refunds, "done")

    @property
    def refundable(self) -> int:
        """Captured, neither refunded nor about to be, minor units. Nothing when a capture was reversed that had been refunded."""
        return max(self.taken - total(self.refunds, "asked", "done"), 0)

    @property
    def held(self) -> int:
        """Authorised and not captured, minor units."""
        return self.amount.amount - self.taken if self.authorisation == "authorised" else 0

    def _undecided(self, gateway: str) -> None:
        require(self.gateway == gateway, f"{self.gateway or 'no gateway'} is in charge")
        require(not self.pinned, "no other gateway knows this method")
        require(self.authorisation == "requested" and not self.voiding, "there is nothing to be authorised any more")

    def _new(self, kind: str, known: dict[UUID, Operation], reference: UUID, amount: Money) -> bool:
        payable(amount)
        require(
            amount.currency == self.amount.currency, f"the payment is in {self.amount.currency}, not {amount.currency}"
        )
        if before := known.get(reference):
            require(before.amount == amount.amount, f"{kind} {reference} is of {before.amount}, not {amount.amount}")
            failed = before.state in ("failed", "reversed")
            require(not failed, f"{kind} {reference} has failed: try again under a new id")
            return False
        require(reference not in (self.id, self.void_id, *self.captures, *self.refunds), f"{reference} is in use here")
        require(len(known) < OPERATIONS_MAX, f"a payment has at most {OPERATIONS_MAX} {kind}s")
        return True

    def _outcome(self, kind: str, known: dict[UUID, Operation], reference: UUID, amount: Money, state: State) -> bool:
        """Whether it is the first word on it. An earlier word that arrives after the last one says nothing."""
        now = self._state(kind, known, reference, amount)
        require(now in ("asked", state, "reversed"), f"{state}, but {kind} {reference} is {now}")
        return now == "asked"

    def _state(self, kind: str, known: dict[UUID, Operation], reference: UUID, amount: Money) -> State:
        """Of what a gateway speaks of. Raises `Refused` for what was not asked of it."""
        require(reference in known, f"{kind} {reference} was not asked for")
        asked = Money(known[reference].amount, self.amount.currency)
        require(
            asked == amount, f"{kind} {reference} is of {asked.amount} {asked.currency}, not of what the gateway says"
        )
        return known[reference].state

    def _capture_failed(self, capture: UUID, amount: Money, code: str, reason: str, accepted: bool) -> None:
        self.trigger_event(
            CaptureFailed,
            order=self.order,
            capture=capture,
            amount=amount,
            code=code,
            reason=reason[:WORDS_MAX],
            accepted=accepted,
        )

    def _refund_ended(
        self,
        kind: type[RefundFailed | RefundReversed],
        refund: UUID,
        amount: Money,
        code: str,
        reason: str,
        **more: object,
    ) -> None:
        """The customer does not have it. Is it more than is captured still, it is nobody's: a capture was reversed, too."""
        if total(self.refunds, "asked", "done") > self.taken:
            code, reason = (
                NOT_COVERED,
                f"a capture was reversed, and {self.taken} are left of what is captured; {reason}",
            )
        self.trigger_event(
            kind, order=self.order, refund=refund, amount=amount, code=code, reason=reason[:WORDS_MAX], **more
        )

    def check(self) -> None:
        assert 0 <= self.taken <= self.amount.amount
        assert total(self.captures, "asked", "done") <= self.amount.amount
        assert total(self.refunds, "asked", "done") <= total(self.captures, "done", "reversed")
        assert not self.captures or self.authorisation in ("authorised", "voided")
        if self.authorisation in ("declined", "voided"):
            still = self.captures.keys() | self.refunds.keys() | self.closing.keys()
            assert self.waiting.keys() <= still, "settled, and asked for still"
        assert self.gateway not in self.left and self.closing.keys() <= self.waiting.keys()
