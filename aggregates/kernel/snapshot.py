"""An aggregate's state as bytes: JSON with tags for what JSON lacks. Thrown away, never migrated: events are the truth."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import orjson

import schemas
from aggregates.kernel.event import EPOCH, EVENTS, Aggregate

A = TypeVar("A", bound=Aggregate)
SKIPPED = frozenset({"_id", "_version", "_pending_events"})


def dump(aggregate: Aggregate) -> bytes:
    """The state of an aggregate. Raises `TypeError` naming a value of a type that a snapshot can't hold."""
    return orjson.dumps(_pack({name: value for name, value in vars(aggregate).items() if name not in SKIPPED}))


def restore(cls: type[A], id: UUID, version: int, state: bytes) -> A:
    """The aggregate as it was when `dump` was called."""
    aggregate = object.__new__(cls)
    values = _unpack(orjson.loads(state))
    object.__setattr__(aggregate, "__dict__", {**values, "_id": id, "_version": version, "_pending_events": []})
    return aggregate


def attributes(state: bytes) -> dict[str, Any]:
    """What `dump` has written, by attribute, in values that are equal where the state's are: the order of a set is chance.
    Raises `ValueError`, `TypeError` or `KeyError` for what it hasn't."""
    return {name: _ordered(value) for name, value in orjson.loads(state)["v"]}


@cache
def fingerprint(cls: type[Aggregate]) -> str:
    """Changes with the code that folds the aggregate and with the schema that its events are read by (another default is
    another state), so that a snapshot never outlives what it was folded by."""
    modules = {cls.__module__} | {event.__module__ for event in EVENTS.values() if event.domain == cls.domain}
    files = [Path(str(sys.modules[name].__file__)) for name in modules] + list(Path(__file__).parent.glob("*.py"))
    parts = [*(file.read_bytes() for file in sorted(files)), schemas.today(cls.domain).encode()]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def _pack(value: Any) -> Any:
    match value:
        case Enum():
            return {"@": "enum", "c": _name(type(value)), "v": value.value}
        case None | bool() | float() | str():
            return value
        case int():
            return value if abs(value) < 2**53 else {"@": "int", "v": str(value)}
        case list():
            return [_pack(item) for item in value]
        case dict():
            return {"@": "dict", "v": [[_pack(key), _pack(item)] for key, item in value.items()]}
        case tuple() if hasattr(value, "_fields"):
            return {"@": "named", "c": _name(type(value)), "v": [_pack(item) for item in value]}
        case tuple() | set() | frozenset():
            return {"@": type(value).__name__, "v": [_pack(item) for item in value]}
        case UUID():
            return {"@": "uuid", "v": value.hex}
        case datetime():
            return {"@": "time", "v": (value - EPOCH) // timedelta(microseconds=1)}
        case date():
            return {"@": "date", "v": value.isoformat()}
        case timedelta():
            return {"@": "span", "v": value // timedelta(microseconds=1)}
        case Decimal():
            return {"@": "decimal", "v": str(value)}
        case bytes():
            return {"@": "bytes", "v": value.hex()}
        case _ if dataclasses.is_dataclass(value):
            state = {field.name: _pack(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"@": "data", "c": _name(type(value)), "v": state}
    raise TypeError(f"a snapshot can't hold a {type(value).__name__}")


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["@"], value["v"]
    match kind:
        case "dict":
            return {_unpack(key): _unpack(item) for key, item in inner}
        case "tuple" | "set" | "frozenset":
            return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](_unpack(item) for item in inner)
        case "uuid":
            return UUID(hex=inner)
        case "time":
            return EPOCH + timedelta(microseconds=inner)
        case "date":
            return date.fromisoformat(inner)
        case "span":
            return timedelta(microseconds=inner)
        case "decimal":
            return Decimal(inner)
        case "bytes":
            return bytes.fromhex(inner)
        case "int":
            return int(inner)
        case "enum":
            return _class(value["c"])(inner)
        case "named":
            return _class(value["c"])(*[_unpack(item) for item in inner])
        case "data":
            made = object.__new__(_class(value["c"]))
            for name, item in inner.items():
                object.__setattr__(made, name, _unpack(item))
            return made
    raise TypeError(f"unknown tag in a snapshot: {kind}")


def _ordered(packed: Any) -> Any:
    if isinstance(packed, list):
        return [_ordered(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    made = {key: _ordered(value) for key, value in packed.items()}
    return {**made, "v": sorted(made["v"], key=orjson.dumps)} if made.get("@") in ("set", "frozenset") else made


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class(name: str) -> Any:
    module, qualname = name.split(":")
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    return found
