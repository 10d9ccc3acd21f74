"""ClickHouse read models: rows appended, none ever changed. The sink is in `clickhouse_sink`.

ClickHouse has no transaction over two tables, so the position travels in the rows themselves: each carries its event's domain,
partition, notification id and offset, and one insert becomes one part or nothing. What a table has seen is the highest id in its
rows, together with `projection_positions`, written after each insert for the events that made no row. A crash between the two
loses and doubles nothing, and a ClickHouse that is restored from an older backup goes on from where that backup ends. Nothing
else has to be remembered: no batch boundaries, no block tokens that a server forgets after so many inserts, no second store.

Two cases are left in which the same rows may be sent twice. An insert whose answer was lost is repeated with the same token
(`insert_deduplication_token`), which the server drops. And a worker that was frozen between its look at the positions and its
insert may repeat what its successor has inserted: then the rows are equal down to their identity (domain, partition, id, row),
which ends each table's sorting key, so ReplacingMergeTree merges them into one, and `FINAL` reads one before that.

A table that is rebuilt is exchanged with its shadow by name, and any worker may insert at that very moment. So a table has a build:
its comment says which, its constraint refuses rows of any other, and positions are kept by build. A worker whose insert meets
the wrong table is told so by the server (`Fenced`), and positions change with the table, in one step.

Therefore read exact figures with FINAL, keep PARTITION BY out (an insert over two partitions is two parts), and don't hang
materialized views on a table: sums over `FINAL` are exact, sums over what was inserted are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit
from uuid import UUID

from projections.kernel.runner import Broken, Down
from projections.kernel.tables import AnyTable, Change, Column, column_of

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
    "log_build": "LowCardinality(String)",
}
POSITIONS = """
CREATE TABLE IF NOT EXISTS projection_positions
(read_model String, topic String, partition UInt32, notification_id UInt64, offset Int64)
ENGINE = ReplacingMergeTree(notification_id) ORDER BY (read_model, topic, partition)
"""


class ClickTable(AnyTable):
    """Rows for analysts: `ClickTable("sales", order_by=("product", "at"), product=UUID, at=datetime, amount=int)`.

    `order_by` is the sorting key, in front of the rows' identity. str, int, UUID, datetime … as in a Postgres `Table`;
    list[str] becomes Array(String), dict[str, str] Map(String, String), an enum LowCardinality(String), other shapes JSON in
    a String. `views` are queries kept by name, `{name: "SELECT … FROM sales FINAL …"}`.
    """

    sink = "clickhouse"

    def __init__(
        self,
        name: str,
        /,
        *,
        order_by: tuple[str, ...],
        views: Mapping[str, str] | None = None,
        person: str | tuple[str, ...] = (),
        part_of: str | tuple[str, ...] = (),
        **columns: Any,
    ) -> None:
        super().__init__(name, (), columns, person, part_of)
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


def create(table: ClickTable, build: str) -> str:
    """The statement that makes a table, of a build."""
    columns = ", ".join(f"{quoted(name)} {kind}" for name, kind in (table.types | IDENTITY).items())
    keys = ", ".join(map(quoted, (*table.order_by, "log_domain", "log_partition", "log_id", "log_row")))
    return (
        f"CREATE TABLE IF NOT EXISTS {quoted(table.name)} ({columns}, INDEX seen log_id TYPE minmax GRANULARITY 1, "
        f"CONSTRAINT build CHECK log_build = '{build}') ENGINE = ReplacingMergeTree ORDER BY ({keys}) "
        f"SETTINGS non_replicated_deduplication_window = 1000 COMMENT '{build}'"
    )


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
        client.command(create(table, table.name))
        done.append(f"ClickHouse table {table.name} made")
    elif "log_build" not in existing:
        client.command(
            f"ALTER TABLE {quoted(table.name)} ADD COLUMN IF NOT EXISTS log_build {IDENTITY['log_build']}, "
            f"ADD CONSTRAINT IF NOT EXISTS build CHECK log_build = '{table.name}', MODIFY COMMENT '{table.name}'"
        )
    for name, kind in table.types.items() if existing else ():
        if name not in existing:
            client.command(f"ALTER TABLE {quoted(table.name)} ADD COLUMN IF NOT EXISTS {quoted(name)} {kind}")
            done.append(f"column {table.name}.{name} added: rebuild the table to fill it for old events")
        elif existing[name] != kind:
            raise Broken(f"column {table.name}.{name} is {existing[name]} and should be {kind}: rebuild the table")
    for name, query in table.views.items():
        client.command(f"CREATE OR REPLACE VIEW {quoted(name)} AS {query}")
    return done


def quoted(name: str) -> str:
    return f"`{name}`"  # names are identifiers: see AnyTable
