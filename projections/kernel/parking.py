"""Where poison waits, in Postgres: `parked_sequences` has a row for each blocked aggregate, `parked` its deliveries in order.

The row in `parked_sequences` is the lock between a live worker, which adds to the sequence, and a retry, which empties it:
whoever holds it knows whether the next delivery of the aggregate has to wait. What is parked is committed before the batch
that passes it, and parking again is a no-op, so a crash between the two loses and doubles nothing.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from infra.logs import bound
from projections.kernel.runner import Delivery, Down

log = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS parked_sequences (
    processor text, topic text, key bytea, parked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (processor, topic, key)
);
CREATE TABLE IF NOT EXISTS parked (
    processor text, topic text, partition int, notification_id bigint, "offset" bigint NOT NULL,
    key bytea NOT NULL, event_type text NOT NULL, error text NOT NULL, value bytea NOT NULL, headers text NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now(), attempts int NOT NULL DEFAULT 0, copied bool NOT NULL DEFAULT false,
    PRIMARY KEY (processor, topic, partition, notification_id)
);
CREATE INDEX IF NOT EXISTS parked_by_key ON parked (processor, topic, key, notification_id);
CREATE TABLE IF NOT EXISTS worker_status (
    worker text, sink text, lag jsonb NOT NULL, partitions int NOT NULL, error text NOT NULL, seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (worker, sink)
);
"""
BEHIND = "waits behind an earlier event of its aggregate"
COLUMNS = 'processor, topic, partition, notification_id, "offset", key, event_type, error, value, headers, parked_at, attempts'


class TooManyParked(Exception):
    """The dead-letter queue is at its limit: more likely a bad deploy than bad events. The worker stops; nothing was parked."""


class Limits(NamedTuple):
    """`rows_max`: parked deliveries of one processor. `ratio_max`: newly blocked aggregates per delivery taken since the
    start, looked at from `sequences_min` blocked aggregates on."""

    rows_max: int = 10_000
    sequences_min: int = 20
    ratio_max: float = 0.02


class Parked(NamedTuple):
    """One row of `parked`. A record that is not one of our events has its negative offset - 1 as `notification_id`."""

    processor: str
    topic: str
    partition: int
    notification_id: int
    offset: int
    key: bytes
    event_type: str
    error: str
    value: bytes
    headers: str
    parked_at: datetime
    attempts: int

    def delivery(self, kind: type[Delivery] = Delivery) -> Delivery:
        """`kind`: as its topic is written (`Delivery.written_with`)."""
        headers = [(name, bytes.fromhex(value)) for name, value in json.loads(self.headers)]
        return kind(self.topic, self.partition, self.offset, self.key, self.value, headers)


class PostgresParking:
    """A `Parking` of one thread. `copy` publishes a parked delivery; where it answers False it is asked again later."""

    def __init__(self, dsn: str, limits: Limits | None = None, copy: Callable[[Parked], bool] | None = None) -> None:
        self.dsn, self.limits, self.copy = dsn, limits or Limits(), copy
        self._connection: psycopg.Connection[Any] | None = None
        self._taken = 0
        self._new: Counter[str] = Counter()

    def taken(self, deliveries: int) -> None:
        self._taken += deliveries

    def blocked(self, processors: Collection[str], topic: str) -> set[tuple[str, bytes]]:
        with self.transaction() as connection:
            rows = connection.execute(
                "SELECT processor, key FROM parked_sequences WHERE processor = ANY(%s) AND topic = %s",
                [list(processors), topic],
            ).fetchall()
        return {(processor, bytes(key)) for processor, key in rows}

    def park(self, processor: str, delivery: Delivery, error: BaseException) -> None:
        new = 0
        with bound(delivery.correlation):
            with self.transaction() as connection:
                if self._room(connection, processor, delivery):
                    self._new[processor] += 1
                    new, limits = self._new[processor], self.limits
                    if new >= limits.sequences_min and new > limits.ratio_max * self._taken:
                        log.error("%s: %s fails and is not parked", processor, _where(delivery), exc_info=error)
                        raise TooManyParked(
                            f"{processor}: {new} aggregates failed in {self._taken} events, the last with {_words(error)}"
                        )
                    if delivery.notification_id:
                        connection.execute(
                            "INSERT INTO parked_sequences VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                            [processor, delivery.topic, delivery.key],
                        )
                    self._insert(connection, processor, delivery, _words(error))
            if new:
                log.error("%s: %s is parked: %s", processor, _where(delivery), _words(error), exc_info=error)
        self._copy(processor)

    def follow(self, processor: str, delivery: Delivery) -> bool:
        with self.transaction() as connection:
            if not connection.execute(
                "SELECT 1 FROM parked_sequences WHERE processor = %s AND topic = %s AND key = %s FOR UPDATE",
                [processor, delivery.topic, delivery.key],
            ).fetchone():
                return False
            if new := self._room(connection, processor, delivery):
                self._insert(connection, processor, delivery, BEHIND)
        if new:
            with bound(delivery.correlation):
                log.warning("%s: %s is parked: it %s", processor, _where(delivery), BEHIND)
        self._copy(processor)
        return True

    def count(self, sink: str) -> tuple[int, float]:
        """How many deliveries are parked for a sink, and the seconds since the oldest was."""
        with self.transaction() as connection:
            row = connection.execute(
                """SELECT count(*), coalesce(extract(epoch FROM now() - min(parked_at)), 0)::float8
                FROM parked WHERE processor LIKE %s""",
                [f"{sink}.%"],
            ).fetchone()
        assert row is not None
        return row[0], row[1]

    def report(self, worker: str, sink: str, lag: Mapping[str, int], partitions: int, error: str = "") -> None:
        """A heartbeat: lag in deliveries by table, how many partitions this worker has, and why it stopped if it did.
        Those of the dead are removed."""
        with self.transaction() as connection:
            connection.execute(
                """INSERT INTO worker_status VALUES (%s, %s, %s, %s, %s) ON CONFLICT (worker, sink) DO UPDATE
                SET lag = EXCLUDED.lag, partitions = EXCLUDED.partitions, error = EXCLUDED.error, seen_at = EXCLUDED.seen_at""",
                [worker, sink, json.dumps(lag), partitions, error],
            )
            connection.execute("DELETE FROM worker_status WHERE seen_at < now() - interval '1 minute'")

    def forget(self, worker: str, sink: str) -> None:
        """It stopped as it was asked to."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM worker_status WHERE worker = %s AND sink = %s", [worker, sink])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """The connection in a transaction. Raises Down for whatever the database refuses: there is nowhere else to park."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(
                    self.dsn,
                    autocommit=True,
                    connect_timeout=5,
                    application_name="titan parking",
                    options="-c lock_timeout=10s -c idle_in_transaction_session_timeout=300s",
                )
            with self._connection.transaction():
                yield self._connection
        except psycopg.Error as error:
            self.close()
            raise Down(f"can't park: {error}") from error

    def _room(self, connection: psycopg.Connection[Any], processor: str, delivery: Delivery) -> bool:
        """False if it is parked already. Raises TooManyParked."""
        row = connection.execute(
            """SELECT count(*), coalesce(bool_or(topic = %s AND partition = %s AND notification_id = %s), false)
            FROM parked WHERE processor = %s""",
            [delivery.topic, delivery.partition, _id(delivery), processor],
        ).fetchone()
        assert row is not None
        if row[1]:
            return False
        if row[0] >= self.limits.rows_max:
            raise TooManyParked(f"{processor}: {row[0]} events are parked; look at `titan dlq list`")
        return True

    def _insert(self, connection: psycopg.Connection[Any], processor: str, delivery: Delivery, error: str) -> None:
        headers = json.dumps([[name, bytes(value or b"").hex()] for name, value in delivery.headers])
        connection.execute(
            """INSERT INTO parked (processor, topic, partition, notification_id, "offset", key, event_type, error, value, headers)
            VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
            [
                processor, delivery.topic, delivery.partition, _id(delivery), delivery.offset,
                delivery.key, delivery.type.replace("\0", "?"), error, delivery.value, headers,
            ],
        )  # fmt: skip

    def _copy(self, processor: str) -> None:
        """Publish what is not published yet, also what a crash left over."""
        if self.copy is None:
            return
        with self.transaction() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM parked WHERE processor = %s AND NOT copied ORDER BY parked_at FOR UPDATE".encode(),
                [processor],
            ).fetchall()
            done = [parked.notification_id for parked in (Parked(*row) for row in rows) if self.copy(parked)]
            connection.execute(
                "UPDATE parked SET copied = true WHERE processor = %s AND notification_id = ANY(%s)", [processor, done]
            )


def _id(delivery: Delivery) -> int:
    return delivery.notification_id or -delivery.offset - 1


def _where(delivery: Delivery) -> str:
    return f"{delivery.topic}:{_id(delivery)} ({delivery.key.decode('utf-8', 'replace')})"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\0", "?")[:2000]
