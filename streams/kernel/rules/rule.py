"""The words of a rule: `@rule` makes one of a pure function of an event and its window, which answers with a `Hit` or None."""

from __future__ import annotations

import re
import types
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints, overload
from uuid import UUID

from aggregates.kernel import Event
from aggregates.kernel.event import EPOCH
from streams.kernel.rules.secret import Secret

E_co = TypeVar("E_co", bound=Event, covariant=True)
E = TypeVar("E", bound=Event)

SCORE_MAX = 100
WHY_CHARS_MAX = 500
KEY_CHARS_MAX = 200
WINDOW_S_MAX = 10 * 366 * 86_400
EVENTS_MAX = 1_000  # of a window, unless the rule says otherwise: bounds the work for a key that somebody floods
LATE_S = 7 * 86_400.0  # so late an event may be: longer than any server of ours was ever away
NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


@dataclass(frozen=True, slots=True)
class Hit:
    """Why an event is suspicious.

    `subject`: the account, order or payment suspected; `score`: from 1 to 100, how sure; `why`: for the analyst, in words with the
    numbers, at most 500 characters and no personal data. Raises `ValueError` for anything else.
    """

    subject: UUID
    score: int
    why: str

    def __post_init__(self) -> None:
        if not isinstance(self.subject, UUID):
            raise ValueError(f"a hit's subject is a UUID, not {self.subject!r}")
        if not (isinstance(self.score, int) and 1 <= self.score <= SCORE_MAX):
            raise ValueError(f"a hit's score is a whole number from 1 to {SCORE_MAX}, not {self.score!r}")
        if not (isinstance(self.why, str) and 0 < len(self.why) <= WHY_CHARS_MAX):
            raise ValueError(f"a hit says why in 1 to {WHY_CHARS_MAX} characters")


class Window(Sequence[E_co]):
    """Events of one key, oldest first; as a rule gets it, the last one is the event judged. `now`: the time of that event."""

    __slots__ = ("_events", "now")

    def __init__(self, events: Sequence[E_co], now: datetime) -> None:
        self._events, self.now = events, now

    def sliding(self, seconds: float) -> Window[E_co]:
        """Those less than so many seconds before the event judged."""
        start = self.now - timedelta(seconds=seconds)
        return Window(self._events[bisect_right(self._events, start, key=_at) :], self.now)

    def tumbling(self, seconds: float) -> Window[E_co]:
        """Those of the running period, as the clock has them: with 3600 since the full hour, UTC."""
        start = self.now - (self.now - EPOCH) % timedelta(seconds=seconds)
        return Window(self._events[bisect_left(self._events, start, key=_at) :], self.now)

    def of(self, *kinds: type[E]) -> Window[E]:
        """Those of these classes."""
        return Window([one for one in self._events if isinstance(one, kinds)], self.now)

    def where(self, holds: Callable[[E_co], object]) -> Window[E_co]:
        """Those for which it holds; `len()` counts them."""
        return Window([one for one in self._events if holds(one)], self.now)

    def sum(self, value: Callable[[E_co], int]) -> int:
        """The sum of a value over all of them."""
        return sum(map(value, self._events))

    def distinct(self, value: Callable[[E_co], Hashable]) -> set[Hashable]:
        """The different values."""
        return set(map(value, self._events))

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[E_co]:
        return iter(self._events)

    @overload
    def __getitem__(self, index: int) -> E_co: ...
    @overload
    def __getitem__(self, index: slice) -> Window[E_co]: ...
    def __getitem__(self, index: int | slice) -> E_co | Window[E_co]:
        found = self._events[index]
        return Window(found, self.now) if isinstance(found, Sequence) else found


def _at(event: Event) -> datetime:
    return event.at


Judge = Callable[[E, Window[E]], Hit | None]


@dataclass(frozen=True)
class Rule(Generic[E]):
    """A rule as the platform runs it. Another `version` is another rule: it keeps its own state and raises its own hits."""

    name: str
    version: int
    window: timedelta
    kinds: tuple[type[Event], ...]
    key_of: Callable[[E], UUID | str | Secret | None]
    judge: Judge[E]
    events_max: int
    late: timedelta

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def domains(self) -> list[str]:
        """Whose topics it reads."""
        return sorted({kind.domain for kind in self.kinds})

    def key(self, event: E) -> str | Secret | None:
        """Which events are seen together with this one; None for an event that the rule has no use for."""
        key = self.key_of(event)
        if key is None or isinstance(key, Secret):
            return key
        if not (isinstance(key, UUID) or (isinstance(key, str) and 0 < len(key) <= KEY_CHARS_MAX and "\0" not in key)):
            raise ValueError(f"a key is a UUID or a text of 1 to {KEY_CHARS_MAX} characters, not {key!r}")
        return str(key)

    def over(self, events: Iterable[Event]) -> list[Hit]:
        """The hits of some events, given in the order of their log: what a rule's test asks. Sealed texts stay as they are."""
        from streams.kernel.rules.timeline import Entry, Timeline

        lines: dict[str, Timeline] = {}
        for number, event in enumerate(events):
            key = self.key(cast(E, event)) if isinstance(event, self.kinds) else None
            if key:
                name = key.text if isinstance(key, Secret) else key
                entry = Entry(event.at, event.domain, number, UUID(int=number), event, True)
                lines.setdefault(name, Timeline(self)).add(entry)
        found = [(one, line.judge(i)) for line in lines.values() for i, one in enumerate(line.entries)]
        return [hit for _, hit in sorted(found, key=lambda pair: pair[0][:3]) if hit is not None]

    def __call__(self, event: E, window: Window[E]) -> Hit | None:
        return self.judge(event, window)


def rule(
    *,
    version: int,
    window_s: float,
    key: Callable[[Any], UUID | str | Secret | None],
    events_max: int = EVENTS_MAX,
    late_s: float = LATE_S,
) -> Callable[[Judge[E]], Rule[E]]:
    """Makes a rule of a function `(event, window) -> Hit | None`; the annotation of its first parameter says of which events.

    `window_s`: how far back it looks, in seconds of the events' own times. `key`: whose events are seen together; None leaves an
    event out, a `Secret` is made of personal data. `events_max`: how many events of a window at the most, the last ones. `late_s`: how late an event may be. The
    function is pure: no clock, no random number, nothing but its arguments. Raises `TypeError` for what is no rule.
    """

    def made(judge: Judge[E]) -> Rule[E]:
        name = judge.__name__
        hints = get_type_hints(judge)
        hints.pop("return", None)
        first = next(iter(hints.values()), None)
        kinds = get_args(first) if get_origin(first) in (Union, types.UnionType) else (first,)
        if not all(isinstance(kind, type) and issubclass(kind, Event) and hasattr(kind, "type") for kind in kinds):
            raise TypeError(f"rule {name}: its first parameter is an event or several, `A | B`, not {first}")
        if not NAME.fullmatch(name):
            raise TypeError(f"a rule's name is of a-z, 0-9 and _, at most 60 characters, not {name}")
        if version < 1 or not 0 < window_s <= WINDOW_S_MAX or events_max < 1 or late_s < 0:
            raise TypeError(
                f"rule {name}: version and events_max from 1, 0 < window_s <= {WINDOW_S_MAX}, late_s from 0"
            )
        window, late = timedelta(seconds=window_s), timedelta(seconds=late_s)
        return Rule(name, version, window, cast("tuple[type[Event], ...]", kinds), key, judge, events_max, late)

    return made
