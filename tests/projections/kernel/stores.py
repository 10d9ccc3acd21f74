"""The three sinks with the toy read models in them, and what they hold, read from the outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import redis as redis_client

from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS, Projection
from projections.kernel.clickhouse import client_of
from projections.kernel.migrate import migrate
from projections.kernel.parking import Limits, PostgresParking
from projections.kernel.runner import Delivery, Fenced, Runner, Sink
from projections.kernel.sinks import sink_of
from tests.kernel.connections import connected
from tests.projections.kernel.purse import DOMAIN, Filled, Log, expected, pockets

PURSES: Projection = PROJECTIONS["tests.projections.kernel.purse"]
Held = dict[UUID, tuple[object, ...]]


class Store:
    """One sink of a test's own platform."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        migrate(settings, [name], [PURSES])
        self.sinks: list[Sink] = []
        self.parkings: list[PostgresParking] = []
        self._click: Any = None

    def runner(self, log: Log, limits: Limits | None = None, parking: bool = True) -> Runner:
        """A runner with all partitions of the log."""
        sink = sink_of(self.name, self.settings)
        self.sinks.append(sink)
        self.parkings.append(PostgresParking(self.settings.postgres, limits))
        runner = Runner(sink, [PURSES], [DOMAIN], self.parkings[-1] if parking else None)
        runner.assign([(DOMAIN, partition) for partition in range(log.partitions)])
        return runner

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        for parking in self.parkings:
            parking.close()

    def holds(self, shadow: str = "") -> Held:
        """By purse: (balance, fills, note) in Postgres, (balance, fills, closed) in Redis, (sum, fills) in ClickHouse.

        `shadow`: what is behind the names of the tables that are looked at.
        """
        if self.name == "postgres":
            with connected(self.settings.postgres) as connection:
                query = f"SELECT id, balance, fills, note FROM purses{shadow}".encode()
                return {id: tuple(row) for id, *row in connection.execute(query)}
        if self.name == "redis":
            with redis_client.Redis.from_url(self.settings.redis) as client:
                rows = pockets.named(f"{pockets.name}{shadow}").scan(client, self.settings.namespace)
                return {row["id"]: (row["balance"], row["counts"].get("fills", 0), row["closed"]) for row in rows}
        found = self.click.query(f"SELECT purse, sum(amount), count() FROM fills{shadow} FINAL GROUP BY purse")
        return {id: tuple(row) for id, *row in found.result_rows}

    def raw_rows(self) -> int:
        """Rows that ClickHouse was sent and kept, equal ones too."""
        return int(self.click.query("SELECT count() FROM fills").result_rows[0][0])

    @property
    def click(self) -> Any:
        """A ClickHouse client, made when it is first asked for."""
        self._click = self._click or client_of(self.settings.clickhouse)
        return self._click

    def should_hold(self, log: Log, without: tuple[int, ...] = ()) -> Held:
        """The same, folded from the events in plain Python."""
        if self.name == "clickhouse":
            skipped = {log.purse(number) for number in without}
            sums: dict[UUID, tuple[int, int]] = {}
            for one in log.events():
                if isinstance(one.event, Filled) and one.event.id not in skipped:
                    amount, count = sums.get(one.event.id, (0, 0))
                    sums[one.event.id] = (amount + one.event.amount, count + 1)
            return dict(sums)
        rows: Mapping[UUID, tuple[int, int, str | None]] = expected(log, without)
        if self.name == "postgres":
            return dict(rows)
        return {id: (balance, count, False) for id, (balance, count, _) in rows.items() if id not in noted_only(log)}


def noted_only(log: Log) -> set[UUID]:
    """Purses that come back after they were closed by a torn note alone: no row in Redis, where nothing is put then."""
    alive: set[UUID] = set()
    last: dict[UUID, str] = {}
    for one in log.events():
        kind = type(one.event).__name__
        id = one.event.id
        if kind == "Closed":
            alive.discard(id)
            last[id] = kind
        elif kind in ("Opened", "Filled", "Noted"):
            alive.add(id)
        elif kind == "Torn" and id not in alive:
            last[id] = kind
    return {id for id, kind in last.items() if kind == "Torn" and id not in alive}


def feed(runner: Runner, deliveries: list[Delivery], sizes: Iterator[int]) -> None:
    """Hand over batches of these sizes, as a worker would: fenced lanes are read anew."""
    at = 0
    while at < len(deliveries):
        size = next(sizes)
        try:
            runner.handle(deliveries[at : at + size])
        except Fenced:
            runner.assign(list(runner.lanes))
            at = 0
            continue
        at += size


@contextmanager
def store(name: str, settings: Settings) -> Iterator[Store]:
    made = Store(name, settings)
    try:
        yield made
    finally:
        made.close()
