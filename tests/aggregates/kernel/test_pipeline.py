"""What is sent to Postgres in one message arrives as psycopg itself would have sent it, and is one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from aggregates.kernel.pipeline import Statement, run

SAMPLES: dict[str, Sequence[Any]] = {
    "uuid": [UUID(int=0), None, UUID(int=2**128 - 1)],
    "int": [0, -(2**31), None, 2**31 - 1],
    "bigint": [0, -(2**63), None, 2**63 - 1],
    "text": ["", "a", None, "é\n'\"{},\\ 🛒"],
    "bytea": [b"", None, bytes(range(256))],
    "timestamptz": [
        datetime(1970, 1, 1, tzinfo=UTC),
        None,
        datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    ],
    "jsonb": ['{"a": [1, null, "é"]}', None, "[]"],
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_arrays_arrive_as_psycopg_would_have_sent_them(postgres: str, kind: str) -> None:
    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            statement = Statement.of(f"echo_{kind}", f"SELECT array_to_json(%(those)::{kind}[])::text")
            for those in (list(SAMPLES[kind]), [], [None], list(SAMPLES[kind])[:1] * 1_000):
                [result] = await run(connection, [(statement, {"those": those})])
                cursor = await connection.execute(f"SELECT array_to_json(%s::{kind}[])::text".encode(), [those])
                assert (result.get_value(0, 0) or b"").decode() == (await cursor.fetchone() or [None])[0]

    asyncio.run(work())


def test_what_is_run_together_is_stored_together_or_not_at_all(postgres: str) -> None:
    put = Statement.of("put", "INSERT INTO kept SELECT n FROM unnest(%(numbers)::int[]) AS n RETURNING n")
    divide = Statement.of("divide", "SELECT 1 / %(by)::int")

    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            await connection.execute("CREATE TABLE kept (n int)")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await run(connection, [(put, {"numbers": [1]}), (divide, {"by": 0})])
            assert await (await connection.execute("SELECT n FROM kept")).fetchall() == []
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            for _ in range(2):  # prepared by the first
                results = await run(connection, [(put, {"numbers": [2, 3]}), (divide, {"by": 1})])
                assert [result.ntuples for result in results] == [2, 1]
            assert await (await connection.execute("SELECT n FROM kept")).fetchall() == [(2,), (3,)] * 2

    asyncio.run(work())


def test_a_connection_that_is_lost_is_an_operational_error_and_no_standstill(postgres: str) -> None:
    leave = Statement.of("leave", "SELECT pg_terminate_backend(pg_backend_pid()), %(n)::int")

    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(run(connection, [(leave, {"n": 1})]), 30)

    asyncio.run(work())


def test_a_type_that_is_not_known_is_refused_at_once() -> None:
    with pytest.raises(KeyError, match="money"):
        Statement.of("rich", "SELECT %(much)::money")
