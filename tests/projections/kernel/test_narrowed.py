"""A projection narrowed to some tables, and events whose bodies nobody asks for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

import schemas
from aggregates.kernel import wire
from aggregates.kernel.event import EVENTS, UNREAD
from projections.kernel import Change, Table
from projections.kernel.clauses import changes, projections, written_by
from projections.kernel.runner import REBUILT, Batch, Position, Runner
from projections.kernel.tables import AnyTable
from tests.projections.kernel.purse import DOMAIN, Closed, Filled, Log, Noted, Opened, fills, pockets, purses, totals
from tests.projections.kernel.stores import PURSES

AT = datetime(2026, 11, 1, tzinfo=UTC)
one, two = Table("one", key="id", id=int), Table("two", key="id", id=int)
BOTH = {"first": one, "second": two}
PLAIN = {"a": 1}


def _helper() -> list[Change]:
    return [two.put(1)]


def by_name(e: Any) -> list[Change]:
    return [one.put(1)] if PLAIN else []


def by_helper(e: Any) -> list[Change]:
    return [*_helper()]


def by_default(e: Any, table: Table = two) -> list[Change]:
    return [table.put(1)]


def by_dict(e: Any) -> list[Change]:
    return [BOTH["first"].put(1)]


def by_globals(e: Any) -> list[Change]:
    return [globals()["one"].put(1)]


def test_what_a_clause_can_change_is_told_from_its_names() -> None:
    assert written_by(by_name) == frozenset[AnyTable]([one])
    assert written_by(by_helper) == frozenset[AnyTable]([two])
    assert written_by(by_default) == frozenset[AnyTable]([two])
    assert written_by(by_dict) is None
    assert written_by(by_globals) is None
    closed_over = one
    assert written_by(lambda e: [closed_over.put(1)]) is None


def test_no_clause_of_the_platform_changes_more_than_is_told() -> None:
    """Each clause that is told to change some tables has no others in reach: those of its module that it names."""
    told = {clause.call: written_by(clause.call) for module in projections() for clause in module.clauses}
    assert sum(tables is not None for tables in told.values()) > 0.9 * len(told)
    for tables in told.values():
        assert tables is None or tables


def test_only_the_clauses_of_the_tables_are_left() -> None:
    narrow = PURSES.only([totals])
    assert narrow.tables == [totals] and narrow.name == PURSES.name and narrow.domains == PURSES.domains
    assert [len(narrow.of(f"pouch.{kind.__name__}") or ()) for kind in (Opened, Filled, Noted, Closed)] == [0, 1, 0, 0]
    assert len(PURSES.only([fills]).of("pouch.Filled") or ()) == 1
    assert narrow.of("pouch.Unheard") is None
    log = Log()
    log.add(1, Filled, amount=5)
    [event] = log.events()
    assert {change.table for change in changes(event, [narrow])} == {purses, totals, pockets}  # one clause, four tables


def undecoded(number: int, kind: type, **fields: Any) -> Any:
    event = EVENTS[f"{DOMAIN}.{kind.__name__}"]
    return wire.undecoded(event, UUID(int=number), 3, AT, event.binding.encode(fields))


def test_a_body_is_read_when_a_field_is_asked_for() -> None:
    owner = uuid4()
    event = undecoded(1, Opened, owner=owner, currency="EUR")
    assert (event.id, event.version, event.at) == (UUID(int=1), 3, AT)
    assert UNREAD in event.__dict__
    assert event.currency == "EUR" and event.owner == owner
    assert UNREAD not in event.__dict__
    whole = wire.decode(DOMAIN, UUID(int=1), 3, AT, Opened.binding.encode({"owner": owner, "currency": "EUR"}))
    assert event == whole and event.__dict__ == whole.__dict__
    with pytest.raises(AttributeError, match="has no 'amount'"):
        _ = event.amount


def test_a_body_that_is_not_what_its_header_says_is_unreadable() -> None:
    lies: Any = wire.undecoded(Noted, UUID(int=1), 1, AT, Filled.binding.encode({"amount": 5}))
    for _ in range(2):
        with pytest.raises(schemas.Unreadable, match="pouch.Filled came as pouch.Noted"):
            _ = lies.text
    cut: Any = wire.undecoded(Filled, UUID(int=1), 1, AT, Filled.binding.encode({"amount": 500})[:-1])
    with pytest.raises(schemas.Unreadable):
        _ = cut.amount


class Memory:
    """A sink that keeps what it was given."""

    name = "postgres"

    def __init__(self) -> None:
        self.at: dict[tuple[str, str, int], Position] = {}
        self.batches: list[Batch] = []

    def positions(self, tables: Any, topic: str, partitions: Any) -> dict[tuple[AnyTable, int], Position]:
        return {(t, p): self.at.get((t.name, topic, p), Position(0, -1)) for t in tables for p in partitions}

    def apply(self, batch: Batch) -> None:
        self.batches.append(batch)
        for move in batch.moves:
            assert self.at.get((move.table.name, move.topic, move.partition), Position(0, -1)) == move.old
            self.at[move.table.name, move.topic, move.partition] = move.new

    def settle(self) -> None: ...

    def close(self) -> None: ...


def test_a_retry_passes_over_what_a_table_was_rebuilt_with() -> None:
    log, sink = Log(partitions=1), Memory()
    for amount in (1, 2, 3):
        log.add(1, Filled, amount=amount)
    sink.at["totals", f"{DOMAIN}{REBUILT}", 0] = Position(
        2, 1
    )  # of the two tables one was rebuilt, up to the second event
    runner = Runner(sink, [PURSES], [DOMAIN], sequence="some key")
    runner.assign([(DOMAIN, 0)])
    runner.handle(log.deliveries())
    made = {table.name: [change.values for _, change in rows] for table, rows in sink.batches[-1].changes.items()}
    assert [values["balance"] for values in made["purses"]] == [1, 2, 3]
    assert [values["filled"] for values in made["totals"]] == [3]
    assert sink.at["totals", f"{DOMAIN}!some key", 0] == sink.at["purses", f"{DOMAIN}!some key", 0] == Position(3, 2)


def test_a_delivery_is_read_whole_for_who_wants_it_so() -> None:
    log = Log(partitions=1)
    log.add(1, Noted, note="n", text="t")
    [delivery] = log.deliveries()
    assert UNREAD in delivery.event(whole=False).__dict__
    assert UNREAD in delivery.recorded(whole=False).event.__dict__
    assert UNREAD not in delivery.recorded().event.__dict__
    assert delivery.event(whole=False) is delivery.event()
