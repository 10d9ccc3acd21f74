"""How a Python type and an Avro type fit, and the source that writes and reads the one as the other.

Writing and reading run for every event, so each record gets one flat function of each (as dataclasses makes `__init__`), in
which fastavro's compiled code writes and reads the primitives. Measured against handing it whole records: half as many events again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from io import BytesIO
from typing import Any
from uuid import UUID

from fastavro._read import read_boolean, read_double, read_long, read_utf8  # type: ignore[attr-defined]
from fastavro._write import write_data  # type: ignore[attr-defined]

from schemas.tree import Tree, text
from schemas.types import Sealed
from schemas.values import uuid_of

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
SEALED_PREFIX = "sealed:1:"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()

Put = Callable[[bytearray, Mapping[str, Any]], None]  # appends a record's bytes; any exception: a value doesn't fit
Get = Callable[[BytesIO], dict[str, Any]]  # reads a record's values
Turn = Callable[[dict[str, Any]], dict[str, Any]]  # the same from what fastavro read, in place
Problem = Callable[[Any, str], "str | None"]  # (value, its path) → why it can't be written


class Misfit(Exception):
    """The Python type and the Avro type disagree; said in words, without the path."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One type, as source: `b` is the bytearray written to, `f` the stream read from, `x` a variable's name."""

    put: Callable[[str], list[str]]  # x → statements that write it
    get: str  # the expression that reads one
    turn: Callable[[str], str]  # x as fastavro reads it → the expression of its Python value
    problem: Problem


# fastavro writes True, 1.5 and Decimal("1.5") as the long 1 without a word, hence the checks.
def _whole(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    raise TypeError(value)


def _truth(value: Any) -> bool:
    raise TypeError(value)


def _real(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError(value)


def _sealed(value: Any) -> str:
    if isinstance(value, str) and value.startswith(SEALED_PREFIX):
        return value
    raise TypeError("not sealed")


def _several(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return value
    raise TypeError(value)


def _mapped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    raise TypeError(value)


def _uuid_bytes(value: UUID) -> bytes:
    digits = f"{value.int:032x}"
    return (
        f"H{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}".encode()
    )  # "H" is Avro's long 36


def _micros(value: datetime) -> int:
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


@functools.lru_cache(maxsize=16_384)  # customers and products come again and again
def _uuid(value: str) -> UUID:
    """UUID(value), without its checks of every other spelling: 0.5 instead of 1.1 µs."""
    if len(value) != 36:
        return UUID(value)
    return uuid_of(int(value.replace("-", ""), 16))


def _blocks(stream: BytesIO) -> Iterator[int]:
    """Once for each item of an array or a map."""
    while count := read_long(stream):
        if count < 0:  # a writer may give the block's size in bytes, too
            count = -count
            read_long(stream)
        yield from range(count)


_ENV: dict[str, Any] = {
    "W": write_data, "N": {}, "L": read_long, "S": read_utf8, "B": read_boolean, "D": read_double, "_blocks": _blocks,
    "_whole": _whole, "_truth": _truth, "_real": _real, "_sealed": _sealed, "_several": _several, "_mapped": _mapped, "_present": {0: False, 1: True},
    "_uuid_bytes": _uuid_bytes, "_uuid": _uuid, "_micros": _micros, "_EPOCH": _EPOCH, "_MICRO": timedelta(microseconds=1), "_day": date.fromordinal,
    "_EPOCH_DAY": _EPOCH_DAY,
}  # fmt: skip


def _write(value: str, kind: str) -> list[str]:
    return [f'W(b, {value}, "{kind}", N, "", N)']


def _problem_of(python: Any) -> Problem:
    accepted = (int, float) if python is float else python

    def problem(value: Any, path: str) -> str | None:
        fits: bool = isinstance(value, accepted) and (python is bool or not isinstance(value, bool))
        if not fits:
            return f"{path} is {_said(value)}, not {'an' if python is int else 'a'} {python.__name__}"
        if python is int and not LONG_MIN <= value <= LONG_MAX:
            return f"{path} is {_said(value)}, outside Avro's long (64 bits)"
        if python is datetime and value.tzinfo is None:
            return f"{path} is {_said(value)}, a time without a time zone"
        return _unencodable(value, path) if python is str else None

    return problem


def _unencodable(value: str, path: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{path} is {_said(value)}, which is not valid Unicode"
    return None


def _said(value: object) -> str:
    shown = repr(value)
    return f"{shown[:77]}..." if len(shown) > 80 else shown


def _sealed_problem(value: Any, path: str) -> str | None:
    sealed = isinstance(value, str) and value.startswith(
        SEALED_PREFIX
    )  # the value is not repeated: it may be a person's
    return None if sealed else f"{path} is personal data that was not sealed"


# Python type, tree, x → what fastavro writes as which primitive, the expression that reads it, what it read → Python
_SCALARS: list[tuple[object, Tree, Callable[[str], list[str]], str, str]] = [
    (str, "string", lambda x: _write(x, "string"), "S(f)", "{}"),
    (Sealed, {"type": "string", "pii": True}, lambda x: _write(f"_sealed({x})", "string"), "S(f)", "{}"),
    (int, "long", lambda x: _write(f"{x} if {x}.__class__ is int else _whole({x})", "long"), "L(f)", "{}"),
    (bool, "boolean", lambda x: [f"b.append({x} if {x}.__class__ is bool else _truth({x}))"], "B(f)", "{}"),
    (float, "double", lambda x: _write(f"{x} if {x}.__class__ is float else _real({x})", "double"), "D(f)", "{}"),
    (UUID, {"type": "string", "logicalType": "uuid"}, lambda x: [f"b += _uuid_bytes({x})"], "S(f)", "_uuid({})"),
    (
        datetime,
        {"type": "long", "logicalType": "timestamp-micros"},
        lambda x: _write(f"_micros({x})", "long"),
        "L(f)",
        "_EPOCH + {} * _MICRO",
    ),
    (
        date,
        {"type": "int", "logicalType": "date"},
        lambda x: _write(f"{x}.toordinal() - _EPOCH_DAY", "int"),
        "L(f)",
        "_day({} + _EPOCH_DAY)",
    ),
]


class Shapes:
    """Builds the shapes of one event. Misfit: the types disagree; `fields` collects those of a whole record."""

    def __init__(self) -> None:
        self._env = dict(_ENV)  # what the generated source refers to
        self._names = itertools.count()

    def record(self, shapes: Mapping[str, Shape]) -> tuple[Put, Get, Turn]:
        """The functions of a whole event, of its fields' shapes in the schema's order."""
        put, get, turn = [], [], []
        for name, shape in shapes.items():
            put += [f"v = v_[{name!r}]", *shape.put("v")]
            get.append(f"{name!r}: {shape.get}")
            if shape.turn("v") != "v":
                turn.append(f"v = r[{name!r}]; r[{name!r}] = {shape.turn('v')}")
        return (
            self._function("b, v_", [*put, "return"]),
            self._function("f", [f"return {{{', '.join(get)}}}"]),
            self._function("r", [*turn, "return r"]),
        )

    def fields(self, python: Mapping[str, Any], record: Tree) -> tuple[dict[str, Shape], list[str]]:
        """Shapes by field in the schema's order, and every disagreement, each naming both sides."""
        avro = {field["name"]: field for field in record["fields"]}
        misfits = [f"{name} is in Python only" for name in python.keys() - avro.keys()]
        misfits += [f"{name} is in the schema only" for name in avro.keys() - python.keys()]
        shapes: dict[str, Shape] = {}
        for name, field in avro.items():
            if name not in python:
                continue
            try:
                shapes[name] = self.shape(python[name], field["type"])
            except Misfit as misfit:
                misfits.append(f"{name}{'' if str(misfit).startswith('.') else ': '}{misfit}")
            if isinstance(field["type"], list) and field.get("default", ...) is not None:
                misfits.append(f'{name}: optional, so it needs "default": null in the schema')
        return shapes, misfits

    def shape(self, python: Any, tree: Tree) -> Shape:
        while typing.get_origin(python) is typing.Annotated or (
            isinstance(python, typing.NewType) and python is not Sealed
        ):
            python = typing.get_args(python)[0] if typing.get_origin(python) else python.__supertype__
        for known, wanted, put, get, turn in _SCALARS:
            if python is known:
                _agree(python, tree, tree == wanted)
                problem = _sealed_problem if python is Sealed else _problem_of(python)
                return Shape(put, turn.format(get), turn.format, problem)
        origin, args = typing.get_origin(python), typing.get_args(python)
        if origin in (typing.Union, types.UnionType):
            return self._optional(python, [arg for arg in args if arg is not types.NoneType], tree)
        if origin is list or (origin is tuple and args[1:] == (Ellipsis,)):
            _agree(python, tree, isinstance(tree, dict) and tree["type"] == "array")
            return self._many(origin, self.shape(args[0], tree["items"]))
        if origin is dict and args[0] is str:
            _agree(python, tree, isinstance(tree, dict) and tree["type"] == "map")
            return self._mapping(self.shape(args[1], tree["values"]))
        if origin is typing.Literal:
            return self._enum(python, {symbol: symbol for symbol in args}, tree)
        if isinstance(python, type) and issubclass(python, StrEnum):
            return self._enum(python, {member.value: member for member in python}, tree)
        if isinstance(python, type) and (dataclasses.is_dataclass(python) or hasattr(python, "_fields")):
            return self._nested(python, tree)
        raise Misfit(f"{_name(python)} in Python is not a type that events can carry ({_avro(tree)} in the schema)")

    def _optional(self, python: Any, inner: list[Any], tree: Tree) -> Shape:
        _agree(python, tree, len(inner) == 1 and isinstance(tree, list) and len(tree) == 2 and tree[0] == "null")
        shape = self.shape(inner[0], tree[1])
        return Shape(
            lambda x: [f"if {x} is None: b.append(0)", "else:", " b.append(2)", *_indent(shape.put(x))],
            f"({shape.get} if _present[L(f)] else None)",
            lambda x: x if shape.turn(x) == x else f"(None if {x} is None else {shape.turn(x)})",
            lambda value, path: None if value is None else shape.problem(value, path),
        )

    def _many(self, kind: type, shape: Shape) -> Shape:
        def problem(value: Any, path: str) -> str | None:
            if not isinstance(value, (list, tuple)):
                return f"{path} is {_said(value)}, not a {kind.__name__}"
            return next(filter(None, (shape.problem(item, f"{path}[{n}]") for n, item in enumerate(value))), None)

        i = self._new("i")
        count = _write("len(_several({}))", "long")[0].format
        return Shape(
            lambda x: [
                f"if _several({x}):",
                f" {count(x)}",
                f" for {i} in {x}:",
                *_indent(shape.put(i), 2),
                "b.append(0)",
            ],
            f"{kind.__name__}([{shape.get} for _ in _blocks(f)])",
            # Always a new one: fastavro hands out the same default list again and again.
            lambda x: f"{kind.__name__}([{shape.turn(i)} for {i} in {x}])",
            problem,
        )

    def _mapping(self, shape: Shape) -> Shape:
        def problem(value: Any, path: str) -> str | None:
            if not isinstance(value, Mapping):
                return f"{path} is {_said(value)}, not a dict"
            keys = (
                _unencodable(k, path) if isinstance(k, str) else f"{path} has the key {_said(k)}, not a str"
                for k in value
            )
            values = (shape.problem(item, f"{path}[{key!r}]") for key, item in value.items())
            return next(filter(None, itertools.chain(keys, values)), None)

        k, i = self._new("k"), self._new("i")
        count = _write("len({})", "long")[0].format
        each = _indent([*_write(k, "string"), *shape.put(i)], 2)
        return Shape(
            lambda x: [f"if _mapped({x}):", f" {count(x)}", f" for {k}, {i} in {x}.items():", *each, "b.append(0)"],
            f"{{S(f): {shape.get} for _ in _blocks(f)}}",
            lambda x: f"{{{k}: {shape.turn(i)} for {k}, {i} in {x}.items()}}",
            problem,
        )

    def _enum(self, python: Any, members: dict[str, Any], tree: Tree) -> Shape:
        _agree(python, tree, isinstance(tree, dict) and tree["type"] == "enum")
        symbols: list[str] = tree["symbols"]
        if members.keys() != set(symbols):
            raise Misfit(
                f"{_name(python)} has {sorted(members)} in Python, {tree['name']} has {sorted(symbols)} in the schema"
            )

        def problem(value: Any, path: str) -> str | None:
            return (
                None
                if isinstance(value, str) and value in members
                else f"{path} is {_said(value)}, not one of {symbols}"
            )

        index = self._keep({symbol: n for n, symbol in enumerate(symbols)})
        by_index, by_symbol = self._keep({n: members[symbol] for n, symbol in enumerate(symbols)}), self._keep(members)
        return Shape(
            lambda x: _write(f"{index}[{x}]", "long"), f"{by_index}[L(f)]", lambda x: f"{by_symbol}[{x}]", problem
        )

    def _nested(self, python: Any, tree: Tree) -> Shape:
        _agree(python, tree, isinstance(tree, dict) and tree["type"] == "record")
        if python.__name__ != tree["name"].rpartition(".")[2]:
            raise Misfit(f"{python.__name__} in Python, the record {tree['name']} in the schema")
        shapes, misfits = self.fields(typing.get_type_hints(python, include_extras=True), tree)
        if misfits:
            raise Misfit("; ".join(f".{misfit}" for misfit in sorted(misfits)))

        def problem(value: Any, path: str) -> str | None:
            if not isinstance(value, python):
                return f"{path} is {_said(value)}, not a {python.__name__}"
            return next(
                filter(None, (shape.problem(getattr(value, name), f"{path}.{name}") for name, shape in shapes.items())),
                None,
            )

        cls, v = self._keep(python), self._new("v")
        fields = [line for name, shape in shapes.items() for line in (f"{v} = v_.{name}", *shape.put(v))]
        put = self._keep(self._function("b, v_", [f"if not isinstance(v_, {cls}): raise TypeError(v_)", *fields]))
        make = self._maker(python, list(shapes))
        turned = ", ".join(shape.turn(f"r[{name!r}]") for name, shape in shapes.items())
        turn = self._keep(self._function("r", [f"return {make}({turned})"]))
        get = f"{make}({', '.join(shape.get for shape in shapes.values())})"
        return Shape(lambda x: [f"{put}(b, {x})"], get, lambda x: f"{turn}({x})", problem)

    def _maker(self, python: Any, names: list[str]) -> str:
        """What makes a `python` of its fields in that order, past a frozen data class's `__init__`, which takes three times as long."""
        frozen = dataclasses.is_dataclass(python) and not hasattr(python, "__post_init__")
        slots = [vars(python).get(name) for name in names]
        if frozen and all(isinstance(slot, types.MemberDescriptorType) for slot in slots):
            sets = [f"{self._keep(slot.__set__)}(x, {name}_)" for name, slot in zip(names, slots, strict=True)]
            lines = [f"x = {self._keep(object.__new__)}({self._keep(python)})", *sets, "return x"]
        else:
            lines = [f"return {self._keep(python)}({', '.join(f'{name}={name}_' for name in names)})"]
        return self._keep(self._function(", ".join(f"{name}_" for name in names), lines))

    def _function(self, arguments: str, lines: list[str]) -> Any:
        name = self._new("function")
        source = "\n".join([f"def {name}({arguments}):", *_indent(lines)])
        exec(
            compile(source, "<schemas>", "exec"), self._env
        )  # made of field names, which Avro's rules limit, and `_keep`
        return self._env[name]

    def _keep(self, value: object) -> str:
        name = self._new("kept")
        self._env[name] = value
        return name

    def _new(self, prefix: str) -> str:
        return f"{prefix}{next(self._names)}"


def _agree(python: Any, tree: Tree, fits: bool) -> None:
    if not fits:
        raise Misfit(f"{_name(python)} in Python, {_avro(tree)} in the schema")


def _indent(lines: list[str], depth: int = 1) -> list[str]:
    return [" " * depth + line for line in lines]


def _name(python: Any) -> str:
    return (
        python.__name__ if isinstance(python, (type, typing.NewType)) and not typing.get_origin(python) else str(python)
    )


def _avro(tree: Tree) -> str:
    if isinstance(tree, dict) and "name" in tree:
        return f"the {tree['type']} {tree['name']}"
    return tree if isinstance(tree, str) else text(tree)
