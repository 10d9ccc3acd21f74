"""A toy topic on a real Kafka and real worker processes that read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from aggregates.kernel.wire import Row, headers
from infra.children import tie
from infra.settings import ROOT, Settings
from tests.kernel.connections import connected
from tests.kernel.platform import wait_for
from tests.projections.kernel.purse import DOMAIN

PARTITIONS = 4
WAIT_S = 60


def make_topic(settings: Settings, suffixes: Iterable[str] = ("", ".dlq")) -> None:
    admin = AdminClient({"bootstrap.servers": settings.kafka})
    topics = [NewTopic(settings.topic(DOMAIN) + suffix, num_partitions=PARTITIONS) for suffix in suffixes]
    for future in admin.create_topics(topics, operation_timeout=30).values():
        future.result(30)


def publisher(settings: Settings, **config: str | float | bool) -> Producer:
    """As the relay's."""
    return Producer(
        {
            "bootstrap.servers": settings.kafka,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "enable.idempotence": True,
            **config,
        }
    )


def produce(producer: Producer, settings: Settings, rows: Iterable[Row]) -> None:
    """Hand rows to the producer, as the relay does."""
    for row in rows:
        made: list[tuple[str, str | bytes | None]] = list(headers(row))
        producer.produce(settings.topic(DOMAIN), row.state, str(row.originator_id).encode(), headers=made)


def publish(settings: Settings, rows: Iterable[Row]) -> None:
    """Publish rows and wait for their acknowledgement."""
    producer = publisher(settings)
    produce(producer, settings, rows)
    assert producer.flush(30) == 0


class Worker:
    """One worker process. `log` is what it wrote."""

    def __init__(self, settings: Settings, *sinks: str) -> None:
        self.path = Path(settings.data) / f"worker-{time.monotonic_ns()}.log"
        env = {
            "TITAN_KAFKA": settings.kafka,
            "TITAN_KAFKA_SESSION_S": str(settings.kafka_session_s),
            "TITAN_POSTGRES": settings.postgres,
            "TITAN_REDIS": settings.redis,
            "TITAN_CLICKHOUSE": settings.clickhouse,
            "TITAN_TOPIC_PREFIX": settings.topic_prefix,
            "TITAN_NAMESPACE": settings.namespace,
            "TITAN_DATA": str(settings.data),
        }
        with self.path.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.projections.kernel.purse_worker", *sinks],
                env={**os.environ, **env}, cwd=ROOT, stdout=out, stderr=out, preexec_fn=tie(),
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self.path.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The same, each whole line the object that it is."""
        return [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(30)


@contextmanager
def workers(settings: Settings, count: int, *sinks: str) -> Iterator[list[Worker]]:
    """Worker processes; what still runs at the end is killed."""
    made = [Worker(settings, *sinks) for _ in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            if worker.process.poll() is None:
                worker.kill()


def until(condition: Callable[[], bool], of: Iterable[Worker] = (), wait_s: float = WAIT_S) -> None:
    """Return when it holds. Fails with the workers' logs after `wait_s`."""
    try:
        wait_for(condition, "what it waits for", wait_s)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(worker.log for worker in of)])) from error


def count(settings: Settings, query: str) -> int:
    with connected(settings.postgres) as connection:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0] or 0)


def passed(settings: Settings) -> int:
    """The highest notification id that both Postgres tables have seen in some partition."""
    return count(
        settings, "SELECT min(id) FROM (SELECT max(notification_id) id FROM projection_positions GROUP BY projection) p"
    )
