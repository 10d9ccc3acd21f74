"""A past to be recovered: tallies that take and free names, set timers and see them fired, repeated commands; and its topic."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid5

import psycopg
from confluent_kafka import Producer

from aggregates.kernel import Origin, Refused, Store
from aggregates.kernel.migrate import migrate
from aggregates.kernel.wire import Row, headers, micros
from infra.settings import Settings
from streams.kernel.timers import Timers
from tests.kernel.eventlog import make_topics, stored
from tests.kernel.pipeline import relayed, relaying
from tests.kernel.platform import wait_for
from tests.kernel.servers import Stack, database, settings_of, topics
from tests.kernel.tally import DOMAIN, Tally

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TALLIES = [UUID(int=n) for n in range(1, 9)]


@dataclass(frozen=True)
class Past:
    """Where it is stored, and the rows of its log."""

    settings: Settings
    rows: Sequence[Row]


@contextmanager
def platform_of(stack: Stack, folder: Path) -> Iterator[Settings]:
    """An empty store of tallies and its topic; no read models."""
    with database(stack) as postgres, topics(stack) as kafka:
        settings = settings_of(postgres, kafka, "redis://127.0.0.1:9", "http://127.0.0.1:9", folder)
        migrate(postgres, [DOMAIN])
        make_topics(kafka.bootstrap, [settings.topic(DOMAIN)], settings.partitions)
        yield settings


@contextmanager
def past(stack: Stack, folder: Path) -> Iterator[Past]:
    """All that can happen to tallies has happened, and all of it is published."""
    with platform_of(stack, folder) as settings:
        asyncio.run(happen(settings.postgres))
        with relaying(settings):
            wait_for(lambda: relayed(settings, DOMAIN), "the log is in the topic")
        with psycopg.connect(settings.postgres, autocommit=True) as connection:
            yield Past(settings, stored(connection, DOMAIN))


def command(number: int) -> UUID:
    return uuid5(TALLIES[0], str(number))


async def happen(dsn: str) -> None:
    """Names change hands, some timers are due and some not, one is put off, and commands come twice."""
    async with Store.open(dsn) as store:
        doors = [
            store.commands(Origin("user:test", command=command(n), fingerprint=b"asked")) for n in range(len(TALLIES))
        ]
        for id, door in zip(TALLIES, doors, strict=True):
            await door.open_as(id, Tally, 1000)
        plain = store.commands(Origin("user:test"))
        one, two, three, *others = TALLIES
        await plain.tell(one, Tally.rename, "a\tb\\c\n")
        await plain.tell(one, Tally.rename, "free")
        await plain.tell(two, Tally.rename, "a\tb\\c\n")
        await plain.tell(one, Tally.rename, "mine")
        await plain.tell(three, Tally.rename, "free")
        for number, id in enumerate(others):
            await plain.tell(id, Tally.schedule, NOON + number * HOUR)
        await plain.tell(one, Tally.schedule, NOON - HOUR)
        await plain.tell(one, Tally.schedule, NOON + HOUR)  # in its place
        timers = Timers(store, [DOMAIN], lambda: NOON + HOUR)
        assert await timers.fire_due() == 3
        last = command(100)
        for _ in range(2):
            door = store.commands(Origin("anonymous", command=last))
            await door.tell_all([(others[3], Tally.add, (3,)), (others[4], Tally.add, (4,))])
        for _ in range(60):
            await plain.tell(two, Tally.add, 1)
        try:
            await plain.tell(two, Tally.rename, "free")
        except Refused:
            return
    raise AssertionError("a name was given twice")


def publish(settings: Settings, rows: Iterable[Row]) -> None:
    """Records as the relay makes them."""
    producer = Producer({"bootstrap.servers": settings.kafka, "partitioner": "murmur2_random"})
    for row in rows:
        made: list[tuple[str, str | bytes | None]] = list(headers(row))
        key, at = str(row.originator_id).encode(), micros(row.occurred_at) // 1000
        producer.produce(settings.topic(DOMAIN), row.state, key, headers=made, timestamp=at)
    assert producer.flush(30) == 0


def dump(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()
