"""The toy saga's steps, with one of each kind."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid5

from streams.kernel.saga import NOTHING, Saga, Step, open_as, tell
from tests.kernel.desk import Denied, Desk, Granted
from tests.kernel.trip import Planned, Trip


def booking(trip: UUID) -> UUID:
    """The aggregate that the saga makes."""
    return uuid5(trip, "booking")


journey = Saga(
    Trip,
    starts=Planned,
    pivot="pay",
    steps=[
        Step(
            "hold a seat",
            within=timedelta(seconds=30),
            do=lambda t: tell(t.seats, Desk.hold, t.id),
            undo=lambda t: tell(t.seats, Desk.give_back, t.id),
        ),
        Step(
            "book",
            within=timedelta(seconds=30),
            do=lambda t: open_as(booking(t.id), Desk, 1),
            undo=lambda t: tell(booking(t.id), Desk.give_back, t.id),
        ),
        Step(
            "write it in", within=timedelta(seconds=30), do=lambda t: tell(booking(t.id), Desk.hold, t.id), undo=NOTHING
        ),
        Step(
            "ask for leave",
            within=timedelta(minutes=2),
            until=Granted,
            unless=Denied,
            do=lambda t: tell(t.leave, Desk.ask, t.id),
            undo=NOTHING,
        ),
        Step("pay", within=timedelta(minutes=1), do=lambda t: tell(t.till, Desk.hold, t.id)),
        Step(
            "confirm",
            within=timedelta(minutes=1),
            do=lambda t: [tell(t.seats, Desk.confirm, t.id), tell(booking(t.id), Desk.confirm, t.id)],
        ),
    ],
)
