"""Processors with keyed state and timers in event time: what `streams/faust_app.py` hosts. It knows no Faust and no Kafka.

A processor folds the events of an aggregate into a state and says when that is due; then it gives a command, once. States live in
Postgres, and change in the transaction that moves the position of their partition, from where this host believes it to be: of two
hosts of one partition the second is `Fenced`, and reads anew. So a crash, a rebalance or a lost answer loses and doubles nothing.

Time is the events' own. A partition's watermark is the latest time of an event in it; one that has been read to its end and is quiet
follows the clock, IDLE_S behind. A timer fires when its partition's watermark has reached it. Its command id is made of processor, key
and time: whatever is fired again, by whomever, is stored once. Late events are fine; what is decided is for the aggregate to check.
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
from typing import ClassVar, Generic, NamedTuple, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from prometheus_client import Counter, Gauge
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool
from pydantic import TypeAdapter

from aggregates.kernel import Commands, Conflict, Event, NotFound, Origin, Recorded, Refused, Store, Unavailable
from aggregates.kernel.clock import wall
from aggregates.kernel.event import EPOCH
from infra.settings import Settings
from projections.kernel.parking import COLUMNS, Parked
from projections.kernel.runner import START, Delivery, Down, Fenced, Parking, Position

log = logging.getLogger(__name__)

S = TypeVar("S")
T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]
Pool = AsyncConnectionPool[Connection]
Where = tuple[str, int]  # domain, partition

POLL_S = 1.0  # between two looks for what is due: a timer is so late at most
IDLE_S = 5.0  # a quiet partition is so far behind the clock: longer than an event takes from its commit to here
FIRE_MAX = 200  # timers of a partition fired at once
HOLE_S = 1.0  # between two seeks back to a record that was lost on its way here
STUCK_S = 10.0  # a partition from which nothing comes for so long, although there is more, is read again
RETRY_S = (0.1, 5.0)  # first and longest pause while a database is away
AGAIN_S = (1.0, 3600.0)  # first and longest pause before a timer whose command failed by a bug is fired again

EVENTS = Counter("processor_events_total", "Records taken over, those it has no use for included", ["processor"])
FIRED = Counter("processor_fired_total", "Timers whose command was given", ["processor"])
FAILED = Counter("processor_failed_total", "Timers whose command failed by a bug: alarm", ["processor"])
PARKED = Counter("processor_parked_total", "Events that were parked", ["processor"])
FENCED = Counter("processor_fenced_total", "Times another host had moved the positions", ["processor"])
BEHIND = Gauge("processor_watermark_age_seconds", "How far the slowest watermark is behind the clock", ["processor"])

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
PUT = """
INSERT INTO processor_states (processor, key, topic, partition, state, due)
SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::int[], %s::text[]::json[], %s::timestamptz[])
ON CONFLICT (processor, key) DO UPDATE
SET topic = EXCLUDED.topic, partition = EXCLUDED.partition, state = EXCLUDED.state, due = EXCLUDED.due
"""


class Processor(ABC, Generic[S]):
    """What is kept for each aggregate, and when something is to be done about it. One subclass a module of streams/.

    `events` are the classes it wants, `state` a data class whose fields pydantic can write as JSON. Except for `fire` it is pure:
    time comes from events. A change of `state` needs defaults for what is stored.
    """

    name: ClassVar[str]
    events: ClassVar[Collection[type[Event]]]
    state: type[S]

    def __init__(self, settings: Settings) -> None:
        """Made once a process."""

    @abstractmethod
    def on(self, state: S | None, event: Event) -> S | None:
        """The state after an event; None forgets the aggregate. An event may be late, but never one version before another."""

    @abstractmethod
    def due(self, state: S) -> datetime | None:
        """When `fire` is to be called, in event time; None for not at all. Another timer has another time."""

    @abstractmethod
    async def fire(self, id: UUID, state: S, commands: Commands) -> None:
        """Give the one command that is due. Called again for the same timer it has no effect, since the command's id is the same."""

    @abstractmethod
    def fired(self, state: S) -> S | None:
        """The state after its timer, due at another time or not at all; None forgets the aggregate."""


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


class Put(NamedTuple):
    """A state as it is stored."""

    topic: str
    partition: int
    state: str
    due: datetime | None


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


class Host(Generic[S]):
    """Runs one processor over the partitions that it is given: `assign`, `handle` and `fire_due` take turns."""

    def __init__(
        self,
        processor: Processor[S],
        pool: Pool,
        store: Store,
        parking: Parking,
        records: Log,
        *,
        clock: Callable[[], datetime] = wall,
        decode: Callable[[Delivery], Recorded[Event]] = Delivery.recorded,
        idle_s: float = IDLE_S,
    ) -> None:
        self.processor, self.name = processor, processor.name
        self.topics = sorted({kind.domain for kind in processor.events})
        self.lanes: dict[Where, Lane] = {}
        self.waiting = False
        """For a database: nothing moves, and that is no fault of this process."""
        self._types = {kind.type for kind in processor.events}
        self._states: TypeAdapter[S] = TypeAdapter(processor.state)
        self._pool, self._store, self._log, self._clock, self._decode = pool, store, records, clock, decode
        self._idle_s = idle_s
        self._parking, self._parker = parking, ThreadPoolExecutor(1, f"{self.name}-parking")
        self._blocked: set[tuple[str, bytes]] = set()
        self._again: dict[str, tuple[float, float]] = {}  # a failed timer: when to try it again, the pause after that
        self._turn = asyncio.Lock()

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
            for topic in {topic for topic, _ in found}:
                blocked = await self._park(lambda: self._parking.blocked([self._processor], topic))  # noqa: B023
                self._blocked |= {(topic, key) for _, key in blocked}
                if blocked:
                    for where, lane in found.items():
                        await self._patiently(lambda: self._retry(where, lane))  # noqa: B023
            self.lanes = found
        log.info("%s: %d partitions", self.name, len(found))
        return {where: lane.next for where, lane in found.items()}

    def release(self) -> None:
        """The partitions may be another's now. What is at work ends, and is stored if nobody was faster."""
        self.lanes = {}

    def close(self) -> None:
        """Ends its thread."""
        self._parker.shutdown(wait=False, cancel_futures=True)

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
        """Fold what is parked, aggregate by aggregate, as far as it works now: mostly this is a new version of the code."""
        async with self._pool.connection() as connection, connection.transaction():
            if not await self._still(connection, where, lane):
                return
            cursor = await connection.execute(
                f"SELECT {COLUMNS} FROM parked WHERE (processor, topic, partition) = (%s, %s, %s) AND notification_id > 0"
                " ORDER BY notification_id".encode(),
                (self._processor, *where),
            )
            sequences: dict[bytes, list[Delivery]] = {}
            for row in await cursor.fetchall():
                waiting = Parked(*row).delivery()
                sequences.setdefault(waiting.key, []).append(waiting)
            for key, events in sequences.items():
                if events[-1].notification_id > lane.stored.notification_id:
                    continue  # a crash came before it was passed: it is met again
                mine, put = (self._processor, where[0], key), dict[str, Put | None]()
                await connection.execute(
                    "SELECT 1 FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s) FOR UPDATE", mine
                )
                states = await self._read(connection, events)
                try:
                    for event in events:
                        self._advance(states, put, event)
                except Exception as error:
                    log.warning("%s: %r stays parked: %s: %s", self.name, key, type(error).__name__, error)
                    continue
                await self._put(connection, put)
                await connection.execute("DELETE FROM parked WHERE (processor, topic, key) = (%s, %s, %s)", mine)
                await connection.execute(
                    "DELETE FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s)", mine
                )
                log.info("%s: %d parked events of %r are folded", self.name, len(events), key)
            lane.soonest = await self._soonest(connection, where)

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
            await self._park(
                lambda: self._parking.park(self._processor, delivery, ValueError("not one of our records"))
            )
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
                put = await self._fold(connection, wanted)
                await self._put(connection, put)
            for key, new in put.items():
                self._again.pop(key, None)
                if new and new.due:
                    lane = lanes[new.topic, new.partition]
                    lane.soonest = new.due if lane.soonest is None else min(lane.soonest, new.due)
        for _, lane, step in moved:
            lane.stored, lane.watermark, lane.next = step.position, step.watermark, step.next

    async def _read(self, connection: Connection, of: Collection[Delivery]) -> dict[str, S]:
        cursor = await connection.execute(
            "SELECT key, state::text FROM processor_states WHERE processor = %s AND key = ANY(%s)",
            (self.name, list({delivery.key.decode("utf-8", "replace") for delivery in of})),
        )
        return {key: self._states.validate_json(state) for key, state in await cursor.fetchall()}

    async def _fold(self, connection: Connection, wanted: Sequence[Delivery]) -> dict[str, Put | None]:
        """The states that the events change, as they are after the last of them."""
        if not wanted:
            return {}
        states = await self._read(connection, wanted)
        put: dict[str, Put | None] = {}
        for delivery in wanted:
            if (delivery.topic, delivery.key) in self._blocked:
                if await self._park(lambda: self._parking.follow(self._processor, delivery)):  # noqa: B023
                    PARKED.labels(self.name).inc()
                    continue
                self._blocked.discard((delivery.topic, delivery.key))  # a retry has emptied the sequence
            try:
                self._advance(states, put, delivery)
            except Exception as error:
                log.exception("%s: %s:%d is parked", self.name, delivery.topic, delivery.notification_id)
                PARKED.labels(self.name).inc()
                poison = error
                await self._park(lambda: self._parking.park(self._processor, delivery, poison))  # noqa: B023
                self._blocked.add((delivery.topic, delivery.key))
        return put

    def _advance(self, states: dict[str, S], put: dict[str, Put | None], delivery: Delivery) -> None:
        """Fold one event. Whatever it raises has changed nothing."""
        event = self._decode(delivery).event
        key = str(event.id)
        before = states.get(key)
        after = self.processor.on(before, event)
        if after is None:
            if states.pop(key, None) is not None:
                put[key] = None
        elif after != before:
            put[key] = self._as_put(delivery.topic, delivery.partition, after)
            states[key] = after

    def _as_put(self, topic: str, partition: int, state: S) -> Put:
        return Put(topic, partition, self._states.dump_json(state).decode(), self.processor.due(state))

    async def _put(self, connection: Connection, put: Mapping[str, Put | None]) -> None:
        if gone := [key for key, new in put.items() if new is None]:
            await connection.execute(
                "DELETE FROM processor_states WHERE processor = %s AND key = ANY(%s)", (self.name, gone)
            )
        if rows := [(key, *new) for key, new in sorted(put.items()) if new is not None]:
            await connection.execute(PUT, (self.name, *map(list, zip(*rows, strict=True))))

    # Timers.

    async def run(self) -> None:
        """Fire what is due, for ever."""
        while True:
            await self.fire_due()
            await self._nudge()
            await asyncio.sleep(POLL_S)

    async def _nudge(self) -> None:
        """Read on where nothing comes although there is more: Faust may have dropped it when partitions moved."""
        now = time.monotonic()
        for where, lane in self.lanes.items():
            if (
                now - max(lane.heard, lane.sought) > STUCK_S
                and not self._turn.locked()
                and (self._log.end(where) or 0) > lane.next
            ):
                lane.sought = now
                await self._log.seek(where, lane.next)

    async def fire_due(self) -> int:
        """Fire all that is due in the partitions at hand; returns how many. What fails because a server is away stays due."""
        fired = 0
        for where in list(self.lanes):
            more = True
            while more:
                done, more = await self._fire_some(where)
                fired += done
        if self.lanes:
            BEHIND.labels(self.name).set(
                max((self._clock() - self._mark(*one)).total_seconds() for one in self.lanes.items())
            )
        return fired

    def _mark(self, where: Where, lane: Lane) -> datetime:
        """The watermark: never later than the clock, whatever a wrong clock elsewhere has stamped."""
        now = self._clock()
        mark = min(lane.watermark, now)
        end = self._log.end(where)
        if end is not None and lane.next >= end and time.monotonic() - lane.heard >= self._idle_s:
            mark = max(mark, now - timedelta(seconds=self._idle_s))
        return mark

    async def _fire_some(self, where: Where) -> tuple[int, bool]:
        """How many timers of a partition were fired, and whether there may be more."""
        async with self._turn:
            lane = self.lanes.get(where)
            if lane is None or lane.soonest is None or lane.soonest > (mark := self._mark(where, lane)):
                return 0, False
            try:
                due = await self._due(where, mark)
                settled = await asyncio.gather(*(self._fire(*one) for one in due))
                after = {
                    key: self.processor.fired(state) for (key, state, _), done in zip(due, settled, strict=True) if done
                }
                await self._settle(where, lane, after)
            except (psycopg.OperationalError, Unavailable) as error:
                log.warning("%s: timers wait for a database: %s", self.name, error)
                return 0, False
            return len(after), bool(after) and len(due) == FIRE_MAX

    async def _due(self, where: Where, mark: datetime) -> list[tuple[str, S, datetime]]:
        not_yet = [key for key, (at, _) in self._again.items() if at > time.monotonic()]
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """SELECT key, state::text, due FROM processor_states WHERE (processor, topic, partition) = (%s, %s, %s)
                AND due <= %s AND key <> ALL(%s) ORDER BY due LIMIT %s""",
                (self.name, *where, mark, not_yet, FIRE_MAX),
            )
            return [(key, self._states.validate_json(state), due) for key, state, due in await cursor.fetchall()]

    async def _fire(self, key: str, state: S, due: datetime) -> bool:
        """Give the command; whether the timer is settled by that."""
        id = uuid5(NAMESPACE_URL, f"titan:processor:{self.name}:{key}:{due.isoformat()}")
        try:
            await self.processor.fire(
                UUID(key), state, self._store.commands(Origin(f"processor:{self.name}", command=id))
            )
        except (Unavailable, Conflict) as error:
            log.warning("%s: the timer of %s waits: %s", self.name, key, error)
            return False
        except (Refused, NotFound) as no:
            log.info("%s: the timer of %s: %s", self.name, key, no)
        except Exception:
            _, pause = self._again.get(key, (0.0, AGAIN_S[0]))
            self._again[key] = time.monotonic() + pause, min(2 * pause, AGAIN_S[1])
            log.exception("%s: the timer of %s failed; again in %.0f s", self.name, key, pause)
            FAILED.labels(self.name).inc()
            return False
        FIRED.labels(self.name).inc()
        self._again.pop(key, None)
        return True

    async def _settle(self, where: Where, lane: Lane, after: Mapping[str, S | None]) -> None:
        """Store the states after their timers, if this host still has the partition; if not, another fires them to no effect."""
        async with self._pool.connection() as connection, connection.transaction():
            if not await self._still(connection, where, lane):
                return
            put = {key: None if state is None else self._as_put(*where, state) for key, state in after.items()}
            await self._put(connection, put)
            lane.soonest = await self._soonest(connection, where)

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

    async def _soonest(self, connection: Connection, where: Where) -> datetime | None:
        cursor = await connection.execute(
            "SELECT min(due) FROM processor_states WHERE (processor, topic, partition) = (%s, %s, %s)",
            (self.name, *where),
        )
        [soonest] = await cursor.fetchone() or [None]
        return soonest

    # Databases.

    @property
    def _processor(self) -> str:
        """The name under which its poison is parked."""
        return f"processor.{self.name}"

    async def _park(self, call: Callable[[], T]) -> T:
        """One thread, one connection: parking is rare."""
        return await self._patiently(lambda: asyncio.get_running_loop().run_in_executor(self._parker, call))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call until the database answers."""
        pause = RETRY_S[0]
        while True:
            try:
                answer = await call()
            except (psycopg.OperationalError, Down) as error:
                self.waiting = True
                log.warning("%s waits for the database: %s", self.name, str(error).strip())
            else:
                self.waiting = False
                return answer
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, RETRY_S[1])


def occurred_at(delivery: Delivery) -> datetime:
    """When its event happened; 1970 if its headers don't say."""
    at = dict(delivery.headers).get("occurred-at", b"")
    return EPOCH + timedelta(microseconds=int(at) if at.isdigit() else 0)
