"""The events of one key in the order of the log's own times, and which of them are to be judged anew when one comes.

This is all there is of a rule's semantics: the live host and the back-test both go through it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from aggregates.kernel import Event
from streams.kernel.rules.rule import Hit, Rule, Window


class Entry(NamedTuple):
    """An event in its place: the first three fields are its order, the same for every reader of the log.

    `judged`: whether a hit of it counts; one that is not is there for the windows of others.
    """

    at: datetime
    domain: str
    position: int
    event_id: UUID
    event: Event
    judged: bool


class Timeline:
    """`entries` are all that is known of the key, or at least what the windows at hand need."""

    __slots__ = ("entries", "rule")

    def __init__(self, rule: Rule[Any], entries: Iterable[Entry] = ()) -> None:
        self.rule, self.entries = rule, sorted(entries, key=_order)

    def add(self, entry: Entry) -> range:
        """Put an event in its place; answers with the indexes of those whose windows have it, which are to be judged (anew)."""
        entries = self.entries
        if not entries or entries[-1][:3] < entry[:3]:
            entries.append(entry)
            return range(len(entries) - 1, len(entries))
        first = bisect_left(entries, entry[:3], key=_order)
        if entries[first][:3] != entry[:3]:
            entries.insert(first, entry)
        until, last = entry.at + self.rule.window, first + 1
        most = min(len(entries), first + self.rule.events_max)
        while last < most and entries[last].at < until:
            last += 1
        return range(first, last)

    def judge(self, index: int) -> Hit | None:
        """What the rule says of one. Raises whatever the rule does, `TypeError` for an answer that is no hit."""
        entries, rule = self.entries, self.rule
        judged = entries[index]
        start, least, first = judged.at - rule.window, max(0, index + 1 - rule.events_max), index
        while first > least and entries[first - 1].at > start:
            first -= 1
        hit = rule.judge(judged.event, Window([one.event for one in entries[first : index + 1]], judged.at))
        if hit is not None and not isinstance(hit, Hit):
            raise TypeError(f"rule {rule.id} answers with {hit!r}, not with a Hit or None")
        return hit

    def forget(self, before: datetime) -> None:
        """Drop what happened before: no window reaches so far back any more."""
        del self.entries[: bisect_left(self.entries, before, key=_when)]


def _order(entry: Entry) -> tuple[datetime, str, int]:
    return entry[:3]


def _when(entry: Entry) -> datetime:
    return entry.at
