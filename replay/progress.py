"""How a long run tells how it goes: a bar for people on standard error, a line of JSON a second for machines on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from projections.kernel.runner import Delivery
from replay.log import Span

TELL_S = 1.0
WIDE = 130  # columns: positions are shown from there on; in JSON they always are


class Progress:
    """`with Progress("order_summary", spans, as_json) as progress: progress.took(batch)`. Events, events/s, positions, time left."""

    def __init__(self, what: str, of: Collection[Span], as_json: bool = False, total: int | None = None) -> None:
        self.what, self.as_json = what, as_json
        self.total = sum(span.records for span in of) if total is None else total
        self.events = 0
        self.positions = {f"{span.domain}:{span.partition}": span.first for span in of}
        self._began = self._told = time.monotonic()
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if not self.as_json:
            console = Console(stderr=True, highlight=False)
            where = [TextColumn("{task.fields[at]}")] if console.width >= WIDE else []
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(14),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                *where,
                console=console,
                transient=False,
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, speed="", at="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell()
        if self._bar is not None:
            self._bar.stop()

    @property
    def per_second(self) -> float:
        return self.events / max(time.monotonic() - self._began, 1e-9)

    def took(self, batch: Iterable[Delivery]) -> None:
        """These are dealt with."""
        count = 0
        for delivery in batch:
            count += 1
            self.positions[f"{delivery.topic}:{delivery.partition}"] = delivery.offset + 1
        self.moved(count, {})

    def moved(self, events: int, positions: dict[str, int]) -> None:
        """So many more are dealt with; `positions` are next offsets by "domain:partition"."""
        self.events += events
        self.positions.update(positions)
        if time.monotonic() - self._told > (TELL_S if self.as_json else 0.2):
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._bar is not None:
            at = " ".join(f"{where}@{offset:,}" for where, offset in sorted(self.positions.items())[:4])
            more = "" if len(self.positions) <= 4 else f" +{len(self.positions) - 4}"
            self._bar.update(
                self._task, completed=self.events, speed=f"{self.per_second:,.0f} events/s", at=f"{at}{more}"
            )
        else:
            left = (self.total - self.events) / self.per_second if self.events else None
            tell(
                {
                    "progress": self.what,
                    "events": self.events,
                    "of": self.total,
                    "events_per_s": round(self.per_second),
                    "seconds_left": None if left is None else round(max(left, 0.0), 1),
                    "positions": self.positions,
                }
            )


def tell(document: dict[str, Any]) -> None:
    """A line of JSON on standard output."""
    print(json.dumps(document, default=str), file=sys.stdout, flush=True)
