"""What all read models should hold: every table folded in memory from the event stores, and where the stores differ from it.

The clauses are the projections' own; how changes come to rows is written here a second time, in plain Python, so that a fault in a
sink's SQL or Lua is found. It goes on where it stopped: what was folded before is kept, and which rows were touched since.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import orjson
import psycopg
import redis
from psycopg import sql
from psycopg.rows import dict_row

from aggregates.kernel import Recorded, wire
from aggregates.kernel.migrate import names
from aggregates.kernel.wire import COLUMNS, Row
from infra.settings import Settings
from projections.kernel.clauses import Projection, changes, projections
from projections.kernel.clickhouse import ClickTable, client_of
from projections.kernel.postgres import TYPES, Table
from projections.kernel.redis import RedisTable
from projections.kernel.tables import AnyTable, Change, Column, json_bytes

READ_ROWS = 5_000
REDIS_ROWS = 200  # one Lua call

Rows = dict[Any, dict[str, Any]]


def apply(rows: Rows, change: Change, identity: Any = None) -> Any:
    """Carry out one change on the rows of its table, by key; answers with the key. `identity` is that of a ClickHouse row.

    What a table's own Lua does beside the row is left out.
    """
    table, op, key, values = change
    if op == "row":
        rows[identity] = dict(values)
        return identity
    if op == "drop":
        rows.pop(key, None)
        return key
    row = rows.get(key)
    if row is None:
        if op in ("drop_item", "call"):
            return key  # neither makes a row
        row = rows[key] = {**table.blanks(), **table.keys(key)}
    if op == "put":
        row.update(values)
    elif op == "add":
        row.update({name: (row[name] or 0) + by for name, by in values.items()})
    elif op != "call":
        items = row[values["map"]] = dict(row[values["map"]])
        before = items.pop(values["item"], 0)
        if op != "drop_item":
            items[values["item"]] = values["value"] + before if op == "add_item" else values["value"]
    return key


class Folding:
    """The read models of a platform, folded as far as its logs have been read."""

    def __init__(self, of: Settings, which: Sequence[Projection] | None = None) -> None:
        self.of, self.which = of, projections() if which is None else which
        self.rows: dict[AnyTable, Rows] = {table: {} for one in self.which for table in one.tables}
        self.touched: dict[AnyTable, set[Any]] = {table: set() for table in self.rows}
        self.read: dict[str, int] = {}
        """The last notification id that was folded, by domain."""
        self._compared: dict[str, int] = {}

    def read_on(
        self, domain: str, head: int, see: Callable[[Row, Recorded[Any]], None] = lambda row, recorded: None
    ) -> None:
        """Fold a domain's events up to the notification id `head`; each is shown to `see` first."""
        query = sql.SQL(
            f"SELECT {COLUMNS} FROM {{events}} WHERE notification_id > %s AND notification_id <= %s ORDER BY notification_id"
        ).format(**names(domain))
        with psycopg.connect(self.of.dsn(domain)) as connection, connection.cursor(name="folding") as cursor:
            cursor.itersize = READ_ROWS
            cursor.execute(query, [self.read.get(domain, 0), head])
            for row in (Row(*columns) for columns in cursor):
                recorded = wire.recorded(domain, row)
                see(row, recorded)
                self._fold(domain, recorded)
        self.read[domain] = head

    def _fold(self, domain: str, recorded: Recorded[Any]) -> None:
        made: dict[AnyTable, int] = defaultdict(int)
        for change in changes(recorded, self.which):
            identity = (domain, recorded.position, made[change.table])
            made[change.table] += 1
            self.touched[change.table].add(apply(self.rows[change.table], change, identity))

    def differences(self, everything: bool = True) -> Iterator[str]:
        """Where the stores hold something else. Without `everything` only rows are read that changed since the last time."""
        with (
            psycopg.connect(self.of.postgres, row_factory=dict_row) as postgres,
            redis.Redis.from_url(self.of.redis) as cache,
        ):
            for table, rows in self.rows.items():
                keys = None if everything else self.touched[table]
                if keys is not None and not keys:
                    continue
                if isinstance(table, Table):
                    found = self._postgres(postgres, table, keys)
                elif isinstance(table, RedisTable):
                    found = self._redis(cache, table, keys)
                else:
                    assert isinstance(table, ClickTable)
                    found = self._clickhouse(table, everything)
                wanted = rows if keys is None else {key: rows[key] for key in keys if key in rows}
                yield from _compared(table, found, wanted)
        for keys in self.touched.values():
            keys.clear()
        self._compared = dict(self.read)

    def _postgres(self, connection: psycopg.Connection[Any], table: Table, keys: Collection[Any] | None) -> Rows:
        columns = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in table.columns)
        query = sql.SQL("SELECT {} FROM {} t").format(columns, sql.Identifier(table.name))
        wanted: list[list[Any]] = []
        if keys is not None:
            wanted = [[table.keys(key)[name] for key in keys] for name in table.key]
            arrays = sql.SQL(", ").join(sql.SQL(f"%s::{TYPES[table.columns[name].kind]}[]") for name in table.key)
            same = sql.SQL(" AND ").join(sql.SQL("t.{0} = k.{0}").format(sql.Identifier(name)) for name in table.key)
            named = sql.SQL(", ").join(map(sql.Identifier, table.key))
            query += sql.SQL(" JOIN unnest({}) AS k({}) ON {}").format(arrays, named, same)
        found = connection.execute(query, wanted).fetchall()
        return {_key(table, row): row for row in found}

    def _redis(self, client: redis.Redis, table: RedisTable, keys: Collection[Any] | None) -> Rows:
        if keys is None:
            found = list(table.scan(client, self.of.namespace))
        else:
            wanted = [table.suffix(key) for key in keys]
            parts = [wanted[at : at + REDIS_ROWS] for at in range(0, len(wanted), REDIS_ROWS)]
            found = [row for part in parts for row in table.read(client, part, self.of.namespace).values()]
        return {_key(table, row): row for row in found}

    def _clickhouse(self, table: ClickTable, everything: bool) -> Rows:
        names = [*table.columns, "log_domain", "log_id", "log_row"]
        query = f"SELECT {', '.join(names)} FROM {table.name} FINAL"
        if not everything:
            since = [(domain, self._compared.get(domain, 0)) for domain in self.read]
            query += " WHERE " + " OR ".join(f"(log_domain = '{domain}' AND log_id > {id})" for domain, id in since)
        client = client_of(self.of.clickhouse)
        try:
            found = client.query(query).result_rows
        finally:
            client.close()
        return {tuple(row[-3:]): dict(zip(names, row[:-3], strict=False)) for row in found}


def _key(table: AnyTable, row: Mapping[str, Any]) -> Any:
    return row[table.key[0]] if len(table.key) == 1 else tuple(row[name] for name in table.key)


def _compared(table: AnyTable, found: Rows, wanted: Rows) -> Iterator[str]:
    where = f"{table.sink} {table.name}"
    for key in sorted(found.keys() | wanted.keys(), key=str):
        told = key if not isinstance(key, tuple) else "/".join(map(str, key))
        if key not in found:
            yield f"{where} {told}: is not there, but its events come to {_plain(wanted[key])}"
        elif key not in wanted:
            yield f"{where} {told}: {_plain(found[key])}, but its events come to no row"
        else:
            row = wanted[key]
            for name in row:  # a ClickHouse row has blanks where nothing was put
                is_, should = _told(table.columns[name], found[key][name]), _told(table.columns[name], row[name])
                if is_ != should:
                    yield f"{where} {told}: {name} is {is_!r}, but its events come to {should!r}"


def _told(column: Column, value: Any) -> Any:
    """A column's value in the form in which those of all stores are alike."""
    if column.kind is dict and isinstance(value, str):  # ClickHouse keeps JSON as text
        return orjson.loads(value)
    if column.kind is datetime and isinstance(value, datetime) and value.tzinfo is None:
        value = value.replace(tzinfo=UTC)
    return _plain(value.value if isinstance(value, Enum) else value)


def _plain(value: Any) -> Any:
    return orjson.loads(json_bytes(value))
