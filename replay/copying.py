"""Rows as the binary format of COPY, for the statements of the Postgres sink, which take theirs as JSON.

Only values of exactly the column's type are packed: anything else (an int where a str belongs, NaN) takes the way that it takes
live, so that a rebuild stores what the worker stores, or is refused as it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from math import isfinite
from struct import Struct
from typing import Any, NamedTuple
from uuid import UUID

from psycopg.types.numeric import DecimalBinaryDumper

from projections.kernel.postgres import TYPES, _quoted, _rows
from projections.kernel.tables import AnyTable, Column, json_bytes

COPIED_FROM = 50  # rows: fewer go as JSON, in one round trip

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
SINCE = datetime(2000, 1, 1, tzinfo=UTC)
SINCE_DAY = date(2000, 1, 1).toordinal()

_count = Struct(">h").pack
_length = Struct(">i").pack
_int8 = Struct(">iq").pack
_float8 = Struct(">id").pack
_date4 = Struct(">ii").pack
_decimal = DecimalBinaryDumper(Decimal)


class Unlike(Exception):
    """A value that is not exactly of its column's type."""


class Copied(NamedTuple):
    """`made` makes a temporary table, `copy` fills it with `data`, `instead` gives a statement over it, `emptied` ends it."""

    made: str
    copy: str
    emptied: str
    source: str
    data: bytes

    def instead(self, query: str) -> str:
        return query.replace(self.source, "replay_copied AS r", 1)


def copied(table: AnyTable, rows: Sequence[dict[str, Any]]) -> Copied | None:
    """The rows, all of the same columns; None if they can't be packed as what their columns are."""
    names = tuple(rows[0])
    packers = [_packer(table.columns[name]) for name in names]
    head = _count(len(names))
    parts = [HEADER]
    try:
        for row in rows:
            parts.append(head)
            parts += [pack(value) for pack, value in zip(packers, row.values(), strict=True)]
    except Unlike:
        return None
    parts.append(TRAILER)
    made, copy, source = _words(table, names)
    return Copied(made, copy, "DROP TABLE replay_copied", source, b"".join(parts))


@lru_cache(maxsize=10_000)
def _words(table: AnyTable, names: tuple[str, ...]) -> tuple[str, str, str]:
    typed = ", ".join(f"{_quoted(name)} {TYPES[table.columns[name].kind]}" for name in names)
    return (
        f"CREATE TEMPORARY TABLE replay_copied ({typed}) ON COMMIT DROP",
        "COPY replay_copied FROM STDIN (FORMAT binary)",
        _rows(table, names),
    )


def _packer(column: Column) -> Callable[[Any], bytes]:
    return PACKERS[column.kind]


def _str(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not str:
        if not isinstance(value, str):
            if not isinstance(value, Enum) or not isinstance(value.value, str):
                raise Unlike
            value = value.value
        value = str.__str__(value)
    data: bytes = value.encode()
    return _length(len(data)) + data


def _int(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not int or not -(2**63) <= value < 2**63:
        raise Unlike
    return _int8(8, value)


def _bool(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not bool:
        raise Unlike
    return b"\0\0\0\1\1" if value else b"\0\0\0\1\0"


def _float(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not float or not isfinite(value):
        raise Unlike
    return _float8(8, value)


def _numeric(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not Decimal or not value.is_finite():
        raise Unlike
    data = bytes(_decimal.dump(value) or b"")
    return _length(len(data)) + data


def _uuid(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not UUID:
        raise Unlike
    return b"\0\0\0\x10" + value.int.to_bytes(16)


def _datetime(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not datetime or value.tzinfo is None:
        raise Unlike
    since = value - SINCE
    return _int8(8, (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _date(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not date:
        raise Unlike
    return _date4(4, value.toordinal() - SINCE_DAY)


def _bytes(value: Any) -> bytes:
    if value is None:
        return NULL
    if value.__class__ is not bytes:
        raise Unlike
    return _length(len(value)) + value


def _json(value: Any) -> bytes:
    if value is None:
        return NULL
    data = json_bytes(value)
    return _length(len(data) + 1) + b"\1" + data  # the version of jsonb's format


PACKERS: dict[type, Callable[[Any], bytes]] = {
    str: _str,
    int: _int,
    bool: _bool,
    float: _float,
    Decimal: _numeric,
    UUID: _uuid,
    datetime: _datetime,
    date: _date,
    bytes: _bytes,
    dict: _json,
}
