"""What a gateway's report of a day's settlement says, row by row, and what of it does not agree with us. Pure.

A row and one of our captures or refunds belong together by our references, whatever day either is dated. A report is held against us
together with those of the days before: so what settles a few days later agrees on the day on which it does, what is in two reports is
found, and what is in none is missing on one day alone, the one on which its time is up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, Protocol, runtime_checkable
from uuid import UUID

from aggregates.payment import Difference

__all__ = ["EDGE", "FOREIGN", "Done", "NoReport", "Settled", "Settles", "compare", "day_of", "days_before"]

Ours = Literal["capture", "capture reversed", "refund", "refund reversed"]
Kind = Literal[Ours, "chargeback", "chargeback reversed", "other"]
REVERSAL: Mapping[str, str] = {
    "capture": "capture reversed", "refund": "refund reversed", "capture reversed": "capture", "refund reversed": "refund",
}  # fmt: skip
"""What takes something of ours back, and what that takes back."""
EDGE = timedelta(hours=2)  # what we date so close to midnight may be in the report of the next day

FOREIGN = UUID(int=0)  # the operation of what was done by others, as by hand at the gateway

Key = tuple[UUID, UUID, str]  # payment, operation and kind


class NoReport(Exception):
    """There is no report of that day, or not yet. `str` is a sentence."""


@dataclass(frozen=True, slots=True)
class Settled:
    """One movement of a report. `id`: the gateway's own of it; `payment`: None when it is not of one of ours; `operation`: our reference
    of capture or refund, None when the report has the payment's alone, or `FOREIGN`. Amounts are in minor units, positive unless the kind is `other`;
    None when the report has none in the payment's currency, as `fee` is."""

    id: str
    kind: Kind
    payment: UUID | None
    operation: UUID | None
    amount: int | None
    currency: str
    fee: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """One of our captures or refunds, done at the gateway as we know, or taken back by it. `fee`: by its terms; None when they say
    nothing. Without `certain` we never heard that it was done: it need not be in a report, but may."""

    kind: Ours
    payment: UUID
    operation: UUID
    amount: int
    currency: str
    fee: int | None
    at: datetime
    certain: bool = True


@runtime_checkable
class Settles(Protocol):
    """A gateway that reports what it settled. `within`: how long after we know of it something may be in none of its reports yet."""

    @property
    def within(self) -> timedelta: ...

    async def settlement(self, day: date) -> bytes:
        """The report of one day as the gateway hands it out. Raises `Unknown`, or `NoReport`."""

    def settled(self, report: bytes) -> Sequence[Settled]:
        """Reads one. Raises `ValueError` naming row and column."""


def compare(
    day: date,
    ours: Iterable[Done],
    theirs: Sequence[Settled],
    earlier: Iterable[Settled] = (),
    within: timedelta = EDGE,
) -> tuple[int, list[Difference]]:
    """(rows that agree, differences) of the report of a day.

    `ours`: all whose time is up on that day, and whatever else the rows name. `earlier`: rows of the reports of `days_before`.
    """
    known = {_key(one): one for one in ours}
    seen: set[Key] = set()
    exact = {(one.payment, one.kind, one.amount) for one in known.values()}

    def in_turn(rows: Iterable[Settled]) -> list[Settled]:
        """A row that can only be about something of another amount comes last, to take what is left."""
        return sorted(rows, key=lambda row: (row.payment, row.kind, row.amount) not in exact)

    for row in in_turn(earlier):
        if (one := _ours(row, known, seen)) is not None:
            seen.add(_key(one))
    first = datetime.combine(day, time(), UTC)
    found: list[Difference] = []
    agree = 0
    for row in in_turn(theirs):
        one = _ours(row, known, seen)
        if one is None:
            found.append(_difference("missing_here", row.payment, row.operation, row))
            continue
        key = _key(one)
        if key in seen:
            found.append(_difference("duplicate", one.payment, one.operation, row, one))
            continue
        seen.add(key)
        wrong: list[Literal["currency", "amount", "fee", "late"]] = []
        if row.currency != one.currency:
            wrong.append("currency")
        elif row.amount is not None and row.amount != one.amount:
            wrong.append("amount")
        elif row.fee is not None and one.fee is not None and row.fee != one.fee:
            wrong.append("fee")
        if one.at + within < first:
            wrong.append("late")
        found += [_difference(kind, one.payment, one.operation, row, one) for kind in wrong]
        agree += not wrong
    looked_at = datetime.combine(min([*days_before(day, within), day]), time(), UTC)
    for key, one in known.items():
        if key in seen or not one.certain or day_of(one.at + within) != day:
            continue
        other = known.get((one.payment, one.operation, REVERSAL[one.kind]))
        never_booked = other is not None and _key(other) not in seen and min(one.at, other.at) >= looked_at
        if (
            not never_booked
        ):  # what was done and taken back before a gateway came to settle it may be in none of its reports
            found.append(_difference("missing_there", one.payment, one.operation, None, one))
    return agree, found


def days_before(day: date, within: timedelta) -> list[date]:
    """The days whose reports may have what is to be settled by `day`, the earliest first."""
    first = day_of(datetime.combine(day, time(), UTC) - within)
    return [first + timedelta(days=n) for n in range((day - first).days)]


def day_of(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _key(one: Done) -> Key:
    return one.payment, one.operation, one.kind


def _ours(row: Settled, known: Mapping[Key, Done], seen: set[Key]) -> Done | None:
    """What of ours a row is about. One without the operation is about one of its kind: rather of its amount, rather one that no row is
    about yet, rather of its time."""
    if row.payment is None:
        return None
    if row.operation is not None:
        return known.get((row.payment, row.operation, row.kind))
    fits = [one for one in known.values() if (one.payment, one.kind) == (row.payment, row.kind)]
    fits.sort(key=lambda one: (one.amount != row.amount, _key(one) in seen, abs(one.at - row.at), one.at))
    return fits[0] if fits else None


def _difference(
    kind: Literal["missing_here", "missing_there", "amount", "currency", "fee", "duplicate", "late"],
    payment: UUID | None,
    operation: UUID | None,
    row: Settled | None,
    one: Done | None = None,
) -> Difference:
    return Difference(
        kind=kind,
        payment=payment,
        operation=operation if operation != FOREIGN else None,
        row=row.id if row else "",
        ours=_said(one) if one else "",
        theirs=_said(row) if row else "",
    )


def _said(one: Settled | Done) -> str:
    amount = "an amount" if one.amount is None else one.amount
    fee = "" if one.fee is None else f", fee {one.fee}"
    return f"{one.kind} of {amount} {one.currency}{fee}, {one.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
