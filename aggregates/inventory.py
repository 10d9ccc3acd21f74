"""Inventory: the pieces of one SKU at one location. What is on hand is free or reserved; nobody gets what is not there."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from uuid import UUID, uuid5

from aggregates.kernel import Aggregate, Cancel, Causes, Created, Event, Quota, Timer, event, require
from aggregates.kernel.text import line
from aggregates.kernel.text import sku as sku_of

MAIN = "main"
PIECES_MAX = 10**9  # on hand of one SKU at one location
QUANTITY_MAX = 100_000  # of one reservation
NOTE_CHARS_MAX = 200
LOCATION_CHARS_MAX = 64
STOCKS = UUID("6f0a5f0e-6d0c-5d7e-9f5e-0f4f3c1b7a10")


@lru_cache(maxsize=100_000)  # asked of every line of every cart that is shown
def stock_id(sku: str, location: str = MAIN) -> UUID:
    """The one stock of a SKU at a location: the id follows from both, so it can't be opened twice."""
    return uuid5(STOCKS, f"{location}/{sku}")


# What can happen. `apply` only records: it never refuses, so old events always load.
class Opened(Created):
    sku: str
    location: str
    seller: UUID | None  # None: the platform's own


class Received(Event):
    quantity: int
    reference: str  # the delivery note, the return
    cause: UUID | None  # the refund or cancellation that they came back by; None: a delivery

    def apply(self, stock: Stock) -> None:
        stock.came_in(self.quantity)
        if self.cause is not None:
            stock.returns.take(self.cause, self.quantity, self.at)


class Adjusted(Event):
    delta: int  # negative: fewer pieces are there than were booked
    reason: str

    def apply(self, stock: Stock) -> None:
        stock.came_in(self.delta)


class Reserved(Event):
    reservation: UUID
    quantity: int
    expires_at: datetime | None

    def apply(self, stock: Stock) -> None:
        stock.quota.reserve(self.reservation, {stock.sku: self.quantity})

    def timers(self) -> Iterable[Timer | Cancel]:
        if self.expires_at is None:
            return []
        return [Timer(_timer(self.reservation), self.expires_at, Stock.expire, (str(self.reservation),))]


class Committed(Event):
    reservation: UUID
    quantity: int

    def apply(self, stock: Stock) -> None:
        stock.quota.confirm(self.reservation, self.at)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(_timer(self.reservation))]


class Released(Event):
    reservation: UUID
    quantity: int  # 0: nothing was reserved yet, the reservation is only closed

    def apply(self, stock: Stock) -> None:
        stock.quota.release(self.reservation, self.at)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(_timer(self.reservation))]


class Expired(Event):
    reservation: UUID
    quantity: int

    def apply(self, stock: Stock) -> None:
        stock.quota.release(self.reservation, self.at, "expired")

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(_timer(self.reservation))]


def _timer(reservation: UUID) -> str:
    return f"reservation:{reservation}"


# What is allowed.
class Stock(Aggregate):
    """The quota's limit is all that ever came in and its use all that was sold, so the rest is on hand. `returns` came back of late."""

    @event(Opened)
    def __init__(self, sku: str, location: str = MAIN, seller: UUID | None = None) -> None:
        self.sku, self.location, self.seller = sku, location, seller
        self.quota = Quota(limits={sku: 0})
        self.returns = Causes()

    @classmethod
    def open(cls, sku: str, location: str = MAIN, seller: UUID | None = None) -> Stock:
        """An empty stock, under the id that `stock_id` gives. Opened already: `Conflict` at the commit."""
        return cls(sku_of(sku), line(location, "a location", LOCATION_CHARS_MAX), seller)

    @staticmethod
    def create_id(sku: str, location: str = MAIN) -> UUID:
        return stock_id(sku, location)

    @property
    def on_hand(self) -> int:
        """Pieces that are there, the reserved ones included."""
        return self.quota.limits[self.sku] - self.quota.used.get(self.sku, 0)

    @property
    def reserved(self) -> int:
        """Pieces that are set aside."""
        return self.quota.reserved.get(self.sku, 0)

    @property
    def available(self) -> int:
        """Pieces that can be reserved."""
        return self.on_hand - self.reserved

    def receive(self, quantity: int, reference: str, cause: UUID | None = None) -> None:
        """Pieces come in: a delivery, or what is returned, once for its cause."""
        if cause is not None and not self.returns.may_take(cause, quantity):
            return
        require(0 < quantity <= PIECES_MAX, f"between 1 and {PIECES_MAX} pieces come in, not {quantity}")
        self._fits(quantity)
        note = line(reference, "a reference", NOTE_CHARS_MAX)
        self.trigger_event(Received, quantity=quantity, reference=note, cause=cause)

    def adjust(self, delta: int, reason: str) -> None:
        """A count found `delta` pieces more (or fewer) than were booked. What is reserved stays covered."""
        require(abs(delta) <= PIECES_MAX, f"an adjustment is at most {PIECES_MAX} pieces")
        reason = line(reason, "a reason", NOTE_CHARS_MAX)
        if delta == 0:
            return
        require(
            self.on_hand + delta >= self.reserved,
            f"{self.on_hand} on hand and {delta:+} leave fewer than the {self.reserved} reserved: release some first",
        )
        self._fits(delta)
        self.trigger_event(Adjusted, delta=delta, reason=reason)

    def reserve(self, reservation: UUID, quantity: int, expires_at: datetime | None) -> None:
        """Set pieces aside until a time; without one until they are sold or released: whoever reserves so must not forget it,
        and a saga does not. The same again does nothing; one that ended stays closed.
        """
        require(quantity <= QUANTITY_MAX, f"a reservation is at most {QUANTITY_MAX} pieces")
        if self.quota.may_reserve(reservation, {self.sku: quantity}):
            self.trigger_event(Reserved, reservation=reservation, quantity=quantity, expires_at=expires_at)

    def commit(self, reservation: UUID) -> None:
        """The reserved pieces are sold."""
        if self.quota.may_confirm(reservation):
            self.trigger_event(Committed, reservation=reservation, quantity=self._held(reservation))

    def release(self, reservation: UUID) -> None:
        """Free the reserved pieces. With nothing reserved it closes the reservation: one that comes late finds it closed."""
        if self.quota.may_release(reservation):
            self.trigger_event(Released, reservation=reservation, quantity=self._held(reservation))

    def expire(self, reservation: str) -> None:
        """The reservation's timer rings. It ended meanwhile: nothing."""
        if self.quota.may_expire(id := UUID(reservation)):
            self.trigger_event(Expired, reservation=id, quantity=self._held(id))

    def came_in(self, quantity: int) -> None:
        """Record pieces that came in, or fewer than there were: for the events."""
        self.quota.limit(self.sku, self.quota.limits[self.sku] + quantity)

    def _held(self, reservation: UUID) -> int:
        return self.quota.holds.get(reservation, {}).get(self.sku, 0)

    def _fits(self, more: int) -> None:
        require(self.on_hand + more <= PIECES_MAX, f"a stock holds at most {PIECES_MAX} pieces")

    def check(self) -> None:
        self.quota.check()
        assert 0 <= self.reserved <= self.on_hand, (self.reserved, self.on_hand)
