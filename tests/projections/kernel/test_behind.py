"""Batches that are stored while the next one is made: whatever becomes of them, the store holds what the events say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import repeat
from uuid import uuid4

import psycopg
import pytest

from infra.settings import Settings
from projections.kernel.behind import BehindSink
from projections.kernel.parking import PostgresParking
from projections.kernel.runner import Delivery, Down, Fenced, Runner
from tests.projections.kernel.purse import DOMAIN, POISON, TOO_MUCH, Filled, Log, Noted, Opened
from tests.projections.kernel.stores import PURSES, Store, store
from tests.projections.kernel.test_sinks import history


@pytest.fixture
def to(settings: Settings) -> Iterator[Store]:
    with store("postgres", settings) as made:
        yield made


def runner_of(to: Store, log: Log, large_changes: int = 1) -> Runner:
    """A runner whose every batch is on its way when the next one comes."""
    sink, parking = BehindSink(to.settings.postgres, large_changes), PostgresParking(to.settings.postgres)
    to.sinks.append(sink)
    to.parkings.append(parking)
    runner = Runner(sink, [PURSES], [DOMAIN], parking)
    runner.assign([(DOMAIN, partition) for partition in range(log.partitions)])
    return runner


def feed(runner: Runner, deliveries: list[Delivery], sizes: Iterator[int]) -> int:
    """As the worker does it, at last with an empty batch; answers how often the positions were read anew."""
    at = fenced = 0
    while True:
        size = next(sizes)
        try:
            runner.handle(deliveries[at : at + size])
        except Fenced:
            runner.assign(list(runner.lanes))
            at, fenced = 0, fenced + 1
            continue
        except Down:
            continue  # with the same batch
        if at >= len(deliveries):
            return fenced
        at += size


@pytest.mark.parametrize("seed", range(3))
def test_any_batches_come_to_what_the_events_say(to: Store, seed: int) -> None:
    log, dice = history(seed), random.Random(seed)
    runner = runner_of(to, log, large_changes=dice.choice((1, 10)))
    assert feed(runner, log.deliveries(), (dice.choice((1, 2, 7, 100)) for _ in repeat(0))) == 0
    assert to.holds() == to.should_hold(log)


def test_a_batch_on_its_way_that_the_store_refuses_is_taken_again_and_its_poison_parked(to: Store) -> None:
    log = Log()
    for number in range(20):
        log.add(number, Opened, owner=uuid4(), currency="EUR")
    log.add(4, Filled, amount=TOO_MUCH)
    log.add(4, Filled, amount=TOO_MUCH)
    log.add(4, Filled, amount=3)
    log.add(5, Noted, note="a", text="no \0 in Postgres")
    log.add(6, Filled, amount=POISON)
    for _ in range(3):
        for number in range(20):
            log.add(number, Filled, amount=1)
    runner = runner_of(to, log)
    assert feed(runner, log.deliveries(), repeat(7)) >= 1
    held = to.holds()
    assert held[log.purse(4)] == (TOO_MUCH, 1, None)
    assert held[log.purse(5)] == held[log.purse(6)] == (0, 0, None)
    assert all(held[log.purse(number)] == (3, 3, None) for number in range(20) if number not in (4, 5, 6))
    with psycopg.connect(to.settings.postgres) as connection:
        found = connection.execute("SELECT notification_id FROM parked ORDER BY 1").fetchall()
    mine = {(row.notification_id,) for row in log.rows if row.originator_id in {log.purse(n) for n in (4, 5, 6)}}
    assert found == sorted(mine - {(n,) for n in (5, 6, 7, 21)})


def test_the_second_of_two_runners_is_fenced_and_nothing_is_doubled(to: Store) -> None:
    log = history(3)
    deliveries = log.deliveries()
    first, second = runner_of(to, log), runner_of(to, log)
    first.handle(deliveries[:100])
    first.handle([])
    assert feed(second, deliveries[:200], repeat(50)) == 1
    first.handle(deliveries[100:])  # it is on its way
    with pytest.raises(Fenced):
        first.handle([])
    first.assign(list(first.lanes))
    assert feed(first, deliveries, repeat(100)) == 0
    assert to.holds() == to.should_hold(log)


def test_a_connection_that_is_cut_under_a_batch_loses_and_doubles_nothing(to: Store) -> None:
    log = history(9, events=2_000)
    deliveries, runner, fenced = log.deliveries(), runner_of(to, log), 0
    with psycopg.connect(to.settings.postgres, autocommit=True) as connection:
        for end in range(100, 2_100, 100):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'titan projections'"
            )
            fenced += feed(runner, deliveries[:end], repeat(40))
    assert fenced > 0
    assert to.holds() == to.should_hold(log)
