"""The Faust app as processes: killed, rebalanced and cut off from its servers, each cart is abandoned once a time it was left.

Shoppers come in the past, so that nothing has to be waited for: a `tick` in each partition moves its time to now.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from confluent_kafka import Producer
from psycopg import sql

from aggregates.cart import Cart
from aggregates.kernel import Origin, Store, Unavailable, clock
from aggregates.kernel.clock import new_id
from aggregates.kernel.partition import partition_of
from infra.children import Child
from infra.settings import Settings
from streams.kernel import dlq
from tests.kernel.connections import connected
from tests.kernel.pipeline import newest_by_partition, reached
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Stack, database, folder, topics
from tests.kernel.servers import settings_of as settings_on
from tests.kernel.topic import stored

WAIT_S = 90
LEFT_BEFORE = timedelta(hours=2)
READ = "SELECT partition, notification_id FROM processor_positions WHERE topic = 'cart'"


class Carts:
    """Shoppers of a platform of the test's own, and what became of their carts."""

    def __init__(self, platform: Platform) -> None:
        self.platform, self.settings = platform, platform.settings
        self.left: dict[UUID, int] = {}
        """How often each cart was left."""
        self._connection: psycopg.Connection[tuple[int]] | None = None  # kept: a new one costs more than what it asks

    def leave(self, many: int) -> None:
        """New carts, left hours ago."""
        self._shop(many, [])

    def touch(self, carts: list[UUID]) -> None:
        """Shoppers return, and leave again."""
        self._shop(0, carts)

    def _shop(self, new: int, old: list[UUID]) -> None:
        async def main() -> None:
            before = clock.set_clock(lambda: clock.wall() - LEFT_BEFORE)
            try:
                async with Store.open(self.settings.postgres) as store:
                    commands = store.commands(Origin("user:test"))

                    async def one(cart: UUID | None) -> UUID:
                        if cart is None:
                            cart = (await commands.open(Cart.take, uuid4(), "EUR", clock.now())).id
                        await commands.tell(cart, Cart.add, "MUG", uuid4(), "Mug", 1, 100, clock.now())
                        return cart

                    for cart in await asyncio.gather(*map(one, [*[None] * new, *old])):
                        self.left[cart] = self.left.get(cart, 0) + 1
                    clock.set_clock(clock.wall)
                    for partition in range(self.settings.partitions):  # the tick: somebody takes a cart now
                        id = new_id()
                        while partition_of(str(id).encode(), self.settings.partitions) != partition:
                            id = new_id()
                        await commands.open_as(id, Cart.take, uuid4(), "EUR", clock.now())
            finally:
                clock.set_clock(before)

        for attempt in range(5):
            try:
                return asyncio.run(main())
            except Unavailable:
                assert attempt < 4
        return None

    def count(self, query: str) -> int:
        for again in (True, False):
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self.settings.postgres, autocommit=True)
            try:
                row = self._connection.execute(sql.SQL(query)).fetchone()
                break
            except psycopg.OperationalError:  # it was cut off
                self._connection.close()
                assert again
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def raised(self) -> int:
        return self.count("SELECT count(*) FROM cart_events WHERE event_type = 'cart.Abandoned'")

    def all_raised(self) -> bool:
        return self.raised() >= sum(self.left.values())

    def wait(self, condition: Callable[[], object], what: str) -> None:
        try:
            wait_for(condition, what, WAIT_S)
        except AssertionError as error:
            logs = {name: self.platform.log(name)[-4000:] for name in self.platform.children}
            logs["stores"] = self._stores()
            raise AssertionError("\n".join([str(error), *(f"{name}: {log}" for name, log in logs.items())])) from error

    def _stores(self) -> str:
        """What became of carts that were not abandoned as often as they were left, and how far everybody has come."""
        happened = self._happened()
        lines = [
            f"{cart} was left {times} times: {' '.join(happened[cart])}"
            for cart, times in self.left.items()
            if happened[cart].count("Abandoned") != times
        ]
        with psycopg.connect(self.settings.postgres) as connection:
            for query in (
                "SELECT 'stored', last FROM log_heads WHERE domain = 'cart'",
                "SELECT 'published', position FROM relay_positions WHERE domain = 'cart'",
                "SELECT 'read', partition, notification_id, watermark FROM processor_positions WHERE topic = 'cart'",
                "SELECT 'due', key, partition, due FROM processor_states WHERE due IS NOT NULL",
            ):
                lines += [" ".join(map(str, row)) for row in connection.execute(query)]
        return "\n".join(lines)

    def _happened(self) -> dict[UUID, list[str]]:
        """The events of each cart, in their order."""
        happened: dict[UUID, list[str]] = {}
        for row in stored(self.settings.postgres, "cart"):
            happened.setdefault(row.originator_id, []).append(row.event_type.partition(".")[2])
        return happened

    def abandoned(self) -> list[UUID]:
        """Those that are. Whoever returns to another one before the worker reads that it was left has never left it."""
        return [cart for cart, events in self._happened().items() if cart in self.left and events[-1] == "Abandoned"]

    def check(self) -> None:
        """Once it has caught up: each was abandoned as often as it was left, and no timer is left over."""
        self.wait(self.all_raised, f"{sum(self.left.values())} abandonments, {self.raised()} there are")
        self.wait(self.caught_up, "all events are read")
        happened = self._happened()
        for cart, times in self.left.items():
            assert happened[cart].count("Abandoned") == times, happened[cart]
            assert happened[cart].count("Returned") == times - 1, happened[cart]
        assert self.count("SELECT count(*) FROM processor_states WHERE due IS NOT NULL") == 0
        assert self.count("SELECT count(*) FROM parked") == 0

    def caught_up(self) -> bool:
        with connected(self.settings.postgres) as connection:
            read = dict[int, int](connection.execute(READ).fetchall())
        return reached(newest_by_partition(self.settings, "cart", self.settings.partitions), read)


@contextmanager
def shop(settings: Settings) -> Iterator[Carts]:
    with Platform(settings) as platform:
        platform.start("relay")
        with closing(Carts(platform)) as carts:
            yield carts


def shares(carts: Carts, name: str) -> list[str]:
    """What a worker says whenever partitions have moved, all of its lives."""
    said = [line["event"] for line in carts.platform.lines(name)]
    return [words for words in said if words.startswith("abandonment: ") and "partitions" in words]


def working(carts: Carts, name: str, partitions: int, since: int = 0) -> bool:
    """Whether a worker was given so many partitions the last time that they moved, after it had told so of `since` moves."""
    told = shares(carts, name)[since:]
    return bool(told) and told[-1].endswith(f" {partitions} partitions")


def test_carts_are_abandoned_once_and_again_after_a_return(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlq, "settings", lambda: settings)
    with shop(settings) as carts:
        carts.leave(1)
        [late] = carts.left
        with psycopg.connect(settings.postgres) as connection:  # as if an earlier event of this cart had been poison
            connection.execute(
                "INSERT INTO parked_sequences VALUES ('processor.abandonment', 'cart', %s)", [str(late).encode()]
            )
        carts.platform.start("faust")
        carts.leave(20)
        carts.wait(
            lambda: carts.raised() == 20 and carts.count("SELECT count(*) FROM parked"),
            "all but that one are abandoned",
        )
        carts.wait(carts.caught_up, "its process has passed what is retried")
        carts.wait(lambda: dlq.main(["retry"]) == 0, "all of it is retried")
        carts.check()
        carts.touch(list(carts.left)[:10])
        carts.check()
        process = carts.platform.children["faust"].process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_cart_that_is_left_now_is_abandoned_when_all_is_quiet(settings: Settings) -> None:
    with shop(settings.model_copy(update={"abandoned_after_s": 0.5})) as carts:
        carts.platform.start("faust")
        carts.leave(0)
        began = datetime.now()
        carts.leave(1)
        carts.check()
        assert datetime.now() - began < timedelta(seconds=WAIT_S)


@pytest.mark.slow
def test_killed_at_any_moment(settings: Settings) -> None:
    """And begun anew it takes its forerunner's place at once, whose session lasts longer than anybody waits here."""
    dice = random.Random(7)
    with shop(settings.model_copy(update={"kafka_session_s": 300})) as carts:
        for _ in range(3):
            carts.platform.start("faust")
            if carts.left:
                carts.wait(carts.all_raised, "all that were left are abandoned")
                carts.touch(dice.sample(list(carts.left), 60))
            raised = carts.raised()
            carts.leave(60)
            carts.wait(lambda: carts.raised() > raised, "some of them are abandoned")  # noqa: B023
            time.sleep(dice.expovariate(20))
            carts.platform.kill("faust")
        carts.platform.start("faust")
        carts.check()


@pytest.mark.slow
def test_two_share_the_partitions_and_one_is_killed(settings: Settings) -> None:
    with shop(settings) as carts:
        carts.platform.table["other"] = carts.platform.table["faust"]._replace(name="other")
        carts.platform.start("faust", "other")
        carts.wait(lambda: working(carts, "faust", 2) and working(carts, "other", 2), "both have their share")
        carts.leave(50)
        carts.wait(lambda: carts.raised() > 0, "some are abandoned")
        carts.platform.kill("faust")
        carts.leave(50)
        carts.check()
        moves = len(shares(carts, "faust"))
        carts.platform.start("faust")  # and partitions move while events come
        while not working(carts, "faust", 2, since=moves):
            carts.touch(list(carts.left)[:20])
            carts.wait(carts.all_raised, "those who returned are abandoned again")
        carts.check()


@pytest.mark.slow
def test_a_database_that_cuts_every_connection(settings: Settings) -> None:
    with shop(settings) as carts:
        carts.platform.start("faust")
        for _ in range(8):
            carts.leave(20)
            with psycopg.connect(settings.postgres) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
        carts.check()
        assert carts.platform.children["faust"].pid is not None


@pytest.mark.slow
def test_told_to_stop_while_the_database_is_away(settings: Settings, stack: Stack) -> None:
    with shop(settings) as carts:
        carts.platform.start("faust")
        carts.leave(5)
        carts.check()
        name = settings.postgres.rpartition("/")[2]
        with psycopg.connect(stack["postgres"], autocommit=True) as connection:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            producer = Producer({"bootstrap.servers": settings.kafka})
            producer.produce(settings.topic("cart"), b"something comes", b"that is none of our events")
            assert producer.flush(10) == 0
            carts.wait(lambda: "waits for the database" in carts.platform.log("faust"), "it waits")
            process = carts.platform.children["faust"].process
            assert process is not None
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))


@pytest.mark.slow
def test_a_worker_that_stands_still_ends_and_begins_anew(settings: Settings) -> None:
    with shop(settings) as carts:
        faust = carts.platform.table["faust"]
        carts.platform.table["faust"] = faust._replace(arguments=("--stalled-s", "3"))
        carts.platform.start("faust")
        carts.leave(5)
        carts.check()
        process = carts.platform.children["faust"].process
        assert process is not None
        with psycopg.connect(settings.postgres) as connection:
            connection.execute("LOCK TABLE processor_positions")
            carts.leave(5)
            assert process.wait(WAIT_S) == 4
        assert "ALARM: abandonment does not go on" in carts.platform.log("faust")
        carts.platform.kill("faust")
        carts.platform.start("faust")
        carts.check()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["kafka", "postgres"])
def test_a_server_is_killed_and_comes_back(
    server: str, stack: Stack, redis: str, clickhouse: str, tmp_path: Path
) -> None:
    with folder() as data, closing(Stack(data)) as own, topics(own if server == "kafka" else stack) as kafka:
        with nullcontext(own["postgres"]) if server == "postgres" else database(stack) as postgres:
            with shop(settings_on(postgres, kafka, redis, clickhouse, tmp_path)) as carts:
                hurt(carts, own.children[server])


def hurt(carts: Carts, server: Child) -> None:
    """Kill a server while carts are being abandoned, start it again, and see that none is lost or doubled."""

    def recovered() -> bool:
        faust = carts.platform.children["faust"]
        if faust.pid is None:  # it gave up: the supervisor starts it again
            faust.stop()
            faust.start()
        return carts.all_raised()

    carts.platform.start("faust")
    for _ in range(2):
        raised = carts.raised()
        carts.leave(30)
        carts.wait(lambda: carts.raised() > raised, "some are abandoned")  # noqa: B023
        assert server.process is not None
        server.process.send_signal(signal.SIGQUIT if server.name == "postgres" else signal.SIGKILL)
        server.process.wait(30)
        server.stop()
        if server.name == "kafka":
            carts.touch(carts.abandoned()[:10])
        server.start()
        server.wait_ready()
        carts.leave(30)
        carts.wait(recovered, "all are abandoned")
    carts.check()
