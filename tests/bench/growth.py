"""`growth`: what a command and a load cost with 10 thousand, 100 thousand and 1 million events stored, beside 10 thousand.

Databases side by side, filled with the same kind of log by binary COPY, are measured in turn, one operation each, so that
whatever else the machine does meets all alike. Each order gets one command, so none is kept in this process from the one before.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from hashlib import sha256
from random import Random
from statistics import median
from typing import NamedTuple
from uuid import UUID, uuid4

import psycopg
import uvloop
from psycopg import sql

from aggregates.kernel import Commands, Origin, Store, clock
from aggregates.kernel.migrate import migrate, names
from aggregates.kernel.wire import COLUMNS
from aggregates.order import Order, number_of
from tests.bench import Figure
from tests.bench.orders import SHIPMENT, SHIPPED, address, line, rows
from tests.kernel.servers import Stack, database

SIZES = (10_000, 100_000, 1_000_000)
WAVE_ORDERS = 100
AT_ONCE = 32
WARM = 20  # operations of each kind that don't count
TIMES = 1.2
DICE = Random(0)
EVENT_TYPES = ("int8", "uuid", "int4", "text", "bytea", "uuid", "timestamptz", "text", "uuid", "text")


def run(servers: Stack, quick: bool) -> list[Figure]:
    sizes, rounds = (SIZES[:2], 200) if quick else (SIZES, 1_000)
    with ExitStack() as stack:
        dsns = [stack.enter_context(database(servers)) for _ in sizes]
        orders = [fill(dsn, size) for dsn, size in zip(dsns, sizes, strict=True)]
        with psycopg.connect(dsns[0], autocommit=True) as connection:
            connection.execute("CHECKPOINT")  # not while it is measured
        costs = uvloop.run(_measure(dsns, orders, rounds))
    return [
        Figure(
            "growth", f"{what}, {size:,} events", 1_000 * ours, "ms", 1_000 * base, f"with {sizes[0]:,}", f"≤ {TIMES} ×",
            ours <= TIMES * base,
        )
        for what, (base, *others) in costs.items()
        for size, ours in zip(sizes[1:], others, strict=True)
    ]  # fmt: skip


def fill(dsn: str, events: int) -> list[UUID]:
    """A store with so many events of orders, with what their commands left beside them; those orders that are on their way."""
    migrate(dsn, ["order"])
    tables, versions = names("order"), dict[UUID, int]()
    with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        with cursor.copy(_copy("events", COLUMNS)) as copy:
            copy.set_types(EVENT_TYPES)
            for row in rows(events, SHIPPED, WAVE_ORDERS):
                copy.write_row(row)
                versions[row.originator_id] = row.originator_version
        with cursor.copy(_copy("claims", "scope, key, owner")) as copy:
            copy.set_types(("text", "text", "uuid"))
            for order in versions:
                copy.write_row(("number", number_of(order, clock.now()), order))
        with cursor.copy(
            _copy("commands", "command_id, fingerprint, originator_id, originator_version, notification_id")
        ) as copy:
            copy.set_types(("uuid", "bytea", "uuid", "int4", "int8"))
            for number, (order, version) in enumerate(versions.items(), start=1):
                for command in range(version - 1):  # the payment's has two events
                    copy.write_row((uuid4(), sha256(order.bytes).digest(), order, 1 + command, number))
        cursor.execute(sql.SQL("UPDATE log_heads SET last = %s WHERE domain = {domain}").format(**tables), (events,))
        cursor.execute(sql.SQL("VACUUM ANALYZE {events}, {claims}, {commands}").format(**tables))
    return [order for order, version in versions.items() if version == SHIPPED]


def _copy(table: str, columns: str) -> sql.Composed:
    return sql.SQL(f"COPY {{}} ({columns}) FROM STDIN (FORMAT binary)").format(names("order")[table])


class Shop(NamedTuple):
    """A filled store, and the orders in it that nobody has asked for yet."""

    store: Store
    commands: Commands
    untouched: list[UUID]


async def _measure(dsns: list[str], orders: list[list[UUID]], rounds: int) -> dict[str, list[float]]:
    """Median seconds of each operation in each database."""
    took = defaultdict[str, list[list[float]]](lambda: [[] for _ in dsns])
    async with AsyncExitStack() as stack:
        shops = []
        for dsn, found in zip(dsns, orders, strict=True):
            store = await stack.enter_async_context(Store.open(dsn))
            shops.append(Shop(store, store.commands(Origin("bench")), DICE.sample(found, len(found))))

        async def timed(what: str, operation: Callable[[Shop], Awaitable[object]], many: int = 1) -> None:
            for times, shop in zip(took[what], shops, strict=True):
                began = time.perf_counter()
                await operation(shop)
                times.append((time.perf_counter() - began) / many)

        for turn in range(WARM + rounds):
            if turn == WARM:
                took.clear()
            await timed("load an order", _load)
            await timed("a command on an order", _deliver)
            await timed("place an order", _place)
            if turn % AT_ONCE == 0:
                await timed(f"a command of {AT_ONCE} at once", _deliver_many, AT_ONCE)
    return {what: [median(times) for times in each] for what, each in took.items()}


async def _load(shop: Shop) -> object:
    return await shop.store.load(Order, DICE.choice(shop.untouched))


async def _deliver(shop: Shop) -> object:
    return await shop.commands.tell(shop.untouched.pop(), Order.deliver, SHIPMENT)


async def _deliver_many(shop: Shop) -> object:
    return await asyncio.gather(*(_deliver(shop) for _ in range(AT_ONCE)))


async def _place(shop: Shop) -> object:
    return await shop.commands.open(
        Order.place, uuid4(), "EUR", [line(DICE, sku) for sku in range(3)], address(), clock.now()
    )
