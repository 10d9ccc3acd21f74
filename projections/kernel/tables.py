"""What the three kinds of read-model table share: typed columns, and changes as pure values."""

from __future__ import annotations

import copy
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple, Self, Union, get_args, get_origin
from uuid import UUID

import orjson

from aggregates.kernel.errors import Invalid

SCALARS: tuple[type, ...] = (str, int, bool, float, Decimal, UUID, datetime, date, bytes)
MARK = "__"  # between a table's name and what its shadow is for
ZEROS: dict[type, Any] = {str: "", int: 0, bool: False, float: 0.0, Decimal: Decimal(0), bytes: b""}


class Change(NamedTuple):
    """One change to one row: what a clause answers with. Made by the methods of a table, applied by its sink."""

    table: AnyTable
    op: str
    key: Any
    values: dict[str, Any]


_new = tuple.__new__  # past the function that a NamedTuple is made by: half the time


class Column(NamedTuple):
    """`kind` is one of SCALARS, or `dict` for whatever is stored as JSON: list, dict, tuple, data class."""

    name: str
    kind: type
    nullable: bool
    declared: Any

    @property
    def blank(self) -> Any:
        """What a row holds where nothing was put: 0, "", False, [] or {}; None where the type has no zero."""
        if self.nullable:
            return None
        if self.kind is dict:
            return {} if (get_origin(self.declared) or self.declared) in (dict, Mapping) else []
        return ZEROS.get(self.kind)


class AnyTable:
    """A named set of typed columns with a key of one column or several.

    `person` names the columns with the id of the person whose the row is, `part_of` those with the id of something that may be a
    person's, an order's say: by these a person's data is found. A test wants one or the other, or a reason, of all that hold ids.
    """

    sink: typing.ClassVar[str]
    """Which sink writes it: "postgres", "redis" or "clickhouse"."""

    def __init__(
        self,
        name: str,
        key: tuple[str, ...],
        columns: Mapping[str, Any],
        person: str | tuple[str, ...] = (),
        part_of: str | tuple[str, ...] = (),
    ) -> None:
        if not name.isidentifier() or not name.islower():
            raise ValueError(f"a table's name is one lower-case identifier, not {name!r}")
        if MARK in name:
            raise ValueError(f"the table name {name!r} has {MARK!r} in it, as only shadows have")
        if missing := set(key) - columns.keys():
            raise ValueError(f"table {name}: no column for the key {', '.join(sorted(missing))}")
        self.name, self.key = name, key
        self.columns = {column: column_of(name, column, declared) for column, declared in columns.items()}
        self.person, self.part_of = ((one,) if isinstance(one, str) else one for one in (person, part_of))
        if wrong := [
            one for one in (*self.person, *self.part_of) if one not in columns or self.columns[one].kind is not UUID
        ]:
            raise ValueError(f"table {name}: {', '.join(wrong)} is no column with ids")
        self._settable = columns.keys() - set(key)
        self._addable = {c.name for c in self.columns.values() if c.kind in (int, float, Decimal)} - set(key)

    def named(self, name: str) -> Self:
        """The same table under another name: a shadow that a replay builds."""
        other = copy.copy(self)
        other.name = name
        return other

    def blanks(self) -> dict[str, Any]:
        """A row in which nothing was put, without its key."""
        return {column.name: column.blank for column in self.columns.values() if column.name not in self.key}

    def keys(self, key: Any) -> dict[str, Any]:
        """The key's columns: `{"id": key}`, or one each of a tuple."""
        return dict(zip(self.key, key if len(self.key) > 1 else (key,), strict=True))

    def _check(self, allowed: Iterable[str], given: Mapping[str, Any], what: str) -> None:
        if wrong := given.keys() - set(allowed):
            raise TypeError(f"table {self.name} has no {what} {', '.join(sorted(wrong))}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class RowTable(AnyTable):
    """A table whose rows are found by their key and changed in place."""

    def put(self, key: Any, /, **columns: Any) -> Change:
        """Set the named columns; a row that is not there yet is made, its other columns blank. Own aggregate's rows only."""
        if not columns.keys() <= self._settable:
            self._check(self._settable, columns, "column")
        return _new(Change, (self, "put", key, columns))

    def add(self, key: Any, /, **increments: int | float | Decimal) -> Change:
        """Add to number columns; a row that is not there yet starts at zero. Any aggregate's rows: additions commute."""
        if not increments.keys() <= self._addable:
            self._check(self._addable, increments, "number column")
        return _new(Change, (self, "add", key, increments))

    def drop(self, key: Any, /) -> Change:
        """Delete the row; none there is fine. Own aggregate's rows only."""
        return Change(self, "drop", key, {})


def column_of(table: str, name: str, declared: Any) -> Column:
    """The column for a declared type. Raises ValueError for a type that no store can hold."""
    if name.startswith("_") or not name.isidentifier():
        raise ValueError(f"table {table}: {name!r} can't be a column")
    inner, nullable = declared, False
    if get_origin(inner) in (Union, types.UnionType):
        options = [option for option in get_args(inner) if option is not type(None)]
        if len(options) != 1:
            raise ValueError(f"table {table}: {name} is one type, or one type or None")
        inner, nullable = options[0], True
    if hasattr(inner, "__supertype__"):  # NewType
        inner = inner.__supertype__
    origin = get_origin(inner) or inner
    if origin is Literal or (isinstance(origin, type) and issubclass(origin, Enum)):
        return Column(name, str, nullable, inner)
    if origin in SCALARS:
        return Column(name, origin, nullable, inner)
    if origin in (dict, list, tuple, Mapping) or is_dataclass(origin) or hasattr(origin, "_fields"):
        return Column(name, dict, nullable, inner)
    raise ValueError(f"table {table}: no store holds a {declared!r} ({name})")


def json_bytes(value: Any) -> bytes:
    """JSON of any column value. Raises Invalid for what JSON, or a 64-bit integer, can't hold."""
    try:
        try:
            return orjson.dumps(value, default=_other)
        except TypeError:  # the option is slow, and only dicts by UUID, int or date need it
            return orjson.dumps(value, default=_other, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError) as error:  # orjson.JSONEncodeError is a TypeError; surrogates are ValueErrors
        raise Invalid(f"not to be stored: {error}") from error


def _other(value: Any) -> Any:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, tuple):  # a NamedTuple
        return value._asdict() if hasattr(value, "_asdict") else list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
