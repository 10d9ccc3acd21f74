"""`titan replay projection NAME…`: read models built anew from the topics while the live ones serve, then switched at one moment.

NAME is a read model (`order_summary`), or a domain for all of its own (`order`). What was killed goes on where it was when it is
started again. Nothing but the read models is touched: no command is given, no mail sent, no payment made.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, closing
from difflib import get_close_matches
from importlib import import_module

from aggregates.kernel import domains
from infra.settings import Settings, settings
from projections.kernel.clauses import Projection, projections
from projections.kernel.sinks import SINKS
from projections.kernel.tables import MARK, AnyTable
from replay import log
from replay.build import build
from replay.failures import said
from replay.forecast import SAMPLE, foretell
from replay.loading import ROWS_MAX
from replay.log import ReplayError
from replay.moments import DIFF
from replay.progress import tell
from replay.runs import AtWork, Runs, full
from replay.shadow import REBUILD, shadow_of, shadows_of
from replay.switch import parked, switch

WORKERS_MAX = 64
OURS = (REBUILD, SAMPLE, DIFF, "verify", "old", "asis")  # shadows that only a replay that goes on has a use for


def main(argv: Sequence[str], of: Collection[Projection] | None = None, chosen: Settings | None = None) -> int:
    """The exit code: 0 done, 2 nonsense asked for. Raises `ReplayError`, one line, for whatever else."""
    with said():
        return _run(_arguments(argv), of, chosen or settings())


def _run(given: argparse.Namespace, of: Collection[Projection] | None, chosen: Settings) -> int:
    given.chosen, given.of = chosen, (of := known() if of is None else of)
    given.tables = []
    if given.names or given.all:
        given.tables = tables(of, given.names, given.all, given.sink or sorted(SINKS))
    if given.with_file and (given.clean or given.list or given.drop):
        raise ReplayError("--with builds something: give --clean, --list or --drop in a command of its own")
    if given.with_file:
        return int(import_module("replay.whatif").main(given))
    if given.until or given.until_offset or given.list or given.drop:
        if given.clean:
            raise ReplayError("--clean goes alone or before a rebuild, not with --until, --list or --drop")
        return int(import_module("replay.until").main(given))
    with Runs(chosen.postgres) as runs:
        if given.clean:
            clean(chosen, runs, given.sink or sorted(SINKS), given.tables or None, given.json, given.dry_run)
        if not given.tables:
            return 0
        if given.dry_run:
            chosen_of = {one: one.module for one in of if any(table in given.tables for table in one.tables)}
            targets = {table: shadow_of(table) for table in given.tables}
            found = log.spans(chosen, fed(chosen_of, given.tables))
            foretell(given, runs, chosen_of, targets, found, then=" and switch it")
            return 0
        rebuild(chosen, runs, of, given.tables, given.workers, given.rows_max, given.json)
    return 0


def known() -> tuple[Projection, ...]:
    """Every projection of the checkout, with every event that there is."""
    for domain in domains():
        import_module(f"aggregates.{domain}")
    return projections()


def rebuild(
    chosen: Settings,
    runs: Runs,
    of: Collection[Projection],
    wanted: Collection[AnyTable],
    workers: int | None = None,
    rows_max: int = ROWS_MAX,
    as_json: bool = False,
) -> None:
    """Build the tables anew beside the live ones and put them in their place. Raises `ReplayError`."""
    began = time.monotonic()
    chosen_of = {one: one.module for one in of if any(table in wanted for table in one.tables)}
    targets = {table: shadow_of(table) for table in wanted}
    spans = log.spans(chosen, fed(chosen_of, wanted))
    with runs.locked(map(full, targets.values())):
        events = build(chosen, runs, chosen_of, targets, spans, workers=workers, rows_max=rows_max, as_json=as_json)
        switch(chosen, runs, chosen_of, targets, spans)
    names = sorted({table.name for table in wanted})
    try:
        waiting = parked(chosen, chosen_of, wanted)
    except ReplayError as error:
        raise ReplayError(f"{', '.join(names)}: rebuilt and switched, and then {error}") from error
    if as_json:
        took = time.monotonic() - began
        tell({"rebuilt": names, "events": events, "seconds": round(took, 2), "parked": waiting})
        return
    print(f"{', '.join(names)}: {events:,} events in {time.monotonic() - began:.1f} s, and switched")
    for processor, count in waiting.items():
        print(
            f"{count} events wait in the dead-letter queue of {processor}; rebuilt tables hold them already: "
            f"titan dlq retry --processor {processor}"
        )


def fed(of: Iterable[Projection], wanted: Collection[AnyTable]) -> list[str]:
    """The domains whose events these tables are made of."""
    feeding = [one for one in of if any(table in wanted for table in one.tables)]
    if any(one.everything for one in feeding):
        return domains()
    return sorted({domain for one in feeding for domain in one.domains})


def tables(of: Iterable[Projection], names: Collection[str], every: bool, sinks: Collection[str]) -> list[AnyTable]:
    """The tables that are meant by names of tables or projections. Raises `ReplayError` for one that there is not."""
    here = [(one, table) for one in of for table in one.tables if table.sink in sinks]
    if every:
        return [table for _, table in here]
    found: list[AnyTable] = []
    for name in names:
        # A table's name before a domain's: `checkouts` is one, `checkout` the other.
        meant = [t for _, t in here if t.name == name] or [t for one, t in here if one.name == name]
        if not meant:
            words = sorted({t.name for _, t in here} | {one.name for one, _ in here})
            near = get_close_matches(name, words, n=3)
            raise ReplayError(
                f"there is no read model {name!r}"
                + (f"; {' or '.join(near)}?" if near else f", only {', '.join(words)}")
                + ("" if len(sinks) == len(SINKS) else f" in {', '.join(sinks)}")
            )
        found += [table for table in meant if table not in found]
    return found


def clean(
    chosen: Settings,
    runs: Runs,
    sinks: Collection[str],
    of: Collection[AnyTable] | None = None,
    as_json: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Remove shadows that a replay left (of these tables, or all) and that nobody is at, or only say so; answers with their names."""
    gone, kept = [], []
    with ExitStack() as stack, said():
        for sink in sinks if of is None else sorted({table.sink for table in of}):
            shadows = stack.enter_context(closing(shadows_of(sink, chosen)))
            left = {run.shadow for run in runs.all() if run.sink == sink} | set(shadows.names())
            for name in sorted(left):
                table, _, purpose = name.rpartition(MARK)
                if not purpose.startswith(OURS) or (
                    of is not None and (sink, table) not in {(t.sink, t.name) for t in of}
                ):
                    continue
                try:
                    with runs.locked([f"{sink}.{name}"]):
                        if not dry_run:
                            shadows.drop(name)
                            runs.forget(sink, name)
                        gone.append(f"{sink}.{name}")
                except AtWork:
                    kept.append(f"{sink}.{name}")
    if as_json:
        tell({"would_remove" if dry_run else "removed": gone, "at_work": kept})
        return gone
    print(f"{'would remove' if dry_run else 'removed'}: {', '.join(gone)}" if gone else "no shadow lies around")
    if kept:
        print(f"another replay is at work on: {', '.join(kept)}")
    return gone


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="titan replay projection", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a read model, or a domain for all of its own")
    parser.add_argument("--all", action="store_true", help="every read model")
    parser.add_argument("--sink", action="append", choices=sorted(SINKS), help="only in this store; may be given again")
    parser.add_argument(
        "--workers", type=_within(1, WORKERS_MAX), help="processes that share the partitions; as many as cores"
    )
    parser.add_argument(
        "--rows-max",
        type=_within(1, 1_000_000),
        default=ROWS_MAX,
        help="rows that a process gathers before it writes: its memory",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, and how long it would take")
    parser.add_argument("--clean", action="store_true", help="first remove what earlier replays left; alone: only that")
    parser.add_argument("--until", metavar="TIME", help="as it was then, under a name of its own: 2026-11-01T12:00:00Z")
    parser.add_argument("--until-offset", metavar="DOMAIN:PARTITION=OFFSET", action="append", help="the same by offset")
    parser.add_argument("--list", action="store_true", help="list what `--until` built")
    parser.add_argument("--drop", metavar="NAME", help="remove what `--until` built")
    parser.add_argument("--with", dest="with_file", metavar="FILE", help="what would a changed projection have made?")
    parser.add_argument("--json", action="store_true", help="for machines: a JSON object a line")
    given = parser.parse_args(argv)
    if not (given.names or given.all or given.clean or given.list or given.drop):
        parser.error("name a read model, or --all")
    if given.names and given.all:
        parser.error("either names or --all")
    return given


def _within(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low} to {high}")
        return int(text)

    return number
