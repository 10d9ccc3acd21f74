"""Reconciliation: one day of one gateway, its settlement report held against what we know, and what does not agree.

It becomes due by itself once the day is over, and is tried again until there is a report. It can be repeated: the last one counts.
While there are differences, it is compared again a day later, until the result is the same: what a gateway tells late, agrees then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from aggregates.kernel import Aggregate, Cancel, Created, Event, Timer, event, require

Kind = Literal["missing_here", "missing_there", "amount", "currency", "fee", "duplicate", "late"]

DUE = timedelta(hours=6)  # after the day is over: the report is there then
AGAIN = timedelta(hours=1)  # the first time, then ever more rarely
AGAIN_MAX = timedelta(days=1)
LISTED_MAX = 1_000  # differences that are listed; all of them are counted
WORDS_MAX = 200


@dataclass(frozen=True, slots=True)
class Difference:
    """`payment`: None when the report's row is of none of ours; `row`: the gateway's own id of it; `ours` and `theirs`: what each says,
    empty when it says nothing."""

    kind: Kind
    payment: UUID | None
    operation: UUID | None
    row: str
    ours: str
    theirs: str


# What can happen. `apply` only records: it never refuses, so old events always load.
class DayOpened(Created):
    gateway: str
    day: str  # ISO 8601, UTC

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("due", over(date.fromisoformat(self.day)) + DUE, Reconciliation.fall_due)]


class ReportDue(Event):
    gateway: str
    day: str

    def apply(self, reconciliation: Reconciliation) -> None:
        reconciliation.tries += 1


class ReportMissing(Event):
    reason: str
    again_at: datetime

    def apply(self, reconciliation: Reconciliation) -> None:
        """It is asked for again."""

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("due", self.again_at, Reconciliation.fall_due)]


class Compared(Event):
    """`report`: SHA-256 of it, hexadecimal; `listed` of the `differences` follow, one event each."""

    report: str
    rows: int
    agree: int
    differences: int
    listed: int

    def apply(self, reconciliation: Reconciliation) -> None:
        reconciliation.report, reconciliation.agree, reconciliation.found = self.report, self.agree, []
        reconciliation.differences = self.differences
        reconciliation.runs += 1

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("due", self.at + AGAIN_MAX, Reconciliation.fall_due)] if self.differences else [Cancel("due")]


class DifferenceFound(Event):
    run: int
    difference: Difference

    def apply(self, reconciliation: Reconciliation) -> None:
        reconciliation.found.append(self.difference)


# What is allowed.
class Reconciliation(Aggregate):
    """`found`: what the last comparison lists of its `differences`."""

    @event(DayOpened)
    def __init__(self, gateway: str, day: str) -> None:
        self.gateway, self.day = gateway, day
        self.tries, self.runs = 0, 0
        self.report, self.agree, self.differences = "", 0, 0
        self.found: list[Difference] = []

    @staticmethod
    def id_of(gateway: str, day: date) -> UUID:
        return uuid5(NAMESPACE_URL, f"titan:reconciliation:{gateway}:{day.isoformat()}")

    def fall_due(self) -> None:
        """The timer's: the report is to be fetched."""
        if not self.runs or self.differences:
            self.trigger_event(ReportDue, gateway=self.gateway, day=self.day)

    def report_missing(self, reason: str, now: datetime) -> None:
        if not self.runs:
            pause = min(AGAIN * max(self.tries, 1), AGAIN_MAX)
            self.trigger_event(ReportMissing, reason=reason[:WORDS_MAX], again_at=now + pause)

    def compared(self, report: str, rows: int, agree: int, found: Sequence[Difference], now: datetime) -> None:
        """The same result again is no news."""
        require(over(date.fromisoformat(self.day)) <= now, "the day is not over")
        listed = list(found[:LISTED_MAX])
        if self.runs and (report, agree, len(found), listed) == (self.report, self.agree, self.differences, self.found):
            return
        self.trigger_event(Compared, report=report, rows=rows, agree=agree, differences=len(found), listed=len(listed))
        for difference in listed:
            self.trigger_event(DifferenceFound, run=self.runs, difference=difference)

    def check(self) -> None:
        assert len(self.found) <= LISTED_MAX


def over(day: date) -> datetime:
    """When a day is over, UTC."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)
