"""`live`: a topic of order events into its Postgres read models, by the real worker, beside a Faust agent that does nothing.

The worker decodes each event, projects it to its rows (an order, its lines, its story), and stores rows and positions in one
transaction a batch. Both read the same topic from its beginning, one process each, in turn, and the time goes from their first
event to their last: starting does not count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from confluent_kafka import Producer

from aggregates.kernel.wire import headers, micros
from infra.settings import ROOT, Settings
from projections.order import order_lines, order_timeline, orders
from tests.bench import Figure, at_least, in_turn
from tests.bench.orders import COMPLETED, rows
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, fresh_settings

TABLES = (orders, order_lines, order_timeline)
WAVE_ORDERS = 1_000  # placed before the first of them is shipped
POLL_S = 0.01
GIVE_UP_S = 600.0


def run(servers: Stack, quick: bool) -> list[Figure]:
    events, rounds = (40_000, 1) if quick else (200_000, 3)
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings) as platform:
            worker = platform.table["worker"]
            platform.table["worker"] = worker._replace(arguments=(*worker.arguments, "--sink", "postgres"))
            fill(settings, events)
            measured, baseline = in_turn(rounds, lambda: _worker(platform, events), lambda: _nothing(settings, events))
    return [
        at_least(
            "live", "order read models, one worker", measured, "events/s", baseline, "Faust agent, does nothing", 3
        )
    ]


def fill(settings: Settings, events: int) -> None:
    """The topic of orders as the relay would have written it."""
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "queue.buffering.max.messages": 2_000_000,
        }
    )
    topic = settings.topic("order")
    for row in rows(events, COMPLETED, WAVE_ORDERS):
        made: list[tuple[str, str | bytes | None]] = [*headers(row)]
        at = micros(row.occurred_at) // 1_000
        producer.produce(topic, row.state, str(row.originator_id), timestamp=at, headers=made)
        producer.poll(0)
    assert producer.flush(60) == 0, "Kafka did not take the events"


def _worker(platform: Platform, events: int) -> float:
    """Events a second of one worker on empty tables."""
    seen = 'SELECT coalesce(sum("offset" + 1), 0) FROM projection_positions WHERE projection = %s AND topic = %s'
    with psycopg.connect(platform.settings.postgres, autocommit=True) as connection:
        for table in TABLES:
            connection.execute(f'TRUNCATE "{table.name}"'.encode())
        connection.execute("DELETE FROM projection_positions")
        platform.start("worker")
        try:
            first, done, began, now = 0, 0, 0.0, time.perf_counter()
            give_up = now + GIVE_UP_S
            while done < events:
                assert platform.children["worker"].pid and now < give_up, platform.log("worker")[-2_000:]
                time.sleep(POLL_S)
                row = connection.execute(seen, (orders.name, "order")).fetchone()
                assert row is not None
                done, now = int(row[0]), time.perf_counter()
                if done and not first:
                    first, began = done, now
            return (done - first) / (now - began)
        finally:
            platform.children["worker"].stop()


def _nothing(settings: Settings, events: int) -> float:
    """Events a second of the agent that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable,
            "-m",
            "tests.bench.nothing",
            settings.kafka,
            settings.topic("order"),
            str(events),
            folder,
        ]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=GIVE_UP_S, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return float(done.stdout)
