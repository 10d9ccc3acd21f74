"""How a long run tells how it goes: a bar for people on standard error, a line of JSON a second for machines on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import rich.progress
from confluent_kafka import Message
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from replay.log import Span

TELL_S = 1.0
SHOWN_MAX = 4  # positions that people are shown; in JSON it is all


class Progress:
    """`with Progress("order_summary", spans, as_json) as progress: progress.moved(500, {"order:0": 1200})`. Events, events/s, positions, time left."""

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
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(14),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True, highlight=False),
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

    def over(self, domain: str, batches: Iterable[list[Message]]) -> Iterator[list[Message]]:
        """Batches of one domain's records; each is told of when it is dealt with."""
        for batch in batches:
            yield batch
            ends = {f"{domain}:{message.partition()}": (message.offset() or 0) + 1 for message in batch}
            self.moved(len(batch), ends)

    def moved(self, events: int, positions: dict[str, int]) -> None:
        """So many more are dealt with; `positions` are next offsets by "domain:partition"."""
        self.events += events
        self.positions.update(positions)
        if time.monotonic() - self._told > (TELL_S if self.as_json else 0.2):
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._bar is not None:
            shown = sorted(self.positions.items())[:SHOWN_MAX]
            at = " ".join(f"{where}@{offset:,}" for where, offset in shown)
            more = f" +{len(self.positions) - SHOWN_MAX}" if len(self.positions) > SHOWN_MAX else ""
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


class Bar(rich.progress.Progress):
    """With the positions on a line of their own, as far as the terminal is wide."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in (one for one in self.tasks if one.fields["at"]):
            yield Text(f"  {task.fields['at']}", no_wrap=True, overflow="ellipsis")


def tell(document: dict[str, Any]) -> None:
    """A line of JSON on standard output."""
    print(json.dumps(document, default=str), file=sys.stdout, flush=True)
