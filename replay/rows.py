"""Records of a topic as rows of an event store, in the bytes of Postgres' binary COPY: no body is decoded on the way."""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterable
from datetime import timedelta
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from uuid import UUID

from confluent_kafka import Message

from aggregates.kernel import wire
from aggregates.kernel.event import EPOCH

BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
END = b"\xff\xff"
_SINCE_2000 = 946_684_800_000_000  # microseconds: where Postgres counts from
_HEAD = Struct("!hiqi16siii").pack  # ten columns; notification id, aggregate, version, the length of the type
_LENGTH = Struct("!i").pack
_MIDDLE = Struct("!i16siqi").pack  # event id, time, the length of the correlation
_CAUSE = Struct("!i16si").pack
_NO_CAUSE = Struct("!ii").pack
_ID = Struct("!q").unpack_from
_INT = Struct("!i").unpack_from

Record = tuple[bytes, bytes, Iterable[tuple[str, bytes]]]
"""Key, value and headers."""


class NotOurs(ValueError):
    """The record is not an event of ours: what is missing or wrong in it."""


def packed(key: bytes, value: bytes, headers: Iterable[tuple[str, bytes]]) -> tuple[int, bytes, bytes]:
    """Notification id, event type and the packed row, its columns in the order of `wire.Row`. Raises NotOurs."""
    found = dict(headers)
    try:
        id, type, correlation, actor = (
            int(found["notification-id"]), found["event-type"], found["correlation-id"], found["actor"],
        )  # fmt: skip
        cause = found.get("causation-id")
        row = b"".join(
            (
                _HEAD(10, 8, id, 16, _aggregate(key), 4, int(found["version"]), len(type)),
                type,
                _LENGTH(len(value)),
                value,
                _MIDDLE(16, _uuid(found["event-id"]), 8, int(found["occurred-at"]) - _SINCE_2000, len(correlation)),
                correlation,
                _CAUSE(16, _uuid(cause), len(actor)) if cause else _NO_CAUSE(-1, len(actor)),
                actor,
            )
        )
    except (KeyError, ValueError, TypeError, AttributeError, StructError) as error:
        raise NotOurs(f"{error.__class__.__name__} {error}") from error
    if id <= 0:
        raise NotOurs(f"notification id {id}")
    return id, type, row


def id_of(row: bytes) -> int:
    """The notification id of a packed row."""
    return int(_ID(row, 6)[0])


def unpacked(row: bytes) -> wire.Row:
    """A packed row by its columns."""
    columns: list[bytes | None] = []
    at = 2
    for _ in wire.Row._fields:
        (length,) = _INT(row, at)
        at += 4
        columns.append(None if length < 0 else row[at : at + length])
        at += max(length, 0)
    id, aggregate, version, type, state, event, micros, correlation, cause, actor = columns
    assert id and aggregate and version and event and micros
    assert type is not None and state is not None and correlation is not None and actor is not None
    return wire.Row(
        int.from_bytes(id),
        UUID(bytes=aggregate),
        int.from_bytes(version),
        type.decode(),
        state,
        UUID(bytes=event),
        EPOCH + timedelta(microseconds=int.from_bytes(micros, signed=True) + _SINCE_2000),
        correlation.decode(),
        UUID(bytes=cause) if cause else None,
        actor.decode(),
    )


def _uuid(text: bytes) -> bytes:
    if len(text) != 36:
        raise ValueError(f"{text!r} is not a UUID")
    return unhexlify(text.replace(b"-", b""))


_aggregate = lru_cache(maxsize=10_000)(_uuid)  # an aggregate's events come close together


def record(message: Message) -> Record:
    """What a message holds. Headers of ours are bytes."""
    return message.key() or b"", message.value() or b"", message.headers() or ()  # type: ignore[return-value]


def line(values: Iterable[object]) -> bytes:
    r"""A row of COPY's text format; None is \N."""
    return ("\t".join("\\N" if value is None else escaped(str(value)) for value in values) + "\n").encode()


def escaped(text: str) -> str:
    """As COPY's text format has it."""
    if "\\" in text or "\t" in text or "\n" in text or "\r" in text:
        return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text
