"""A Postgres sink that stores a large batch in a thread of its own, while the caller makes the next one.

Most of the way of a batch is Python's work, the rest is waiting for Postgres: in bulk the two go on side by side, which is worth
half as many events a second again. The runner takes a batch that is on its way for stored. If it then fails, the next call raises
Fenced, as if another runner had moved the positions: they are read anew, and so are the events behind them. For a while each
batch is waited for then, so that poison is found, and parked, in the usual way. Small batches are always waited for.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait

from projections.kernel.postgres import PostgresSink
from projections.kernel.runner import BadData, Batch, Down, Fenced, Position
from projections.kernel.tables import AnyTable

LARGE_CHANGES = 1_000
CAREFUL_BATCHES = 8


class BehindSink:
    """As a `PostgresSink`; at most one batch is on its way."""

    name = "postgres"

    def __init__(self, dsn: str, large_changes: int = LARGE_CHANGES) -> None:
        self._sink, self._large = PostgresSink(dsn), large_changes
        self._thread = ThreadPoolExecutor(1, "behind")
        self._sent: Future[None] | None = None
        self._careful = 0

    def positions(
        self, tables: Collection[AnyTable], topic: str, partitions: Collection[int]
    ) -> dict[tuple[AnyTable, int], Position]:
        if self._sent is not None:
            wait([self._sent])  # what became of it is for the next batch to say
        return self._sink.positions(tables, topic, partitions)

    def apply(self, batch: Batch) -> None:
        work = self._sink.work(batch)
        self.settle()
        if not self._careful and sum(map(len, batch.changes.values())) >= self._large:
            self._sent = self._thread.submit(self._sink.send, work)
            return
        self._careful = max(0, self._careful - 1)
        try:
            self._sink.send(work)
        except BadData:
            self._careful = CAREFUL_BATCHES  # as long as it is being halved
            raise

    def settle(self) -> None:
        if self._sent is not None:
            sent, self._sent = self._sent, None
            try:
                sent.result()
            except (BadData, Down) as error:
                self._careful = CAREFUL_BATCHES
                raise Fenced(f"a batch was not stored: {error}") from error
        self._sink.settle()

    def close(self) -> None:
        self._thread.shutdown()
        self._sink.close()
