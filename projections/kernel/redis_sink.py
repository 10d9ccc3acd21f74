"""The sink of Redis read models: one Lua call a table and batch, in the order of the events.

Redis has no roll-back, so nothing may fail half-way. Values are checked before they are sent, and should the script still fail (a
table's own Lua has a bug), it marks the table as broken in the same call and every later call refuses, until the table is
rebuilt. Redis must not evict: `maxmemory-policy noeviction`.

A Redis that lost its data lost the positions too: the worker notices at its next batch and builds the table from the beginning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import orjson
import redis

from aggregates.kernel.errors import Invalid
from projections.kernel.redis import RedisTable, plain, position_of, text
from projections.kernel.runner import BadData, Batch, Broken, Delivery, Down, Fenced, Move, Position
from projections.kernel.tables import AnyTable, Change

Words = list[str | int | float]

# KEYS: the positions. ARGV: the tag; how many moves, and field, old, new of each; then operations, each with its name, key,
# number of arguments and these. Positions are compared first; a failure of the rest is remembered, for it can't be undone.
SCRIPT = """
local own = {}
%(own)s
local function each(command, row, from, to)
  for i = from, to, 1000 do redis.call(command, row, unpack(ARGV, i, math.min(i + 999, to))) end
end
local positions, base = KEYS[1], ARGV[1]
local state = redis.call('HMGET', positions, 'broken', 'build')
if state[1] then return 'broken ' .. state[1] end
if redis.call('EXISTS', base .. '!held') == 1 then return 'held' end
local moves, at, tag = tonumber(ARGV[2]), 3, state[2] or base
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
      each('HSET', row, from, to)
    elseif op == 'add' then
      for i = from, to, 2 do redis.call('HINCRBY', row, ARGV[i], ARGV[i + 1]) end
    elseif op == 'addfloat' then
      for i = from, to, 2 do redis.call('HINCRBYFLOAT', row, ARGV[i], ARGV[i + 1]) end
    elseif op == 'unset' then
      each('HDEL', row, from, to)
    elseif op == 'clear' then
      local prefix = ARGV[from]
      for _, field in ipairs(redis.call('HKEYS', row)) do
        if string.sub(field, 1, #prefix) == prefix then redis.call('HDEL', row, field) end
      end
    elseif op == 'drop' then
      redis.call('DEL', row)
    else
      own[op](row, tag, base, unpack(ARGV, from, to))
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


class RedisSink:
    """One client. Works on a single Redis or Valkey, and on a cluster through its client, given by `client`."""

    name = "redis"

    def __init__(self, url: str, namespace: str = "titan", client: Any = None) -> None:
        self.namespace = namespace
        self.client: Any = client or redis.Redis.from_url(
            url, socket_timeout=30, socket_connect_timeout=5, socket_keepalive=True, health_check_interval=30
        )
        self._scripts: dict[tuple[tuple[str, str], ...], Any] = {}

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        fields, found = [f"{topic}:{partition}" for partition in partitions], {}
        for table in tables:
            try:
                stored = self.client.hmget(cast(RedisTable, table).positions_key(self.namespace), fields)
            except redis.RedisError as error:
                raise Down(f"{type(error).__name__}: {error}") from error
            found.update({(table, p): position_of(value) for p, value in zip(partitions, stored, strict=True)})
        return found

    def apply(self, batch: Batch) -> None:
        by_table: dict[AnyTable, list[Move]] = {}
        for move in batch.moves:
            by_table.setdefault(move.table, []).append(move)
        with values():
            calls = [(table, moves, words(table, batch.changes.get(table, ()))) for table, moves in by_table.items()]
        for table, moves, operations in calls:
            try:
                answer = self.call(self.client, table, moves, operations)
            except redis.RedisError as error:
                raise meant(table, error) from error
            said(table, answer)

    def settle(self) -> None:
        """Nothing is ever on its way."""

    def close(self) -> None:
        self.client.close()

    def call(self, client: Any, table: AnyTable, moves: Collection[Move], operations: Words) -> Any:
        """Send the script to a client, or into a pipeline. `said` understands its answer."""
        assert isinstance(table, RedisTable)
        arguments: Words = [table.tag(self.namespace), len(moves)]
        for move in moves:
            arguments += [f"{move.topic}:{move.partition}", stored(move.old), stored(move.new)]
        return self._script(table)(
            keys=[table.positions_key(self.namespace)], args=arguments + operations, client=client
        )

    def _script(self, table: RedisTable) -> Any:
        own = tuple(table.lua.items())
        if own not in self._scripts:
            lua = "\n".join(
                f"own[{orjson.dumps(name).decode()}] = function(row, tag, base, ...)\n{body}\nend" for name, body in own
            )
            self._scripts[own] = self.client.register_script(SCRIPT % {"own": lua})
        return self._scripts[own]


@contextmanager
def values() -> Iterator[None]:
    """Where changes become words: what can't be one is BadData."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise BadData(f"{type(error).__name__}: {error}") from error


def meant(table: AnyTable, error: redis.RedisError) -> Exception:
    """A client's error as one of a sink's."""
    if "compiling script" in str(error):
        return Broken(f"the Lua of table {table.name}: {error}")
    return Down(f"{type(error).__name__}: {error}")


def said(table: AnyTable, answer: Any) -> None:
    """Raise what the script's answer means, if it was not applied."""
    what = text(answer)
    if what == "fenced":
        raise Fenced
    if what == "held":
        raise Down(f"Redis table {table.name} is being switched")
    if what != "applied":
        raise Broken(f"Redis table {table.name} is half written, rebuild it: {what}")


def words(table: AnyTable, changes: Iterable[tuple[Delivery, Change]]) -> Words:
    """Changes as the script's operations, in order. Raises Invalid, TypeError, AttributeError for what is no value."""
    assert isinstance(table, RedisTable)
    found: Words = []
    put, count_at = None, 0
    for _, change in changes:
        row = table.suffix(change.key)
        for operation, own in _operations(table, change):
            if operation == "put" and put == row:  # behind a put of the same row: one HSET
                found[count_at] = cast(int, found[count_at]) + len(own)
            else:
                found += (operation, row, len(own))
                put, count_at = row if operation == "put" else None, len(found) - 1
            found += own
    return found


def _operations(table: RedisTable, change: Change) -> Iterable[tuple[str, Words]]:
    """A change as the script's operations."""
    _, op, key, values = change
    if op == "put":
        sets: Words = []
        unsets: Words = []
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


def stored(position: Position) -> str:
    """What `position_of` reads."""
    return f"{position.notification_id}:{position.offset}"
