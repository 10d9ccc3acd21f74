"""A rule over records of the topics: the same timelines as live, in memory, and nothing that goes out.

Records may come in any order, whatever their partitions: what stands in the end is the same (`streams.kernel.rules` says why). In the
order of their times nearly every event is judged once, and what no window needs any more can be forgotten on the way.

But for what comes too late: live has forgotten its window by then and parks it, so here it is left out. As live does, this goes by
the partition that is furthest behind, batch by batch. (Live looks once a minute: within that minute it may still take one.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from aggregates.kernel.clock import wall
from aggregates.kernel.event import EPOCH
from projections.kernel.runner import Delivery
from streams.kernel.rules.rule import Hit, Rule
from streams.kernel.rules.secret import MakeKeys, Secret, no_key
from streams.kernel.rules.timeline import Entry, Timeline

Lane = tuple[str, int]  # domain, partition

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


class Mark:
    """How far a partition has got: the latest time of an event, and the last id."""

    __slots__ = ("at", "id")

    def __init__(self) -> None:
        self.at, self.id = EPOCH, 0


class TooManyErrors(Exception):
    """The rule fails again and again; the message has the last failure."""


class BackTest:
    """One rule over history. `judged` counts the events that it has a use for, those between `since` and `until`; others fill
    windows only. `lanes`: all partitions of its domains, also those that no event comes from."""

    def __init__(
        self,
        rule: Rule[Any],
        since: datetime | None = None,
        until: datetime | None = None,
        blind: MakeKeys = no_key,
        lanes: Iterable[Lane] = (),
        clock: Callable[[], datetime] = wall,
    ) -> None:
        self.rule, self.since, self.until, self._blind, self._clock = rule, since, until, blind, clock
        self.judged = 0
        self.late = 0
        """Events that were left out: they came after what no window needs any more was forgotten, where live parks them."""
        self.horizon = EPOCH
        """No event from before it is taken over any more."""
        self.errors: dict[tuple[datetime, str, int], str] = {}
        self._types = {kind.type for kind in rule.kinds}
        self._lines: dict[str, Timeline] = {}
        self._hits: dict[tuple[datetime, str, int], Found] = {}
        self._marks = {lane: Mark() for lane in lanes}

    async def take(self, batch: Iterable[Delivery]) -> None:
        """Take over records, each once. Raises `TooManyErrors`, `NoKey`."""
        wanted: list[tuple[str | Secret | None, Entry]] = []
        secrets: list[Secret] = []
        types, since, until, rule, marks = self._types, self.since, self.until, self.rule, self._marks
        horizon = self.horizon = self._horizon()
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
            mark = marks.get(where) or marks.setdefault(where, Mark())
            again = one.position <= mark.id  # a relay publishes some twice
            if not again:
                mark.id = one.position
            if at > mark.at:
                mark.at = at
            judged = (since is None or at >= since) and (until is None or at <= until)
            try:
                key = rule.key(event)
            except Exception as error:
                self._failed((at, delivery.topic, one.position), error)
                continue
            if key is None:
                continue
            if at < horizon:
                self.late += not again
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

    def passed(self, lane: Lane, at: datetime) -> None:
        """A partition has got to a record of this time, of whatever event."""
        mark = self._marks.setdefault(lane, Mark())
        mark.at = max(mark.at, at)

    def _horizon(self) -> datetime:
        mark = min((one.at for one in self._marks.values()), default=EPOCH)
        return max(self.horizon, min(mark, self._clock()) - self.rule.late) if mark > EPOCH else self.horizon

    def forget(self) -> None:
        """Drop events that no window of an event from the horizon on reaches back to."""
        start = self.horizon - self.rule.window
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
