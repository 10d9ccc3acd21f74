"""Partitions and positions in Postgres: what a host of a processor and a host of a fraud rule share. It knows no Faust and no Kafka.

What a host keeps changes in the transaction that moves the position of its partition, from where this host believes it to be: of two
hosts of one partition the second is `Fenced`, and reads anew. So a crash, a rebalance or a lost answer loses and doubles nothing.
Records that are left out or repeated around a rebalance are met by their offsets, those that a relay publishes twice by their ids.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import psycopg
from prometheus_client import Counter, Gauge
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import Event, Recorded
from aggregates.kernel.event import EPOCH
from infra.logs import bound
from projections.kernel.parking import COLUMNS, Parked
from projections.kernel.runner import START, Delivery, Down, Fenced, Parking, Position

log = logging.getLogger(__name__)

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]
Where = tuple[str, int]  # domain, partition

HOLE_S = 1.0  # between two seeks back to a record that was lost on its way here
STUCK_S = 10.0  # a partition from which nothing comes for so long, although there is more, is read again
RETRY_S = (0.1, 5.0)  # first and longest pause while a database is away

EVENTS = Counter("processor_events_total", "Records taken over, those it has no use for included", ["processor"])
PARKED = Counter("processor_parked_total", "Events that were parked", ["processor"])
LAG = Gauge("processor_lag_events", "Records of the topics that are not taken over yet", ["processor"])
FENCED = Counter("processor_fenced_total", "Times another host had moved the positions", ["processor"])

POSITIONS = """
SELECT p.topic, p.partition, p.notification_id, p."offset", p.watermark,
       (SELECT min(s.due) FROM processor_states s WHERE (s.processor, s.topic, s.partition) = (p.processor, p.topic, p.partition))
FROM processor_positions p JOIN unnest(%s::text[], %s::int[]) AS w(topic, partition) USING (topic, partition) WHERE p.processor = %s
"""
MOVE = """
UPDATE processor_positions p SET notification_id = m.new_id, "offset" = m.new_offset, watermark = m.watermark
FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[])
     AS m(topic, partition, old_id, old_offset, new_id, new_offset, watermark)
WHERE p.processor = %s AND (p.topic, p.partition, p.notification_id, p."offset") = (m.topic, m.partition, m.old_id, m.old_offset)
"""


@dataclass(slots=True, eq=False)
class Lane:
    """One partition. `next` is the offset to come; `stored` what Postgres has: the last event, where it stands and the watermark."""

    stored: Position
    watermark: datetime
    soonest: datetime | None
    next: int
    heard: float = field(default_factory=time.monotonic)
    sought: float = float("-inf")


@dataclass(slots=True)
class Step:
    """How far a batch takes a lane."""

    position: Position
    watermark: datetime
    next: int


class Log(ABC):
    """What a host asks of the topics. Offsets are those of a partition's records."""

    @abstractmethod
    async def peek(self, offsets: Mapping[Where, int]) -> Mapping[Where, tuple[int, int]]:
        """The first record at or after each offset: its offset and notification id. Partitions that end before are left out."""

    @abstractmethod
    async def seek(self, where: Where, offset: int) -> None:
        """Read the partition from there."""

    @abstractmethod
    def end(self, where: Where) -> int | None:
        """The offset after the last record, as of the last fetch; None if that is not known yet."""


class Misread(Exception):
    """The records are not those that the position was stored for: the process has to begin anew."""


class Partitioned(ABC):
    """Runs one thing that keeps state over the partitions that it is given. `name` is that of its positions and states, `parked_as`
    the one under which its poison is parked."""

    def __init__(
        self,
        name: str,
        parked_as: str,
        kinds: Collection[type[Event]],
        pool: Pool,
        parking: Parking,
        records: Log,
        decode: Callable[[Delivery], Recorded[Event]] = Delivery.recorded,
    ) -> None:
        self.name, self.parked_as = name, parked_as
        self.topics = sorted({kind.domain for kind in kinds})
        self.lanes: dict[Where, Lane] = {}
        self.waiting = False
        """For a database: nothing moves, and that is no fault of this process."""
        self.suspended = ""
        """Why it takes over nothing any more, until the process is started anew."""
        self._types = {kind.type for kind in kinds}
        self._pool, self._log, self._decode = pool, records, decode
        self._parking, self._parker = parking, ThreadPoolExecutor(1, f"{name}-parking")
        self._blocked: set[tuple[str, bytes]] = set()
        self._turn = asyncio.Lock()

    @abstractmethod
    async def run(self) -> None:
        """What is to be done beside the records, for ever."""

    @abstractmethod
    async def _change(self, connection: Connection, wanted: Sequence[Delivery]) -> Callable[[], None]:
        """Take over events in the transaction that moves the positions; what is to be done once that is committed."""

    @abstractmethod
    async def _take_again(self, connection: Connection, where: Where, lane: Lane, events: Sequence[Delivery]) -> None:
        """Take over what was parked of one aggregate. Whatever it raises keeps it parked; what it changed stands in any case."""

    # Partitions come and go.

    async def assign(self, first: Mapping[Where, int]) -> dict[Where, int]:
        """Take over just these partitions, each with its first offset; answers where each is to be read from.

        That is the record of the stored position, if it is still there. If not, the topic was made anew: it is read from its beginning,
        and what has been seen is dropped by its notification id.
        """
        async with self._turn:
            found = await self._patiently(lambda: self._load(first))
            anchors = {where: lane.stored.offset for where, lane in found.items() if lane.stored.offset >= 0}
            there = await self._patiently(lambda: self._log.peek(anchors)) if anchors else {}
            for where, lane in found.items():
                lane.next = max(lane.stored.offset, first[where])
                if where in anchors and there.get(where) != (lane.stored.offset, lane.stored.notification_id):
                    log.error(
                        "ALARM: %s: topic %s [%d] was made anew or cut off: it is read from its beginning, and what has been seen, "
                        "up to notification %d, is dropped", self.name, *where, lane.stored.notification_id,
                    )  # fmt: skip
                    lane.next = first[where]
            await self._assigned(found)
            self.lanes = found
        log.info("%s: %d partitions", self.name, len(found))
        return {where: lane.next for where, lane in found.items()}

    def release(self) -> None:
        """The partitions may be another's now. What is at work ends, and is stored if nobody was faster."""
        self.lanes = {}

    def close(self) -> None:
        """Ends its thread."""
        self._parker.shutdown(wait=False, cancel_futures=True)

    async def _assigned(self, found: Mapping[Where, Lane]) -> None:
        """Take over what is parked in these partitions, as far as it works now: mostly this is a new version of the code."""
        for topic in {topic for topic, _ in found}:
            blocked = await self._park(lambda: self._parking.blocked([self.parked_as], topic))  # noqa: B023
            self._blocked |= {(topic, key) for _, key in blocked}
            if blocked:
                for where, lane in found.items():
                    await self._patiently(lambda: self._retry(where, lane))  # noqa: B023

    async def _load(self, lanes: Collection[Where]) -> dict[Where, Lane]:
        where = [topic for topic, _ in lanes], [partition for _, partition in lanes]
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(
                """INSERT INTO processor_positions (processor, topic, partition, notification_id, "offset", watermark)
                SELECT %s, topic, partition, %s, %s, %s FROM unnest(%s::text[], %s::int[]) AS w(topic, partition)
                ORDER BY 2, 3 ON CONFLICT DO NOTHING""",
                (self.name, *START, EPOCH, *where),
            )
            rows = await (await connection.execute(POSITIONS, (*where, self.name))).fetchall()
        return {
            (topic, partition): Lane(Position(id, offset), watermark, soonest, offset + 1)
            for topic, partition, id, offset, watermark, soonest in rows
        }

    async def _retry(self, where: Where, lane: Lane) -> None:
        """Take over what is parked, aggregate by aggregate."""
        async with self._pool.connection() as connection, connection.transaction():
            if not await self._still(connection, where, lane):
                return
            cursor = await connection.execute(
                f"SELECT {COLUMNS} FROM parked WHERE (processor, topic, partition) = (%s, %s, %s) AND notification_id > 0"
                " ORDER BY notification_id".encode(),
                (self.parked_as, *where),
            )
            sequences: dict[bytes, list[Delivery]] = {}
            for row in await cursor.fetchall():
                waiting = Parked(*row).delivery()
                sequences.setdefault(waiting.key, []).append(waiting)
            for key, events in sequences.items():
                if events[-1].notification_id > lane.stored.notification_id:
                    continue  # a crash came before it was passed: it is met again
                mine = (self.parked_as, where[0], key)
                await connection.execute(
                    "SELECT 1 FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s) FOR UPDATE", mine
                )
                try:
                    await self._take_again(connection, where, lane, events)
                except psycopg.Error:
                    raise
                except Exception as error:
                    with bound(events[0].correlation):
                        log.warning("%s: %r stays parked: %s: %s", self.name, key, type(error).__name__, error)
                    continue
                await connection.execute("DELETE FROM parked WHERE (processor, topic, key) = (%s, %s, %s)", mine)
                await connection.execute(
                    "DELETE FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s)", mine
                )
                log.info("%s: %d parked events of %r are folded", self.name, len(events), key)

    async def retry(self, where: Where, key: bytes) -> tuple[int, str]:
        """Take over what is parked of one aggregate, in order; whoever has its partition waits meanwhile.

        Answers with how many events were taken over, and why it stopped before the last, "" if it did not.
        """
        mine = (self.parked_as, where[0], key)
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                'SELECT notification_id, "offset", watermark FROM processor_positions'
                " WHERE (processor, topic, partition) = (%s, %s, %s) FOR UPDATE",
                (self.name, *where),
            )
            id, offset, watermark = await cursor.fetchone() or (*START, EPOCH)
            lane = Lane(Position(id, offset), watermark, None, offset + 1)
            await connection.execute(
                "SELECT FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s) FOR UPDATE", mine
            )
            cursor = await connection.execute(
                f"SELECT {COLUMNS} FROM parked WHERE (processor, topic, key, partition) = (%s, %s, %s, %s) AND notification_id > 0"
                " ORDER BY notification_id".encode(),
                (*mine, where[1]),
            )
            events = [Parked(*row).delivery() for row in await cursor.fetchall()]
            if events and events[-1].notification_id > id:
                return 0, "its process has not passed these events yet: try again when it has caught up"
            done, why = 0, ""
            for event in events:
                try:
                    async with connection.transaction():
                        await self._take_again(connection, where, lane, [event])
                except psycopg.OperationalError:
                    raise
                except Exception as error:
                    why = f"{type(error).__name__}: {error}"
                    await connection.execute(
                        "UPDATE parked SET attempts = attempts + 1, error = %s"
                        " WHERE (processor, topic, partition, notification_id) = (%s, %s, %s, %s)",
                        (why.replace("\0", "?")[:2000], self.parked_as, *where, event.notification_id),
                    )
                    break
                done += 1
            await connection.execute(
                "DELETE FROM parked WHERE (processor, topic, partition) = (%s, %s, %s) AND notification_id = ANY(%s)",
                (self.parked_as, *where, [event.notification_id for event in events[:done]]),
            )
            await connection.execute(
                "DELETE FROM parked_sequences s WHERE (processor, topic, key) = (%s, %s, %s) AND NOT EXISTS"
                " (SELECT FROM parked p WHERE (p.processor, p.topic, p.key) = (s.processor, s.topic, s.key))",
                mine,
            )
        return done, why

    # Records.

    async def handle(self, batch: Sequence[Delivery]) -> None:
        """Fold records, in the order of each partition, and store states and positions. Waits while a database is away.

        Raises Misread, TooManyParked, and what is a bug of ours: the process should end then, and begin where it is stored.
        """
        async with self._turn:
            self._parking.taken(len(batch))
            while True:
                lanes, wanted = dict(self.lanes), list[Delivery]()
                steps: dict[Lane, Step] = {}
                for delivery in batch:
                    if lane := lanes.get((delivery.topic, delivery.partition)):
                        step = steps.setdefault(lane, Step(lane.stored, lane.watermark, lane.next))
                        if await self._take(delivery, lane, step) and delivery.type in self._types:
                            wanted.append(delivery)
                try:
                    await self._patiently(lambda: self._store_batch(lanes, steps, wanted))  # noqa: B023
                    break
                except Fenced:
                    FENCED.labels(self.name).inc()
                    log.warning("%s: another host moved the positions; they are read anew", self.name)
                    found = await self._patiently(lambda: self._load([w for w, lane in lanes.items() if lane in steps]))  # noqa: B023
                    self.lanes |= {where: lane for where, lane in found.items() if where in self.lanes}
            EVENTS.labels(self.name).inc(len(batch))

    async def _take(self, delivery: Delivery, lane: Lane, step: Step) -> bool:
        """Whether the record is an event that is new here. Faust may leave some out when partitions move: those are read again."""
        if delivery.offset < step.next:
            if delivery.notification_id > step.position.notification_id:
                raise Misread(f"{delivery.topic} [{delivery.partition}] at {delivery.offset} has changed")
            return False
        if delivery.offset > step.next and await self._left_out(delivery, lane, step.next):
            return False
        step.next, lane.heard, lane.sought = delivery.offset + 1, time.monotonic(), float("-inf")
        if not delivery.notification_id:
            PARKED.labels(self.name).inc()
            await self._park(lambda: self._parking.park(self.parked_as, delivery, ValueError("not one of our records")))
            return False
        if delivery.notification_id <= step.position.notification_id:
            return False  # relays publish some twice
        step.position = Position(delivery.notification_id, delivery.offset)
        step.watermark = max(step.watermark, occurred_at(delivery))
        return True

    async def _left_out(self, delivery: Delivery, lane: Lane, expected: int) -> bool:
        """Whether records before this one are missing. Offsets have holes of their own only where others write in transactions."""
        if time.monotonic() - lane.sought < HOLE_S:
            return True  # they are on their way
        where = delivery.topic, delivery.partition
        there = await self._patiently(lambda: self._log.peek({where: expected}))
        if where in there and there[where][0] >= delivery.offset:
            return False
        log.warning("%s: %s [%d] is read again from %d", self.name, *where, expected)
        lane.sought = time.monotonic()
        await self._log.seek(where, expected)
        return True

    async def _store_batch(
        self, lanes: Mapping[Where, Lane], steps: Mapping[Lane, Step], wanted: Sequence[Delivery]
    ) -> None:
        moved = [(where, lane, steps[lane]) for where, lane in lanes.items() if lane in steps]
        news = [
            (*where, *lane.stored, *step.position, step.watermark)
            for where, lane, step in moved
            if step.position != lane.stored
        ]
        if news:
            async with self._pool.connection() as connection, connection.transaction():
                cursor = await connection.execute(MOVE, [*map(list, zip(*news, strict=True)), self.name])
                if cursor.rowcount != len(news):
                    raise Fenced
                done = await self._change(connection, wanted)
            done()
        for _, lane, step in moved:
            lane.stored, lane.watermark, lane.next = step.position, step.watermark, step.next

    async def _nudge(self) -> None:
        """Tell the lag, and read on where nothing comes although there is more: Faust may have dropped it when partitions moved."""
        now = time.monotonic()
        behind = {where: max(0, (self._log.end(where) or 0) - lane.next) for where, lane in self.lanes.items()}
        LAG.labels(self.name).set(sum(behind.values()))
        for where, lane in list(self.lanes.items()):
            if now - max(lane.heard, lane.sought) > STUCK_S and not self._turn.locked() and behind.get(where):
                lane.sought = now
                await self._log.seek(where, lane.next)

    async def _still(self, connection: Connection, where: Where, lane: Lane) -> bool:
        """Whether nobody else has moved the position; nobody does before the end of the transaction."""
        cursor = await connection.execute(
            "SELECT 1 FROM processor_positions"
            ' WHERE (processor, topic, partition, notification_id, "offset") = (%s, %s, %s, %s, %s) FOR UPDATE',
            (self.name, *where, *lane.stored),
        )
        if await cursor.fetchone() is None:
            log.info("%s: another host has %s [%d]", self.name, *where)
            return False
        return True

    # Databases.

    async def _park(self, call: Callable[[], T]) -> T:
        """One thread, one connection: parking is rare."""
        return await self._patiently(lambda: asyncio.get_running_loop().run_in_executor(self._parker, call))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until the database answers."""
        pause = RETRY_S[0]
        try:
            while True:
                try:
                    return await call()
                except (psycopg.OperationalError, Down) as error:
                    self.waiting = True
                    log.warning("%s waits for the database: %s", self.name, str(error).strip())
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, RETRY_S[1])
        finally:
            self.waiting = False  # given up, too, when partitions go: whoever still waits says so again


def occurred_at(delivery: Delivery) -> datetime:
    """When its event happened; 1970 if its headers don't say."""
    at = dict(delivery.headers).get("occurred-at", b"")
    return EPOCH + timedelta(microseconds=int(at) if at.isdigit() else 0)
