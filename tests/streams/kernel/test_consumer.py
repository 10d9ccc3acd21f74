"""A sink's consumer, when its store forgets what it had acknowledged, and when Kafka takes its place away."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from confluent_kafka import Consumer, KafkaException, Producer

from aggregates.kernel.migrate import migrate as migrate_events
from aggregates.kernel.wire import Row, headers
from infra.kafka import topics
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.migrate import migrate
from projections.kernel.sinks import sink_of
from streams.kernel.consumer import BATCH_S, LAG, Pace
from streams.worker import PACES
from tests.kernel.letters import DOMAIN, letters, past
from tests.kernel.pipeline import Following, projected, relayed, relaying, store_rows
from tests.kernel.platform import wait_for

LETTERS = PROJECTIONS["tests.kernel.letters"].only([letters])
ROWS = [row for row, _ in past(12, seed=7)]
MANY = [row for row, _ in past(150, seed=8)]


@pytest.fixture
def follower(settings: Settings) -> Iterator[Following]:
    """A consumer that has projected some letters into Postgres; no more come."""
    migrate_events(settings.postgres, [DOMAIN])
    migrate(settings, of=[LETTERS])
    topics.create(settings, [DOMAIN])
    store_rows(settings.postgres, DOMAIN, ROWS)
    with relaying(settings):
        wait_for(lambda: relayed(settings, DOMAIN), "the relay has published the letters")
    following = Following(settings, sink_of("postgres", settings), [LETTERS], [DOMAIN], name="one")
    try:
        wait_for(lambda: _projected(settings), "the consumer has projected them")
        yield following
    finally:
        following.halt()


def _projected(settings: Settings) -> bool:
    return projected(settings, [LETTERS], DOMAIN, settings.partitions)


def _produce(producer: Producer, settings: Settings, row: Row) -> None:
    made: list[tuple[str, str | bytes | None]] = list(headers(row))
    producer.produce(settings.topic(DOMAIN), row.state, str(row.originator_id).encode(), headers=made)


@pytest.mark.parametrize("cut", [True, False], ids=["cut off", "unnoticed"])
def test_what_a_crashed_server_has_lost_is_projected_again_with_nothing_new_coming(
    settings: Settings, follower: Following, cut: bool
) -> None:
    """Commits don't wait for the disk: after a crash the last of them, positions included, have never been."""
    with psycopg.connect(settings.postgres, autocommit=True) as connection:
        written = connection.execute("SELECT * FROM letters ORDER BY id").fetchall()
        with connection.transaction():
            connection.execute("DELETE FROM letters")
            connection.execute("""UPDATE projection_positions SET notification_id = 0, "offset" = -1""")
        if cut:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'titan projections'"
            )
        wait_for(lambda: _projected(settings), "the consumer has noticed it")
        assert connection.execute("SELECT * FROM letters ORDER BY id").fetchall() == written
    follower.end()


def test_a_topic_made_anew_and_longer_than_before_is_read_whole(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes behind the seek to its beginning may come at once, in the same batch as what came before."""
    migrate_events(settings.postgres, [DOMAIN])
    migrate(settings, of=[LETTERS])
    topics.create(settings, [DOMAIN])
    store_rows(settings.postgres, DOMAIN, MANY)
    with relaying(settings):
        wait_for(lambda: relayed(settings, DOMAIN), "the relay has published the letters")
    with psycopg.connect(settings.postgres) as connection:  # as if of another topic, which began with what is no event
        connection.execute(
            """INSERT INTO projection_positions (projection, topic, partition, notification_id, "offset")
            SELECT 'letters', %s, partition, 0, 3 FROM generate_series(0, %s) AS partition""",
            [DOMAIN, settings.partitions - 1],
        )
    monkeypatch.setitem(PACES, "postgres", Pace(rows_max=5_000, linger_s=1.0))
    following = Following(settings, sink_of("postgres", settings), [LETTERS], [DOMAIN])
    try:
        wait_for(lambda: _projected(settings), "the consumer has projected them")
    finally:
        following.end()
    with psycopg.connect(settings.postgres) as connection:
        assert connection.execute("SELECT count(*) FROM letters").fetchone() == (
            len({row.originator_id for row in MANY}),
        )


def test_what_keeps_coming_is_projected_in_few_batches(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a store to which each batch is an effort."""
    migrate_events(settings.postgres, [DOMAIN])
    migrate(settings, of=[LETTERS])
    topics.create(settings, [DOMAIN])
    monkeypatch.setitem(PACES, "postgres", Pace(rows_max=1_000, every_s=1.0))
    batches = BATCH_S.labels("postgres")._sum  # counted where they are measured
    producer = Producer({"bootstrap.servers": settings.kafka, "partitioner": "murmur2_random"})
    following, handled = Following(settings, sink_of("postgres", settings), [LETTERS], [DOMAIN]), list[float]()
    monkeypatch.setattr(batches, "inc", handled.append)
    try:
        for number, row in enumerate(MANY, 1):
            _produce(producer, settings, row._replace(notification_id=number))
            assert producer.flush(30) == 0
        wait_for(lambda: LAG.labels("postgres", "letters")._value.get() == 0 and handled, "they are projected")
        with psycopg.connect(settings.postgres) as connection:
            wait_for(
                lambda: (
                    connection.execute("SELECT count(DISTINCT id) FROM letters").fetchone()
                    == (len({row.originator_id for row in MANY}),)
                ),
                "all of them are there",
            )
    finally:
        following.end()
    assert len(handled) < len(MANY) / 10


def test_what_comes_while_the_store_is_away_is_behind(settings: Settings, follower: Following) -> None:
    """Whoever watches the lag sees the outage grow, not the figure of before."""

    def lag() -> float:
        return LAG.labels("postgres", "letters")._value.get()  # type: ignore[no-any-return]

    wait_for(lambda: lag() == 0, "nothing is behind")
    name = urlsplit(settings.postgres).path.removeprefix("/")
    with psycopg.connect(urlsplit(settings.postgres)._replace(path="/postgres").geturl(), autocommit=True) as server:

        def allow(connections: str) -> None:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {connections}'.encode())

        allow("false")
        try:
            server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
            producer = Producer({"bootstrap.servers": settings.kafka, "partitioner": "murmur2_random"})
            for number, row in enumerate(MANY, len(ROWS) + 1):
                _produce(producer, settings, row._replace(notification_id=number))
            assert producer.flush(30) == 0
            wait_for(lambda: lag() == len(MANY), "all of them are behind")
        finally:
            allow("true")
    wait_for(lambda: lag() == 0, "they are projected")


def test_a_consumer_that_kafka_has_shut_out_for_good_ends_and_says_so(settings: Settings, follower: Following) -> None:
    """It would read nothing more for ever: the worker begins anew with another one."""
    group = f"{settings.namespace}.projections.postgres"
    config = {"bootstrap.servers": settings.kafka, "group.id": group, "group.instance.id": f"{group}.one"}
    other = Consumer({**config, "partition.assignment.strategy": "roundrobin"})
    try:
        other.subscribe([settings.topic(DOMAIN)])
        wait_for(lambda: other.poll(0.1) is None and not follower.is_alive(), "the first has been fenced")
    finally:
        other.close()
    with pytest.raises(KafkaException, match="fenced"):
        follower.end()
