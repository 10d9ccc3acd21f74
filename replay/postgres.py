"""Shadows in Postgres: loaded unlogged and without indexes, made a logged table with all of them at the end, then renamed.

A load that is unlogged writes no WAL, so the commits of the live platform don't wait behind it. Its positions are unlogged too:
a crash of the server empties both, never one, and the load begins anew. `finish` writes the table once more, to the log and
without the dead rows that updates left, and puts its positions where the ordinary sink has them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg import sql

from infra.children import step_back
from infra.settings import Settings
from projections.kernel import postgres
from projections.kernel.postgres import PostgresSink, Row, Table, fold, statements
from projections.kernel.runner import REBUILT, BadData, Batch, Broken, Down, Move
from projections.kernel.tables import AnyTable, json_bytes
from replay.copying import COPIED_FROM, Copied, copied
from replay.shadow import NICE, Reach

SCHEMA = "CREATE UNLOGGED TABLE IF NOT EXISTS replay_positions (LIKE projection_positions INCLUDING ALL)"
SHADOW = "a shadow of titan replay"  # the comment by which one is known
OLD = "__old"
TRIES = 5  # of a checkpoint that lost a deadlock
LOCK_MS = 500  # how long readers of the live table wait behind a switch that waits for one of them
SWITCH_TRIES = 60
SWITCH_PAUSE_S = 0.25
STILL_MS_MAX = 15_000  # how long the live worker may be held still


class Aside(PostgresSink):
    """A sink whose statements step back too, when others want the processor."""

    def _connect(self) -> psycopg.Connection[Any]:
        connection = super()._connect()
        step_back_server(connection)
        return connection


class PostgresLoader(Aside):
    """Gathers folded rows and writes them by COPY. The rows' order and that of the tables is the same in all loaders."""

    log = "replay_positions"

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._rows: dict[AnyTable, dict[Any, Row]] = {}
        self._moves: dict[tuple[AnyTable, str, int], Move] = {}

    @property
    def rows(self) -> int:
        return sum(map(len, self._rows.values()))

    def apply(self, batch: Batch) -> None:
        try:
            for table, changes in batch.changes.items():
                fold(table, (change for _, change in changes), self._rows.setdefault(table, {}))
        except (TypeError, ValueError, AttributeError) as error:
            raise BadData(f"{type(error).__name__}: {error}") from error
        for move in batch.moves:
            lane = (move.table, move.topic, move.partition)
            before = self._moves.get(lane)
            self._moves[lane] = move if before is None else move._replace(old=before.old)

    def checkpoint(self) -> None:
        for turn in range(TRIES):
            try:
                self._write()
                break
            except Down as error:
                if not isinstance(error.__cause__, psycopg.errors.DeadlockDetected) or turn == TRIES - 1:
                    raise
        self._rows.clear()
        self._moves.clear()

    def _write(self) -> None:
        if not self._moves:
            return
        with self._working() as connection, connection.transaction():
            query, parameters = self._move(self._moves.values())
            connection.execute(query.encode(), parameters)
            for table, rows in sorted(self._rows.items(), key=lambda item: item[0].name):
                for statement in statements(table, rows):
                    try:
                        packed = copied(table, statement.rows) if len(statement.rows) >= COPIED_FROM else None
                        text = None if packed else json_bytes(statement.rows).decode()
                    except (TypeError, ValueError, AttributeError) as error:
                        raise BadData(f"{type(error).__name__}: {error}") from error
                    if packed is None:
                        connection.execute(statement.query.encode(), [text])
                    else:
                        _copy(connection, packed, statement.query)


def _copy(connection: psycopg.Connection[Any], packed: Copied, query: str) -> None:
    """Run a statement over rows that come by COPY instead of as JSON."""
    connection.execute(packed.made.encode())
    with connection.cursor().copy(packed.copy.encode()) as copy:
        copy.write(packed.data)
    connection.execute(packed.instead(query).encode())
    connection.execute(packed.emptied.encode())


class PostgresShadows:
    """Shadows of one database."""

    name = "postgres"

    def __init__(self, settings: Settings) -> None:
        self.dsn = settings.postgres
        self._sink, self._aside = PostgresSink(self.dsn), Aside(self.dsn)
        self._ready = False

    def make(self, shadow: AnyTable) -> None:
        with self._long() as connection, connection.transaction():
            self._drop(connection, shadow.name)
            connection.execute(postgres.created(cast(Table, shadow), "UNLOGGED").encode())
            connection.execute(
                sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = false)").format(sql.Identifier(shadow.name))
            )
            _mark(connection, shadow.name)

    def there(self, shadow: AnyTable) -> bool:
        with self._long() as connection:
            return _persistence(connection, shadow.name) is not None

    def loader(self) -> PostgresLoader:
        return PostgresLoader(self.dsn)

    def finished(self, shadow: AnyTable) -> bool:
        with self._long() as connection:
            return _persistence(connection, shadow.name) == "p"

    def finish(self, shadow: AnyTable) -> None:
        name = sql.Identifier(shadow.name)
        with self._long(self._aside) as connection, connection.transaction():
            if _persistence(connection, shadow.name) != "u":
                return
            connection.execute(sql.SQL("ALTER TABLE {} SET LOGGED").format(name))
            connection.execute(sql.SQL("ALTER TABLE {} RESET (autovacuum_enabled)").format(name))
            postgres.make_indexes(connection, cast(Table, shadow))
            connection.execute(sql.SQL("ANALYZE {}").format(name))
            connection.execute(
                """WITH moved AS (DELETE FROM replay_positions WHERE projection = %s RETURNING *)
                INSERT INTO projection_positions SELECT * FROM moved""",
                [shadow.name],
            )

    def switch(self, pairs: Mapping[AnyTable, AnyTable], catch_up: Callable[[Reach], None]) -> None:
        names = {live.name: shadow.name for live, shadow in pairs.items()}
        with self._long() as connection:
            for live in names:  # of a switch that was killed behind its commit
                self._drop(connection, live + OLD)
            _startable(connection, names)
            for turn in range(SWITCH_TRIES):
                try:
                    with connection.transaction():
                        connection.execute(f"SET LOCAL lock_timeout = {LOCK_MS}".encode())
                        if connection.info.server_version >= 170000:
                            connection.execute(f"SET LOCAL transaction_timeout = {STILL_MS_MAX}".encode())
                        catch_up(_held(connection, names))
                        for live, shadow in names.items():
                            _rename(connection, live, shadow)
                    break
                except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                    if turn == SWITCH_TRIES - 1:
                        raise Broken(
                            f"{', '.join(names)} can't be switched: some transaction has a lock on it for long. "
                            "Nothing was changed; start again to try the switch alone"
                        ) from None
                    time.sleep(SWITCH_PAUSE_S)
            connection.execute("SET lock_timeout = '60s'")
            for live in names:
                self._drop(connection, live + OLD)

    def drop(self, name: str) -> None:
        with self._long() as connection, connection.transaction():
            self._drop(connection, name)

    def names(self) -> list[str]:
        with self._long() as connection:
            rows = connection.execute(
                """SELECT relname::text FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace AND nspname = current_schema()
                WHERE relkind = 'r' AND obj_description(pg_class.oid, 'pg_class') = %s ORDER BY 1""",
                [SHADOW],
            ).fetchall()
        return [name for (name,) in rows]

    def close(self) -> None:
        self._sink.close()
        self._aside.close()

    @contextmanager
    def _long(self, sink: PostgresSink | None = None) -> Iterator[psycopg.Connection[Any]]:
        """The connection for what may take its time."""
        with (sink or self._sink)._working() as connection:
            if connection.info.server_version >= 170000:
                connection.execute("SET transaction_timeout = 0")
            if not self._ready:
                with connection.transaction():
                    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('titan projections', 0))")
                    connection.execute(postgres.SCHEMA)
                    connection.execute(SCHEMA)
                self._ready = True
            yield connection

    @staticmethod
    def _drop(connection: psycopg.Connection[Any], name: str) -> None:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(name)))
        for log in ("projection_positions", "replay_positions"):
            connection.execute(f"DELETE FROM {log} WHERE projection = %s".encode(), [name])


def step_back_server(connection: psycopg.Connection[Any]) -> None:
    """Have the server's process of a connection step back as far as a loader does: what that one sends would run before the live platform.

    Only on this machine, and where that process may be moved (root, or the server's own user). It is known by its process id and
    by the client's port in its title.
    """
    pid, port = connection.info.backend_pid, 0
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        if line.family in (socket.AF_INET, socket.AF_INET6):
            port = line.getsockname()[1]
    with suppress(OSError):
        if port and f"({port})" in Path(f"/proc/{pid}/cmdline").read_text():
            step_back(pid, NICE)


def _mark(connection: psycopg.Connection[Any], name: str) -> None:
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(name), sql.Literal(SHADOW)))


def _persistence(connection: psycopg.Connection[Any], name: str) -> str | None:
    """ "u" for an unlogged table, "p" for one that lasts, None for none."""
    row = connection.execute(
        "SELECT relpersistence::text FROM pg_class WHERE oid = to_regclass(%s)", [f'"{name}"']
    ).fetchone()
    return None if row is None else str(row[0])


def _startable(connection: psycopg.Connection[Any], names: Mapping[str, str]) -> None:
    """Give the live tables a position in each lane of their shadows, so that there is something to hold."""
    for live, shadow in names.items():
        connection.execute(
            """INSERT INTO projection_positions (projection, topic, partition, notification_id, "offset")
            SELECT %s, topic, partition, 0, -1 FROM projection_positions WHERE projection = %s
            ORDER BY topic, partition ON CONFLICT DO NOTHING""",
            [live, shadow],
        )


def _held(connection: psycopg.Connection[Any], names: Iterable[str]) -> dict[tuple[str, int], int]:
    """Keep the live positions where they are until the transaction ends; how far each lane has got."""
    rows = connection.execute(
        """SELECT topic, partition, "offset" FROM projection_positions
        WHERE projection = ANY(%s) AND position(%s IN topic) = 0 ORDER BY projection, topic, partition FOR UPDATE""",
        [list(names), REBUILT],
    ).fetchall()
    reach: dict[tuple[str, int], int] = {}
    for topic, partition, offset in rows:
        reach[topic, partition] = max(offset, reach.get((topic, partition), -1))
    return reach


def _rename(connection: psycopg.Connection[Any], live: str, shadow: str) -> None:
    """The shadow's positions and rows under the live name. What was parked and is in it now is not to be applied again.

    Positions first, as in every batch: then who waits for one holds no lock on the table.
    """
    connection.execute(
        "DELETE FROM projection_positions WHERE projection = %s AND position(%s IN topic) > 0", [live, REBUILT]
    )
    # In place, not deleted and made anew: a worker that waits for the row goes on when nothing changed for it.
    connection.execute(
        """UPDATE projection_positions l SET notification_id = s.notification_id, "offset" = s."offset", moved_at = now()
        FROM projection_positions s WHERE l.projection = %(live)s AND s.projection = %(shadow)s
        AND s.topic = l.topic AND s.partition = l.partition""",
        {"live": live, "shadow": shadow},
    )
    connection.execute(
        """INSERT INTO projection_positions (projection, topic, partition, notification_id, "offset")
        SELECT %s, topic || %s, partition, notification_id, "offset" FROM projection_positions WHERE projection = %s""",
        [live, REBUILT, shadow],
    )
    connection.execute("DELETE FROM projection_positions WHERE projection = %s", [shadow])
    for old, new in ((live, live + OLD), (shadow, live)):
        connection.execute(
            sql.SQL("ALTER TABLE IF EXISTS {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
        )
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS NULL").format(sql.Identifier(live)))
    if _persistence(connection, live + OLD):
        _mark(connection, live + OLD)
