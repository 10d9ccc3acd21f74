from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.inventory import (
    PIECES_MAX,
    QUANTITY_MAX,
    Adjusted,
    Committed,
    Expired,
    Opened,
    Received,
    Released,
    Reserved,
    Stock,
    stock_id,
)
from tests.kernel import accepted, fact, given

R, R2 = uuid4(), uuid4()
SOON = datetime.now(UTC) + timedelta(minutes=15)
OPENED = fact(Opened, sku="MUG", location="main", seller=None)
TEN = (OPENED, fact(Received, quantity=10, reference="note 1", cause=None))
RESERVED = fact(Reserved, reservation=R, quantity=7, expires_at=SOON)
HELD = (*TEN, RESERVED)
COMMITTED, RELEASED, EXPIRED = (fact(kind, reservation=R, quantity=7) for kind in (Committed, Released, Expired))


def test_a_stock_is_one_sku_at_one_location() -> None:
    given(Stock).opening(Stock.open, "MUG").then(OPENED)
    given(Stock).opening(Stock.open, "MUG", " Lager  Süd ").then(
        fact(Opened, sku="MUG", location="Lager Süd", seller=None)
    )
    given(Stock).opening(Stock.open, "MUG", "main", R).then(fact(Opened, sku="MUG", location="main", seller=R))
    given(Stock).opening(Stock.open, "a mug").refused("a SKU is")
    given(Stock).opening(Stock.open, "MUG", "").refused("a location is empty")
    assert Stock.open("MUG").id == stock_id("MUG") == stock_id("MUG", "main") != stock_id("MUG", "east")


def test_pieces_come_in() -> None:
    given(Stock, OPENED).when(Stock.receive, 10, "note 1").then(TEN[1])
    assert given(Stock, *TEN).state.available == 10


def test_what_is_returned_comes_in_once_for_its_cause() -> None:
    back = fact(Received, quantity=2, reference="refund", cause=R)
    given(Stock, *TEN).when(Stock.receive, 2, "refund", R).then(back)
    again = given(Stock, *TEN, back)
    again.when(Stock.receive, 2, "refund", R).nothing()
    again.when(Stock.receive, 3, "refund", R).refused(f"{R} was of 2, not 3")
    again.when(Stock.receive, 2, "refund", R2).then(fact(Received, quantity=2, reference="refund", cause=R2))
    again.when(Stock.receive, 10, "note 1").then(TEN[1])  # a delivery note may be used twice


def test_as_many_come_in_as_a_stock_holds() -> None:
    full = fact(Received, quantity=PIECES_MAX, reference="x", cause=None)
    given(Stock, OPENED).when(Stock.receive, PIECES_MAX, "x").then(full)
    given(Stock, OPENED, full).when(Stock.receive, 1, "x").refused(f"at most {PIECES_MAX}")
    given(Stock, OPENED, full).when(Stock.adjust, 1, "x").refused(f"at most {PIECES_MAX}")
    for quantity in (0, -1, PIECES_MAX + 1):
        given(Stock, OPENED).when(Stock.receive, quantity, "x").refused("pieces come in")


def test_an_adjustment_leaves_what_is_reserved() -> None:
    given(Stock, *HELD).when(Stock.adjust, -3, "broken").then(fact(Adjusted, delta=-3, reason="broken"))
    given(Stock, *HELD).when(Stock.adjust, -4, "broken").refused("fewer than the 7 reserved")
    given(Stock, *TEN).when(Stock.adjust, -11, "broken").refused("fewer than the 0 reserved")
    given(Stock, *TEN).when(Stock.adjust, 0, "count").nothing()
    given(Stock, *TEN).when(Stock.adjust, 1, "\x00").refused("not text")


def test_a_reservation_sets_pieces_aside() -> None:
    given(Stock, *TEN).when(Stock.reserve, R, 7, SOON).then(RESERVED)
    stock = given(Stock, *HELD).state
    assert (stock.on_hand, stock.reserved, stock.available) == (10, 7, 3)


def test_the_last_piece_can_be_reserved_and_no_more() -> None:
    given(Stock, *HELD).when(Stock.reserve, R2, 3, SOON).then(
        fact(Reserved, reservation=R2, quantity=3, expires_at=SOON)
    )
    given(Stock, *HELD).when(Stock.reserve, R2, 4, SOON).refused("4 of MUG is more than the 3 left")
    given(Stock, OPENED).when(Stock.reserve, R, 1, SOON).refused("more than the 0 left")
    for quantity in (0, -1):
        given(Stock, *TEN).when(Stock.reserve, R, quantity, SOON).refused("at least 1")
    given(Stock, *TEN).when(Stock.reserve, R, QUANTITY_MAX + 1, SOON).refused(f"at most {QUANTITY_MAX}")


def test_the_same_reservation_again_does_nothing() -> None:
    given(Stock, *HELD).when(Stock.reserve, R, 7, SOON).nothing()
    given(Stock, *HELD).when(Stock.reserve, R, 7, SOON + timedelta(minutes=1)).nothing()
    given(Stock, *HELD, COMMITTED).when(Stock.reserve, R, 7, SOON).nothing()
    given(Stock, *HELD).when(Stock.reserve, R, 6, SOON).refused("other amounts")


def test_what_is_reserved_without_a_time_stays_until_it_is_sold_or_released() -> None:
    forever = fact(Reserved, reservation=R, quantity=7, expires_at=None)
    given(Stock, *TEN).when(Stock.reserve, R, 7, None).then(forever)
    kept = given(Stock, *TEN, forever)
    assert list(kept.events[-1].timers()) == []
    kept.when(Stock.commit, R).then(COMMITTED)
    kept.when(Stock.release, R).then(RELEASED)


def test_a_reservation_ends_once() -> None:
    given(Stock, *HELD).when(Stock.commit, R).then(COMMITTED)
    given(Stock, *HELD).when(Stock.release, R).then(RELEASED)
    given(Stock, *HELD).when(Stock.expire, str(R)).then(EXPIRED)
    given(Stock, *HELD, COMMITTED).when(Stock.commit, R).nothing()
    given(Stock, *HELD, COMMITTED).when(Stock.release, R).refused("already confirmed")
    given(Stock, *HELD, COMMITTED).when(Stock.expire, str(R)).nothing()
    given(Stock, *HELD, RELEASED).when(Stock.release, R).nothing()
    given(Stock, *HELD, RELEASED).when(Stock.commit, R).refused("already released")
    given(Stock, *HELD, RELEASED).when(Stock.expire, str(R)).nothing()
    given(Stock, *HELD, EXPIRED).when(Stock.release, R).nothing()
    given(Stock, *HELD, EXPIRED).when(Stock.commit, R).refused("already expired")
    given(Stock, *TEN).when(Stock.commit, R).refused("is not held")


def test_a_late_reservation_finds_itself_closed() -> None:
    closed = fact(Released, reservation=R, quantity=0)
    given(Stock, *TEN).when(Stock.release, R).then(closed)
    given(Stock, *TEN, closed).when(Stock.reserve, R, 1, SOON).refused("already released")
    given(Stock, *HELD, EXPIRED).when(Stock.reserve, R, 7, SOON).refused("already expired")


def test_sold_pieces_leave_and_freed_ones_come_back() -> None:
    sold, freed, late = (given(Stock, *HELD, end).state for end in (COMMITTED, RELEASED, EXPIRED))
    assert (sold.on_hand, sold.reserved) == (3, 0)
    assert (freed.on_hand, freed.reserved) == (late.on_hand, late.reserved) == (10, 0)


@pytest.mark.parametrize("end", [Stock.commit, Stock.release])
def test_a_timer_runs_from_reservation_to_its_end(end: object) -> None:
    stock = given(Stock, *TEN).state
    stock.reserve(R, 1, SOON)
    (started,) = [*stock.collect_events()[0].timers()]
    assert (started.key, started.due, started.call, started.args) == (f"reservation:{R}", SOON, Stock.expire, (str(R),))  # type: ignore[union-attr]
    (stock.commit if end is Stock.commit else stock.release)(R)
    (ended,) = [*stock.collect_events()[0].timers()]
    assert ended.key == started.key


class Machine(RuleBasedStateMachine):
    """Any commands in any order: what came in is free, reserved or sold, to the unit, and never less than nothing."""

    reservations = st.sampled_from([UUID(int=n) for n in range(4)])

    def __init__(self) -> None:
        super().__init__()
        self.stock = Stock.open("MUG")
        self.came_in = self.sold = 0
        self.held: dict[UUID, int] = {}
        self.returned: dict[UUID, int] = {}
        self.ended: set[UUID] = set()

    @rule(quantity=st.integers(-1, 9))
    def receive(self, quantity: int) -> None:
        self.came_in += quantity * accepted(self.stock.receive, quantity, "note")

    @rule(cause=reservations, quantity=st.integers(1, 2))
    def take_back(self, cause: UUID, quantity: int) -> None:
        new = cause not in self.returned
        assert accepted(self.stock.receive, quantity, "refund", cause) == (
            self.returned.get(cause, quantity) == quantity
        )
        self.came_in += quantity * new
        self.returned.setdefault(cause, quantity)

    @rule(delta=st.integers(-9, 9))
    def adjust(self, delta: int) -> None:
        free = self.came_in - self.sold - sum(self.held.values())
        done = accepted(self.stock.adjust, delta, "count")
        assert done == (free + delta >= 0 or delta == 0)
        self.came_in += delta * done

    @rule(reservation=reservations, quantity=st.integers(-1, 9))
    def reserve(self, reservation: UUID, quantity: int) -> None:
        free = self.came_in - self.sold - sum(self.held.values())
        if accepted(self.stock.reserve, reservation, quantity, SOON) and reservation not in self.ended:
            self.held[reservation] = quantity
        elif reservation not in self.held and reservation not in self.ended:
            assert not 0 < quantity <= free, "refused, though there was enough"

    @rule(reservation=reservations)
    def commit(self, reservation: UUID) -> None:
        if accepted(self.stock.commit, reservation):
            self.sold += self.held.pop(reservation, 0)
            self.ended.add(reservation)

    @rule(reservation=reservations)
    def release(self, reservation: UUID) -> None:
        if accepted(self.stock.release, reservation):
            self.held.pop(reservation, 0)
            self.ended.add(reservation)

    @rule(reservation=reservations)
    def expire(self, reservation: UUID) -> None:
        assert accepted(self.stock.expire, str(reservation))
        if self.held.pop(reservation, 0):
            self.ended.add(reservation)

    @invariant()
    def every_piece_is_accounted_for(self) -> None:
        self.stock.check()
        assert self.stock.on_hand == self.came_in - self.sold
        assert self.stock.reserved == sum(self.held.values()) <= self.stock.on_hand
        assert {id: amounts["MUG"] for id, amounts in self.stock.quota.holds.items()} == self.held


TestStock = Machine.TestCase
