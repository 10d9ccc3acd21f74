"""Reconciliation: what a settlement report and we do not agree in, and the day that it is about."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given as for_all
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.payment import (
    Compared,
    DayOpened,
    Difference,
    DifferenceFound,
    Reconciliation,
    ReportDue,
    ReportMissing,
)
from aggregates.payment.reconciliation import AGAIN, DUE, LISTED_MAX
from streams.gateways.settlement import EDGE, Done, Settled, compare
from streams.gateways.test import rows_of
from tests.kernel import fact, given

DAY = date(2026, 11, 24)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)


def ours(**more: Any) -> Done:
    return replace(Done("capture", uuid4(), uuid4(), 1000, "EUR", 39, NOON), **more)


def theirs(one: Done, **more: Any) -> Settled:
    return replace(
        Settled("set_1", one.kind, one.payment, one.operation, one.amount, one.currency, one.fee, one.at), **more
    )


def kinds(known: list[Done], rows: list[Settled], **more: Any) -> list[str]:
    return [one.kind for one in compare(DAY, known, rows, **more)[1]]


def test_what_agrees_is_no_difference() -> None:
    one, two = ours(), ours(kind="refund", fee=None)
    assert compare(DAY, [one, two], [theirs(two), theirs(one)]) == (2, [])
    assert kinds([ours(fee=None)], []) == ["missing_there"]
    assert kinds([one], [theirs(one, fee=None)]) == kinds([ours(fee=None)][:0], []) == []


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"amount": 1001}, "amount"), ({"currency": "USD"}, "currency"), ({"fee": 40}, "fee"),
        ({"operation": UUID(int=1)}, "missing_here"), ({"payment": UUID(int=1)}, "missing_here"), ({"kind": "refund"}, "missing_here"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(wrong: dict[str, Any], kind: str) -> None:
    one = ours()
    found = compare(DAY, [one], [theirs(one, **wrong)])
    assert found[0] == 0 and [d.kind for d in found[1]] == (
        [kind] if kind != "missing_here" else [kind, "missing_there"]
    )
    told = found[1][0]
    assert told.row == "set_1" and told.theirs.startswith(wrong.get("kind", "capture"))
    assert told.ours == ("" if kind == "missing_here" else "capture of 1000 EUR, fee 39, 2026-11-24 12:00 UTC")


def test_a_row_twice_is_a_duplicate() -> None:
    one = ours()
    assert kinds([one], [theirs(one), theirs(one, id="set_2")]) == ["duplicate"]
    two = ours(
        payment=one.payment
    )  # without our reference of the operation two captures are told apart by there being two
    without = [theirs(one, operation=None), theirs(two, operation=None)]
    assert kinds([one, two], without) == []
    assert kinds([one, two], [*without, without[0]]) == ["duplicate"]
    assert kinds([one], [theirs(one, operation=None, amount=7)]) == ["amount"]


def test_late_is_what_lies_across_the_edge_of_the_day() -> None:
    for at, kind in ((MIDNIGHT - EDGE, "late"), (MIDNIGHT - EDGE - timedelta(seconds=1), "missing_there")):
        assert kinds([ours(at=at)], []) == [kind]
    before = ours(at=datetime(2026, 11, 23, 23, 30, tzinfo=UTC))
    assert kinds([before], [theirs(before)]) == ["late"]  # reported a day after ours
    assert kinds([before], []) == []  # another day's affair
    key = before.payment, before.operation
    assert kinds([before], [], awaited=[key]) == ["missing_there"]  # it was to be in this one
    assert kinds([before], [theirs(before)], awaited=[key]) == ["late"]


@for_all(st.data())
@hypothesis(deadline=None)
def test_every_fault_is_found_and_nothing_else(data: st.DataObject) -> None:
    known = [ours() for _ in range(data.draw(st.integers(0, 8)))]
    rows, expected = [], Counter[str]()
    for one in known:
        fault = data.draw(st.sampled_from(["", "", "omitted", "doubled", "amount", "currency", "fee", "unknown"]))
        row = theirs(one, id=str(uuid4()))
        match fault:
            case "omitted":
                expected["missing_there"] += 1
                continue
            case "doubled":
                rows.append(row)
                expected["duplicate"] += 1
            case "amount":
                row = replace(row, amount=row.amount + 1)
            case "currency":
                row = replace(row, currency="USD", amount=row.amount + 1)
            case "fee":
                row = replace(row, fee=0)
            case "unknown":
                row = replace(row, operation=uuid4())
                expected += Counter({"missing_here": 1, "missing_there": 1})
        if fault in ("amount", "currency", "fee"):
            expected[fault] += 1
        rows.append(row)
    shuffled = data.draw(st.permutations(rows))
    agree, found = compare(DAY, known, shuffled)
    assert Counter(one.kind for one in found) == +expected
    assert agree == sum(1 for one in known for row in rows if theirs(one, id=row.id) == row) - expected["duplicate"]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("kind", "fee"),
        ("payment", "1"),
        ("amount", "-1"),
        ("amount", "1.5"),
        ("fee", "x"),
        ("at", "2026-11-24"),
        ("operation", "x"),
    ],
)
def test_a_report_that_cannot_be_read_says_where(column: str, value: str) -> None:
    line = {
        "id": "set_1", "kind": "capture", "payment": str(uuid4()), "operation": "", "amount": "1", "currency": "EUR", "fee": "",
        "at": NOON.isoformat(),
    }  # fmt: skip
    head = ",".join(line)

    def written(one: dict[str, str]) -> bytes:
        return f"{head}\n{','.join(one.values())}\n".encode()

    [row] = rows_of(written(line))
    assert (row.operation, row.fee, row.at) == (None, None, NOON)
    with pytest.raises(ValueError, match=f"row 2, {column}"):
        rows_of(written({**line, column: value}))
    with pytest.raises(ValueError, match="the columns are not"):
        rows_of(b"id,kind\n")


OPENED = fact(DayOpened, gateway="test", day="2026-11-24")
FOUND = Difference("amount", uuid4(), uuid4(), "set_1", "1", "2")
LATE = Difference("late", uuid4(), uuid4(), "", "capture", "")


def compared(found: int, agree: int = 3, report: str = "aa") -> Any:
    return fact(Compared, report=report, rows=4, agree=agree, differences=found, listed=min(found, LISTED_MAX))


def test_a_day_is_compared_once_it_is_over() -> None:
    given(Reconciliation).opening(Reconciliation, "test", "2026-11-24").then(OPENED)
    opened = given(Reconciliation, OPENED)
    assert [timer.due for timer in opened.events[0].timers()] == [MIDNIGHT + DUE]  # type: ignore[union-attr]
    opened.when(Reconciliation.compared, "aa", 4, 3, [], MIDNIGHT - timedelta(seconds=1)).refused("the day is not over")
    opened.when(Reconciliation.compared, "aa", 4, 3, [FOUND], MIDNIGHT).then(
        compared(1), fact(DifferenceFound, run=1, difference=FOUND)
    )
    many = [replace(FOUND, row=str(n)) for n in range(LISTED_MAX + 1)]
    assert len(opened.when(Reconciliation.compared, "aa", 4, 3, many, MIDNIGHT).facts) == LISTED_MAX + 1
    done = given(Reconciliation, OPENED, compared(1), fact(DifferenceFound, run=1, difference=FOUND))
    done.when(Reconciliation.compared, "aa", 4, 3, [FOUND], MIDNIGHT).nothing()
    done.when(Reconciliation.compared, "bb", 4, 4, [], MIDNIGHT).then(compared(0, 4, "bb"))
    done.when(Reconciliation.fall_due).nothing()
    done.when(Reconciliation.report_missing, "no", MIDNIGHT).nothing()
    late = given(Reconciliation, OPENED, compared(1), fact(DifferenceFound, run=1, difference=LATE))
    assert late.state.awaited == [(LATE.payment, LATE.operation)]


def test_a_report_that_is_missing_is_asked_for_again() -> None:
    due = fact(ReportDue, gateway="test", day="2026-11-24")
    given(Reconciliation, OPENED).when(Reconciliation.fall_due).then(due)
    missing = fact(ReportMissing, reason="no answer", again_at=MIDNIGHT + AGAIN)
    given(Reconciliation, OPENED, due).when(Reconciliation.report_missing, "no answer", MIDNIGHT).then(missing)
    again = given(Reconciliation, OPENED, due, missing)
    assert [timer.due for timer in again.events[2].timers()] == [MIDNIGHT + AGAIN]  # type: ignore[union-attr]
    again.when(Reconciliation.fall_due).then(due)
