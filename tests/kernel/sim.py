"""A platform in one thread whose faults come from one seed: real event store, real sinks, a topic in memory.

Each turn of `Sim.run` lets one thing happen, chosen by the seed: clients give commands, the relay publishes, a worker takes a batch,
partitions move, and all of it with what goes wrong there: a commit whose answer is lost, a cut connection, a process that dies with its
commands unanswered, a relay that begins again at its stored position, a sink that commits and does not say so, a rebalance between
taking a batch and applying it, a worker that was frozen meanwhile and goes on. `calm` lets everything come to rest.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any
from unittest.mock import patch
from uuid import UUID

import psycopg
from psycopg import sql

from aggregates.kernel import Conflict, Origin, Receipt, Refused, Store, Unavailable, recorder, wire
from aggregates.kernel import committer as committing
from aggregates.kernel.migrate import migrate as migrate_events
from aggregates.kernel.migrate import names
from aggregates.kernel.partition import partition_of
from aggregates.kernel.recorder import Append, CommandRow, Connection
from aggregates.kernel.recorder import Outcome as Stored
from aggregates.kernel.wire import Row
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.migrate import migrate
from projections.kernel.parking import PostgresParking
from projections.kernel.runner import Batch, Delivery, Down, Fenced, Runner, Sink
from projections.kernel.sinks import sink_of
from tests.kernel.connections import connected
from tests.kernel.judge import Command, History, Read, judge_log, judge_reads, judge_store, judge_topic, last_versions
from tests.kernel.letters import DOMAIN, Letter, Way, letters, routes
from tests.kernel.topic import rows_in, stored

PROJECTION = PROJECTIONS["tests.kernel.letters"]
PARTITIONS = 3
LETTERS = 5
CLIENTS = 4
LANES = [(DOMAIN, partition) for partition in range(PARTITIONS)]


class Topic:
    """What Kafka keeps: records by partition, and how far the relay knows them to be acknowledged."""

    def __init__(self) -> None:
        self.lanes: list[list[Delivery]] = [[] for _ in range(PARTITIONS)]
        self.rows: list[list[Row]] = [[] for _ in range(PARTITIONS)]

    def append(self, row: Row) -> None:
        key = str(row.originator_id).encode()
        partition = partition_of(key, PARTITIONS)
        lane = self.lanes[partition]
        lane.append(Delivery(DOMAIN, partition, len(lane), key, row.state, wire.headers(row)))
        self.rows[partition].append(row)


class FaultySink:
    """A sink that is cut off before a batch, or after it."""

    def __init__(self, sink: Sink, dice: random.Random) -> None:
        self._sink, self._dice, self.calm, self.name = sink, dice, False, sink.name
        self.positions, self.settle, self.close = sink.positions, sink.settle, sink.close

    def apply(self, batch: Batch) -> None:
        roll = 1.0 if self.calm else self._dice.random()
        if roll < 0.1:
            raise Down("cut off before")
        self._sink.apply(batch)
        if roll < 0.25:
            raise Down("applied, and the answer was lost")


class Worker:
    """One process's consumer of one sink: where it reads, what it holds in its hands."""

    def __init__(self, settings: Settings, sink: str, dice: random.Random, topic: Topic) -> None:
        self.sink = FaultySink(sink_of(sink, settings), dice)
        self.parking = PostgresParking(settings.postgres)
        self.runner = Runner(self.sink, [PROJECTION], [DOMAIN], self.parking)
        self._topic, self._next = topic, dict[tuple[str, int], int]()
        self.held: list[Delivery] = []

    def own(self, lanes: Sequence[tuple[str, int]]) -> None:
        """What Kafka gives it from now on."""
        self.runner.release([lane for lane in self.runner.lanes if lane not in lanes])
        self._assign([lane for lane in lanes if lane not in self.runner.lanes])

    def _assign(self, lanes: Sequence[tuple[str, int]]) -> None:
        for lane, anchor in self.runner.assign(lanes).items():
            self._next[lane] = max(anchor.offset, 0)

    def take(self, most: int) -> None:
        """Fetch a batch."""
        for lane in self.runner.lanes:
            found = self._topic.lanes[lane[1]][self._next[lane] :][:most]
            self._next[lane] += len(found)
            self.held += found

    def handle(self) -> None:
        """Apply it, as `LaneConsumer` does: again after Down, from the stored positions after Fenced."""
        try:
            self.runner.handle(self.held)
        except Down:
            return
        except Fenced:
            self._assign(list(self.runner.lanes))
        self.held = []

    def close(self) -> None:
        self.sink.close()
        self.parking.close()


class Sim:
    """`async with Sim.open(settings, seed) as sim: await sim.run(turns); await sim.calm(); assert sim.judge() == []`."""

    def __init__(self, settings: Settings, seed: int, sinks: Sequence[str]) -> None:
        self.settings, self.seed = settings, seed
        self.dice = random.Random(f"faults {seed}")
        self.topic, self.history = Topic(), History(DOMAIN)
        self.calming = False
        self.stores: list[tuple[Store, AsyncExitStack]] = []
        self.workers = {name: [self._worker(name) for _ in range(2)] for name in sinks}
        self.ids = [UUID(int=self.dice.getrandbits(128), version=4) for _ in range(LETTERS)]
        self.relays = [0, 0]  # two that both believe to be elected: how far each has read
        self.acknowledged = 0
        self.faults = count()
        self._numbers = count(1)
        self._running: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, settings: Settings, seed: int, sinks: Sequence[str] = ("postgres", "redis", "clickhouse")
    ) -> AsyncIterator[Sim]:
        migrate_events(settings.postgres, [DOMAIN])
        migrate(settings, sinks, [PROJECTION])
        sim = cls(settings, seed, sinks)
        real = recorder.append

        async def faulty(connection: Connection, batch: Sequence[Append]) -> list[Stored]:
            return await sim._append(real, connection, batch)

        with patch.object(recorder, "append", faulty), patch.object(committing, "RETRY_S", (0.001, 0.01)):
            try:
                for _ in range(2):
                    await sim._start()
                sim._rebalance()
                yield sim
            finally:
                sim.calming = True
                for task in sim._running:
                    task.cancel()
                for _, exits in sim.stores:
                    await exits.aclose()
                for workers in sim.workers.values():
                    for worker in workers:
                        worker.close()

    # What happens.

    async def run(self, turns: int) -> None:
        for _ in range(turns):
            happen = self.dice.choices(
                [self._command, self._relay, self._work, self._look, self._move, self._crash], [6, 3, 5, 3, 1, 0.3]
            )
            await happen[0]()

    async def calm(self) -> None:
        """No more faults; until everything has arrived everywhere."""
        self.calming = True
        if self._running:
            await asyncio.wait(self._running)
        for workers in self.workers.values():
            for worker in workers:
                worker.sink.calm = True
        self.relays = [self.acknowledged, self.acknowledged]
        self._publish(0, 10_000)
        self._rebalance()
        for workers in self.workers.values():
            for _ in range(10):
                for worker in workers:
                    worker.handle()  # what it held since before
                    worker.take(10_000)
                    worker.handle()

    def judge(self) -> list[str]:
        """All faults of the history."""
        rows = self._log()
        with connected(self.settings.postgres) as connection:
            query = "SELECT command_id, fingerprint, originator_id, originator_version, notification_id FROM letter_commands"
            kept = {row[0]: CommandRow(*row) for row in connection.execute(query).fetchall()}
        last = last_versions(rows)
        return [
            *judge_log(rows),
            *judge_store(self.history, rows, kept, {f"user:client {n}" for n in range(CLIENTS)}),
            *judge_topic(rows, self.topic.rows),
            *judge_reads(self.history, last),
            *self._views(rows),
        ]

    # Clients.

    async def _start(self) -> None:
        exits = AsyncExitStack()
        self.stores.append((await exits.enter_async_context(Store.open(self.settings.postgres, readers=2)), exits))

    async def _command(self) -> None:
        """Several clients at once, some of whom don't wait for the answer."""
        for _ in range(self.dice.randrange(1, 6)):
            store, client, id = self.dice.choice(self.stores)[0], self._client(), self.dice.choice(self.ids)
            known = self.dice.random() < 0.7
            command = self.history.begin(client, UUID(int=self.dice.getrandbits(128), version=4), id, known)
            task = asyncio.create_task(self._give(store, command, self._chosen(store, command)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if self._running:
            await asyncio.wait(self._running, timeout=self.dice.choice([0.0, 0.005, 2.0]))
        if self.dice.random() < 0.1 and self._running:  # a client that goes away
            next(self.faults)
            self.dice.choice(sorted(self._running, key=id_of)).cancel()

    def _chosen(self, store: Store, command: Command) -> Callable[[], Awaitable[Receipt]]:
        origin = Origin(f"user:{command.client}", causation=command.id)
        if command.kept:
            origin = replace(origin, command=command.id, fingerprint=command.id.bytes)
        commands = store.commands(origin)
        way, amount = self.dice.choice(list(Way)), self.dice.randrange(1, 100)
        calls: list[Callable[[], Awaitable[Receipt]]] = [
            lambda: commands.open_as(command.aggregate, Letter, command.aggregate, amount, False),
            lambda: commands.tell(command.aggregate, Letter.frank, amount, self.dice.choice(["EUR", "JPY"])),
            lambda: commands.tell(command.aggregate, Letter.send, way),
            lambda: commands.tell(command.aggregate, Letter.turn_back, None),
        ]
        return self.dice.choices(calls, [1, 4, 2, 2])[0]

    async def _give(self, store: Store, command: Command, call: Callable[[], Awaitable[Receipt]]) -> None:
        try:
            for again in range(3):
                try:
                    receipt = await call()
                    break
                except Unavailable:
                    if again == 2 or not command.kept or store not in [one for one, _ in self.stores]:
                        return  # nobody knows
        except (Refused, Conflict, LookupError):
            self.history.end(command, "no")
            return
        _, _, position = receipt.position.partition(":")
        self.history.end(command, "ok", receipt.version, int(position or 0))

    def _client(self) -> str:
        return f"client {self.dice.randrange(CLIENTS)}"

    async def _crash(self) -> None:
        """A process dies with everything that it had not answered, and starts again."""
        next(self.faults)
        store, exits = self.stores.pop(0)
        committer = store.database(DOMAIN).committer
        for task in (committer._task, committer._watch):
            assert task is not None
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        committer._queue.clear()
        if committer._connection is not None:
            await committer._connection.close()
        for task in list(self._running):
            task.cancel()
        await exits.aclose()
        await self._start()

    async def _append(self, real: Any, connection: Connection, batch: Sequence[Append]) -> list[Stored]:
        roll = 1.0 if self.calming else self.dice.random()
        if roll < 0.08:
            next(self.faults)
            raise psycopg.OperationalError("cut off before the commit")
        outcomes: list[Stored] = await real(connection, batch)
        if roll < 0.25:
            next(self.faults)
            raise psycopg.OperationalError("committed, and the answer was lost")
        return outcomes

    # The relays.

    async def _relay(self) -> None:
        relay = self.dice.randrange(2)
        if self.dice.random() < 0.2:  # it begins again where it knows to have been acknowledged
            next(self.faults)
            self.relays[relay] = self.acknowledged
        self._publish(relay, self.dice.randrange(1, 12))
        if self.dice.random() < 0.5:  # else the acknowledgement is lost
            self.acknowledged = max(self.acknowledged, self.relays[relay])

    def _publish(self, relay: int, most: int) -> None:
        for row in stored(self.settings.postgres, DOMAIN, self.relays[relay])[:most]:
            self.topic.append(row)
            self.relays[relay] = row.notification_id

    # The workers.

    def _worker(self, sink: str) -> Worker:
        return Worker(self.settings, sink, self.dice, self.topic)

    async def _work(self) -> None:
        for workers in self.workers.values():
            worker = self.dice.choice(workers)
            worker.take(self.dice.randrange(1, 8))
            if self.dice.random() < 0.1:
                next(self.faults)
                self._rebalance()  # in the middle of it
            if self.dice.random() < 0.9:  # else it is frozen with the batch in its hands
                worker.handle()

    async def _move(self) -> None:
        next(self.faults)
        self._rebalance()
        if self.dice.random() < 0.3:  # a worker dies, and another one starts
            workers = self.dice.choice(list(self.workers.values()))
            dead = workers.pop(0)
            dead.close()
            workers.append(self._worker(dead.sink.name))
            self._rebalance()

    def _rebalance(self) -> None:
        """Partitions change hands. With some luck a worker doesn't hear of it, and goes on as if they were its own."""
        for workers in self.workers.values():
            owners = [self.dice.randrange(len(workers)) for _ in LANES]
            for number, worker in enumerate(workers):
                lanes = [lane for lane, owner in zip(LANES, owners, strict=True) if owner == number]
                if self.calming or self.dice.random() < 0.8:
                    worker.own(lanes)
                else:
                    worker.own(sorted({*worker.runner.lanes, *lanes}))

    # Readers.

    async def _look(self) -> None:
        """As the API answers `?after=`: the position first, then the row."""
        client, id = self._client(), self.dice.choice(self.ids)
        mine = [c for c in self.history.commands if c.outcome == "ok" and c.position and c.aggregate == id]
        after = self.dice.choice(mine).position if mine and self.dice.random() < 0.7 else 0
        if "postgres" not in self.workers:
            return
        partition = partition_of(str(id).encode(), PARTITIONS)
        with connected(self.settings.postgres) as connection:
            seen = connection.execute(
                "SELECT notification_id FROM projection_positions WHERE (projection, topic, partition) = ('letters', %s, %s)",
                (DOMAIN, partition),
            ).fetchone()
            if after > (seen[0] if seen else 0):
                return  # it would be answered "not yet"
            row = connection.execute("SELECT version FROM letters WHERE id = %s", (id,)).fetchone()
        self.history.reads.append(Read(client, "letters", id, int(row[0]) if row else 0, after))

    # The end.

    def _log(self) -> list[Row]:
        query = sql.SQL(f"SELECT {wire.COLUMNS} FROM {{events}} ORDER BY notification_id").format(**names(DOMAIN))
        with connected(self.settings.postgres) as connection:
            return [Row(*row) for row in connection.execute(query).fetchall()]

    def _views(self, rows: Sequence[Row]) -> list[str]:
        """Each table against the fold, by hand."""
        in_postgres: dict[Any, dict[str, Any]] = {}
        in_redis: dict[Any, dict[str, Any]] = {}
        franked: list[tuple[UUID, int, str]] = []
        for one in (wire.recorded(DOMAIN, row) for row in rows):
            event: Any = one.event
            key = (event.id,)
            match type(event).__name__:
                case "Written":
                    fields = {"sender": event.sender, "length": event.length, "urgent": event.urgent, "postage": 0}
                    in_postgres[key] = {"id": event.id, **fields}
                    in_redis[key] = {"id": event.id, "sent": 0, "last": None, "paid": {}}
                case "Franked":
                    in_postgres[key]["postage"] += event.postage
                    paid = in_redis[key]["paid"]
                    paid[event.currency] = paid.get(event.currency, 0) + event.postage
                    franked.append((event.id, event.postage, event.currency))
                case "Sent":
                    in_redis[key] |= {"sent": in_redis[key]["sent"] + 1, "last": event.way}
            in_postgres[key]["version"] = event.version
        wrong = []
        if "postgres" in self.workers and rows_in(self.settings, letters) != in_postgres:
            wrong.append(f"Postgres has {rows_in(self.settings, letters)}, not {in_postgres}")
        if "redis" in self.workers and rows_in(self.settings, routes) != in_redis:
            wrong.append(f"Redis has {rows_in(self.settings, routes)}, not {in_redis}")
        if "clickhouse" in self.workers:
            from projections.kernel.clickhouse import client_of

            client = client_of(self.settings.clickhouse)
            found = client.query("SELECT letter, postage, currency FROM postages FINAL").result_rows
            client.close()
            if sorted(map(tuple, found), key=repr) != sorted(franked, key=repr):
                wrong.append(f"ClickHouse has {len(found)} rows, not {len(franked)}")
        with connected(self.settings.postgres) as connection:
            parked = connection.execute("SELECT processor, notification_id, error FROM parked").fetchall()
        return [*wrong, *[f"parked: {row}" for row in parked]]


def id_of(task: asyncio.Task[None]) -> str:
    return task.get_name()
