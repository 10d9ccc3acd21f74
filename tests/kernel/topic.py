"""Read models fed by the worker's own runner, from events in memory or from the event store, with no Kafka in between."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import psycopg
import redis as redis_client
from psycopg import sql
from psycopg.rows import dict_row

from aggregates.kernel import Event, wire
from aggregates.kernel.partition import partition_of
from aggregates.kernel.recorder import CHANNEL
from aggregates.kernel.wire import COLUMNS, Row
from infra.settings import Settings
from projections.kernel import RedisTable, Table
from projections.kernel.clauses import Projection
from projections.kernel.clickhouse import client_of
from projections.kernel.migrate import migrate
from projections.kernel.runner import Delivery, Fenced, Runner
from projections.kernel.sinks import sink_of
from tests.kernel.connections import connected

LOOK_S = 0.5
LINGER_S = {"clickhouse": 0.5}  # each insert is a part that has to be written and merged

Rows = dict[Any, dict[str, Any]]


def rows_of(events: Iterable[Event]) -> list[Row]:
    """Events of one domain in the order in which they were stored, as rows of its log."""
    return [
        Row(n, e.id, e.version, e.type, wire.encode(e), uuid4(), e.at, "test", None, "user:test")
        for n, e in enumerate(events, start=1)
    ]


def stored(dsn: str, domain: str, after: int = 0) -> list[Row]:
    """The log of a domain behind a notification id."""
    query = sql.SQL(f"SELECT {COLUMNS} FROM {{}} WHERE notification_id > %s ORDER BY notification_id")
    with connected(dsn) as connection:
        found = connection.execute(query.format(sql.Identifier(f"{domain}_events")), (after,)).fetchall()
    return [Row(*row) for row in found]


def shuffled(rows: Sequence[Row], partitions: int, dice: Random) -> list[Row]:
    """The rows as several partitions deliver them: each in its own order, and no order among them."""
    lanes: dict[int, list[Row]] = {}
    for row, delivery in zip(rows, deliveries(rows, partitions), strict=True):
        lanes.setdefault(delivery.partition, []).append(row)
    merged = []
    while lanes:
        lane = dice.choice(sorted(lanes))
        merged.append(lanes[lane].pop(0))
        if not lanes[lane]:
            del lanes[lane]
    return merged


def deliveries(rows: Iterable[Row], partitions: int) -> list[Delivery]:
    """Rows as the records that the relay makes of them. Offsets are notification ids: they only have to grow."""
    made = []
    for row in rows:
        key = str(row.originator_id).encode()
        domain = row.event_type.partition(".")[0]
        made.append(
            Delivery(domain, partition_of(key, partitions), row.notification_id, key, row.state, wire.headers(row))
        )
    return made


def settings_of(postgres: str, redis: str, folder: Path) -> Settings:
    """Settings of a platform without Kafka and ClickHouse, for what needs neither."""
    return Settings(
        postgres=postgres,
        redis=redis,
        kafka="127.0.0.1:9",
        clickhouse="http://127.0.0.1:9",
        namespace=f"test-{uuid4().hex[:12]}",
        data=folder,
        jwt_jwks=folder / "jwks.json",
        jwt_private_key=folder / "jwt.json",
        master_key=folder / "master",
    )


class Live:
    """The read models of some domains, kept by one runner a sink. Use `close`, or `following` for a thread of its own."""

    def __init__(
        self, settings: Settings, projections: Sequence[Projection], sinks: Sequence[str] = ("postgres", "redis")
    ) -> None:
        self.settings, self.projections, self.sinks = settings, projections, sinks
        self.domains = sorted({domain for one in projections for domain in one.domains})
        migrate(settings, sinks, projections)
        self.seen: dict[tuple[Runner, str], int] = {}
        self.runners = [Runner(sink_of(name, settings), projections, self.domains) for name in sinks]
        self.locks = {runner: threading.RLock() for runner in self.runners}
        for runner in self.runners:
            self.assign(runner)

    def assign(self, runner: Runner) -> None:
        """Read the positions anew, and the topics from the beginning: what was seen before is dropped."""
        for topic in runner.topics:
            self.seen[runner, topic] = 0
        runner.assign([(topic, n) for topic in runner.topics for n in range(self.settings.partitions)])

    def feed(self, rows: Sequence[Row]) -> None:
        """Apply rows as one batch a sink. Raises Fenced when another moved, or lost, the positions."""
        for runner in self.runners:
            runner.handle(deliveries(rows, self.settings.partitions))

    def dribble(self, rows: Sequence[Row], dice: Random) -> None:
        """Feed rows as a busy topic may: partitions in any order, in small batches, some of them twice."""
        coming, done = shuffled(rows, self.settings.partitions, dice), 0
        while done < len(coming):
            again, more = dice.randrange(3), dice.randrange(1, 9)
            self.feed(coming[max(0, done - again) : done + more])
            done += more

    def catch_up(self) -> None:
        """Apply all that is stored. A store that lost its data is filled from the beginning, as the worker does it."""
        for runner in self.runners:
            self._catch_up(runner)

    def _catch_up(self, runner: Runner) -> None:
        with self.locks[runner]:
            heads = self._heads()
            for topic in runner.topics:
                while self.seen[runner, topic] < heads.get(topic, 0) and not self._applied(runner, topic):
                    self.assign(runner)

    def _heads(self) -> dict[str, int]:
        """The last notification id of each domain."""
        found: dict[str, int] = {}
        for dsn in {self.settings.dsn(domain) for domain in self.domains}:
            with connected(dsn) as connection:
                found.update(connection.execute("SELECT domain, last FROM log_heads").fetchall())
        return found

    def _applied(self, runner: Runner, topic: str) -> bool:
        rows = stored(self.settings.dsn(topic), topic, self.seen[runner, topic])
        try:
            runner.handle(deliveries(rows, self.settings.partitions))
        except Fenced:
            return False
        if rows:
            self.seen[runner, topic] = rows[-1].notification_id
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is applied by the threads of `following`."""
        with ExitStack() as stack:
            for lock in self.locks.values():
                stack.enter_context(lock)
            yield

    def wipe(self) -> None:
        """Begin again with nothing in the read models."""
        tables = [table for one in self.projections for table in one.tables if table.sink == "postgres"]
        names = [sql.Identifier(table.name) for table in tables] + [sql.Identifier("projection_positions")]
        with connected(self.settings.postgres) as connection, connection.transaction():
            for emptied in names:  # of a few rows: TRUNCATE would make new files
                connection.execute(sql.SQL("DELETE FROM {}").format(emptied))
        with redis_client.Redis.from_url(self.settings.redis) as client:
            client.flushdb()
        if "clickhouse" in self.sinks:
            warehouse = client_of(self.settings.clickhouse)
            for name in [table.name for one in self.projections for table in one.tables if table.sink == "clickhouse"]:
                warehouse.command(f"DROP TABLE {name}")
            warehouse.close()
            migrate(self.settings, ["clickhouse"], self.projections)
        for runner in self.runners:
            self.assign(runner)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Catch up whenever something was stored, in a thread a sink as the worker has it, and once more at the end."""
        stop, failed = threading.Event(), list[BaseException]()

        def follow(runner: Runner) -> None:
            try:
                with psycopg.connect(self.settings.postgres, autocommit=True) as news:
                    news.execute(f"LISTEN {CHANNEL}")
                    while not stop.is_set():
                        self._catch_up(runner)
                        next(news.notifies(timeout=LOOK_S, stop_after=1), None)
                        stop.wait(LINGER_S.get(runner.sink.name, 0))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=follow, args=(runner,)) for runner in self.runners]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        if failed:
            raise failed[0]
        self.catch_up()

    def close(self) -> None:
        for runner in self.runners:
            runner.sink.close()


def rows_in(settings: Settings, table: Table | RedisTable) -> Rows:
    """Everything that a table holds, by key."""
    if isinstance(table, Table):
        with connected(settings.postgres) as connection, connection.cursor(row_factory=dict_row) as cursor:
            found = cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table.name))).fetchall()
        return {tuple(row[name] for name in table.key): row for row in found}
    with redis_client.Redis.from_url(settings.redis) as client:
        return {tuple(row[name] for name in table.key): row for row in table.scan(client, settings.namespace)}
