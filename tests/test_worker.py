"""The worker as a process: killed, raced, cut off and refused, the read models hold what the topic says."""

from __future__ import annotations

import random
import signal
import time
from uuid import uuid4

import psycopg
import pytest
import redis as redis_client
from confluent_kafka.admin import AdminClient

from infra.settings import Settings
from projections.kernel.runner import Down
from streams.kernel import dlq
from tests.projections.kernel.live import Worker, count, make_topic, passed, produce, publish, publisher, until, workers
from tests.projections.kernel.purse import DOMAIN, POISON, Filled, Log, Opened, mended, pockets
from tests.projections.kernel.stores import PURSES, Store, store

pytestmark = pytest.mark.slow


def traffic(log: Log, events: int, purses: int = 50) -> None:
    dice = random.Random(len(log.rows))
    known = {row.originator_id for row in log.rows}
    for _ in range(events):
        number = dice.randrange(purses)
        if log.purse(number) not in known:
            known.add(log.purse(number))
            log.add(number, Opened, owner=uuid4(), currency="EUR")
        else:
            log.add(number, Filled, amount=dice.randrange(1, 400))


def filled(log: Log) -> int:
    return sum(isinstance(one.event, Filled) for one in log.events())


def caught_up(to: Store, log: Log) -> bool:
    return to.holds() == to.should_hold(log)


@pytest.mark.parametrize("sink", ["postgres", "redis", "clickhouse"])
def test_two_workers_share_the_load_and_one_is_killed(settings: Settings, sink: str) -> None:
    make_topic(settings)
    log = Log()
    with store(sink, settings) as to, workers(settings, 2, sink) as (first, second):
        until(lambda: all("2 partitions" in worker.log for worker in (first, second)), (first, second))
        for round in range(10):
            start = len(log.rows)
            traffic(log, 300)
            publish(settings, log.rows[max(0, start - 50) :])  # the relay repeats itself
            if round == 4:
                first.kill()
        until(lambda: caught_up(to, log), (first, second))
        if sink == "postgres":
            assert count(settings, "SELECT fills FROM totals") == filled(log)
        if sink == "clickhouse":
            assert to.raw_rows() == filled(log)
        assert second.stop() == 0


def test_all_sinks_in_one_process_and_a_database_that_cuts_every_connection(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    with (
        store("postgres", settings) as postgres,
        store("redis", settings) as redis,
        store("clickhouse", settings) as click,
    ):
        with workers(settings, 1, "postgres", "redis", "clickhouse") as (worker,):
            until(lambda: worker.log.count("4 partitions") == 3, [worker])
            for _ in range(8):
                start = len(log.rows)
                traffic(log, 200)
                publish(settings, log.rows[start:])
                with psycopg.connect(settings.postgres) as connection:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
            until(lambda: all(caught_up(to, log) for to in (postgres, redis, click)), [worker])
            assert count(settings, "SELECT fills FROM totals") == filled(log)
            until(lambda: count(settings, "SELECT count(*) FROM worker_status") == 3, [worker])
            assert worker.stop() == 0
        assert count(settings, "SELECT count(*) FROM worker_status") == 0


def test_a_topic_that_comes_later_is_found(settings: Settings) -> None:
    log = Log()
    traffic(log, 50)
    with store("postgres", settings) as to, workers(settings, 1, "postgres") as (worker,):
        until(lambda: "there is no topic" in worker.log, [worker])
        make_topic(settings)
        publish(settings, log.rows)
        until(lambda: caught_up(to, log), [worker])


def test_a_topic_made_anew_is_read_from_its_beginning_with_an_alarm(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 300)
    with store("postgres", settings) as to:
        with workers(settings, 1, "postgres") as (worker,):
            publish(settings, log.rows[:200])
            publish(settings, log.rows[:200])  # so that offsets of the new topic mean other events
            publish(settings, log.rows[200:220])
            until(lambda: passed(settings) == 220, [worker])
            assert worker.stop() == 0
        admin = AdminClient({"bootstrap.servers": settings.kafka})
        for future in admin.delete_topics([settings.topic(DOMAIN)]).values():
            future.result(30)
        until(lambda: settings.topic(DOMAIN) not in admin.list_topics(timeout=10).topics)
        make_topic(settings, [""])
        publish(settings, log.rows)
        with workers(settings, 1, "postgres") as (worker,):
            until(lambda: caught_up(to, log), [worker])
            assert "ALARM" in worker.log
            assert "was made anew or cut off" in worker.log
            assert count(settings, "SELECT fills FROM totals") == filled(log)


def test_holes_in_the_offsets_are_passed_over(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    with store("postgres", settings) as to, workers(settings, 1, "postgres") as (worker,):
        for round in range(4):
            start = len(log.rows)
            traffic(log, 50)
            producer = publisher(settings, **{"transactional.id": f"{settings.namespace}-{round}"})
            producer.init_transactions(30)
            producer.begin_transaction()
            produce(producer, settings, log.rows[start:])
            producer.commit_transaction(30)
        until(lambda: caught_up(to, log), [worker])
        assert "ALARM" not in worker.log


def test_a_poisoned_aggregate_waits_and_is_retried_in_order(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 400)
    log.add(1, Filled, amount=POISON)
    log.rows[-1] = log.rows[-1]._replace(correlation_id="trace-of-the-poison")
    traffic(log, 200)
    sinks = ("postgres", "redis", "clickhouse")
    with (
        store("postgres", settings) as postgres,
        store("redis", settings) as redis,
        store("clickhouse", settings) as click,
    ):
        with workers(settings, 1, *sinks) as (worker,):
            publish(settings, log.rows)
            waiting = sum(row.originator_id == log.purse(1) for row in log.rows[400:])
            until(lambda: count(settings, "SELECT count(*) FROM parked WHERE copied") == 3 * waiting, [worker])
            until(lambda: passed(settings) == len(log.rows), [worker])
            until(lambda: len(click.holds()) == 50, [worker])
            told = [line for line in worker.lines if "is parked" in line["event"]]
            poison = [line for line in told if line["correlation"] == "trace-of-the-poison"]
            where = f"{DOMAIN}:401 ({log.purse(1)}) is parked: ArithmeticError: poison"
            assert sorted(line["event"] for line in poison) == [f"{sink}.purse: {where}" for sink in sorted(sinks)]
            assert all(line["exception"][0]["exc_type"] == "ArithmeticError" for line in poison)
            assert len(told) == 3 * waiting, "those that wait behind it are told of, too"
            monkeypatch.setattr(dlq, "settings", lambda: settings)
            assert dlq.main(["list"], [PURSES]) == 0
            shown = capsys.readouterr().out
            assert "ArithmeticError: poison" in shown
            assert f"{3 * waiting} parked, of 3 aggregates" in shown

            monkeypatch.setattr(mended, "now", False)
            assert dlq.main(["retry", "--processor", "postgres.purse"], [PURSES]) == 1
            assert "0 applied, then: ArithmeticError: poison" in capsys.readouterr().out

            monkeypatch.setattr(mended, "now", True)
            until(lambda: dlq.main(["retry"], [PURSES]) == 0)
            assert count(settings, "SELECT count(*) FROM parked") == 0
            assert all(caught_up(to, log) for to in (postgres, redis, click))

            start = len(log.rows)  # the worker, which knew the aggregate as blocked, takes its next events itself
            traffic(log, 200)
            publish(settings, log.rows[start:])
            until(lambda: all(caught_up(to, log) for to in (postgres, redis, click)), [worker])
            assert count(settings, "SELECT fills FROM totals") == filled(log)
            assert count(settings, "SELECT count(*) FROM parked") == 0


def test_a_retry_that_is_killed_before_it_takes_out_what_it_applied_doubles_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sink in ("postgres", "redis", "clickhouse"):
        log = Log()
        traffic(log, 100)
        log.add(1, Filled, amount=POISON)
        log.add(1, Filled, amount=7)
        with store(sink, settings) as to:
            monkeypatch.setattr(mended, "now", False)
            to.runner(log).handle(log.deliveries())
            rows = dlq.parked(settings, processor=f"{sink}.purse")
            assert [row.notification_id for row in rows] == [101, 102]
            monkeypatch.setattr(mended, "now", True)
            with psycopg.connect(settings.postgres, autocommit=True) as connection:
                connection.execute(
                    "CREATE OR REPLACE FUNCTION killed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'killed here'; END $$"
                )
                connection.execute("CREATE TRIGGER killed BEFORE DELETE ON parked EXECUTE FUNCTION killed()")
                with pytest.raises(Down):
                    dlq.retry(settings, rows[0], [PURSES])
                connection.execute("DROP TRIGGER killed ON parked")
            assert dlq.parked(settings, processor=f"{sink}.purse") == rows
            assert caught_up(to, log)
            assert dlq.retry(settings, rows[0], [PURSES]) == (2, "")
            assert caught_up(to, log)
            assert dlq.parked(settings, processor=f"{sink}.purse") == []


def test_a_bad_deploy_stops_the_worker_instead_of_moving_the_topic(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    for number in range(100):
        log.add(number, Filled, amount=POISON)
    with store("postgres", settings), workers(settings, 1, "postgres") as (worker,):
        publish(settings, log.rows)
        assert worker.process.wait(60) == 3
        assert "ALARM: postgres stopped: postgres.purse: 10 aggregates failed" in worker.log
        assert count(settings, "SELECT count(*) FROM parked") == 9


def test_events_that_trickle_are_seen_within_milliseconds(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    waits = []
    producer = publisher(settings, **{"linger.ms": 0})
    with store("postgres", settings), workers(settings, 1, "postgres") as (worker,):
        with psycopg.connect(settings.postgres, autocommit=True) as connection:
            for _ in range(40):
                log.add(1, Filled, amount=1)
                began = time.perf_counter()
                produce(producer, settings, log.rows[-1:])
                assert producer.flush(30) == 0
                while passed_at(connection) < len(log.rows):
                    assert time.perf_counter() - began < 30, worker.log
                waits.append(time.perf_counter() - began)
    assert sorted(waits)[len(waits) // 2] < 0.1, waits


@pytest.mark.parametrize("sink", ["postgres", "clickhouse"])
def test_a_worker_that_was_frozen_while_another_took_over_doubles_nothing(settings: Settings, sink: str) -> None:
    make_topic(settings)
    log = Log()
    with store(sink, settings) as to, workers(settings, 1, sink) as (first,):
        until(lambda: "4 partitions" in first.log, [first])
        traffic(log, 300)
        publish(settings, log.rows)
        until(lambda: caught_up(to, log), [first])
        start = len(log.rows)
        traffic(log, 300)
        publish(settings, log.rows[start:])
        first.process.send_signal(signal.SIGSTOP)  # with what it fetched in its hands
        with workers(settings, 1, sink) as (second,):
            until(lambda: "4 partitions" in second.log, [first, second])
            until(lambda: caught_up(to, log), [first, second])
            first.process.send_signal(signal.SIGCONT)
            start = len(log.rows)
            traffic(log, 300)
            publish(settings, log.rows[start:])
            until(lambda: caught_up(to, log), [first, second])
            assert second.stop() == 0
        assert first.stop() == 0
        assert caught_up(to, log)
        if sink == "clickhouse":
            assert to.raw_rows() == filled(log)


def test_a_sink_that_needs_a_person_stops_alone(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 100)
    with store("postgres", settings) as postgres, redis_client.Redis.from_url(settings.redis) as client:
        client.set(pockets.row_key(settings.namespace, log.events()[0].event.id), "not a hash")
        with workers(settings, 1, "postgres", "redis") as (worker,):
            publish(settings, log.rows)
            until(
                lambda: "ALARM: redis stopped: Redis table pockets is half written, rebuild it" in worker.log, [worker]
            )
            start = len(log.rows)
            traffic(log, 100)
            publish(settings, log.rows[start:])
            until(lambda: caught_up(postgres, log), [worker])
            stopped = "SELECT count(*) FROM worker_status WHERE sink = 'redis' AND error LIKE '%half written%'"
            until(lambda: count(settings, stopped) == 1, [worker])
            assert worker.stop() == 3


def passed_at(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute("SELECT coalesce(max(notification_id), 0) FROM projection_positions").fetchone()
    assert row is not None
    return row[0]


def test_a_worker_that_is_told_to_stop_while_postgres_is_away_stops(settings: Settings) -> None:
    make_topic(settings)
    gone = settings.model_copy(update={"postgres": settings.postgres.rsplit("/", 1)[0] + f"/none_{uuid4().hex}"})
    worker = Worker(gone, "postgres")
    try:
        until(lambda: "does not answer" in worker.log, [worker])
        assert worker.stop() == 0
    finally:
        worker.kill()
