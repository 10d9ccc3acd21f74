"""A rule over records of the topics: the same timelines as live, in memory, and nothing that goes out.

Records may come in any order, whatever their partitions: what stands in the end is the same (`streams.kernel.rules` says why). In the
order of their times nearly every event is judged once, and what no window needs any more can be forgotten on the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from aggregates.kernel.event import EPOCH
from projections.kernel.runner import Delivery
from streams.kernel.rules.rule import Hit, Rule
from streams.kernel.rules.secret import MakeKeys, Secret, no_key
from streams.kernel.rules.timeline import Entry, Timeline

ERRORS_MAX = 10_000  # of a rule that fails: more than that is no back-test


class Found(NamedTuple):
    """A hit and the event that it is of."""

    at: datetime
    domain: str
    position: int
    event_id: UUID
    event_type: str
    id: UUID
    hit: Hit


class TooManyErrors(Exception):
    """The rule fails again and again; the message has the last failure."""


class BackTest:
    """One rule over history. `judged` counts the events that it has a use for, those between `since` and `until`; others fill
    windows only."""

    def __init__(
        self, rule: Rule[Any], since: datetime | None = None, until: datetime | None = None, blind: MakeKeys = no_key
    ) -> None:
        self.rule, self.since, self.until, self._blind = rule, since, until, blind
        self.judged = 0
        self.late = 0
        """Events that came more than `late_s` behind a record of their partition: live parks such a one."""
        self.errors: dict[tuple[datetime, str, int], str] = {}
        self._types = {kind.type for kind in rule.kinds}
        self._lines: dict[str, Timeline] = {}
        self._hits: dict[tuple[datetime, str, int], Found] = {}
        self._latest: dict[tuple[str, int], datetime] = {}

    async def take(self, batch: Iterable[Delivery]) -> None:
        """Take over records, each once. Raises `TooManyErrors`, `NoKey`."""
        wanted: list[tuple[str | Secret | None, Entry]] = []
        secrets: list[Secret] = []
        types, since, until, rule, latest = self._types, self.since, self.until, self.rule, self._latest
        for delivery in batch:
            if delivery.type not in types:
                continue
            try:
                one = delivery.recorded()
            except Exception as error:
                self._failed((EPOCH, delivery.topic, delivery.notification_id), error)
                continue
            event = one.event
            at, where = event.at, (delivery.topic, delivery.partition)
            newest = latest.get(where, at)
            if at >= newest:
                latest[where] = at
            elif at < newest - rule.late:
                self.late += 1
            judged = (since is None or at >= since) and (until is None or at <= until)
            try:
                key = rule.key(event)
            except Exception as error:
                self._failed((at, delivery.topic, one.position), error)
                continue
            if key is None:
                continue
            entry = Entry(at, delivery.topic, one.position, one.event_id, event, judged)
            if isinstance(key, Secret):
                secrets.append(key)
                wanted.append((key, entry))
            elif secrets:
                wanted.append((key, entry))
            else:
                self._put(key, entry)
        if secrets:
            keys = iter(await self._blind(secrets))
            for given, entry in wanted:
                if name := next(keys) if isinstance(given, Secret) else given:
                    self._put(name, entry)

    def _put(self, key: str, entry: Entry) -> None:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Timeline(self.rule)
        before = len(line.entries)
        affected = line.add(entry)
        self.judged += entry.judged and len(line.entries) > before  # a relay publishes some twice
        for index in affected:
            one = line.entries[index]
            if not one.judged:
                continue
            hit, order = None, one[:3]
            try:
                hit = line.judge(index)
                if self.errors:
                    self.errors.pop(order, None)
            except Exception as error:
                self._failed(order, error)
            if hit is not None:
                self._hits[order] = Found(*order, one.event_id, one.event.type, one.event.id, hit)
            elif self._hits:
                self._hits.pop(order, None)

    def _failed(self, order: tuple[datetime, str, int], error: Exception) -> None:
        self.errors[order] = f"{order[1]}:{order[2]}: {type(error).__name__}: {error}"
        if len(self.errors) > ERRORS_MAX:
            raise TooManyErrors(f"rule {self.rule.id} failed {len(self.errors)} times, the last: {self.errors[order]}")

    def forget(self, before: datetime) -> None:
        """Drop events that no window of an event from `before` on reaches back to."""
        start = before - self.rule.window
        for key, line in list(self._lines.items()):
            if line.entries[0].at < start:
                line.forget(start)
                if not line.entries:
                    del self._lines[key]

    @property
    def hits(self) -> list[Found]:
        """What stands, by time."""
        return [self._hits[order] for order in sorted(self._hits)]

    @property
    def keys(self) -> int:
        """Of how many keys there are events in memory."""
        return len(self._lines)
