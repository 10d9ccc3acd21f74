"""A batch folded to one change a row is the batch applied change by change; clauses and tables refuse what can't be meant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, NewType
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregates.kernel import Event, Recorded
from projections.kernel import Change, ClickTable, ForgottenEvent, RedisTable, Table, changes, project
from projections.kernel.clauses import PROJECTIONS, projection
from projections.kernel.postgres import Row, fold, statements
from projections.kernel.tables import column_of
from tests.projections.kernel import purse
from tests.projections.kernel.purse import Blessed, Filled, Log, Opened, fills, pockets, purses, totals

table = Table("things", key="id", id=int, name=str, count=int, size=int, seen=datetime | None)
BLANK = {"name": "", "count": 0, "size": 0, "seen": None}

values = st.fixed_dictionaries(
    {}, optional={"name": st.sampled_from("ab"), "count": st.integers(-3, 3), "seen": st.none()}
)
increments = st.fixed_dictionaries({}, optional={"count": st.integers(-3, 3), "size": st.integers(-3, 3)})
keys = st.integers(0, 2)
any_change = st.one_of(
    st.builds(lambda key, row: table.put(key, **row), keys, values),
    st.builds(lambda key, row: table.add(key, **row), keys, increments),
    st.builds(table.drop, keys),
)


def one_by_one(rows: dict[int, dict[str, Any]], made: list[Change]) -> None:
    for _, op, key, given_values in made:
        if op == "drop":
            rows.pop(key, None)
            continue
        row = rows.setdefault(key, dict(BLANK))
        for name, value in given_values.items():
            row[name] = value if op == "put" else (row[name] or 0) + value


def folded(rows: dict[int, dict[str, Any]], final: dict[int, Row]) -> None:
    for key, row in final.items():
        if row.gone:
            rows.pop(key, None)
            continue
        there = rows.setdefault(key, dict(BLANK))
        there.update(row.sets)
        for name, by in row.adds.items():
            there[name] = (there[name] or 0) + by


@given(st.lists(any_change), st.lists(any_change))
def test_folding_is_applying_one_by_one(before: list[Change], batch: list[Change]) -> None:
    expected: dict[int, dict[str, Any]] = {}
    found: dict[int, dict[str, Any]] = {}
    one_by_one(expected, before)
    folded(found, fold(table, before))
    assert found == expected
    copies = [dict(change.values) for change in batch]
    one_by_one(expected, batch)
    folded(found, fold(table, batch))
    assert found == expected
    assert [change.values for change in batch] == copies  # changes are values: folding leaves them as they are


def test_statements_are_few_and_sorted() -> None:
    batch = [
        table.put(3, name="a"),
        table.put(1, name="b"),
        table.drop(2),
        table.add(5, count=1),
        table.add(4, count=2),
    ]
    made = statements(table, fold(table, batch))
    assert [[row["id"] for row in statement.rows] for statement in made] == [[2], [4, 5], [1, 3]]


class Colour(StrEnum):
    RED = "red"


@dataclass
class Shape:
    corners: int


Name = NewType("Name", str)


@pytest.mark.parametrize(
    ("declared", "kind", "nullable", "blank"),
    [
        (str, str, False, ""), (int, int, False, 0), (bool, bool, False, False), (float, float, False, 0.0),
        (Decimal, Decimal, False, Decimal(0)), (UUID, UUID, False, None), (datetime, datetime, False, None),
        (date, date, False, None), (bytes, bytes, False, b""), (int | None, int, True, None), (Name, str, False, ""),
        (Name | None, str, True, None), (Colour, str, False, ""), (Literal["a", "b"], str, False, ""),
        (list[str], dict, False, []), (tuple[int, ...], dict, False, []), (dict[str, int], dict, False, {}),
        (Shape, dict, False, []), (list[Shape] | None, dict, True, None),
    ],
)  # fmt: skip
def test_columns(declared: Any, kind: type, nullable: bool, blank: object) -> None:
    column = column_of("things", "column", declared)
    assert (column.kind, column.nullable, column.blank) == (kind, nullable, blank)


@pytest.mark.parametrize("declared", [object, set[int], int | str, complex])
def test_a_type_that_no_store_holds_is_refused(declared: Any) -> None:
    with pytest.raises(ValueError, match="things"):
        column_of("things", "column", declared)


def test_tables_refuse_what_they_do_not_have() -> None:
    with pytest.raises(TypeError, match="table things has no column nme"):
        table.put(1, nme="x")
    with pytest.raises(TypeError, match="no column id"):
        table.put(1, id=2)
    with pytest.raises(TypeError, match="no number column name"):
        table.add(1, name=1)
    with pytest.raises(TypeError, match="no map owner"):
        pockets.set_item(1, "owner", "a", "b")
    with pytest.raises(TypeError, match="no map of int notes"):
        pockets.add_item(1, "notes", "a", 1)
    with pytest.raises(TypeError, match="no operation rung"):
        pockets.call(1, "rung")
    with pytest.raises(TypeError, match="no column amont"):
        fills.row(amont=1)
    with pytest.raises(ValueError, match="no column for the key"):
        Table("things", key="id", name=str)
    with pytest.raises(ValueError, match="no column for the index"):
        Table("things", key="id", id=int, indexes=[("name",)])
    with pytest.raises(ValueError, match="lower-case identifier"):
        Table("Things; DROP", key="id", id=int)
    with pytest.raises(ValueError, match="not to be sorted by at"):
        ClickTable("things", order_by=("at",), at=datetime | None)
    with pytest.raises(ValueError, match="has its own log_id"):
        ClickTable("things", order_by=(), log_id=int)


def test_a_shadow_is_the_same_table_under_another_name() -> None:
    shadow = purses.named("purses_shadow")
    assert (shadow.name, purses.name) == ("purses_shadow", "purses")
    assert shadow.columns == purses.columns
    assert isinstance(RedisTable("a", key="id", id=int).named("b"), RedisTable)


def test_changes_of_an_event_are_those_of_its_clauses() -> None:
    log = Log()
    owner = uuid4()
    log.add(1, Opened, owner=owner, currency="EUR")
    log.add(1, Filled, amount=1005)
    log.add(1, Blessed)
    opened, filled, blessed = log.events()
    id = log.purse(1)
    mine = [PROJECTIONS[purse.__name__]]
    assert changes(opened.event, mine) == [
        purses.put(id, owner=owner, currency="EUR", opened_at=opened.event.at, tags=["new"]),
        pockets.put(id, owner=owner, closed=False),
    ]
    assert changes(filled, mine) == [
        purses.add(id, balance=1005, fills=1),
        totals.add("EUR", filled=5, fills=1),
        pockets.add(id, balance=1005),
        pockets.add_item(id, "counts", "fills", 1),
        fills.row(purse=id, at=filled.event.at, amount=1005, actor="user:1"),
    ]
    assert changes(blessed, mine) == []
    with pytest.raises(TypeError, match="recorded_fill needs the Recorded event"):
        changes(filled.event, mine)


def test_a_forgotten_event_is_named() -> None:
    PROJECTIONS[purse.__name__].check()
    module = projection(__name__)
    module.ignored.add(Opened)
    try:
        with pytest.raises(ForgottenEvent, match=r"says nothing of pouch\.\w+: give it a clause, or add it to ignore"):
            module.check()
    finally:
        del PROJECTIONS[__name__]


def test_clauses_take_one_event_or_several_or_all() -> None:
    def one(e: Filled) -> list[Change]:
        return []

    def several(r: Recorded[Filled | Opened]) -> list[Change]:
        return []

    def every(r: Recorded[Event]) -> list[Change]:
        return []

    def wrong(e: int) -> list[Change]:
        return []

    def two(e: Filled, f: Filled) -> list[Change]:
        return []

    try:
        project(one)
        project(several)
        project(every)
        module = PROJECTIONS[__name__]
        assert [(clause.events, clause.whole) for clause in module.clauses] == [
            ((Filled,), False), ((Filled, Opened), True), ((Event,), True),
        ]  # fmt: skip
        assert module.everything
        assert [len(module.of(kind) or ()) for kind in ("pouch.Filled", "pouch.Opened", "pouch.Blessed")] == [3, 2, 1]
        assert module.of("pouch.Unheard") is None
        refused: list[Any] = [wrong, two]
        for clause in refused:
            with pytest.raises(TypeError):
                project(clause)
    finally:
        PROJECTIONS.pop(__name__, None)
