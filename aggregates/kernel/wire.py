"""An event as a row of the store and as a Kafka record, and back. The body's bytes are the same in both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import schemas
from aggregates.kernel.errors import Invalid
from aggregates.kernel.event import CREATED_BY, EPOCH, EVENTS, UNREAD, Event

E_co = TypeVar("E_co", bound=Event, covariant=True)
MICROSECOND = timedelta(microseconds=1)
HEADERS = ("event-id", "event-type", "version", "notification-id", "occurred-at", "correlation-id", "actor")
"""Of every record, in this order; behind them a causation-id, if there is one. Readers take any order, this one the fastest."""


class Row(NamedTuple):
    """One row of `<domain>_events`, in the order of its columns."""

    notification_id: int
    originator_id: UUID
    originator_version: int
    event_type: str
    state: bytes
    event_id: UUID
    occurred_at: datetime
    correlation_id: str
    causation_id: UUID | None
    actor: str


COLUMNS = ", ".join(Row._fields)


@dataclass(frozen=True, slots=True)
class Recorded(Generic[E_co]):
    """An event with what the platform knows of it. `position` is its notification id, 1 and up without gaps in its domain."""

    event: E_co
    event_id: UUID
    position: int
    correlation: str
    causation: UUID | None
    actor: str


class UnknownEvent(LookupError):
    """The type of a stored event has no class any more: its module is missing or it was renamed without an alias."""


def encode(event: Event) -> bytes:
    """The event's own fields in the Confluent wire format. Raises `Invalid` naming a field that does not fit."""
    try:
        return event.binding.encode(event.__dict__)
    except schemas.Invalid as error:
        raise Invalid(str(error)) from error


def decode(domain: str, id: UUID, version: int, at: datetime, state: bytes) -> Event:
    """An event from the body of a row or record: any generation of its schema, as today's class."""
    name, values = schemas.decode(domain, state)
    cls = EVENTS.get(f"{domain}.{name}")
    if cls is None:
        raise UnknownEvent(
            f"no class for the event {domain}.{name}: is aggregates/{domain}.py imported and its event there?"
        )
    values["originator_id"] = id
    values["originator_version"] = version
    values["timestamp"] = at
    if cls in CREATED_BY:
        values["originator_topic"] = CREATED_BY[cls].aggregate_name
    # Not __init__: history is taken as it is, and this is on the path of every load and every replay.
    event = object.__new__(cls)
    object.__setattr__(event, "__dict__", values)
    return event


def undecoded(cls: type[Event], id: UUID, version: int, at: datetime, state: bytes) -> Event:
    """The same event, its body read when one of its own fields is first asked for: never, where `id`, `at` and `version` will do.

    Asking for a field raises what `decode` raises. Not for who looks into `__dict__`, nor for a class whose fields have
    defaults: those would be taken for the event's.
    """
    event = object.__new__(cls)
    values = {"originator_id": id, "originator_version": version, "timestamp": at, UNREAD: state}
    object.__setattr__(event, "__dict__", values)
    return event


def recorded(domain: str, row: Row) -> Recorded[Event]:
    """A row of the store as a `Recorded` event."""
    event = decode(domain, row.originator_id, row.originator_version, row.occurred_at, row.state)
    return Recorded(event, row.event_id, row.notification_id, row.correlation_id, row.causation_id, row.actor)


def headers(row: Row) -> list[tuple[str, bytes]]:
    """The Kafka headers of a row, UTF-8."""
    values = (
        str(row.event_id).encode(),
        row.event_type.encode(),
        b"%d" % row.originator_version,
        b"%d" % row.notification_id,
        b"%d" % micros(row.occurred_at),
        row.correlation_id.encode(),
        row.actor.encode(),
    )
    made = list(zip(HEADERS, values, strict=True))
    if row.causation_id is not None:
        made.append(("causation-id", str(row.causation_id).encode()))
    return made


def micros(at: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (at - EPOCH) // MICROSECOND


def row_of(key: bytes | str, value: bytes, headers: Iterable[tuple[str, Any]]) -> Row:
    """A Kafka record as the row that it was. Raises `Invalid` naming what is missing."""
    found = dict(headers)
    try:
        causation = found.get("causation-id")
        return Row(
            notification_id=int(found["notification-id"]),
            originator_id=UUID(key if isinstance(key, str) else key.decode()),
            originator_version=int(found["version"]),
            event_type=found["event-type"].decode(),
            state=value,
            event_id=UUID(found["event-id"].decode()),
            occurred_at=EPOCH + timedelta(microseconds=int(found["occurred-at"])),
            correlation_id=found["correlation-id"].decode(),
            causation_id=UUID(causation.decode()) if causation else None,
            actor=found["actor"].decode(),
        )
    except (KeyError, ValueError, AttributeError) as error:
        raise Invalid(f"not one of our records: {type(error).__name__} {error}") from error


def read(domain: str, key: bytes | str, value: bytes, headers: Sequence[tuple[str, Any]]) -> Recorded[Event]:
    """One Kafka message of a domain's topic as a `Recorded` event. Raises `Invalid`, `UnknownEvent` or `schemas.Invalid`."""
    return recorded(domain, row_of(key, value, headers))


def utc(at: datetime) -> datetime:
    """The same moment with UTC as its zone; naive times are refused."""
    if at.tzinfo is None:
        raise Invalid("a time needs its zone, as in 2026-11-01T00:00:00Z")
    return at.astimezone(UTC)
