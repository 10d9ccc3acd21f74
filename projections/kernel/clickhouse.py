"""ClickHouse read models: rows appended, none ever changed.

ClickHouse has no transaction over two tables, so the position travels in the rows themselves: each carries its event's domain,
partition, notification id and offset, and one insert becomes one part or nothing. What a table has seen is the highest id in its
rows, together with `projection_positions`, written after each insert for the events that made no row. A crash between the two
loses and doubles nothing, and a ClickHouse that is restored from an older backup goes on from where that backup ends. Nothing
else has to be remembered: no batch boundaries, no block tokens that a server forgets after so many inserts, no second store.

Two cases are left in which the same rows may be sent twice. An insert whose answer was lost is repeated with the same token
(`insert_deduplication_token`), which the server drops. And a worker that was frozen between its look at the positions and its
insert may repeat what its successor has inserted: then the rows are equal down to their identity (domain, partition, id, row),
which ends each table's sorting key, so ReplacingMergeTree merges them into one, and `FINAL` reads one before that.

Therefore read exact figures with FINAL, keep PARTITION BY out (an insert over two partitions is two parts), and don't hang
materialized views on a table: sums over `FINAL` are exact, sums over what was inserted are not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit
from uuid import UUID

from projections.kernel.runner import START, BadData, Batch, Broken, Delivery, Down, Fenced, Move, Position
from projections.kernel.tables import AnyTable, Change, Column, column_of, json_bytes

TYPES: dict[type, str] = {
    str: "String",
    int: "Int64",
    bool: "Bool",
    float: "Float64",
    Decimal: "Decimal(38, 9)",
    UUID: "UUID",
    datetime: "DateTime64(6, 'UTC')",
    date: "Date32",
    bytes: "String",
    dict: "String",  # JSON
}
IDENTITY = {
    "log_domain": "LowCardinality(String)",
    "log_partition": "UInt32",
    "log_id": "UInt64",
    "log_row": "UInt32",
    "log_offset": "Int64",
}
POSITIONS = """
CREATE TABLE IF NOT EXISTS projection_positions
(read_model String, topic String, partition UInt32, notification_id UInt64, offset Int64)
ENGINE = ReplacingMergeTree(notification_id) ORDER BY (read_model, topic, partition)
"""
SEEN = """
SELECT read_model, partition, max(notification_id), argMax(offset, notification_id) FROM projection_positions
WHERE topic = {topic:String} AND read_model IN {tables:Array(String)} AND partition IN {partitions:Array(UInt32)}
GROUP BY read_model, partition
"""
# One part an insert, written when it is acknowledged.
ONE_PART = {
    "async_insert": 0,
    "max_insert_threads": 1,
    "min_insert_block_size_rows": 10_000_000,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 10_000_000,
}
OUR_FAULT = {16, 47, 60, 81, 115}  # no such column, identifier, table, database, setting
BAD_VALUE = {6, 26, 27, 41, 53, 69, 70, 72, 131, 321, 349, 407}


class ClickTable(AnyTable):
    """Rows for analysts: `ClickTable("sales", order_by=("product", "at"), product=UUID, at=datetime, amount=int)`.

    `order_by` is the sorting key, in front of the rows' identity. str, int, UUID, datetime … as in a Postgres `Table`;
    list[str] becomes Array(String), dict[str, str] Map(String, String), an enum LowCardinality(String), other shapes JSON in
    a String. `views` are queries kept by name, `{name: "SELECT … FROM sales FINAL …"}`.
    """

    sink = "clickhouse"

    def __init__(
        self, name: str, /, *, order_by: tuple[str, ...], views: Mapping[str, str] | None = None, **columns: Any
    ) -> None:
        super().__init__(name, (), columns)
        self.order_by, self.views = order_by, dict(views or {})
        if wrong := [c for c in order_by if c not in self.columns or self.columns[c].nullable]:
            raise ValueError(f"table {name}: not to be sorted by {', '.join(wrong)}")
        if wrong := sorted(IDENTITY.keys() & columns.keys()):
            raise ValueError(f"table {name} has its own {', '.join(wrong)}")
        self.types = {column.name: click_type(column) for column in self.columns.values()}

    def row(self, /, **columns: Any) -> Change:
        """Append a row; columns that are not named are blank."""
        if not columns.keys() <= self._settable:
            self._check(self._settable, columns, "column")
        return Change(self, "row", None, columns)


def click_type(column: Column) -> str:
    """The ClickHouse type of a column."""
    origin, inner = get_origin(column.declared), get_args(column.declared)
    if origin in (list, tuple) and column_of("", "item", inner[0]).kind is not dict:
        return f"Array({click_type(column_of('', 'item', inner[0]))})"
    if origin is dict and inner == (str, str):
        return "Map(String, String)"
    closed = (
        column.kind is str and column.declared is not str and (origin is not None or issubclass(column.declared, Enum))
    )
    kind = "LowCardinality(String)" if closed else TYPES[column.kind]
    if column.nullable:
        return "LowCardinality(Nullable(String))" if closed else f"Nullable({kind})"
    return kind


class ClickHouseSink:
    """One HTTP client, made when it is needed."""

    name = "clickhouse"

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: Any = None

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        stored = self._stored(tables, topic, partitions)
        found, behind = dict(stored), []
        for table in tables:
            for partition, id, offset in self._query(
                f"""SELECT log_partition, max(log_id), argMax(log_offset, log_id) FROM {_quoted(table.name)}
                WHERE log_domain = {{topic:String}} AND log_partition IN {{partitions:Array(UInt32)}} AND log_id > {{above:UInt64}}
                GROUP BY log_partition""",
                {
                    "topic": topic,
                    "partitions": list(partitions),
                    "above": min(stored[table, partition].notification_id for partition in partitions),
                },
            ):
                seen = Position(id, offset)
                if seen.notification_id > found[table, partition].notification_id:
                    behind.append(Move(table, topic, partition, found[table, partition], seen))
                    found[table, partition] = seen
        self._store(behind)
        return found

    def apply(self, batch: Batch) -> None:
        self._fence(batch.moves)
        prepared = [
            (table, _columns(table, rows), _token(table, batch.moves)) for table, rows in batch.changes.items() if rows
        ]
        for table, (names, types, columns), token in prepared:
            self._insert(table.name, names, types, columns, {**ONE_PART, "insert_deduplication_token": token})
        self._store(batch.moves)

    def settle(self) -> None:
        """Nothing is ever on its way."""

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def _fence(self, moves: Sequence[Move]) -> None:
        topics: dict[str, list[Move]] = {}
        for move in moves:
            topics.setdefault(move.topic, []).append(move)
        for topic, its in topics.items():
            now = self._stored({m.table for m in its}, topic, {m.partition for m in its})
            if any(now[m.table, m.partition] != m.old for m in its):
                raise Fenced

    def _stored(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        rows = self._query(
            SEEN, {"topic": topic, "tables": [table.name for table in tables], "partitions": list(partitions)}
        )
        found = {(name, partition): Position(id, offset) for name, partition, id, offset in rows}
        return {(t, partition): found.get((t.name, partition), START) for t in tables for partition in partitions}

    def _store(self, moves: Sequence[Move]) -> None:
        if moves:
            rows = [(m.table.name, m.topic, m.partition, m.new.notification_id, m.new.offset) for m in moves]
            names = ["read_model", "topic", "partition", "notification_id", "offset"]
            types = ["String", "String", "UInt32", "UInt64", "Int64"]
            self._insert("projection_positions", names, types, list(map(list, zip(*rows, strict=True))), ONE_PART)

    def _query(self, query: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            found: Sequence[Sequence[Any]] = self._client().query(query, parameters=parameters).result_rows
            return found
        except (ClickHouseError, OSError) as error:
            raise self._meant(error) from error

    def _insert(
        self, table: str, names: list[str], types: list[str], columns: list[list[Any]], settings: Mapping[str, Any]
    ) -> None:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            self._client().insert(
                table,
                columns,
                column_names=names,
                column_type_names=types,
                column_oriented=True,
                settings=dict(settings),
            )
        except (ClickHouseError, OSError) as error:
            raise self._meant(error) from error
        except (ValueError, TypeError, ArithmeticError, AttributeError) as error:  # while the columns are built
            raise BadData(f"{type(error).__name__}: {error}") from error

    def _client(self) -> Any:
        if self._made is None:
            self._made = client_of(self.url)
        return self._made

    def _meant(self, error: Exception) -> Exception:
        from clickhouse_connect.driver.exceptions import DataError, ProgrammingError

        code = getattr(error, "code", None)
        words = f"{type(error).__name__}: {str(error)[:500]}"
        if isinstance(error, (DataError, ProgrammingError)) or code in BAD_VALUE:
            return BadData(words)
        if code in OUR_FAULT:
            return Broken(f"{words}; `titan up` migrates the table")
        self.close()
        return Down(words)


def client_of(url: str) -> Any:
    """A client of `clickhouse-connect` for `http(s)://user:password@host:port/database`. Raises OperationalError."""
    import clickhouse_connect  # takes a quarter of a second: not for whoever only defines tables

    parts = urlsplit(url)
    return clickhouse_connect.get_client(
        interface=parts.scheme,
        host=parts.hostname,
        port=parts.port,
        username=parts.username or "default",
        password=parts.password or "",
        database=parts.path.strip("/") or "default",
        autogenerate_session_id=False,
        connect_timeout=5,
        send_receive_timeout=60,
    )


def migrate(url: str, tables: Iterable[ClickTable]) -> list[str]:
    """Make the tables, positions, missing columns and views; answers with what it did, in words. Raises Broken, Down."""
    from clickhouse_connect.driver.exceptions import ClickHouseError

    done: list[str] = []
    try:
        client = client_of(url)
        client.command(POSITIONS)
        for table in tables:
            done += _migrate(client, table)
        client.close()
    except (ClickHouseError, OSError) as error:
        raise Down(f"ClickHouse: {str(error)[:500]}") from error
    return done


def _migrate(client: Any, table: ClickTable) -> list[str]:
    existing = dict(
        client.query(
            "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}",
            parameters={"table": table.name},
        ).result_rows
    )
    done = []
    if not existing:
        # A table made anew begins at the beginning, whatever its forerunner of the same name had seen.
        client.command(
            "DELETE FROM projection_positions WHERE read_model = {table:String}", parameters={"table": table.name}
        )
        columns = ", ".join(f"{_quoted(name)} {kind}" for name, kind in (table.types | IDENTITY).items())
        keys = ", ".join(map(_quoted, (*table.order_by, "log_domain", "log_partition", "log_id", "log_row")))
        client.command(
            f"CREATE TABLE IF NOT EXISTS {_quoted(table.name)} ({columns}, INDEX seen log_id TYPE minmax GRANULARITY 1) "
            f"ENGINE = ReplacingMergeTree ORDER BY ({keys}) SETTINGS non_replicated_deduplication_window = 1000"
        )
        done.append(f"ClickHouse table {table.name} made")
    for name, kind in table.types.items() if existing else ():
        if name not in existing:
            client.command(f"ALTER TABLE {_quoted(table.name)} ADD COLUMN IF NOT EXISTS {_quoted(name)} {kind}")
            done.append(f"column {table.name}.{name} added: rebuild the table to fill it for old events")
        elif existing[name] != kind:
            raise Broken(f"column {table.name}.{name} is {existing[name]} and should be {kind}: rebuild the table")
    for name, query in table.views.items():
        client.command(f"CREATE OR REPLACE VIEW {_quoted(name)} AS {query}")
    return done


def _columns(table: AnyTable, rows: Sequence[tuple[Delivery, Change]]) -> tuple[list[str], list[str], list[list[Any]]]:
    """Names, types and values of a table's new rows, by column."""
    assert isinstance(table, ClickTable)
    numbers: list[int] = []
    before: Delivery | None = None
    for delivery, _ in rows:
        numbers.append(numbers[-1] + 1 if delivery is before else 0)
        before = delivery
    columns = [
        [_value(column, table.types[name], change.values) for _, change in rows]
        for name, column in table.columns.items()
    ]
    columns += [
        [delivery.topic for delivery, _ in rows],
        [delivery.partition for delivery, _ in rows],
        [delivery.notification_id for delivery, _ in rows],
        numbers,
        [delivery.offset for delivery, _ in rows],
    ]
    return [*table.types, *IDENTITY], [*table.types.values(), *IDENTITY.values()], columns


def _value(column: Column, kind: str, values: Mapping[str, Any]) -> Any:
    if column.name not in values:
        blank = column.blank
        if blank is None and not column.nullable:
            return {UUID: UUID(int=0), datetime: datetime(1970, 1, 1), date: date(1970, 1, 1)}[column.kind]
        return json_bytes(blank).decode() if column.kind is dict and kind == "String" and not column.nullable else blank
    value = values[column.name]
    if isinstance(value, Enum):
        return value.value
    if column.kind is dict and not kind.startswith(("Array", "Map")) and value is not None:
        return json_bytes(value).decode()
    return value


def _token(table: AnyTable, moves: Iterable[Move]) -> str:
    """Names what an insert holds: the same moves, the same rows."""
    its = sorted(
        f"{m.topic}:{m.partition}:{m.old.notification_id}-{m.new.notification_id}" for m in moves if m.table is table
    )
    return f"{table.name} {' '.join(its)}"


def _quoted(name: str) -> str:
    return f"`{name}`"
