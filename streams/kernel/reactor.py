"""Reactors: effects on the outside world, one after an event that asks for them.

A reactor is called at least once for each event, in the aggregate's order, again after a failure or a crash, and never for what
happened before it was first started: a replay charges nobody. So what it does outside goes under a reference that the event
carries, and what came of it is recorded by a command, which its aggregate takes once.

    @reacts
    async def charge(r: Recorded[AuthorisationRequested], commands: Commands) -> None: ...
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from aggregates.kernel import Commands, Event, Recorded

E = TypeVar("E", bound=Event)
Call = Callable[[Recorded[E], Commands], Awaitable[None]]


@dataclass(frozen=True)
class Reactor:
    """A function and the events that it is called for. Those of one module share a follower, and so keep an order."""

    call: Callable[[Recorded[Any], Commands], Awaitable[None]]
    kinds: tuple[type[Event], ...]
    module: str


def reacts(call: Call[E]) -> Reactor:
    """Makes a reactor; the annotation of its first parameter, `Recorded[A]` or `Recorded[A | B]`, says for which events.

    Raises `TypeError` when it does not.
    """
    hints = get_type_hints(call)
    hints.pop("return", None)
    first = next(iter(hints.values()), None)
    inner = get_args(first)[0] if get_origin(first) is Recorded else None
    kinds = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else (inner,)
    if not all(isinstance(kind, type) and issubclass(kind, Event) and hasattr(kind, "type") for kind in kinds):
        raise TypeError(
            f"{call.__qualname__}: its first parameter is Recorded[…] of the events that it reacts to, not {first}"
        )
    return Reactor(call, kinds, call.__module__)
