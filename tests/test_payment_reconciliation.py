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
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import Cancel, Timer
from aggregates.payment import (
    Compared,
    DayOpened,
    Difference,
    DifferenceFound,
    Reconciliation,
    ReportDue,
    ReportMissing,
)
from aggregates.payment.reconciliation import AGAIN, AGAIN_MAX, DUE, LISTED_MAX
from streams.gateways.settlement import EDGE, FOREIGN, Done, Settled, compare, day_of, days_before
from streams.gateways.test import rows_of
from tests.kernel import accepted, fact, given

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


def test_late_is_what_comes_after_its_time() -> None:
    end = MIDNIGHT - EDGE
    for at, found in ((end, []), (end - timedelta(seconds=1), ["missing_there"])):
        assert kinds([ours(at=at)], []) == found
    before = ours(at=datetime(2026, 11, 23, 23, 30, tzinfo=UTC))
    assert kinds([before], [theirs(before)]) == []  # reported a day after ours
    assert kinds([before], []) == ["missing_there"]  # its time is up
    assert kinds([before], [], earlier=[theirs(before)]) == []  # it was in the one before
    assert kinds([before], [theirs(before)], earlier=[theirs(before, id="set_2")]) == ["duplicate"]
    missed = ours(at=NOON - timedelta(days=1))
    assert kinds([missed], []) == [] and kinds([missed], [theirs(missed)]) == ["late"]  # the day before told of it
    after = ours(at=MIDNIGHT + timedelta(minutes=10))  # we heard of it after it was reported
    assert kinds([after], [theirs(after)]) == []


@pytest.mark.parametrize("days", [0, 1, 3])
@pytest.mark.parametrize("late", [None, 0, 1, 2, 3, 4])
def test_what_settles_later_is_told_of_once_or_not_at_all(days: int, late: int | None) -> None:
    one, within = ours(), EDGE + timedelta(days=days)
    told: dict[int, list[str]] = {}
    for n in range(6):
        day = DAY + timedelta(days=n)
        rows = {} if late is None else {DAY + timedelta(days=late): [theirs(one)]}
        earlier = [row for before in days_before(day, within) for row in rows.get(before, [])]
        due = [one] if day_of(one.at + within) == day or earlier or rows.get(day) else []
        agree, found = compare(day, due, rows.get(day, []), earlier, within)
        told[n] = [each.kind for each in found] + ["agrees"] * agree
    told = {n: what for n, what in told.items() if what}
    if late is not None and late <= days:
        assert told == {late: ["agrees"]}
    else:
        assert told == {days: ["missing_there"], **({late: ["late"]} if late is not None else {})}


def test_rows_without_our_reference_go_by_amount_and_time() -> None:
    first = ours()
    then = ours(payment=first.payment, at=first.at + timedelta(hours=1))
    other = ours(payment=first.payment, amount=7)
    rows = [theirs(then, operation=None), theirs(other, operation=None), theirs(first, operation=None)]
    assert compare(DAY, [first, then, other], rows) == (3, [])
    wrong, twice = theirs(other, operation=None, amount=8), theirs(first, operation=None)
    for given_rows in ([wrong, rows[0], rows[2]], [rows[2], rows[0], wrong]):
        for known in ([other, then, first], [first, then, other]):
            [told] = compare(DAY, known, given_rows)[1]
            assert (told.kind, told.operation) == ("amount", other.operation)
    assert kinds([other, first, then], [twice, twice, twice, wrong]) == ["duplicate", "amount"]
    yesterday = ours(payment=first.payment, at=NOON - timedelta(days=1))
    known = [yesterday, first]
    assert kinds(known, [theirs(first, operation=None)]) == []  # and not late, of the one of yesterday
    assert kinds(known, [theirs(first, operation=None)], earlier=[theirs(yesterday, operation=None)]) == []
    assert kinds(known, [], earlier=[theirs(yesterday, operation=None)]) == ["missing_there"]


def test_what_was_done_by_others_is_not_ours() -> None:
    one = ours(kind="refund", fee=None)
    by_hand = theirs(one, operation=FOREIGN)
    [told, missing] = compare(DAY, [one], [by_hand])[1]
    assert (told.kind, told.payment, told.operation, missing.kind) == (
        "missing_here", one.payment, None, "missing_there",
    )  # fmt: skip
    stranger = theirs(one, payment=None, operation=None)
    assert compare(DAY, [one], [theirs(one), stranger])[1][0].payment is None
    taken = theirs(ours(), operation=None, kind="chargeback")
    assert compare(DAY, [], [taken])[1][0].theirs.startswith("chargeback of 1000 EUR")


def test_what_was_taken_back_is_in_the_reports_whole_or_not_at_all() -> None:
    one = ours(kind="refund", fee=None)
    back = replace(one, kind="refund reversed", at=NOON + timedelta(hours=1))
    both = [theirs(one), theirs(back)]
    assert compare(DAY, [one, back], both) == compare(DAY, [back, one], both[::-1]) == (2, [])
    assert kinds([one, back], []) == []  # it was never booked
    for row, missing in ((both[0], "refund reversed of"), (both[1], "refund of")):
        [told] = compare(DAY, [one, back], [row])[1]
        assert told.kind == "missing_there" and told.ours.startswith(missing)
    assert kinds([one], both) == ["missing_here"]  # we have not heard that it came back
    long_ago = replace(one, at=NOON - timedelta(days=9))  # whether it was booked is in reports that are not looked at
    assert kinds([long_ago, back], []) == ["missing_there"]
    unsure = [replace(each, certain=False) for each in (one, back)]
    assert compare(DAY, unsure, both) == (2, []) and kinds(unsure, []) == []


def test_an_amount_in_another_currency_is_not_compared() -> None:
    one = ours()
    assert compare(DAY, [one], [theirs(one, amount=None, fee=None)]) == (1, [])


@for_all(st.data())
@hypothesis(deadline=None)
def test_every_fault_is_found_and_nothing_else(data: st.DataObject) -> None:
    known = [ours() for _ in range(data.draw(st.integers(0, 8)))]
    rows: list[Settled] = []
    expected = Counter[str]()
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
                row = replace(row, amount=one.amount + 1)
            case "currency":
                row = replace(row, currency="USD", amount=one.amount + 1)
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
    with pytest.raises(ValueError, match="there is no column payment"):
        rows_of(b"id,kind\n")


OPENED = fact(DayOpened, gateway="test", day="2026-11-24")
FOUND = Difference("amount", uuid4(), uuid4(), "set_1", "1", "2")
STRANGE = Difference("missing_here", None, None, "txn_1", "", "capture")


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
    listed = [fact(DifferenceFound, run=1, difference=one) for one in many[:-1]]
    more = given(Reconciliation, OPENED, compared(len(many)), *listed)
    assert (more.state.differences, len(more.state.found)) == (LISTED_MAX + 1, LISTED_MAX)
    more.when(Reconciliation.compared, "aa", 4, 3, many, MIDNIGHT).nothing()
    fewer = more.when(Reconciliation.compared, "aa", 4, 3, many[:-1], MIDNIGHT).facts  # not one that was listed
    assert fewer[0] == compared(LISTED_MAX) and len(fewer) == LISTED_MAX + 1
    opened.when(Reconciliation.compared, "aa", 4, 3, [STRANGE], MIDNIGHT).then(
        compared(1), fact(DifferenceFound, run=1, difference=STRANGE)
    )
    done = given(Reconciliation, OPENED, compared(1), fact(DifferenceFound, run=1, difference=FOUND))
    done.when(Reconciliation.compared, "aa", 4, 3, [FOUND], MIDNIGHT).nothing()
    done.when(Reconciliation.compared, "bb", 4, 4, [], MIDNIGHT).then(compared(0, 4, "bb"))
    again = fact(ReportDue, gateway="test", day="2026-11-24")
    done.when(Reconciliation.fall_due).then(again)  # a day later: what agrees by then is a difference no more
    given(Reconciliation, OPENED, compared(0)).when(Reconciliation.fall_due).nothing()
    for found, timer in ((1, Timer), (0, Cancel)):
        reconciliation = given(Reconciliation, OPENED).state
        reconciliation.compared("aa", 4, 3, [FOUND] * found, MIDNIGHT)
        [event, *_] = reconciliation.collect_events()
        assert [type(one) for one in event.timers()] == [timer]
    done.when(Reconciliation.report_missing, "no", MIDNIGHT).nothing()


def test_a_report_that_is_missing_is_asked_for_again() -> None:
    due = fact(ReportDue, gateway="test", day="2026-11-24")
    given(Reconciliation, OPENED).when(Reconciliation.fall_due).then(due)
    missing = fact(ReportMissing, reason="no answer", again_at=MIDNIGHT + AGAIN)
    given(Reconciliation, OPENED, due).when(Reconciliation.report_missing, "no answer", MIDNIGHT).then(missing)
    again = given(Reconciliation, OPENED, due, missing)
    assert [timer.due for timer in again.events[2].timers()] == [MIDNIGHT + AGAIN]  # type: ignore[union-attr]
    again.when(Reconciliation.fall_due).then(due)
    for tries in (24, 30):  # ever more rarely, at last once a day
        daily = fact(ReportMissing, reason="no answer", again_at=MIDNIGHT + AGAIN_MAX)
        often = given(Reconciliation, OPENED, *[due, missing] * (tries - 1), due)
        often.when(Reconciliation.report_missing, "no answer", MIDNIGHT).then(daily)


class OneDay(RuleBasedStateMachine):
    """Any words about a day in any order: the last comparison counts, and it is asked again while there is something to find."""

    def __init__(self) -> None:
        super().__init__()
        self.now = MIDNIGHT - timedelta(hours=1)
        self.day = Reconciliation("one", DAY.isoformat())
        self.last: tuple[str, int, list[Difference]] | None = None
        self.runs = 0

    @rule()
    def fall_due(self) -> None:
        tries = self.day.tries
        assert accepted(self.day.fall_due)
        assert self.day.tries == tries + (self.last is None or bool(self.last[2]))

    @rule()
    def report_missing(self) -> None:
        version = self.day.version
        assert accepted(self.day.report_missing, "none yet", self.now)
        assert (self.day.version > version) == (self.last is None)

    @rule(report=st.sampled_from(["a", "b"]), agree=st.integers(0, 2), found=st.integers(0, 2))
    def compared(self, report: str, agree: int, found: int) -> None:
        differences = [Difference("missing_there", None, None, f"row {n}", "", "") for n in range(found)]
        over = self.now >= MIDNIGHT
        assert accepted(self.day.compared, report, 5, agree, differences, self.now) == over
        if over and self.last != (report, agree, differences):
            self.last, self.runs = (report, agree, differences), self.runs + 1

    @rule(minutes=st.integers(1, 90))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @invariant()
    def the_last_comparison_counts(self) -> None:
        self.day.check()
        report, agree, found = self.last or ("", 0, [])
        assert (self.day.report, self.day.agree, self.day.found, self.day.runs) == (report, agree, found, self.runs)
        assert self.day.differences == len(found)


TestOneDay = OneDay.TestCase
