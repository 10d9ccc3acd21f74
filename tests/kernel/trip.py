"""A toy saga's state: a trip for which a seat is held, a booking is made, leave is asked for, and all is confirmed."""

from __future__ import annotations

from uuid import UUID

import schemas
from aggregates.kernel import Created, event, process
from aggregates.kernel.process import Process, Progress

DOMAIN = "trip"
UUID_ = {"type": "string", "logicalType": "uuid"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def _record(name: str, /, **fields: object) -> dict[str, object]:
    named = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": name, "namespace": "titan.trip", "fields": named}


schemas.define(
    DOMAIN,
    [
        _record("Planned", seats=UUID_, leave=UUID_, till=UUID_),
        _record("StepBegun", step="string", due=MICROS),
        _record("StepDone", step="string"),
        _record("StepRefused", step="string", why="string"),
        _record("StepOverdue", step="string"),
        _record("StepUndone", step="string"),
        _record("StepFailed", step="string", why="string", retry_at=MICROS),
        _record("StepRetried", step="string"),
        _record("Finished", ending={"type": "enum", "name": "Ending", "symbols": ["done", "undone"]}, why="string"),
    ],
)


class Planned(Created):
    seats: UUID
    leave: UUID
    till: UUID


class StepBegun(process.StepBegun): ...


class StepDone(process.StepDone): ...


class StepRefused(process.StepRefused): ...


class StepOverdue(process.StepOverdue): ...


class StepUndone(process.StepUndone): ...


class StepFailed(process.StepFailed): ...


class StepRetried(process.StepRetried): ...


class Finished(process.Finished): ...


class Trip(Process):
    @event(Planned)
    def __init__(self, seats: UUID, leave: UUID, till: UUID) -> None:
        self.seats, self.leave, self.till, self.progress = seats, leave, till, Progress()
