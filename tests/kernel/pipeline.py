"""Event store → relay → Kafka → sinks within one process, in threads: for tests that look at the whole way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg.rows import TupleRow

from aggregates.kernel import recorder
from aggregates.kernel.recorder import Append
from aggregates.kernel.wire import Row
from infra.settings import Settings
from projections.kernel.clauses import Projection
from projections.kernel.parking import PostgresParking
from projections.kernel.runner import Runner, Sink
from projections.kernel.sinks import sink_of
from schemas import external
from streams.kernel.consumer import LaneConsumer
from streams.relay import Relay
from streams.worker import PACES
from tests.kernel.connections import connected


def store_rows(dsn: str, domain: str, rows: Sequence[Row]) -> None:
    """Append rows as the committer does: an aggregate's first row here must follow what it has."""

    async def main() -> None:
        async with await psycopg.AsyncConnection[TupleRow].connect(dsn, autocommit=True) as connection:
            batch = [Append(domain, [row], [(row.originator_id, row.originator_version)]) for row in rows]
            outcomes = await recorder.append(connection, batch)
            assert not [one.problem for one in outcomes if one.problem], outcomes

    asyncio.run(main())


@contextmanager
def relaying(settings: Settings, *relays: Relay) -> Iterator[None]:
    """These relays in threads, or one as the platform has it."""
    stop = threading.Event()
    ids = external.ids_of(settings.schema_registry_url)
    made = relays or (Relay(settings.postgres, settings.kafka, settings.topic_prefix, settings.namespace, ids),)
    threads = [threading.Thread(target=relay.run, args=(stop,)) for relay in made]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Following(threading.Thread):
    """One sink's consumer, as a worker has it. `sink` in its place may fail as a test likes; an exception is raised by `end`."""

    def __init__(
        self, settings: Settings, sink: Sink, of: Collection[Projection], domains: Collection[str], name: str = ""
    ) -> None:
        super().__init__(name=f"{sink.name} {name}")
        self._halt, self._error = threading.Event(), list[BaseException]()
        self._parking = PostgresParking(settings.postgres)
        group = f"{settings.namespace}.projections.{sink.name}"
        self.runner = Runner(sink, of, domains, self._parking)
        member = settings.model_copy(update={"instance": name}).member(group)
        ids = external.ids_of(settings.schema_registry_url)
        self._consumer = LaneConsumer(
            settings.kafka, group, settings.topic_prefix, self.runner, PACES[sink.name], config=member, ids=ids
        )
        self.start()

    def run(self) -> None:
        try:
            self._consumer.run(self._halt)
        except BaseException as error:
            self._error.append(error)
        finally:
            self.runner.sink.close()
            self._parking.close()

    def halt(self) -> None:
        self._halt.set()
        self.join()

    def end(self) -> None:
        self.halt()
        if self._error:
            raise self._error[0]


@contextmanager
def following(
    settings: Settings,
    of: Collection[Projection],
    domains: Collection[str],
    sinks: Collection[str] = ("postgres", "redis", "clickhouse"),
) -> Iterator[None]:
    """The worker's consumers, one a sink."""
    threads = [Following(settings, sink_of(name, settings), of, domains) for name in sinks]
    try:
        yield
    finally:
        for thread in threads:
            thread.end()


def heads(dsn: str) -> dict[str, int]:
    """The last notification id of each domain."""
    with connected(dsn) as connection:
        return dict(connection.execute("SELECT domain, last FROM log_heads").fetchall())


def relayed(settings: Settings, domain: str) -> bool:
    """Whether Kafka has acknowledged all that is stored of a domain."""
    with connected(settings.postgres) as connection:
        try:
            row = connection.execute("SELECT position FROM relay_positions WHERE domain = %s", [domain]).fetchone()
        except psycopg.errors.UndefinedTable:
            return False
    return row is not None and int(row[0]) == heads(settings.postgres)[domain]


def projected(settings: Settings, of: Collection[Projection], domain: str, partitions: int) -> bool:
    """Whether each table has seen the newest event of each partition."""
    newest = newest_by_partition(settings, domain, partitions)
    for sink_name in {table.sink for one in of for table in one.tables}:
        sink = sink_of(sink_name, settings)
        try:
            tables = [table for one in of for table in one.tables if table.sink == sink_name]
            found = sink.positions(tables, domain, newest)
        finally:
            sink.close()
        if any(found[table, p].notification_id < id for table in tables for p, id in newest.items()):
            return False
    return True


def reached(newest: Mapping[int, int], found: Mapping[int, int]) -> bool:
    """Whether positions by partition are at the newest events, in each partition that has any."""
    return all(found.get(partition, 0) >= last for partition, last in newest.items())


def newest_by_partition(settings: Settings, domain: str, partitions: int) -> dict[int, int]:
    """The highest notification id that belongs into each partition, of those that get any."""
    from aggregates.kernel.partition import partition_of

    newest: dict[int, int] = {}
    with connected(settings.postgres) as connection:
        rows = connection.execute(
            f"SELECT originator_id::text, max(notification_id) FROM {domain}_events GROUP BY 1".encode()
        ).fetchall()
    for id, last in rows:
        partition = partition_of(str(id).encode(), partitions)
        newest[partition] = max(newest.get(partition, 0), int(last))
    return newest
