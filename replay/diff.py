"""`titan replay diff NAME --at A --at B`: what changed in read models between two moments, row by row and column by column.

A moment is 2026-11-01T12:00:00Z, or `now` for the live table. What is not there is built, under a name of its own, and removed again
unless `--keep`, which builds what `titan replay projection NAME --until …` would; what that left is used as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import Any

from infra.settings import Settings, settings
from projections.kernel.clauses import Projection
from projections.kernel.sinks import SINKS
from projections.kernel.tables import AnyTable
from replay.compare import Difference, compare
from replay.failures import afterwards, said
from replay.log import ReplayError
from replay.moments import AT, DIFF, Cut, moment_of, shadows, spans
from replay.progress import tell
from replay.projection import fed, known, tables
from replay.runs import Runs, full
from replay.until import drop, lying, made, source

NOW = "now"
SHOWN = 20  # rows by default
SIGNS = {"added": "+", "removed": "-", "changed": "~"}


def main(argv: Sequence[str], of: Collection[Projection] | None = None, chosen: Settings | None = None) -> int:
    """The exit code: 0, whether they differ or not. Raises `ReplayError`."""
    given = _arguments(argv)
    chosen, of = chosen or settings(), known() if of is None else of
    cuts = [None if text == NOW else Cut(moment_of(text)) for text in given.at]
    if cuts[0] == cuts[1]:
        raise ReplayError(f"both moments are {given.at[0]}: nothing changes in no time")
    wanted = tables(of, given.names, False, given.sink or sorted(SINKS))
    with said(), Runs(chosen.postgres) as runs:
        there = set(lying(chosen))
        sides = [_side(wanted, cut, there, given.keep) for cut in cuts]
        ours = {} if given.keep else {full(s): s.name for side in sides for s in side.values() if DIFF in s.name}

        def tidy() -> None:
            for name in sorted(set(ours.values()) & {name for _, name in lying(chosen)}):
                drop(chosen, runs, name)

        with runs.locked(ours), afterwards(tidy):
            for cut, side in zip(cuts, sides, strict=True):
                if cut is not None:
                    feeding = source(of, wanted)
                    found = spans(chosen, fed(feeding, wanted), cut)
                    made(chosen, runs, feeding, side, found, str(cut), given.workers, given.json)
            for table in wanted:
                told(chosen, table, (sides[0][table], sides[1][table]), given.at, given.limit or None, given.json)
    return 0


def _side(
    wanted: Collection[AnyTable], cut: Cut | None, there: Collection[tuple[str, str]], keep: bool
) -> dict[AnyTable, AnyTable]:
    """The tables as of a moment: live, as `--until` has left them, or to be built."""
    if cut is None:
        return {table: table for table in wanted}
    left, own = shadows(wanted, cut.purpose), shadows(wanted, DIFF + cut.purpose.removeprefix(AT))
    return {
        table: left[table] if keep or (left[table].sink, left[table].name) in there else own[table] for table in wanted
    }


def told(
    settings: Settings,
    table: AnyTable,
    sides: tuple[AnyTable, AnyTable],
    between: Sequence[str],
    limit: int | None,
    as_json: bool,
) -> None:
    """Compare two states of a table and print how they differ: rows as they are found, then the numbers."""
    shown = 0

    def see(one: Difference) -> None:
        nonlocal shown
        shown += 1
        if as_json:
            tell({"table": table.name, "sink": table.sink, **one._asdict()})
        else:
            print(f"  {SIGNS[one.kind]} {_words(one)}")

    found = compare(settings, *sides, see, limit)
    if as_json:
        counts = {"added": found.added, "removed": found.removed, "changed": found.changed}
        tell({"table": table.name, "sink": table.sink, "between": list(between), **counts, "columns": found.columns})
        return
    if found.rows > shown:
        print(f"  and {found.rows - shown:,} more rows")
    print(f"{table.name} in {table.sink}, {between[0]} → {between[1]}: ", end="")
    print(f"{found.added:,} added, {found.removed:,} removed, {found.changed:,} changed")
    if found.columns:
        print("  changed columns: " + ", ".join(f"{name} {count:,}" for name, count in found.columns.most_common()))


def _words(one: Difference) -> str:
    key = " ".join(f"{name}={_short(value)}" for name, value in one.key.items())
    if one.kind == "changed":
        return f"{key}: " + ", ".join(
            f"{name} {_short(one.before[name])} → {_short(one.after[name])}" for name in one.after
        )
    return f"{key}: " + ", ".join(f"{name} {_short(value)}" for name, value in (one.after or one.before).items())


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="titan replay diff", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a read model, or a domain for all of its own")
    parser.add_argument("--at", action="append", required=True, metavar="TIME", help="twice: before and after")
    parser.add_argument("--sink", action="append", choices=sorted(SINKS), help="only in this store; may be given again")
    parser.add_argument("--limit", type=int, default=SHOWN, help=f"rows that are told of, {SHOWN}; 0 for all")
    parser.add_argument("--keep", action="store_true", help="don't remove what was built for this")
    parser.add_argument("--workers", type=int, help="processes that share the partitions; as many as cores")
    parser.add_argument("--json", action="store_true", help="for machines: a JSON object a line")
    given = parser.parse_args(argv)
    if len(given.at) != 2:
        parser.error("--at has to be given twice: before and after")
    if given.limit < 0:
        parser.error("--limit is 0 or more")
    return given
