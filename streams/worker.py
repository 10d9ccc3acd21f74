"""The projection worker: `python -m streams.worker [--sink postgres|redis|clickhouse …] [--metrics-port N]`.

One thread a sink, each with its own consumer and group, so a slow or absent store delays only its own read models. Any number of
workers share the load by partition. SIGTERM: the batch at hand is finished, exit 0. A thread that fails starts again after a
pause. A full dead-letter queue or a table that needs a person stops its sink, with a line with ALARM now and every minute; the
others go on, and when none is left, or on SIGTERM, the worker exits with 3.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from uuid import uuid4

from prometheus_client import Gauge

from aggregates.kernel import domains
from infra.settings import Settings
from projections.kernel.clauses import Projection, projections
from projections.kernel.migrate import migrate
from projections.kernel.parking import Limits, PostgresParking, TooManyParked
from projections.kernel.runner import Broken, Down, Runner
from projections.kernel.sinks import SINKS, sink_of
from schemas import external
from streams.kernel.consumer import IDLE_S, LaneConsumer, Pace
from streams.kernel.dlq import Copier
from streams.kernel.entry import begin, parser

log = logging.getLogger("streams.worker")

# A batch costs this process and the store the same few turns for one event as for ten: while events keep coming, fifty a second do.
PACES = {
    "postgres": Pace(rows_max=4_000, every_s=0.02),
    # One Lua call holds up every other client for as long as it takes.
    "redis": Pace(rows_max=500, every_s=0.02),
    # Each insert is a part that is brought to the disk, and merged later: beside what the event store waits for.
    "clickhouse": Pace(rows_max=20_000, linger_s=0.1, fetch_bytes=1_000_000, every_s=2.0),
}
RESTART_S = (1.0, 30.0)  # first and longest pause before a failed thread starts again
CALM_S = 300.0  # a thread that ran so long starts from the first pause again
FAILURES_MAX = 8  # in a row; then it is a matter for a person
ALARM = 3  # exit code
REMIND_S = 60.0

PARKED = Gauge("projection_parked_events", "Deliveries that wait in the dead-letter queue", ["sink"])
OLDEST = Gauge("projection_oldest_parked_seconds", "Age of the oldest of them", ["sink"])


class SinkThread(threading.Thread):
    """A sink's consumer, restarted when it fails. `code` is what the process should exit with because of it."""

    def __init__(
        self,
        sink: str,
        chosen: Settings,
        stop: threading.Event,
        of: Collection[Projection],
        topics: Collection[str],
        limits: Limits,
    ) -> None:
        super().__init__(name=sink)
        self.sink, self.settings, self.stop, self.of, self.topics, self.limits = sink, chosen, stop, of, topics, limits
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.code = 0

    def run(self) -> None:
        pause, failures = RESTART_S[0], 0
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                self._consume()
                return
            except (TooManyParked, Broken) as error:
                self._alarm(str(error))
                return
            except Exception as error:
                if time.monotonic() - began > CALM_S:
                    pause, failures = RESTART_S[0], 0
                failures += 1
                log.exception("%s failed, %d. time", self.sink, failures)
                if failures >= FAILURES_MAX:
                    self._alarm(f"it failed {failures} times, at last with {type(error).__name__}: {error}")
                    return
                self.stop.wait(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, RESTART_S[1])

    def _alarm(self, why: str) -> None:
        """Keep saying so until the process is stopped."""
        self.code = ALARM
        parking = PostgresParking(self.settings.postgres)
        while True:
            log.critical("ALARM: %s stopped: %s", self.sink, why)
            with suppress(Down):
                parking.report(self.worker, self.sink, {}, 0, why)
            if self.stop.wait(REMIND_S):
                parking.close()
                return

    def _consume(self) -> None:
        sink = sink_of(self.sink, self.settings, behind=True)
        copier = Copier(self.settings)
        parking = PostgresParking(self.settings.postgres, self.limits, copier)
        reporting = PostgresParking(self.settings.postgres)
        runner = Runner(sink, self.of, self.topics, parking)
        try:
            if not runner.topics:
                log.info("%s: no tables", self.sink)
                return
            LaneConsumer(
                self.settings.kafka,
                f"{self.settings.namespace}.projections.{self.sink}",
                self.settings.topic_prefix,
                runner,
                PACES[self.sink],
                report=lambda lag: self._report(reporting, runner, lag),
                config=self.settings.member(f"{self.settings.namespace}.projections.{self.sink}"),
                ids=external.ids_of(self.settings.schema_registry_url),
            ).run(self.stop)
            reporting.forget(self.worker, self.sink)
        finally:
            parking.close()
            reporting.close()
            copier.close()
            sink.close()

    def _report(self, parking: PostgresParking, runner: Runner, lag: dict[str, int]) -> None:
        try:
            parked, oldest_s = parking.count(self.sink)
            parking.report(self.worker, self.sink, lag, len(runner.lanes))
        except Down as error:
            log.debug("status is not stored: %s", error)
            return
        PARKED.labels(self.sink).set(parked)
        OLDEST.labels(self.sink).set(oldest_s)


def work(
    chosen: Settings,
    sinks: Collection[str],
    stop: threading.Event,
    limits: Limits | None = None,
    of: Collection[Projection] | None = None,
    topics: Collection[str] | None = None,
) -> int:
    """Run the sinks until `stop` is set or one of them needs a person; returns the exit code.

    `of` and `topics` (domains) are those of the checkout if not given.
    """
    gc.freeze()  # what is imported stays; of the millions of small objects of a batch none outlives it, cycles there are none
    gc.set_threshold(100_000, 50, 100)
    of, topics = projections() if of is None else of, domains() if topics is None else topics
    threads = [SinkThread(sink, chosen, stop, of, topics, limits or Limits()) for sink in sinks]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() and not thread.code for thread in threads):
        stop.wait(IDLE_S)  # not join: a signal's handler runs in this thread
    stop.set()
    for thread in threads:
        thread.join()
    return max(thread.code for thread in threads)


def main(argv: list[str] | None = None) -> int:
    given = _arguments(argv)
    chosen, stop = begin(given), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    for line in migrate(chosen, given.sink):
        log.info(line)
    return work(chosen, given.sink, stop, Limits(given.parked_rows_max, ratio_max=given.parked_ratio_max))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    known = parser("streams.worker", __doc__.splitlines()[0])
    known.add_argument("--sink", action="append", choices=sorted(SINKS), help="only this one; may be given again")
    known.add_argument("--parked-rows-max", type=int, default=Limits().rows_max)
    known.add_argument("--parked-ratio-max", type=float, default=Limits().ratio_max)
    given = known.parse_args(argv)
    given.sink = list(dict.fromkeys(given.sink or sorted(SINKS)))
    return given


if __name__ == "__main__":
    sys.exit(main())
