"""The relay on a real Postgres and Kafka: every event, in order, once the consumer's rule has dropped what came twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from aggregates.kernel import wire
from aggregates.kernel.migrate import migrate
from infra.children import tie
from infra.servers import kafka as kafka_server
from streams.relay import HEADERS, LAG, POLL_S, Relay
from tests.kernel.eventlog import append, make_topics, published, stored, without_duplicates
from tests.kernel.platform import wait_for
from tests.kernel.servers import Kafka

DOMAINS = ["tally", "wallet"]
AGGREGATES = [uuid4() for _ in range(50)]
Connection = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def connection(postgres: str) -> Iterator[Connection]:
    migrate(postgres, DOMAINS)
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


@pytest.fixture
def topics(kafka: Kafka) -> Kafka:
    make_topics(kafka.bootstrap, [f"{kafka.prefix}{domain}" for domain in DOMAINS])
    return kafka


@contextmanager
def running(*relays: Relay) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=relay.run, args=(stop,)) for relay in relays]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def writing(postgres: str, domains: list[str] = DOMAINS, pause_s: float = 0.002) -> Iterator[list[int]]:
    """Commits of 1 to 20 events, at about 400 a second, until the block ends; gives the number of events.

    Where processes or brokers are waited for meanwhile, a longer pause: each event is published, read and compared in the end.
    """
    done, total = threading.Event(), [0]

    def write() -> None:
        choose = random.Random(1)
        with psycopg.connect(postgres, autocommit=True) as connection:
            while not done.wait(pause_s):
                ids = choose.sample(AGGREGATES, choose.randint(1, 20))
                append(connection, choose.choice(domains), ids)
                total[0] += len(ids)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield total
    finally:
        done.set()
        thread.join()


def until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    wait_for(true, "what it waits for", timeout_s)


def lag(connection: Connection, domains: list[str] = DOMAINS) -> int:
    row = connection.execute(
        "SELECT sum(h.last - coalesce(p.position, 0)) FROM log_heads h LEFT JOIN relay_positions p USING (domain)"
        " WHERE h.domain = ANY(%s)",
        (domains,),
    ).fetchone()
    assert row is not None
    return int(str(row[0]))


def figures() -> dict[str, float]:
    """The lag of each domain of these tests as the relays of this process tell Prometheus; others' tests had others."""
    told = {one.labels["domain"]: one.value for family in LAG.collect() for one in family.samples}
    return {domain: told[domain] for domain in DOMAINS if domain in told}


def caught_up(connection: Connection, domains: list[str] = DOMAINS) -> bool:
    try:
        return lag(connection, domains) == 0
    except psycopg.errors.UndefinedTable:  # no relay has started yet
        return False


def judge(connection: Connection, kafka: Kafka, domains: list[str] = DOMAINS) -> int:
    """Fails unless each log stands in its topic as it is; returns the number of duplicates."""
    duplicates = 0
    for domain in domains:
        rows = stored(connection, domain)
        partitions = published(kafka.bootstrap, f"{kafka.prefix}{domain}")
        taken = [without_duplicates(partition) for partition in partitions]
        assert sorted((row for one in taken for row in one), key=lambda row: row.notification_id) == rows
        homes: dict[UUID, int] = {}
        for number, one in enumerate(taken):
            for row in one:
                assert homes.setdefault(row.originator_id, number) == number
        duplicates += sum(map(len, partitions)) - len(rows)
    return duplicates


def test_headers_are_in_the_order_that_readers_are_fastest_with() -> None:
    assert HEADERS == wire.HEADERS


def test_a_backlog_then_news_reach_the_topics_in_order_and_once(
    connection: Connection, postgres: str, topics: Kafka
) -> None:
    for _ in range(60):
        append(connection, "tally", AGGREGATES * 4)
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection))
        with writing(postgres) as written:
            until(lambda: written[0] > 1_000)
        until(lambda: caught_up(connection))
    assert judge(connection, topics) == 0


def test_notify_wakes_it(connection: Connection, postgres: str, topics: Kafka) -> None:
    """Forty events one after another take less time than polls would."""
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        append(connection, "tally", AGGREGATES[:1])
        until(lambda: caught_up(connection))
        began = time.monotonic()
        for _ in range(40):
            append(connection, "tally", AGGREGATES[:1])
            until(lambda: caught_up(connection))  # its acknowledgement may be collected 50 ms later
        assert time.monotonic() - began < 20 * POLL_S


def relay_process(postgres: str, kafka: Kafka, data: Path) -> subprocess.Popen[bytes]:
    given = {
        "TITAN_POSTGRES": postgres,
        "TITAN_KAFKA": kafka.bootstrap,
        "TITAN_TOPIC_PREFIX": kafka.prefix,
        "TITAN_DATA": str(data),
        "TITAN_LOG_LEVEL": "warning",
    }
    return subprocess.Popen([sys.executable, "-m", "streams.relay"], env={**os.environ, **given}, preexec_fn=tie())


@pytest.mark.slow
def test_killed_at_any_moment_it_loses_nothing(
    connection: Connection, postgres: str, topics: Kafka, tmp_path: Path
) -> None:
    with writing(postgres, pause_s=0.02) as written:
        for _ in range(5):
            before = written[0]
            relay = relay_process(postgres, topics, tmp_path)
            until(lambda: written[0] > before + 500 and caught_up_to(connection, before))  # noqa: B023
            relay.kill()
            relay.wait()
    relay = relay_process(postgres, topics, tmp_path)
    append(connection, "tally", AGGREGATES)  # so that it is this one that catches up
    until(lambda: caught_up(connection))
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(timeout=15) == 0
    judge(connection, topics)


def caught_up_to(connection: Connection, written: int) -> bool:
    try:
        row = connection.execute("SELECT coalesce(sum(position), 0) FROM relay_positions").fetchone()
    except psycopg.errors.UndefinedTable:
        return False
    return row is not None and int(str(row[0])) > written


def test_killed_database_sessions_lose_nothing(connection: Connection, postgres: str, topics: Kafka) -> None:
    killed = 0
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        append(connection, "tally", AGGREGATES)
        until(lambda: caught_up(connection))
        with writing(postgres) as written:
            for round in range(8):
                until(lambda: written[0] > 300 * round)  # noqa: B023
                row = connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_stat_activity USING (pid)"
                    " WHERE locktype = 'advisory' AND datname = current_database()"
                ).fetchone()
                killed += int(str(row[0])) if row else 0
        until(lambda: caught_up(connection))
    assert killed > 3
    judge(connection, topics)


@pytest.mark.slow
def test_of_two_relays_one_publishes_and_the_other_takes_over(
    connection: Connection, postgres: str, topics: Kafka, tmp_path: Path
) -> None:
    relays = [relay_process(postgres, topics, tmp_path) for _ in range(2)]
    try:
        with writing(postgres, pause_s=0.02) as written:
            until(lambda: written[0] > 1_500 and caught_up_to(connection, 500))
        until(lambda: caught_up(connection))
        assert judge(connection, topics) == 0
        held = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
        assert held == (len(DOMAINS),)  # each domain by one of them
        relays.pop(0).kill()
        append(connection, "tally", AGGREGATES)
        append(connection, "wallet", AGGREGATES)
        until(lambda: caught_up(connection), timeout_s=10)
        judge(connection, topics)
    finally:
        for relay in relays:
            relay.terminate()
        for relay in relays:
            relay.wait()


def test_relays_that_overlap_without_any_election_make_a_consumer_lose_nothing(
    connection: Connection, postgres: str, topics: Kafka
) -> None:
    """The worst that a failed fence could do: three relays publish the same logs at the same time."""
    relays = [Relay(postgres, topics.bootstrap, topics.prefix, namespace=f"elected-apart-{n}") for n in range(3)]
    with running(*relays), writing(postgres) as written:
        until(lambda: written[0] > 2_000)
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection))
    assert judge(connection, topics) > 0


def test_a_topic_that_is_missing_holds_up_its_own_domain_alone(
    connection: Connection, postgres: str, kafka: Kafka
) -> None:
    make_topics(kafka.bootstrap, [f"{kafka.prefix}tally"])
    append(connection, "tally", AGGREGATES)
    append(connection, "wallet", AGGREGATES)
    relay = Relay(postgres, kafka.bootstrap, kafka.prefix)
    relay._config["topic.metadata.propagation.max.ms"] = 500
    with running(relay):
        until(lambda: caught_up(connection, ["tally"]))
        with writing(postgres, ["tally"]) as written:
            until(lambda: written[0] > 2_000)
        until(lambda: caught_up(connection, ["tally"]))
        assert lag(connection, ["wallet"]) == len(AGGREGATES)
        until(lambda: figures() == {"tally": 0, "wallet": len(AGGREGATES)})
        make_topics(kafka.bootstrap, [f"{kafka.prefix}wallet"])
        until(lambda: caught_up(connection))
        until(lambda: figures() == {"tally": 0, "wallet": 0})
    judge(connection, kafka)


def test_an_event_too_large_for_kafka_is_not_skipped(connection: Connection, postgres: str, topics: Kafka) -> None:
    append(connection, "tally", AGGREGATES)
    append(connection, "tally", AGGREGATES[:1], body=os.urandom(5_000_000))
    append(connection, "tally", AGGREGATES)
    append(connection, "wallet", AGGREGATES)
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection, ["wallet"]) and lag(connection, ["tally"]) == len(AGGREGATES) + 1)
    sent = [row for one in published(topics.bootstrap, f"{topics.prefix}tally") for row in one]
    assert max(row.notification_id for row in sent) == len(AGGREGATES)


def test_a_gap_in_the_log_stops_its_domain_and_no_other(connection: Connection, postgres: str, topics: Kafka) -> None:
    append(connection, "tally", AGGREGATES)
    append(connection, "wallet", AGGREGATES)
    connection.execute("DELETE FROM tally_events WHERE notification_id = 20")
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection, ["wallet"]))
    assert [row for one in published(topics.bootstrap, f"{topics.prefix}tally") for row in one] == []


def test_a_topic_that_lost_records_is_not_gone_on_with_as_if_nothing_had_happened(
    connection: Connection, postgres: str, topics: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """A new event in an emptied topic would bury the lost ones: consumers take the newest for all there was."""
    append(connection, "tally", AGGREGATES)
    append(connection, "wallet", AGGREGATES)
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection))
    topic = f"{topics.prefix}tally"
    admin = AdminClient({"bootstrap.servers": topics.bootstrap})
    admin.delete_topics([topic])[topic].result(10)
    until(lambda: topic not in admin.list_topics(timeout=10).topics)
    make_topics(topics.bootstrap, [topic])
    append(connection, "tally", AGGREGATES[:3])
    append(connection, "wallet", AGGREGATES[:3])
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection, ["wallet"]) and "ALARM" in caplog.text)
    assert "`titan replay topic tally` makes it anew" in caplog.text
    assert [row for one in published(topics.bootstrap, topic) for row in one] == []
    assert lag(connection, ["tally"]) == 3


def test_a_store_that_ends_before_its_topic_is_not_published_over_it(
    connection: Connection, postgres: str, topics: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a platform is started on an empty database before its stores were restored."""
    append(connection, "tally", AGGREGATES)
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: caught_up(connection, ["tally"]))
    connection.execute("TRUNCATE tally_events, relay_positions")
    connection.execute("UPDATE log_heads SET last = 0 WHERE domain = 'tally'")
    append(connection, "tally", AGGREGATES[:3])
    with running(Relay(postgres, topics.bootstrap, topics.prefix)):
        until(lambda: "ALARM" in caplog.text)
    assert "`titan replay store tally --into DSN` makes it anew" in caplog.text
    assert sum(map(len, published(topics.bootstrap, f"{topics.prefix}tally"))) == len(AGGREGATES)


@pytest.mark.slow
def test_a_broker_that_restarts_under_load_loses_nothing(connection: Connection, postgres: str, tmp_path: Path) -> None:
    broker = kafka_server(tmp_path)
    broker.start()
    try:
        broker.wait_ready()
        kafka = Kafka(broker.address, "")
        make_topics(kafka.bootstrap, DOMAINS)
        with running(Relay(postgres, kafka.bootstrap, "")):
            with writing(postgres, pause_s=0.05) as written:
                for kill in (False, True):
                    before = written[0]
                    until(lambda: written[0] > before + 500 and caught_up_to(connection, before))  # noqa: B023
                    assert broker.process is not None
                    if kill:
                        broker.process.kill()
                        broker.process.wait()
                    broker.stop()
                    broker.start()
                    broker.wait_ready()
            until(lambda: caught_up(connection))
        judge(connection, kafka)
    finally:
        broker.stop()
