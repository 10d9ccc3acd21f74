"""Rows of a ClickHouse table, column by column, in ClickHouse's Native format.

The client's own encoder is made for any type and takes longer than the projection itself; here a column is a few joins. Native is
little-endian, as are all machines that this runs on.
Enums, and what ClickHouse keeps as LowCardinality, travel as plain strings: the server converts them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Context, Decimal
from enum import Enum
from typing import Any, Protocol, get_args
from uuid import UUID

from aggregates.kernel.event import EPOCH
from projections.kernel.tables import Column, column_of, json_bytes

DAY_ONE = date(1970, 1, 1)
EXACT = Context(prec=76)
SHORT = [bytes([n]) for n in range(128)]


class Values(Protocol):
    """A growing column. `add` raises ValueError, TypeError, AttributeError or ArithmeticError, and has added nothing then."""

    type: str

    def add(self, values: Sequence[Any]) -> None: ...

    def data(self) -> bytes: ...


def varint(number: int) -> bytes:
    """An unsigned number in groups of seven bits, the lowest first."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def string(value: bytes) -> bytes:
    length = len(value)
    return (SHORT[length] if length < 128 else varint(length)) + value


class Strings:
    """By `encode`: text, bytes, or JSON of anything."""

    type = "String"

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        self.encode, self.out = encode, bytearray()

    def add(self, values: Sequence[Any]) -> None:
        encode = self.encode
        self.out += b"".join([string(encode(value)) for value in values])

    def data(self) -> bytes:
        return bytes(self.out)


class Few(Strings):
    """Text of which the same comes again and again."""

    def __init__(self) -> None:
        super().__init__(plain)
        self.known: dict[Any, bytes] = {}

    def add(self, values: Sequence[Any]) -> None:
        known = self.known
        for value in set(values) - known.keys():
            known[value] = string(plain(value))
        self.out += b"".join([known[value] for value in values])


class Numbers:
    """Fixed-width numbers, by `convert` where they are not yet such; `code` is array's."""

    def __init__(self, type: str, code: str, convert: Callable[[Any], Any] | None = None) -> None:
        self.type, self.convert, self.out = type, convert, array(code)

    def add(self, values: Sequence[Any]) -> None:
        self.out += array(self.out.typecode, values if self.convert is None else list(map(self.convert, values)))

    def data(self) -> bytes:
        return self.out.tobytes()


class Bytes:
    """Values of a fixed number of bytes each."""

    def __init__(self, type: str, convert: Callable[[Any], bytes]) -> None:
        self.type, self.convert, self.out = type, convert, bytearray()

    def add(self, values: Sequence[Any]) -> None:
        self.out += b"".join(map(self.convert, values))

    def data(self) -> bytes:
        return bytes(self.out)


class Ids:
    """UUIDs: two little-endian halves."""

    type = "UUID"

    def __init__(self) -> None:
        self.out = bytearray()

    def add(self, values: Sequence[UUID]) -> None:
        self.out += b"".join([value.int.to_bytes(16) for value in values])

    def data(self) -> bytes:
        halves = array("Q", bytes(self.out))
        halves.byteswap()
        return halves.tobytes()


class Nullable:
    def __init__(self, inner: Values, blank: Any) -> None:
        self.type, self.inner, self.blank, self.nulls = f"Nullable({inner.type})", inner, blank, bytearray()

    def add(self, values: Sequence[Any]) -> None:
        self.inner.add([self.blank if value is None else value for value in values])
        self.nulls += bytes([value is None for value in values])

    def data(self) -> bytes:
        return bytes(self.nulls) + self.inner.data()


class Arrays:
    """Lists and tuples of one type, and a dict's items (`parts`: its keys and its values)."""

    def __init__(self, type: str, *parts: Values) -> None:
        self.type, self.parts, self.ends, self.end = type, parts, array("Q"), 0

    def add(self, values: Sequence[Any]) -> None:
        if len(self.parts) == 1:
            self.parts[0].add([item for value in values for item in value])
        else:
            names, items = self.parts
            found = [item for value in values for item in value.items()]
            names.add([name for name, _ in found])
            items.add([item for _, item in found])
        for value in values:
            self.end += len(value)
            self.ends.append(self.end)

    def data(self) -> bytes:
        return self.ends.tobytes() + b"".join(part.data() for part in self.parts)


def plain(value: Any) -> bytes:
    """Text as bytes; an enum's value."""
    made = (value.value if isinstance(value, Enum) else value).encode()
    assert isinstance(made, bytes)
    return made


def micros(value: datetime) -> int:
    since = value - EPOCH
    return since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds


def decimal(value: Decimal | int) -> bytes:
    return int(Decimal(value).scaleb(9, EXACT)).to_bytes(16, "little", signed=True)


SIMPLE: dict[str, Callable[[], Values]] = {
    "Int64": lambda: Numbers("Int64", "q"),
    "UInt64": lambda: Numbers("UInt64", "Q"),
    "UInt32": lambda: Numbers("UInt32", "I"),
    "Float64": lambda: Numbers("Float64", "d"),
    "Bool": lambda: Numbers("Bool", "B", bool),
    "Decimal(38, 9)": lambda: Bytes("Decimal(38, 9)", decimal),
    "UUID": Ids,
    "DateTime64(6, 'UTC')": lambda: Numbers("DateTime64(6, 'UTC')", "q", micros),
    "Date32": lambda: Numbers("Date32", "i", lambda day: (day - DAY_ONE).days),
    "LowCardinality(String)": Few,
    "String": lambda: Strings(plain),
}
BLANKS: dict[str, Any] = {
    "UUID": UUID(int=0),
    "DateTime64(6, 'UTC')": EPOCH,
    "Date32": DAY_ONE,
    "LowCardinality(String)": "",
}
"""What a column of a type that has no zero of its own holds where nothing was put."""


def column(of: Column, type: str) -> Values:
    """A table's column of a ClickHouse type."""
    if type.startswith("Nullable("):
        inner = type[len("Nullable(") : -1]
        return Nullable(column(of, inner), BLANKS[inner] if inner in BLANKS else of.kind())
    if type == "LowCardinality(Nullable(String))":
        return Nullable(Few(), "")
    if type.startswith("Array("):
        items = column(column_of("", "item", get_args(of.declared)[0]), type[len("Array(") : -1])
        return Arrays(f"Array({items.type})", items)
    if type == "Map(String, String)":
        return Arrays(type, Strings(plain), Strings(plain))
    if type == "String":
        return Strings(json_bytes if of.kind is dict else bytes if of.kind is bytes else plain)
    return SIMPLE[type]()


def block(columns: Mapping[str, Values], rows: int) -> bytes:
    """One block: these columns by name, all of so many rows."""
    return b"".join((varint(len(columns)), varint(rows), *_parts(columns)))


def _parts(columns: Mapping[str, Values]) -> Iterable[bytes]:
    for name, values in columns.items():
        yield string(name.encode())
        yield string(values.type.encode())
        yield values.data()
