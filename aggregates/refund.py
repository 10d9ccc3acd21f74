"""Refund: pieces of an order, or money for it, are asked back; somebody decides; the saga in `streams/refund.py` gives it back.

What a refund takes is decided by its order (`Order.begin_refund`), which sees all of them; here is who asked, what the order allots,
what was decided, and how far it is. Money goes back to where it came from, or but for vouchers' to the customer's wallet: prepaid
value stays prepaid. What a card's bank does not take back goes to the wallet, and what a voucher can't take is store credit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID, uuid5

from aggregates.kernel import Cancel, Created, Event, Timer, event, process, require
from aggregates.kernel.money import LINES_MAX, Tender
from aggregates.kernel.process import Process, Progress, StepState
from aggregates.kernel.refunding import Return, Returned
from schemas import Sealed

Destination = Literal["original", "wallet"]
Against = Literal["rejected", "withdrawn", "lapsed"]

DECISION = timedelta(days=30)
"""A request that nobody decides lapses then: what it holds of the order is free again, and it can be asked for anew."""

SET_ASIDE, DECIDE = "set it aside", "have it decided"
TO_CARD, TO_VOUCHERS = "give back to the card", "give back to the vouchers"
"""Steps whose refusals mean something each: the order's, somebody's, and two for which later steps make up."""


# What can happen. `apply` only records: it never refuses, so old events always load.
class Requested(Created):
    """`because`: what somebody typed, sealed for the customer; older events have it as `reason`."""

    order: UUID
    customer: UUID
    asked: tuple[Return, ...]
    shipping: bool | None
    restock: bool
    destination: Destination
    reason: str
    because: Sealed | None
    window_days: int | None
    auto_max: int
    decide_by: datetime

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("lapse", self.decide_by, Refund.lapse)]


class Allotted(Event):
    """The order has set aside what the refund takes. `altogether`: with all earlier refunds of the order."""

    currency: str
    lines: tuple[Returned, ...]
    shipping: int
    amount: int
    tenders: tuple[Tender, ...]
    altogether: int

    def apply(self, refund: Refund) -> None:
        refund.currency, refund.lines, refund.tenders = self.currency, self.lines, self.tenders
        refund.amount = self.amount


class Approved(Event):
    """It is given back. `by` None: the amount is one that nobody needs to look at."""

    by: UUID | None
    restock: bool

    def apply(self, refund: Refund) -> None:
        refund.decision, refund.restock = "approved", self.restock

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("lapse")]


class Rejected(Event):
    """It is not given back: turned down, withdrawn by the customer, or nobody decided in time.

    `because`: what somebody typed, sealed for the customer; without it `reason` is ours, or of an event older than that.
    """

    how: Against
    by: UUID | None
    reason: str
    because: Sealed | None

    def apply(self, refund: Refund) -> None:
        refund.decision = self.how

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("lapse")]


class Withheld(Event):
    """The card's payment has not so much: it was never paid, or is back already. Nobody gets it until somebody has looked at it."""

    amount: int
    reason: str

    def apply(self, refund: Refund) -> None:
        refund.withheld = self.amount


class CardReversed(Event):
    """The bank has sent the card's part back after all: it is in the customer's wallet."""

    reason: str

    def apply(self, refund: Refund) -> None:
        refund.reversed = True


class StepBegun(process.StepBegun): ...


class StepDone(process.StepDone): ...


class StepRefused(process.StepRefused): ...


class StepOverdue(process.StepOverdue): ...


class StepUndone(process.StepUndone): ...


class StepFailed(process.StepFailed): ...


class StepRetried(process.StepRetried): ...


class Finished(process.Finished): ...


# What is allowed.
class Refund(Process):
    """`asked` nothing: all that is left. `window`: how long it may be asked for; None for ever. `amount` 0: not allotted yet.
    `withheld` of it: what the card's payment does not have, so that somebody has to look at it. `reversed`: the card had its part, and
    the bank has sent it back.
    """

    @event(Requested)
    def __init__(
        self,
        order: UUID,
        customer: UUID,
        asked: tuple[Return, ...],
        shipping: bool | None,
        restock: bool,
        destination: Destination,
        reason: str,
        because: Sealed | None,
        window_days: int | None,
        auto_max: int,
        decide_by: datetime,
    ) -> None:
        self.order, self.customer, self.asked, self.shipping = order, customer, asked, shipping
        self.restock, self.destination, self.auto_max, self.asked_at = (
            restock,
            destination,
            auto_max,
            decide_by - DECISION,
        )
        self.window = None if window_days is None else timedelta(days=window_days)
        self.decision: Literal["", "approved", "rejected", "withdrawn", "lapsed"] = ""
        self.currency, self.amount, self.withheld = "", 0, 0
        self.reversed = False
        self.lines: tuple[Returned, ...] = ()
        self.tenders: tuple[Tender, ...] = ()
        self.progress = Progress()

    @classmethod
    def request(
        cls,
        order: UUID,
        customer: UUID,
        asked: Sequence[Return],
        because: Sealed | None,
        now: datetime,
        shipping: bool | None = None,
        restock: bool = True,
        destination: Destination = "original",
        window_days: int | None = None,
        auto_max: int = 0,
    ) -> Refund:
        """Ask for a refund of a customer's order: approved by itself if all refunds of the order come to at most `auto_max`.

        `shipping`: whether it goes back; None: with the last piece of the order. `restock`: whether pieces that come back are sold again.
        """
        require(len(asked) <= LINES_MAX, f"a refund is of at most {LINES_MAX} lines")
        return cls(
            order=order,
            customer=customer,
            asked=tuple(asked),
            shipping=shipping,
            restock=restock,
            destination=destination,
            reason="",
            because=because,
            window_days=window_days,
            auto_max=auto_max,
            decide_by=now + DECISION,
        )

    def allot(
        self,
        currency: str,
        lines: tuple[Returned, ...],
        shipping: int,
        amount: int,
        tenders: tuple[Tender, ...],
        altogether: int,
    ) -> None:
        """The order says what the refund takes. It says so once, and of one that was turned down meanwhile nothing."""
        if self.amount or self.decision:
            return
        self.trigger_event(
            Allotted,
            currency=currency,
            lines=lines,
            shipping=shipping,
            amount=amount,
            tenders=tenders,
            altogether=altogether,
        )
        if altogether <= self.auto_max:
            self.trigger_event(Approved, by=None, restock=self.restock)

    def approve(self, by: UUID, restock: bool | None = None) -> None:
        """Have it given back. `restock`: whether the pieces are sold again, once they have been looked at."""
        if self.decision == "approved":
            return
        self._undecided()
        require(by != self.customer, "nobody approves a refund of their own")
        require(self.amount > 0, "the order has not said yet what there is to give back: look again in a moment")
        self.trigger_event(Approved, by=by, restock=self.restock if restock is None else restock)

    def reject(self, by: UUID, because: Sealed | None) -> None:
        """Turn it down."""
        if self.decision != "rejected":
            self._undecided()
            self.trigger_event(Rejected, how="rejected", by=by, reason="", because=because)

    def withdraw(self, by: UUID) -> None:
        """The customer does not want it any more."""
        if self.decision != "withdrawn":
            self._undecided()
            self.trigger_event(Rejected, how="withdrawn", by=by, reason="the customer has withdrawn it", because=None)

    def lapse(self) -> None:
        """The timer rings: nobody has decided."""
        if not self.decision and not self.progress.why:
            self.trigger_event(
                Rejected, how="lapsed", by=None, reason=f"nobody decided within {DECISION.days} days", because=None
            )

    def withhold(self, reason: str) -> None:
        """The card's payment has less than its part."""
        assert self.card is not None
        if not self.withheld:
            self.trigger_event(Withheld, amount=self.card.amount, reason=reason)

    def card_reversed(self, reason: str) -> None:
        """The customer's wallet has it now."""
        if not self.reversed:
            self.trigger_event(CardReversed, reason=reason)

    def _undecided(self) -> None:
        require(not self.decision, f"the refund is {self.decision}")
        require(not self.progress.why, f"the refund was refused: {self.progress.why}")

    # Where the money goes, as far as it is known.
    @property
    def card(self) -> Tender | None:
        """What a card is to get back."""
        if self.destination == "wallet":
            return None
        return next((part for part in self.tenders if part.kind == "card"), None)

    @property
    def to_wallet(self) -> int:
        """What the customer's wallet gets: what it paid, what was asked to go there, what the card's bank has refused."""
        own = sum(part.amount for part in self.tenders if part.kind == "wallet")
        cards = sum(part.amount for part in self.tenders if part.kind == "card")
        by_card = self.card and not self.refused(TO_CARD)
        return own + (0 if by_card else cards - self.withheld)

    @property
    def vouchers(self) -> tuple[Tender, ...]:
        """What vouchers are to get back."""
        return tuple(part for part in self.tenders if part.kind == "voucher")

    @property
    def to_credit(self) -> int:
        """What is store credit, since a voucher could not take it."""
        return sum(part.amount for part in self.vouchers) if self.refused(TO_VOUCHERS) else 0

    @property
    def credit(self) -> UUID:
        """The store credit's id."""
        return uuid5(self.id, "credit")

    @property
    def pieces(self) -> list[tuple[Returned, int]]:
        """What goes back on the shelf: all that comes back, or without `restock` what had not left."""
        counted = [(one, one.quantity if self.restock else one.unsent) for one in self.lines]
        return [(one, count) for one, count in counted if count]

    def refused(self, step: str) -> bool:
        return self.progress.steps.get(step) is StepState.REFUSED

    def check(self) -> None:
        super().check()
        assert self.amount == sum(part.amount for part in self.tenders)
        assert self.decision != "approved" or self.amount
