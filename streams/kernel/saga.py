"""A saga: a list of steps with one named pivot, and the pure rule that says what comes next.

Before the pivot each step states its `undo`, or NOTHING; from the pivot on steps are repeated until they succeed and never
undone. A step's outcome is ok, refused (it has and will have no effect) or unknown. Refused: the steps before it are undone, in
reverse order. Unknown: it is repeated until its deadline, then undone itself, too; from the pivot on it is repeated for ever.
A saga's state is its own aggregate's (`aggregates/kernel/process.py`), and `move` is decided on that alone, so whoever wakes it,
however often and in whatever order, it goes on from where it is. Whatever it does has a command id of saga, step and direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

from aggregates.kernel.errors import Reused
from aggregates.kernel.event import Aggregate, Event
from aggregates.kernel.process import Ending, Process, Progress, StepOverdue, StepRetried, StepState

A = TypeVar("A", bound=Aggregate)
S = TypeVar("S", bound=Process)
P = ParamSpec("P")
ATTEMPT_S = (0.2, 300.0)  # first and longest pause before an attempt of unknown outcome is repeated


@dataclass(frozen=True, slots=True)
class Tell:
    """A command for an aggregate that exists."""

    id: UUID
    method: Callable[..., None]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpenAs:
    """An aggregate to make, under an id that the saga derives from its own state. `unless_there`: whoever else made it, it will do."""

    id: UUID
    cls: Callable[..., Aggregate]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    unless_there: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to ask for: the answer is one of the saga's own events, which others' commands bring about."""

    id: UUID


def tell(id: UUID, method: Callable[Concatenate[A, P], None], *args: P.args, **kwargs: P.kwargs) -> Tell:
    """What a step does: `tell(s.wallet, Wallet.hold, s.id, s.total)`."""
    return Tell(id, method, args, kwargs)


def open_as(id: UUID, cls: Callable[P, Aggregate], *args: P.args, **kwargs: P.kwargs) -> OpenAs:
    """What a step does: `open_as(s.order, Order, s.customer, s.lines)`."""
    return OpenAs(id, cls, args, kwargs)


def ensure(id: UUID, cls: Callable[P, Aggregate], *args: P.args, **kwargs: P.kwargs) -> OpenAs:
    """What a step does: `open_as`, unless there is one already."""
    return OpenAs(id, cls, args, kwargs, unless_there=True)


Effect = Tell | OpenAs | Wait | Sequence[Tell] | None
"""Several `tell`s must be of one domain: they are one commit, all or nothing. None: nothing is to be done, and nothing is awaited."""


class _Nothing:
    """The undo of a step that has nothing to undo."""

    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Final = _Nothing()

Kinds = type[Event] | tuple[type[Event], ...]


@dataclass(frozen=True)
class Step(Generic[S]):
    """One step. `do` and `undo` get the saga's aggregate and answer with what to do.

    With `until` the step is done when such an event has happened, and refused when one of `unless` has. They tell whose
    they are by the field named as the saga's domain (`event.checkout`), or by `match`, which answers with the saga's id.
    An undo also bans the do: an aggregate that is told to undo what never was refuses it when it comes late.
    With `when` there are sagas that don't have the step: they pass it over as if it did not exist. It must answer the same
    each time, so it looks only at what the saga was started with, or has learnt by then.
    `learn` has the saga write down something of the answer before the step is done or refused: a command on itself, and None once
    it has, or when there is nothing.
    `unhurt`: refusals by which the saga is not turned back, since later steps make up for them: errors, or events of `unless`.
    """

    name: str
    within: timedelta
    do: Callable[[S], Effect]
    undo: Callable[[S], Effect] | _Nothing | None = None
    until: Kinds = ()
    unless: Kinds = ()
    match: Callable[[Any], UUID] | None = None
    when: Callable[[S], bool] | None = None
    learn: Callable[[S, Any], Tell | None] | None = None
    unhurt: tuple[type[Event] | type[Exception], ...] = ()

    @property
    def answers(self) -> tuple[type[Event], ...]:
        """The events that decide the step."""
        return (*_kinds(self.until), *_kinds(self.unless))

    def refusal(self, event: Event) -> str | None:
        """Why, if the answer `event` refuses the step, else None."""
        if not isinstance(event, _kinds(self.unless)):
            return None
        return str(getattr(event, "why", "") or getattr(event, "reason", "") or event.type)


@dataclass(frozen=True)
class Begin:
    step: str


@dataclass(frozen=True)
class Do:
    step: str


@dataclass(frozen=True)
class Undo:
    step: str


@dataclass(frozen=True)
class Finish:
    ending: Ending


Move = Begin | Do | Undo | Finish | None


class Saga(Generic[S]):
    """A saga of the state class `state`. Raises `TypeError` when it is not well-formed.

    It starts with `starts`, by default the event that opens its aggregate. An event of another aggregate starts it when
    `opens` says how: it answers with an `open_as(...)` of the state, or None for an event that starts nothing.
    """

    def __init__(
        self,
        state: type[S],
        *,
        pivot: str,
        steps: Sequence[Step[S]],
        starts: type[Event],
        opens: Callable[[Any], OpenAs | None] | None = None,
    ) -> None:
        self.state, self.name, self.pivot, self.starts, self.opens = state, state.domain, pivot, starts, opens
        self.steps = {step.name: step for step in steps}
        self.order = list(self.steps)
        self._check(steps)
        self.answers: dict[type[Event], list[Step[S]]] = {}
        for step in steps:
            for kind in step.answers:
                self.answers.setdefault(kind, []).append(step)

    def _check(self, steps: Sequence[Step[S]]) -> None:
        name = f"the saga {self.name}"
        if len(self.steps) != len(steps):
            raise TypeError(f"{name} has two steps of one name: {[step.name for step in steps]}")
        if self.pivot not in self.steps:
            raise TypeError(f"{name}: the pivot {self.pivot!r} is none of its steps {self.order}")
        if (self.starts.domain != self.name) != (self.opens is not None):
            raise TypeError(
                f"{name} starts with {self.starts.type}: `opens` is for an event of another domain, and only that"
            )
        for step in steps:
            before = self.before_pivot(step.name)
            if before and step.undo is None:
                raise TypeError(f"{name}: {step.name!r} comes before the pivot, so it states its undo, or NOTHING")
            if not before and step.undo is not None:
                raise TypeError(f"{name}: {step.name!r} is not before the pivot, so it has no undo: it is repeated")
            if step.unless and not step.until:
                raise TypeError(f"{name}: {step.name!r} has `unless` and no `until`")
            if not before and step.name != self.pivot and set(_kinds(step.unless)) - set(step.unhurt):
                raise TypeError(f"{name}: {step.name!r} comes after the pivot, so nothing can refuse it for good")
            if step.unhurt and (before or step.name == self.pivot):
                raise TypeError(
                    f"{name}: {step.name!r} is not after the pivot, so a refusal turns back: it can't be `unhurt`"
                )
            if step.learn and not step.until:
                raise TypeError(f"{name}: {step.name!r} has `learn` and no `until`")
            if step.within <= timedelta(0):
                raise TypeError(f"{name}: the deadline of {step.name!r} is not after its beginning")
            for kind in step.answers:
                if step.match is None and self.name not in {one.name for one in fields(kind)}:
                    raise TypeError(f"{name}: {kind.type} has no field {self.name!r}, so {step.name!r} needs a `match`")

    @property
    def wanted(self) -> dict[str, set[str]]:
        """The event types that wake it, by domain. Its own records do not: whoever made them goes on by itself."""
        kinds = self.state.kinds()
        found: dict[str, set[str]] = {}
        for kind in (self.starts, kinds[StepOverdue], kinds[StepRetried], *self.answers):
            found.setdefault(kind.domain, set()).add(kind.type)
        return found

    def before_pivot(self, step: str) -> bool:
        return self.order.index(step) < self.order.index(self.pivot)

    def move(self, state: S) -> Move:
        """What comes next; None when it has ended. Raises `LookupError` for a step that the code has no more."""
        progress = state.progress
        if progress.ended:
            return None
        if unknown := progress.steps.keys() - self.steps.keys():
            raise LookupError(f"the saga {self.name} has no step {', '.join(sorted(unknown))} any more")
        if not progress.steps:
            first = self._from(0, state)
            return Begin(first) if first else Finish(Ending.DONE)
        at = progress.step
        if not self.turned_back(progress):
            if progress.steps[at] not in (StepState.DONE, StepState.REFUSED):
                return Do(at)
            after = self.after(at, state)
            return Begin(after) if after else Finish(Ending.DONE)
        for step in reversed(progress.steps):
            if progress.steps[step] in (StepState.DONE, StepState.OVERDUE) and self.steps[step].undo is not NOTHING:
                return Undo(step)
        return Finish(Ending.UNDONE)

    def turned_back(self, progress: Progress) -> bool:
        """Whether a step was refused and that hurts, or one before the pivot is overdue: from now on it only undoes."""
        return any(
            state is StepState.UNDONE
            or (state is StepState.REFUSED and not self.steps[step].unhurt)
            or (state is StepState.OVERDUE and self.before_pivot(step))
            for step, state in progress.steps.items()
        )

    def refusable(self, step: Step[S], no: Exception) -> bool:
        """Whether the step may be refused by this error, or can only be repeated."""
        return step.undo is not None or step.name == self.pivot or isinstance(no, tuple(_errors(step)))

    def after(self, step: str, state: S) -> str | None:
        """The step that follows in this saga, None after its last."""
        return self._from(self.order.index(step) + 1, state)

    def _from(self, number: int, state: S) -> str | None:
        return next((one for one in self.order[number:] if self._has(self.steps[one], state)), None)

    @staticmethod
    def _has(step: Step[S], state: S) -> bool:
        return step.when is None or step.when(state)

    def whose(self, step: Step[S], event: Event) -> UUID:
        """The saga that an answer is for."""
        found = step.match(event) if step.match else getattr(event, self.name)
        assert isinstance(found, UUID), f"{event.type} names no saga of {self.name}: {found!r}"
        return found

    def command_id(self, id: UUID, step: str, direction: str) -> UUID:
        """The id of the one command of a saga, a step and a direction (`do`, `undo`)."""
        return uuid5(NAMESPACE_URL, f"titan:saga:{self.name}:{id}:{step}:{direction}")


def _errors(step: Step[Any]) -> Iterator[type[Exception]]:
    """Those that refuse a step unhurt. One that was banned before (`Reused`) has been refused already."""
    for kind in step.unhurt:
        if issubclass(kind, Exception):
            yield from (kind, Reused)


def _kinds(kinds: Kinds) -> tuple[type[Event], ...]:
    return kinds if isinstance(kinds, tuple) else (kinds,)


def retry_at(now: datetime, attempts: int) -> datetime:
    """When to repeat after so many failed attempts."""
    return now + timedelta(seconds=min(ATTEMPT_S[0] * 2.0 ** min(attempts, 30), ATTEMPT_S[1]))
