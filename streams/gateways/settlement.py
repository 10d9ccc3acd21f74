"""What a gateway's report of a day's settlement says, row by row, and what of it does not agree with us. Pure.

A row and one of our captures or refunds belong together by our references, whatever day either is dated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal, Protocol, runtime_checkable
from uuid import UUID

from aggregates.payment import Difference

__all__ = ["EDGE", "Done", "Settled", "Settles", "compare", "day_of"]

Kind = Literal["capture", "refund"]
EDGE = timedelta(hours=2)  # what we date so close to midnight may be in the report of the next day

Key = tuple[UUID, UUID]  # payment and operation


@dataclass(frozen=True, slots=True)
class Settled:
    """One movement of a report. `id`: the gateway's own of it; `operation`: our reference of capture or refund, None when the report has
    the payment's alone. Amounts are positive, in minor units; `fee` is None when the report has none."""

    id: str
    kind: Kind
    payment: UUID
    operation: UUID | None
    amount: int
    currency: str
    fee: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Done:
    """One of our captures or refunds, done at the gateway as we know. `fee`: by its terms; None when they say nothing."""

    kind: Kind
    payment: UUID
    operation: UUID
    amount: int
    currency: str
    fee: int | None
    at: datetime


@runtime_checkable
class Settles(Protocol):
    """A gateway that reports what it settled."""

    async def settlement(self, day: date) -> bytes:
        """The report of one day, UTC, as the gateway hands it out. Raises `Unknown`."""

    def settled(self, report: bytes) -> Sequence[Settled]:
        """Reads one. Raises `ValueError` naming row and column."""


def compare(
    day: date, ours: Iterable[Done], theirs: Sequence[Settled], awaited: Iterable[Key] = ()
) -> tuple[int, list[Difference]]:
    """(rows that agree, differences) of the report of a day.

    `ours`: what we did on that day, and whatever else `theirs` names. `awaited`: what was late in the report of the day before.
    """
    known = {(one.payment, one.operation): one for one in ours}
    seen: dict[Key, Settled] = {}
    found: list[Difference] = []
    agree = 0
    for row in theirs:
        one = _ours(row, known, seen)
        if one is None:
            found.append(_difference("missing_here", row.payment, row.operation, row))
            continue
        key = one.payment, one.operation
        if key in seen:
            found.append(_difference("duplicate", *key, row, one))
            continue
        seen[key] = row
        wrong: list[Literal["currency", "amount", "fee", "late"]] = []
        if row.currency != one.currency:
            wrong.append("currency")
        elif row.amount != one.amount:
            wrong.append("amount")
        elif row.fee is not None and one.fee is not None and row.fee != one.fee:
            wrong.append("fee")
        if day_of(one.at) != day:
            wrong.append("late")
        found += [_difference(kind, *key, row, one) for kind in wrong]
        agree += not wrong
    waited = set(awaited)
    for key, one in known.items():
        if key in seen or (day_of(one.at) != day and key not in waited):
            continue
        late = key not in waited and one.at >= datetime.combine(day, time(), UTC) + timedelta(days=1) - EDGE
        found.append(_difference("late" if late else "missing_there", *key, None, one))
    return agree, found


def day_of(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _ours(row: Settled, known: Mapping[Key, Done], seen: Mapping[Key, Settled]) -> Done | None:
    """What of ours a row is about. One without the operation is about one of its kind, rather of its amount, that no row is about yet."""
    if row.operation is not None:
        one = known.get((row.payment, row.operation))
        return one if one is not None and one.kind == row.kind else None
    fits = [one for one in known.values() if (one.payment, one.kind) == (row.payment, row.kind)]
    fits.sort(key=lambda one: ((one.payment, one.operation) in seen, one.amount != row.amount, one.at))
    return fits[0] if fits else None


def _difference(
    kind: Literal["missing_here", "missing_there", "amount", "currency", "fee", "duplicate", "late"],
    payment: UUID,
    operation: UUID | None,
    row: Settled | None,
    one: Done | None = None,
) -> Difference:
    return Difference(
        kind=kind,
        payment=payment,
        operation=operation,
        row=row.id if row else "",
        ours=_said(one) if one else "",
        theirs=_said(row) if row else "",
    )


def _said(one: Settled | Done) -> str:
    fee = "" if one.fee is None else f", fee {one.fee}"
    return f"{one.kind} of {one.amount} {one.currency}{fee}, {one.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
