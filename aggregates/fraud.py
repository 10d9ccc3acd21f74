"""Fraud: a case is what one rule says of one event, and what a person makes of it.

The rule may change its mind, when a late event comes into its window; a person's verdict is final, and stands whatever the rule says.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from aggregates.kernel import Aggregate, Created, Event, event, require
from schemas import Sealed

SCORE_MAX = 100

Verdict = Literal["open", "confirmed", "dismissed"]


# What can happen. `apply` only records: it never refuses, so old events always load.
class Raised(Created):
    rule: str
    rule_version: int
    subject: UUID  # the account, order or payment suspected
    score: int
    why: str
    cause: UUID  # the event's id, its type, and the aggregate that it happened to
    cause_type: str
    cause_of: UUID
    happened_at: datetime
    revision: int


class Revised(Event):
    rule: str
    rule_version: int
    subject: UUID
    score: int
    why: str
    revision: int

    def apply(self, case: Case) -> None:
        case.subject, case.score, case.why = self.subject, self.score, self.why
        case.stands, case.revision = True, self.revision


class Withdrawn(Event):
    rule: str
    rule_version: int
    revision: int

    def apply(self, case: Case) -> None:
        case.stands, case.revision = False, self.revision


class Confirmed(Event):
    rule: str
    rule_version: int
    reason: str
    because: Sealed | None  # what somebody typed, sealed for the one suspected; older events have it as `reason`

    def apply(self, case: Case) -> None:
        case.verdict = "confirmed"


class Dismissed(Event):
    rule: str
    rule_version: int
    reason: str
    because: Sealed | None  # what somebody typed, sealed for the one suspected; older events have it as `reason`

    def apply(self, case: Case) -> None:
        case.verdict = "dismissed"


# What is allowed.
class Case(Aggregate):
    """`stands`: whether the rule says so still. `revision`: of the rule's word, which comes in any order and more than once."""

    snapshot_every = 0

    @event(Raised)
    def __init__(
        self,
        rule: str,
        rule_version: int,
        subject: UUID,
        score: int,
        why: str,
        cause: UUID,
        cause_type: str,
        cause_of: UUID,
        happened_at: datetime,
        revision: int,
    ) -> None:
        self.rule, self.rule_version, self.subject = rule, rule_version, subject
        self.score, self.why, self.revision = score, why, revision
        self.cause, self.cause_type, self.cause_of, self.happened_at = cause, cause_type, cause_of, happened_at
        self.stands = True
        self.verdict: Verdict = "open"

    @staticmethod
    def id_of(rule: str, rule_version: int, cause: UUID) -> UUID:
        """A rule's version has one case of an event, whoever raises it and however often."""
        return uuid5(NAMESPACE_URL, f"titan:fraud:{rule}@{rule_version}:{cause}")

    # What the rule says.
    def revise(self, subject: UUID, score: int, why: str, revision: int) -> None:
        if revision > self.revision:
            self.trigger_event(Revised, **self._said_by, subject=subject, score=score, why=why, revision=revision)

    def withdraw(self, revision: int) -> None:
        if revision > self.revision:
            self.trigger_event(Withdrawn, **self._said_by, revision=revision)

    # What a person says.
    def confirm(self, because: Sealed | None) -> None:
        """It is fraud."""
        if self.verdict != "confirmed":
            require(self.verdict == "open", "the case is dismissed already")
            self.trigger_event(Confirmed, **self._said_by, reason="", because=because)

    def dismiss(self, because: Sealed | None) -> None:
        """It is no fraud."""
        if self.verdict != "dismissed":
            require(self.verdict == "open", "the case is confirmed already")
            self.trigger_event(Dismissed, **self._said_by, reason="", because=because)

    @property
    def _said_by(self) -> dict[str, Any]:
        """Which rule the case is of, so that every event of it can be counted by rule."""
        return {"rule": self.rule, "rule_version": self.rule_version}

    def check(self) -> None:
        assert 1 <= self.score <= SCORE_MAX
        assert self.revision >= 1
