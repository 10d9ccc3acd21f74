"""`live`: a topic of order events into Postgres by the real worker, beside a Faust agent that does nothing.

The worker decodes each event, projects it, and stores rows and positions in one transaction a batch. To be reached is the ratio
with a summary of each order, one table; the shop's own order read models, four tables, are shown as well. All read the same
topic from its beginning, one process each, in turn, and the time goes from their first event to their last: starting does not count.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
from confluent_kafka import Producer

from aggregates.kernel.wire import headers, micros
from infra.processes import Process
from infra.settings import ROOT, Settings
from projections.kernel import Table
from projections.order import order_lines, order_summary, order_timeline, orders
from tests.bench import Figure, at_least, in_turn
from tests.bench.orders import COMPLETED, rows
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, fresh_settings

WAVE_ORDERS = 1_000  # placed before the first of them is shipped
POLL_S = 0.01
GIVE_UP_S = 600.0


def run(servers: Stack, quick: bool) -> list[Figure]:
    events, rounds = (40_000, 1) if quick else (200_000, 3)
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings) as platform:
            platform.table["shop"] = Process("shop", "streams.worker", ("--sink", "postgres"))
            platform.table["summary"] = Process("summary", "tests.bench.summary")
            fill(settings, events)
            one, three, nothing = in_turn(
                rounds,
                lambda: _worker(platform, "summary", [order_summary], events),
                lambda: _worker(platform, "shop", [orders, order_lines, order_timeline, order_summary], events),
                lambda: _nothing(settings, events),
            )
    does_nothing = "Faust agent, does nothing"
    return [
        at_least("live", "order summaries, one worker", one, "events/s", nothing, does_nothing, 3),
        Figure("live", "the shop's order read models", three, "events/s", nothing, does_nothing),
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


def _worker(platform: Platform, name: str, tables: Sequence[Table], events: int) -> float:
    """Events a second of one worker process, its tables empty."""
    seen = 'SELECT coalesce(sum("offset" + 1), 0) FROM projection_positions WHERE projection = %s AND topic = %s'
    with psycopg.connect(platform.settings.postgres, autocommit=True) as connection:
        for table in tables:
            connection.execute(f'TRUNCATE "{table.name}"'.encode())
        connection.execute("DELETE FROM projection_positions")
        platform.start(name)
        try:
            first, done, began, now = 0, 0, 0.0, time.perf_counter()
            give_up = now + GIVE_UP_S
            while done < events:
                assert platform.children[name].pid and now < give_up, platform.log(name)[-2_000:]
                time.sleep(POLL_S)
                row = connection.execute(seen, (tables[0].name, "order")).fetchone()
                assert row is not None
                done, now = int(row[0]), time.perf_counter()
                if done and not first:
                    first, began = done, now
            return (done - first) / (now - began)
        finally:
            platform.children[name].stop()


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
