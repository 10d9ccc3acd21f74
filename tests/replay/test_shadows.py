"""Shadows in Redis and ClickHouse take the live tables' place: whatever is killed, frozen or late, nothing is lost, doubled or half seen."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from typing import Any
from uuid import uuid4

import pytest
import redis as redis_client
from redis.asyncio import Redis

from infra.settings import Settings
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.gate import Gate
from projections.kernel.redis_sink import RedisSink
from projections.kernel.runner import Delivery, Down, Fenced, Position, Runner
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from replay import projection
from replay.log import ReplayError
from replay.redis import RedisShadows
from replay.shadow import Reach, Shadows, shadow_of, shadows_of
from tests.projections.kernel.live import make_topic, publish, until, workers
from tests.projections.kernel.purse import DOMAIN, Filled, Log, Noted, fills, pockets
from tests.projections.kernel.stores import PURSES, Store, feed, store
from tests.projections.kernel.test_gate import fold_by, slots
from tests.replay.test_rebuild import traffic

TABLES: dict[str, AnyTable] = {"redis": pockets, "clickhouse": fills}
LANES = [(DOMAIN, 0), (DOMAIN, 1)]


class Rebuild:
    """The steps of a rebuild, one at a time and without Kafka."""

    def __init__(self, to: Store, log: Log) -> None:
        self.to, self.log = to, log
        self.live = TABLES[to.name]
        self.shadow = shadow_of(self.live)
        self.shadows: Shadows = shadows_of(to.name, to.settings)

    def load(self, deliveries: list[Delivery]) -> None:
        """As a loader process does it, from where the shadow is."""
        loader = self.shadows.loader()
        runner = Runner(loader, [PURSES], [DOMAIN], targets={self.live: self.shadow})
        runner.assign(LANES)
        for at in range(0, len(deliveries), 70):
            runner.handle(deliveries[at : at + 70])
            if at % 140 == 0:
                loader.checkpoint()
        loader.checkpoint()

    def switch(self, deliveries: list[Delivery] | None = None) -> None:
        """With all that the log holds caught up with, or so much of it."""
        own = sink_of(self.to.name, self.to.settings)
        runner = Runner(own, [PURSES], [DOMAIN], targets={self.live: self.shadow})
        runner.assign(LANES)
        self.shadows.finish(self.shadow)
        self.shadows.switch(
            {self.live: self.shadow},
            lambda reach: runner.handle(self.log.deliveries() if deliveries is None else deliveries),
        )
        own.close()


@pytest.fixture(params=sorted(TABLES))
def to(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr("replay.clickhouse.spans", lambda settings, domains: [])  # there is no topic here
    with store(request.param, settings) as made:
        yield made


def history(events: int = 300) -> Log:
    log = Log()
    traffic(log, events, 12)
    return log


def damaged(to: Store) -> None:
    """Take something away by hand, so that what is rebuilt can be told from what was there."""
    if to.name == "clickhouse":
        to.click.command("DELETE FROM fills WHERE amount > 200")
        return
    with redis_client.Redis.from_url(to.settings.redis) as client:
        for key in client.scan_iter(f"{pockets.tag(to.settings.namespace)}:*"):
            client.hset(key, "balance", -1)


def test_a_shadow_takes_the_live_tables_place_and_the_worker_reads_on_from_it(to: Store) -> None:
    log = history()
    deliveries = log.deliveries()
    live = to.runner(log)
    live.handle(deliveries[:200])
    damaged(to)
    rebuild = Rebuild(to, log)
    rebuild.shadows.make(rebuild.shadow)
    rebuild.load(deliveries[:150])
    assert rebuild.shadows.names() == [rebuild.shadow.name]
    rebuild.switch(deliveries[:250])
    assert rebuild.shadows.names() == []
    with pytest.raises(Fenced):
        live.handle(deliveries[200:300])
    anchors = live.assign(LANES)
    last = {d.partition: Position(d.notification_id, d.offset) for d in deliveries[:250]}
    assert anchors == {(DOMAIN, partition): position for partition, position in last.items()}
    feed(live, deliveries, repeat(90))
    assert to.holds() == to.should_hold(log)
    if to.name == "clickhouse":  # views look for their table by name
        told = dict(to.click.query("SELECT purse, amount FROM filled").result_rows)
        assert told == {purse: amount for purse, (amount, _) in to.should_hold(log).items()}


def test_a_load_that_is_killed_goes_on_from_its_last_checkpoint(to: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = history()
    deliveries = log.deliveries()
    to.runner(log).handle(deliveries)
    damaged(to)
    rebuild = Rebuild(to, log)
    rebuild.shadows.make(rebuild.shadow)
    rebuild.load(deliveries[:120])
    gathering = rebuild.shadows.loader()  # and this one dies with what it has gathered
    runner = Runner(gathering, [PURSES], [DOMAIN], targets={rebuild.live: rebuild.shadow})
    runner.assign(LANES)
    runner.handle(deliveries[:150])
    if to.name == "clickhouse":  # or between the rows and the positions
        with monkeypatch.context() as patch:
            patch.setattr(ClickHouseSink, "store", _killed)
            with pytest.raises(Down):
                rebuild.load(deliveries[:180])
    assert rebuild.shadows.there(rebuild.shadow)
    rebuild.load(deliveries)
    rebuild.switch()
    assert to.holds() == to.should_hold(log)
    if to.name == "clickhouse":
        assert to.raw_rows() == sum(isinstance(one.event, Filled) for one in log.events())


def _killed(*_: object) -> None:
    raise Down("killed here")


def test_two_loaders_of_one_lane_do_not_double_anything(to: Store) -> None:
    log = history()
    rebuild = Rebuild(to, log)
    rebuild.shadows.make(rebuild.shadow)
    loaders = [rebuild.shadows.loader() for _ in range(2)]
    runners = [Runner(one, [PURSES], [DOMAIN], targets={rebuild.live: rebuild.shadow}) for one in loaders]
    for runner in runners:
        runner.assign(LANES)
    runners[0].handle(log.deliveries()[:100])
    loaders[0].checkpoint()

    def second() -> None:
        runners[1].handle(log.deliveries()[:100])
        loaders[1].checkpoint()

    with pytest.raises(Fenced):
        second()
    rebuild.load(log.deliveries())
    rebuild.switch()
    assert to.holds() == to.should_hold(log)


def test_an_insert_that_is_on_its_way_at_the_moment_of_the_switch(to: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was frozen behind its look at the positions writes into the table of before or is refused, nothing else."""
    log = history()
    deliveries = log.deliveries()
    live = to.runner(log)
    live.handle(deliveries[:250])
    rebuild = Rebuild(to, log)
    rebuild.shadows.make(rebuild.shadow)
    rebuild.load(deliveries[:100])  # the shadow is behind: were the rows taken, those between would be missing for ever
    slow = "insert" if to.name == "clickhouse" else "call"
    thaw = getattr(live.sink, slow)

    def frozen(*args: Any) -> Any:
        rebuild.switch(deliveries[:100] if to.name == "clickhouse" else deliveries)
        return thaw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(live.sink, slow, frozen)
        with pytest.raises(Fenced):
            live.handle(deliveries[250:])
    live.assign(LANES)
    feed(live, deliveries, repeat(60))
    assert to.holds() == to.should_hold(log)


def test_a_live_table_that_is_held_still_waits_and_goes_on_if_the_rebuild_dies(
    to: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = history()
    live = to.runner(log)
    live.handle(log.deliveries()[:200])
    rebuild = Rebuild(to, log)
    rebuild.shadows.make(rebuild.shadow)
    rebuild.load(log.deliveries())

    def dies(reach: Reach) -> None:
        with pytest.raises(Down, match="being switched"):
            live.handle(log.deliveries())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild.shadows.switch({rebuild.live: rebuild.shadow}, dies)
    live.handle(log.deliveries())
    assert to.holds() == to.should_hold(log)
    monkeypatch.setattr(f"replay.{to.name}.HELD_MS", 1)  # over before anything is caught up with
    monkeypatch.setattr("replay.redis.SWITCHES_MAX", 2)

    def slow(reach: Reach) -> None:
        log.add(1, Filled, amount=7)
        while True:
            with suppress(Down):
                live.handle(log.deliveries())
                return

    with pytest.raises(Down, match="nothing was switched"):
        rebuild.shadows.switch({rebuild.live: rebuild.shadow}, slow)
    assert to.holds() == to.should_hold(log)


def test_what_an_exchange_left_behind_is_no_shadow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the exchange and the end, a rebuild must not put the old table back."""
    monkeypatch.setattr("replay.clickhouse.spans", lambda settings, domains: [])
    with store("clickhouse", settings) as to:
        log = history()
        to.runner(log).handle(log.deliveries())
        rebuild = Rebuild(to, log)
        rebuild.shadows.make(rebuild.shadow)
        rebuild.load(log.deliveries())
        monkeypatch.setattr(rebuild.shadows, "drop", _killed)
        with pytest.raises(Down):
            rebuild.switch()
        monkeypatch.undo()
        assert rebuild.shadows.names() == ["fills__rebuild"]
        assert not rebuild.shadows.there(rebuild.shadow)
        rebuild.shadows.drop("fills__rebuild")
        assert to.holds() == to.should_hold(log)


def test_redis_keeps_nothing_of_a_build_that_is_gone(settings: Settings) -> None:
    with store("redis", settings) as to, redis_client.Redis.from_url(settings.redis) as client:
        log = history()
        log.add(1, Noted, note="a", text="rings a bell, too")
        to.runner(log).handle(log.deliveries())
        first = client.dbsize()
        for _ in range(2):
            rebuild = Rebuild(to, log)
            rebuild.shadows.make(rebuild.shadow)
            rebuild.load(log.deliveries()[:100])
            rebuild.shadows.make(rebuild.shadow)  # abandoned, and begun anew
            rebuild.load(log.deliveries())
            rebuild.switch()
        assert to.holds() == to.should_hold(log)
        assert client.dbsize() == first + 1  # the number of builds
        assert client.exists(f"{pockets.tag(settings.namespace)}~4#bells")


def test_a_redis_that_is_lost_during_a_rebuild_is_no_shadow(settings: Settings) -> None:
    with store("redis", settings) as to, redis_client.Redis.from_url(settings.redis) as client:
        log = history()
        rebuild = Rebuild(to, log)
        rebuild.shadows.make(rebuild.shadow)
        rebuild.load(log.deliveries()[:100])
        client.flushdb()
        assert not rebuild.shadows.there(rebuild.shadow)
        with pytest.raises(ReplayError, match="gone"):
            rebuild.switch(log.deliveries()[:50])


def test_what_a_gate_keeps_for_commands_on_their_way_outlives_a_switch(settings: Settings) -> None:
    """One piece is asked for before the switch, and its event comes after it: it is held all the time, and once."""
    row, cause = uuid4(), uuid4()
    shadows, shadow = RedisShadows(settings), shadow_of(slots)
    sink = RedisSink(settings.redis, settings.namespace)

    async def ask(amount: int) -> str:
        async with Redis.from_url(settings.redis) as client:
            return (
                await Gate(client, "slots", settings.namespace).ask(uuid4() if amount > 1 else cause, {row: amount})
            ).verdict

    fold_by(sink, slots.put(row, on_hand=3, reserved=0))
    assert asyncio.run(ask(1)) == "open"
    shadows.make(shadow)
    fold_by(sink, slots.put(row, on_hand=3, reserved=0), to=shadow)
    shadows.switch({slots: shadow}, lambda reach: None)
    assert asyncio.run(ask(3)) == "probe"
    fold_by(sink, *slots.hold(row, cause, 1))
    assert asyncio.run(ask(2)) == "open"
    assert asyncio.run(ask(3)) == "full"
    shadows.close()
    sink.close()


def test_a_rebuild_under_traffic_is_not_seen_by_those_who_read(settings: Settings) -> None:
    """Readers of both stores see what only grows, and never an error; in the end all is there once."""
    make_topic(settings)
    log = Log()
    traffic(log, 2_000)
    publish(settings, log.rows)
    with (
        store("redis", settings) as red,
        store("clickhouse", settings) as click,
        workers(settings, 1, "redis", "clickhouse") as (worker,),
    ):
        stores = (red, click)
        until(lambda: all(to.holds() == to.should_hold(log) for to in stores), [worker])
        for to in stores:
            damaged(to)
        with reading(settings, log) as told:
            for _ in range(10):
                start = len(log.rows)
                traffic(log, 100)
                publish(settings, log.rows[start:])
            argv = ["purse", "--sink", "redis", "--sink", "clickhouse"]
            assert projection.main(argv, [PURSES], settings) == 0
        assert told and not any(isinstance(one, BaseException) for one in told), told
        until(lambda: all(to.holds() == to.should_hold(log) for to in stores), [worker])
        assert worker.stop() == 0


class reading:
    """Threads that read both stores all the time; what they are told may only grow."""

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings, self.purse = settings, log.purse(1)
        self.stop, self.told = threading.Event(), list[Any]()
        self.threads = [threading.Thread(target=self._look, args=(one,)) for one in (self._redis, self._click)]

    def __enter__(self) -> list[Any]:
        for thread in self.threads:
            thread.start()
        return self.told

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _look(self, of: Callable[[], Callable[[], int]]) -> None:
        try:
            look, before = of(), 0
            while not self.stop.wait(0.002):
                now = look()
                assert now >= before, f"{of.__name__}: {now} after {before}"
                before = now
                self.told.append(now)
        except BaseException as error:
            self.told.append(error)

    def _redis(self) -> Callable[[], int]:
        client = redis_client.Redis.from_url(self.settings.redis)
        suffix = pockets.suffix(self.purse)
        return lambda: pockets.read(client, [suffix], self.settings.namespace)[suffix]["counts"]["fills"]

    def _click(self) -> Callable[[], int]:
        sink = ClickHouseSink(self.settings.clickhouse)
        return lambda: int(sink.query("SELECT max(log_id) FROM fills FINAL", {})[0][0])
