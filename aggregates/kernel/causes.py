"""Causes: what has had its effect on an aggregate, so that it has it once, under whatever command ids it is told again.

Command ids tell a repeated command from a new one only while they are kept; a store that was rebuilt from its topics knows none of
its sagas'. `may_take` decides for an aggregate's commands; `take` records, in its events' `apply`, and never refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from aggregates.kernel.errors import require
from aggregates.kernel.quota import CLOSED_KEPT


@dataclass
class Causes:
    """`taken`: the amount and the event time of each, oldest first. Those of `CLOSED_KEPT` ago are forgotten."""

    taken: dict[UUID, tuple[int, datetime]] = field(default_factory=dict)

    def may_take(self, cause: UUID, amount: int) -> bool:
        """True for a new one, False when it has had this effect. Raises `Refused` when it was of another amount."""
        if cause not in self.taken:
            return True
        before, _ = self.taken[cause]
        require(before == amount, f"{cause} was of {before}, not {amount}")
        return False

    def take(self, cause: UUID, amount: int, at: datetime) -> None:
        """Record an effect."""
        self.taken[cause] = amount, at
        for oldest, (_, then) in list(self.taken.items()):
            if at - then <= CLOSED_KEPT:
                break
            del self.taken[oldest]
