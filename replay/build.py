"""Fills shadows: the partitions are shared by worker processes, a checkpoint each, and what was killed goes on from its last one."""

from __future__ import annotations

import json
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from infra.children import step_back
from infra.settings import ROOT, Settings
from projections.kernel.clauses import Projection
from projections.kernel.tables import AnyTable
from replay.failures import said
from replay.loading import ROWS_MAX, Aside, Job, load, rest
from replay.log import ReplayError, Span
from replay.progress import Progress
from replay.runs import Run, Runs, fingerprint
from replay.shadow import NICE, Shadows, shadows_of

INLINE_MAX = 20_000  # records: for fewer a process is not worth its start
STOP_S = 10.0

Source = Mapping[Projection, str]
"""Projections, each with its module's name, or the file that it was loaded from."""


def build(
    settings: Settings,
    runs: Runs,
    of: Source,
    targets: Mapping[AnyTable, AnyTable],
    spans: Collection[Span],
    *,
    workers: int | None = None,
    until: str = "",
    rows_max: int = ROWS_MAX,
    as_json: bool = False,
    aside: Aside | None = None,
) -> int:
    """Make or go on with the shadows in `targets` (live table: shadow), up to the spans' ends, and finish them.

    `runs` has them locked. `until` names where they end, if that is not where the topics do; the same shadow with another
    end, table or code is made anew. `aside`: events to leave out. Answers with how many records were read. Raises `ReplayError`.
    """
    with ExitStack() as stack, said():
        sinks = {sink: stack.enter_context(closing(shadows_of(sink, settings))) for sink in {t.sink for t in targets}}
        to_load, goes_on = {}, False
        for table, shadow in targets.items():
            its, print_ = sinks[table.sink], fingerprint(owner(of, table), table, until)
            if begun(runs, its, shadow, print_) is None:
                runs.forget(table.sink, shadow.name)  # one that is half made passes for nothing
                its.make(shadow)
                runs.begin(table, shadow, print_)
            elif its.finished(shadow):
                continue
            else:
                goes_on = True
            to_load[table] = shadow
        job = job_of(settings, of, to_load, spans, rows_max)._replace(aside=aside or {})
        events = _load(job, rest(job) if goes_on else job.spans, workers, as_json) if to_load else 0
        for table, shadow in targets.items():
            sinks[table.sink].finish(shadow)
        return events


def begun(runs: Runs, its: Shadows, shadow: AnyTable, fingerprint: str) -> Run | None:
    """The run that a build can go on with: it made the same, and what it made is still there."""
    run = runs.of(shadow)
    return run if run is not None and run.fingerprint == fingerprint and its.there(shadow) else None


def job_of(
    settings: Settings,
    of: Source,
    targets: Mapping[AnyTable, AnyTable],
    spans: Collection[Span],
    rows_max: int = ROWS_MAX,
) -> Job:
    """To fill the shadows in `targets` from those of the spans that feed them."""
    return Job(
        settings,
        tuple(of.values()),
        {(table.sink, table.name): shadow.name for table, shadow in targets.items()},
        [span for span in spans if any(is_fed(one, span.domain, targets) for one in of)],
        rows_max,
    )


def _load(job: Job, left: Collection[Span], workers: int | None, as_json: bool) -> int:
    """`left` is for the progress alone: a loader reads on from where its own shadow is, which a crash may have emptied since."""
    first, *more = sorted({name for _, name in job.targets})
    with Progress(f"{first} +{len(more)}" if more else first, left, as_json) as progress:
        for events, positions in _loaded(job, _count(job, workers)):
            progress.moved(events, positions)
    return progress.events


def owner(of: Source, table: AnyTable) -> Projection:
    return next(one for one in of if table in one.tables)


def is_fed(one: Projection, domain: str, tables: Collection[AnyTable]) -> bool:
    return (one.everything or domain in one.domains) and any(table in tables for table in one.tables)


def _count(job: Job, workers: int | None) -> int:
    if workers is None and sum(span.records for span in job.spans) <= INLINE_MAX:
        return 0
    return max(1, min(workers or cores(), sum(span.records > 0 for span in job.spans)))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared(spans: Collection[Span], count: int) -> list[list[Span]]:
    """The spans in so many groups of about the same number of records."""
    groups: list[list[Span]] = [[] for _ in range(count)]
    for span in sorted(spans, key=lambda span: -span.records):
        min(groups, key=lambda group: sum(one.records for one in group)).append(span)
    return groups


def _loaded(job: Job, count: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Load with so many processes, in this one for 0; tells how many more events are done, and next offsets."""
    if count == 0:
        told: list[tuple[int, dict[str, int]]] = []
        load(job, lambda events, positions: told.append((events, dict(positions))))
        yield from told
        return
    with _workers([job._replace(spans=group) for group in shared(job.spans, count)]) as said_by:
        left = count
        while left:
            said = said_by.get()
            if "error" in said:
                raise ReplayError(said["error"])
            if "done" in said:
                left -= 1
            else:
                yield said["events"], said["positions"]


@contextmanager
def _workers(jobs: Collection[Job]) -> Iterator[queue.Queue[dict[str, Any]]]:
    """Processes at these jobs, and what they say; those that still run at the end are ended."""
    says: queue.Queue[dict[str, Any]] = queue.Queue()
    processes: list[subprocess.Popen[bytes]] = []

    def listen(process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        ended = False
        for line in process.stdout:
            if line.startswith(b"{"):
                says.put(said := json.loads(line))
                ended = ended or "done" in said or "error" in said
            else:  # somebody's print
                sys.stderr.buffer.write(line)
        if not ended:
            says.put({"error": f"a worker ended with {process.wait()}: start again, this goes on"})

    try:
        for job in jobs:
            process = subprocess.Popen(
                [sys.executable, "-m", "replay.loading"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
                start_new_session=True,
            )
            step_back(process.pid, NICE)
            processes.append(process)
            assert process.stdin is not None
            pickle.dump(job, process.stdin)
            process.stdin.flush()  # and left open: its end tells the worker that this process is gone
            threading.Thread(target=listen, args=(process,), daemon=True).start()
        yield says
    finally:
        for process in processes:
            assert process.stdin is not None
            process.kill()  # nothing is lost but what came after the last checkpoint
            process.wait(STOP_S)
            process.stdin.close()
