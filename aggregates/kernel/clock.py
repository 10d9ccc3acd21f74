"""The time that events are stamped with. Tests set it; nothing in a domain reads it (commands take `now`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from schemas.values import uuid_of

Clock = Callable[[], datetime]


def wall() -> datetime:
    """The machine's time, UTC."""
    return datetime.now(UTC)


_clock: Clock = wall


def now() -> datetime:
    """The present moment, UTC, microseconds."""
    return _clock()


def set_clock(clock: Clock) -> Clock:
    """Replace the clock; returns the one that was in force, to be put back."""
    global _clock
    before, _clock = _clock, clock
    return before


def new_id() -> UUID:
    """A UUID version 7 (RFC 9562): ordered by time, so that new rows land together at the end of an index."""
    millis = time.time_ns() // 1_000_000
    bits = int.from_bytes(os.urandom(10), "big")
    return uuid_of((millis << 80) | (7 << 76) | ((bits >> 62 & 0xFFF) << 64) | (2 << 62) | (bits & (2**62 - 1)))


def random_id() -> UUID:
    """A UUID version 4."""
    bits = int.from_bytes(os.urandom(16), "big")
    return uuid_of(bits & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62)
