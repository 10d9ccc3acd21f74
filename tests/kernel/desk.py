"""A toy domain that sagas act on: a desk holds, gives back, confirms and grants things, each for a cause (a saga's id)."""

from __future__ import annotations

from uuid import UUID

import schemas
from aggregates.kernel import Aggregate, Created, Event, event, require

DOMAIN = "desk"
UUID_ = {"type": "string", "logicalType": "uuid"}


def _record(name: str, /, **fields: object) -> dict[str, object]:
    named = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": name, "namespace": "titan.desk", "fields": named}


schemas.define(
    DOMAIN,
    [
        _record("Opened", room="long"),
        _record("Held", cause=UUID_),
        _record("GivenBack", cause=UUID_),
        _record("Confirmed", cause=UUID_),
        _record("Asked", trip=UUID_),
        _record("Granted", trip=UUID_),
        _record("Denied", trip=UUID_, why="string"),
    ],
)


class Opened(Created):
    room: int


class Held(Event):
    cause: UUID

    def apply(self, desk: Desk) -> None:
        desk.held.add(self.cause)


class GivenBack(Event):
    cause: UUID

    def apply(self, desk: Desk) -> None:
        desk.held.discard(self.cause)
        desk.closed.add(self.cause)


class Confirmed(Event):
    cause: UUID

    def apply(self, desk: Desk) -> None:
        desk.held.discard(self.cause)
        desk.confirmed.add(self.cause)


class Asked(Event):
    trip: UUID

    def apply(self, desk: Desk) -> None:
        desk.asked.add(self.trip)


class Granted(Event):
    trip: UUID

    def apply(self, desk: Desk) -> None:
        desk.answered.add(self.trip)


class Denied(Event):
    trip: UUID
    why: str

    def apply(self, desk: Desk) -> None:
        desk.answered.add(self.trip)


class Desk(Aggregate):
    """`room`: how many it can hold or have confirmed."""

    @event(Opened)
    def __init__(self, room: int) -> None:
        self.room = room
        self.held: set[UUID] = set()
        self.closed: set[UUID] = set()
        self.confirmed: set[UUID] = set()
        self.asked: set[UUID] = set()
        self.answered: set[UUID] = set()

    def hold(self, cause: UUID) -> None:
        if cause in self.held:
            return
        require(cause not in self.closed, "it was given back")
        require(len(self.held) + len(self.confirmed) < self.room, "no room is left")
        self.trigger_event(Held, cause=cause)

    def give_back(self, cause: UUID) -> None:
        if cause not in self.closed:
            require(cause not in self.confirmed, "it is confirmed")
            self.trigger_event(GivenBack, cause=cause)

    def confirm(self, cause: UUID) -> None:
        if cause not in self.confirmed:
            require(cause in self.held, "it is not held")
            self.trigger_event(Confirmed, cause=cause)

    def ask(self, trip: UUID) -> None:
        if trip not in self.asked:
            self.trigger_event(Asked, trip=trip)

    def answer(self, trip: UUID, why_not: str = "") -> None:
        if trip not in self.answered:
            if why_not:
                self.trigger_event(Denied, trip=trip, why=why_not)
            else:
                self.trigger_event(Granted, trip=trip)
