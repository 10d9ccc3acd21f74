"""Clauses: pure functions from an event to changes. The event is found from the annotation of the one argument.

Each event of a domain has a clause in `projections/<domain>.py` or stands in its `ignore(...)`: `projections()` refuses a
module that forgot one.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from aggregates.kernel.event import EVENTS, Event
from aggregates.kernel.wire import Recorded
from projections.kernel.tables import AnyTable, Change

Function = TypeVar("Function", bound=Callable[[Any], Iterable[Change]])


class Clause(NamedTuple):
    """`events` it takes, `Event` itself for all; `whole`: it wants the `Recorded`, not only the event."""

    call: Callable[[Any], Iterable[Change]]
    events: tuple[type[Event], ...]
    whole: bool


@lru_cache(maxsize=10_000)
def written_by(call: Callable[..., Any]) -> frozenset[AnyTable] | None:
    """The tables that a clause can change: those that it, and the functions of its module that it calls, have a name for.
    None if that can't be told."""
    found: set[AnyTable] = set()
    seen: set[object] = set()
    waiting: list[object] = [call]
    while waiting:
        one = waiting.pop()
        if isinstance(one, AnyTable):
            found.add(one)
        elif isinstance(one, types.FunctionType):
            if one in seen or one.__module__ != call.__module__:
                continue
            seen.add(one)
            if one.__closure__ or OPAQUE & _names(one.__code__):
                return None
            waiting += [one.__globals__.get(name) for name in _names(one.__code__)]
            waiting += [*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        elif isinstance(one, (dict, list, tuple, set, frozenset)):
            inner = [*one, *one.values()] if isinstance(one, dict) else list(one)
            if not all(isinstance(value, (type, *PLAIN)) for value in inner):
                return None
        elif callable(one) and not isinstance(one, (type, types.BuiltinFunctionType)) and not get_origin(one):
            return None
    return frozenset(found)


OPAQUE = {"globals", "vars", "getattr", "eval", "exec", "sys", "__dict__"}  # with one of these anything may be meant
PLAIN = (str, bytes, int, float, type(None))


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


class ForgottenEvent(LookupError):
    """An event of the domain has neither a clause nor a place in `ignore(...)`."""


class Projection:
    """The clauses and tables of one module: what is parked together when one of its clauses fails."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.name = module.rpartition(".")[2]
        self.clauses: list[Clause] = []
        self.ignored: set[type[Event]] = set()
        self._of: dict[str, tuple[Clause, ...]] = {}
        self.chosen: tuple[AnyTable, ...] | None = None
        self.whole: set[str] = set()
        """The types, of those that `of` was asked for, whose events a clause may look into by other ways than their fields."""

    @property
    def tables(self) -> list[AnyTable]:
        """Those defined in the module, in order, or those chosen by `only`."""
        if self.chosen is not None:
            return list(self.chosen)
        return [value for value in vars(sys.modules[self.module]).values() if isinstance(value, AnyTable)]

    def only(self, tables: Iterable[AnyTable]) -> Projection:
        """The same for some of its tables, without the clauses that change none of them: what those decode is saved."""
        other = copy.copy(self)
        other.chosen, other._of, other.whole = tuple(tables), {}, set()
        return other

    @property
    def everything(self) -> bool:
        """Whether a clause takes every event of every domain."""
        return any(Event in clause.events for clause in self.clauses)

    @property
    def domains(self) -> set[str]:
        """The domains of its events, those of `everything` left out."""
        taken = {event for clause in self.clauses for event in clause.events} | self.ignored
        return {event.domain for event in taken if event is not Event}

    def of(self, event_type: str) -> tuple[Clause, ...] | None:
        """The clauses of an event by its type, `wallet.Held`; none for an ignored one. None: the type is not known here."""
        found = self._of.get(event_type)
        if found is None:
            event = EVENTS.get(event_type)
            if event is None:
                return None
            found = self._of[event_type] = tuple(
                c for c in self.clauses if issubclass(event, c.events) and self._matters(c)
            )
            if any(written_by(clause.call) is None for clause in found):
                self.whole.add(event_type)
        return found

    def _matters(self, clause: Clause) -> bool:
        written = None if self.chosen is None else written_by(clause.call)
        return written is None or not written.isdisjoint(self.chosen or ())

    def check(self) -> None:
        """Raise ForgottenEvent unless each event of its domains is taken or ignored."""
        if self.everything:
            return
        known = {event for clause in self.clauses for event in clause.events} | self.ignored
        for domain in self.domains:
            for event in EVENTS.values():
                if event.domain == domain and not issubclass(event, tuple(known)):
                    raise ForgottenEvent(
                        f"{self.module} says nothing of {event.type}: give it a clause, or add it to ignore(...)"
                    )


PROJECTIONS: dict[str, Projection] = {}
"""By module. Filled by `project` and `ignore` as modules are imported."""


def projection(module: str) -> Projection:
    """The projection of a module, made when it is first asked for."""
    if module not in PROJECTIONS:
        PROJECTIONS[module] = Projection(module)
    return PROJECTIONS[module]


def project(function: Function) -> Function:
    """Make `function` a clause of its module. Its one argument is annotated with an event class, `A | B`, `Event` (every
    event of every domain), or `Recorded[…]` of one of these to get ids, correlation and actor as well."""
    hints = get_type_hints(function)
    names = list(inspect.signature(function).parameters)
    if len(names) != 1 or names[0] not in hints:
        raise TypeError(f"{function.__qualname__} takes one annotated argument: its event")
    options = _options(hints[names[0]])
    whole = [get_origin(option) is Recorded or option is Recorded for option in options]
    if any(whole):
        options = [
            inner for option in options for inner in (_options(get_args(option)[0]) if get_args(option) else [Event])
        ]
    if any(whole) != all(whole) or not all(
        isinstance(option, type) and issubclass(option, Event) for option in options
    ):
        raise TypeError(f"{function.__qualname__}: {hints[names[0]]} is not an event, nor events")
    module = projection(function.__module__)
    module.clauses.append(Clause(function, tuple(options), any(whole)))
    module._of.clear()
    return function


def ignore(*events: type[Event]) -> None:
    """Say that the calling module's tables need nothing of these events."""
    module = projection(sys._getframe(1).f_globals["__name__"])
    module.ignored |= set(events)


def changes(event: Event | Recorded[Any], of: Iterable[Projection] | None = None) -> list[Change]:
    """Every change that the imported projections (or these) make of one event. Pure: the same event, the same changes."""
    whole = event if isinstance(event, Recorded) else None
    inner: Event = event.event if isinstance(event, Recorded) else event
    made: list[Change] = []
    for one in PROJECTIONS.values() if of is None else of:
        for clause in one.of(inner.type) or ():
            if clause.whole and whole is None:
                raise TypeError(f"{clause.call.__qualname__} needs the Recorded event, with its ids")
            made += clause.call(whole if clause.whole else inner)
    return made


@lru_cache(maxsize=1)
def projections() -> tuple[Projection, ...]:
    """Every projection in projections/, imported and checked. Raises ForgottenEvent, ValueError for a name used twice."""
    import projections as package

    found = []
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "kernel"):
        name = f"{package.__name__}.{module}"
        importlib.import_module(name)
        if name in PROJECTIONS:
            PROJECTIONS[name].check()
            found.append(PROJECTIONS[name])
    named = Counter((table.sink, table.name) for one in found for table in one.tables)
    if twice := [name for (_, name), count in named.items() if count > 1]:
        raise ValueError(f"two projections have a table named {', '.join(twice)}: they would share its position")
    return tuple(found)


def _options(annotation: Any) -> list[Any]:
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
