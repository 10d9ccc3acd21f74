"""From deliveries to a sink: the one loop body that the live worker and replay share. It knows no Kafka.

A lane is one partition of one topic. Each table has its own position in each lane, `(notification id, offset)`: the ids
decide what is a duplicate, the offset is only where to read on. Positions move in the sink's own transaction and only from
where this runner believes them to be: of two runners of one lane the second gets `Fenced`, and reads its positions anew.

A delivery that can't be projected (its clause raises, its bytes can't be read, the store refuses its values) is poison:
it is parked together with all later ones of its aggregate, so that the aggregate's order stays, and the others flow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol
from uuid import UUID

from aggregates.kernel import wire
from aggregates.kernel.event import EPOCH, EVENTS, RENAMED, UNREAD, Event
from aggregates.kernel.wire import Recorded
from projections.kernel.clauses import Projection
from projections.kernel.tables import AnyTable, Change
from schemas.values import uuid_of

if TYPE_CHECKING:
    from schemas.external import Ids


class Fenced(Exception):
    """Another runner moved the position: nothing of this batch was applied. Read the positions anew and go on from them."""


class Down(Exception):
    """The store does not answer or can't work now. Whether the batch was applied is unknown; try it again, for ever."""


class BadData(Exception):
    """The store refuses the values of some change in the batch, and would again. Nothing of it was applied."""


class Broken(Exception):
    """A person has to act: the table differs from its definition, or is half written. The message says what to do."""


class Poison(Exception):
    """A delivery can't be projected, and there is nowhere to park it. Says which, and why."""

    def __init__(self, processor: str, delivery: Delivery, error: BaseException) -> None:
        what = delivery.type or "a record that is not one of ours"
        where = f"{delivery.topic} [{delivery.partition}] offset {delivery.offset}"
        super().__init__(
            f"{processor} can't take {what} at {where}, {delivery.key.decode('utf-8', 'replace')}: "
            f"{type(error).__name__}: {error}"
        )


class Position(NamedTuple):
    """The last event that a table has seen of a lane: its notification id, and the offset that it was read at."""

    notification_id: int
    offset: int


START = Position(0, -1)
REBUILT = "!"
"""Behind a topic's name: the lane whose positions say how far a rebuild has filled a table, with parked events as well."""


class Delivery:
    """One record of a domain's topic. `notification_id` is 0 for a record that is not one of ours; `type` is what the event
    is called today, also where it was written under an older name.

    What a clause asks for is decoded once and no more than that: the event alone costs a third of the whole `Recorded`. Thousands
    wait for their batch to end, and bulk work is as slow as its memory is large: of the relay's headers only the values are kept.
    """

    __slots__ = (
        "_event",
        "_more",
        "_ours",
        "_recorded",
        "_values",
        "key",
        "notification_id",
        "offset",
        "partition",
        "topic",
        "type",
        "value",
    )
    ids: ClassVar[Ids | None] = None
    """Those of the external registry that `value` is written with; None where it has our own."""

    def __init__(
        self, topic: str, partition: int, offset: int, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        self.topic, self.partition, self.offset = topic, partition, offset
        self.key, self.value = key, value
        self._event: Event | None = None
        self._recorded: Recorded[Any] | None = None
        self._values: tuple[Any, ...]  # of `wire.HEADERS`; None for what is missing
        self._more: Sequence[tuple[str, bytes]]
        try:
            (a, event_id), (b, type), (c, version), (d, number), (e, at), (f, correlation), (g, actor), *more = headers
            self._ours = (a, b, c, d, e, f, g) == wire.HEADERS
        except ValueError:  # fewer
            self._ours = False
        if self._ours:
            self._values, self._more = (event_id, type, version, number, at, correlation, actor), more or ()
        else:  # in another order, as older relays wrote them, or not one of our records
            found = dict(headers)
            self._values, self._more = tuple(map(found.get, wire.HEADERS)), headers
            type, number = found.get("event-type", b""), found.get("notification-id", b"")
        self.notification_id = int(number) if number and number.isdigit() else 0
        name = _text(type) if type else ""
        self.type = RENAMED.get(name, name)

    @classmethod
    def written_with(cls, ids: Ids | None) -> type[Delivery]:
        """The class for records of topics that have an external registry's ids."""
        return cls if ids is None else type("Delivery", (cls,), {"__slots__": (), "ids": ids})

    @property
    def correlation(self) -> str:
        """The id of the request that caused the event; "" where its headers don't say."""
        found = self._values[5]
        return found.decode("utf-8", "replace") if found else ""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """As they came."""
        return [*zip(wire.HEADERS, self._values, strict=True), *self._more] if self._ours else self._more

    def event(self, whole: bool = True) -> Event:
        """Decoded, once; if not `whole`, only when a field is asked for (`wire.undecoded`).

        Raises what `wire.decode` raises, ValueError for what is missing.
        """
        event = self._event
        if event is None or (whole and UNREAD in event.__dict__):
            _, _, version, _, at, _, _ = self._values
            if not version or not at:
                raise ValueError("a record without its version or its time")
            id, moment = _id(self.key), EPOCH + int(at) * wire.MICROSECOND
            value = self.value if self.ids is None else self.ids.stored(self.value)
            cls = None if whole else EVENTS.get(self.type)
            if cls is None or defaulted(cls):
                event = wire.decode(self.topic, id, int(version), moment, value)
            else:
                event = wire.undecoded(cls, id, int(version), moment, value)
            self._event = event
        return event

    def forget(self) -> None:
        """What was decoded. It can be decoded again."""
        self._event = self._recorded = None

    def recorded(self, whole: bool = True) -> Recorded[Any]:
        """Decoded, once, with the same event."""
        if self._recorded is None or (whole and UNREAD in self._recorded.event.__dict__):
            event_id, _, _, _, _, correlation, actor = self._values
            if event_id is None or correlation is None or actor is None:
                raise ValueError("a record without its id, correlation or actor")
            causation = dict(self._more).get("causation-id")
            self._recorded = Recorded(
                self.event(whole),
                _uuid(event_id),
                self.notification_id,
                correlation.decode(),
                _uuid(causation) if causation else None,
                actor.decode(),
            )
        return self._recorded


@lru_cache(maxsize=1_000)
def _text(type: bytes) -> str:
    return type.decode("utf-8", "replace")


def _uuid(text: bytes) -> UUID:
    """A UUID from its text, three times as fast as its constructor, which allows braces and urn: as well."""
    if len(text) != 36:
        raise ValueError(f"{text!r} is not the id of an aggregate")
    return uuid_of(int(text.replace(b"-", b""), 16))


_id = lru_cache(maxsize=10_000)(_uuid)  # an aggregate's events come close together


@lru_cache(maxsize=10_000)
def defaulted(cls: type[Event]) -> bool:
    """Whether some field of an event has a default, which its class then answers with."""
    return any(hasattr(cls, one.name) for one in fields(cls))


class Move(NamedTuple):
    """A table's position in a lane, before and after a batch."""

    table: AnyTable
    topic: str
    partition: int
    old: Position
    new: Position


class Batch(NamedTuple):
    """What a sink applies as one: the changes of each table in order, each with its delivery, and how positions move."""

    changes: Mapping[AnyTable, Sequence[tuple[Delivery, Change]]]
    moves: Sequence[Move]


class Sink(Protocol):
    """Where tables live. Every method may raise `Down`."""

    name: str

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        """The position of each table in each partition; `START` where it has seen nothing."""

    def apply(self, batch: Batch) -> None:
        """All of it or nothing, positions included. Raises Fenced, BadData, Broken or Down.

        It may still be on its way when this returns. If that fails, the next call raises Fenced.
        """

    def settle(self) -> None:
        """Return when nothing is on its way any more. Raises Fenced or Broken for what failed."""

    def close(self) -> None: ...


class Parking(Protocol):
    """Where poison waits. Every method may raise `Down`; what is parked is durable when the method returns."""

    def blocked(self, processors: Collection[str], topic: str) -> set[tuple[str, bytes]]:
        """The (processor, key) of aggregates whose deliveries have to wait behind a parked one."""

    def park(self, processor: str, delivery: Delivery, error: BaseException) -> None:
        """Park a poison delivery, and block its aggregate. Raises TooManyParked past the limits, before parking it."""

    def follow(self, processor: str, delivery: Delivery) -> bool:
        """Park a delivery behind its aggregate's poison. False: the aggregate is not blocked any more, so project it."""

    def taken(self, deliveries: int) -> None:
        """So many come next: what the share of poison is measured against."""


class Lane:
    """The positions of the tables fed by one partition, as this runner believes them to be."""

    __slots__ = ("high", "low", "partition", "positions", "topic")

    def __init__(self, topic: str, partition: int, positions: dict[AnyTable, Position]) -> None:
        self.topic, self.partition, self.positions = topic, partition, positions
        self.measure()

    def measure(self) -> None:
        ids = [position.notification_id for position in self.positions.values()]
        self.low, self.high = min(ids), max(ids)

    @property
    def anchor(self) -> Position:
        """The last record that every table has seen: reading starts with it, to prove that the log is still the same."""
        return min(self.positions.values())


class Feed:
    """What one topic feeds: the tables of one projection, and the aggregates of the topic whose deliveries wait in the
    dead-letter queue of its `processor`, `postgres.wallet`."""

    __slots__ = ("blocked", "processor", "projection", "tables")

    def __init__(self, projection: Projection, processor: str, tables: list[AnyTable]) -> None:
        self.projection, self.processor, self.tables = projection, processor, tables
        self.blocked: set[bytes] = set()


class Runner:
    """Applies deliveries to the tables of one sink. One thread's own.

    `targets` maps a table to the one written in its place (a shadow); without it every table of `sink` is written.
    Without `parking` poison raises (a rebuild stops at it). With `sequence`, the key of one aggregate, the positions are
    those of its parked deliveries, which are a lane of their own: the live lanes have passed them long ago. Those that a
    table was rebuilt with are passed over.
    """

    def __init__(
        self,
        sink: Sink,
        projections: Iterable[Projection],
        domains: Collection[str],
        parking: Parking | None = None,
        targets: Mapping[AnyTable, AnyTable] | None = None,
        sequence: str = "",
    ) -> None:
        self.sink, self.parking = sink, parking
        self.suffix = f"!{sequence}" if sequence else ""
        self.targets: dict[AnyTable, AnyTable] = {}
        self.feeds: dict[str, list[Feed]] = {}
        self.lanes: dict[tuple[str, int], Lane] = {}
        for projection in projections:
            tables = [t for t in projection.tables if t.sink == sink.name and (targets is None or t in targets)]
            if not tables:
                continue
            self.targets.update((table, table if targets is None else targets[table]) for table in tables)
            written = [self.targets[table] for table in tables]
            if targets is not None:
                projection = projection.only(tables)
            for domain in domains if projection.everything else projection.domains & set(domains):
                feed = Feed(projection, f"{sink.name}.{projection.name}", written)
                self.feeds.setdefault(domain, []).append(feed)

    @property
    def topics(self) -> list[str]:
        """The domains that feed a table of this sink."""
        return sorted(self.feeds)

    def assign(self, lanes: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Position]:
        """Take over lanes: read their positions, and answer where each is to be read from (`Lane.anchor`)."""
        by_topic: dict[str, list[int]] = {}
        for topic, partition in lanes:
            by_topic.setdefault(topic, []).append(partition)
        anchors = {}
        for topic, partitions in by_topic.items():
            feeds = self.feeds[topic]
            tables = [table for feed in feeds for table in feed.tables]
            stored = self.sink.positions(tables, topic + self.suffix, partitions)
            if self.suffix:
                stored = self._behind_rebuilt(stored, topic, partitions)
            blocked = self.parking.blocked([feed.processor for feed in feeds], topic) if self.parking else set()
            for feed in feeds:
                feed.blocked = {key for processor, key in blocked if processor == feed.processor}
            for partition in partitions:
                lane = Lane(topic + self.suffix, partition, {table: stored[table, partition] for table in tables})
                self.lanes[topic, partition] = lane
                anchors[topic, partition] = lane.anchor
        return anchors

    def _behind_rebuilt(
        self, stored: dict[tuple[AnyTable, int], Position], topic: str, partitions: list[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        """Move the sequence's positions to where its tables were rebuilt to."""
        rebuilt = self.sink.positions({table for table, _ in stored}, topic + REBUILT, partitions)
        ahead = [
            Move(table, topic + self.suffix, partition, stored[table, partition], position)
            for (table, partition), position in rebuilt.items()
            if position > stored[table, partition]
        ]
        if ahead:
            self.sink.apply(Batch({}, ahead))
        return stored | {(move.table, move.partition): move.new for move in ahead}

    def look(self, topic: str) -> None:
        """Raises Fenced when the positions stored for a topic are not those that this runner believes in.

        A store that crashed may have lost its last commits, with nothing coming that would stumble over it.
        """
        mine = {partition: lane for (of, partition), lane in self.lanes.items() if of == topic}
        tables = [table for feed in self.feeds[topic] for table in feed.tables]
        stored = self.sink.positions(tables, topic + self.suffix, list(mine)) if mine else {}
        if any(mine[partition].positions[table] != position for (table, partition), position in stored.items()):
            raise Fenced("the store has other positions than were stored in it")

    def release(self, lanes: Iterable[tuple[str, int]]) -> None:
        """Another runner has them now."""
        for lane in lanes:
            self.lanes.pop(lane, None)

    def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Apply deliveries in order, those of one lane in the order of their offsets. What was seen before is dropped.
        With none it waits for what is still on its way.

        Raises Fenced (then `assign` the lanes anew), Down (then call it again with the same), Broken, and whatever the
        parking raises; without a parking also Poison, in a sequence the poison's own error.
        """
        if self.parking:
            self.parking.taken(len(deliveries))
        self._apply(deliveries, None)

    def _apply(self, deliveries: Sequence[Delivery], only: Feed | None) -> None:
        batch, moved = self._batch(deliveries, only)
        if not moved:
            self.sink.settle()
            return
        try:
            self.sink.apply(batch)
        except BadData as error:
            if self.parking is None:
                raise
            self._isolate(deliveries, only, error)
            return
        for lane, table, new in moved:
            lane.positions[table] = new
        for lane in {lane for lane, _, _ in moved}:
            lane.measure()

    def _isolate(self, deliveries: Sequence[Delivery], only: Feed | None, error: BadData) -> None:
        """Halve until the one delivery and projection that the store refuses is alone: that one is parked."""
        if len(deliveries) > 1:
            middle = len(deliveries) // 2
            self._apply(deliveries[:middle], only)
            self._apply(deliveries[middle:], only)
        elif only is None:
            for feed in self.feeds[deliveries[0].topic]:
                self._apply(deliveries, feed)
        else:
            delivery = deliveries[0]
            self._park(only, delivery, self.lanes[delivery.topic, delivery.partition], error)
            self._apply(deliveries, only)  # now it makes no changes, and the positions pass it

    def _batch(
        self, deliveries: Sequence[Delivery], only: Feed | None
    ) -> tuple[Batch, list[tuple[Lane, AnyTable, Position]]]:
        changes: dict[AnyTable, list[tuple[Delivery, Change]]] = {}
        last: dict[Lane, Delivery] = {}
        targets = self.targets
        topic, partition, lane, seen = "", -1, None, 0  # records of one lane come many in a row
        feeds: Sequence[Feed] = ()
        for delivery in deliveries:
            if delivery.partition != partition or delivery.topic != topic:
                topic, partition = delivery.topic, delivery.partition
                lane, feeds = self.lanes.get((topic, partition)), self.feeds.get(topic, ()) if only is None else (only,)
                if lane is not None:
                    seen = last[lane].notification_id if lane in last else lane.low
            if lane is None:
                continue  # taken away while the batch was being fetched
            id = delivery.notification_id
            if id <= seen:
                if id == 0:
                    self._foreign(delivery)
                continue
            seen, last[lane] = id, delivery
            for feed in feeds:
                for change in self._changes(feed, delivery, lane):
                    target = targets.get(change[0])
                    if target is None:
                        continue  # of another sink
                    if id <= lane.high and id <= lane.positions[target].notification_id:
                        continue
                    rows = changes.get(target)
                    if rows is None:
                        rows = changes[target] = []
                    rows.append((delivery, change))
            delivery.forget()
        moved = [
            (lane, table, Position(delivery.notification_id, delivery.offset))
            for lane, delivery in last.items()
            for table, old in lane.positions.items()
            if old.notification_id < delivery.notification_id and (only is None or table in only.tables)
        ]
        moves = [Move(table, lane.topic, lane.partition, lane.positions[table], new) for lane, table, new in moved]
        return Batch(changes, moves), moved

    def _changes(self, feed: Feed, delivery: Delivery, lane: Lane) -> Sequence[Change]:
        if delivery.notification_id <= lane.high and all(
            delivery.notification_id <= lane.positions[table].notification_id for table in feed.tables
        ):
            return ()  # a repetition for all its tables must not be parked again either
        if feed.blocked and delivery.key in feed.blocked:
            assert self.parking is not None
            if self.parking.follow(feed.processor, delivery):
                return ()
            feed.blocked.discard(delivery.key)
        try:
            projection, type = feed.projection, delivery.type
            clauses = projection.of(type)
            if clauses is not None and not clauses:
                return ()
            whole = clauses is None or type in projection.whole
            event = delivery.event(whole)  # of an unknown type it raises
            if clauses is None:  # the header names another type than the body: the body is what happened
                clauses = projection.of(event.type) or ()
            made: list[Change] = []
            for clause in clauses:
                made += clause.call(delivery.recorded(whole) if clause.whole else event)
            return made
        except (Down, Fenced, MemoryError):
            raise
        except Exception as error:
            if self.parking is None:
                if self.suffix:  # a retry shows the error as it is
                    raise
                raise Poison(feed.processor, delivery, error) from error
            self._park(feed, delivery, lane, error)
            return ()

    def _park(self, feed: Feed, delivery: Delivery, lane: Lane, error: BaseException) -> None:
        assert self.parking is not None
        # Not if the lane is another's by now: it may have projected this event, with newer code.
        stored = self.sink.positions(feed.tables, lane.topic, [lane.partition])
        if any(stored[table, lane.partition] != lane.positions[table] for table in feed.tables):
            raise Fenced
        self.parking.park(feed.processor, delivery, error)
        feed.blocked.add(delivery.key)

    def _foreign(self, delivery: Delivery) -> None:
        error = ValueError("not one of our records: no notification-id header")
        if self.parking is None:
            raise Poison(f"{self.sink.name}.*", delivery, error)
        self.parking.park(f"{self.sink.name}.*", delivery, error)
