"""A read model and its true copy: a shadow built from the topics by the same projections, and brought to exactly the live one's position.

The live table goes on meanwhile. Each store's check reads rows and positions at one moment, and then has the shadow
follow to just those positions (`Shadowed.follow`): so what differs differs, however much is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from functools import cached_property
from typing import Any, NamedTuple

from infra.settings import Settings
from projections.kernel.clauses import Projection
from projections.kernel.runner import Delivery, Position
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from replay.checks import SHOWN_MAX, Checked, Difference
from replay.loading import LeavingOut
from replay.log import ReplayError, Span, Tail, read

Lane = tuple[str, int]
TRIES_MAX = 20  # to catch the live table at a position that the shadow is not beyond
PAUSE_S = 0.5
STILL_S = 5.0  # a live table that does not move for so long although there is more to see is stuck


class Ahead(Exception):
    """The shadow has seen what the live table has not yet: look again a little later."""


class Found(NamedTuple):
    """A row that differs: its key, how, and what a store's check finds it by."""

    key: Any
    why: str
    values: Any = None


def ends(
    of: Settings, tables: Collection[AnyTable], feeds: Mapping[AnyTable, Collection[str]], logs: Collection[Span]
) -> list[Span]:
    """The logs up to where all of these tables, of one sink, are: a copy that is built so far is ahead of none of them."""
    [name] = {table.sink for table in tables}
    with closing(sink_of(name, of)) as sink:
        at: dict[Lane, int] = {}
        for domain in {
            span.domain for span in logs
        }:  # a question a domain: one a partition is what a small check would take
            its = [table for table in tables if domain in feeds[table]]
            partitions = [span.partition for span in logs if span.domain == domain]
            for (_, partition), position in sink.positions(its, domain, partitions).items():
                lane = domain, partition
                at[lane] = min(at.get(lane, position.offset + 1), position.offset + 1)
        return [span._replace(end=max(span.first, min(span.end, at[span.domain, span.partition]))) for span in logs]


class Shadowed:
    """A live table, and its shadow that follows it."""

    def __init__(
        self,
        of: Settings,
        projection: Projection,
        table: AnyTable,
        shadow: AnyTable,
        spans: Collection[Span],
        aside: Collection[tuple[str, int, int]] = (),
    ) -> None:
        """`aside`: the events that the live table leaves out, for they wait in the dead-letter queue."""
        self.of, self.projection, self.table, self.shadow, self.spans = of, projection, table, shadow, spans
        self.lanes = [(span.domain, span.partition) for span in spans]
        self._stack = ExitStack()
        self._sink = self._stack.enter_context(closing(sink_of(table.sink, of)))
        domains = sorted({span.domain for span in spans})
        self._aside = aside
        left_out = {f"{table.sink}.{projection.name}": aside}
        self._runner = LeavingOut(self._sink, [projection], domains, {table: shadow}, left_out)
        self._starts = {lane: anchor.offset + 1 for lane, anchor in self._runner.assign(self.lanes).items()}
        self._was: dict[Lane, Position] = {}  # where the live table was at the last look
        self._held: list[Delivery] = []  # read, and beyond what the live table had seen

    def close(self) -> None:
        self._stack.close()

    @cached_property
    def _tail(self) -> Tail:
        """Connected when the live table has moved on: most have not."""
        return self._stack.enter_context(closing(Tail(self.of, self._starts)))

    def live(self) -> dict[Lane, Position]:
        """How far the live table is."""
        found: dict[Lane, Position] = {}
        for domain in sorted({domain for domain, _ in self.lanes}):
            its = [partition for lane, partition in self.lanes if lane == domain]
            stored = self._sink.positions([self.table], domain, its)
            found |= {(domain, partition): stored[self.table, partition] for partition in its}
        self._was = found
        return found

    def seen(self) -> dict[Lane, int]:
        """The last event of each partition that the shadow has."""
        return {lane: self._runner.lanes[lane].positions[self.shadow].notification_id for lane in self.lanes}

    def follow(self, to: Mapping[Lane, Position]) -> None:
        """Bring the shadow to these positions, no further. Raises Ahead; ReplayError for events that are not in the topic."""
        seen = self.seen()
        if any(to[lane].notification_id < id for lane, id in seen.items()):
            raise Ahead
        if all(to[lane].notification_id == id for lane, id in seen.items()):
            return
        ends = self._tail.ends()
        waiting, self._held = self._held, []
        self._take(waiting, to)
        # An offset is where an event was when it was seen: in a topic that was written anew it may stand further on.
        for reach in ({lane: min(to[lane].offset, end) for lane, end in ends.items()}, ends):
            seen = self.seen()
            for batch in self._tail.until(
                {lane: at for lane, at in reach.items() if seen[lane] < to[lane].notification_id}
            ):
                self._take(batch, to)
        for lane, id in self.seen().items():
            if id < to[lane].notification_id:
                raise ReplayError(
                    f"{self.table.sink} {self.table.name} has seen notification {to[lane].notification_id} of {lane[0]} [{lane[1]}], "
                    f"which is not in the topic, that ends with {id}"
                )

    def _take(self, deliveries: Collection[Delivery], to: Mapping[Lane, Position]) -> None:
        for one in deliveries:
            if one.notification_id > to[one.topic, one.partition].notification_id:
                self._held.append(one)
        due = [one for one in deliveries if one.notification_id <= to[one.topic, one.partition].notification_id]
        if due:
            self._runner.handle(due)

    def stuck(self) -> int:
        """How many records the live table is behind what was in the topics at first, if it does not come on."""
        live = self._was or self.live()  # positions never go back
        lagging = [
            span for span in self.spans if span.records and live[span.domain, span.partition].offset + 1 < span.end
        ]
        if not lagging:
            return 0
        # In a topic that was written anew offsets say little: is there anything new in its last record?
        newest = {
            (one.topic, one.partition): one.notification_id
            for batch in read(self.of, [span._replace(first=span.end - 1) for span in lagging])
            for one in batch
        }
        behind, since = self._behind(newest), time.monotonic()
        while behind and time.monotonic() - since < STILL_S:
            time.sleep(0.1)
            before, behind = behind, self._behind(newest)
            if behind < before:
                since = time.monotonic()
        return behind

    def _behind(self, newest: Mapping[Lane, int]) -> int:
        live, ends = self.live(), {(span.domain, span.partition): span.end for span in self.spans}
        return sum(ends[lane] - live[lane].offset - 1 for lane, id in newest.items() if id > live[lane].notification_id)

    def caught(self, look: Callable[[], Any]) -> Any:
        """What `look` answers, which raises Ahead while the live table is behind the shadow. Raises ReplayError in the end."""
        for _ in range(TRIES_MAX):
            try:
                return look()
            except Ahead:
                time.sleep(PAUSE_S)  # the live worker is at it
        raise ReplayError(
            f"{self.table.sink} {self.table.name} does not come on: is its worker running? It is not compared"
        )

    def differences(self, found: Collection[Found]) -> list[Difference]:
        """Rows as differences, the first of them with the last event that made them, in the order of the log."""
        what = f"{self.table.sink} {self.table.name}"
        made = {str(one.key): Difference(what, shown(self.table, one.key), one.why) for one in found}
        wanted = {str(one.key) for one in list(found)[:SHOWN_MAX]}
        only = self.projection.only([self.table])
        for batch in read(self.of, [span._replace(end=end) for span, end in self._ends()]):
            for delivery in batch:
                if (delivery.topic, delivery.partition, delivery.notification_id) in self._aside:
                    continue  # it may be poison
                for clause in only.of(delivery.type) or ():
                    for change in clause.call(delivery.recorded() if clause.whole else delivery.event()):
                        if change.table is self.table and (key := str(change.key)) in wanted:
                            one = made[key]
                            one.domain, one.partition, one.offset = delivery.topic, delivery.partition, delivery.offset
                            one.notification_id = delivery.notification_id
        return sorted(made.values(), key=lambda one: (one.domain == "", one.domain, one.notification_id))

    def _ends(self) -> list[tuple[Span, int]]:
        live = self.live()
        return [
            (span, max(span.first, min(live[span.domain, span.partition].offset + 1, max(span.end, span.first))))
            for span in self.spans
        ]

    def checked(self) -> Checked:
        return Checked(f"{self.table.sink} {self.table.name}")


def shown(table: AnyTable, key: Any) -> str:
    """A row's key for people: `id=…`."""
    parts = key if isinstance(key, tuple) else (key,)
    return " ".join(f"{name}={part}" for name, part in zip(table.key, parts, strict=False))
