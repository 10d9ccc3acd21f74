"""Frozen data classes that cost little to make: on the path of every command and every event there are many of them.

The `__init__` that `dataclasses` writes for a frozen class calls `object.__setattr__` for each field, by name. The one written here
sets slots, or the instance's `__dict__`, directly: nine fields in 0.5 instead of 1.5 µs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from types import MemberDescriptorType
from typing import Any, TypeVar, dataclass_transform
from uuid import UUID, SafeUUID

T = TypeVar("T")
_set_int, _set_safe = vars(UUID)["int"].__set__, vars(UUID)["is_safe"].__set__


def uuid_of(number: int) -> UUID:
    """`UUID(int=number)` past its own `__setattr__`, which refuses: 0.2 instead of 0.9 µs."""
    made = object.__new__(UUID)
    _set_int(made, number)
    _set_safe(made, SafeUUID.unknown)
    return made


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """`@dataclass(frozen=True, slots=True)`."""
    made = dataclass(frozen=True, slots=True)(cls)
    made.__init__ = init_of(made)  # type: ignore[method-assign]
    return made


def init_of(cls: type[Any]) -> Callable[..., None]:
    """An `__init__` for a frozen data class with the signature of its own, and the call of its `__post_init__`."""
    names: dict[str, Any] = {"_missing": MISSING}
    arguments, keywords, lines = ["self"], list[str](), list[str]()
    for one in fields(cls):
        assert one.init, f"{cls.__name__}.{one.name}: a field that is not given can't be set here"
        argument = one.name
        if one.default is not MISSING:
            names[f"_default_{one.name}"] = one.default
            argument += f"=_default_{one.name}"
        elif one.default_factory is not MISSING:
            names[f"_make_{one.name}"] = one.default_factory
            argument += "=_missing"
            lines.append(f"if {one.name} is _missing: {one.name} = _make_{one.name}()")
        (keywords if one.kw_only else arguments).append(argument)
        slot = getattr(cls, one.name, None)
        if isinstance(slot, MemberDescriptorType):
            names[f"_set_{one.name}"] = slot.__set__
            lines.append(f"_set_{one.name}(self, {one.name})")
        else:
            lines.append(f"_values[{one.name!r}] = {one.name}")
    if any(line.startswith("_values[") for line in lines):
        lines.insert(0, "_values = self.__dict__")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    head = ", ".join([*arguments, *(["*", *keywords] if keywords else [])])
    exec("\n ".join([f"def __init__({head}):", *(lines or ["pass"])]), names)  # field names are identifiers
    made: Callable[..., None] = names["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return made
