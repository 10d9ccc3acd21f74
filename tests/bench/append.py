"""`append`: events a second into the event store, 32 concurrent writers, beside the `eventsourcing` library's own recorder.

Ours is the whole way of a command: an aggregate made, its event encoded as Avro, stored and acknowledged by the group commit.
The baseline is handed ready-made rows, and each of 32 threads inserts them one event a call with its own connection.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit
from uuid import uuid4

import uvloop
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

from aggregates.kernel import Origin, Store
from aggregates.kernel.migrate import migrate
from tests.bench import Figure, at_least, in_turn
from tests.kernel.servers import Stack, database
from tests.kernel.tally import Tally

WRITERS = 32


def run(servers: Stack, quick: bool) -> list[Figure]:
    ours, stock = (20_000, 1_500) if quick else (100_000, 6_000)
    with database(servers) as dsn, database(servers) as other:
        migrate(dsn, ["tally"])
        measured, baseline = in_turn(3, lambda: uvloop.run(_ours(dsn, ours)), lambda: _stock(other, stock))
    return [at_least("append", f"{WRITERS} writers", measured, "events/s", baseline, "stock recorder", 10)]


async def _ours(dsn: str, events: int) -> float:
    async with Store.open(dsn) as store:
        commands = store.commands(Origin("bench"))

        async def writer(count: int) -> None:
            for _ in range(count):
                await commands.open(Tally, 10)

        await writer(50)  # statements are prepared, pages are there
        began = time.perf_counter()
        await asyncio.gather(*(writer(events // WRITERS) for _ in range(WRITERS)))
        return events / (time.perf_counter() - began)


def _stock(dsn: str, events: int) -> float:
    parts = urlsplit(dsn)
    datastore = PostgresDatastore(
        dbname=parts.path.strip("/"),
        host=parts.hostname or "",
        port=parts.port or 5432,
        user=parts.username or "",
        password=parts.password or "",
        pool_size=WRITERS,
        max_overflow=0,
    )
    recorder = PostgresApplicationRecorder(datastore, events_table_name="stock_events")
    recorder.create_table()
    state = bytes(60)  # as long as ours

    def writer(count: int) -> None:
        for _ in range(count):
            recorder.insert_events([StoredEvent(uuid4(), 1, "tally.Begun", state)])

    try:
        writer(20)
        with ThreadPoolExecutor(WRITERS) as threads:
            began = time.perf_counter()
            for done in [threads.submit(writer, events // WRITERS) for _ in range(WRITERS)]:
                done.result()
            return events / (time.perf_counter() - began)
    finally:
        datastore.close()
