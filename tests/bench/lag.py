"""`lag`: from a command's acknowledged commit to its event visible in a Postgres read model, at 200 commands a second.

Relay and worker are processes of their own. An event is visible once the stored position of its table and partition has passed
it. Beside it a bare produce → consume round trip of the same client library through the same broker at the same rate.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from pathlib import Path
from random import Random
from threading import Thread
from uuid import uuid4

import psycopg
import uvloop
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from aggregates.kernel import Commands, Origin, Store, clock
from aggregates.kernel.partition import partition_of
from aggregates.order import Order
from infra.settings import Settings
from projections.order import orders
from tests.bench import Figure, at_most, percentile
from tests.bench.orders import address, line
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, fresh_settings

PER_S = 200.0
POLL_S = 0.001
GIVE_UP_S = 60.0
P50_MS, P99_MS = 30, 150


def run(servers: Stack, quick: bool) -> list[Figure]:
    count, rounds = (600, 1) if quick else (4_000, 3)
    ours: list[float] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings) as platform:
            platform.start("relay", "worker")
            uvloop.run(_lags(platform.settings, 200))  # until both are at work
            for _ in range(rounds):
                ours += uvloop.run(_lags(platform.settings, count))
                bare += _round_trips(platform.settings, count)
    return [
        at_most(
            "lag", f"{name}, {PER_S:.0f} commands/s", _ms(ours, part), "ms", _ms(bare, part), "produce → consume", limit
        )
        for name, part, limit in (("p50", 0.5, P50_MS), ("p99", 0.99, P99_MS))
    ]


def _ms(seconds: list[float], part: float) -> float:
    return 1_000 * percentile(seconds, part)


async def _lags(settings: Settings, count: int) -> list[float]:
    """Seconds from commit to visible of so many orders, placed at the rate."""
    waiting: list[deque[tuple[int, float]]] = [deque() for _ in range(settings.partitions)]
    dice = Random(count)

    async def place(commands: Commands) -> None:
        lines = [line(dice, sku) for sku in range(3)]
        receipt = await commands.open(Order.place, uuid4(), "EUR", lines, address(), clock.now())
        partition = partition_of(str(receipt.id).encode(), settings.partitions)
        waiting[partition].append((int(receipt.position.partition(":")[2]), time.perf_counter()))

    async with Store.open(settings.postgres) as store, asyncio.TaskGroup() as group:
        looking = group.create_task(_look(settings, waiting, count))
        commands, began = store.commands(Origin("bench")), time.perf_counter()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / PER_S - time.perf_counter()))
            group.create_task(place(commands))
        return await looking


async def _look(settings: Settings, waiting: list[deque[tuple[int, float]]], count: int) -> list[float]:
    """Look at the table's positions all the time, until `count` events that were waited for are behind them."""
    query = "SELECT partition, notification_id FROM projection_positions WHERE projection = %s AND topic = 'order'"
    lags: list[float] = []
    give_up = time.perf_counter() + count / PER_S + GIVE_UP_S
    async with await psycopg.AsyncConnection.connect(settings.postgres, autocommit=True) as connection:
        while len(lags) < count:
            rows = await (await connection.execute(query, (orders.name,), prepare=True)).fetchall()
            now = time.perf_counter()
            assert now < give_up, f"{count - len(lags)} of {count} events are not visible"
            for partition, position in rows:
                while waiting[partition] and waiting[partition][0][0] <= position:
                    lags.append(now - waiting[partition].popleft()[1])
            await asyncio.sleep(POLL_S)
    return lags


def _round_trips(settings: Settings, count: int) -> list[float]:
    """Seconds from `produce` to the same record in a consumer's hands, at the rate."""
    topic = settings.topic("order.bare")
    sent, trips = list[float](), list[float]()
    server: dict[str, str | int | float | bool] = {"bootstrap.servers": settings.kafka}
    admin = AdminClient(server)
    admin.create_topics([NewTopic(topic, num_partitions=settings.partitions)])[topic].result(GIVE_UP_S)
    producer = Producer({**server, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
    consumer = Consumer({**server, "group.id": topic, "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(settings.partitions)])
        consumer.poll(1)  # connected

        def consume() -> None:
            give_up = time.perf_counter() + count / PER_S + GIVE_UP_S
            while len(trips) < count and time.perf_counter() < give_up:
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    trips.append(time.perf_counter() - sent[int(message.key() or b"")])

        thread = Thread(target=consume)
        thread.start()
        value, began = bytes(800), time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, began + number / PER_S - time.perf_counter()))
            sent.append(time.perf_counter())
            producer.produce(topic, value, str(number))
            producer.poll(0)
        thread.join()
        producer.flush(GIVE_UP_S)
    finally:
        consumer.close()
        admin.delete_topics([topic])[topic].result(GIVE_UP_S)
    assert len(trips) == count, f"{count - len(trips)} of {count} records did not come back"
    return trips
