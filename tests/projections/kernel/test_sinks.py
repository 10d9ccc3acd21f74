"""One suite for every sink: whatever is repeated, cut, raced or refused, the store holds what the events say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from uuid import uuid4

import psycopg
import pytest
import redis as redis_client

from infra.settings import Settings
from projections.kernel.parking import Limits, TooManyParked
from projections.kernel.postgres import connect
from projections.kernel.runner import Broken, Delivery, Down, Fenced, Poison, Position
from tests.projections.kernel import purse
from tests.projections.kernel.purse import DOMAIN, POISON, TOO_MUCH, Blessed, Closed, Filled, Log, Noted, Opened, Torn
from tests.projections.kernel.stores import Store, feed, store

SINKS = ("postgres", "redis", "clickhouse")


@pytest.fixture(params=SINKS)
def to(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Store]:
    with store(request.param, settings) as made:
        yield made


@pytest.fixture(autouse=True)
def unmended() -> Iterator[None]:
    purse.mended.now = False
    yield
    purse.mended.now = False


def history(seed: int, events: int = 300, purses: int = 12) -> Log:
    """Purses opened, filled, noted, closed and opened again, at random."""
    log, dice, closed = Log(), random.Random(seed), set(range(purses))
    while len(log.rows) < events:
        number = dice.randrange(purses)
        if number in closed:
            log.add(number, Opened, owner=uuid4(), currency="EUR")
            closed.discard(number)
            continue
        roll = dice.random()
        if roll < 0.6:
            log.add(number, Filled, amount=dice.randrange(-100, 400))
        elif roll < 0.75:
            log.add(number, Noted, note=dice.choice("ab"), text='it\'s "quoted"\\ {x} ü')
        elif roll < 0.85:
            log.add(number, Torn, note=dice.choice("ab"))
        elif roll < 0.9:
            log.add(number, Blessed)
        else:
            log.add(number, Closed)
            closed.add(number)
    return log


@pytest.mark.parametrize("seed", range(3))
def test_any_batches_come_to_what_the_events_say(to: Store, seed: int) -> None:
    log, dice = history(seed), random.Random(seed)
    feed(to.runner(log), log.deliveries(), (dice.choice((1, 2, 7, 100)) for _ in repeat(0)))
    assert to.holds() == to.should_hold(log)


def test_repetitions_are_dropped(to: Store) -> None:
    log = history(7)
    deliveries, dice = log.deliveries(), random.Random(7)
    told: list[Delivery] = []
    for at in range(0, len(deliveries), 20):  # as a relay does that starts again at its stored position
        told += deliveries[max(0, at - dice.randrange(40)) : at + 20]
    feed(to.runner(log), told, repeat(33))
    feed(to.runner(log), deliveries, repeat(50))
    assert to.holds() == to.should_hold(log)


def test_the_second_of_two_runners_is_fenced_and_nothing_is_doubled(to: Store) -> None:
    log = history(3)
    deliveries = log.deliveries()
    first, second = to.runner(log), to.runner(log)
    first.handle(deliveries[:100])
    with pytest.raises(Fenced):
        second.handle(deliveries[:120])
    second.assign(list(second.lanes))
    second.handle(deliveries[:120])
    with pytest.raises(Fenced):
        first.handle(deliveries[100:])
    feed(second, deliveries, repeat(100))
    assert to.holds() == to.should_hold(log)


def test_a_lane_is_read_on_from_the_last_record_that_all_tables_have_seen(to: Store) -> None:
    log = history(5, events=50)
    to.runner(log).handle(log.deliveries())
    last = {delivery.partition: delivery for delivery in log.deliveries()}
    anchors = to.runner(log).assign([(DOMAIN, 0), (DOMAIN, 1)])
    assert anchors == {(DOMAIN, p): Position(d.notification_id, d.offset) for p, d in last.items()}


def test_poison_parks_its_aggregate_in_order_and_all_others_flow(to: Store) -> None:
    log = history(11)
    log.add(1, Filled, amount=POISON)
    for number in (1, 2, 1, 3):
        log.add(number, Filled, amount=5)
    runner = to.runner(log)
    feed(runner, log.deliveries(), repeat(40))
    feed(to.runner(log), log.deliveries(), repeat(40))  # another worker, later: nothing is parked twice
    before = Log()
    before.rows = log.rows[:300]
    partial = to.should_hold(before) | {k: v for k, v in to.should_hold(log).items() if k != log.purse(1)}
    assert to.holds() == partial
    with psycopg.connect(to.settings.postgres) as connection:
        rows = connection.execute("SELECT processor, notification_id FROM parked ORDER BY notification_id").fetchall()
        keys = connection.execute("SELECT processor, topic, key FROM parked_sequences").fetchall()
    assert rows == [(f"{to.name}.purse", n) for n in (301, 302, 304)]
    assert keys == [(f"{to.name}.purse", DOMAIN, str(log.purse(1)).encode())]


def test_without_a_parking_poison_raises_and_nothing_passes_it(to: Store) -> None:
    log = Log(partitions=1)
    log.add(1, Opened, owner=uuid4(), currency="EUR")
    log.add(1, Filled, amount=POISON)
    with pytest.raises(
        Poison, match=r"purse can't take pouch.Filled at pouch \[0\] offset 1, .*: ArithmeticError: poison"
    ):
        to.runner(log, parking=False).handle(log.deliveries())
    assert to.holds() == {}


def test_a_full_dead_letter_queue_stops_the_runner(to: Store) -> None:
    log = Log(partitions=1)
    for number in range(50):
        log.add(number, Filled, amount=POISON)
    with pytest.raises(TooManyParked, match="20 aggregates failed in 50 events, the last with ArithmeticError: poison"):
        to.runner(log, Limits(sequences_min=20, ratio_max=0.1)).handle(log.deliveries())
    with psycopg.connect(to.settings.postgres) as connection:
        assert connection.execute("SELECT count(*) FROM parked").fetchone() == (19,)
        connection.execute("DELETE FROM parked")
        connection.execute("DELETE FROM parked_sequences")
    with pytest.raises(TooManyParked, match="30 events are parked"):
        to.runner(log, Limits(rows_max=30, sequences_min=1000)).handle(log.deliveries())


def test_a_record_that_is_none_of_ours_is_parked_and_blocks_nothing(to: Store) -> None:
    log = history(2, events=30)
    deliveries = log.deliveries()
    foreign = Delivery(DOMAIN, 0, 1000, b"\xff\x00", b"hello", [("x", b"\xff")])
    runner = to.runner(log)
    feed(runner, [*deliveries[:10], foreign, *deliveries[10:], foreign], repeat(7))
    assert to.holds() == to.should_hold(log)
    with psycopg.connect(to.settings.postgres) as connection:
        parked = connection.execute("SELECT processor, notification_id, key, value FROM parked").fetchall()
    assert parked == [(f"{to.name}.*", -1001, b"\xff\x00", b"hello")]


def test_bytes_that_are_no_event_are_parked(to: Store) -> None:
    log = history(2, events=30)
    deliveries = log.deliveries()
    bad = deliveries[-1]
    deliveries[-1] = Delivery(DOMAIN, bad.partition, bad.offset, bad.key, b"\0\0\0", bad.headers)
    feed(to.runner(log), deliveries, repeat(7))
    with psycopg.connect(to.settings.postgres) as connection:
        assert connection.execute("SELECT notification_id FROM parked").fetchall() == [(30,)]


def test_values_that_the_store_refuses_are_found_and_parked_alone(settings: Settings) -> None:
    with store("postgres", settings) as to:
        log = Log()
        for number in range(20):
            log.add(number, Opened, owner=uuid4(), currency="EUR")
            log.add(number, Filled, amount=1)
        log.add(4, Filled, amount=TOO_MUCH)
        log.add(4, Filled, amount=TOO_MUCH)
        log.add(4, Filled, amount=3)
        log.add(5, Noted, note="a", text="no \0 in Postgres")
        log.add(5, Filled, amount=3)
        for number in range(20):
            log.add(number, Filled, amount=1)
        to.runner(log).handle(log.deliveries())
        held = to.holds()
        assert held[log.purse(4)] == (1 + TOO_MUCH, 2, None)
        assert held[log.purse(5)] == (1, 1, None)
        assert all(held[log.purse(number)] == (2, 2, None) for number in range(20) if number not in (4, 5))
        with psycopg.connect(settings.postgres) as connection:
            found = connection.execute("SELECT notification_id, error FROM parked ORDER BY 1").fetchall()
        assert [id for id, _ in found] == [42, 43, 44, 45, 50, 51]
        assert "bigint out of range" in found[0][1]
        assert "waits behind" in found[1][1]


def test_a_redis_that_lost_everything_is_built_again(settings: Settings) -> None:
    with store("redis", settings) as to:
        log = history(13)
        runner, deliveries = to.runner(log), log.deliveries()
        runner.handle(deliveries[:200])
        with redis_client.Redis.from_url(settings.redis) as client:
            client.flushdb()
        with pytest.raises(Fenced):
            runner.handle(deliveries[200:])
        anchors = runner.assign(list(runner.lanes))
        assert set(anchors.values()) == {Position(0, -1)}
        feed(runner, deliveries, repeat(100))
        assert to.holds() == to.should_hold(log)


def test_lua_that_fails_marks_the_redis_table_and_later_batches_refuse(settings: Settings) -> None:
    with store("redis", settings) as to:
        log = history(13, events=20)
        with redis_client.Redis.from_url(settings.redis) as client:
            client.set(purse.pockets.row_key(settings.namespace, log.events()[0].event.id), "not a hash")
        for _ in range(2):
            with pytest.raises(Broken, match="half written, rebuild it"):
                to.runner(log).handle(log.deliveries())


def test_a_crash_between_clickhouse_rows_and_position_doubles_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store("clickhouse", settings) as to:
        log = history(17)
        deliveries = log.deliveries()
        runner = to.runner(log)
        runner.handle(deliveries[:100])

        def crash(moves: object) -> None:
            raise Down("killed here")

        monkeypatch.setattr(runner.sink, "store", crash)
        with pytest.raises(Down):
            runner.handle(deliveries[100:200])
        monkeypatch.undo()
        runner.handle(deliveries[100:200])  # the same batch again, by the same worker: dropped by its token
        feed(to.runner(log), deliveries, repeat(70))
        assert to.holds() == to.should_hold(log)
        fills = sum(isinstance(one.event, Filled) for one in log.events())
        assert to.raw_rows() == fills

        for _ in range(30):
            log.add(1, Filled, amount=1)
        runner.assign(list(runner.lanes))
        monkeypatch.setattr(runner.sink, "store", crash)
        with pytest.raises(Down):
            runner.handle(log.deliveries()[300:320])
        feed(to.runner(log), log.deliveries(), repeat(70))  # another worker, with batches of its own
        assert to.raw_rows() == fills + 30
        assert to.holds() == to.should_hold(log)


def test_a_worker_that_is_frozen_in_the_middle_of_a_batch_gives_up_its_locks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store("postgres", settings) as to:
        log = history(19)
        to.runner(log)
        with monkeypatch.context() as patch:  # the other worker keeps its time, which is more than this one's
            patch.setattr("projections.kernel.postgres.BATCH_MS_MAX", 500)
            frozen = connect(settings.postgres)
        with suppress(psycopg.Error), frozen.pipeline(), frozen.transaction():
            frozen.execute("UPDATE projection_positions SET moved_at = now()")  # sent, and nothing after it
            to.runner(log).handle(log.deliveries())
        assert to.holds() == to.should_hold(log)
        frozen.close()
