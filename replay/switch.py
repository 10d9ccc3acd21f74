"""From a finished shadow to the live table: brought up to date while the live worker goes on, then switched at one moment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, closing
from itertools import chain
from typing import NamedTuple

import psycopg

from infra.settings import Settings
from projections.kernel.clauses import Projection
from projections.kernel.runner import REBUILT, Delivery, Runner
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from replay.failures import said
from replay.loading import Anchors
from replay.log import ReplayError, Span, Tail
from replay.runs import Runs
from replay.shadow import Reach, shadows_of

NEAR = 500  # records: so few that catching up on them holds the live worker still for some milliseconds only
ROUNDS_MAX = 100


def switch(
    settings: Settings,
    runs: Runs,
    of: Collection[Projection],
    targets: Mapping[AnyTable, AnyTable],
    spans: Collection[Span],
) -> None:
    """Put finished shadows in the place of their live tables, all of a sink at once. `spans` name the partitions.

    Raises `ReplayError`; then what was not switched is live as before, and the shadows stay for another try.
    """
    for name in sorted({table.sink for table in targets}):
        pairs = {table: shadow for table, shadow in targets.items() if table.sink == name}
        with ExitStack() as stack, said():
            shadows = stack.enter_context(closing(shadows_of(name, settings)))
            sink = stack.enter_context(closing(sink_of(name, settings)))
            runner = Runner(sink, of, sorted({span.domain for span in spans}), targets=pairs)
            lanes = [(span.domain, span.partition) for span in spans if span.domain in runner.feeds]
            anchors, starts = Anchors(), {}
            for lane, at in runner.assign(lanes).items():
                starts[lane] = anchors.first(lane, 0, [at])
            tail = stack.enter_context(closing(Tail(settings, starts)))
            catch_up = CatchUp(tail, runner, anchors)
            _near(tail, runner, catch_up)
            runs.hold()
            shadows.switch(pairs, catch_up)
            for shadow in pairs.values():
                runs.forget(name, shadow.name)


class CatchUp:
    """Brings a runner up to a reach and not past it: a live worker that waits for the switch with a batch goes on with it then.

    Where a shadow is ahead the worker is fenced instead, and reads its positions and what comes behind them anew.
    """

    def __init__(self, tail: Tail, runner: Runner, anchors: Anchors) -> None:
        self._tail, self._runner, self._anchors = tail, runner, anchors
        self._ahead: list[Delivery] = []

    def __call__(self, reach: Reach) -> None:
        waiting, self._ahead = self._ahead, []
        for batch in chain((waiting,), self._tail.until(reach)):
            self._anchors.check(batch)
            due: list[Delivery] = []
            for one in batch:
                (due if one.offset <= reach.get((one.topic, one.partition), one.offset) else self._ahead).append(one)
            if due:
                self._runner.handle(due)


def _near(tail: Tail, runner: Runner, catch_up: Callable[[Reach], None]) -> None:
    """Catch up while the live worker goes on, until almost nothing is left."""
    for _ in range(ROUNDS_MAX):
        ends = tail.ends()
        behind = sum(max(0, end - runner.lanes[lane].anchor.offset) for lane, end in ends.items())
        catch_up(ends)
        if behind <= NEAR:
            return
    raise ReplayError("more comes in all the time than can be caught up with: try again when there is less traffic")


def parked(settings: Settings, of: Collection[Projection], tables: Collection[AnyTable]) -> dict[str, int]:
    """How many events wait in the dead-letter queue of these tables' processors: a rebuilt table holds them already.

    Raises `ReplayError`.
    """
    names = [f"{t.sink}.{one.name}" for one in of for t in one.tables if t in tables]
    with said(), psycopg.connect(settings.postgres, connect_timeout=5) as connection:
        if connection.execute("SELECT to_regclass('parked')").fetchone() == (None,):
            return {}
        rows = connection.execute(
            "SELECT processor, count(*) FROM parked WHERE processor = ANY(%s) GROUP BY processor ORDER BY processor",
            [names],
        ).fetchall()
    return dict(rows)


class Waiting(NamedTuple):
    """What of a processor waits in the dead-letter queue: events by domain, partition and notification id, and their aggregates."""

    events: frozenset[tuple[str, int, int]]
    aggregates: tuple[str, ...]


def waiting(settings: Settings, processors: Collection[str]) -> dict[str, Waiting]:
    """What waits, by processor. Raises `ReplayError`."""
    with said(), psycopg.connect(settings.postgres, connect_timeout=5) as connection:
        if connection.execute("SELECT to_regclass('parked')").fetchone() == (None,):
            return {}
        rows = connection.execute(
            "SELECT processor, topic, partition, notification_id, key FROM parked WHERE processor = ANY(%s) AND notification_id > 0",
            [list(processors)],
        ).fetchall()
    found: dict[str, Waiting] = {}
    for processor in {row[0] for row in rows}:
        its = [row[1:] for row in rows if row[0] == processor]
        aggregates = sorted({f"{topic} {bytes(key).decode('utf-8', 'replace')}" for topic, *_, key in its})
        found[processor] = Waiting(frozenset((topic, at, id) for topic, at, id, _ in its), tuple(aggregates))
    return found


def rebuilt(settings: Settings, table: AnyTable, events: Collection[tuple[str, int, int]]) -> bool:
    """Whether the table was rebuilt since, and has some of these events although they are parked."""
    with said(), closing(sink_of(table.sink, settings)) as sink:
        for domain in {domain for domain, _, _ in events}:
            partitions = {partition for its, partition, _ in events if its == domain}
            stored = sink.positions([table], domain + REBUILT, list(partitions))
            if any(its == domain and id <= stored[table, partition].notification_id for its, partition, id in events):
                return True
    return False
