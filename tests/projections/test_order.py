"""The read models of orders: live, replayed and folded are one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.kernel import Event, Refused
from aggregates.kernel.money import Line
from aggregates.kernel.refunding import Return
from aggregates.order import Order, Paid, Part, Refunded, Shipped
from projections.kernel.clauses import PROJECTIONS, changes
from projections.order import order_lines, order_states, order_summary, order_timeline, orders, sales
from schemas import Address, Sealed
from tests.kernel import SAID
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SEALED = Sealed("sealed:1:ada:a")
HOME = Address(SEALED, SEALED, SEALED, SEALED, "DE")
WHATS = [
    "confirm", "pay", "pay", "ship", "ship", "deliver", "deliver", "complete", "cancel", "begin", "begin", "settle", "settle", "drop",
    "reversed", "seen to",
]  # fmt: skip
COMMANDS = st.lists(st.tuples(st.sampled_from(WHATS), st.integers(0, 2), st.integers(0, 3)), max_size=40)


def happened(commands: list[tuple[str, int, int]]) -> tuple[list[Order], list[Event]]:
    """Orders after commands, as far as the rules accept them, and everything that happened, in order."""
    lines = [Line(sku, UUID(int=9), f"A {sku}", 3, 550, 0, 1900, 0, "main") for sku in ("mug", "pot")]
    kept = [Order.place(UUID(int=7), "EUR", lines, HOME, NOW, shipping=490) for _ in range(3)]
    events: list[Event] = [event for order in kept for event in order.collect_events()]
    for what, which, some in commands:
        order, parcel = kept[which], UUID(int=some)
        with suppress(Refused):
            match what:
                case "confirm":
                    order.confirm()
                case "pay":
                    order.pay(UUID(int=8), order.total)
                case "ship":
                    order.ship(parcel, [Part("mug", some)] if some else [], "DHL")
                case "deliver":
                    order.deliver(parcel)
                case "complete":
                    order.complete()
                case "cancel":
                    order.cancel(SAID)
                case "begin":
                    order.begin_refund(parcel, [Return("pot", 2)] if some else [], UUID(int=7), NOW, None)
                case "settle":
                    order.settle_refund(parcel)
                case "drop":
                    order.drop_refund(parcel)
                case "reversed":
                    order.payment_reversed(UUID(int=8), parcel, 100, "closed")
                case "seen to":
                    order.settle_payment(UUID(int=9), SAID)
        events += order.collect_events()
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.order"]], sinks=("postgres",))
    yield made
    made.close()


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[tuple[str, int, int]], seed: int) -> None:
    kept, events = happened(commands)
    rows = rows_of(events)
    tables = (orders, order_lines, order_timeline, order_summary)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = [rows_in(live.settings, table) for table in tables]
    live.wipe()
    live.feed(rows)
    assert [rows_in(live.settings, table) for table in tables] == shown
    for order in kept:
        row = shown[0][order.id,]
        assert (row["status"], row["payment"], row["version"]) == (order.status, order.payment, order.version)
        assert (row["owed"], row["attention"]) == (order.owed, order.owed > 0)
        assert (row["number"], row["total"], row["customer"]) == (order.number, order.total, order.customer)
        summed = shown[3][order.id,]
        assert [summed[name] for name in ("number", "customer", "status", "total", "lines")] == [
            order.number, order.customer, order.status, order.total, len(order.lines),
        ]  # fmt: skip
        assert summed["changed_at"] == row["changed_at"] and summed["placed_at"] == row["placed_at"]
        on_the_way = sum(claim.amount for claim in order.refunds.values())
        back = sum(order.refunded.values())
        assert (row["refunding"], row["refunded"], summed["refunded"]) == (on_the_way, back, back)
        assert [one["amount"] for one in row["tenders"]] == ([order.total] if order.paid else [])
        for line in order.lines:
            its = shown[1][order.id, line.sku]
            claimed = [part for claim in order.refunds.values() for part in claim.lines if part.sku == line.sku]
            sent = sum(
                part.quantity
                for e in events
                if e.id == order.id and isinstance(e, Shipped)
                for part in e.parts
                if part.sku == line.sku
            )
            assert (its["shipped"], its["refunding"]) == (sent, sum(part.quantity for part in claimed))
            assert its["refunded"] + its["refunding"] == line.quantity - (
                order.rest.lines[line.sku].pieces if order.rest else line.quantity
            )
        story = [row["what"] for key, row in sorted(shown[2].items(), key=lambda one: one[0][1]) if key[0] == order.id]
        assert story == [event.type.partition(".")[2].lower() for event in events if event.id == order.id]


@given(commands=COMMANDS)
def test_analysts_see_each_status_in_order(commands: list[tuple[str, int, int]]) -> None:
    kept, events = happened(commands)
    rows = [
        change.values
        for event in events
        for change in changes(event, [PROJECTIONS["projections.order"]])
        if change.table is order_states
    ]
    for order in kept:
        its = [row for row in rows if row["order"] == order.id]
        states = [row["status"] for row in its]
        assert states[0] == "placed" and states[-1] == order.status
        assert [row["version"] for row in its] == sorted(row["version"] for row in its)
        assert (its[0]["number"], its[0]["total"]) == (order.number, order.total)


@given(commands=COMMANDS)
def test_what_was_sold_and_came_back_is_what_analysts_sum_up(commands: list[tuple[str, int, int]]) -> None:
    kept, events = happened(commands)
    rows = [
        change.values
        for event in events
        for change in changes(event, [PROJECTIONS["projections.order"]])
        if change.table is sales
    ]
    for order in kept:
        its = [row for row in rows if row["order"] == order.id]
        back = [e for e in events if e.id == order.id and isinstance(e, Refunded)]
        sold = any(e.id == order.id and isinstance(e, Paid) for e in events) and (order.status != "cancelled" or back)
        revenue = sum(line.net for line in order.lines) * bool(sold) - sum(part.net for e in back for part in e.lines)
        assert sum(row["revenue"] for row in its) == revenue
        assert {row["kind"] for row in its} <= {"sale", "cancellation", "refund"}
