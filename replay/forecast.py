"""`--dry-run`: what would be built, of how many events that are not in it yet, and how long that takes.

Nothing that is there is changed. The speed is measured: the first records are loaded into shadows that are removed again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing

from infra.settings import Settings
from projections.kernel.tables import AnyTable
from replay.build import Source, begun, cores, is_fed, job_of, owner
from replay.failures import afterwards, said
from replay.loading import load, rest
from replay.log import Span
from replay.progress import tell
from replay.runs import Run, Runs, fingerprint, full
from replay.shadow import shadow_of, shadows_of

SAMPLE = "sample"
SAMPLE_MAX = 20_000  # records that the speed is measured with


def foretell(
    given: argparse.Namespace,
    runs: Runs,
    of: Source,
    targets: Mapping[AnyTable, AnyTable],
    spans: Collection[Span],
    until: str = "",
    then: str = "",
) -> None:
    """Print what `build` with the same arguments would do; `then` is what would come after it. Raises `ReplayError`."""
    settings: Settings = given.chosen
    there, finished = _standing(settings, runs, of, targets, until)
    left = _left(settings, of, targets, spans, there, finished)
    records = sum(span.records for span in left)
    done = sum(span.records for span in job_of(settings, of, targets, spans).spans) - records
    wanted = [table for table in targets if table not in finished]
    workers = given.workers or cores()
    lanes = sum(span.records > 0 for span in left)
    per_second = sample(settings, runs, of, wanted, spans) * min(workers, lanes) if records else 0.0
    seconds = records / per_second if per_second else 0.0
    topics = sorted({settings.topic(span.domain) for span in spans})
    if given.json:
        tell(
            {
                "would_build": {f"{t.sink}.{t.name}": shadow.name for t, shadow in targets.items()},
                "topics": topics,
                "events": records,
                "events_done": done,
                "events_per_s": round(per_second),
                "seconds": round(seconds, 1),
                "begun": sorted(targets[table].name for table in there),
            }
        )
        return
    for table, shadow in targets.items():
        name = f"{table.sink}.{table.name}"
        if table in finished:
            print(f"would take {shadow.name}, which is complete, for {name}{then}")
            continue
        how = f", going on with what was begun at {there[table].started_at:%F %T}" if table in there else ""
        print(f"would build {name} as {shadow.name}{then}{how}")
    print(
        f"from {records:,} events of {', '.join(topics)}"
        + (f", with {done:,} that are in it already" if done else "")
        + f": about {seconds:,.0f} s"
        + (f" at {per_second:,.0f} events/s with {workers} processes" if records else "")
    )


def _standing(
    settings: Settings, runs: Runs, of: Source, targets: Mapping[AnyTable, AnyTable], until: str
) -> tuple[dict[AnyTable, Run], set[AnyTable]]:
    """The tables whose build can go on where it was, and those of them that have nothing left to read."""
    there: dict[AnyTable, Run] = {}
    finished = set[AnyTable]()
    for sink in sorted({table.sink for table in targets}):
        with said(), closing(shadows_of(sink, settings)) as shadows:
            for table, shadow in targets.items():
                if table.sink != sink:
                    continue
                if run := begun(runs, shadows, shadow, fingerprint(owner(of, table), table, until)):
                    there[table] = run
                    if shadows.finished(shadow):
                        finished.add(table)
    return there, finished


def _left(
    settings: Settings,
    of: Source,
    targets: Mapping[AnyTable, AnyTable],
    spans: Collection[Span],
    there: Collection[AnyTable],
    finished: Collection[AnyTable],
) -> list[Span]:
    """What would be read: all that feeds a table that is to be made, else from where the others are."""
    new = {table: shadow for table, shadow in targets.items() if table not in there}
    going = {table: shadow for table, shadow in targets.items() if table in there and table not in finished}
    whole = job_of(settings, of, new, spans).spans
    return whole + [
        span
        for span in (rest(job_of(settings, of, going, spans)) if going else ())
        if not any(is_fed(one, span.domain, new) for one in of)
    ]


def sample(settings: Settings, runs: Runs, of: Source, wanted: Collection[AnyTable], spans: Collection[Span]) -> float:
    """Events a second of one process, measured by loading the first records into shadows that are removed again."""
    targets = {table: shadow_of(table, SAMPLE) for table in wanted}
    left, first = SAMPLE_MAX, []
    for span in spans:
        part = span._replace(end=min(span.end, span.first + max(1, SAMPLE_MAX // len(spans)), span.first + left))
        first.append(part)
        left -= part.records
    job = job_of(settings, of, targets, first)
    records = sum(span.records for span in job.spans)
    if not records:
        return 0.0
    with ExitStack() as stack, said(), runs.locked(map(full, targets.values())):
        sinks = {sink: stack.enter_context(closing(shadows_of(sink, settings))) for sink in {t.sink for t in wanted}}

        def drop() -> None:
            for shadow in targets.values():
                sinks[shadow.sink].drop(shadow.name)

        stack.enter_context(afterwards(drop))
        for shadow in targets.values():
            sinks[shadow.sink].make(shadow)
        began = time.monotonic()
        load(job, lambda events, positions: None)
        return records / (time.monotonic() - began)
