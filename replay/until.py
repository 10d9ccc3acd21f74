"""Time travel: `titan replay projection NAME --until TIME` builds a read model as it was, beside the live one, and leaves it there.

It has a name of its own (`order_summary__at_20261101t120000z`), is read like the live one, and no worker feeds it. `--list` says
what there is, `--drop NAME` removes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from contextlib import closing

from infra.settings import Settings
from projections.kernel.clauses import Projection
from projections.kernel.sinks import SINKS
from projections.kernel.tables import MARK, AnyTable
from replay.build import Source, build
from replay.failures import said
from replay.forecast import foretell
from replay.log import ReplayError, Span
from replay.moments import AT, DIFF, cut_of, shadows, spans
from replay.progress import tell
from replay.projection import fed
from replay.runs import Runs, full
from replay.shadow import shadows_of

KINDS = {
    AT: "as it was",
    DIFF: "of an unfinished diff",
    "with": "what if",
    "asis": "of an unfinished what-if",
    "rebuild": "an unfinished rebuild",
    "verify": "of an unfinished verify",
}


def main(given: argparse.Namespace) -> int:
    """What `replay.projection` hands on. Raises `ReplayError`."""
    with said(), Runs(given.chosen.postgres) as runs:
        if given.drop:
            where = drop(given.chosen, runs, given.drop, given.dry_run)
            if given.dry_run:
                _say(given, f"would remove {given.drop} from {', '.join(where)}", would_drop=given.drop)
            else:
                _say(given, f"{given.drop} is gone", dropped=given.drop)
        if given.list:
            for sink, name in lying(given.chosen):
                _say(given, f"{sink:<10} {name:<50} {_kind(name)}", sink=sink, name=name, kind=_kind(name))
        if not (given.until or given.until_offset):
            return 0
        cut = cut_of(given.until, given.until_offset)
        if not given.tables:
            raise ReplayError("name the read models that are to be built, or --all")
        of = source(given.of, given.tables)
        targets = shadows(given.tables, cut.purpose)
        found = spans(given.chosen, fed(of, given.tables), cut)
        if given.dry_run:
            foretell(given, runs, of, targets, found, str(cut), f", as of {cut}")
            return 0
        made(given.chosen, runs, of, targets, found, str(cut), given.workers, given.json)
        for table, shadow in targets.items():
            words = f"{table.name} as of {cut} is {shadow.name} in {table.sink}"
            _say(given, words, table=table.name, sink=table.sink, name=shadow.name, until=str(cut))
    return 0


def made(
    settings: Settings,
    runs: Runs,
    of: Source,
    targets: dict[AnyTable, AnyTable],
    found: Collection[Span],
    until: str,
    workers: int | None = None,
    as_json: bool = False,
) -> None:
    """Build shadows that stay. Raises `ReplayError`."""
    with runs.locked(map(full, targets.values())):
        build(settings, runs, of, targets, found, workers=workers, until=until, as_json=as_json)


def source(of: Iterable[Projection], tables: Collection[AnyTable]) -> dict[Projection, str]:
    """The projections that have these tables, with their modules' names."""
    return {one: one.module for one in of if any(table in tables for table in one.tables)}


def lying(settings: Settings) -> list[tuple[str, str]]:
    """(sink, name) of all shadows in all stores."""
    found = []
    for sink in sorted(SINKS):
        with closing(shadows_of(sink, settings)) as store:
            found += [(sink, name) for name in store.names()]
    return found


def drop(settings: Settings, runs: Runs, name: str, dry_run: bool = False) -> list[str]:
    """Remove a shadow wherever it is, or only look where. Raises `ReplayError` for a name that none has, or that somebody works on."""
    where = [sink for sink, one in lying(settings) if one == name]
    if not where:
        raise ReplayError(f"there is no {name}; `titan replay projection --list` says what there is")
    with runs.locked(f"{sink}.{name}" for sink in where):
        for sink in () if dry_run else where:
            with closing(shadows_of(sink, settings)) as store:
                store.drop(name)
            runs.forget(sink, name)
    return where


def _kind(name: str) -> str:
    purpose = name.partition(MARK)[2]
    return next((words for start, words in KINDS.items() if purpose.startswith(start)), "another replay's")


def _say(given: argparse.Namespace, words: str, **what: str) -> None:
    if given.json:
        tell(what)
    else:
        print(words)
