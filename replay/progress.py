"""How a long run tells how it goes: a bar for people on standard error, a line of JSON a second for machines on standard output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from confluent_kafka import Message

from replay.log import Span

if TYPE_CHECKING:
    from replay.bar import Bar

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

    def __enter__(self) -> Self:
        if not self.as_json:
            from replay.bar import Bar  # not for machines

            self._bar = Bar(self.what, self.total)
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
            self._bar.moved(self.events, f"{self.per_second:,.0f} events/s", f"{at}{more}")
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
