"""Secrets and counted tries, on a real Postgres."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import Unavailable
from api.kernel.attempts import Attempts, Limit
from api.kernel.migrate import ATTEMPTS
from api.kernel.secrets import TABLE, UNNAMED_S_MAX, Secrets, forget
from api.kernel.vault import Pool

KEY = b"k" * 32
SLOW = Limit("slow", 3, 60.0)


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Pool]:
    async with AsyncConnectionPool(
        dsn, connection_class=psycopg.AsyncConnection, min_size=1, max_size=8, open=False, kwargs={"autocommit": True}
    ) as pool:
        async with pool.connection() as connection:
            await connection.execute(TABLE)
            await connection.execute(ATTEMPTS)
        yield pool


def run(dsn: str, work: Callable[[Pool], Awaitable[None]]) -> None:
    async def done() -> None:
        async with connected(dsn) as pool:
            await work(pool)

    asyncio.run(done())


def test_a_secret_is_its_subjects_and_its_kinds_and_sealed(postgres: str) -> None:
    async def work(pool: Pool) -> None:
        secrets, ada, bob = Secrets(pool, KEY), uuid4(), uuid4()
        id = await secrets.keep(ada, "password", b"hash")
        assert await secrets.reveal(ada, "password", id) == b"hash"
        assert await secrets.reveal(bob, "password", id) is None
        assert await secrets.reveal(ada, "totp", id) is None
        assert await secrets.reveal(ada, "password", uuid4()) is None
        with pytest.raises(Unavailable, match="another master key"):
            await Secrets(pool, b"x" * 32).reveal(ada, "password", id)
        async with pool.connection() as connection:
            [(sealed,)] = await (await connection.execute("SELECT sealed FROM secrets")).fetchall()
            assert b"hash" not in bytes(sealed)
            await connection.execute("UPDATE secrets SET kind = 'totp'")  # whoever writes to the table can't move it
        with pytest.raises(Unavailable):
            await secrets.reveal(ada, "totp", id)

    run(postgres, work)


def test_a_secret_is_used_once_however_many_try_at_once(postgres: str) -> None:
    async def work(pool: Pool) -> None:
        secrets = Secrets(pool, KEY)
        id = await secrets.keep(uuid4(), "code", b"")
        assert await secrets.last_use(id, "code") is None
        assert sorted(await asyncio.gather(*(secrets.use(id, "code") for _ in range(20)))) == [False] * 19 + [True]
        assert await secrets.use(id, "other", 9) is False
        assert await secrets.use(id, "code", 5) is True
        assert await secrets.use(id, "code", 4) is False
        last = await secrets.last_use(id, "code")
        assert last is not None and last[0] == 5 and 0 <= last[1] < 30

    run(postgres, work)


def test_only_what_no_event_names_and_is_old_is_tidied_away(postgres: str) -> None:
    async def work(pool: Pool) -> None:
        secrets, ada = Secrets(pool, KEY), uuid4()
        named, old, young, other = [await secrets.keep(ada, kind, b"x") for kind in ("a", "a", "a", "b")]
        async with pool.connection() as connection:
            await connection.execute(
                "UPDATE secrets SET kept_at = now() - make_interval(secs => %s) WHERE id <> %s",
                (UNNAMED_S_MAX + 1, young),
            )
        await secrets.tidy(ada, "a", [named])
        left = [one for one in (named, old, young) if await secrets.reveal(ada, "a", one)]
        assert left == [named, young]
        assert await secrets.reveal(ada, "b", other)
        await secrets.drop(named)
        assert await secrets.reveal(ada, "a", named) is None
        assert await forget(pool, [ada]) == 2  # the young one, too
        assert await secrets.reveal(ada, "b", other) is None

    run(postgres, work)


def test_a_proof_is_of_one_purpose_subject_and_intent() -> None:
    secrets = Secrets(None, KEY)  # type: ignore[arg-type]
    ada, intent = uuid4(), uuid4()
    proof = secrets.proof("verify", ada, intent)
    assert secrets.proven("verify", proof) == (ada, intent)
    assert secrets.proven("reset", proof) is None
    assert Secrets(None, b"x" * 32).proven("verify", proof) is None  # type: ignore[arg-type]
    for at in range(0, len(proof), 7):
        changed = proof[:at] + ("A" if proof[at] != "A" else "B") + proof[at + 1 :]
        assert secrets.proven("verify", changed) is None
    for wrong in ("", "x", proof[:-1], proof + "AAAA", "é" * 20):
        assert secrets.proven("verify", wrong) is None


def test_digests_of_two_uses_have_nothing_in_common() -> None:
    secrets = Secrets(None, os.urandom(32))  # type: ignore[arg-type]
    assert secrets.digest("a", b"xy") == secrets.digest("a", b"xy") != secrets.digest("b", b"xy")
    assert secrets.digest("a", b"x", b"y") != secrets.digest("a", b"xy") != secrets.digest("a", b"", b"xy")


def test_tries_are_counted_exactly_also_at_once(postgres: str) -> None:
    async def work(pool: Pool) -> None:
        attempts = Attempts(pool)
        tried = await asyncio.gather(*(attempts.charge([(SLOW, "ada"), (SLOW, f"{n}")]) for n in range(10)))
        assert sorted(mine.times for mine, _ in tried) == list(range(1, 11))
        assert sum(not mine.wait_s for mine, _ in tried) == SLOW.tries_max
        assert all(not other.wait_s for _, other in tried)
        [full] = await attempts.charge([(SLOW, "ada")])
        assert 50 < full.wait_s <= 60

    run(postgres, work)


def test_a_try_that_was_right_is_given_back_and_a_window_ends(postgres: str) -> None:
    async def work(pool: Pool) -> None:
        attempts = Attempts(pool)
        for _ in range(5):
            [one] = await attempts.charge([(SLOW, "ada")])
            assert (one.times, one.wait_s) == (1, 0)
            await attempts.give_back([(SLOW, "ada"), (SLOW, "never tried")])
        for _ in range(SLOW.tries_max + 1):
            [one] = await attempts.charge([(SLOW, "ada")])
        assert one.wait_s
        async with pool.connection() as connection:
            await connection.execute("UPDATE attempts SET until = now()")
        [one] = await attempts.charge([(SLOW, "ada")])
        assert (one.times, one.wait_s) == (1, 0)

    run(postgres, work)
