"""Redis read models: a hash a row, its sink and its reads.

All keys of a table carry the hash tag `{<namespace>:<table>}`, so that rows and position share one slot of a Redis Cluster and
one Lua call changes them together; a cluster spreads tables over its nodes, not the rows of one. That is also what a gate over
several rows (stock of several SKUs, all or nothing) needs. A row is `{titan:carts}:<key>`, the positions are
`{titan:carts}#positions`.

One Lua call a table and batch, in the order of the events: Redis has no roll-back, so nothing may fail half-way. Values are
checked before they are sent, and should the script still fail (a table's own Lua has a bug), it marks the table as broken in the
same call and every later call refuses, until the table is rebuilt. Redis must not evict: `maxmemory-policy noeviction`.

A Redis that lost its data lost the positions too: the worker notices at its next batch and builds the table from the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, cast, get_args, get_origin
from uuid import UUID

import orjson
import redis
from redis.asyncio import Redis as AsyncRedis

from aggregates.kernel.errors import Invalid
from projections.kernel.runner import START, BadData, Batch, Broken, Delivery, Down, Fenced, Move, Position
from projections.kernel.tables import AnyTable, Change, Column, RowTable, column_of, json_bytes

INT_MAX = 2**63 - 1

# KEYS: the positions. ARGV: the tag; how many moves, and field, old, new of each; then operations, each with its name, key,
# number of arguments and these. Positions are compared first; a failure of the rest is remembered, for it can't be undone.
SCRIPT = """
local own = {}
%(own)s
local positions, tag = KEYS[1], ARGV[1]
local broken = redis.call('HGET', positions, 'broken')
if broken then return 'broken ' .. broken end
local moves, at = tonumber(ARGV[2]), 3
for i = 1, moves do
  if (redis.call('HGET', positions, ARGV[at]) or '0:-1') ~= ARGV[at + 1] then return 'fenced' end
  at = at + 3
end
local ok, failure = pcall(function()
  local last = #ARGV
  while at <= last do
    local op, row, count = ARGV[at], tag .. ':' .. ARGV[at + 1], tonumber(ARGV[at + 2])
    local from, to = at + 3, at + 2 + count
    at = to + 1
    if op == 'put' then
      for i = from, to, 2 do redis.call('HSET', row, ARGV[i], ARGV[i + 1]) end
    elseif op == 'add' then
      for i = from, to, 2 do redis.call('HINCRBY', row, ARGV[i], ARGV[i + 1]) end
    elseif op == 'addfloat' then
      for i = from, to, 2 do redis.call('HINCRBYFLOAT', row, ARGV[i], ARGV[i + 1]) end
    elseif op == 'unset' then
      for i = from, to do redis.call('HDEL', row, ARGV[i]) end
    elseif op == 'clear' then
      local prefix = ARGV[from]
      for _, field in ipairs(redis.call('HKEYS', row)) do
        if string.sub(field, 1, #prefix) == prefix then redis.call('HDEL', row, field) end
      end
    elseif op == 'drop' then
      redis.call('DEL', row)
    else
      own[op](row, tag, unpack(ARGV, from, to))
    end
  end
end)
if not ok then
  if type(failure) == 'table' then failure = failure.err or cjson.encode(failure) end
  redis.call('HSET', positions, 'broken', tostring(failure))
  return 'broken ' .. tostring(failure)
end
at = 3
for i = 1, moves do
  redis.call('HSET', positions, ARGV[at], ARGV[at + 2])
  at = at + 3
end
return 'applied'
"""


class RedisTable(RowTable):
    """Rows as Redis hashes: `RedisTable("carts", key="id", id=UUID, owner=UUID | None, lines=dict[str, Line])`.

    A column `dict[str, X]` is a map whose items are hash fields of their own, so one is changed without reading the others:
    `set_item`, `add_item`, `drop_item`. `put` of a map replaces it. Other column types are those of a Postgres `Table`.

    `lua` names operations of the table's own, for `call`: the body of a Lua function of `row` (the row's Redis key), `tag`
    (`{titan:carts}`: further keys begin with it) and `...` (the arguments, as strings). It runs in order with all other
    changes, must come to the same result when it is repeated from an empty Redis, and must not fail.
    """

    sink = "redis"

    def __init__(
        self, name: str, /, *, key: str | tuple[str, ...], lua: Mapping[str, str] | None = None, **columns: Any
    ) -> None:
        super().__init__(name, (key,) if isinstance(key, str) else key, columns)
        self.lua = dict(lua or {})
        self.maps = {
            column.name: column_of(name, column.name, get_args(column.declared)[1])
            for column in self.columns.values()
            if get_origin(column.declared) is dict
        }

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
        return f"{{{namespace}:{self.name}}}"

    def row_key(self, namespace: str, key: Any) -> str:
        """The Redis key of a row."""
        return f"{self.tag(namespace)}:{self.suffix(key)}"

    def suffix(self, key: Any) -> str:
        """A row's key as text; several columns are joined by a slash."""
        return "/".join(str(plain(part)) for part in (key if len(self.key) > 1 else (key,)))

    async def get(self, client: AsyncRedis, key: Any, namespace: str = "titan") -> dict[str, Any] | None:
        """The row by column, blank where nothing was put, or None."""
        return self.row(key, await client.hgetall(self.row_key(namespace, key)))

    async def get_many(
        self, client: AsyncRedis, keys: Collection[Any], namespace: str = "titan"
    ) -> dict[Any, dict[str, Any]]:
        """The rows that are there, by key, in one round trip."""
        wanted = list(keys)
        async with client.pipeline(transaction=False) as pipeline:
            for key in wanted:
                pipeline.hgetall(self.row_key(namespace, key))
            found = await pipeline.execute()
        rows = ((key, self.row(key, fields)) for key, fields in zip(wanted, found, strict=True))
        return {key: row for key, row in rows if row is not None}

    async def position(self, client: AsyncRedis, topic: str, partition: int, namespace: str = "titan") -> int:
        """The notification id up to which this table has seen a partition; 0 for nothing."""
        stored = await client.hget(f"{self.tag(namespace)}#positions", f"{topic}:{partition}")
        return _position(stored).notification_id

    def row(self, key: Any, fields: Mapping[Any, Any]) -> dict[str, Any] | None:
        """A hash as Redis gives it, bytes or str, as the row by column; None for an empty one."""
        if not fields:
            return None
        row = {c.name: {} if c.name in self.maps else c.blank for c in self.columns.values()} | self.keys(key)
        for field, value in fields.items():
            name, _, item = _text(field).partition(":")
            if name in self.maps:
                row[name][item] = parse(self.maps[name], _text(value))
            elif name in self.columns and name not in self.key:
                row[name] = parse(self.columns[name], _text(value))
        return row


def plain(value: Any) -> str | int | float:
    """A value as Redis holds it. Raises Invalid for what does not fit."""
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


def parse(column: Column, text: str) -> Any:
    """What `plain` wrote, as the column's type; JSON as lists and dicts."""
    kind = column.kind
    if kind is dict:
        return orjson.loads(text)
    if kind is bool:
        return text == "1"
    if kind in (datetime, date):
        return cast(Any, kind).fromisoformat(text)
    if kind is bytes:
        return bytes.fromhex(text)
    return kind(text)


class RedisSink:
    """One client. Works on a single Redis or Valkey, and on a cluster through its client, given by `client`."""

    name = "redis"

    def __init__(self, url: str, namespace: str = "titan", client: Any = None) -> None:
        self.namespace = namespace
        self._client: Any = client or redis.Redis.from_url(
            url, socket_timeout=30, socket_connect_timeout=5, socket_keepalive=True, health_check_interval=30
        )
        self._scripts: dict[tuple[tuple[str, str], ...], Any] = {}

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        fields, found = [f"{topic}:{partition}" for partition in partitions], {}
        for table in tables:
            try:
                stored = self._client.hmget(self._positions(table), fields)
            except redis.RedisError as error:
                raise Down(f"{type(error).__name__}: {error}") from error
            found.update({(table, p): _position(value) for p, value in zip(partitions, stored, strict=True)})
        return found

    def apply(self, batch: Batch) -> None:
        by_table: dict[AnyTable, list[Move]] = {}
        for move in batch.moves:
            by_table.setdefault(move.table, []).append(move)
        try:
            calls = [
                (table, self._arguments(table, moves, batch.changes.get(table, ())))
                for table, moves in by_table.items()
            ]
        except (ValueError, TypeError, AttributeError) as error:
            raise BadData(f"{type(error).__name__}: {error}") from error
        for table, arguments in calls:
            try:
                answer = _text(self._script(cast(RedisTable, table))(keys=[self._positions(table)], args=arguments))
            except redis.RedisError as error:
                if "compiling script" in str(error):
                    raise Broken(f"the Lua of table {table.name}: {error}") from error
                raise Down(f"{type(error).__name__}: {error}") from error
            if answer == "fenced":
                raise Fenced
            if answer != "applied":
                raise Broken(f"Redis table {table.name} is half written, rebuild it: {answer}")

    def settle(self) -> None:
        """Nothing is ever on its way."""

    def drop(self, table: AnyTable) -> None:
        """Remove a table, its positions first: a worker that meets it half gone finds that it has to begin anew."""
        self._client.delete(self._positions(table))
        for key in self._client.scan_iter(f"{_escaped(self._tag(table))}*", count=1000):
            self._client.unlink(key)

    def close(self) -> None:
        self._client.close()

    def _tag(self, table: AnyTable) -> str:
        return cast(RedisTable, table).tag(self.namespace)

    def _positions(self, table: AnyTable) -> str:
        return f"{self._tag(table)}#positions"

    def _script(self, table: RedisTable) -> Any:
        own = tuple(table.lua.items())
        if own not in self._scripts:
            lua = "\n".join(
                f"own[{orjson.dumps(name).decode()}] = function(row, tag, ...)\n{body}\nend" for name, body in own
            )
            self._scripts[own] = self._client.register_script(SCRIPT % {"own": lua})
        return self._scripts[own]

    def _arguments(
        self, table: AnyTable, moves: Collection[Move], changes: Iterable[tuple[Delivery, Change]]
    ) -> list[str | int | float]:
        assert isinstance(table, RedisTable)
        arguments: list[str | int | float] = [self._tag(table), len(moves)]
        for move in moves:
            arguments += [f"{move.topic}:{move.partition}", _stored(move.old), _stored(move.new)]
        for _, change in changes:
            row = table.suffix(change.key)
            for operation, own in _operations(table, change):
                arguments += [operation, row, len(own), *own]
        return arguments


def _operations(table: RedisTable, change: Change) -> Iterable[tuple[str, list[str | int | float]]]:
    """A change as the script's operations."""
    _, op, key, values = change
    if op == "put":
        sets: list[str | int | float] = []
        unsets: list[str | int | float] = []
        for name, value in {**table.keys(key), **values}.items():
            if name in table.maps:
                yield "clear", [f"{name}:"]
                for item, inner in (value or {}).items():
                    sets += [f"{name}:{plain(item)}", plain(inner)]
            elif value is None:
                unsets.append(name)
            else:
                sets += [name, plain(value)]
        yield "put", sets
        if unsets:
            yield "unset", unsets
    elif op == "add":
        for name, by in values.items():
            whole = table.columns[name].kind is int
            if whole and not isinstance(by, int):
                raise Invalid(f"{by!r} is not a whole number")
            yield "add" if whole else "addfloat", [name, plain(by)]
    elif op == "drop":
        yield "drop", []
    elif op == "drop_item":
        yield "unset", [f"{values['map']}:{values['item']}"]
    elif op == "call":
        yield values["operation"], [plain(argument) for argument in values["arguments"]]
    else:
        if op == "add_item" and not isinstance(values["value"], int):
            raise Invalid(f"{values['value']!r} is not a whole number")
        yield "put" if op == "set_item" else "add", [f"{values['map']}:{values['item']}", plain(values["value"])]


def _stored(position: Position) -> str:
    return f"{position.notification_id}:{position.offset}"


def _position(stored: Any) -> Position:
    if stored is None:
        return START
    id, _, offset = _text(stored).partition(":")
    return Position(int(id), int(offset))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _escaped(pattern: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in pattern)
