"""One worker of a load: reads partitions of its own and fills shadows with what the projections make of them.

`python -m replay.loading` takes its job on standard input and tells its progress on standard output, a line of JSON each. It knows
the topics and the stores of the shadows, nothing else: no command, mail or payment client, no producer. It ends with its parent.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from importlib import import_module
from typing import Any, NamedTuple

from aggregates.kernel import domains
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS, Projection
from projections.kernel.runner import Delivery, Feed, Position, Runner, Sink
from projections.kernel.runner import Lane as Of
from projections.kernel.tables import AnyTable, Change
from replay.failures import said
from replay.log import ReplayError, Span, read
from replay.shadow import Loader, shadows_of

ROWS_MAX = 5_000  # gathered in one process, by all its loaders, before they write
EVENTS_MAX = 200_000  # between two checkpoints, however few rows they come to
CHECKPOINT_S = 10.0  # what a kill costs at most
BATCH_MAX = 500  # records: with what is made of them they stay in a core's own cache, which is a quarter of the time
REPORT_S = 0.2

Lane = tuple[str, int]
Aside = Mapping[str, Collection[tuple[str, int, int]]]
"""Events that are left out, by processor: domain, partition and notification id of each."""
Report = Callable[[int, Mapping[str, int]], None]


class Job(NamedTuple):
    """`sources`: modules of projections, or files of changed ones. `targets`: shadows' names by sink and table."""

    settings: Settings
    sources: tuple[str, ...]
    targets: dict[tuple[str, str], str]
    spans: list[Span]
    rows_max: int = ROWS_MAX
    aside: Aside = {}

    def projections(self) -> list[Projection]:
        """Its projections, imported."""
        found = []
        for source in self.sources:
            if source.endswith(".py"):
                found.append(import_module("replay.whatif").load(source))
            else:
                import_module(source)
                found.append(PROJECTIONS[source])
        if any(one.everything for one in found):
            for domain in domains():
                import_module(f"aggregates.{domain}")
        return found

    def pairs(self, of: Iterable[Projection]) -> dict[AnyTable, AnyTable]:
        """Its tables of these projections, each with its shadow."""
        return {
            table: table.named(self.targets[table.sink, table.name])
            for one in of
            for table in one.tables
            if (table.sink, table.name) in self.targets
        }


def rest(job: Job) -> list[Span]:
    """What is still to be read of the job's spans, from where its shadows are; one that is through is empty. Raises `ReplayError`."""
    with ExitStack() as stack, said():
        *_, left = _begun(job, stack)
    by_lane = {(span.domain, span.partition): span for span in left}
    return [by_lane.get((span.domain, span.partition), span._replace(first=span.end)) for span in job.spans]


def _begun(job: Job, stack: ExitStack) -> tuple[list[Loader], list[Runner], Anchors, list[Span]]:
    """The shadows' loaders, and what they are to read: from the last record on that all of a lane's have seen."""
    of = job.projections()
    pairs, fed = job.pairs(of), sorted({span.domain for span in job.spans})
    loaders, runners = [], []
    for sink in sorted({table.sink for table in pairs}):
        shadows = stack.enter_context(closing(shadows_of(sink, job.settings)))
        loader = stack.enter_context(closing(shadows.loader()))
        loaders.append(loader)
        its = {t: s for t, s in pairs.items() if t.sink == sink}
        runners.append(
            LeavingOut(loader, of, fed, its, job.aside) if job.aside else Runner(loader, of, fed, targets=its)
        )
    anchors, spans, seen = Anchors(), [], dict[Lane, list[Position]]()
    for runner in runners:
        lanes = [(span.domain, span.partition) for span in job.spans if span.domain in runner.feeds]
        for lane, anchor in runner.assign(lanes).items():
            seen.setdefault(lane, []).append(anchor)
    for span in job.spans:
        at = seen.get((span.domain, span.partition))
        if at and min(at).offset + 1 < span.end:
            first = anchors.first((span.domain, span.partition), span.first, at)
            spans.append(span._replace(first=first))
    return loaders, runners, anchors, spans


class LeavingOut(Runner):
    """A runner that passes over some events, as if they had come to nothing: as a live one does that has parked them."""

    def __init__(
        self,
        sink: Sink,
        of: Iterable[Projection],
        domains: Collection[str],
        targets: Mapping[AnyTable, AnyTable],
        aside: Aside,
    ) -> None:
        super().__init__(sink, of, domains, targets=targets)
        self._aside = aside

    def _changes(self, feed: Feed, delivery: Delivery, lane: Of) -> Sequence[Change]:
        left_out = self._aside.get(feed.processor, ())
        if left_out and (delivery.topic, delivery.partition, delivery.notification_id) in left_out:
            return ()
        return super()._changes(feed, delivery, lane)


class Anchors:
    """Whether the log is still the one that the positions are from: the last record seen is read again, and has to be the same."""

    def __init__(self) -> None:
        self._wanted: dict[Lane, set[Position]] = {}

    def add(self, lane: Lane, anchor: Position) -> None:
        if anchor.offset >= 0:
            self._wanted.setdefault(lane, set()).add(anchor)

    def first(self, lane: Lane, start: int, positions: Collection[Position]) -> int:
        """Where to read a lane from: the earliest of the records that these have seen, or `start` for one without."""
        for position in positions:
            self.add(lane, position)
        return max(start, min(position.offset for position in positions))

    def check(self, deliveries: Iterable[Delivery]) -> None:
        """Raises `ReplayError` for another log."""
        if not self._wanted:
            return
        for delivery in deliveries:
            wanted = self._wanted.get((delivery.topic, delivery.partition))
            if not wanted:
                continue
            for anchor in [one for one in wanted if one.offset <= delivery.offset]:
                wanted.discard(anchor)
                if anchor != (delivery.notification_id, delivery.offset):
                    raise ReplayError(
                        f"the topic of {delivery.topic} was made anew or cut off since this replay began: partition "
                        f"{delivery.partition} does not have notification {anchor.notification_id} at offset {anchor.offset}. "
                        "Begin anew: titan replay projection --clean"
                    )


def load(job: Job, report: Report) -> None:
    """Fill the shadows from the job's spans, from where they are. Raises `ReplayError` in one line."""
    with ExitStack() as stack, said():
        loaders, runners, anchors, spans = _begun(job, stack)
        events, since, written, told = 0, 0, time.monotonic(), 0.0

        def positions() -> dict[str, int]:
            lanes = [(lane, at.anchor.offset + 1) for runner in runners for lane, at in runner.lanes.items()]
            return {f"{domain}:{partition}": offset for (domain, partition), offset in lanes}

        for batch in read(job.settings, spans, BATCH_MAX):
            anchors.check(batch)
            for runner in runners:
                runner.handle(batch)  # it passes over what its tables are not fed by
            events, since = events + len(batch), since + len(batch)
            now = time.monotonic()
            if (
                sum(loader.rows for loader in loaders) >= job.rows_max
                or since >= EVENTS_MAX
                or now - written > CHECKPOINT_S
            ):
                for loader in loaders:
                    loader.checkpoint()
                since, written = 0, time.monotonic()
            if now - told > REPORT_S:
                report(events, positions())
                events, told = 0, now
        for loader in loaders:
            loader.checkpoint()
        report(events, positions())


def main() -> int:
    job: Job = given()
    gc.freeze()  # as in the live worker: nothing of a batch outlives it, and cycles there are none
    gc.set_threshold(100_000, 50, 100)

    def tell(**what: object) -> None:
        print(json.dumps(what), flush=True)

    try:
        load(job, lambda events, positions: tell(events=events, positions=dict(positions)))
    except ReplayError as error:
        tell(error=str(error))
        return 1
    tell(done=True)
    return 0


def given() -> Any:
    """The job from the process that started this one, with whose end this one ends too."""
    job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return job


def _end_with_parent() -> None:
    while os.read(0, 1):  # past the buffer, whose lock would be held when this process ends
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
