"""How two tables of one kind differ, row by row in the order of their keys: what it takes to make the second of the first.

Postgres and ClickHouse find the differences themselves, spilling to disk what is too much for their memory. For Redis the keys are
sorted in a temporary file and the rows fetched some at a time. Rows of ClickHouse are known by their event and their number in it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

import psycopg
import redis
from psycopg import sql
from psycopg.rows import tuple_row

from infra.settings import Settings
from projections.kernel.clickhouse import quoted
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.redis import READ_MAX, RedisTable
from projections.kernel.tables import AnyTable
from replay.failures import said
from replay.log import ReplayError

Values = Mapping[str, Any]
EVENT = ("log_domain", "log_partition", "log_id", "log_row")


class Difference(NamedTuple):
    """Of one row. `before` and `after` have all columns of a row that was removed or added, else those that changed."""

    kind: Literal["added", "removed", "changed"]
    key: Values
    before: Values
    after: Values


See = Callable[[Difference], None]


@dataclass
class Comparison:
    """How many rows differ, and in which columns those that changed."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    columns: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return self.added + self.removed + self.changed


def compare(
    settings: Settings, before: AnyTable, after: AnyTable, see: Callable[[Difference], None], limit: int | None = None
) -> Comparison:
    """What made `after` of `before`, two tables of one sink with one key: `see` is shown so many rows, all are counted.

    Columns that only one of them has are not compared. Raises `ReplayError`.
    """
    if before.key != after.key:
        raise ReplayError(
            f"rows of {before.name} are found by {', '.join(before.key)}, those of {after.name} by {', '.join(after.key)}"
        )
    return BY_SINK[before.sink](settings, before, after, see, limit)


def common(before: AnyTable, after: AnyTable) -> list[str]:
    """The columns besides the key that both have."""
    return [name for name in before.columns if name in after.columns and name not in before.key]


def _difference(key: Values, before: Values | None, after: Values | None, shared: Sequence[str]) -> Difference:
    """Of two rows without their keys, of which one may be missing."""
    if before is None or after is None:
        return Difference("removed" if after is None else "added", key, before or {}, after or {})
    names = [name for name in shared if before[name] != after[name]]
    return Difference("changed", key, {n: before[n] for n in names}, {n: after[n] for n in names})


def _postgres(settings: Settings, before: AnyTable, after: AnyTable, see: See, limit: int | None) -> Comparison:
    shared, key = common(before, after), before.key
    columns = [[name for name in table.columns if name not in key] for table in (before, after)]
    name = sql.Identifier
    rows = sql.SQL(", ")
    left, right = (rows.join(name(side, one) for one in shared) for side in "ba")
    changes = (
        sql.SQL("({}) IS DISTINCT FROM ({})").format(left, right)
        if len(shared) > 1
        else sql.SQL("{} IS DISTINCT FROM {}").format(left, right)
        if shared
        else sql.SQL("false")
    )
    joined = sql.SQL("FROM {} b FULL JOIN {} a USING ({})").format(
        name(before.name), name(after.name), rows.join(map(name, key))
    )
    gone, new = (sql.SQL("{} IS NULL").format(name(side, key[0])) for side in "ab")
    both = sql.SQL("{} IS NOT NULL AND {} IS NOT NULL").format(name("b", key[0]), name("a", key[0]))
    counted = [gone, new, sql.SQL("{} AND {}").format(both, changes)] + [
        sql.SQL("{} AND {} IS DISTINCT FROM {}").format(both, name("b", one), name("a", one)) for one in shared
    ]
    count = sql.SQL("SELECT {} {}").format(
        rows.join(sql.SQL("count(*) FILTER (WHERE {})").format(one) for one in counted), joined
    )
    selected = [sql.SQL("{} AS b_there").format(new), sql.SQL("{} AS a_there").format(gone)] + [
        name(side, one) for side, names in zip("ba", columns, strict=True) for one in names
    ]
    found = sql.SQL("SELECT {} {} WHERE {} OR {} OR {} ORDER BY {} LIMIT {}").format(
        rows.join([*map(name, key), *selected]), joined, gone, new, changes, rows.join(map(name, key)), limit
    )
    try:
        with psycopg.connect(settings.postgres, connect_timeout=5, row_factory=tuple_row) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            removed, added, changed, *by_column = connection.execute(count).fetchone() or ()
            made = Comparison(added, removed, changed, Counter(_some(shared, by_column)))
            cursor = connection.cursor(name="differences")
            cursor.execute(found)
            for row in cursor:
                keys, (no_b, no_a), rest = row[: len(key)], row[len(key) : len(key) + 2], row[len(key) + 2 :]
                old = dict(zip(columns[0], rest[: len(columns[0])], strict=True))
                now = dict(zip(columns[1], rest[len(columns[0]) :], strict=True))
                named = dict(zip(key, keys, strict=True))
                see(_difference(named, None if no_b else old, None if no_a else now, shared))
            return made
    except psycopg.Error as error:
        raise ReplayError(f"Postgres does not compare them: {' '.join(str(error).split())}") from error


def _clickhouse(settings: Settings, before: AnyTable, after: AnyTable, see: See, limit: int | None) -> Comparison:
    shared = common(before, after)

    def side(table: AnyTable, mark: str) -> str:
        columns = ", ".join(f"{quoted(name)} AS {mark}_{name}" for name in (*EVENT, *table.columns))
        return f"(SELECT {columns}, 1 AS {mark}_there FROM {quoted(table.name)} FINAL) AS {mark}"

    same = " AND ".join(f"b_{name} = a_{name}" for name in EVENT)
    joined = f"FROM {side(before, 'b')} FULL JOIN {side(after, 'a')} ON {same}"
    differs = {
        name: f"toString(tuple(b_{name})) != toString(tuple(a_{name}))" for name in shared
    }  # NULL differs from a value
    changed = f"b_there = 1 AND a_there = 1 AND ({' OR '.join(differs.values()) or '0'})"
    counted = [
        "a_there = 0",
        "b_there = 0",
        changed,
        *(f"b_there = 1 AND a_there = 1 AND {one}" for one in differs.values()),
    ]
    key = [f"if(b_there = 1, b_{name}, a_{name})" for name in EVENT]
    own = [f"b_{name}" for name in before.columns] + [f"a_{name}" for name in after.columns]
    order, top = ", ".join(str(n + 1) for n in range(len(EVENT))), "" if limit is None else f"LIMIT {limit}"
    with closing(ClickHouseSink(settings.clickhouse)) as sink, said():
        [(removed, added, rows, *by_column)] = sink.query(
            f"SELECT {', '.join(f'countIf({one})' for one in counted)} {joined} {SPILLING}", {}
        )
        made = Comparison(added, removed, rows, Counter(_some(shared, by_column)))
        for values in sink.stream(
            f"SELECT {', '.join([*key, 'b_there', 'a_there', *own])} {joined} "
            f"WHERE b_there = 0 OR a_there = 0 OR {changed} ORDER BY {order} {top} {SPILLING}"
        ):
            keys, (b, a), rest = values[:4], values[4:6], values[6:]
            old = dict(zip(before.columns, rest, strict=False))
            now = dict(zip(after.columns, rest[len(before.columns) :], strict=True))
            named = dict(zip(EVENT, keys, strict=True))
            see(_difference(named, old if b else None, now if a else None, shared))
        return made


SPILLING = (
    "SETTINGS join_algorithm = 'full_sorting_merge', max_bytes_before_external_sort = 268435456, join_use_nulls = 0"
)


def _redis(settings: Settings, before: AnyTable, after: AnyTable, see: See, limit: int | None) -> Comparison:
    assert isinstance(before, RedisTable) and isinstance(after, RedisTable)
    shared, made = common(before, after), Comparison()
    namespace = settings.namespace
    try:
        with redis.Redis.from_url(settings.redis, socket_timeout=30) as client:
            suffixes = _sorted(one for table in (before, after) for one in table.suffixes(client, namespace))
            while some := list(islice(suffixes, READ_MAX)):
                old, now = before.read(client, some, namespace), after.read(client, some, namespace)
                for one in some:
                    if old.get(one) == now.get(one):
                        continue
                    found = _of_rows(before.key, old.get(one), now.get(one), shared)
                    if found.kind == "changed" and not found.after:  # but for columns that both don't have
                        continue
                    setattr(made, found.kind, getattr(made, found.kind) + 1)
                    made.columns.update(list(found.after) if found.kind == "changed" else ())
                    if limit is None or made.rows <= limit:
                        see(found)
    except (redis.RedisError, OSError) as error:
        raise ReplayError(f"Redis does not answer: {type(error).__name__}: {error}") from error
    return made


def _of_rows(key: Sequence[str], before: Values | None, after: Values | None, shared: Sequence[str]) -> Difference:
    """Of two rows with their keys."""
    there = before or after
    assert there is not None
    bare = [row and {name: value for name, value in row.items() if name not in key} for row in (before, after)]
    return _difference({name: there[name] for name in key}, bare[0], bare[1], shared)


def _sorted(texts: Iterable[str]) -> Iterator[str]:
    """Each once, in order, through a file that nobody else sees."""
    try:
        with closing(sqlite3.connect("")) as file:
            file.execute("CREATE TABLE texts (text TEXT PRIMARY KEY) WITHOUT ROWID")
            file.executemany("INSERT OR IGNORE INTO texts VALUES (?)", ((text,) for text in texts))
            for (text,) in file.execute("SELECT text FROM texts ORDER BY text"):
                yield text
    except sqlite3.Error as error:
        raise ReplayError(
            f"the keys don't fit into a temporary file: {error}; free some space and start again"
        ) from error


def _some(names: Sequence[str], counts: Iterable[int]) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts, strict=True) if count}


BY_SINK: dict[str, Callable[[Settings, AnyTable, AnyTable, See, int | None], Comparison]] = {
    "postgres": _postgres,
    "clickhouse": _clickhouse,
    "redis": _redis,
}
