"""The sink of ClickHouse read models. How rows, positions and builds go together stands in `clickhouse`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from projections.kernel import native
from projections.kernel.clickhouse import IDENTITY, ClickTable, client_of, quoted
from projections.kernel.runner import START, BadData, Batch, Broken, Delivery, Down, Fenced, Move, Position
from projections.kernel.tables import AnyTable, Change

BUILDS = "SELECT name, comment FROM system.tables WHERE database = currentDatabase() AND name IN {tables:Array(String)}"
HELD = "!held"  # the topic of a table that is held still: the id is when that ends, in ms on the server's clock
SEEN = f"""
SELECT read_model, topic, partition, max(notification_id), argMax(offset, notification_id) FROM projection_positions
WHERE read_model IN {{builds:Array(String)}}
AND (topic = {{topic:String}} AND partition IN {{partitions:Array(UInt32)}} OR topic = '{HELD}')
GROUP BY read_model, topic, partition
HAVING topic != '{HELD}' OR max(notification_id) > toUnixTimestamp64Milli(now64(3))
"""
POSITION = {
    "read_model": "String",
    "topic": "String",
    "partition": "UInt32",
    "notification_id": "UInt64",
    "offset": "Int64",
}
# One part an insert, written when it is acknowledged.
ONE_PART = {
    "async_insert": 0,
    "max_insert_threads": 1,
    "min_insert_block_size_rows": 10_000_000,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 10_000_000,
}
OUR_FAULT = {16, 47, 60, 81, 115}  # no such column, identifier, table, database, setting
OTHER_BUILD = 469  # VIOLATED_CONSTRAINT
BAD_VALUE = {6, 26, 27, 41, 53, 69, 70, 72, 131, 321, 349, 407}


class Rows:
    """New rows of a table, gathered by column. One that a value was refused by is of no more use."""

    def __init__(self, table: ClickTable) -> None:
        self.columns = {name: native.column(column, table.types[name]) for name, column in table.columns.items()}
        self.blanks = {name: blank(table.types[name], column.blank) for name, column in table.columns.items()}
        self.identity = {name: native.SIMPLE[kind]() for name, kind in IDENTITY.items()}
        self.count = 0

    def add(self, rows: Sequence[tuple[Delivery, Change]]) -> None:
        """Raises BadData for what its column can't hold."""
        values = [change.values for _, change in rows]
        try:
            for name, column in self.columns.items():
                try:
                    column.add([row[name] for row in values])
                except KeyError:
                    other = self.blanks[name]
                    column.add([row.get(name, other) for row in values])
        except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
            raise BadData(f"{type(error).__name__}: {error}") from error
        deliveries = [delivery for delivery, _ in rows]
        numbers: list[int] = []
        before: Delivery | None = None
        for delivery in deliveries:
            numbers.append(numbers[-1] + 1 if delivery is before else 0)
            before = delivery
        for name, of in WHERE.items():
            self.identity[name].add(list(map(of, deliveries)))
        self.identity["log_row"].add(numbers)
        self.count += len(rows)

    def insert(self, build: str) -> tuple[list[str], bytes]:
        """The columns' names and the block."""
        self.identity["log_build"].add([build] * self.count)
        columns = self.columns | self.identity
        return list(columns), native.block(columns, self.count)


WHERE = {
    "log_domain": attrgetter("topic"),
    "log_partition": attrgetter("partition"),
    "log_id": attrgetter("notification_id"),
    "log_offset": attrgetter("offset"),
}


def blank(kind: str, of: Any) -> Any:
    """What a column holds where nothing was put."""
    return native.BLANKS.get(kind) if of is None and not kind.startswith(("Nullable", "LowCardinality(N")) else of


class ClickHouseSink:
    """One HTTP client, made when it is needed."""

    name = "clickhouse"

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: Any = None
        self._builds: dict[str, str] = {}

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        self._builds = self.builds([table.name for table in tables])
        stored, _ = self._stored(tables, topic, partitions)
        found, behind = dict(stored), []
        for table in tables:
            for partition, id, offset in self.query(
                f"""SELECT log_partition, max(log_id), argMax(log_offset, log_id) FROM {quoted(table.name)}
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
        self.store(behind)
        return found

    def apply(self, batch: Batch) -> None:
        self.fence(batch.moves)
        prepared = []
        for table, changes in batch.changes.items():
            if changes:
                prepared.append((table, gathered(table)))
                prepared[-1][1].add(changes)
        for table, rows in prepared:
            self.insert(table, rows, batch.moves)
        self.store(batch.moves)

    def settle(self) -> None:
        """Nothing is ever on its way."""

    def close(self) -> None:
        if self._made is not None:
            self._made.close()
            self._made = None

    def fence(self, moves: Sequence[Move]) -> None:
        """Raise Fenced unless the positions are where these moves begin; what follows is written to the builds of now."""
        topics: dict[str, list[Move]] = {}
        for move in moves:
            topics.setdefault(move.topic, []).append(move)
        self._builds = self.builds({move.table.name for move in moves})
        for topic, its in topics.items():
            now, held = self._stored({m.table for m in its}, topic, {m.partition for m in its})
            if held:
                raise Down(f"{', '.join(held)} is being switched")
            if any(now[m.table, m.partition] != m.old for m in its):
                raise Fenced

    def insert(self, table: AnyTable, rows: Rows, moves: Sequence[Move]) -> None:
        """Insert rows as one part, into the build that `fence` saw."""
        settings = {**ONE_PART, "insert_deduplication_token": _token(table, moves)}
        self._insert(table.name, *rows.insert(self._build(table)), settings)

    def store(self, moves: Sequence[Move]) -> None:
        """Write the positions down, by build."""
        if moves:
            rows = [(self._build(m.table), m.topic, m.partition, m.new.notification_id, m.new.offset) for m in moves]
            columns = {name: native.SIMPLE[kind]() for name, kind in POSITION.items()}
            for column, values in zip(columns.values(), zip(*rows, strict=True), strict=True):
                column.add(values)
            self._insert("projection_positions", list(columns), native.block(columns, len(rows)), ONE_PART)

    def query(self, query: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows of an answer."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            found: Sequence[Sequence[Any]] = self._client().query(query, parameters=parameters).result_rows
            return found
        except (ClickHouseError, OSError) as error:
            raise self._meant(error) from error

    def stream(self, query: str) -> Iterator[Sequence[Any]]:
        """The rows of an answer of any length."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            with self._client().query_rows_stream(query) as rows:
                yield from rows
        except (ClickHouseError, OSError) as error:
            raise self._meant(error) from error

    def command(self, statement: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Run a statement that answers nothing."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            self._client().command(statement, parameters=parameters)
        except (ClickHouseError, OSError) as error:
            raise self._meant(error) from error

    def builds(self, tables: Collection[str]) -> dict[str, str]:
        """The builds of the tables that are there, by name."""
        return {name: comment or name for name, comment in self.query(BUILDS, {"tables": list(tables)})}

    def _build(self, table: AnyTable) -> str:
        return self._builds.get(table.name, table.name)

    def _stored(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> tuple[dict[tuple[AnyTable, int], Position], list[str]]:
        """The positions by build, and the names of those that are held still."""
        builds = [self._build(table) for table in tables]
        rows = self.query(SEEN, {"topic": topic, "builds": builds, "partitions": list(partitions)})
        found = {(build, partition): Position(id, offset) for build, its, partition, id, offset in rows if its == topic}
        held = [build for build, its, *_ in rows if its == HELD]
        stored = {
            (table, partition): found.get((self._build(table), partition), START)
            for table in tables
            for partition in partitions
        }
        return stored, held

    def _insert(self, table: str, names: list[str], block: bytes, settings: Mapping[str, Any]) -> None:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            self._client().raw_insert(quoted(table), names, block, settings=dict(settings), fmt="Native")
        except (ClickHouseError, OSError) as error:
            raise self._meant(error) from error

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
        if code == OTHER_BUILD:
            return Fenced()
        if code in OUR_FAULT:
            return Broken(f"{words}; `titan up` migrates the table")
        self.close()
        return Down(words)


def gathered(table: AnyTable) -> Rows:
    assert isinstance(table, ClickTable)
    return Rows(table)


def _token(table: AnyTable, moves: Iterable[Move]) -> str:
    """Names what an insert holds: the same moves, the same rows."""
    its = sorted(
        f"{m.topic}:{m.partition}:{m.old.notification_id}-{m.new.notification_id}" for m in moves if m.table is table
    )
    return f"{table.name} {' '.join(its)}"
