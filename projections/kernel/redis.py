"""Redis read models: a hash a row, and its reads. The sink is in `redis_sink`.

All keys of a table carry the hash tag `{<namespace>:<table>}`, so that rows and position share one slot of a Redis Cluster and
one Lua call changes them together; a cluster spreads tables over its nodes, not the rows of one. That is also what a gate over
several rows (stock of several SKUs, all or nothing) needs. The positions are the hash `{titan:carts}#positions`. Its field
`build` says what the keys of the rows begin with: `{titan:carts}:<key>` until the table is first rebuilt, `{titan:carts}~1:<key>`
from then on. So to put a rebuilt table in the place of the live one, rows and positions at once, is to rename one hash, however
many rows there are; and whoever reads asks for the build and the rows in one Lua call.

The shadow `carts__rebuild` has the same hash tag, `{titan:carts}__rebuild`. Keys behind `{titan:carts}!` belong to no build:
what only a gate knows, and the marks of a switch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args, get_origin
from uuid import UUID

import orjson

from aggregates.kernel.errors import Invalid
from projections.kernel.runner import START, Position
from projections.kernel.tables import MARK, Change, Column, RowTable, column_of, json_bytes

if TYPE_CHECKING:  # whoever gives a client has imported it; a process that uses Postgres alone does without
    import redis
    from redis.asyncio import Redis as AsyncRedis

INT_MAX = 2**63 - 1
BUILD = "build"
READ_MAX = 200  # rows in one Lua call of a scan: it holds up every other client for as long as it takes

# KEYS: the positions. ARGV: the tag, then the rows' suffixes.
READ = """
local tag, found = redis.call('HGET', KEYS[1], 'build') or ARGV[1], {}
for i = 2, #ARGV do found[i - 1] = redis.call('HGETALL', tag .. ':' .. ARGV[i]) end
return found
"""
# The same of some columns alone. ARGV: the tag, how many columns, their names, then the rows' suffixes.
READ_COLUMNS = """
local tag, found = redis.call('HGET', KEYS[1], 'build') or ARGV[1], {}
local names = {unpack(ARGV, 3, 2 + ARGV[2])}
for i = 3 + ARGV[2], #ARGV do
    local key = tag .. ':' .. ARGV[i]
    found[#found + 1] = redis.call('EXISTS', key) == 1 and redis.call('HMGET', key, unpack(names)) or {}
end
return found
"""
SHA = {script: hashlib.sha1(script.encode()).hexdigest() for script in (READ, READ_COLUMNS)}


class Asked(NamedTuple):
    """Rows of a table to read: of each all columns, or only those named; of a map an item, as `prices:EUR`, None if not there."""

    table: RedisTable
    keys: Collection[Any]
    columns: tuple[str, ...] = ()


async def get_together(client: AsyncRedis, namespace: str, *asked: Asked) -> list[dict[Any, dict[str, Any]]]:
    """Of each table the rows that are there, by key, all in one round trip; each table is read by itself."""
    from redis.exceptions import NoScriptError

    pipeline = client.pipeline(transaction=False)
    for table, keys, columns in asked:
        script = READ_COLUMNS if columns else READ
        pipeline.evalsha(SHA[script], 1, table.positions_key(namespace), *table._asked(keys, namespace, columns))
    try:
        answers = await pipeline.execute()
    except NoScriptError:  # Redis was started anew
        return [await table.get_many(client, keys, namespace, columns) for table, keys, columns in asked]
    return [one.table._found(one.keys, answer, one.columns) for one, answer in zip(asked, answers, strict=True)]


class RedisTable(RowTable):
    """Rows as Redis hashes: `RedisTable("carts", key="id", id=UUID, owner=UUID | None, lines=dict[str, Line])`.

    A column `dict[str, X]` is a map whose items are hash fields of their own, so one is changed without reading the others:
    `set_item`, `add_item`, `drop_item`. `put` of a map replaces it. Other column types are those of a Postgres `Table`.

    `lua` names operations of the table's own, for `call`: the body of a Lua function of `row` (the row's Redis key), `tag`
    (further keys begin with it, and are built anew with the rows), `base` (`{titan:carts}`: with `!` behind it, what is of no
    build) and `...` (the arguments, as strings). It runs in order with all other changes, must come to the same result when
    it is repeated from an empty Redis, and must not fail.
    """

    sink = "redis"

    def __init__(
        self,
        name: str,
        /,
        *,
        key: str | tuple[str, ...],
        lua: Mapping[str, str] | None = None,
        person: str | tuple[str, ...] = (),
        part_of: str | tuple[str, ...] = (),
        **columns: Any,
    ) -> None:
        super().__init__(name, (key,) if isinstance(key, str) else key, columns, person, part_of)
        self.lua = dict(lua or {})
        self.maps = {
            column.name: column_of(name, column.name, get_args(column.declared)[1])
            for column in self.columns.values()
            if get_origin(column.declared) is dict
        }
        columns = {**self.columns, **self.maps}
        blanks = {name: column.blank for name, column in self.columns.items()}
        self._containers = [name for name, blank in blanks.items() if isinstance(blank, (dict, list))]
        self._zeros = {name: blank for name, blank in blanks.items() if name not in self._containers}
        self._parsers = {name: parser_of(column) for name, column in columns.items() if name not in self.key}

    def set_item(self, key: Any, map: str, item: str, value: Any, /) -> Change:
        """Set one item of a map."""
        self._check(self.maps, {map: None}, "map")
        return Change(self, "set_item", key, {"map": map, "item": item, "value": value})

    def add_item(self, key: Any, map: str, item: str, by: int, /) -> Change:
        """Add to one item of a map of int, which starts at 0."""
        self._check([m for m, column in self.maps.items() if column.kind is int], {map: None}, "map of int")
        return Change(self, "add_item", key, {"map": map, "item": item, "value": by})

    def drop_item(self, key: Any, map: str, item: str, /) -> Change:
        """Remove one item of a map; none there is fine."""
        self._check(self.maps, {map: None}, "map")
        return Change(self, "drop_item", key, {"map": map, "item": item})

    def call(self, key: Any, operation: str, /, *arguments: Any) -> Change:
        """Run an operation of `lua` on the row."""
        self._check(self.lua, {operation: None}, "operation")
        return Change(self, "call", key, {"operation": operation, "arguments": arguments})

    def tag(self, namespace: str) -> str:
        """What every Redis key of the table begins with."""
        return tag_of(self.name, namespace)

    def positions_key(self, namespace: str) -> str:
        """The Redis key of its positions."""
        return f"{self.tag(namespace)}#positions"

    def row_key(self, namespace: str, key: Any) -> str:
        """The Redis key of a row of the first build."""
        return f"{self.tag(namespace)}:{self.suffix(key)}"

    def suffix(self, key: Any) -> str:
        """A row's key as text; several columns are joined by a slash."""
        if len(self.key) == 1:
            return str(plain(key))
        return "/".join(str(plain(part)) for part in key)

    async def get(self, client: AsyncRedis, key: Any, namespace: str = "titan") -> dict[str, Any] | None:
        """The row by column, blank where nothing was put, or None."""
        return (await self.get_many(client, [key], namespace)).get(key)

    async def get_many(
        self, client: AsyncRedis, keys: Collection[Any], namespace: str = "titan", columns: tuple[str, ...] = ()
    ) -> dict[Any, dict[str, Any]]:
        """The rows that are there, by key, in one round trip; all columns, or those named as `Asked` says."""
        from redis.exceptions import NoScriptError

        script, given = READ_COLUMNS if columns else READ, self._asked(keys, namespace, columns)
        try:
            found = await cast(Any, client.evalsha(SHA[script], 1, self.positions_key(namespace), *given))
        except NoScriptError:  # Redis was started anew
            found = await cast(Any, client.eval(script, 1, self.positions_key(namespace), *given))
        return self._found(keys, found, columns)

    def _asked(self, keys: Iterable[Any], namespace: str, columns: tuple[str, ...]) -> list[Any]:
        some = (len(columns), *columns) if columns else ()
        return [self.tag(namespace), *some, *map(self.suffix, keys)]

    def _found(
        self, keys: Iterable[Any], found: Sequence[Any], columns: tuple[str, ...] = ()
    ) -> dict[Any, dict[str, Any]]:
        if not columns:
            return {
                key: row
                for key, flat in zip(keys, found, strict=True)
                if (row := self.row(key, pairs(flat))) is not None
            }
        read = [(name, *self._reading(name)) for name in columns]
        return {
            key: {
                name: blank if value is None else parsed(value.decode())
                for (name, parsed, blank), value in zip(read, values, strict=True)
            }
            for key, values in zip(keys, found, strict=True)
            if values
        }

    def _reading(self, named: str) -> tuple[Callable[[str], Any], Any]:
        """What parses a column or an item of a map, and what it is where nothing was put."""
        name, _, item = named.partition(":")
        assert bool(item) == (name in self.maps), f"{named} is neither a column nor an item"
        return self._parsers[name], None if item else self.columns[name].blank

    def suffixes(self, client: redis.Redis, namespace: str = "titan") -> Iterator[str]:
        """The keys of all rows, as `suffix` makes them; in no order, some perhaps twice: it is Redis' SCAN."""
        build = cast(Any, client.hget(self.positions_key(namespace), BUILD)) or self.tag(namespace)
        prefix = f"{text(build)}:"
        for name in client.scan_iter(f"{escaped(prefix)}*", count=1_000):
            yield text(name).removeprefix(prefix)

    def read(self, client: redis.Redis, suffixes: Sequence[str], namespace: str = "titan") -> dict[str, dict[str, Any]]:
        """The rows that are there, by suffix."""
        read = client.register_script(READ)
        found = cast(Any, read([self.positions_key(namespace)], [self.tag(namespace), *suffixes]))
        rows = ((one, self.row(self.key_of(one), pairs(flat))) for one, flat in zip(suffixes, found, strict=True))
        return {one: row for one, row in rows if row is not None}

    def scan(self, client: redis.Redis, namespace: str = "titan") -> Iterator[dict[str, Any]]:
        """Every row, as `suffixes` has them."""
        suffixes = self.suffixes(client, namespace)
        while some := list(islice(suffixes, READ_MAX)):
            yield from self.read(client, some, namespace).values()

    def key_of(self, suffix: str) -> Any:
        """The key that `suffix` made a text of."""
        parts = suffix.split("/") if len(self.key) > 1 else [suffix]
        key = tuple(parse(self.columns[name], part) for name, part in zip(self.key, parts, strict=True))
        return key if len(key) > 1 else key[0]

    async def position(self, client: AsyncRedis, topic: str, partition: int, namespace: str = "titan") -> int:
        """The notification id up to which this table has seen a partition; 0 for nothing."""
        return position_of(await client.hget(self.positions_key(namespace), f"{topic}:{partition}")).notification_id

    def row(self, key: Any, fields: Mapping[Any, Any]) -> dict[str, Any] | None:
        """A hash as Redis gives it, bytes or str, as the row by column; None for an empty one."""
        if not fields:
            return None
        row = self._zeros | {name: self.columns[name].blank for name in self._containers} | self.keys(key)
        parsers, maps = self._parsers, self.maps
        for field, value in fields.items():
            name, _, item = (field.decode() if isinstance(field, bytes) else field).partition(":")
            if (parsed := parsers.get(name)) is None:
                continue
            made = parsed(value.decode() if isinstance(value, bytes) else value)
            if name in maps:
                row[name][item] = made
            else:
                row[name] = made
        return row


def tag_of(name: str, namespace: str) -> str:
    """What every Redis key of the table of this name begins with."""
    table, mark, purpose = name.partition(MARK)
    return f"{{{namespace}:{table}}}{mark}{purpose}"


def plain(value: Any) -> str | int | float:
    """A value as Redis holds it. Raises Invalid for what does not fit."""
    if type(value) is UUID:
        return str(value)
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int):
        if not -INT_MAX <= value <= INT_MAX:
            raise Invalid(f"{value} is beyond 64 bits")
        return value
    if isinstance(value, str):
        return value
    if isinstance(value, (UUID, Decimal)):
        return str(value)
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, bytes):
        return value.hex()
    return json_bytes(value).decode()


def parser_of(column: Column) -> Callable[[str], Any]:
    """What makes the column's type of a text that `plain` wrote; of JSON lists and dicts."""
    kind = column.kind
    if kind is dict:
        return orjson.loads
    if kind is bool:
        return "1".__eq__
    if kind in (datetime, date):
        return cast(Any, kind).fromisoformat  # type: ignore[no-any-return]
    if kind is bytes:
        return bytes.fromhex
    return _uuid if kind is UUID else cast("Callable[[str], Any]", kind)


def parse(column: Column, text: str) -> Any:
    """What `plain` wrote, as the column's type; JSON as lists and dicts."""
    return parser_of(column)(text)


@lru_cache(maxsize=10_000)
def _uuid(text: str) -> UUID:
    return UUID(text)  # the ids of products, again and again, in each line of each cart


def position_of(stored: Any) -> Position:
    """A position as `<id>:<offset>` in Redis; `START` for None."""
    if stored is None:
        return START
    id, _, offset = text(stored).partition(":")
    return Position(int(id), int(offset))


def pairs(flat: Collection[Any]) -> dict[Any, Any]:
    """A hash that a script has returned: field, value, field, value, …"""
    each = iter(flat)
    return dict(zip(each, each, strict=True))


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def escaped(pattern: str) -> str:
    """A text as a pattern of SCAN that matches only itself."""
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in pattern)
