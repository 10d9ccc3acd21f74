"""What-if: `titan replay projection NAME --with changed.py` builds a changed projection on history, and says how the rows differ.

The file is a projection module like those in `projections/`: tables of the same names, or new ones, and clauses. What it would have
made (`order_summary__with`) stays beside the live table until it is dropped. It is compared with what today's code makes of the same
events, and not with the live table: that one has moved on since.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
from pathlib import Path

from projections.kernel.clauses import PROJECTIONS, Projection, projection
from projections.kernel.tables import AnyTable
from replay.compare import common
from replay.diff import told
from replay.failures import afterwards, said
from replay.forecast import foretell
from replay.log import ReplayError
from replay.moments import Cut, cut_of, shadows, spans
from replay.progress import tell
from replay.projection import fed
from replay.runs import Runs, full
from replay.until import drop, lying, made, source

WITH, AS_IS = "with", "asis"
SHOWN = 20
LOADED: dict[str, Projection] = {}


def load(path: str) -> Projection:
    """The projection of a file, beside the registered ones and not among them. Raises `ReplayError`."""
    file = Path(path).resolve()
    # The file's own name, as a module's, is that of the projection.
    name = f"replay_with_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}.{file.stem}"
    if name in LOADED:
        return LOADED[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ReplayError(f"there is no projection {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        loaded = projection(name)
        loaded.check()
        if not loaded.clauses or not loaded.tables:
            raise ValueError("it has no tables or no clauses")
    except Exception as error:
        del sys.modules[name]
        raise ReplayError(f"{path} is no projection: {type(error).__name__}: {' '.join(str(error).split())}") from error
    finally:
        PROJECTIONS.pop(name, None)
    LOADED[name] = loaded
    return loaded


def main(given: argparse.Namespace) -> int:
    """What `replay.projection` hands on. Raises `ReplayError`."""
    changed = load(given.with_file)
    live = {(table.sink, table.name): table for one in given.of for table in one.tables}
    asked = {(table.sink, table.name) for table in given.tables}
    wanted = [t for t in changed.tables if (t.sink, t.name) in asked or (t.sink, t.name) not in live]
    if not any((t.sink, t.name) in asked for t in wanted):
        raise ReplayError(f"{given.with_file} defines none of {', '.join(sorted({name for _, name in asked}))}")
    cut = cut_of(given.until, given.until_offset) if given.until or given.until_offset else Cut()
    pairs = {table: live[table.sink, table.name] for table in wanted if (table.sink, table.name) in live}
    today = source(given.of, pairs.values())
    found = spans(given.chosen, fed([changed, *today], [*wanted, *pairs.values()]), cut)
    until = " ".join(f"{one.domain}:{one.partition}={one.end}" for one in found)
    with said(), Runs(given.chosen.postgres) as runs:
        there = [(shadow.sink, shadow.name) for shadow in shadows([*wanted, *pairs.values()], AS_IS).values()]
        new = shadows(wanted, WITH)
        as_is = shadows(list(pairs.values()), AS_IS)
        if given.dry_run:
            foretell(given, runs, {changed: given.with_file}, new, found, until, f", with {given.with_file}")
            foretell(given, runs, today, as_is, found, until, ", to be compared with it and removed again")
            return 0

        def tidy() -> None:
            for name in {name for sink, name in lying(given.chosen) if (sink, name) in there}:
                drop(given.chosen, runs, name)

        with runs.locked(map(full, as_is.values())), afterwards(tidy):
            made(given.chosen, runs, {changed: given.with_file}, new, found, until, given.workers, given.json)
            made(given.chosen, runs, today, as_is, found, until, given.workers, given.json)
            for table in wanted:
                _tell(given, table, new[table], as_is[pairs[table]] if table in pairs else None)
    return 0


def _tell(given: argparse.Namespace, table: AnyTable, new: AnyTable, as_is: AnyTable | None) -> None:
    where = f"{table.name} with {Path(given.with_file).name} is {new.name} in {table.sink}"
    if given.json:
        tell({"table": table.name, "sink": table.sink, "name": new.name})
    else:
        print(where)
    if as_is is None:
        return
    only = [[name for name in one.columns if name not in (*common(as_is, new), *new.key)] for one in (new, as_is)]
    for names, word in zip(only, ("new", "gone"), strict=True):
        if names and not given.json:
            print(f"  {word} columns: {', '.join(names)}")
    told(given.chosen, table, (as_is, new), ("as it is", "as it would be"), SHOWN, given.json)
