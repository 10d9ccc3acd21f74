"""Purses with their read models in all three stores, live: what happens to them is stored, relayed and projected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from uuid import uuid4

from confluent_kafka import Producer

from aggregates.kernel.migrate import migrate
from aggregates.kernel.wire import Row, headers, micros
from infra.kafka import topics
from infra.settings import Settings
from projections.kernel.migrate import migrate as migrate_views
from tests.kernel.pipeline import following, projected, relayed, relaying, store_rows
from tests.kernel.platform import wait_for
from tests.projections.kernel.purse import DOMAIN, Closed, Filled, Log, Noted, Opened, Torn
from tests.projections.kernel.stores import PURSES, Held, store

CLOSED_MAX = 30  # of the forty: something has to happen to the others, however long it goes on
SINKS = ("postgres", "redis", "clickhouse")


class Purses:
    """`live` while something is to be projected; `happen` as often as one likes."""

    def __init__(self, settings: Settings, seed: int = 1) -> None:
        self.settings, self.log, self._dice = settings, Log(), Random(seed)
        self.closed: set[int] = set()
        migrate(settings.postgres, [DOMAIN])
        topics.create(settings, [DOMAIN])
        migrate_views(settings, SINKS, [PURSES])

    @contextmanager
    def live(self, sinks: Iterable[str] = SINKS) -> Iterator[None]:
        """With a relay, and a worker's consumers."""
        with ExitStack() as stack:
            stack.enter_context(relaying(self.settings))
            stack.enter_context(following(self.settings, [PURSES], [DOMAIN], list(sinks)))
            yield

    def happen(self, times: int) -> list[Row]:
        """So many more events of a few dozen purses are stored."""
        before = len(self.log.rows)
        while len(self.log.rows) < before + times:
            number = self._dice.randrange(40)
            if self.log.purse(number) not in self.log.versions:
                self.log.add(number, Opened, owner=uuid4(), currency="EUR")
            elif number in self.closed:
                continue
            elif self._dice.random() < 0.8:
                self.log.add(number, Filled, amount=self._dice.randrange(1, 1_000_000))
            elif self._dice.random() < 0.9:
                self.log.add(number, Noted, note=f"n{self._dice.randrange(3)}", text=f"t{self._dice.random()}")
            elif self._dice.random() < 0.5:
                self.log.add(number, Torn, note="n1")
            elif len(self.closed) < CLOSED_MAX:
                self.closed.add(number)
                self.log.add(number, Closed)
        rows = self.log.rows[before:]
        store_rows(self.settings.postgres, DOMAIN, rows)
        return rows

    def arrived(self) -> None:
        """Wait until all that is stored is in each read model."""
        of = self.settings
        wait_for(lambda: relayed(of, DOMAIN), "the log is in the topic")
        wait_for(lambda: projected(of, [PURSES], DOMAIN, of.partitions), "read models have seen it")

    def publish(self, rows: Iterable[Row]) -> None:
        """Records beside the relay's."""
        producer = Producer({"bootstrap.servers": self.settings.kafka, "partitioner": "murmur2_random"})
        for row in rows:
            made: list[tuple[str, str | bytes | None]] = list(headers(row))
            at = micros(row.occurred_at) // 1000
            producer.produce(
                self.settings.topic(DOMAIN), row.state, str(row.originator_id).encode(), headers=made, timestamp=at
            )
        assert producer.flush(30) == 0

    def judge(self) -> None:
        """Each store holds what the events come to."""
        for name in SINKS:
            with store(name, self.settings) as one:
                held: Held = one.holds()
                assert held == one.should_hold(self.log), name
