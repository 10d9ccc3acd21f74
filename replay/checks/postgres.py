"""A table in Postgres against its shadow: sums of hashes by bucket of keys, then the rows of the buckets that differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg import sql

from projections.kernel.runner import Position
from replay.checks import Checked
from replay.checks.model import Found, Lane, Shadowed

BUCKET_ROWS = 500
BUCKETS_MAX = 40  # that are looked at row by row in one go
TRIES_MAX = 10  # of a repair that lost a deadlock against a worker

POSITIONS = 'SELECT topic, partition, notification_id, "offset" FROM projection_positions WHERE projection = %s'
SUMS = """
SELECT bucket, count(*), sum(hash) FROM (
    SELECT (hashtextextended(ROW({key})::text, 0) & 2147483647) %% %s AS bucket, hashtextextended(ROW({columns})::text, 1) AS hash
    FROM {table}
) AS hashed GROUP BY bucket
"""
ROWS = "SELECT {key}, {columns} FROM {table} WHERE (hashtextextended(ROW({key})::text, 0) & 2147483647) %% %s = ANY(%s)"


class PostgresCheck:
    """`compare`, then `repair` what it found."""

    def __init__(self, its: Shadowed) -> None:
        self._its = its
        columns = its.table.columns
        self._columns = list(columns)
        self._words = {
            "key": sql.SQL(", ").join(map(sql.Identifier, its.table.key)),
            "columns": sql.SQL(", ").join(map(sql.Identifier, columns)),
        }
        self._buckets = 0  # as of the first look: cut anew, rows would fall into other buckets
        self.found: list[Found] = []

    def compare(self) -> Checked:
        checked: Checked = self._its.caught(self._compare)
        return checked

    def _compare(self) -> Checked:
        its, checked = self._its, self._its.checked()
        with self._connected() as live, self._connected() as copy:
            live.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            its.follow(self._positions(live, ""))  # the moment of the snapshot; the shadow is read after it
            checked.rows = self._count(live, its.table.name)
            if not self._buckets:
                self._buckets = max(1, max(checked.rows, self._count(copy, its.shadow.name)) // BUCKET_ROWS)
            buckets = self._buckets
            mine, true = (self._sums(c, name, buckets) for c, name in ((live, its.table.name), (copy, its.shadow.name)))
            differing = sorted(one for one in mine.keys() | true.keys() if mine.get(one) != true.get(one))
            some = differing[:BUCKETS_MAX]
            told, real = (
                self._rows(c, name, buckets, some) for c, name in ((live, its.table.name), (copy, its.shadow.name))
            )
        self.found = [
            Found(key[0] if len(key) == 1 else key, self._why(told.get(key), real.get(key)), key)
            for key in sorted(told.keys() | real.keys(), key=str)
            if told.get(key) != real.get(key)
        ]
        checked.count, checked.parts = len(self.found) + len(differing[BUCKETS_MAX:]), len(differing)
        if len(differing) > BUCKETS_MAX:
            checked.note = f"{len(differing) - BUCKETS_MAX} more buckets of about {BUCKET_ROWS} rows differ"
        checked.differences = its.differences(self.found) if self.found else []
        return checked

    def repair(self) -> None:
        """Take the rows that differed from the shadow, while the live worker is held still. Positions stay."""
        for turn in range(TRIES_MAX):
            try:
                self._its.caught(self._repair)
                return
            except psycopg.errors.DeadlockDetected:
                if turn == TRIES_MAX - 1:
                    raise

    def _repair(self) -> None:
        its = self._its
        same = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in its.table.key)
        delete = sql.SQL("DELETE FROM {} WHERE {}").format(sql.Identifier(its.table.name), same)
        insert = sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {} WHERE {}").format(
            sql.Identifier(its.table.name), sql.Identifier(its.shadow.name), same, columns=self._words["columns"]
        )
        with self._connected() as live:
            its.follow(self._positions(live, " FOR UPDATE"))
            for one in self.found:
                live.execute(delete, one.values)
                live.execute(insert, one.values)
            live.commit()

    def _positions(self, live: psycopg.Connection[Any], how: str) -> dict[Lane, Position]:
        rows = live.execute((POSITIONS + how).encode(), [self._its.table.name]).fetchall()
        found = {(topic, partition): Position(id, offset) for topic, partition, id, offset in rows}
        return {lane: found.get(lane, Position(0, -1)) for lane in self._its.lanes}

    def _count(self, connection: psycopg.Connection[Any], name: str) -> int:
        row = connection.execute(self._of("SELECT count(*) FROM {table}", name)).fetchone()
        assert row is not None
        return int(row[0])

    def _sums(self, connection: psycopg.Connection[Any], name: str, buckets: int) -> dict[int, tuple[int, int]]:
        rows = connection.execute(self._of(SUMS, name), [buckets]).fetchall()
        return {bucket: (count, hashes) for bucket, count, hashes in rows}

    def _rows(
        self, connection: psycopg.Connection[Any], name: str, buckets: int, some: Collection[int]
    ) -> dict[tuple[Any, ...], tuple[Any, ...]]:
        if not some:
            return {}
        width = len(self._its.table.key)
        rows = connection.execute(self._of(ROWS, name), [buckets, list(some)]).fetchall()
        return {row[:width]: row[width:] for row in rows}

    def _why(self, told: tuple[Any, ...] | None, real: tuple[Any, ...] | None) -> str:
        if told is None:
            return "is missing"
        if real is None:
            return "should not be there"
        return "; ".join(
            f"{name} is {one!s:.200}, but its events come to {true!s:.200}"
            for name, one, true in zip(self._columns, told, real, strict=True)
            if one != true
        )

    def _of(self, query: str, name: str) -> sql.Composed:
        return sql.SQL(query).format(**self._words, table=sql.Identifier(name))

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        with closing(
            psycopg.connect(self._its.of.postgres, connect_timeout=5, options="-c timezone=UTC -c lock_timeout=10s")
        ) as connection:
            yield connection
