"""An event store rebuilt from its topic, beside a bare binary COPY of the same rows into a table that gets the same indexes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

from aggregates.kernel.migrate import migrate, names
from aggregates.kernel.wire import COLUMNS
from infra.settings import Settings
from replay import domains
from replay.store import restore
from tests.bench import Figure, at_least, in_turn

CHUNK = 1024 * 1024


def measure(settings: Settings, domain: str, events: int, quick: bool) -> list[Figure]:
    """`settings` name a topic with so many events."""
    domains.chosen([domain], False)
    with tempfile.TemporaryFile() as rows:
        with _database(settings) as into:
            restore(settings, [domain], into)
            _copied_out(into, domain, rows)

        def ours() -> float:
            with _database(settings) as into:
                began = time.perf_counter()
                [done] = restore(settings, [domain], into)
                assert done.events == events, done
                return events / (time.perf_counter() - began)

        def bare() -> float:
            with _database(settings) as into:
                return events / _copied_in(into, domain, rows)

        rebuilt, copied = in_turn(1 if quick else 3, ours, bare)
    baseline = "events/s binary COPY FROM of the same rows, then the same indexes"
    return [at_least("replay", "event store rebuilt from its topic", rebuilt, "events/s", copied, baseline, 0.3)]


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """An empty one beside the settings' own."""
    name = f"bench_{uuid4().hex}"
    with psycopg.connect(settings.postgres, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            yield urlsplit(settings.postgres)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def _copied_out(dsn: str, domain: str, rows: IO[bytes]) -> None:
    query = sql.SQL(f"COPY {{events}} ({COLUMNS}) TO STDOUT (FORMAT BINARY)").format(**names(domain))
    with psycopg.connect(dsn) as connection, connection.cursor().copy(query) as copy:
        for chunk in copy:
            rows.write(chunk)


def _copied_in(dsn: str, domain: str, rows: IO[bytes]) -> float:
    """Seconds for the rows and their indexes, committed."""
    its = names(domain)
    migrate(dsn, [domain])
    rows.seek(0)
    with psycopg.connect(dsn) as connection:
        connection.execute(sql.SQL("DROP TABLE {events}").format(**its))
        connection.commit()
        began = time.perf_counter()
        connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
        connection.execute(
            sql.SQL(
                "CREATE TABLE {events} (notification_id bigint NOT NULL, originator_id uuid NOT NULL, originator_version integer NOT NULL,"
                " event_type text NOT NULL, state bytea NOT NULL, event_id uuid NOT NULL, occurred_at timestamptz NOT NULL,"
                " correlation_id text NOT NULL, causation_id uuid, actor text NOT NULL)"
            ).format(**its)
        )
        with connection.cursor().copy(
            sql.SQL(f"COPY {{events}} ({COLUMNS}) FROM STDIN (FORMAT BINARY, FREEZE)").format(**its)
        ) as copy:
            while chunk := rows.read(CHUNK):
                copy.write(chunk)
        connection.execute(
            sql.SQL("ALTER TABLE {events} ADD PRIMARY KEY (originator_id, originator_version)").format(**its)
        )
        connection.execute(sql.SQL("CREATE UNIQUE INDEX {events_log} ON {events} (notification_id)").format(**its))
        connection.commit()
        return time.perf_counter() - began
