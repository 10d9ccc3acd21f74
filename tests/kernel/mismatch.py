"""What a stand-in was asked, or said itself, that its vendor doesn't allow, for the test in which it happened to fail of."""

from __future__ import annotations

_told: list[str] = []


def mismatch(why: str) -> None:
    _told.append(why)


def mismatches() -> list[str]:
    """All since the last time."""
    told = _told.copy()
    _told.clear()
    return told
