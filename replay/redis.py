"""Shadows in Redis. The rows of a shadow lie under a build of their own from the start, so the switch renames one hash a table:
the positions, which name the build. It takes as long for a million rows as for one.

What is no longer named by any positions is trash. It is written down in the same call, so that whoever comes next sweeps it up,
should this process die; nobody can read it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import redis

from infra.settings import Settings
from projections.kernel.redis import BUILD, escaped, position_of, tag_of, text
from projections.kernel.redis_sink import RedisSink, meant, said, values, words
from projections.kernel.runner import Batch, Delivery, Down, Move, Position
from projections.kernel.tables import MARK, AnyTable, Change
from replay.log import ReplayError
from replay.shadow import REBUILD, Loader, Reach

CALL_ROWS_MAX = 500  # changes of one Lua call: it holds up every other client for as long as it takes
CALLS_MAX = 8  # sent before the first is answered
HELD_MS = 15_000  # a live table is held still at most so long, whatever becomes of this process
SWITCHES_MAX = 5
SWEPT_MAX = 500  # keys that one command removes

# KEYS: a shadow's positions, the trash.
DROP = """
local old = redis.call('HGET', KEYS[1], 'build')
if old then redis.call('SADD', KEYS[2], old) end
redis.call('DEL', KEYS[1])
"""
# KEYS: of each pair the live positions, the shadow's, and the trash. ARGV: the token of the hold, and of each pair the live tag.
# Either every pair is switched or none is.
SWITCH = """
local function id(stored) return tonumber(string.match(stored or '0', '^%d+')) end
local token = ARGV[1]
for at = 1, #KEYS, 3 do
  local live, shadow, tag = KEYS[at], KEYS[at + 1], ARGV[(at + 2) / 3 + 1]
  if redis.call('GET', tag .. '!held') ~= token then return 'late' end
  if redis.call('HEXISTS', shadow, 'build') == 0 then return 'gone' end
  if redis.call('HEXISTS', shadow, 'broken') == 1 then return 'broken' end
  local fields = redis.call('HGETALL', live)
  for i = 1, #fields, 2 do
    if string.find(fields[i], ':', 1, true) and not string.find(fields[i], '!', 1, true)
      and id(redis.call('HGET', shadow, fields[i])) < id(fields[i + 1]) then return 'behind' end
  end
end
for at = 1, #KEYS, 3 do
  local live, shadow, tag = KEYS[at], KEYS[at + 1], ARGV[(at + 2) / 3 + 1]
  local fields = redis.call('HGETALL', shadow)
  for i = 1, #fields, 2 do
    local domain, partition = string.match(fields[i], '^([^:!]+):(%d+)$')
    if domain then redis.call('HSET', shadow, domain .. '!:' .. partition, fields[i + 1]) end
  end
  redis.call('SADD', KEYS[at + 2], redis.call('HGET', live, 'build') or tag)
  redis.call('RENAME', shadow, live)
  redis.call('DEL', tag .. '!held')
end
return 'switched'
"""


class RedisLoader(RedisSink):
    """Writes at once, in calls of bounded length that are on their way together; each moves the positions with its rows."""

    rows = 0

    def apply(self, batch: Batch) -> None:
        moves: dict[AnyTable, list[Move]] = {}
        for move in batch.moves:
            moves.setdefault(move.table, []).append(move)
        for table, its in moves.items():
            with values():
                calls = [(one, words(table, some)) for one, some in _calls(its, batch.changes.get(table, ()))]
            for at in range(0, len(calls), CALLS_MAX):
                pipeline = self.client.pipeline(transaction=False)
                for one, operations in calls[at : at + CALLS_MAX]:
                    self.call(pipeline, table, one, operations)
                try:
                    answers = pipeline.execute()
                except redis.RedisError as error:
                    raise meant(table, error) from error
                for answer in answers:
                    said(table, answer)

    def checkpoint(self) -> None:
        """Everything is there already."""


def _calls(
    moves: Collection[Move], changes: Collection[tuple[Delivery, Change]]
) -> list[tuple[list[Move], list[tuple[Delivery, Change]]]]:
    """A table's part of a batch, cut between deliveries; each piece moves the positions to its own last ones."""
    at = {(move.topic, move.partition): move for move in moves}
    last: dict[tuple[str, int], Position] = {}
    pieces: list[tuple[list[Move], list[tuple[Delivery, Change]]]] = []
    piece: list[tuple[Delivery, Change]] = []
    for delivery, change in changes:
        if len(piece) >= CALL_ROWS_MAX and delivery is not piece[-1][0]:
            pieces.append(([at[lane]._replace(new=new) for lane, new in last.items()], piece))
            at.update({lane: at[lane]._replace(old=new) for lane, new in last.items()})
            piece, last = [], {}
        piece.append((delivery, change))
        last[delivery.topic, delivery.partition] = Position(delivery.notification_id, delivery.offset)
    return [*pieces, ([move for move in at.values() if move.old != move.new], piece)]


class RedisShadows:
    """On one Redis, or a cluster through its `client`, where several tables are switched one after the other."""

    name = "redis"

    def __init__(self, settings: Settings, client: Any = None) -> None:
        self._settings, self._given = settings, client
        self._sink = RedisSink(settings.redis, settings.namespace, client)
        self._client = self._sink.client
        self._drop, self._switch = (self._client.register_script(one) for one in (DROP, SWITCH))

    def make(self, shadow: AnyTable) -> None:
        self.drop(shadow.name)
        slot, build = self._slot(shadow.name), tag_of(shadow.name, self._settings.namespace)
        with _answering():
            if shadow.name.endswith(MARK + REBUILD):  # to become the live one, so its rows' keys are for good
                build = f"{slot}~{self._client.incr(f'{slot}!builds')}"
            self._client.sadd(self._registry, shadow.name)
            self._client.hset(self._positions(shadow.name), BUILD, build)

    def there(self, shadow: AnyTable) -> bool:
        with _answering():
            build, broken = self._client.hmget(self._positions(shadow.name), BUILD, "broken")
        return build is not None and broken is None

    def loader(self) -> Loader:
        return RedisLoader(self._settings.redis, self._settings.namespace, self._given)

    def finished(self, shadow: AnyTable) -> bool:
        """Loaders and the ordinary sink have the same positions, so a loader always can."""
        return False

    def finish(self, shadow: AnyTable) -> None:
        """Nothing is left to do."""

    def switch(self, pairs: Mapping[AnyTable, AnyTable], catch_up: Callable[[Reach], None]) -> None:
        token = uuid4().hex
        for _ in range(SWITCHES_MAX):
            try:
                with _answering():
                    for live in pairs:
                        self._client.set(self._held(live), token, px=HELD_MS)
                catch_up(self._reach(pairs))
                answers = [self._switched(some, token) for some in self._together(pairs)]
            finally:
                self._release(pairs, token)
            if set(answers) == {"switched"}:
                break
            if "switched" in answers or not {"late", "behind"}.issuperset(answers):
                raise ReplayError(f"the shadows in Redis are {', '.join(answers)}: begin the rebuild anew")
        else:
            raise Down("Redis could not hold the live tables still for long enough; nothing was switched, try again")
        with _answering():
            self._client.srem(self._registry, *(shadow.name for shadow in pairs.values()))
        for live in pairs:
            self._sweep(self._slot(live.name))

    def drop(self, name: str) -> None:
        slot = self._slot(name)
        with _answering():
            self._drop(keys=[self._positions(name), f"{slot}!trash"])
            self._client.srem(self._registry, name)
        self._sweep(slot)

    def names(self) -> list[str]:
        with _answering():
            known = sorted(map(text, self._client.smembers(self._registry)))
            return [name for name in known if self._client.exists(self._positions(name))]

    def close(self) -> None:
        self._sink.close()

    @property
    def _registry(self) -> str:
        return f"{self._settings.namespace}!shadows"

    def _slot(self, name: str) -> str:
        return tag_of(name.partition(MARK)[0], self._settings.namespace)

    def _positions(self, name: str) -> str:
        return f"{tag_of(name, self._settings.namespace)}#positions"

    def _held(self, live: AnyTable) -> str:
        return f"{tag_of(live.name, self._settings.namespace)}!held"

    def _together(self, pairs: Mapping[AnyTable, AnyTable]) -> list[Mapping[AnyTable, AnyTable]]:
        """What one call can switch: all, or in a cluster one table each, for they have their own slots."""
        if isinstance(self._client, redis.RedisCluster):
            return [{live: shadow} for live, shadow in pairs.items()]
        return [pairs]

    def _reach(self, live: Collection[AnyTable]) -> Reach:
        reach: dict[tuple[str, int], int] = {}
        for table in live:
            with _answering():
                fields = self._client.hgetall(self._positions(table.name))
            for field, stored in fields.items():
                domain, colon, partition = text(field).partition(":")
                if colon and "!" not in domain and (offset := position_of(stored).offset) >= 0:
                    reach[domain, int(partition)] = max(offset, reach.get((domain, int(partition)), -1))
        return reach

    def _switched(self, pairs: Mapping[AnyTable, AnyTable], token: str) -> str:
        keys = [
            key
            for live, shadow in pairs.items()
            for key in (self._positions(live.name), self._positions(shadow.name), f"{self._slot(live.name)}!trash")
        ]
        with _answering():
            return text(self._switch(keys=keys, args=[token, *(self._slot(live.name) for live in pairs)]))

    def _release(self, pairs: Collection[AnyTable], token: str) -> None:
        with suppress(redis.RedisError, OSError):  # it ends by itself
            for live in pairs:
                if text(self._client.get(self._held(live)) or b"") == token:
                    self._client.delete(self._held(live))

    def _sweep(self, slot: str) -> None:
        """Remove the builds that nothing names any more."""
        with _answering():
            for trash in map(text, self._client.smembers(f"{slot}!trash")):
                if text(self._client.hget(f"{slot}#positions", BUILD) or slot) != trash:
                    batch: list[Any] = []
                    for key in self._client.scan_iter(f"{escaped(trash)}[:#]*", count=SWEPT_MAX):
                        if text(key) != f"{slot}#positions":
                            batch.append(key)
                        if len(batch) == SWEPT_MAX:
                            self._client.unlink(*batch)
                            batch = []
                    if batch:
                        self._client.unlink(*batch)
                self._client.srem(f"{slot}!trash", trash)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise Down(f"Redis: {type(error).__name__}: {error}") from error
