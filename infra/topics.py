"""What the topics hold, as somebody sees it who knows nothing but the position rule: read on from look to look."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

from confluent_kafka import Consumer, KafkaError, TopicPartition

from aggregates.kernel import domains
from infra.settings import Settings


@dataclass
class Log:
    """What one domain's topic holds: ids in all, and by partition the newest after dropping what a consumer drops."""

    ids: Counter[int] = field(default_factory=Counter)
    newest: dict[int, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    """Ids that came after a higher one of their partition without having come before: a consumer never sees them."""
    events: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)
    """(event id, key) by notification id, of those that are not compared with the store yet."""
    homes: dict[bytes, int] = field(default_factory=dict)
    strays: list[bytes] = field(default_factory=list)
    """Keys that are in two partitions: their events have no order."""

    def add(self, partition: int, id: int, event_id: bytes, key: bytes) -> None:
        new = id not in self.ids
        self.ids[id] += 1
        if id > self.newest.get(partition, 0):
            self.newest[partition] = id
        elif new:
            self.lost.append(id)
        if self.homes.setdefault(key, partition) != partition:
            self.strays.append(key)
        self.events.setdefault(id, (event_id, key))


class Topics:
    """The topics of all domains, read on from where the last look ended."""

    def __init__(self, of: Settings) -> None:
        self.logs: dict[str, Log] = {}
        self._domains = {of.topic(domain): domain for domain in domains()}
        self._consumer = Consumer(
            {
                "bootstrap.servers": of.kafka, "group.id": "titan-audit", "enable.auto.commit": False,
                "enable.partition.eof": True, "log_level": 0, "reconnect.backoff.max.ms": 500, "fetch.wait.max.ms": 50,
            }
        )  # fmt: skip
        self._places: list[tuple[str, int]] = []
        self._at_end: set[tuple[str, int]] = set()

    def close(self) -> None:
        self._consumer.close()

    def read_on(self, seconds: float) -> bool:
        """Take in what comes; whether the end of every partition was reached within so many seconds."""
        if not self._places:
            there = self._consumer.list_topics(timeout=10).topics
            self._places = [(t, number) for t in self._domains if t in there for number in there[t].partitions]
            self._consumer.assign([TopicPartition(*place, 0) for place in self._places])
            self.logs = {self._domains[topic]: Log() for topic, _ in self._places}
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for message in self._consumer.consume(10_000, timeout=0.05):
                place = cast(str, message.topic()), cast(int, message.partition())
                error = message.error()
                if error is None:
                    self._at_end.discard(place)
                    headers = dict(cast("list[tuple[str, bytes]]", message.headers() or []))
                    log = self.logs[self._domains[place[0]]]
                    log.add(place[1], int(headers["notification-id"]), headers["event-id"], cast(bytes, message.key()))
                elif error.code() == KafkaError._PARTITION_EOF:
                    self._at_end.add(place)
            if len(self._at_end) == len(self._places):
                return True
        return False
