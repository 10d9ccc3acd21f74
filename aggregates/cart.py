"""Cart: what a shopper means to buy, in one currency. Prices are those that were shown; a checkout asks for them again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from aggregates.kernel import Aggregate, Cancel, Created, Event, Timer, event, require
from aggregates.kernel.currency import digits
from aggregates.kernel.money import AMOUNT_MAX, LINES_MAX, QUANTITY_MAX

KEPT = timedelta(days=30)
"""A cart that nobody touches for so long is over."""
CLOSED_MAX = 50  # failed checkouts that are remembered: a late lock of an older one meets another version anyway

Status = Literal["open", "locked", "checked out", "given up", "expired"]


@dataclass(frozen=True, slots=True)
class Line:
    """So many pieces of one SKU at the price that was shown, in minor units."""

    sku: str
    product: UUID
    title: str
    quantity: int
    unit_price: int


# What can happen. `apply` only records: it never refuses, so old events always load.
class _Touched(Event):
    """What the shopper did: the cart is kept for longer."""

    expires_at: datetime

    def apply(self, cart: Cart) -> None:
        cart.touched_at, cart.contents = self.at, self.version

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("expire", self.expires_at, Cart.expire)]


class Opened(Created):
    owner: UUID | None
    secret: str
    currency: str
    expires_at: datetime

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("expire", self.expires_at, Cart.expire)]


class Added(_Touched):
    sku: str
    product: UUID
    title: str
    quantity: int
    unit_price: int

    def apply(self, cart: Cart) -> None:
        super().apply(cart)
        had = cart.lines[self.sku].quantity if self.sku in cart.lines else 0
        cart.lines[self.sku] = Line(self.sku, self.product, self.title, had + self.quantity, self.unit_price)


class Changed(_Touched):
    sku: str
    quantity: int

    def apply(self, cart: Cart) -> None:
        super().apply(cart)
        cart.lines[self.sku] = replace(cart.lines[self.sku], quantity=self.quantity)


class Removed(_Touched):
    sku: str

    def apply(self, cart: Cart) -> None:
        super().apply(cart)
        del cart.lines[self.sku]


class Repriced(_Touched):
    sku: str
    unit_price: int

    def apply(self, cart: Cart) -> None:
        super().apply(cart)
        cart.lines[self.sku] = replace(cart.lines[self.sku], unit_price=self.unit_price)


class Merged(_Touched):
    guest: UUID
    lines: tuple[Line, ...]

    def apply(self, cart: Cart) -> None:
        super().apply(cart)
        cart.merged.add(self.guest)
        for line in self.lines:
            cart.lines[line.sku] = line


class GivenUp(Event):
    into: UUID

    def apply(self, cart: Cart) -> None:
        cart.end("given up")

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


class Locked(Event):
    checkout: UUID

    def apply(self, cart: Cart) -> None:
        cart.status, cart.checkout = "locked", self.checkout

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


class Unlocked(Event):
    checkout: UUID
    reopened: bool
    expires_at: datetime

    def apply(self, cart: Cart) -> None:
        if self.reopened:
            cart.status, cart.checkout = "open", None
        cart.closed = [*cart.closed[1 - CLOSED_MAX :], self.checkout]

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("expire", self.expires_at, Cart.expire)] if self.reopened else []


class CheckedOut(Event):
    checkout: UUID

    def apply(self, cart: Cart) -> None:
        cart.checkout = self.checkout
        cart.end("checked out")

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


class Abandoned(Event):
    untouched_since: datetime

    def apply(self, cart: Cart) -> None:
        cart.abandoned = True


class Returned(Event):
    def apply(self, cart: Cart) -> None:
        cart.abandoned = False


class Expired(Event):
    def apply(self, cart: Cart) -> None:
        cart.end("expired")

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("expire")]


# What is allowed.
class Cart(Aggregate):
    """`contents` is the version at which the lines last changed: a checkout locks just what it has priced."""

    @event(Opened)
    def __init__(self, owner: UUID | None, secret: str, currency: str, expires_at: datetime) -> None:
        self.owner, self.secret, self.currency = owner, secret, currency
        self.lines: dict[str, Line] = {}
        self.status: Status = "open"
        self.checkout: UUID | None = None
        self.closed: list[UUID] = []
        self.merged: set[UUID] = set()
        self.touched_at = self.created_on
        self.contents = 1
        self.abandoned = False

    @classmethod
    def take(cls, owner: UUID | None, currency: str, now: datetime, secret: str = "") -> Cart:
        """A new cart: a customer's, or a guest's with the hash of a token that only the guest has."""
        digits(currency)  # raises for what is no currency
        require((owner is None) == bool(secret), "a guest's cart has a secret, a customer's none")
        return cls(owner=owner, secret=secret, currency=currency, expires_at=now + KEPT)

    def add(self, sku: str, product: UUID, title: str, quantity: int, unit_price: int, now: datetime) -> None:
        """So many pieces more, at the price shown now."""
        self._open()
        require(quantity > 0, "at least one piece is added")
        require(0 <= unit_price <= AMOUNT_MAX, f"a price is 0 to {AMOUNT_MAX}")
        had = self.lines[sku].quantity if sku in self.lines else 0
        require(had + quantity <= QUANTITY_MAX, f"a line has at most {QUANTITY_MAX} pieces")
        require(had or len(self.lines) < LINES_MAX, f"a cart has at most {LINES_MAX} lines")
        self._back()
        self.trigger_event(
            Added,
            sku=sku,
            product=product,
            title=title,
            quantity=quantity,
            unit_price=unit_price,
            expires_at=now + KEPT,
        )

    def change(self, sku: str, quantity: int, now: datetime) -> None:
        """The line has so many pieces; none removes it."""
        if quantity == 0:
            self.remove(sku, now)
            return
        self._open()
        require(sku in self.lines, f"{sku} is not in the cart")
        require(0 < quantity <= QUANTITY_MAX, f"a line has 0 to {QUANTITY_MAX} pieces")
        if self.lines[sku].quantity == quantity:
            return
        self._back()
        self.trigger_event(Changed, sku=sku, quantity=quantity, expires_at=now + KEPT)

    def remove(self, sku: str, now: datetime) -> None:
        self._open()
        if sku not in self.lines:
            return
        self._back()
        self.trigger_event(Removed, sku=sku, expires_at=now + KEPT)

    def reprice(self, sku: str, unit_price: int, now: datetime) -> None:
        """The shopper accepts the price that is valid now."""
        self._open()
        require(sku in self.lines, f"{sku} is not in the cart")
        require(0 <= unit_price <= AMOUNT_MAX, f"a price is 0 to {AMOUNT_MAX}")
        if self.lines[sku].unit_price == unit_price:
            return
        self._back()
        self.trigger_event(Repriced, sku=sku, unit_price=unit_price, expires_at=now + KEPT)

    def merge(self, guest: UUID, currency: str, lines: Sequence[Line], now: datetime) -> None:
        """Take over a guest's lines: of a SKU in both, the larger quantity and the guest's price, the one seen last."""
        if guest in self.merged:
            return  # asked again
        self._open()
        require(currency == self.currency, f"a cart in {currency} does not merge into one in {self.currency}")
        made = []
        for line in lines:
            mine = self.lines.get(line.sku)
            made.append(replace(line, quantity=max(line.quantity, mine.quantity if mine else 0)))
        new = sum(line.sku not in self.lines for line in made)
        require(len(self.lines) + new <= LINES_MAX, f"a cart has at most {LINES_MAX} lines")
        self._back()
        self.trigger_event(Merged, guest=guest, lines=tuple(made), expires_at=now + KEPT)

    def give_up(self, into: UUID, contents: int) -> None:
        """The guest's side of a merge, of just the contents that the other cart takes over."""
        if self.status == "given up":
            return
        self._open()
        require(self.owner is None, "only a guest's cart is merged into another")
        require(into != self.id, "a cart is not merged into itself")
        require(self.contents == contents, "the cart has changed meanwhile; try again")
        self.trigger_event(GivenUp, into=into)

    def lock(self, checkout: UUID, contents: int) -> None:
        """Hold the cart for a checkout, if its lines are still those that the checkout has priced."""
        if self.checkout == checkout:
            return  # asked again
        require(checkout not in self.closed, f"checkout {checkout} has given the cart back")
        self._open()
        require(bool(self.lines), "the cart is empty")
        require(self.contents == contents, "the cart has changed since the checkout began")
        self._back()
        self.trigger_event(Locked, checkout=checkout)

    def unlock(self, checkout: UUID, now: datetime) -> None:
        """Give the cart back. Before its lock it closes the checkout: a lock that comes late finds it closed."""
        if checkout in self.closed or self.status in ("checked out", "given up", "expired"):
            return
        self.trigger_event(Unlocked, checkout=checkout, reopened=self.checkout == checkout, expires_at=now + KEPT)

    def check_out(self, checkout: UUID) -> None:
        """The locked lines are an order now."""
        if self.status == "checked out" and self.checkout == checkout:
            return
        require(self.status == "locked" and self.checkout == checkout, f"the cart is not locked by checkout {checkout}")
        self.trigger_event(CheckedOut, checkout=checkout)

    def abandon(self, untouched_since: datetime) -> None:
        """Nobody touched it after that time, as far as is known: once, and not if somebody did meanwhile."""
        if self.status != "open" or self.abandoned or not self.lines or self.touched_at > untouched_since:
            return
        self.trigger_event(Abandoned, untouched_since=untouched_since)

    def expire(self, now: datetime) -> None:
        if self.status == "open" and now - self.touched_at >= KEPT:
            self.trigger_event(Expired)

    def end(self, status: Status) -> None:
        """For `apply`: nothing is in the cart any more."""
        self.status, self.lines, self.abandoned = status, {}, False

    def _open(self) -> None:
        require(self.status != "locked", "the cart is being checked out")
        require(self.status == "open", f"the cart is {self.status}")

    def _back(self) -> None:
        if self.abandoned:
            self.trigger_event(Returned)

    def check(self) -> None:
        assert len(self.lines) <= LINES_MAX
        assert all(0 < line.quantity <= QUANTITY_MAX for line in self.lines.values())
        assert (self.status == "locked") <= (self.checkout is not None)
