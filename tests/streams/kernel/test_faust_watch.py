"""What ends a Faust process that does not go on, and what does not."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from infra.settings import Settings
from projections.kernel.runner import Down
from streams.abandonment import Abandonment
from streams.faust_app import Reminders, discover
from streams.kernel import faust
from streams.kernel.faust import STALLED, Records, Stalls, Watchdog, side_consumer
from tests.kernel.eventlog import make_topics

A, B = ("cart", 0), ("cart", 1)


def test_only_what_stands_still_with_more_to_read_is_stalled() -> None:
    stalls = Stalls(after_s=10)
    assert stalls.look({A: 5, B: 7}, {A: 9, B: 7}, now=0) == []
    assert stalls.look({A: 5, B: 7}, {A: 9, B: 7}, now=10) == []
    assert stalls.look({A: 5, B: 7}, {A: 9, B: 7}, now=10.1) == [A]
    assert stalls.look({A: 6, B: 7}, {A: 9, B: 8}, now=20) == []  # it moved; the other has something to read now
    assert stalls.look({A: 6, B: 7}, {A: 9, B: 8}, now=20.2) == [B]
    assert stalls.look({}, {}, now=30) == []  # waiting, or nothing of its own: no time counts
    assert stalls.look({A: 6, B: 7}, {A: 9, B: 8}, now=40) == []


def host(**lanes: Any) -> Any:
    return SimpleNamespace(name="toy", topics=["cart"], waiting=False, suspended="", lanes=dict(**lanes))


def look(watchdog: Watchdog, asking: Consumer) -> None:
    """Twice: a partition can stand still only between two looks. A topic that is new has no leader for a moment."""
    looks = 0
    while looks < 2:
        with suppress(KafkaException):
            watchdog._look(asking)
            looks += 1


def test_a_process_without_partitions_ends_when_the_group_does_not_go_on(settings: Settings) -> None:
    make_topics(settings.kafka, [settings.topic("cart")], settings.partitions)
    ended: list[int] = []
    idle, waiting = host(), host()
    waiting.waiting = True
    watchdog = Watchdog(settings, [idle, waiting], 0, ended.append)
    asking = side_consumer(settings)
    look(watchdog, asking)
    assert ended == []  # nothing to read
    producer = Producer({"bootstrap.servers": settings.kafka})
    producer.produce(settings.topic("cart"), b"x", b"y", partition=2)
    assert producer.flush(10) == 0
    look(watchdog, asking)
    assert set(ended) == {STALLED}
    ended.clear()
    member = Consumer({"bootstrap.servers": settings.kafka, "group.id": faust.group(settings)})
    member.commit(offsets=[TopicPartition(settings.topic("cart"), 2, 1)], asynchronous=False)
    look(watchdog, asking)
    assert ended == []
    member.close()
    asking.close()


def test_a_record_is_found_beside_faust(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    make_topics(settings.kafka, [settings.topic("cart")], settings.partitions)
    producer = Producer({"bootstrap.servers": settings.kafka})
    for number in (7, 8, 9):
        producer.produce(settings.topic("cart"), b"x", b"y", partition=0, headers=[("notification-id", b"%d" % number)])
    assert producer.flush(10) == 0
    records = Records(settings)
    assert asyncio.run(records.peek({A: 1, B: 0})) == {A: (1, 8)}
    assert asyncio.run(records.peek({A: 3})) == {}
    assert asyncio.run(records.peek({A: 100})) == {A: (0, 7)}  # there is no such offset: the topic was made anew
    monkeypatch.setattr(faust, "ASK_S", 1)
    away = Records(settings.model_copy(update={"kafka": "127.0.0.1:9"}))
    with pytest.raises(Down):
        asyncio.run(away.peek({A: 1}))


def test_a_driver_that_does_not_seek_holds_up_nobody(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust, "ASK_S", 0.01)
    sought: list[Any] = []

    async def never(offsets: Any) -> None:
        sought.append(offsets)
        await asyncio.Event().wait()

    records = Records(settings)
    records.app = cast(
        Any, SimpleNamespace(consumer=SimpleNamespace(assignment=lambda: {records.tp(A)}, seek_wait=never))
    )
    asyncio.run(asyncio.wait_for(records.seek(A, 7), 10))
    assert sought == [{records.tp(A): 7}]


def test_a_chatty_library_repeats_itself_in_vain() -> None:
    said = Reminders()

    def record(name: str, message: str) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, "", 0, message, (), None)

    assert [said.filter(record("aiokafka.fetcher", "away")) for _ in range(3)] == [True, False, False]
    assert said.filter(record("aiokafka.fetcher", "back"))
    assert [said.filter(record("streams.faust_app", "ours")) for _ in range(2)] == [True, True]


def test_processors_are_found() -> None:
    assert discover() == [Abandonment]
