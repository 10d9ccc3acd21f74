"""The number that people call an order by."""

from __future__ import annotations

import hashlib
from datetime import datetime
from uuid import UUID

# Crockford's base 32 in place of RFC 4648's: no I, L, O, U to be misread.
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAIRS = [a + b for a in CROCKFORD for b in CROCKFORD]


def number_of(id: UUID, now: datetime) -> str:
    """The order's number for people: its UTC day and 45 bits of its id's digest. Unique by claim; it says nothing of sales."""
    bits = int.from_bytes(hashlib.sha256(id.bytes).digest()[:6]) >> 3
    left = f"{PAIRS[bits >> 35]}{PAIRS[bits >> 25 & 1023]}{CROCKFORD[bits >> 20 & 31]}"
    right = f"{PAIRS[bits >> 10 & 1023]}{PAIRS[bits & 1023]}"
    return f"T{now.year % 100:02}{now.month:02}{now.day:02}-{left}-{right}"
