"""Postgres read models: the table word of the domains, its sink, its migration and its reads.

A batch is folded in Python to one final change a row, then sent as one statement a table and set of columns, all of them
pipelined with the positions in one transaction and one round trip. The rows travel as one JSON parameter a statement:
measured at 4,000 rows of five columns against psycopg's array dumpers, array literals and COPY into a temporary table,
`json_to_recordset` costs the client least (0.7 µs a row, where array dumpers take 5.4) and the server no more than any.

`synchronous_commit` is off for a sink: rows and position are lost together in a crash of the server, and read again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import orjson
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel.errors import Invalid
from projections.kernel.runner import START, BadData, Batch, Broken, Down, Fenced, Move, Position
from projections.kernel.tables import AnyTable, Change, Column, RowTable, json_bytes

Pool = AsyncConnectionPool[AsyncConnection[Any]]

TYPES: dict[type, str] = {
    str: "text",
    int: "bigint",
    bool: "boolean",
    float: "double precision",
    Decimal: "numeric",
    UUID: "uuid",
    datetime: "timestamp with time zone",
    date: "date",
    bytes: "bytea",
    dict: "jsonb",
}
DEFAULTS: dict[type, str] = {str: "''", int: "0", bool: "false", float: "0", Decimal: "0", bytes: "''"}
PAGE_ROWS_MAX = 500
BATCH_MS_MAX = 20_000  # a batch takes well under a second

SCHEMA = """
CREATE TABLE IF NOT EXISTS projection_positions (
    projection text, topic text, partition int,
    notification_id bigint NOT NULL, "offset" bigint NOT NULL, moved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (projection, topic, partition)
) WITH (fillfactor = 50)
"""
# All positions of the batch or none: where one is not where the runner believes it to be, 1/0 ends the transaction.
MOVE = """
WITH moved AS (
    UPDATE {log} p SET notification_id = m.new_id, "offset" = m.new_offset, moved_at = now()
    FROM json_to_recordset(%s::json) AS m (t text, d text, p int, old_id bigint, old_offset bigint, new_id bigint, new_offset bigint)
    WHERE p.projection = m.t AND p.topic = m.d AND p.partition = m.p
      AND p.notification_id = m.old_id AND p."offset" = m.old_offset
    RETURNING 1
) SELECT 1 / (count(*) = %s)::int FROM moved
"""


class Page(NamedTuple):
    """Rows as dicts by column, and the opaque cursor of what comes after them; None at the end."""

    rows: list[dict[str, Any]]
    after: str | None


class Table(RowTable):
    """A Postgres table: `Table("wallets", key="id", id=UUID, owner=UUID, balance=int, indexes=[("owner", "opened_at")])`.

    A column's type is str, int (64 bits), bool, float, Decimal, UUID, datetime, date, bytes, an enum or Literal (text),
    or list, dict, tuple or a data class (jsonb); `X | None` where it may be null. A UUID, datetime or date that was never
    put is null too. A str among the `indexes` is the rest of a CREATE INDEX, for what columns can't say: "USING gin (…)".
    """

    sink = "postgres"

    def __init__(
        self,
        name: str,
        /,
        *,
        key: str | tuple[str, ...],
        indexes: Sequence[tuple[str, ...] | str] = (),
        person: str | tuple[str, ...] = (),
        part_of: str | tuple[str, ...] = (),
        **columns: Any,
    ) -> None:
        super().__init__(name, (key,) if isinstance(key, str) else key, columns, person, part_of)
        self.indexes = list(indexes)
        for index in indexes:
            if not isinstance(index, str) and (unknown := set(index) - self.columns.keys()):
                raise ValueError(f"table {name}: no column for the index {', '.join(sorted(unknown))}")

    async def get(self, db: Pool, key: Any) -> dict[str, Any] | None:
        """The row by column, or None."""
        conditions = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in self.key)
        query = self._select + sql.SQL(" WHERE ") + conditions
        async with db.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, list(self.keys(key).values()))
            return await cursor.fetchone()

    async def get_many(self, db: Pool, keys: Collection[Any]) -> dict[Any, dict[str, Any]]:
        """The rows that are there, by key; for tables with one key column."""
        [name] = self.key
        query = self._select + sql.SQL(" WHERE {} = ANY(%s::{}[])").format(
            sql.Identifier(name), sql.SQL(TYPES[self.columns[name].kind])
        )
        async with db.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(query, [list(keys)])
            return {row[name]: row async for row in cursor}

    async def page(
        self,
        db: Pool,
        *,
        where: Mapping[str, Any] | None = None,
        order: str = "",
        after: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Rows in the order of one column ("created_at", or "-created_at" for newest first), then of the key.

        `where` holds columns and the value they equal; None for null, a list or set for any of it, and for ranges
        the column and an operator: {"price >=": 100}. `after` is an earlier page's. Raises Invalid for a cursor that is
        not this list's, or a limit outside 1 … PAGE_ROWS_MAX.
        """
        if not 1 <= limit <= PAGE_ROWS_MAX:
            raise Invalid(f"a page has 1 to {PAGE_ROWS_MAX} rows")
        down = order.startswith("-")
        sorted_by = [name for name in (order.lstrip("-"),) if name and name not in self.key] + list(self.key)
        conditions, values = self._conditions(where or {})
        if after is not None:
            conditions.append(
                sql.SQL("({}) {} ({})").format(
                    sql.SQL(", ").join(map(sql.Identifier, sorted_by)),
                    sql.SQL("<" if down else ">"),
                    sql.SQL(", ").join(sql.SQL(f"%s::{TYPES[self.columns[name].kind]}") for name in sorted_by),
                )
            )
            values += self._cursor_values(after, order, len(sorted_by))
        query = self._select
        if conditions:
            query += sql.SQL(" WHERE ") + sql.SQL(" AND ").join(conditions)
        query += sql.SQL(" ORDER BY ") + sql.SQL(", ").join(
            sql.SQL("{} DESC" if down else "{}").format(sql.Identifier(name)) for name in sorted_by
        )
        async with db.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            try:
                await cursor.execute(query + sql.SQL(" LIMIT %s"), [*values, limit + 1])
            except psycopg.DataError as error:
                raise Invalid("not a cursor of this list") from error
            rows = await cursor.fetchall()
        if len(rows) <= limit:
            return Page(rows, None)
        last = json_bytes([order, *(rows[limit - 1][name] for name in sorted_by)])
        return Page(rows[:limit], base64.urlsafe_b64encode(last).decode().rstrip("="))

    async def position(self, db: Pool, topic: str, partition: int) -> int:
        """The notification id up to which this table has seen a partition; 0 for nothing."""
        query = (
            "SELECT notification_id FROM projection_positions WHERE projection = %s AND topic = %s AND partition = %s"
        )
        async with db.connection() as connection:
            row = await (await connection.execute(query, [self.name, topic, partition])).fetchone()
            return int(row[0]) if row else 0

    @property
    def _select(self) -> sql.Composed:
        return sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, self.columns)), sql.Identifier(self.name)
        )

    def _conditions(self, where: Mapping[str, Any]) -> tuple[list[sql.Composable], list[Any]]:
        conditions: list[sql.Composable] = []
        values: list[Any] = []
        for what, value in where.items():
            name, _, operator = what.partition(" ")
            self._check(self.columns, {name: None}, "column")
            if operator not in ("", "<", "<=", ">", ">="):
                raise ValueError(f"no operator {operator!r}")
            column = sql.Identifier(name)
            if value is None and not operator:
                conditions.append(sql.SQL("{} IS NULL").format(column))
                continue
            if isinstance(value, (list, set, frozenset, tuple)):
                kind = sql.SQL(TYPES[self.columns[name].kind])
                conditions.append(sql.SQL("{} = ANY(%s::{}[])").format(column, kind))
                value = list(value)
            else:
                conditions.append(sql.SQL("{} {} %s").format(column, sql.SQL(operator or "=")))
            values.append(value)
        return conditions, values

    @staticmethod
    def _cursor_values(after: str, order: str, count: int) -> list[Any]:
        try:
            found = orjson.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        except (binascii.Error, ValueError) as error:
            raise Invalid("not a cursor of this list") from error
        if not isinstance(found, list) or found[:1] != [order] or len(found) != count + 1:
            raise Invalid("not a cursor of this list")
        return [value if isinstance(value, str) else str(value) for value in found[1:]]


class Row:
    """A row's final change: what is set and what is added; `gone` when it is deleted."""

    __slots__ = ("adds", "gone", "mine", "sets")

    def __init__(self, sets: dict[str, Any], adds: dict[str, Any], gone: bool = False) -> None:
        self.sets, self.adds, self.gone = sets, adds, gone
        self.mine = False  # the dicts are still those of a Change, which is a value


def fold(table: AnyTable, changes: Iterable[Change], into: dict[Any, Row] | None = None) -> dict[Any, Row]:
    """One final change a row, by key: any sequence of put, add and drop comes to one upsert or one delete.

    `into`: what earlier changes came to, which is added to.
    """
    rows: dict[Any, Row] = {} if into is None else into
    for _, op, key, values in changes:
        row = rows.get(key)
        if row is None:
            rows[key] = Row(values, {}) if op == "put" else Row({}, values) if op == "add" else Row({}, {}, True)
            continue
        if op == "drop":
            rows[key] = Row({}, {}, True)
            continue
        if row.gone:  # made anew: blank but for what is put
            row.sets, row.gone, row.mine = table.blanks(), False, True
        elif not row.mine:
            row.sets, row.adds, row.mine = dict(row.sets), dict(row.adds), True
        sets, adds = row.sets, row.adds
        if op == "put":
            sets.update(values)
            for name in adds.keys() & values.keys():
                del adds[name]
        else:
            for name, by in values.items():
                into = sets if name in sets else adds
                into[name] = (into.get(name) or 0) + by
    return rows


@lru_cache(maxsize=1_000)
def _order(table: AnyTable) -> Callable[[tuple[Any, Row]], Any]:
    """What rows are sorted by, their keys. UUIDs by their numbers: they compare five times as fast."""
    parts = [table.columns[name].kind is UUID for name in table.key]
    if len(parts) == 1:
        return (lambda item: item[0].int) if parts[0] else lambda item: item[0]
    return lambda item: [part.int if is_uuid else part for part, is_uuid in zip(item[0], parts, strict=True)]


class Statement(NamedTuple):
    query: str
    rows: list[dict[str, Any]]


def statements(table: AnyTable, rows: Mapping[Any, Row]) -> list[Statement]:
    """The folded rows as statements of many rows each, one for the deletes and one for each set of columns.

    Rows and statements are in one order everywhere, so that two runners that add to the same rows don't deadlock.
    """
    by_columns: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[dict[str, Any]]] = {}
    alone = table.key[0] if len(table.key) == 1 else None
    for key, row in sorted(rows.items(), key=_order(table)):
        sets, adds = row.sets, row.adds
        kind = ("drop" if row.gone else "put", tuple(sets), tuple(adds))
        found = by_columns.get(kind)
        if found is None:
            found = by_columns[kind] = []
        found.append({alone: key, **sets, **adds} if alone else {**table.keys(key), **sets, **adds})
    return [
        Statement(_delete(table) if op == "drop" else _upsert(table, sets, adds), by_columns[op, sets, adds])
        for op, sets, adds in sorted(by_columns)
    ]


@lru_cache(maxsize=10_000)
def _upsert(table: AnyTable, sets: tuple[str, ...], adds: tuple[str, ...]) -> str:
    name, names = _quoted(table.name), [_quoted(column) for column in (*table.key, *sets, *adds)]
    keys = ", ".join(names[: len(table.key)])
    updates = [f"{_quoted(column)} = EXCLUDED.{_quoted(column)}" for column in sets]
    updates += [
        f"{_quoted(column)} = COALESCE({name}.{_quoted(column)}, 0) + EXCLUDED.{_quoted(column)}" for column in adds
    ]
    return (
        f"INSERT INTO {name} ({', '.join(names)}) SELECT * FROM {_rows(table, (*table.key, *sets, *adds))} "
        f"ON CONFLICT ({keys}) DO {'UPDATE SET ' + ', '.join(updates) if updates else 'NOTHING'}"
    )


@lru_cache(maxsize=1_000)
def _delete(table: AnyTable) -> str:
    same = " AND ".join(f"{_quoted(table.name)}.{_quoted(column)} = r.{_quoted(column)}" for column in table.key)
    return f"DELETE FROM {_quoted(table.name)} USING {_rows(table, table.key)} WHERE {same}"


def _rows(table: AnyTable, columns: Iterable[str]) -> str:
    typed = ", ".join(f"{_quoted(column)} {TYPES[table.columns[column].kind]}" for column in columns)
    return f"json_to_recordset(%s::json) AS r ({typed})"


def _quoted(name: str) -> str:
    return f'"{name}"'  # names are identifiers: see AnyTable


class PostgresSink:
    """One connection, made when it is needed and made anew after it broke. `log` is the table of its positions.

    Commits don't wait for the disk, so a server that crashed has lost the last of them, and a broken connection may mean that:
    the next call raises Fenced, for the positions to be read anew.
    """

    name = "postgres"
    log = "projection_positions"

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection: psycopg.Connection[Any] | None = None
        self._broke = False

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        by_name = {table.name: table for table in tables}
        wanted = [list(by_name), topic, list(partitions)]
        with self._working() as connection, connection.transaction():
            connection.execute(
                f"""INSERT INTO {self.log} (projection, topic, partition, notification_id, "offset")
                SELECT t, %s, p, 0, -1 FROM unnest(%s::text[]) t, unnest(%s::int[]) p ORDER BY 1, 3 ON CONFLICT DO NOTHING""".encode(),
                [wanted[1], wanted[0], wanted[2]],
            )
            rows = connection.execute(
                f"""SELECT projection, partition, notification_id, "offset" FROM {self.log}
                WHERE projection = ANY(%s) AND topic = %s AND partition = ANY(%s)""".encode(),
                wanted,
            ).fetchall()
        found = {(by_name[name], partition): Position(id, offset) for name, partition, id, offset in rows}
        return {
            (table, partition): found.get((table, partition), START) for table in tables for partition in partitions
        }

    def apply(self, batch: Batch) -> None:
        self.send(self.work(batch))

    def settle(self) -> None:
        """Nothing is ever on its way."""
        if self._broke:
            self._broke = False
            raise Fenced("the connection broke: the server may have lost what it stored last")

    def work(self, batch: Batch) -> list[tuple[str, list[Any]]]:
        """A batch as statements with their parameters. Raises BadData."""
        try:
            return [self._move(batch.moves)] + [
                (statement.query, [json_bytes(statement.rows).decode()])
                for table, changes in sorted(batch.changes.items(), key=lambda item: item[0].name)
                for statement in statements(table, fold(table, [change for _, change in changes]))
            ]
        except (Invalid, TypeError, ValueError, AttributeError) as error:  # also keys that can't be compared or hashed
            raise BadData(f"{type(error).__name__}: {error}") from error

    def send(self, work: Sequence[tuple[str, list[Any]]]) -> None:
        """Run the statements as one transaction. Raises Fenced, BadData, Broken or Down."""
        self.settle()
        with self._working() as connection, connection.pipeline(), connection.transaction():
            for query, parameters in work:
                connection.execute(query.encode(), parameters)

    def _move(self, moves: Iterable[Move]) -> tuple[str, list[Any]]:
        """The statement, with its parameters, that moves positions or ends the transaction."""
        rows = [
            {
                "t": m.table.name, "d": m.topic, "p": m.partition, "old_id": m.old.notification_id,
                "old_offset": m.old.offset, "new_id": m.new.notification_id, "new_offset": m.new.offset,
            }
            for m in moves
        ]  # fmt: skip
        return MOVE.format(log=self.log), [orjson.dumps(rows).decode(), len(rows)]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> psycopg.Connection[Any]:
        return connect(self.dsn)

    @contextmanager
    def _working(self) -> Iterator[psycopg.Connection[Any]]:
        """The connection; what goes wrong comes out as one of the sink's errors."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._connect()
            yield self._connection
        except psycopg.errors.DivisionByZero as error:
            raise Fenced from error
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise BadData(f"{type(error).__name__}: {error}") from error
        except psycopg.ProgrammingError as error:
            raise Broken(f"{error}: the table differs from its definition; `titan up` migrates it") from error
        except psycopg.Error as error:
            self._broke = self._broke or self._connection is not None
            self.close()
            raise Down(str(error).strip() or type(error).__name__) from error


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A sink's connection. A peer that vanished is noticed in 25 s."""
    connection = psycopg.connect(
        dsn,
        autocommit=True,
        connect_timeout=5,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        application_name="titan projections",
        options="-c synchronous_commit=off -c lock_timeout=10s -c timezone=UTC",
    )
    # A worker that is frozen in the middle of a pipeline keeps its locks, and to the server it is active, not idle: only this
    # ends it. Its successor waits for that long; where the server is older than 17, until the frozen one goes on or dies.
    if connection.info.server_version >= 170000:
        connection.execute(f"SET transaction_timeout = {BATCH_MS_MAX}".encode())
    return connection


def migrate(connection: psycopg.Connection[Any], tables: Iterable[Table], also: str = "") -> list[str]:
    """Make the tables, positions, missing columns and missing indexes; answers with what it did, in words.

    `also` is more SQL for the same transaction, under the lock that only one migration has.

    A table that is made new has its positions removed with it, so that it fills from the beginning. Raises Broken for a
    column whose type changed: such a table is rebuilt under its new definition by a replay.
    """
    done: list[str] = []
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('titan projections', 0))")
        connection.execute(SCHEMA)
        _run(connection, also)
        for table in tables:
            done += _migrate(connection, table)
    return done


def _migrate(connection: psycopg.Connection[Any], table: Table) -> list[str]:
    existing = dict(
        connection.execute(
            "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped",
            [_quoted(table.name)],
        ).fetchall()
    )
    done = []
    if not existing:
        _run(connection, created(table))
        connection.execute("DELETE FROM projection_positions WHERE projection = %s", [table.name])
        done.append(f"table {table.name} made")
    for column in table.columns.values() if existing else ():
        if column.name not in existing:
            _run(connection, f"ALTER TABLE {_quoted(table.name)} ADD COLUMN {_definition(column)}")
            done.append(f"column {table.name}.{column.name} added: rebuild the table to fill it for old events")
        elif existing[column.name] != TYPES[column.kind]:
            raise Broken(
                f"column {table.name}.{column.name} is {existing[column.name]} and should be {TYPES[column.kind]}: "
                f"rebuild the table"
            )
    return done + make_indexes(connection, table)


def created(table: Table, kind: str = "") -> str:
    """The statement that makes a table, without its indexes; `kind` may be UNLOGGED."""
    columns = ", ".join(_definition(column) for column in table.columns.values())
    key = ", ".join(map(_quoted, table.key))
    return f"CREATE {kind} TABLE {_quoted(table.name)} ({columns}, PRIMARY KEY ({key}))"


def make_indexes(connection: psycopg.Connection[Any], table: Table) -> list[str]:
    """Make the indexes that are missing; answers with what it did, in words."""
    # Known again by its comment, not its name: a rebuilt table keeps the names of its shadow's indexes.
    done = []
    commented = connection.execute(
        "SELECT obj_description(indexrelid) FROM pg_index WHERE indrelid = to_regclass(%s)", [_quoted(table.name)]
    ).fetchall()
    for index in table.indexes:
        rest = index if isinstance(index, str) else f"({', '.join(map(_quoted, index))})"
        if (rest,) in commented:
            continue
        name = f"{table.name[:40]}_{uuid4().hex[:16]}"
        _run(connection, f"CREATE INDEX {_quoted(name)} ON {_quoted(table.name)} {rest}")
        connection.execute(sql.SQL("COMMENT ON INDEX {} IS {}").format(sql.Identifier(name), sql.Literal(rest)))
        done.append(f"index of {table.name} made: {rest}")
    return done


def _definition(column: Column) -> str:
    # Only types with a zero are NOT NULL: Postgres checks that on the row proposed by an `add`, before it finds the conflict.
    default = f"'{orjson.dumps(column.blank).decode()}'" if column.kind is dict else DEFAULTS.get(column.kind)
    bound = "" if column.nullable or default is None else f" NOT NULL DEFAULT {default}"
    return f"{_quoted(column.name)} {TYPES[column.kind]}{bound}"


def _run(connection: psycopg.Connection[Any], statement: str) -> None:
    connection.execute(statement.encode())
