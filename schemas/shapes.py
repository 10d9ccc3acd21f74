"""How a Python type and an Avro type fit, and the source that turns one's values into the other's.

The two directions are generated as one flat expression a record (as dataclasses generates `__init__`), because both run for
every event: a tree of closures took twice as long. `problem` is the slow twin that says why a value could not be written.
"""
from __future__ import annotations

import dataclasses
import itertools
import types
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, SafeUUID

from schemas.tree import Tree, text
from schemas.types import Sealed

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
SEALED_PREFIX = "sealed:1:"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()

Env = dict[str, Any]
Source = Callable[[str], str]  # the name of a variable → the expression that turns it
Write = Callable[[Mapping[str, Any]], dict[str, Any]]
Read = Callable[[dict[str, Any]], dict[str, Any]]
Problem = Callable[[Any, str], "str | None"]  # (value, its path) → why it can't be written


def _same(x: str) -> str:
    return x


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One type's two directions, and why a value would not go."""

    write: Source
    read: Source
    problem: Problem


class Misfit(Exception):
    """The Python type and the Avro type disagree; said in words, without the path."""


# Values as fastavro wants them. It writes True, 1.5 and Decimal("1.5") as the long 1 without a word, hence the checks.
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


def _uuid_text(value: UUID) -> str:
    digits = "%032x" % value.int
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _micros(value: datetime) -> int:
    since = value - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_new_uuid, _set_int, _set_safe, _UNKNOWN = object.__new__, UUID.int.__set__, UUID.is_safe.__set__, SafeUUID.unknown  # type: ignore[attr-defined]


def _uuid(value: str) -> UUID:
    """UUID(value), without its checks of every other spelling: 0.5 instead of 1.1 µs."""
    if len(value) != 36:
        return UUID(value)
    uuid = _new_uuid(UUID)
    _set_int(uuid, int(value.replace("-", ""), 16))
    _set_safe(uuid, _UNKNOWN)
    return uuid


ENV: Env = {
    "_whole": _whole, "_truth": _truth, "_real": _real, "_sealed": _sealed, "_several": _several, "_uuid_text": _uuid_text, "_micros": _micros, "_uuid": _uuid,
    "_EPOCH": _EPOCH, "_delta": timedelta, "_day": date.fromordinal, "_EPOCH_DAY": _EPOCH_DAY,
}  # fmt: skip


def _plain(python: type, write: Source = _same, read: Source = _same) -> Shape:
    def problem(value: Any, path: str) -> str | None:
        if not isinstance(value, python) or (python in (int, float) and isinstance(value, bool)):
            return f"{path} is {_said(value)}, not {'an' if python is int else 'a'} {python.__name__}"
        if python is int and not LONG_MIN <= value <= LONG_MAX:
            return f"{path} is {_said(value)}, outside Avro's long (64 bits)"
        if python is str:
            return _unencodable(value, path)
        if python is datetime and value.tzinfo is None:
            return f"{path} is {_said(value)}, a time without a time zone"
        return None

    return Shape(write, read, problem)


def _unencodable(value: str, path: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{path} is {_said(value)}, which is not valid Unicode"
    return None


def _said(value: object) -> str:
    shown = repr(value)
    return f"{shown[:77]}..." if len(shown) > 80 else shown


_SCALARS: list[tuple[object, Tree, Shape]] = [
    (str, "string", _plain(str)),
    (int, "long", _plain(int, lambda x: f"{x} if {x}.__class__ is int else _whole({x})")),
    (bool, "boolean", _plain(bool, lambda x: f"{x} if {x}.__class__ is bool else _truth({x})")),
    (float, "double", _plain(float, lambda x: f"{x} if {x}.__class__ is float else _real({x})")),
    (UUID, {"type": "string", "logicalType": "uuid"}, _plain(UUID, lambda x: f"_uuid_text({x})", lambda x: f"_uuid({x})")),
    (
        datetime,
        {"type": "long", "logicalType": "timestamp-micros"},
        _plain(datetime, lambda x: f"_micros({x})", lambda x: f"_EPOCH + _delta(0, 0, {x})"),
    ),
    (
        date,
        {"type": "int", "logicalType": "date"},
        _plain(date, lambda x: f"{x}.toordinal() - _EPOCH_DAY", lambda x: f"_day({x} + _EPOCH_DAY)"),
    ),
]


def _sealed_problem(value: Any, path: str) -> str | None:
    sealed = isinstance(value, str) and value.startswith(SEALED_PREFIX)  # the value itself is not repeated: it may be a person's
    return None if sealed else f"{path} is personal data that was not sealed"


class Shapes:
    """Builds shapes; `env` collects what their sources refer to. `shape` raises Misfit, and collects those inside records."""

    def __init__(self) -> None:
        self.env: Env = dict(ENV)
        self._names = itertools.count()

    def keep(self, value: object) -> str:
        name = f"_{next(self._names)}"
        self.env[name] = value
        return name

    def compile(self, source: str, name: str) -> Any:
        exec(compile(source, f"<schemas {name}>", "exec"), self.env)  # only from names of fields and of `keep`
        return self.env[name]

    def shape(self, python: Any, tree: Tree) -> Shape:
        while typing.get_origin(python) is typing.Annotated or (isinstance(python, typing.NewType) and python is not Sealed):
            python = typing.get_args(python)[0] if typing.get_origin(python) else python.__supertype__
        if python is Sealed:
            self._agree(python, tree, tree == {"type": "string", "pii": True})
            return Shape(lambda x: f"_sealed({x})", _same, _sealed_problem)
        for known, wanted, shape in _SCALARS:
            if python is known:
                self._agree(python, tree, tree == wanted)
                return shape
        origin, args = typing.get_origin(python), typing.get_args(python)
        if origin in (typing.Union, types.UnionType):
            return self._optional(python, args, tree)
        if origin is list or (origin is tuple and args[1:] == (Ellipsis,)):
            self._agree(python, tree, isinstance(tree, dict) and tree["type"] == "array")
            return self._many(origin, self.shape(args[0], tree["items"]))
        if origin is dict and args[0] is str:
            self._agree(python, tree, isinstance(tree, dict) and tree["type"] == "map")
            return self._mapping(self.shape(args[1], tree["values"]))
        if origin is typing.Literal or (isinstance(python, type) and issubclass(python, StrEnum)):
            return self._enum(python, args or tuple(python), tree)
        if isinstance(python, type) and (dataclasses.is_dataclass(python) or hasattr(python, "_fields")):
            return self._nested(python, tree)
        raise Misfit(f"{_name(python)} is not a type that events can carry")

    def _agree(self, python: Any, tree: Tree, fits: bool) -> None:
        if not fits:
            raise Misfit(f"{_name(python)} in Python, {_avro(tree)} in the schema")

    def _optional(self, python: Any, args: tuple[Any, ...], tree: Tree) -> Shape:
        inner = [arg for arg in args if arg is not types.NoneType]
        self._agree(python, tree, len(inner) == 1 != len(args) and isinstance(tree, list) and len(tree) == 2 and tree[0] == "null")
        shape = self.shape(inner[0], tree[1])
        return Shape(
            lambda x: x if shape.write(x) == x else f"None if {x} is None else {shape.write(x)}",
            lambda x: x if shape.read(x) == x else f"None if {x} is None else {shape.read(x)}",
            lambda value, path: None if value is None else shape.problem(value, path),
        )

    def _many(self, kind: type, shape: Shape) -> Shape:
        def problem(value: Any, path: str) -> str | None:
            if not isinstance(value, (list, tuple)):
                return f"{path} is {_said(value)}, not a {kind.__name__}"
            return next(filter(None, (shape.problem(item, f"{path}[{n}]") for n, item in enumerate(value))), None)

        # A list is always a new one: fastavro hands out a default's own list again and again.
        item, make = f"i{next(self._names)}", f"{kind.__name__}({{}})".format
        return Shape(
            lambda x: f"_several({x})" if shape.write(item) == item else f"[{shape.write(item)} for {item} in _several({x})]",
            lambda x: make(x) if shape.read(item) == item else make(f"[{shape.read(item)} for {item} in {x}]"),
            problem,
        )

    def _mapping(self, shape: Shape) -> Shape:
        def problem(value: Any, path: str) -> str | None:
            if not isinstance(value, Mapping):
                return f"{path} is {_said(value)}, not a dict"
            keys = (f"{path} has the key {_said(key)}, not a str" if not isinstance(key, str) else _unencodable(key, path) for key in value)
            values = (shape.problem(item, f"{path}[{key!r}]") for key, item in value.items())
            return next(filter(None, itertools.chain(keys, values)), None)

        key, item = f"k{next(self._names)}", f"i{next(self._names)}"
        return Shape(
            lambda x: f"{{{key}: {shape.write(item)} for {key}, {item} in {x}.items()}}",
            lambda x: f"{{{key}: {shape.read(item)} for {key}, {item} in {x}.items()}}",
            problem,
        )

    def _enum(self, python: Any, members: tuple[Any, ...], tree: Tree) -> Shape:
        symbols = {str(member): member for member in members}
        self._agree(python, tree, isinstance(tree, dict) and tree["type"] == "enum")
        if symbols.keys() != set(tree["symbols"]):
            raise Misfit(f"{_name(python)} has {sorted(symbols)} in Python, {tree['name']} has {sorted(tree['symbols'])} in the schema")

        def problem(value: Any, path: str) -> str | None:
            return None if isinstance(value, str) and value in symbols else f"{path} is {_said(value)}, not one of {sorted(symbols)}"

        members_of = self.keep(symbols)
        return Shape(_same, (lambda x: f"{members_of}[{x}]") if isinstance(python, type) else _same, problem)

    def _nested(self, python: Any, tree: Tree) -> Shape:
        self._agree(python, tree, isinstance(tree, dict) and tree["type"] == "record")
        if python.__name__ != tree["name"].rpartition(".")[2]:
            raise Misfit(f"{python.__name__} in Python, the record {tree['name']} in the schema")
        shapes, misfits = self.fields(typing.get_type_hints(python, include_extras=True), tree)
        if misfits:
            raise Misfit("; ".join(f".{misfit}" for misfit in misfits))

        def problem(value: Any, path: str) -> str | None:
            if not isinstance(value, python):
                return f"{path} is {_said(value)}, not a {python.__name__}"
            return next(filter(None, (shape.problem(getattr(value, name), f"{path}.{name}") for name, shape in shapes.items())), None)

        cls, write, read = self.keep(python), f"write{next(self._names)}", f"read{next(self._names)}"
        values = {name: f"v{n}" for n, name in enumerate(shapes)}
        taken = "".join(f"; {value} = v.{name}" for name, value in values.items())
        items = ", ".join(f"{name!r}: {shape.write(values[name])}" for name, shape in shapes.items())
        self.compile(f"def {write}(v):\n if v.__class__ is not {cls}: raise TypeError(v)\n {taken[2:]}\n return {{{items}}}", write)
        taken = "".join(f"; {value} = r[{name!r}]" for name, value in values.items())
        items = ", ".join(f"{name}={shape.read(values[name])}" for name, shape in shapes.items())
        self.compile(f"def {read}(r):\n {taken[2:]}\n return {cls}({items})", read)
        return Shape(lambda x: f"{write}({x})", lambda x: f"{read}({x})", problem)

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
                continue
            if isinstance(field["type"], list) and field.get("default", ...) is not None:
                misfits.append(f'{name}: an optional field has "default": null in the schema')
        return shapes, misfits

    def converters(self, shapes: Mapping[str, Shape]) -> tuple[Write, Read]:
        """Both directions of a whole event. The first makes the dict that fastavro takes; the second changes the one it gave."""
        taken = "".join(f"\n v{n} = v[{name!r}]" for n, name in enumerate(shapes))
        items = ", ".join(f"{name!r}: {shape.write(f'v{n}')}" for n, (name, shape) in enumerate(shapes.items()))
        write: Write = self.compile(f"def write(v):{taken}\n return {{{items}}}", "write")
        turned = (f"\n v = r[{name!r}]; r[{name!r}] = {shape.read('v')}" for name, shape in shapes.items() if shape.read("v") != "v")
        read: Read = self.compile(f"def read(r):{''.join(turned)}\n return r", "read")
        return write, read


def _name(python: Any) -> str:
    return python.__name__ if isinstance(python, (type, typing.NewType)) and not typing.get_origin(python) else str(python)


def _avro(tree: Tree) -> str:
    if isinstance(tree, dict) and "name" in tree:
        return f"the {tree['type']} {tree['name']}"
    return tree if isinstance(tree, str) else text(tree)
