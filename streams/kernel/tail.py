"""The newest event that a topic has."""

from __future__ import annotations

import time
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

ANSWER_S = 5.0
GONE = KafkaError._TIMED_OUT


def newest(kafka: str, topic: str, back: int = 1) -> int:
    """The highest notification id among the last `back` records of each partition, 0 when there is none. Raises `KafkaException`."""
    asked: dict[str, str | int | float | bool] = {
        "bootstrap.servers": kafka, "group.id": f"{topic}.newest", "enable.auto.commit": False, "log_level": 0,
        "auto.offset.reset": "earliest", "queued.max.messages.kbytes": 4_096, "fetch.wait.max.ms": 100,
    }  # fmt: skip
    with closing(Consumer(asked)) as consumer:
        found = consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
        if found.error is not None:
            raise KafkaException(found.error)
        ends: dict[int, int] = {}
        starts = []
        for number in found.partitions:
            first, end = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=ANSWER_S)
            if end > first:
                ends[number] = end
                starts.append(TopicPartition(topic, number, max(first, end - back)))
        consumer.assign(starts)
        best, until = 0, time.monotonic() + ANSWER_S
        while ends:
            message = consumer.poll(until - time.monotonic())
            if message is None:
                raise KafkaException(KafkaError(GONE))
            error, number, offset = message.error(), message.partition(), message.offset()
            if error is not None:
                raise KafkaException(error)
            assert number is not None
            assert offset is not None
            best = max(best, int(dict(message.headers() or ()).get("notification-id") or 0))
            if offset + 1 >= ends.get(number, offset + 2):
                del ends[number]
        return best
