"""The relay: copies each domain's notification log to its Kafka topic, in order and without gaps. `python -m streams.relay`.

Publishing is at least once; consumers drop, within a partition, a notification id that is not above their position. That loses
nothing, however many relays overlap (a fenced one's requests may still be on their way when its successor publishes):

1. A relay starts at a stored position P, and publishes P + 1, P + 2, … in order. A producer that is idempotent, gapless and
   acks=all puts them into each partition in that order and leaves none out: what a run wrote to a partition when it ended is
   the beginning of what it had to write there.
2. A position is stored only when every id up to it has been acknowledged, so whatever run starts at P finds all ids ≤ P in the log.
3. Take ids x < y of one partition (one key has one partition), and any copy of y there. The run that wrote it either started
   below x, and wrote x before y by (1), or at P ≥ x, and x was in the log before the run began by (2). So in front of every copy of
   y stands a copy of x: a consumer's position reaches y only after it has seen x.

So the advisory lock that elects one relay a domain spares duplicates; safety does not rest on it. A new producer after a fatal
error is a new run: it starts at the stored position, never at what its forerunner had read. A topic's partition count is fixed.

(2) is about one log: before each run the relay looks whether the topic still ends where the position says. That no broker could be
reached ends a run, too, for it may come back with an empty disk.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from struct import Struct
from typing import Any

import psycopg
from confluent_kafka import KafkaError, KafkaException, Producer
from prometheus_client import Counter, Gauge
from psycopg import sql
from psycopg.types.string import ByteaBinaryLoader

from infra.logs import bound
from schemas import external
from schemas.external import Ids
from streams.kernel.entry import begin, parser
from streams.kernel.migrate import RELAY, make
from streams.kernel.tail import newest

log = logging.getLogger("streams.relay")
kafka_log = logging.getLogger("streams.relay.kafka")
kafka_log.addFilter(lambda record: "gapless.guarantee is experimental" not in record.getMessage())

WINDOW_ROWS = 2_000  # rows of one read
IN_FLIGHT_MAX = 20_000  # events handed to the producer and not acknowledged yet
IN_FLIGHT_KB = 64 * 1024
MESSAGE_BYTES_MAX = 4_000_000  # with its headers below the topics' limit (infra/kafka/topics.py)
POLL_S = 1.0  # a lost NOTIFY delays an event no longer than this; also how often a standby asks for the lock
ACKS_S = 0.05  # how often acknowledgements are collected, and positions stored, while the log is quiet
DRAIN_S = 10.0  # for acknowledgements when asked to stop
RETRY_S = (0.1, 5.0)  # first and longest pause while a server is away
LATE_RECORDS = 1_000  # of each partition, to look through for the newest event
AWAY = {KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN}  # no broker says anything
BROKEN_S = (1.0, 30.0)  # the same for a domain whose events are not accepted

PUBLISHED = Counter("relay_published_events_total", "Events acknowledged by Kafka", ["domain"])
LAG = Gauge("relay_lag_events", "Events stored and not yet acknowledged by Kafka", ["domain"])
FAILURES = Counter("relay_failures_total", "Restarts from the stored position", ["what"])

NEWS = """
SELECT h.domain, h.last, coalesce(p.position, 0) FROM log_heads h LEFT JOIN relay_positions p USING (domain)
WHERE h.last > coalesce(p.position, 0) AND h.domain = ANY(coalesce(%s, ARRAY[h.domain]))
"""
DOMAINS = "SELECT domain FROM log_heads WHERE domain = ANY(coalesce(%s, ARRAY[domain]))"
ELECT = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%s, 0))"
POSITION = "SELECT coalesce((SELECT position FROM relay_positions WHERE domain = %s), 0)"
HEAD = "SELECT last FROM log_heads WHERE domain = %s"
STORE = """
INSERT INTO relay_positions AS old (domain, position) SELECT * FROM unnest(%s::text[], %s::bigint[])
ON CONFLICT (domain) DO UPDATE SET position = EXCLUDED.position WHERE old.position < EXCLUDED.position
"""
# Header values leave Postgres as the text that they are on the wire: building them in Python cost half of the throughput.
EVENTS = """
SELECT notification_id, originator_id::text, state, event_id::text, event_type, originator_version::text, notification_id::text,
       occurred_at, correlation_id, actor, causation_id::text
FROM {events} e WHERE e.notification_id > %s AND e.notification_id <= %s ORDER BY e.notification_id LIMIT %s
"""
# In the order of `aggregates.kernel.wire`, which this process has no room for.
HEADERS = ("event-id", "event-type", "version", "notification-id", "occurred-at", "correlation-id", "actor")
SESSION = {
    # A relay whose machine vanishes gives up its locks within ten seconds; one whose database vanishes notices as soon.
    "options": "-c tcp_keepalives_idle=4 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
    # A position that a crash of the database forgets is one that is published again.
    " -c synchronous_commit=off",
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "connect_timeout": 5,
}


class _Micros(psycopg.adapt.Loader):
    """A timestamptz as microseconds since 1970."""

    format = psycopg.pq.Format.BINARY
    _read = Struct("!q").unpack
    _SINCE_2000 = 946_684_800_000_000

    def load(self, data: Any) -> int:
        return int(self._read(data)[0]) + self._SINCE_2000


class _Broken(Exception):
    """What the producer holds can't be delivered: it is thrown away, and publishing starts again at the stored positions."""

    def __init__(self, why: object, domain: str | None = None) -> None:
        super().__init__(f"{domain or 'producer'}: {why}")
        self.domain = domain


class _Window:
    """Consecutive events of a domain up to `last`, of which `open` are not acknowledged."""

    __slots__ = ("error", "last", "open")

    def __init__(self, last: int, events: int) -> None:
        self.last, self.open = last, events
        self.error: KafkaError | None = None

    def delivered(self, error: KafkaError | None, _: object) -> None:
        self.open -= 1
        if error is not None and self.error is None:
            self.error = error


class _Line:
    """A domain that this relay was elected for: the last id handed to the producer, and what is not acknowledged."""

    __slots__ = ("sent", "stored", "windows")

    def __init__(self, position: int) -> None:
        self.sent = self.stored = position
        self.windows: deque[_Window] = deque()

    def acknowledged(self) -> int:
        """The last id up to which every event is acknowledged. Raises `KafkaException` when one is not accepted."""
        position = self.stored
        while self.windows and (self.windows[0].open == 0 or self.windows[0].error):
            window = self.windows.popleft()
            if window.error:
                raise KafkaException(window.error)
            position = window.last
        return position


class Relay:
    """Publishes the logs of all domains of the database `dsn`. `run` is its life; start as many as you like."""

    def __init__(
        self,
        dsn: str,
        kafka: str,
        topic_prefix: str = "titan.",
        namespace: str = "titan",
        ids: Ids | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        """`ids`: those of an external schema registry, to be put into the bodies in place of ours. `only` some domains."""
        self._dsn, self._kafka, self._prefix, self._namespace, self._ids = dsn, kafka, topic_prefix, namespace, ids
        self._only = only
        self._config = {
            "bootstrap.servers": kafka,
            "client.id": f"{namespace}-relay",
            "enable.idempotence": True,
            "enable.gapless.guarantee": True,
            "acks": "all",
            "message.timeout.ms": 0,  # never given up: a gap is worse than a wait
            "message.max.bytes": MESSAGE_BYTES_MAX,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            # As fast as five (requests are large when there is a backlog), and a retried request never finds its successor refused.
            "max.in.flight.requests.per.connection": 1,
            "compression.type": "lz4",
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": IN_FLIGHT_MAX + WINDOW_ROWS,
            "queue.buffering.max.kbytes": IN_FLIGHT_KB,
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 1_000,
            "error_cb": self._error,
        }
        self._fatal: KafkaError | None = None
        self._away = False  # no broker was reached since the topics were looked at
        self._lines: dict[str, _Line] = {}
        self._behind: set[str] = set()  # the domains whose lag is not 0
        self._locked: set[str] = set()  # domains that this session was elected for
        self._not_before: dict[str, float] = {}  # by domain: another has it, or its events are not accepted
        self._broken: dict[str, float] = {}  # by domain: the pause after its last failure
        self._producer: Producer = self._new_producer()

    def run(self, stop: threading.Event) -> None:
        """Publish until `stop` is set. Servers that are away are waited for."""
        pause = RETRY_S[0]
        while not stop.is_set():
            try:
                with self._session() as connection:
                    while not stop.is_set():
                        self._turn(connection)
                        pause = RETRY_S[0]
                    self._drain(connection)
            except psycopg.Error as error:
                # The locks are gone with the session: another relay may have them already.
                self._restart()
                self._locked.clear()
                FAILURES.labels("database").inc()
                log.warning("the database does not answer, trying again in %.1f s: %s", pause, str(error).strip())
                stop.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, RETRY_S[1])
        self._restart()

    @contextmanager
    def _session(self) -> Iterator[psycopg.Connection[Any]]:
        """One connection for all: the locks live as long as it, so positions can be stored only by who holds them."""
        connection = psycopg.connect(self._dsn, autocommit=True, prepare_threshold=1, **SESSION)  # type: ignore[arg-type]
        with closing(connection):
            connection.adapters.register_loader("text", ByteaBinaryLoader)
            connection.adapters.register_loader("timestamptz", _Micros)
            make(connection, RELAY)
            connection.execute("LISTEN titan_events")
            # Also of those without events there is a figure: a lag that is missing looks like a relay that is.
            self._behind = {domain.decode() for (domain,) in connection.execute(DOMAINS, [self._only], binary=True)}
            yield connection

    def _turn(self, connection: psycopg.Connection[Any]) -> None:
        try:
            if self._away:
                self._restart()
            more = self._publish(connection)
            self._collect(connection, 0)
            if more:
                while len(self._producer) >= IN_FLIGHT_MAX:
                    self._collect(connection, ACKS_S)
                return
        except _Broken as error:
            self._give_up(error)
        # Acknowledgements are not waited for: the next event's NOTIFY must not wait behind them.
        busy = any(line.windows for line in self._lines.values())
        for _ in connection.notifies(timeout=ACKS_S if busy else POLL_S, stop_after=1):
            pass

    def _publish(self, connection: psycopg.Connection[Any]) -> bool:
        """Hand one window of each domain with news to the producer. Returns whether there is more."""
        more, answers = False, True
        news = [(name.decode(), *of) for name, *of in connection.execute(NEWS, [self._only], binary=True).fetchall()]
        for domain in self._behind.difference(domain for domain, _, _ in news):
            LAG.labels(domain).set(0)
        self._behind = {domain for domain, _, _ in news}
        for domain, last, position in news:
            LAG.labels(domain).set(last - position)
            line = self._lines.get(domain)
            if line is None and answers:
                try:
                    line = self._elected(connection, domain)
                except KafkaException as error:
                    log.warning("%s waits for its topic: %s", domain, error.args[0].str())
                    self._not_before[domain] = time.monotonic() + POLL_S
                    answers = error.args[0].code() not in AWAY  # each of them would be waited for
            if line is None or line.sent >= last or self._not_before.get(domain, 0) > time.monotonic():
                continue
            query = sql.SQL(EVENTS).format(events=sql.Identifier(f"{domain}_events"))
            rows = connection.execute(query, (line.sent, last, WINDOW_ROWS), binary=True).fetchall()
            if not rows or rows[-1][0] - line.sent != len(rows):
                self._hold(domain, f"its log has a gap within {WINDOW_ROWS} events after {line.sent}")
            else:
                self._send(domain, line, rows)
                more |= line.sent < last
        return more

    def _elected(self, connection: psycopg.Connection[Any], domain: str) -> _Line | None:
        """Raises KafkaException when it does not answer."""
        now = time.monotonic()
        if self._not_before.get(domain, 0) > now:
            return None
        if domain not in self._locked:
            row = connection.execute(ELECT, (f"{self._namespace}.relay.{domain}",)).fetchone()
            if not row or not row[0]:
                self._not_before[domain] = now + POLL_S
                return None
            self._locked.add(domain)
        [position] = connection.execute(POSITION, (domain,)).fetchone() or (0,)  # read under the lock
        why = "it does not answer"
        try:
            if (why := self._not_ours(connection, domain, position) or "") == "":
                log.info("publishing %s from %d", domain, position)
                line = self._lines[domain] = _Line(position)
                return line
            self._hold(domain, why)
            return None
        finally:
            if why:  # another may have more luck
                connection.execute(UNLOCK, (f"{self._namespace}.relay.{domain}",))
                self._locked.discard(domain)

    def _not_ours(self, connection: psycopg.Connection[Any], domain: str, position: int) -> str | None:
        """Why a topic can't be the one that was published so far, if it can't: its disk was lost, or the store's was.

        Going on would bury what is missing under newer ids, which consumers take for all there was.
        """
        topic = f"{self._prefix}{domain}"
        there = newest(self._kafka, topic)
        if there < position:  # what a relay that was fenced sent late may stand behind the newest
            there = newest(self._kafka, topic, LATE_RECORDS)
        [head] = connection.execute(HEAD, (domain,)).fetchone() or (0,)  # after the topic: another may publish still
        if there < position:
            return (
                f"ALARM: events up to {position} were published, and its topic ends at {there}: Kafka has lost records. "
                f"`titan replay topic {domain}{' --force' * (there > 0)}` makes it anew from the store"
            )
        if there > head:
            return (
                f"ALARM: its topic has event {there}, and its store ends at {head}: the store has lost events, or is another one. "
                f"`titan replay store {domain} --into DSN` makes it anew from the topic, in an empty database"
            )
        return None

    def _send(self, domain: str, line: _Line, rows: list[tuple[Any, ...]]) -> None:
        topic, window = f"{self._prefix}{domain}", _Window(rows[-1][0], len(rows))
        produce, delivered = self._producer.produce, window.delivered
        line.windows.append(window)
        line.sent = window.last
        for id, key, state, event, type, version, number, at, correlation, actor, cause in rows:
            value = state if self._ids is None else self._ids.published(state)
            values = event, type, version, number, b"%d" % at, correlation, actor
            headers = list(zip(HEADERS, values, strict=True))
            if cause is not None:
                headers.append(("causation-id", cause))
            while True:
                try:
                    produce(topic, value, key, on_delivery=delivered, timestamp=at // 1000, headers=headers)
                    break
                except BufferError:  # many kilobytes in few events
                    self._poll(ACKS_S)
                except KafkaException as error:
                    if error.args[0].fatal():
                        raise _Broken(error, domain) from error
                    window.open -= rows[-1][0] - id + 1
                    window.last = line.sent = id - 1
                    with bound(correlation.decode()):
                        self._hold(domain, f"{error.args[0].str()} (event {id})")
                    return

    def _poll(self, seconds: float) -> None:
        try:
            self._producer.poll(seconds)
        except KafkaException as error:
            self._fatal = error.args[0]
        if self._fatal is not None:
            broken = next((d for d, line in self._lines.items() if any(w.error for w in line.windows)), None)
            raise _Broken(self._fatal, broken)

    def _collect(self, connection: psycopg.Connection[Any], seconds: float) -> None:
        """Take in acknowledgements, waiting for one at most `seconds`, and store how far each domain has come."""
        self._poll(seconds)
        moved: dict[str, int] = {}
        for domain, line in self._lines.items():
            try:
                position = line.acknowledged()
            except KafkaException as error:
                raise _Broken(error, domain) from error
            if position > line.stored:
                moved[domain] = position
        if moved:
            connection.execute(STORE, (list(moved), list(moved.values())))
        for domain, position in moved.items():
            PUBLISHED.labels(domain).inc(position - self._lines[domain].stored)
            self._lines[domain].stored = position
            self._broken.pop(domain, None)

    def _drain(self, connection: psycopg.Connection[Any]) -> None:
        until = time.monotonic() + DRAIN_S
        with suppress(_Broken):
            while any(line.windows for line in self._lines.values()) and time.monotonic() < until:
                self._collect(connection, ACKS_S)

    def _error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = error
        else:
            self._away |= error.code() == KafkaError._ALL_BROKERS_DOWN
            log.warning("Kafka: %s", error.str())

    def _hold(self, domain: str, why: object) -> None:
        """Publish no more of a domain for a while: an event of it is not accepted, and none is ever left out."""
        self._broken[domain] = pause = min(self._broken.get(domain, BROKEN_S[0] / 2) * 2, BROKEN_S[1])
        self._not_before[domain] = time.monotonic() + pause
        FAILURES.labels(domain).inc()
        log.error("%s is not published further, trying again in %.0f s: %s", domain, pause, why)

    def _give_up(self, error: _Broken) -> None:
        """Start again at the stored positions, with the domain at fault after a pause. The locks stay ours."""
        for domain in [error.domain] if error.domain else self._lines:
            self._hold(domain, error)
        self._restart()

    def _restart(self) -> None:
        """Forget what is in flight, at once. Requests on their way can't be recalled; those not yet sent are."""
        self._lines, self._away = {}, False
        self._producer.purge(in_flight=False)  # purging requests on their way would break the gapless guarantee: fatal
        self._producer = self._new_producer()

    def _new_producer(self) -> Producer:
        self._fatal = None
        return Producer(self._config, logger=kafka_log)


def main(argv: Sequence[str] | None = None) -> None:
    """One thread for each database. When one ends by a bug all end, and the supervisor starts the process again."""
    chosen = begin(parser("streams.relay", "publish every domain's events").parse_args(argv))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ids = external.ids_of(chosen.schema_registry_url)
    databases = sorted({chosen.postgres, *chosen.postgres_domains.values()})
    with ThreadPoolExecutor(len(databases), "relay") as threads:
        runs = [
            threads.submit(Relay(dsn, chosen.kafka, chosen.topic_prefix, chosen.namespace, ids).run, stop)
            for dsn in databases
        ]
        for run in runs:
            run.add_done_callback(lambda _: stop.set())
    for run in runs:
        run.result()


if __name__ == "__main__":
    main()
