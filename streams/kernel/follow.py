"""An at-least-once consumer for work that waits on others: sagas and reactors. Many events at once, in order by aggregate.

A follower reads topics in a consumer group of its own, decodes the events that it wants, and hands each to `handle`. The position
stored in Postgres covers only what lies without a hole behind it, so whatever a crash interrupts is handled again. Events that
happened before the follower was first started are kept from it for ever (its watermark), so a replay repeats no effect.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import psycopg
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from prometheus_client import Counter, Gauge
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import Event, Recorded, Unavailable, wire
from infra.logs import bound
from infra.settings import Settings
from projections.kernel.parking import PostgresParking
from projections.kernel.runner import Delivery, Down
from schemas.external import Ids
from streams.kernel.migrate import FOLLOWERS, LOCK

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_S = 0.5
BATCH_MAX = 500  # messages taken over at once
OPEN_MAX = 2_000  # events taken and not begun; above it the partitions are paused until half of them are
STORE_S = 0.5  # between two storings of positions
REPORT_S = 2.0  # between two reports of lag
ANSWER_S = 10.0  # for a question to Kafka
DRAIN_S = 10.0  # for events at work when partitions are taken away or the process is to end
RETRY_S = (0.1, 30.0)  # first and longest pause before an event is handled again
TRIES_MAX = 9  # the last about half a minute after the first; then it is parked

HANDLED = Counter("follower_events_total", "Events dealt with", ["follower"])
FAILED = Counter("follower_failures_total", "Attempts that failed", ["follower"])
PARKED = Counter("follower_parked_total", "Events that were parked", ["follower"])
OPEN = Gauge("follower_open_events", "Events taken and not dealt with yet", ["follower"])
LAG = Gauge("follower_lag_events", "Records of the topics that are not dealt with yet", ["follower"])

Where = tuple[str, int]  # domain, partition
Position = tuple[int, int]  # notification id, and the offset after it


class Positions:
    """The positions of all followers of a process, in the common database. An async context manager."""

    def __init__(self, dsn: str) -> None:
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]] = AsyncConnectionPool(
            dsn, min_size=1, max_size=2, timeout=5, open=False, kwargs={"autocommit": True, "connect_timeout": 5}
        )

    async def __aenter__(self) -> Positions:
        await self._pool.open()
        await patiently("positions", self._make)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def _make(self) -> None:
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (LOCK,))
            await connection.execute(FOLLOWERS.encode())

    async def watermarks(self, follower: str, heads: Mapping[str, int]) -> dict[str, int]:
        """What the follower never sees, by domain: fixed when it is first started, to `heads`."""
        async with self._pool.connection() as connection:
            await connection.execute(
                "INSERT INTO follower_watermarks (follower, domain, notification_id)"
                " SELECT %s, * FROM unnest(%s::text[], %s::bigint[]) ON CONFLICT DO NOTHING",
                (follower, list(heads), list(heads.values())),
            )
            cursor = await connection.execute(
                "SELECT domain, notification_id FROM follower_watermarks WHERE follower = %s", (follower,)
            )
            return {str(domain): int(id) for domain, id in await cursor.fetchall()}

    async def load(self, follower: str) -> dict[Where, Position]:
        """How far the follower has dealt with each partition."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT domain, partition, notification_id, next_offset FROM follower_positions WHERE follower = %s",
                (follower,),
            )
            return {(row[0], row[1]): (row[2], row[3]) for row in await cursor.fetchall()}

    async def store(self, follower: str, moved: Mapping[Where, Position]) -> None:
        """Never backwards: another process may have had the partition since."""
        async with self._pool.connection() as connection:
            await connection.execute(
                "INSERT INTO follower_positions AS old (follower, domain, partition, notification_id, next_offset)"
                " SELECT %s, * FROM unnest(%s::text[], %s::int[], %s::bigint[], %s::bigint[])"
                " ON CONFLICT (follower, domain, partition) DO UPDATE"
                " SET notification_id = EXCLUDED.notification_id, next_offset = EXCLUDED.next_offset"
                " WHERE old.notification_id < EXCLUDED.notification_id",
                (
                    follower,
                    [domain for domain, _ in moved],
                    [partition for _, partition in moved],
                    [id for id, _ in moved.values()],
                    [offset for _, offset in moved.values()],
                ),
            )


@dataclass(slots=True, eq=False)
class Lane:
    """One partition: the last event seen, those not dealt with yet, in order, and how far all are."""

    seen: int
    reached: Position | None = None
    stored: Position | None = None
    open: dict[int, tuple[int, bool]] = field(default_factory=dict)  # notification id → its offset, whether dealt with

    def take(self, id: int, offset: int) -> bool:
        """Whether an event is new here: relays publish some twice, and those up to the watermark are none of ours."""
        if id <= self.seen:
            if not self.open and (self.reached is None or id > self.reached[0]):
                self.reached = id, offset + 1
            return False
        self.seen = id
        self.open[id] = offset, False
        return True

    def done(self, id: int) -> None:
        """It is dealt with: the lane has reached whatever lies without a hole behind it."""
        self.open[id] = self.open[id][0], True
        while self.open:
            first, (offset, dealt_with) = next(iter(self.open.items()))
            if not dealt_with:
                break
            del self.open[first]
            self.reached = first, offset + 1


class Follower:
    """Consumes as `name`. `wanted` are event types by domain. `handle` may raise: it is called again, and parked in the end.

    `from_start`: domains of which it also gets what happened before it was first started; of the others it starts at `heads`,
    the last notification ids then. `Unavailable` and a database that is away are never a reason to park.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        positions: Positions,
        wanted: Mapping[str, Collection[str]],
        handle: Callable[[Recorded[Event]], Awaitable[None]],
        *,
        heads: Callable[[Collection[str]], Awaitable[Mapping[str, int]]],
        parking: PostgresParking,
        from_start: Collection[str] = (),
        concurrency: int = 64,
        tries_max: int = TRIES_MAX,
        ids: Ids | None = None,
    ) -> None:
        self.name, self._settings, self._positions, self._handle, self._heads = name, settings, positions, handle, heads
        self._wanted = {domain: frozenset(kinds) for domain, kinds in wanted.items()}
        self._from_start, self._tries_max, self._ids = frozenset(from_start), tries_max, ids
        self._parking, self._parker = parking, ThreadPoolExecutor(1, f"{name}-parking")
        self._permits = asyncio.Semaphore(concurrency)
        self._lanes: dict[Where, Lane] = {}
        self._anchors: dict[Where, Position] = {}
        self._rewound: dict[Where, int] = {}  # where a partition stood when it was sent back to its beginning
        self._started: dict[Where, int] = {}  # the offset that each partition was read from
        self._committed: dict[Where, int] = {}
        self._queues: dict[tuple[str, bytes], deque[tuple[Lane, Delivery]]] = {}
        self._blocked: set[tuple[str, bytes]] = set()  # aggregates that have parked events
        self._waiting = 0
        self._tasks: dict[tuple[str, bytes], asyncio.Task[None]] = {}
        self._watermarks: dict[str, int] = {}
        self._stop = threading.Event()
        self._failed: asyncio.Future[None] | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, then finish what is at work. Raises TooManyParked, and a fatal error of Kafka's."""
        later = [domain for domain in self._wanted if domain not in self._from_start]

        async def watermarks() -> dict[str, int]:
            return await self._positions.watermarks(self.name, await self._heads(later))

        self._watermarks = await patiently(self.name, watermarks) if later else {}
        loop = asyncio.get_running_loop()
        self._failed = loop.create_future()
        consumer = ThreadPoolExecutor(
            1, f"{self.name}-consumer"
        )  # the loop's own pool has few threads, and this one is kept
        consuming = loop.run_in_executor(consumer, self._consume, loop)
        storing, stopping = asyncio.create_task(self._store_regularly()), asyncio.create_task(stop.wait())
        try:
            waited: list[asyncio.Future[Any]] = [consuming, stopping, self._failed]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop.set()
            await asyncio.wait([consuming])
            for task in (storing, stopping, *self._tasks.values()):
                task.cancel()
            self._parker.shutdown()
            consumer.shutdown()
        await consuming
        if self._failed.done():
            self._failed.result()

    # In the consuming thread.

    def _consume(self, loop: asyncio.AbstractEventLoop) -> None:
        def call(work: Coroutine[Any, Any, T]) -> T:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        def where(partitions: Iterable[TopicPartition]) -> list[Where]:
            return [(self._domain(one.topic), one.partition) for one in partitions]

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            offsets = call(self._assign(where(partitions)))
            places = [TopicPartition(self._settings.topic(domain), p, at) for (domain, p), at in offsets.items()]
            consumer.incremental_assign([self._if_there(consumer, place) for place in places])

        def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            call(self._release(where(partitions)))
            consumer.incremental_unassign(partitions)

        group = f"{self._settings.namespace}.{self.name}"
        consumer = Consumer(
            {
                "bootstrap.servers": self._settings.kafka,
                "group.id": group,
                "client.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "partition.assignment.strategy": "cooperative-sticky",
                "fetch.wait.max.ms": 1_000,
                "fetch.queue.backoff.ms": 20,
                "queued.max.messages.kbytes": 16 * 1024,
                "reconnect.backoff.max.ms": 1_000,
                "socket.keepalive.enable": True,
                **self._settings.member(group),
            },
            logger=log,
        )
        try:
            consumer.subscribe(
                [self._settings.topic(domain) for domain in self._wanted],
                on_assign=assigned,
                on_revoke=revoked,
                on_lost=revoked,
            )
            paused, reported = False, time.monotonic()
            while not self._stop.is_set():
                if time.monotonic() - reported > REPORT_S:
                    reported = time.monotonic()
                    self._report(consumer)
                if paused != (self._waiting > (OPEN_MAX // 2 if paused else OPEN_MAX)):
                    paused = not paused
                    (consumer.pause if paused else consumer.resume)(consumer.assignment())
                first = consumer.poll(0.02 if paused else POLL_S)
                if first is not None:  # `consume` waits for its whole time-out; `poll` does not
                    call(self._accept(self._read(consumer, [first, *consumer.consume(BATCH_MAX - 1, 0)])))
        finally:
            consumer.close()  # calls `revoked`

    def _if_there(self, consumer: Consumer, place: TopicPartition) -> TopicPartition:
        """The place to read from, or the beginning when the log is shorter: a read at its very end would wait for ever."""
        where = self._domain(place.topic), place.partition
        if where in self._anchors:
            try:
                _, end = consumer.get_watermark_offsets(place, timeout=ANSWER_S)
            except KafkaException as error:
                log.warning("%s: the end of %s [%d] is not known: %s", self.name, *where, error)
            else:
                if end <= place.offset:
                    self._made_anew(where)
                    return TopicPartition(place.topic, place.partition, OFFSET_BEGINNING)
        return place

    def _made_anew(self, where: Where) -> None:
        log.error("%s: topic %s [%d] was made anew: it is read from its beginning", self.name, *where)
        self._anchors.pop(where, None)

    def _report(self, consumer: Consumer) -> None:
        """Lag as a metric, and offsets committed to Kafka, where `titan status` and other tools look for them. Were Postgres lost,
        they would say with the watermark where to go on (`replay/followers.py`)."""
        lag, commits = 0, []
        for where, lane in list(self._lanes.items()):
            at = TopicPartition(self._settings.topic(where[0]), where[1])
            try:
                first, end = consumer.get_watermark_offsets(at, cached=True)
            except KafkaException:
                continue
            reached = max(lane.reached[1] if lane.reached else self._started.get(where, 0), first)
            lag += max(0, end - reached)
            if self._committed.get(where) != reached:
                self._committed[where] = reached
                mark = str(self._watermarks.get(where[0], 0))
                commits.append(TopicPartition(at.topic, at.partition, reached, metadata=mark))
        LAG.labels(self.name).set(lag)
        if commits:
            try:
                consumer.commit(offsets=commits, asynchronous=True)
            except KafkaException as error:
                log.debug("%s: offsets are not committed: %s", self.name, error)

    def _read(self, consumer: Consumer, messages: Iterable[Message]) -> list[Delivery]:
        taken: list[Delivery] = []
        for message in messages:
            if error := message.error():
                if error.fatal() or error.code() == KafkaError._FATAL:  # which as a message does not call itself fatal
                    raise KafkaException(error)
                if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    log.warning("%s: Kafka: %s", self.name, error.str())
                continue
            domain, partition = self._domain(cast(str, message.topic())), cast(int, message.partition())
            headers = cast("list[tuple[str, bytes]]", message.headers() or [])
            delivery = Delivery(
                domain, partition, cast(int, message.offset()), message.key() or b"", message.value() or b"", headers
            )
            where = domain, partition
            if delivery.offset > self._rewound.get(where, delivery.offset):
                continue  # fetched before the seek
            self._rewound.pop(where, None)
            anchor = self._anchors.pop(where, None)
            if anchor is None or anchor == (delivery.notification_id, delivery.offset + 1):
                taken.append(delivery)
            else:
                self._made_anew(where)
                self._rewound[where] = delivery.offset
                consumer.seek(TopicPartition(self._settings.topic(domain), partition, OFFSET_BEGINNING))
        return taken

    def _domain(self, topic: str) -> str:
        return topic.removeprefix(self._settings.topic_prefix)

    # In the event loop.

    async def _assign(self, lanes: Collection[Where]) -> dict[Where, int]:
        """Where to read each partition from: the last event that it has dealt with, which proves that the topic is the same."""
        stored = await patiently(self.name, lambda: self._positions.load(self.name))
        offsets: dict[Where, int] = {}
        for lane in lanes:
            position = stored.get(lane)
            offsets[lane] = OFFSET_BEGINNING if position is None else position[1] - 1
            self._started[lane] = 0 if position is None else position[1]
            self._committed.pop(lane, None)
            if position is not None:
                self._anchors[lane] = position
            self._lanes[lane] = Lane(max(position[0] if position else 0, self._watermarks.get(lane[0], 0)))
        for domain in {domain for domain, _ in lanes}:
            found = await self._park(lambda: self._parking.blocked([self.name], domain))  # noqa: B023
            self._blocked |= {(domain, key) for _, key in found}
        if lanes:
            log.info("%s: %d partitions more", self.name, len(lanes))
        return offsets

    async def _release(self, lanes: Collection[Where]) -> None:
        """Finish what is at work in these partitions, for a bounded time, and store how far they have come."""
        gone = {lane: found for lane in lanes if (found := self._lanes.pop(lane, None))}
        for lane in lanes:
            self._anchors.pop(lane, None)
            self._rewound.pop(lane, None)
        mine = set(gone.values())
        for queue in self._queues.values():  # what has not begun is another's now
            begun, *rest = queue
            kept = [begun, *(item for item in rest if item[0] not in mine)]
            self._waiting -= len(queue) - len(kept)
            queue.clear()
            queue.extend(kept)
        at_work = [task for key, task in self._tasks.items() if self._queues[key][0][0] in mine]
        if at_work:
            await asyncio.wait(at_work, timeout=DRAIN_S)
        await self._store(gone)

    async def _accept(self, batch: Collection[Delivery]) -> None:
        self._parking.taken(len(batch))
        for delivery in batch:
            lane = self._lanes.get((delivery.topic, delivery.partition))
            if lane is None:
                continue
            if not delivery.notification_id:
                await self._park(lambda: self._parking.park(self.name, delivery, ValueError("not one of our records")))  # noqa: B023
            elif lane.take(delivery.notification_id, delivery.offset):
                if delivery.type not in self._wanted[delivery.topic]:
                    lane.done(delivery.notification_id)
                    continue
                self._waiting += 1
                key = (delivery.topic, delivery.key)
                if queue := self._queues.get(key):
                    queue.append((lane, delivery))
                else:
                    self._queues[key] = deque([(lane, delivery)])
                    self._tasks[key] = asyncio.create_task(self._work(key))
        OPEN.labels(self.name).set(self._waiting)

    async def _work(self, key: tuple[str, bytes]) -> None:
        """The events of one aggregate, one after another."""
        queue = self._queues[key]
        try:
            while queue:
                lane, delivery = queue[0]
                with bound(delivery.correlation):
                    await self._deal_with(delivery)
                lane.done(delivery.notification_id)
                HANDLED.labels(self.name).inc()
                queue.popleft()
                self._waiting -= 1
        except Exception as error:
            if self._failed and not self._failed.done():
                self._failed.set_exception(error)
        finally:
            del self._queues[key], self._tasks[key]

    async def _deal_with(self, delivery: Delivery) -> None:
        key = (delivery.topic, delivery.key)
        if key in self._blocked:
            if await self._park(lambda: self._parking.follow(self.name, delivery)):
                PARKED.labels(self.name).inc()
                return
            self._blocked.discard(key)  # a retry has emptied the sequence
        tries, pause = 0, RETRY_S[0]
        while True:
            try:
                async with self._permits:
                    await self._handle(self.decoded(delivery))
                return
            except (Unavailable, psycopg.OperationalError) as error:
                log.warning("%s waits for a database: %s", self.name, error)
            except Exception as error:
                failure = error
                tries += 1
                FAILED.labels(self.name).inc()
                log.exception("%s: attempt %d at %s:%d", self.name, tries, delivery.topic, delivery.notification_id)
                if tries >= self._tries_max:
                    self._blocked.add(key)
                    await self._park(lambda: self._parking.park(self.name, delivery, failure))  # noqa: B023
                    PARKED.labels(self.name).inc()
                    return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, RETRY_S[1])

    def decoded(self, delivery: Delivery) -> Recorded[Event]:
        """The event of a delivery. Raises what `wire.read` raises."""
        value = delivery.value if self._ids is None else self._ids.stored(delivery.value)
        return wire.read(delivery.topic, delivery.key, value, delivery.headers)

    async def _park(self, call: Callable[[], T]) -> T:
        """One thread, one connection: parking is rare."""
        loop = asyncio.get_running_loop()
        return await patiently(self.name, lambda: loop.run_in_executor(self._parker, call))

    async def _store_regularly(self) -> None:
        while True:
            await asyncio.sleep(STORE_S)
            await self._store(self._lanes)

    async def _store(self, lanes: Mapping[Where, Lane]) -> None:
        moved = {where: lane.reached for where, lane in lanes.items() if lane.reached and lane.reached != lane.stored}
        if not moved:
            return
        try:
            await self._positions.store(self.name, moved)
        except psycopg.Error as error:
            log.warning("%s: positions are not stored: %s", self.name, error)
            return
        for where, position in moved.items():
            lanes[where].stored = position


async def patiently(name: str, call: Callable[[], Awaitable[T]]) -> T:
    """Call until the database answers."""
    pause = RETRY_S[0]
    while True:
        try:
            return await call()
        except (psycopg.OperationalError, Unavailable, Down) as error:
            log.warning("%s waits for a database: %s", name, error)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, 5.0)
