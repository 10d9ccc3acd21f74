"""Which shadows are being built, and from what: one row a shadow in Postgres, and one lock a table while a replay is at work.

The fingerprint is of everything that decides what a row will be: the table's definition, the projection's code, that of the
aggregates whose events it takes, and their schemas. A shadow with another fingerprint is of no use and is made anew.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

import schemas.history
from aggregates.kernel.event import EVENTS
from projections.kernel.clauses import Projection
from projections.kernel.tables import AnyTable
from replay.failures import AGAIN, line
from replay.log import ReplayError

SCHEMA = """
CREATE TABLE IF NOT EXISTS replay_runs (
    sink text, shadow text, read_model text NOT NULL, fingerprint text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (sink, shadow)
)
"""


class AtWork(ReplayError):
    """Another replay has the shadow."""


class Run(NamedTuple):
    """A shadow that was begun, and perhaps finished, but not switched yet."""

    sink: str
    shadow: str
    read_model: str
    fingerprint: str
    started_at: datetime


class Runs:
    """The register, on one connection that also holds the locks. `with Runs(dsn) as runs:`"""

    def __init__(self, dsn: str) -> None:
        try:
            self._connection: psycopg.Connection[Any] = psycopg.connect(
                dsn, autocommit=True, connect_timeout=5, application_name="titan replay", options="-c lock_timeout=10s"
            )
            with self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('titan projections', 0))")
                self._connection.execute(SCHEMA)
        except psycopg.Error as error:
            raise ReplayError(f"Postgres does not take this: {line(error)}") from error

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @contextmanager
    def locked(self, names: Iterable[str]) -> Iterator[None]:
        """Nobody else works on these shadows (`full`) meanwhile. Raises `AtWork` naming one that somebody is at."""
        taken: list[str] = []
        try:
            for name in sorted(names):
                [[free]] = self._ask("SELECT pg_try_advisory_lock(hashtextextended('titan replay ' || %s, 0))", [name])
                if not free:
                    raise AtWork(f"another replay is at work on {name}: wait for its end")
                taken.append(name)
            yield
        finally:
            with suppress(ReplayError):  # a session that is lost has lost its locks, too
                for name in taken:
                    self._ask("SELECT pg_advisory_unlock(hashtextextended('titan replay ' || %s, 0))", [name])

    def hold(self) -> None:
        """Raises `ReplayError` if what was locked may be another's by now: locks end with their session."""
        self._ask("SELECT 1")

    def all(self) -> list[Run]:
        """Every one, the oldest first."""
        query = "SELECT sink, shadow, read_model, fingerprint, started_at FROM replay_runs ORDER BY started_at, shadow"
        return [Run(*row) for row in self._ask(query)]

    def of(self, shadow: AnyTable) -> Run | None:
        return next((run for run in self.all() if (run.sink, run.shadow) == (shadow.sink, shadow.name)), None)

    def begin(self, table: AnyTable, shadow: AnyTable, fingerprint: str) -> None:
        self._ask(
            """INSERT INTO replay_runs (sink, shadow, read_model, fingerprint) VALUES (%s, %s, %s, %s)
            ON CONFLICT (sink, shadow) DO UPDATE SET fingerprint = EXCLUDED.fingerprint, started_at = now()""",
            [shadow.sink, shadow.name, table.name, fingerprint],
        )

    def forget(self, sink: str, shadow: str) -> None:
        self._ask("DELETE FROM replay_runs WHERE sink = %s AND shadow = %s", [sink, shadow])

    def _ask(self, query: str, parameters: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        """What a statement answers. Raises `ReplayError` when Postgres does not, or not any more."""
        try:
            cursor = self._connection.execute(query.encode(), parameters)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise ReplayError(f"Postgres, which has the register of rebuilds: {line(error)}. {AGAIN}") from error


def full(shadow: AnyTable) -> str:
    """A shadow's name among those of all sinks."""
    return f"{shadow.sink}.{shadow.name}"


def fingerprint(projection: Projection, table: AnyTable, until: str = "") -> str:
    """What the table's rows are made by, as a hash. `until` says where it ends, if it is not to go on."""
    every = projection.everything
    events = [event for event in EVENTS.values() if every or event.domain in projection.domains]
    modules = sorted({projection.module, *(event.__module__ for event in events)})
    made = hashlib.sha256(repr([table.sink, table.key, table.columns, until]).encode())
    made.update(repr([getattr(table, name, None) for name in ("indexes", "order_by", "lua", "views")]).encode())
    for module in modules:
        made.update(inspect.getsource(sys.modules[module]).encode())
    domains = {event.domain for event in events}
    for entry in schemas.history.load(schemas.history.FILE):
        if entry.domain in domains:
            made.update(f"{entry.id} {entry.text}".encode())
    return made.hexdigest()
