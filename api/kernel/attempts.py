"""How often something that can be guessed was tried: counters with a window, exact across processes, gone with a crash.

Each try is counted before it is known to be wrong, so that a hundred at once are a hundred; one that was right is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from api.kernel.problems import Problem, retry_after
from api.kernel.vault import Pool

# The keys are locked in one order, so that no two statements wait for each other.
CHARGE = """
INSERT INTO attempts AS a (key, count, until)
SELECT key, 1, now() + make_interval(secs => seconds) FROM unnest(%s::bytea[], %s::float8[]) AS q(key, seconds) ORDER BY key
ON CONFLICT (key) DO UPDATE SET count = CASE WHEN a.until <= now() THEN 1 ELSE least(a.count, 1000000) + 1 END,
    until = CASE WHEN a.until <= now() THEN EXCLUDED.until ELSE a.until END
RETURNING key, count, extract(epoch FROM until - now())::float8
"""
OLD_MAX = 1_000  # rows of windows that are over, deleted at a time


class Limit(NamedTuple):
    """So many tries in a window that begins with the first."""

    name: str
    tries_max: int
    window_s: float


class Tried(NamedTuple):
    """How often something was tried in its window; `wait_s`: until it may be tried again, 0 when it may be now."""

    times: int
    wait_s: float


class Attempts:
    """Counts tries. `what` is anything that is tried or tries: a digest of an address, a network, a code's owner."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def charge(self, tries: Sequence[tuple[Limit, str]]) -> list[Tried]:
        """Count one try each, in one round trip."""
        keys = [_key(limit, what) for limit, what in tries]
        async with self._pool.connection() as connection:
            rows = await connection.execute(CHARGE, (keys, [limit.window_s for limit, _ in tries]))
            found = {bytes(key): (count, wait_s) for key, count, wait_s in await rows.fetchall()}
        made = [(limit, *found[key]) for (limit, _), key in zip(tries, keys, strict=True)]
        return [Tried(count, max(wait_s, 1.0) if count > limit.tries_max else 0.0) for limit, count, wait_s in made]

    async def count(
        self, *tries: tuple[Limit, str], what: str = "too many tries: wait, or reset the password"
    ) -> list[int]:
        """Count a try at each of the limits, and answer how often each was tried. Raises the 429 problem when one of them was passed.

        The first is the try's own place, the others are shared: what is turned away at its place uses up nothing of theirs.
        """
        times = []
        for some in (tries[:1], tries[1:]):
            tried = await self.charge(some) if some else []
            if wait_s := max((one.wait_s for one in tried), default=0):
                raise Problem("too-many", what, headers=retry_after(int(wait_s) + 1))
            times += [one.times for one in tried]
        return times

    async def give_back(self, tries: Sequence[tuple[Limit, str]]) -> None:
        """Uncount one try each: it was right. Old windows go by the way."""
        keys = sorted(_key(limit, what) for limit, what in tries)
        async with self._pool.connection() as connection:
            await connection.execute(
                "UPDATE attempts SET count = count - 1 WHERE count > 0 AND key = ANY(SELECT key FROM attempts"
                " WHERE key = ANY(%s) ORDER BY key FOR UPDATE)",
                (keys,),
            )
            await connection.execute(
                "DELETE FROM attempts WHERE key = ANY(SELECT key FROM attempts WHERE until < now() LIMIT %s"
                " FOR UPDATE SKIP LOCKED)",
                (OLD_MAX,),
            )


def _key(limit: Limit, what: str) -> bytes:
    return sha256(f"{limit.name}\n{what}".encode()).digest()[:16]
