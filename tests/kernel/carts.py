"""Carts in a real event store, their topic in memory, and hosts of a processor, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from aggregates.cart import Cart
from aggregates.kernel import Commands, Origin, Store, clock, wire
from aggregates.kernel.migrate import migrate as migrate_events
from aggregates.kernel.partition import partition_of
from aggregates.kernel.wire import Row
from infra.settings import Settings
from projections.kernel.migrate import migrate as migrate_parking
from projections.kernel.parking import PostgresParking
from projections.kernel.runner import Delivery
from streams.abandonment import Abandonment, Untouched
from streams.kernel.lanes import Log, Where
from streams.kernel.migrate import PROCESSORS, make
from streams.kernel.processor import Host, Processor
from tests.kernel.connections import connected
from tests.kernel.topic import stored

S = TypeVar("S")
T = TypeVar("T")
NOON = datetime(2031, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PRODUCT = uuid4()


class Topic(Log):
    """The records of one topic, and where its reader was told to go on."""

    def __init__(self, domain: str, partitions: int) -> None:
        self.domain = domain
        self.records: dict[Where, list[Delivery]] = {(domain, number): [] for number in range(partitions)}
        self.told: dict[Where, int] = {}
        self.sought = asyncio.Event()
        self.published = 0

    def publish(self, rows: Iterable[Row]) -> None:
        """As the relay does."""
        for row in rows:
            key = str(row.originator_id).encode()
            where = self.domain, partition_of(key, len(self.records))
            lane = self.records[where]
            lane.append(Delivery(*where, len(lane), key, row.state, wire.headers(row)))
            self.published = max(self.published, row.notification_id)

    async def peek(self, offsets: Mapping[Where, int]) -> Mapping[Where, tuple[int, int]]:
        found = {where: [one for one in self.records[where] if one.offset >= at] for where, at in offsets.items()}
        return {where: (lane[0].offset, lane[0].notification_id) for where, lane in found.items() if lane}

    async def seek(self, where: Where, offset: int) -> None:
        self.told[where] = offset
        self.sought.set()

    def end(self, where: Where) -> int | None:
        return self.records[where][-1].offset + 1 if self.records[where] else 0


class Shop:
    """`open` starts it. Shoppers come with `take` and `tell`, the processor's turn is `work`."""

    def __init__(
        self, dsn: str, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], store: Store, partitions: int
    ) -> None:
        self.dsn, self._pool, self._store, self.now = dsn, pool, store, NOON
        self.topic = Topic("cart", partitions)
        self.parking = PostgresParking(dsn)
        self.commands: Commands = store.commands(Origin("user:test"))
        self.kind: type[Abandonment] = Abandonment
        self.host = self.new_host()

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, partitions: int = 1) -> AsyncIterator[Shop]:
        """Fresh tables, and event times from the shop's clock."""
        migrate_events(dsn, ["cart"])
        with psycopg.connect(dsn, autocommit=True) as connection:
            make(connection, PROCESSORS)
        migrate_parking(Settings(postgres=dsn), ["postgres"], [])
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(Store.open(dsn))
            pool = AsyncConnectionPool[AsyncConnection[TupleRow]](dsn, min_size=1, max_size=4, open=False)
            await stack.enter_async_context(pool)
            shop = cls(dsn, pool, store, partitions)
            stack.callback(clock.set_clock, clock.set_clock(lambda: shop.now))
            stack.callback(shop.parking.close)
            await shop.assign()
            yield shop

    def new_host(self) -> Host[Untouched]:
        """As after a restart: it knows nothing but what is stored."""
        return self.host_of(self.kind(Settings(postgres=self.dsn, abandoned_after_s=HOUR.total_seconds())))

    def host_of(self, processor: Processor[S]) -> Host[S]:
        return Host(processor, self._pool, self._store, self.parking, self.topic, clock=lambda: self.now, idle_s=0)

    async def assign(self, host: Host[Any] | None = None) -> None:
        """Give a host all partitions."""
        self.topic.told |= await (host or self.host).assign(dict.fromkeys(self.topic.records, 0))

    async def restart(self) -> None:
        self.host = self.new_host()
        await self.assign()

    # Shoppers.

    async def take(self, sku: str = "MUG") -> UUID:
        """A cart with something in it."""
        opened = await self.commands.open(Cart.take, uuid4(), "EUR", self.now)
        await self.add(opened.id, sku)
        return opened.id

    async def add(self, cart: UUID, sku: str = "CUP") -> None:
        await self.tell(cart, Cart.add, sku, PRODUCT, sku.title(), 1, 100, self.now)

    async def tell(self, cart: UUID, command: Callable[..., None], *args: object) -> None:
        await self.commands.tell(cart, command, *args)

    # The processor.

    def publish(self) -> None:
        """The relay has caught up."""
        self.topic.publish(stored(self.dsn, "cart", self.topic.published))

    def coming(self) -> list[Delivery]:
        """What the host has not been given yet, one partition after another."""
        return [one for where, lane in self.topic.records.items() for one in lane[self.topic.told.get(where, 0) :]]

    async def feed(self, records: Sequence[Delivery], host: Host[Untouched] | None = None) -> None:
        """Hand these to the host. Where it then wants to be read from is in `topic.told`."""
        for record in records:
            self.topic.told[record.topic, record.partition] = record.offset + 1
        await (host or self.host).handle(records)

    async def work(self, later: timedelta = timedelta(0)) -> int:
        """Time passes, all is read, and what is due is fired; how many were."""
        self.now += later
        self.publish()
        await self.feed(self.coming())
        fired = await self.host.fire_due()
        self.publish()
        await self.feed(self.coming())
        return fired

    # What became of it.

    def happened(self, cart: UUID) -> list[str]:
        """The cart's events by name."""
        rows = [row for row in stored(self.dsn, "cart") if row.originator_id == cart]
        return [row.event_type.partition(".")[2] for row in rows]

    def count(self, query: str) -> int:
        with connected(self.dsn) as connection:
            row = connection.execute(sql.SQL(query)).fetchone()
        assert row is not None
        return int(row[0])


def in_shop(dsn: str, story: Callable[[Shop], Awaitable[T]], partitions: int = 1) -> T:
    """Run a story to its end."""

    async def main() -> T:
        async with Shop.open(dsn, partitions) as shop:
            return await story(shop)

    return asyncio.run(main())


async def cut_off(work: Awaitable[object], dice: Random, patience: float) -> bool:
    """Kill work at any of the places where it waits, after about so many milliseconds; whether it was killed before its end."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=dice.expovariate(1 / patience) / 1000)
    if not done:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    else:
        task.result()
    return not done
