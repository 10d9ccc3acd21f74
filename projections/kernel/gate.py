"""The gate before a quota: one atomic Lua call says for several rows at once whether what is asked for is there.

The event store is the truth and never oversells by itself. The gate stands in front of it, so that a run on the last pieces
is turned away in Redis instead of in Postgres. It counts by two things: Redis' fold of the events (`on_hand`, `reserved` and
`holds` of a row), and entries of its own for commands on their way to the store, which are taken out by the projection of
their event in the Lua call that adds it to `reserved`, or by `cancel`, or by themselves after PENDING_S when a process died.

Its entries are of no build of the table (`!` behind the tag), so they outlive a rebuild: a shadow folds the same events, and what
is on its way at the switch arrives at the live table as ever.

Nothing of it needs to be kept: with no fold of a row (Redis is new, or lost its data) the gate says `unknown` and the store
decides. So it does for a cause that has ended lately, since a request that is repeated gets its first answer. A fold that
lags behind can let through too much, which the store refuses, or turn away too much: hence of those that it turns away one
is let through every PROBE_S, and if the store accepts it, the gate stands open for DOUBT_S.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from aggregates.kernel import Conflict, Invalid, NotFound, Refused
from aggregates.kernel.event import EPOCH
from projections.kernel.redis import RedisTable, text
from projections.kernel.tables import Change

MILLISECOND = timedelta(milliseconds=1)
PENDING_S = 5.0  # longer than a commit and its way to Redis take
PROBE_S = 0.1
DOUBT_S = 1.0
ENDED_KEPT_S = 600.0  # how long a repeated request for what has ended goes to the store, which knows its answer

# Entries of a row: a hash cause → amount with their sum under "", and a sorted set cause → when it ends (ms).
SETTLE = """
local function settle(base, suffix, cause)
  local entries, ends = base .. '!pending:' .. suffix, base .. '!ends:' .. suffix
  local amount = redis.call('HGET', entries, cause)
  if amount then
    redis.call('HDEL', entries, cause)
    redis.call('ZREM', ends, cause)
    redis.call('HINCRBY', entries, '', -tonumber(amount))
  end
end
"""
SETTLED = f"{SETTLE}\nsettle(base, string.sub(row, #tag + 2), (...))"
ENDED = f"""
{SETTLED}
local cause, ended_ms = ...
local time = redis.call('TIME')
local left_ms = ended_ms + {int(ENDED_KEPT_S * 1000)} - time[1] * 1000 - math.floor(time[2] / 1000)
if left_ms > 0 then redis.call('SET', tag .. '#ended:' .. cause, '', 'PX', left_ms) end
"""
# KEYS: the positions. ARGV: the tag, the cause, PENDING and PROBE in ms; then each row's suffix and amount.
RESERVE = f"""
{SETTLE}
local base, cause, pending_ms, probe_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local tag = redis.call('HGET', KEYS[1], 'build') or base
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('EXISTS', tag .. '#ended:' .. cause) == 1 then return {{'unknown', '', 0}} end
local wanted = {{}}
for i = 5, #ARGV, 2 do
  local suffix, amount = ARGV[i], tonumber(ARGV[i + 1])
  local row = redis.call('HMGET', tag .. ':' .. suffix, 'on_hand', 'reserved', 'holds:' .. cause)
  if not row[1] then return {{'unknown', '', 0}} end
  if not row[3] then
    local entries = base .. '!pending:' .. suffix
    for _, over in ipairs(redis.call('ZRANGEBYSCORE', base .. '!ends:' .. suffix, '-inf', now)) do settle(base, suffix, over) end
    local waiting = redis.call('HMGET', entries, '', cause)
    local free = row[1] - (row[2] or 0) - (waiting[1] or 0) + (waiting[2] or 0)
    if amount > free then
      if redis.call('EXISTS', base .. '!doubt') == 1 then return {{'unknown', '', 0}} end
      if redis.call('SET', base .. '!probe:' .. suffix, '', 'NX', 'PX', probe_ms) then return {{'probe', suffix, free}} end
      return {{'full', suffix, free}}
    end
    wanted[#wanted + 1] = {{suffix, amount}}
  end
end
for _, one in ipairs(wanted) do
  local suffix, amount = one[1], one[2]
  local entries, ends = base .. '!pending:' .. suffix, base .. '!ends:' .. suffix
  settle(base, suffix, cause)
  redis.call('HSET', entries, cause, amount)
  redis.call('HINCRBY', entries, '', amount)
  redis.call('ZADD', ends, now + pending_ms, cause)
  redis.call('PEXPIRE', entries, 2 * pending_ms)
  redis.call('PEXPIRE', ends, 2 * pending_ms)
end
return {{'open', '', 0}}
"""
# ARGV: the tag, the cause, the suffixes.
CANCEL = f"{SETTLE}\nfor i = 3, #ARGV do settle(ARGV[1], ARGV[i], ARGV[2]) end"

Verdict = Literal["open", "full", "probe", "unknown"]


@dataclass(frozen=True, slots=True)
class Answer:
    """`open`: it is there, and kept for this cause. `full`: it is not. `unknown` and `probe`: the store has to say."""

    verdict: Verdict
    short: str = ""  # the row that has too little, and how much is free there
    free: int = 0


class GateTable(RedisTable):
    """The fold that a gate counts by. Clauses use `add` for `on_hand`, and `hold`, `sold` and `freed` for reservations."""

    def __init__(self, name: str, /, *, key: str, **columns: Any) -> None:
        counted: dict[str, Any] = {"on_hand": int, "reserved": int, "holds": dict[str, int]}
        super().__init__(name, key=key, lua={"settle": SETTLED, "ended": ENDED}, **columns, **counted)

    def hold(self, key: Any, cause: UUID, amount: int) -> list[Change]:
        """The store has the reservation: what was on its way has arrived."""
        return [
            self.add(key, reserved=amount),
            self.set_item(key, "holds", str(cause), amount),
            self.call(key, "settle", cause),
        ]

    def freed(self, key: Any, cause: UUID, amount: int, at: datetime) -> list[Change]:
        """It ended, and its amount is free again."""
        return [
            self.add(key, reserved=-amount),
            self.drop_item(key, "holds", str(cause)),
            self.call(key, "ended", cause, (at - EPOCH) // MILLISECOND),
        ]

    def sold(self, key: Any, cause: UUID, amount: int, at: datetime) -> list[Change]:
        """It ended, and its amount is gone."""
        return [self.add(key, on_hand=-amount), *self.freed(key, cause, amount, at)]


class Gate:
    """The gate of one `GateTable`, by its name. `client` answers soon or raises: it needs a socket timeout."""

    def __init__(self, client: Redis, table: str, namespace: str) -> None:
        self._tag = f"{{{namespace}:{table}}}"
        self._client = client
        self._reserve, self._cancel = client.register_script(RESERVE), client.register_script(CANCEL)

    @asynccontextmanager
    async def passing(
        self, cause: UUID, amounts: Mapping[UUID, int], names: Mapping[UUID, str] | None = None
    ) -> AsyncIterator[None]:
        """Around the command that reserves in the event store: `async with gate.passing(order, {stock: 2}): …`.

        Raises `Refused` when there is too little, naming the row by `names`. What the store refuses is given back at once.
        Not for a command that only leads to a reservation: the store's answer to it says nothing about what is there.
        """
        answer = await self.ask(cause, amounts)
        if answer.verdict == "full":
            row = UUID(answer.short)
            name = (names or {}).get(row, answer.short)
            raise Refused(f"{amounts[row]} of {name} is more than the {max(answer.free, 0)} left")
        try:
            yield
        except (Refused, NotFound, Conflict, Invalid):
            await self.cancel(cause, amounts)
            raise
        if answer.verdict == "probe":
            await self.doubt()

    async def ask(self, cause: UUID, amounts: Mapping[UUID, int]) -> Answer:
        """All of it or nothing; asked again for the same cause it replaces what was asked before. Redis away: `unknown`."""
        arguments: list[str | int] = [self._tag, str(cause), int(PENDING_S * 1000), int(PROBE_S * 1000)]
        for row, amount in amounts.items():
            arguments += [str(row), amount]
        try:
            verdict, short, free = await self._reserve(keys=[f"{self._tag}#positions"], args=arguments)
        except (RedisError, OSError):
            return Answer("unknown")
        return Answer(cast(Verdict, text(verdict)), text(short), free)

    async def cancel(self, cause: UUID, rows: Iterable[UUID]) -> None:
        """Give back what the gate keeps for a cause that the store refused. Redis away: it ends by itself."""
        try:
            await self._cancel(keys=[f"{self._tag}#positions"], args=[self._tag, str(cause), *map(str, rows)])
        except (RedisError, OSError):
            return

    async def doubt(self) -> None:
        """The store had what the gate did not see: leave it to the store for a while."""
        try:
            await self._client.set(f"{self._tag}!doubt", "", px=int(DOUBT_S * 1000))
        except (RedisError, OSError):
            return
