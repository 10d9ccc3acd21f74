"""A table in Redis against its shadow: every row is compared as it stands, and those that seem to differ again, each some of them
together with the positions in one Lua call, which is a moment that the shadow can be brought to. So nothing is held up for long."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, cast
from uuid import uuid4

import redis

from projections.kernel.redis import RedisTable, pairs, position_of, text
from replay.checks import Checked
from replay.checks.model import PAUSE_S, Found, Lane, Shadowed
from replay.log import ReplayError

ROWS_MAX = 100  # in one Lua call: it holds up every other client for as long as it takes
SUSPECTS_MAX = 2_000
HELD_MS = 5_000  # the live table is held still at most so long while rows are mended, whatever becomes of this process
TRIES_MAX = 20  # of a repair whose hold came to its end too early, or that meets another's

# KEYS: the positions. ARGV: the tag, then rows' suffixes. Answers with the positions and the rows of one moment.
LOOK = """
local tag, found = redis.call('HGET', KEYS[1], 'build') or ARGV[1], {redis.call('HGETALL', KEYS[1])}
for i = 2, #ARGV do found[i] = redis.call('HGETALL', tag .. ':' .. ARGV[i]) end
return found
"""
# KEYS: the positions. ARGV: the tag; the token of the hold; then for each row its suffix, the number of its fields and values, and
# these. Nothing is done unless the table is held still by this token.
MEND = """
local tag, at = redis.call('HGET', KEYS[1], 'build') or ARGV[1], 3
if redis.call('GET', ARGV[1] .. '!held') ~= ARGV[2] then return 'late' end
while at <= #ARGV do
  local row, count = tag .. ':' .. ARGV[at], tonumber(ARGV[at + 1])
  redis.call('DEL', row)
  for i = at + 2, at + 1 + count, 2 do redis.call('HSET', row, ARGV[i], ARGV[i + 1]) end
  at = at + 2 + count
end
redis.call('DEL', ARGV[1] .. '!held')
return 'mended'
"""
Fields = Mapping[Any, Any]


class RedisCheck:
    """`compare`, then `repair` what it found."""

    def __init__(self, its: Shadowed) -> None:
        self._its, self._space = its, its.of.namespace
        self._live, self._copy = cast(RedisTable, its.table), cast(RedisTable, its.shadow)
        self.found: list[Found] = []

    def compare(self) -> Checked:
        its, checked = self._its, self._its.checked()
        self.found, suspects = [], set[str]()
        with self._client() as client:
            if broken := client.hget(self._live.positions_key(self._space), "broken"):
                raise ReplayError(f"redis {its.table.name} is half written, rebuild it: {text(broken)}")
            its.caught(lambda: its.follow(its.live()))
            for mine, other in ((self._live, self._copy), (self._copy, self._live)):
                names = mine.suffixes(client, self._space)
                while some := list(islice(names, ROWS_MAX)):
                    checked.rows += len(some) if mine is self._live else 0
                    one, two = self._rows(client, mine, some)[0], self._rows(client, other, some)[0]
                    suspects |= {suffix for suffix in some if one[suffix] != two[suffix]}
                    if len(suspects) > SUSPECTS_MAX:
                        self._look(client, suspects)
                        suspects.clear()
            self._look(client, suspects)
        checked.count = len(self.found)
        checked.differences = its.differences(self.found) if self.found else []
        return checked

    def repair(self) -> None:
        """Make each row that differed what the shadow has, while the live worker is held still. Positions stay."""
        suffixes = [one.values for one in self.found]
        with self._client() as client:
            for some in (suffixes[at : at + ROWS_MAX] for at in range(0, len(suffixes), ROWS_MAX)):
                if not any(self._mended(client, some) for _ in range(TRIES_MAX)):
                    raise ReplayError(f"redis {self._live.name} can't be held still for long enough: try again")

    def _mended(self, client: Any, some: Sequence[str]) -> bool:
        tag, token = self._live.tag(self._space), uuid4().hex
        if not client.set(f"{tag}!held", token, nx=True, px=HELD_MS):
            time.sleep(PAUSE_S)  # a rebuilt table is being put in its place
            return False
        self._its.caught(lambda: self._moment(client, some))
        right, _ = self._rows(client, self._copy, some)
        words: list[Any] = [tag, token]
        for suffix in some:
            fields = [part for item in right[suffix].items() for part in item]
            words += [suffix, len(fields), *fields]
        return bool(text(client.eval(MEND, 1, self._live.positions_key(self._space), *words)) == "mended")

    def _look(self, client: Any, suspects: Collection[str]) -> None:
        """Add those that really differ."""
        ordered = sorted(suspects)
        for some in (ordered[at : at + ROWS_MAX] for at in range(0, len(ordered), ROWS_MAX)):
            told, _ = self._its.caught(lambda: self._moment(client, some))  # noqa: B023
            right, _ = self._rows(client, self._copy, some)
            known = {one.values for one in self.found}
            for suffix in some:
                if told[suffix] != right[suffix] and suffix not in known:
                    self.found.append(Found(self._key(suffix), self._why(suffix, told[suffix], right[suffix]), suffix))

    def _moment(self, client: Any, some: Sequence[str]) -> tuple[dict[str, Fields], dict[str, str]]:
        """Live rows, and the positions that they had; the shadow is brought to these. Raises Ahead."""
        rows, positions = self._rows(client, self._live, some)
        self._its.follow({lane: position_of(positions.get(_field(lane))) for lane in self._its.lanes})
        return rows, positions

    def _rows(self, client: Any, table: RedisTable, some: Sequence[str]) -> tuple[dict[str, Fields], dict[str, str]]:
        positions, *rows = client.eval(LOOK, 1, table.positions_key(self._space), table.tag(self._space), *some)
        told = {text(field): text(value) for field, value in pairs(positions).items()}
        return {suffix: pairs(flat) for suffix, flat in zip(some, rows, strict=True)}, told

    def _key(self, suffix: str) -> Any:
        try:
            return self._live.key_of(suffix)
        except ValueError:
            return suffix  # of no row of ours

    def _why(self, suffix: str, told: Fields, right: Fields) -> str:
        if not told:
            return "is missing"
        if not right:
            return "should not be there"
        fields = sorted({text(field) for field in told.keys() | right.keys()})
        mine, true = ({text(field): text(value) for field, value in one.items()} for one in (told, right))
        return "; ".join(
            f"{field} is {mine.get(field)!s:.200}, but its events come to {true.get(field)!s:.200}"
            for field in fields
            if mine.get(field) != true.get(field)
        )

    @contextmanager
    def _client(self) -> Iterator[Any]:
        try:
            with closing(
                redis.Redis.from_url(self._its.of.redis, socket_timeout=30, socket_connect_timeout=5)
            ) as client:
                yield client
        except redis.RedisError as error:
            raise ReplayError(f"Redis: {' '.join(str(error).split())}") from error


def _field(lane: Lane) -> str:
    return f"{lane[0]}:{lane[1]}"
