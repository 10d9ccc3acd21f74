"""The words that a domain may use. One page each: `event`, `errors`, `quota`, `causes`, `ledger`, `process`; the rest is the store's own."""

from __future__ import annotations

from aggregates.kernel.causes import Causes
from aggregates.kernel.commands import Commands, Origin, Receipt, TimerRef
from aggregates.kernel.discover import domains
from aggregates.kernel.errors import Conflict, Invalid, KernelError, NotFound, Refused, Reused, Unavailable, require
from aggregates.kernel.event import Aggregate, Cancel, Created, Event, Free, Take, Timer, event
from aggregates.kernel.ledger import OUTSIDE, Ledger
from aggregates.kernel.quota import Quota
from aggregates.kernel.store import Store
from aggregates.kernel.wire import Recorded
from schemas import Money, Sealed

__all__ = [
    "Aggregate",
    "Cancel",
    "Causes",
    "Commands",
    "Conflict",
    "Created",
    "Event",
    "Free",
    "Invalid",
    "KernelError",
    "Ledger",
    "Money",
    "NotFound",
    "OUTSIDE",
    "Origin",
    "Quota",
    "Receipt",
    "Recorded",
    "Refused",
    "Reused",
    "Sealed",
    "Store",
    "Take",
    "Timer",
    "TimerRef",
    "Unavailable",
    "domains",
    "event",
    "require",
]
