"""A topic written anew from its event store: its readers go on, whatever they had seen of the old one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg
import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient

from infra.settings import Settings
from replay import topic
from replay.log import ReplayError
from replay.topic import rewrite
from tests.kernel.eventlog import published, stored
from tests.kernel.platform import wait_for
from tests.projections.kernel.purse import DOMAIN
from tests.replay.purses import Purses


def delete(settings: Settings) -> None:
    """As if its files were gone."""
    admin = AdminClient({"bootstrap.servers": settings.kafka})
    for future in admin.delete_topics([settings.topic(DOMAIN)]).values():
        future.result(30)


def records(settings: Settings) -> list[int]:
    return [row.notification_id for one in published(settings.kafka, settings.topic(DOMAIN)) for row in one]


@contextmanager
def happening(purses: Purses) -> Iterator[None]:
    """Commands go on in the meantime."""
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(0.02):
            purses.happen(5)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_readers_of_a_topic_that_is_made_anew_under_load_lose_nothing(settings: Settings) -> None:
    purses = Purses(settings)
    with purses.live():
        rows = purses.happen(200)
        purses.arrived()
        purses.publish(rows[-100:])  # a relay began anew: the old log is longer than the new one
        purses.happen(100)
        purses.arrived()
        with happening(purses):
            done = rewrite(settings, DOMAIN, force=True)
            assert done.events >= 300
        purses.happen(100)
        purses.arrived()
    purses.judge()
    assert sorted(set(records(settings))) == list(range(1, len(purses.log.rows) + 1))


def test_a_lost_topic_is_written_by_a_relay_of_its_own_if_none_runs(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    purses = Purses(settings)
    with purses.live():
        purses.happen(150)
        purses.arrived()
    delete(settings)
    assert rewrite(settings, DOMAIN, as_json=True).records == 150
    told = {one["progress"]: one for one in map(json.loads, capsys.readouterr().out.splitlines())}
    assert [(one["events"], one["of"]) for one in told.values()] == [(150, 150)] * 2  # written, and read back
    assert sorted(records(settings)) == list(range(1, 151))
    with purses.live():
        purses.happen(50)
        purses.arrived()
    purses.judge()


def test_it_is_made_when_nobody_holds_the_old_one_any_more(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    purses = Purses(settings)
    purses.publish(purses.happen(10))
    group = f"{settings.namespace}.slow"
    own = {"group.id": group, "topic.metadata.refresh.interval.ms": 200, "session.timeout.ms": 6_000}
    with closing(Consumer({"bootstrap.servers": settings.kafka, "auto.offset.reset": "earliest", **own})) as slow:
        slow.subscribe([settings.topic(DOMAIN)])
        wait_for(lambda: slow.poll(0.1), "it has the topic")
        monkeypatch.setattr(topic, "NOTICED_S", 1.0)
        with pytest.raises(ReplayError, match=f"is deleted, and after 1 s consumers of {group} have not noticed"):
            rewrite(settings, DOMAIN, force=True)  # while it asks for nothing, it is told nothing
        monkeypatch.setattr(topic, "NOTICED_S", 30.0)
        with ThreadPoolExecutor(1) as others:
            done = others.submit(rewrite, settings, DOMAIN)
            wait_for(lambda: slow.poll(0.1) is None and done.done(), "it has noticed")
            assert done.result().records == 10


def test_a_topic_with_records_is_not_touched(settings: Settings) -> None:
    purses = Purses(settings)
    purses.publish(purses.happen(10))
    with pytest.raises(ReplayError, match=r"has 10 records \(its event store has 10 events\). --force deletes it"):
        rewrite(settings, DOMAIN)
    assert sorted(records(settings)) == list(range(1, 11))


def test_a_store_with_a_gap_makes_no_topic(settings: Settings) -> None:
    purses = Purses(settings)
    purses.publish(purses.happen(10))
    with psycopg.connect(settings.postgres) as connection:
        connection.execute("DELETE FROM pouch_events WHERE notification_id = 5")
    with pytest.raises(ReplayError, match="the event store of pouch has 9 of 10 events"):
        rewrite(settings, DOMAIN, force=True)
    assert len(records(settings)) == 10


def test_a_record_that_came_too_late_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a relay that was frozen, and woke when the new topic was empty still."""
    purses = Purses(settings)
    rows = purses.happen(30)
    publish = topic._publish

    def with_a_zombie(*given: object) -> None:
        purses.publish(rows[-1:])
        publish(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(topic, "_publish", with_a_zombie)
    with pytest.raises(ReplayError, match=r"has notification \d+ behind 30: a relay .* has written to it"):
        rewrite(settings, DOMAIN)


def test_two_at_once_are_one_too_many(settings: Settings) -> None:
    Purses(settings)
    with topic._without_relay(settings, DOMAIN):
        with pytest.raises(ReplayError, match="another run of this command"):
            rewrite(settings, DOMAIN)


def test_other_numbers_of_partitions_are_refused(settings: Settings) -> None:
    purses = Purses(settings)
    more = settings.model_copy(update={"partitions": settings.partitions + 1})
    with pytest.raises(ReplayError, match="has 4 partitions, and TITAN_PARTITIONS is 5"):
        rewrite(more, DOMAIN)
    with purses.live():
        purses.happen(40)
        purses.arrived()
    delete(settings)
    fewer = settings.model_copy(update={"partitions": 2})
    with pytest.raises(ReplayError, match="read models know 4 partitions of pouch, and TITAN_PARTITIONS is 2"):
        rewrite(fewer, DOMAIN)
    with psycopg.connect(settings.postgres, autocommit=True) as connection:
        assert len(stored(connection, DOMAIN)) == 40


def test_kafka_away_is_one_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Purses(settings)
    monkeypatch.setattr(topic, "ANSWER_S", 1.0)
    with pytest.raises(ReplayError, match="Kafka at 127.0.0.1:9"):
        rewrite(settings.model_copy(update={"kafka": "127.0.0.1:9"}), DOMAIN)
