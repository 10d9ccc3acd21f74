"""Quota: reserve → confirm → release against limits, for stock, vouchers, coupons, budgets and slots.

A reservation has a cause (an order's id, say) and ends exactly once: confirmed, released or expired, whichever comes
first. What was released before it was reserved stays closed, so a reserve that was delayed finds it closed.
The `may_…` methods decide for an aggregate's commands; the others record, in its events' `apply`, and never refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from aggregates.kernel.errors import Refused, require

Ending = Literal["confirmed", "released", "expired"]

CLOSED_KEPT = timedelta(days=30)
"""How long the ending of a reservation is remembered: longer than any message is under way. Bounds a hot aggregate's state."""


@dataclass(frozen=True, slots=True)
class Closed:
    """How a reservation ended, and when (event time)."""

    ending: Ending
    at: datetime


@dataclass
class Quota:
    """`limits`, `used` (confirmed) and held amounts by scope. A scope without a limit is unlimited.

    Scopes are checked in the order in which `may_reserve` gets them: name a per-user cap before the common limit.
    """

    limits: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    holds: dict[UUID, dict[str, int]] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    closed: dict[UUID, Closed] = field(default_factory=dict)

    def free(self, scope: str) -> int | None:
        """What may still be reserved; None for no limit. Negative when the limit was lowered below what is taken."""
        limit = self.limits.get(scope)
        return None if limit is None else limit - self.used.get(scope, 0) - self.reserved.get(scope, 0)

    def may_reserve(self, cause: UUID, amounts: Mapping[str, int]) -> bool:
        """True to reserve, False when this very reservation is held or confirmed already. Raises `Refused`."""
        if cause in self.holds:
            require(self.holds[cause] == dict(amounts), f"reservation {cause} is held with other amounts")
            return False
        if ended := self.closed.get(cause):
            if ended.ending == "confirmed":
                return False
            raise Refused(f"reservation {cause} is already {ended.ending}")
        for scope, amount in amounts.items():
            require(amount > 0, f"an amount to reserve is at least 1, not {amount}")
            free = self.free(scope)
            require(free is None or amount <= free, f"{amount} of {scope} is more than the {free} left")
        return True

    def may_confirm(self, cause: UUID) -> bool:
        """True to confirm, False when it is confirmed already. Raises `Refused` when it is not held."""
        ended = self.closed.get(cause)
        if ended and ended.ending == "confirmed":
            return False
        require(not ended, f"reservation {cause} is already {ended.ending if ended else ''}")
        require(cause in self.holds, f"reservation {cause} is not held")
        return True

    def may_release(self, cause: UUID) -> bool:
        """True to release, or to close what never was reserved; False when it ended unconfirmed. Raises `Refused`."""
        ended = self.closed.get(cause)
        require(not ended or ended.ending != "confirmed", f"reservation {cause} is already confirmed")
        return ended is None

    def may_expire(self, cause: UUID) -> bool:
        """True when it is held still. Never refuses: a time-out that comes late does nothing."""
        return cause in self.holds

    def limit(self, scope: str, amount: int | None) -> None:
        """Record a new limit; None removes it."""
        if amount is None:
            self.limits.pop(scope, None)
        else:
            self.limits[scope] = amount

    def reserve(self, cause: UUID, amounts: Mapping[str, int]) -> None:
        """Record a reservation."""
        self.holds[cause] = dict(amounts)
        for scope, amount in amounts.items():
            self.reserved[scope] = self.reserved.get(scope, 0) + amount

    def confirm(self, cause: UUID, at: datetime) -> None:
        """Record that what was held is used."""
        for scope, amount in self._end(cause, "confirmed", at).items():
            self.used[scope] = self.used.get(scope, 0) + amount

    def release(self, cause: UUID, at: datetime, ending: Ending = "released") -> None:
        """Record that what was held (or nothing yet) is given back for good."""
        self._end(cause, ending, at)

    def may_give_back(self, scope: str, amount: int) -> None:
        """Raises `Refused` for more than is used."""
        used = self.used.get(scope, 0)
        require(0 < amount <= used, f"{amount} of {scope} is not between 1 and the {used} used")

    def give_back(self, scope: str, amount: int) -> None:
        """Record that a part of what is used is free again."""
        self.used[scope] -= amount

    def _end(self, cause: UUID, ending: Ending, at: datetime) -> dict[str, int]:
        amounts = self.holds.pop(cause, {})
        for scope, amount in amounts.items():
            self.reserved[scope] -= amount
        self.closed[cause] = Closed(ending, at)
        oldest = next(iter(self.closed))  # dicts keep their order: the oldest endings stand first
        while oldest != cause and at - self.closed[oldest].at > CLOSED_KEPT:
            del self.closed[oldest]
            oldest = next(iter(self.closed))
        return amounts

    def check(self) -> None:
        """Assert that the sums are those of the holds, and that nothing held is closed."""
        sums: dict[str, int] = {}
        for amounts in self.holds.values():
            for scope, amount in amounts.items():
                sums[scope] = sums.get(scope, 0) + amount
        assert sums == {scope: amount for scope, amount in self.reserved.items() if amount}, (sums, self.reserved)
        assert self.holds.keys().isdisjoint(self.closed)
