"""A broker that dies midway, a disk that is full, a log whose beginning is gone: each command says it in one line, and leaves all as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from aggregates.kernel.migrate import migrate
from infra.kafka import topics as kafka_topics
from infra.settings import Settings
from projections.kernel.clauses import projections
from projections.kernel.migrate import migrate as migrate_views
from replay import aggregate, projection, rule, store, topic, verify
from replay.log import ReplayError
from replay.runs import Runs
from tests.kernel.eventlog import published
from tests.kernel.pipeline import following, projected, relayed, relaying, store_rows
from tests.kernel.platform import wait_for
from tests.kernel.servers import Kafka, Stack, database, folder, settings_of, topics, warehouse
from tests.replay.past import dump
from tests.replay.test_golden_topics import golden_rows

DOMAIN = "order"
LIVE = (
    "SELECT * FROM order_events ORDER BY notification_id",
    "SELECT * FROM orders ORDER BY id",
    "SELECT * FROM projection_positions WHERE strpos(topic, '!') = 0 ORDER BY 1, 2, 3",
)
NO_SPACE = "could not extend file: No space left on device"
FULL_DISK = f"""CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
RAISE '{NO_SPACE}' USING ERRCODE = 'disk_full'; END $$"""  # as Postgres says it
ORDERS = [one for one in projections() if one.module == "projections.order"]
Said = Callable[..., str]


@contextmanager
def orders(stack: Stack, data: Path, kafka: Kafka) -> Iterator[Settings]:
    """Orders in their store, their topic and a read model in Postgres, with that broker."""
    with database(stack) as postgres, warehouse(stack) as clickhouse:
        of = settings_of(postgres, kafka, stack["redis"], clickhouse, data).model_copy(update={"partitions": 1})
        migrate(of.postgres, [DOMAIN])
        migrate_views(of, of=ORDERS)
        kafka_topics.create(of, [DOMAIN])
        store_rows(of.postgres, DOMAIN, golden_rows(DOMAIN))
        with relaying(of), following(of, ORDERS, [DOMAIN], ["postgres", "clickhouse"]):
            wait_for(lambda: relayed(of, DOMAIN), "the log is in the topic")
            wait_for(lambda: projected(of, ORDERS, DOMAIN, of.partitions), "the read model has seen it")
        yield of


@pytest.fixture
def here(stack: Stack, tmp_path: Path) -> Iterator[Settings]:
    with topics(stack) as kafka, orders(stack, tmp_path, kafka) as of:
        yield of


@pytest.fixture
def elsewhere(stack: Stack) -> Iterator[str]:
    """A database for a store to be rebuilt in."""
    with database(stack) as dsn:
        migrate(dsn, [DOMAIN])
        yield dsn


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """The one line that a command ends with, which leaves the live state as it was."""

    def run(command: Any, of: Settings, *argv: str) -> str:
        monkeypatch.setattr(command, "settings", lambda: of)
        before = [dump(of.postgres, query) for query in LIVE]
        with pytest.raises(ReplayError) as error:
            command.main(argv)
        assert [dump(of.postgres, query) for query in LIVE] == before
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


def full(dsn: str, table: str) -> None:
    """Nothing more goes into a table."""
    with psycopg.connect(dsn) as connection:
        connection.execute(FULL_DISK.encode())
        trigger = f"CREATE TRIGGER f BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION full_disk()"
        connection.execute(trigger.encode())


def test_the_disk_is_full(here: Settings, elsewhere: str, said: Said) -> None:
    """A back-test is not among them: it writes nothing."""
    full(elsewhere, "order_events")
    assert said(store, here, DOMAIN, "--into", elsewhere).startswith(f"the target database: {NO_SPACE}")
    assert dump(elsewhere, "SELECT last FROM log_heads WHERE last > 0") == []
    with Runs(here.postgres):
        full(here.postgres, "replay_runs")
    assert NO_SPACE in said(verify, here, DOMAIN)


def test_the_topic_is_not_deleted_where_its_position_cannot_be_set_back(here: Settings, said: Said) -> None:
    full(here.postgres, "relay_positions")
    before = published(here.kafka, here.topic(DOMAIN))
    assert said(topic, here, DOMAIN, "--force").startswith(f"the event store: {NO_SPACE}")
    assert published(here.kafka, here.topic(DOMAIN)) == before


def test_the_beginning_of_the_log_is_gone(here: Settings, elsewhere: str, said: Said) -> None:
    name = here.topic(DOMAIN)
    [(partition, first)] = [(n, rows[0]) for n, rows in enumerate(published(here.kafka, name)) if rows]
    cut = TopicPartition(name, partition, 1)
    admin = AdminClient({"bootstrap.servers": here.kafka})
    admin.delete_records([cut])[cut].result(30)
    gone = f"the beginning of {name} [{partition}] is gone: it starts at offset 1. "
    for command, *argv in ((rule, "order_velocity"), (store, DOMAIN, "--into", elsewhere)):
        assert said(command, here, *argv).startswith(gone)
    id = str(first.originator_id)
    assert said(aggregate, here, DOMAIN, id, "--from", "topic").startswith(f"the topic lacks version 1 of order {id}")
    assert said(verify, here, DOMAIN).startswith(gone)


def test_the_broker_is_killed_midway(
    stack: Stack, elsewhere: str, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command has asked what there is, or has deleted the topic that it writes anew; then there is no broker any more."""
    monkeypatch.setattr("replay.log.SILENT_S", 1.0)
    monkeypatch.setattr("replay.topic.STUCK_S", 1.0)
    arrived, gone = threading.Semaphore(0), threading.Event()

    def midway(step: str) -> None:
        """Commands wait there until the broker is gone."""
        module, _, name = step.rpartition(".")
        whole = getattr(import_module(module), name)

        def held_up(*arguments: Any, **named: Any) -> Any:
            found = whole(*arguments, **named) if name == "spans" else None
            arrived.release()
            assert gone.wait(60)
            return whole(*arguments, **named) if name != "spans" else found

        monkeypatch.setattr(step, held_up)

    with (
        folder() as data,
        closing(Stack(data)) as own,
        orders(stack, tmp_path, Kafka(own["kafka"], "test.")) as of,
        ThreadPoolExecutor() as pool,
    ):
        id = str(dump(of.postgres, "SELECT originator_id FROM order_events")[0][0])
        for step in ("log.spans", "store.spans", "rule.spans", "aggregate.spans", "checks.log.spans", "topic._publish"):
            midway(f"replay.{step}")
        reading = {
            "projection": pool.submit(said, projection, of, "order_summary", "--sink", "postgres", "--json"),
            "store": pool.submit(said, store, of, DOMAIN, "--into", elsewhere, "--json"),
            "rule": pool.submit(said, rule, of, "order_velocity", "--json"),
            "aggregate": pool.submit(said, aggregate, of, DOMAIN, id, "--from", "topic", "--json"),
            "verify": pool.submit(said, verify, of, DOMAIN, "--json"),
        }
        for _ in reading:
            assert arrived.acquire(timeout=60)
        writing = pool.submit(said, topic, of, DOMAIN, "--force", "--json")
        assert arrived.acquire(timeout=60)
        broker = own.children["kafka"]
        assert broker.process is not None
        broker.process.kill()
        broker.process.wait()
        gone.set()
        told = {name: one.result(60) for name, one in reading.items()}
        for name, words in told.items():
            assert words.startswith(f"nothing came from Kafka at {of.kafka}"), name
        assert writing.result(60).startswith(f"{of.topic(DOMAIN)}: nothing was published for 1 s")
        assert dump(elsewhere, "SELECT last FROM log_heads WHERE last > 0") == []
        # A relay publishes all of it when Kafka is back.
        assert dump(of.postgres, "SELECT position FROM relay_positions") == [(0,)]
