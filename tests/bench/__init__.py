"""`titan bench`: each figure beside its baseline, measured in the same run, as a table and as JSON.

Absolute numbers are the machine's; the ratios are what can be compared. Nothing here is asserted in a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from tests.kernel.servers import running

BENCHES = ("append", "commands", "live", "lag", "cart", "token", "growth", "wallet", "checkout", "replay")


class Figure(NamedTuple):
    """What was measured, what it is compared with, and what is to be reached: a `ratio` of both, or a limit on `value`."""

    bench: str
    what: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_is: str = ""
    reach: str = ""
    reached: bool | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None


def at_least(bench: str, what: str, ours: float, unit: str, baseline: float, baseline_is: str, times: float) -> Figure:
    """A figure that is to be so many times its baseline."""
    return Figure(bench, what, ours, unit, baseline, baseline_is, f"≥ {times} ×", ours >= times * baseline)


def at_most(bench: str, what: str, ours: float, unit: str, baseline: float, baseline_is: str, limit: float) -> Figure:
    """A figure that has a limit of its own, shown beside a baseline."""
    return Figure(bench, what, ours, unit, baseline, baseline_is, f"≤ {limit:g} {unit}", ours <= limit)


def percentile(values: list[float], part: float) -> float:
    """The value below which that part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def in_turn(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """Medians of several runs of each, A B A B …, so that a drift of the machine's speed meets all alike."""
    seen: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for results, run in zip(seen, runs, strict=True):
            results.append(run())
    return [median(results) for results in seen]


def main(argv: list[str]) -> int:
    options = argparse.ArgumentParser(prog="titan bench", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("benches", nargs="*", metavar="bench", help=f"of {', '.join(BENCHES)}; all by default")
    options.add_argument("--json", type=Path, help="write the figures to this file too")
    options.add_argument("--quick", action="store_true", help="short runs: for trying the bench, not for quoting it")
    given = options.parse_args(argv)
    if unknown := set(given.benches) - set(BENCHES):
        options.error(f"there is no bench {', '.join(sorted(unknown))}; one of {', '.join(BENCHES)}")
    console = Console(stderr=True, highlight=False)
    figures: list[Figure] = []
    with running() as servers:
        for name in given.benches or BENCHES:
            began = time.monotonic()
            console.print(f"{name} …")
            figures += import_module(f"tests.bench.{name}").run(servers, given.quick)
            console.print(f"{name} took {time.monotonic() - began:.0f} s")
    show(figures)
    if given.json:
        given.json.write_text(json.dumps(document(figures), indent=1))
    return 0


def document(figures: list[Figure]) -> dict[str, object]:
    """The figures for machines."""
    return {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "figures": [{**figure._asdict(), "ratio": figure.ratio} for figure in figures],
    }


def show(figures: list[Figure]) -> None:
    """The figures for people."""
    table = Table("bench", "what", "measured", "baseline", "ratio", "to reach", "")
    for one in figures:
        table.add_row(
            one.bench,
            one.what,
            f"{one.value:,.4g} {one.unit}" if one.value < 100 else f"{one.value:,.0f} {one.unit}",
            f"{one.baseline:,.4g} {one.baseline_is}" if one.baseline is not None else "",
            f"{one.ratio:.2f} ×" if one.ratio is not None else "",
            one.reach,
            "" if one.reached is None else ("yes" if one.reached else "NO"),
        )
    Console(width=160 if not sys.stdout.isatty() else None).print(table)
