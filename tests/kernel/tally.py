"""A toy domain of the kernel's own tests: a counter with a ceiling, a unique name, and a timer that ends it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import schemas
from aggregates.kernel import Aggregate, Cancel, Created, Event, Free, Take, Timer, event, require

DOMAIN = "tally"


def _record(name: str, /, **fields: object) -> dict[str, object]:
    return {
        "type": "record",
        "name": name,
        "namespace": "titan.tally",
        "fields": [{"name": n, "type": t} for n, t in fields.items()],
    }


MICROS = {"type": "long", "logicalType": "timestamp-micros"}
schemas.define(
    DOMAIN,
    [
        _record("Begun", ceiling="long"),
        _record("Counted", by="long"),
        _record("Named", name="string"),
        _record("Unnamed", name="string"),
        _record("Scheduled", due=MICROS),
        _record("Ended"),
    ],
)


class Begun(Created):
    ceiling: int


class Counted(Event):
    by: int

    def apply(self, tally: Tally) -> None:
        tally.count += self.by


class Named(Event):
    name: str

    def apply(self, tally: Tally) -> None:
        tally.name = self.name

    def claims(self) -> Iterable[Take | Free]:
        return [Take("name", self.name)]


class Unnamed(Event):
    name: str

    def apply(self, tally: Tally) -> None:
        tally.name = None

    def claims(self) -> Iterable[Take | Free]:
        return [Free("name", self.name)]


class Scheduled(Event):
    due: datetime

    def apply(self, tally: Tally) -> None:
        tally.due = self.due

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer("end", self.due, Tally.end)]


class Ended(Event):
    def apply(self, tally: Tally) -> None:
        tally.ended = True

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel("end")]


class Tally(Aggregate):
    snapshot_every = 50

    @event(Begun)
    def __init__(self, ceiling: int) -> None:
        self.ceiling, self.count = ceiling, 0
        self.name: str | None = None
        self.due: datetime | None = None
        self.ended = False

    @classmethod
    def begin(cls, ceiling: int, allowed: bool) -> Tally:
        require(allowed, "not now")
        return cls(ceiling)

    def add(self, by: int) -> None:
        require(self.count + by <= self.ceiling, f"{self.count} + {by} is above {self.ceiling}")
        self.trigger_event(Counted, by=by)

    def touch(self) -> None:
        """Decides that nothing is to be done."""

    def rename(self, name: str) -> None:
        if self.name is not None:
            self.trigger_event(Unnamed, name=self.name)
        self.trigger_event(Named, name=name)

    def schedule(self, due: datetime) -> None:
        self.trigger_event(Scheduled, due=due)

    def end(self) -> None:
        if not self.ended:
            self.trigger_event(Ended)

    def check(self) -> None:
        assert self.count <= self.ceiling
