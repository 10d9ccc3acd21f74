"""Sagas, reactors and timers on real servers: through Kafka, several processes, kill -9, cut connections, poison."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from aggregates.kernel import Commands, Recorded, Store
from infra.children import tie
from infra.kafka import topics
from infra.settings import Settings
from projections.kernel.parking import Limits, TooManyParked
from streams import sagas
from streams.kernel import Reactor, Saga, follow, reacts
from streams.kernel.dlq import parked as waiting
from streams.kernel.migrate import migrate
from streams.relay import Relay
from streams.sagas import discover, retry, serve
from tests.kernel.agency import ME, boss, ended, judge, plan, set_up
from tests.kernel.connections import connected
from tests.kernel.desk import Desk, GivenBack, Held
from tests.kernel.journey import journey
from tests.kernel.servers import Kafka
from tests.kernel.told import logged
from tests.kernel.trip import Trip


@pytest.fixture
def quiet(postgres: str, kafka: Kafka, tmp_path: Path) -> Settings:
    """Tables and topics, and nobody who publishes."""
    settings = Settings(
        postgres=postgres,
        kafka=kafka.bootstrap,
        topic_prefix=kafka.prefix,
        namespace=kafka.prefix.rstrip("."),
        data=tmp_path,
    )
    set_up(settings)
    return settings


@contextmanager
def publishing(shop: Settings) -> Iterator[None]:
    stop = threading.Event()
    relay = threading.Thread(target=Relay(shop.postgres, shop.kafka, shop.topic_prefix).run, args=(stop,))
    relay.start()
    try:
        yield
    finally:
        stop.set()
        relay.join()


@pytest.fixture
def shop(quiet: Settings) -> Iterator[Settings]:
    """A relay runs for it."""
    with publishing(quiet):
        yield quiet


def run(shop: Settings, work: Callable[[Store], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store.open(shop.postgres) as store:
            await work(store)

    asyncio.run(main())


@asynccontextmanager
async def serving(
    shop: Settings, driven: Collection[Saga[Trip]] = (), reactors: Collection[Reactor] = ()
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(serve(shop, stop, driven, reactors))
    try:
        yield
    finally:
        stop.set()
        await task


def process(shop: Settings) -> subprocess.Popen[bytes]:
    given = {
        "TITAN_POSTGRES": shop.postgres,
        "TITAN_KAFKA": shop.kafka,
        "TITAN_TOPIC_PREFIX": shop.topic_prefix,
        "TITAN_NAMESPACE": shop.namespace,
        "TITAN_DATA": str(shop.data),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kernel.agency"],
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        preexec_fn=tie(),
    )


def asked_to_stop(one: subprocess.Popen[bytes]) -> int:
    """The exit code after SIGTERM, once it can hear it: the other may have done all while this one still began."""
    with one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"begun\n"
        one.send_signal(signal.SIGTERM)
        return one.wait(timeout=30)


async def until(true: Callable[[], bool], within_s: float = 30) -> None:
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def positions(shop: Settings) -> list[tuple[object, ...]]:
    with connected(shop.postgres) as connection:
        return connection.execute("SELECT * FROM follower_positions ORDER BY 1, 2, 3").fetchall()


def test_trips_go_to_their_ends_and_are_not_woken_again_by_a_restart(shop: Settings) -> None:
    calls: list[UUID] = []

    @reacts
    async def counting(r: Recorded[Held], commands: Commands) -> None:
        calls.append(r.event.id)

    async def work(store: Store) -> None:
        async with serving(shop, [journey], [boss, counting]):
            trips = await plan(store, 30)
            await ended(store, trips)
            await judge(store, trips)
            await until(lambda: len(calls) == 90)
        before, reached = len(calls), positions(shop)
        async with serving(shop, [journey], [boss, counting]):
            await ended(store, await plan(store, 1))
            await until(lambda: len(calls) == before + 3)
        assert {row[0] for row in reached} == {"saga.trip", "reactor.agency", "reactor.test_sagas"}

    run(shop, work)


@pytest.mark.slow
def test_killed_at_any_moment_each_effect_still_happens_once(shop: Settings) -> None:
    async def work(store: Store) -> None:
        choose = random.Random(7)
        running = [process(shop), process(shop)]
        trips: list[UUID] = []
        try:
            for _ in range(6):
                trips += await plan(store, 10)
                await asyncio.sleep(choose.uniform(0.3, 2.5))  # any moment
                with running.pop(0) as victim:
                    victim.kill()
                running.append(process(shop))
            await ended(store, trips, within_s=120)
            assert [asked_to_stop(one) for one in running] == [0, 0]
        finally:
            for one in running:
                one.kill()
        await judge(store, trips)

    run(shop, work)


def test_cut_connections_lose_nothing_and_double_nothing(shop: Settings) -> None:
    async def work(store: Store) -> None:
        trips = await plan(store, 20)
        async with serving(shop, [journey], [boss]):
            with psycopg.connect(shop.postgres, autocommit=True) as killer:
                for _ in range(10):
                    killer.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                    await asyncio.sleep(0.2)
            await follow.patiently("test", lambda: ended(store, trips))
        await follow.patiently("test", lambda: judge(store, trips))

    run(shop, work)


def test_a_reactor_never_sees_what_happened_before_it_was_first_started(shop: Settings) -> None:
    seen: list[UUID] = []

    @reacts
    async def watching(r: Recorded[Held | GivenBack], commands: Commands) -> None:
        seen.append(r.event.cause)

    async def work(store: Store) -> None:
        desk = (await store.commands(ME).open(Desk, 100)).id
        causes = [UUID(int=n) for n in range(30)]
        for cause in causes[:10]:
            await store.commands(ME).tell(desk, Desk.hold, cause)
        async with serving(shop, reactors=[watching]):
            await until(lambda: watermark(shop) == 11)
            for cause in causes[10:20]:
                await store.commands(ME).tell(desk, Desk.hold, cause)
            await until(lambda: len(seen) == 10)
        for cause in causes[20:]:
            await store.commands(ME).tell(desk, Desk.hold, cause)
        async with serving(shop, reactors=[watching]):
            await until(lambda: len(seen) == 20)
        assert seen == causes[10:]

    run(shop, work)


def watermark(shop: Settings) -> object:
    with connected(shop.postgres) as connection:
        row = connection.execute(
            "SELECT notification_id FROM follower_watermarks WHERE follower = 'reactor.test_sagas'"
        ).fetchone()
    return row and row[0]


@pytest.mark.parametrize("more", [4, 20, 100])  # the new log: shorter than where they were, about as long, longer
def test_a_topic_made_anew_is_read_from_its_beginning_and_nothing_is_handled_twice(quiet: Settings, more: int) -> None:
    seen: list[int] = []

    @reacts
    async def watching(r: Recorded[Held], commands: Commands) -> None:
        seen.append(r.event.cause.int)

    async def work(store: Store) -> None:
        opened = [await store.commands(ME).open_as(UUID(int=n), Desk, 100) for n in range(1, 9)]
        desks = [desk.id for desk in opened]  # the same in each run, so that they are always in the same partitions

        async def hold(*causes: int) -> None:
            for cause in causes:
                await store.commands(ME).tell(desks[cause % 8], Desk.hold, UUID(int=cause))

        async with serving(quiet, reactors=[watching]):
            await until(lambda: watermark(quiet) == 8)
            for causes in (range(20), range(20, 40)):  # the second time all is published again, so offsets will differ
                await hold(*causes)
                await asyncio.to_thread(publish_from, quiet, 0, "desk")
                with publishing(quiet):
                    await until(lambda: len(seen) == causes.stop)  # noqa: B023
        await asyncio.to_thread(make_anew, quiet, "desk")
        await hold(*range(40, 40 + more))
        with publishing(quiet):
            async with serving(quiet, reactors=[watching]):
                await until(lambda: len(seen) == 40 + more)
        assert sorted(seen) == list(range(40 + more))

    run(quiet, work)


def make_anew(shop: Settings, domain: str) -> None:
    admin = AdminClient({"bootstrap.servers": shop.kafka})
    admin.delete_topics([shop.topic(domain)])[shop.topic(domain)].result(30)
    deadline = time.monotonic() + 30
    while shop.topic(domain) in admin.list_topics(timeout=5).topics:
        assert time.monotonic() < deadline
    topics.create(shop, [domain])
    publish_from(shop, 0, domain)


def publish_from(shop: Settings, position: int, domain: str) -> None:
    with psycopg.connect(shop.postgres) as connection:
        connection.execute("UPDATE relay_positions SET position = %s WHERE domain = %s", (position, domain))


def test_poison_parks_its_aggregate_in_order_and_no_other(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "RETRY_S", (0.001, 0.01))
    seen: list[tuple[UUID, UUID]] = []
    poison = UUID(int=13)

    @reacts
    async def touchy(r: Recorded[Held], commands: Commands) -> None:
        if r.event.cause == poison:
            raise ZeroDivisionError("poison")
        seen.append((r.event.id, r.event.cause))

    async def work(store: Store) -> None:
        async with serving(shop, reactors=[touchy]):
            await until(lambda: watermark(shop) == 0)
            sick, well = [(await store.commands(ME).open(Desk, 100)).id for _ in range(2)]
            for cause in (UUID(int=1), poison, UUID(int=2), UUID(int=3)):
                for desk in (sick, well):
                    if (desk, cause) != (well, poison):
                        whose = replace(ME, correlation=f"trace-{cause.int}")
                        await store.commands(whose).tell(desk, Desk.hold, cause)
            await until(lambda: len(seen) == 4 and parked(shop) == 3)
            by_desk = {desk: [cause for one, cause in seen if one == desk] for desk in (sick, well)}
            assert by_desk == {sick: [UUID(int=1)], well: [UUID(int=1), UUID(int=2), UUID(int=3)]}
        async with serving(shop, reactors=[touchy]):
            await store.commands(ME).tell(sick, Desk.hold, UUID(int=4))
            await until(lambda: parked(shop) == 4)
        assert len(seen) == 4

    with logged() as lines:
        run(shop, work)
    tried = [line for line in lines() if ": attempt " in line["event"]]
    assert {line["correlation"] for line in tried} == {"trace-13"}
    told = [line["correlation"] for line in lines() if " is parked: " in line["event"]]
    assert told == ["trace-13", "trace-2", "trace-3", ME.correlation]


def test_what_is_parked_is_handled_in_order_once_the_cause_is_mended(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "RETRY_S", (0.001, 0.01))
    seen: list[UUID] = []
    mended = False

    @reacts
    async def mendable(r: Recorded[Held], commands: Commands) -> None:
        if not mended and r.event.cause in (UUID(int=1), UUID(int=3)):
            raise ZeroDivisionError("poison")
        seen.append(r.event.cause)

    async def work(store: Store) -> None:
        nonlocal mended
        async with serving(shop, reactors=[mendable]):
            await until(lambda: watermark(shop) == 0)
            desk = (await store.commands(ME).open(Desk, 100)).id
            for n in range(4):
                await store.commands(ME).tell(desk, Desk.hold, UUID(int=n))
            await until(lambda: parked(shop) == 3)
            [sequence] = {row.key: row for row in waiting(shop, "reactor.test_sagas")}.values()
            again = partial(retry, shop, sequence, [], [mendable])
            done, why = await asyncio.to_thread(again)
            assert (done, why) == (0, "ZeroDivisionError: poison")
            mended = True
            assert await asyncio.to_thread(again) == (3, "")
            await store.commands(ME).tell(desk, Desk.hold, UUID(int=4))
            await until(lambda: len(seen) == 5)
        assert seen == [UUID(int=n) for n in range(5)]
        assert parked(shop) == 0

    run(shop, work)


def test_events_after_the_migration_are_a_reactors_even_if_it_starts_later(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[UUID] = []

    @reacts
    async def late(r: Recorded[Held], commands: Commands) -> None:
        seen.append(r.event.cause)

    monkeypatch.setattr(sagas, "discover", lambda: ([], [late]))

    async def work(store: Store) -> None:
        desk = (await store.commands(ME).open(Desk, 100)).id
        await store.commands(ME).tell(desk, Desk.hold, UUID(int=1))
        await asyncio.to_thread(migrate, shop)
        await store.commands(ME).tell(desk, Desk.hold, UUID(int=2))
        await asyncio.to_thread(migrate, shop)
        async with serving(shop, reactors=[late]):
            await until(lambda: len(seen) == 1)
        assert seen == [UUID(int=2)]

    run(shop, work)


def parked(shop: Settings) -> object:
    with connected(shop.postgres) as connection:
        row = connection.execute("SELECT count(*) FROM parked WHERE processor = 'reactor.test_sagas'").fetchone()
    return row and row[0]


def test_too_much_poison_stops_the_process(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "RETRY_S", (0.001, 0.01))

    @reacts
    async def broken(r: Recorded[Held], commands: Commands) -> None:
        raise ZeroDivisionError("all of them")

    async def work(store: Store) -> None:
        task = asyncio.create_task(serve(shop, asyncio.Event(), [], [broken], limits=Limits(rows_max=3)))
        await until(lambda: watermark(shop) == 0)
        for desk in [(await store.commands(ME).open(Desk, 100)).id for _ in range(5)]:
            await store.commands(ME).tell(desk, Desk.hold, desk)
        with pytest.raises(ExceptionGroup) as group:
            await asyncio.wait_for(task, 60)
        assert group.group_contains(TooManyParked)

    run(shop, work)


def test_events_of_one_aggregate_are_handled_in_order_while_others_overtake(shop: Settings) -> None:
    seen: dict[UUID, list[int]] = {}
    slow = asyncio.Event()
    first: list[UUID] = []

    @reacts
    async def slowly(r: Recorded[Held], commands: Commands) -> None:
        if not first:
            first.append(r.event.id)
        if r.event.id == first[0]:
            await slow.wait()
        seen.setdefault(r.event.id, []).append(r.event.version)

    async def work(store: Store) -> None:
        async with serving(shop, reactors=[slowly]):
            await until(lambda: watermark(shop) == 0)
            desks = [(await store.commands(ME).open(Desk, 100)).id for _ in range(10)]
            for n in range(20):
                await asyncio.gather(*(store.commands(ME).tell(desk, Desk.hold, UUID(int=n)) for desk in desks))
            await until(lambda: sum(map(len, seen.values())) == 180)
            assert not any(row[3] for row in positions(shop)) or first[0] not in seen
            slow.set()
            await until(lambda: sum(map(len, seen.values())) == 200)
        assert all(versions == list(range(2, 22)) for versions in seen.values())

    run(shop, work)


def test_the_shops_own_sagas_and_reactors_are_well_formed() -> None:
    found, reactors = discover()
    assert "checkout" in {saga.name for saga in found}
    assert all(reactor.kinds for reactor in reactors)


def test_a_reactor_says_what_it_reacts_to() -> None:
    async def vague(r: Recorded, commands: Commands) -> None:  # type: ignore[type-arg]
        raise AssertionError

    with pytest.raises(TypeError, match="Recorded"):
        reacts(vague)
    assert boss.kinds[0].type == "desk.Asked"
