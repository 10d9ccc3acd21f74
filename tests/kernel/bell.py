"""A toy domain of timers: a bell that is wound to ring, to refuse, or to break."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import schemas
from aggregates.kernel import Aggregate, Cancel, Created, Event, Timer, event, require

DOMAIN = "bell"
MICROS = {"type": "long", "logicalType": "timestamp-micros"}


def _record(name: str, /, **fields: object) -> dict[str, object]:
    named = [{"name": field, "type": kind} for field, kind in fields.items()]
    return {"type": "record", "name": name, "namespace": "titan.bell", "fields": named}


schemas.define(
    DOMAIN,
    [
        _record("Cast"),
        _record("Wound", key="string", due=MICROS, call="string"),
        _record("Hushed", key="string"),
        _record("Rung", key="string", now=MICROS),
    ],
)


class Cast(Created): ...


class Wound(Event):
    key: str
    due: datetime
    call: str

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer(self.key, self.due, getattr(Bell, self.call), (self.key,))]


class Hushed(Event):
    key: str

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(self.key)]


class Rung(Event):
    key: str
    now: datetime

    def apply(self, bell: Bell) -> None:
        bell.rings.append((self.key, self.now))


class Bell(Aggregate):
    @event(Cast)
    def __init__(self) -> None:
        self.rings: list[tuple[str, datetime]] = []

    def wind(self, key: str, due: datetime, call: str = "ring") -> None:
        self.trigger_event(Wound, key=key, due=due, call=call)

    def hush(self, key: str) -> None:
        self.trigger_event(Hushed, key=key)

    def ring(self, key: str, now: datetime) -> None:
        self.trigger_event(Rung, key=key, now=now)

    def ring_thrice(self, key: str, now: datetime) -> None:
        self.ring(key, now)
        if len(self.rings) < 3:
            self.wind(key, now + timedelta(hours=1), "ring_thrice")

    def nothing(self, key: str) -> None:
        """Decides that it does not matter any more."""

    def refuse(self, key: str) -> None:
        require(False, f"{key} must not ring")

    def burst(self, key: str) -> None:
        raise ZeroDivisionError(key)
