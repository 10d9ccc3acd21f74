"""One sink's Kafka consumer: takes batches, hands them to a `Runner`, reads on from where the sink says.

Kafka's committed offsets are for display only. On assignment each partition is read from the last record that its tables have
seen, that record included: it proves that the log is still the one that they were built from. If another record stands there,
the topic was made anew, and is read from its beginning; what the tables have seen is dropped by its notification id.

While a store is down its batch is tried again for ever; Kafka may give the partitions to another worker meanwhile, which is fine.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from typing import Any, NamedTuple, TypeVar, cast

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from prometheus_client import Counter, Gauge, Histogram

from projections.kernel.runner import Delivery, Down, Fenced, Position, Runner
from schemas.external import Ids

log = logging.getLogger(__name__)

T = TypeVar("T")
Lane = tuple[str, int]

CHUNK_ROWS = 500  # messages taken at once: the client's are large, and are freed before the next come
FETCH_S = 0.5  # how long the broker waits for something to answer a fetch with
IDLE_S = 0.5  # how long one poll waits: how fast a stop is noticed
REPORT_S = 2.0  # between two reports of lag and positions
RETRY_S = (0.05, 5.0)  # first and longest pause while a store is down or a lane is fenced
REMIND_S = 30.0  # between two log lines about the same outage

EVENTS = Counter("projection_events_total", "Deliveries handled", ["sink"])
BATCH_S = Histogram(
    "projection_batch_seconds", "From a batch taken to its changes committed, or of a large one on their way", ["sink"]
)
LAG = Gauge("projection_lag_events", "Deliveries in the log that a table has not seen", ["sink", "table"])
FENCED = Counter("projection_fenced_total", "Times another runner had moved the positions", ["sink"])
REWINDS = Counter(
    "projection_rewinds_total", "Partitions whose log was not the one of the positions", ["sink", "topic"]
)
DOWN = Gauge("projection_store_down", "1 while the store does not answer", ["sink"])


class Stopped(Exception):
    """Asked to stop while waiting for a store."""


class Pace(NamedTuple):
    """`rows_max` deliveries are one batch. `linger_s` is waited for more after the first: 0 for a store that takes small
    batches well. For `fetch_bytes` the broker itself waits up to FETCH_S, which spares both of them a round for each event. While
    events keep coming, a batch that is not full ends `every_s` after the one before."""

    rows_max: int
    linger_s: float = 0.0
    fetch_bytes: int = 1
    every_s: float = 0.0


class LaneConsumer:
    """Consumes the runner's topics in the group `group`; `run` is its life. `report` is called every REPORT_S. `ids`: those of an
    external registry that the topics are written with."""

    def __init__(
        self,
        kafka: str,
        group: str,
        prefix: str,
        runner: Runner,
        pace: Pace,
        report: Callable[[dict[str, int]], None] = lambda lag: None,
        config: dict[str, Any] | None = None,
        ids: Ids | None = None,
    ) -> None:
        self._runner, self._pace, self._prefix, self._report = runner, pace, prefix, report
        self._sink, self._delivery = runner.sink.name, Delivery.written_with(ids)
        self._domains = {prefix + topic: topic for topic in runner.topics}
        self._stop = threading.Event()
        self._anchors: dict[Lane, Position] = {}
        self._next: dict[Lane, int] = {}
        self._holes: dict[Lane, int] = {}
        self._committed: dict[Lane, int] = {}
        self._unknown: set[str] = set()
        self._reported, self._taken = 0.0, -math.inf
        self._consumer: Consumer | None = None
        self._config = {
            "bootstrap.servers": kafka,
            "group.id": group,
            "client.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "partition.assignment.strategy": "roundrobin",
            "fetch.wait.max.ms": round(FETCH_S * 1_000),
            "fetch.min.bytes": pace.fetch_bytes,
            "fetch.queue.backoff.ms": 20,
            "queued.max.messages.kbytes": 32 * 1024,
            "reconnect.backoff.max.ms": 1_000,
            "socket.keepalive.enable": True,
            "on_commit": lambda error, partitions: None,
            **(config or {}),
        }

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set. Raises Broken, TooManyParked and what else the runner does not handle."""
        self._stop = stop
        self._consumer = consumer = Consumer(self._config, logger=log)
        try:
            consumer.subscribe(
                list(self._domains),
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._revoked,
            )
            looks = cycle(self._domains.values())
            while not stop.is_set():
                batch = self._take(consumer)
                self._handle(consumer, batch)
                if time.monotonic() - self._reported > REPORT_S:
                    if not batch:  # idle: a store that lost something would not be stumbled over
                        topic = next(looks)
                        self._carefully(consumer, lambda: self._runner.look(topic))  # noqa: B023
                    self._tell(consumer)
            self._tell(consumer)
        except Stopped:
            pass
        finally:
            self._runner.release(list(self._runner.lanes))
            consumer.close()

    def _take(self, consumer: Consumer) -> list[Delivery]:
        """The next batch; empty after IDLE_S. `consume` waits for its whole time-out, so the wait is in `poll`."""
        taken: list[Delivery] = []
        first = consumer.poll(IDLE_S)
        if first is None:
            return taken
        sought: set[Lane] = set()
        self._read(consumer, [first], taken, sought)
        left = self._pace.rows_max - 1
        until = max(time.monotonic() + self._pace.linger_s, self._taken + self._pace.every_s)
        while (
            left > 0 and not sought
        ):  # what comes behind a seek is for the next batch, and is not to be taken for what came before
            wanted = min(left, CHUNK_ROWS)
            more = consumer.consume(wanted, max(0.0, until - time.monotonic()))
            self._read(consumer, more, taken, sought)
            left -= len(more)
            if len(more) < wanted:
                break
        self._taken = time.monotonic()
        return taken

    def _read(self, consumer: Consumer, messages: list[Message], taken: list[Delivery], sought: set[Lane]) -> None:
        """Add what is to be handled to `taken`. Lanes in `sought` are read from elsewhere by the next batch."""
        lanes, following = self._runner.lanes, self._next
        name, domain, partition, lane, mine, expected = (
            "",
            "",
            -1,
            ("", -1),
            False,
            None,
        )  # many in a row are of one lane
        message: Any  # its methods are typed as None, too
        for message in messages:
            if message.error() is not None:
                self._error(message)
                continue
            if message.partition() != partition or message.topic() != name:
                name, partition = message.topic(), message.partition()
                lane = domain, partition = self._domains[name], partition
                mine, expected = lane in lanes and lane not in sought, following.get(lane)
            if not mine:
                continue
            offset = message.offset()
            delivery = self._delivery(
                domain, partition, offset, message.key() or b"", message.value() or b"", message.headers() or ()
            )
            if offset != expected and (where := self._misplaced(lane, delivery)) is not None:
                sought.add(lane)
                mine = False
                consumer.seek(TopicPartition(name, partition, where))
                continue
            expected = following[lane] = offset + 1
            taken.append(delivery)

    def _misplaced(self, lane: Lane, delivery: Delivery) -> int | None:
        """Where to read the lane from instead, if this is not the record that has to come next."""
        anchor = self._anchors.pop(lane, None)
        if anchor is not None and anchor.offset >= 0:
            if anchor == (delivery.notification_id, delivery.offset):
                return None
            REWINDS.labels(self._sink, lane[0]).inc()
            log.error(
                "ALARM: topic %s [%d] is not the log that the read models in %s were built from: offset %d should hold "
                "notification %d, but offset %d holds %d. The topic was made anew or cut off. It is read from its "
                "beginning, and what has been seen, up to that notification, is dropped; if the events themselves are "
                "new, rebuild the read models with `titan replay`",
                *lane, self._sink, anchor.offset, anchor.notification_id, delivery.offset, delivery.notification_id,
            )  # fmt: skip
            self._next.pop(lane, None)
            return OFFSET_BEGINNING
        expected = self._next.get(lane)
        if expected is not None and delivery.offset > expected and self._holes.get(lane) != expected:
            # Offsets have holes only where a foreign producer made transactions. Look once more before passing over one.
            self._holes[lane] = expected
            return expected
        return None

    def _handle(self, consumer: Consumer, batch: Sequence[Delivery]) -> None:
        began = time.perf_counter()
        if self._carefully(consumer, lambda: self._runner.handle(batch)) and batch:
            EVENTS.labels(self._sink).inc(len(batch))
            BATCH_S.labels(self._sink).observe(time.perf_counter() - began)

    def _carefully(self, consumer: Consumer, call: Callable[[], None]) -> bool:
        """Call until the store answers. If it has other positions than the runner's, read on from those; False then."""
        try:
            self._patiently(call)
        except Fenced as error:
            FENCED.labels(self._sink).inc()
            why = str(error) or "another runner moved the positions"
            log.warning("%s: %s; the positions are read anew", self._sink, why)
            self._wait(RETRY_S[0] * random.uniform(0.5, 1))
            consumer.assign(self._positioned(list(self._runner.lanes)))
            return False
        return True

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        lanes = [(self._domains[partition.topic], partition.partition) for partition in partitions]
        log.info("%s: %d partitions", self._sink, len(lanes))
        try:
            consumer.assign(self._positioned(lanes))
        except Stopped:
            consumer.assign([])

    def _positioned(self, lanes: Iterable[Lane]) -> list[TopicPartition]:
        lanes = list(lanes)
        anchors = self._patiently(lambda: self._runner.assign(lanes))
        for lane, anchor in anchors.items():
            self._anchors[lane] = anchor
            self._next.pop(lane, None)
            self._holes.pop(lane, None)
        return [
            TopicPartition(self._prefix + topic, partition, anchor.offset if anchor.offset >= 0 else OFFSET_BEGINNING)
            for (topic, partition), anchor in anchors.items()
        ]

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._runner.release([(self._domains[partition.topic], partition.partition) for partition in partitions])

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call until the store answers. Raises Stopped when asked to stop meanwhile."""
        pause, reminded = RETRY_S[0], float("-inf")
        while True:
            try:
                answer = call()
            except Down as error:
                DOWN.labels(self._sink).set(1)
                self._measure()  # what comes meanwhile is behind
                if time.monotonic() - reminded > REMIND_S:
                    reminded = time.monotonic()
                    log.warning("%s does not answer, trying again: %s", self._sink, error)
                self._wait(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, RETRY_S[1])
            else:
                if reminded > 0:
                    DOWN.labels(self._sink).set(0)
                    log.info("%s answers again", self._sink)
                return answer

    def _wait(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Stopped

    def _measure(self) -> dict[str, int]:
        """Lag by table."""
        assert self._consumer is not None
        lag: dict[str, int] = {table.name: 0 for table in self._runner.targets.values()}
        for (topic, partition), lane in self._runner.lanes.items():
            try:
                where = TopicPartition(self._prefix + topic, partition)
                first, end = self._consumer.get_watermark_offsets(where, cached=True)
            except KafkaException:
                continue
            for table, position in lane.positions.items():
                lag[table.name] += max(0, end - max(position.offset + 1, first))
        for name, behind in lag.items():
            LAG.labels(self._sink, name).set(behind)
        return lag

    def _tell(self, consumer: Consumer) -> None:
        """Lag by table, and the offsets committed for whoever looks at the group."""
        self._reported = time.monotonic()
        lag, commits = self._measure(), []
        for (topic, partition), lane in self._runner.lanes.items():
            seen = lane.anchor.offset + 1
            if seen and self._committed.get((topic, partition)) != seen:
                self._committed[topic, partition] = seen
                commits.append(TopicPartition(self._prefix + topic, partition, seen))
        if commits:
            try:
                consumer.commit(offsets=commits, asynchronous=True)
            except KafkaException as error:
                log.debug("offsets are not committed: %s", error)
        self._report(lag)

    def _error(self, message: Message) -> None:
        error, topic = cast(KafkaError, message.error()), cast(str, message.topic())
        if error.fatal() or error.code() == KafkaError._FATAL:  # which as a message does not call itself fatal
            raise KafkaException(error)
        if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            if topic not in self._unknown:
                self._unknown.add(topic)
                log.warning("there is no topic %s yet", topic)
        else:
            log.warning("%s: Kafka: %s", self._sink, error.str())
