"""The state of a saga, event-sourced: which steps were begun, done, refused, overdue, undone, and how it ended.

What its steps are and what follows upon what is the saga's own affair (`streams/`); here stands what happened. A saga's
domain takes over these events by name, so that they have records in its `.avsc`, and keeps a `Progress`:

    class Started(Created): cart: UUID
    class StepBegun(process.StepBegun): ...          # and so on, for each event below
    class Checkout(Process):
        @event(Started)
        def __init__(self, cart: UUID) -> None:
            self.cart, self.progress = cart, Progress()

Each command is given with the version that it was decided on (`Origin.expected`), so two runners of one saga never both
write; the two that timers give look for themselves whether they still matter.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

from aggregates.kernel.event import Aggregate, Cancel, Event, Timer

DEADLINE, RETRY = "deadline", "retry"  # its two timers


class StepState(StrEnum):
    """`refused`: it has no effect. `overdue`: its deadline passed, whether it has one is unknown."""

    BEGUN = "begun"
    DONE = "done"
    REFUSED = "refused"
    OVERDUE = "overdue"
    UNDONE = "undone"


class Ending(StrEnum):
    """`done`: all steps. `undone`: what had been done before a refusal or a time-out was undone."""

    DONE = "done"
    UNDONE = "undone"


@dataclass
class Progress:
    """`steps` in the order in which they were begun. `why` it turned back; `attempts` at what it is at now, that failed."""

    steps: dict[str, StepState] = field(default_factory=dict)
    why: str = ""
    ended: Ending | None = None
    attempts: int = 0
    trouble: str = ""
    retry_at: datetime | None = None

    @property
    def step(self) -> str:
        """The step that was begun last; "" before the first."""
        return next(reversed(self.steps), "")

    def mark(self, step: str, state: StepState) -> None:
        """Record a step's new state; what it is at now has not failed yet."""
        self.steps[step] = state
        self.attempts, self.trouble, self.retry_at = 0, "", None


class StepBegun(Event):
    """From now on the step may have an effect. `due`: its deadline."""

    step: str
    due: datetime

    def apply(self, process: Process) -> None:
        process.progress.mark(self.step, StepState.BEGUN)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer(DEADLINE, self.due, PROCESSES[self.domain].overdue, (self.step,)), Cancel(RETRY)]


class StepDone(Event):
    step: str

    def apply(self, process: Process) -> None:
        process.progress.mark(self.step, StepState.DONE)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(DEADLINE), Cancel(RETRY)]


class StepRefused(Event):
    """The step has and will have no effect."""

    step: str
    why: str

    def apply(self, process: Process) -> None:
        process.progress.mark(self.step, StepState.REFUSED)
        process.progress.why = self.why

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(DEADLINE), Cancel(RETRY)]


class StepOverdue(Event):
    """The deadline passed: whether the step has an effect is unknown."""

    step: str

    def apply(self, process: Process) -> None:
        process.progress.mark(self.step, StepState.OVERDUE)
        process.progress.why = process.progress.why or f"{self.step}: no answer in time"

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(DEADLINE), Cancel(RETRY)]


class StepUndone(Event):
    step: str

    def apply(self, process: Process) -> None:
        process.progress.mark(self.step, StepState.UNDONE)

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(RETRY)]


class StepFailed(Event):
    """An attempt at doing or undoing the step had an unknown outcome. It is repeated at `retry_at`."""

    step: str
    why: str
    retry_at: datetime

    def apply(self, process: Process) -> None:
        process.progress.attempts += 1
        process.progress.trouble, process.progress.retry_at = self.why, self.retry_at

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Timer(RETRY, self.retry_at, PROCESSES[self.domain].retry, (self.step,))]


class StepRetried(Event):
    """The time to repeat the attempt has come."""

    step: str

    def apply(self, process: Process) -> None:
        process.progress.retry_at = None


class Finished(Event):
    ending: Ending
    why: str

    def apply(self, process: Process) -> None:
        process.progress.ended = self.ending

    def timers(self) -> Iterable[Timer | Cancel]:
        return [Cancel(DEADLINE), Cancel(RETRY)]


EVENTS = (StepBegun, StepDone, StepRefused, StepOverdue, StepUndone, StepFailed, StepRetried, Finished)
WHY_CHARS_MAX = 500

PROCESSES: dict[str, type[Process]] = {}
"""The saga state class of each domain that has one."""


class Process(Aggregate):
    """The aggregate of a saga. A subclass's `__init__` sets `self.progress = Progress()` beside what its steps need to know."""

    progress: Progress
    _kinds: ClassVar[dict[type[Event], type[Event]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.domain:
            return
        own = vars(sys.modules[cls.__module__])
        missing = [kind.__name__ for kind in EVENTS if not _is_subclass(own.get(kind.__name__), kind)]
        if missing:
            lines = ", ".join(f"class {name}(process.{name}): ..." for name in missing)
            raise TypeError(f"{cls.__module__} lacks events of its saga; above {cls.__name__} write: {lines}")
        cls._kinds = {kind: own[kind.__name__] for kind in EVENTS}
        PROCESSES[cls.domain] = cls
        for name in COMMANDS:
            setattr(cls, name, _own(cls, getattr(cls, name)))

    @classmethod
    def kinds(cls) -> Mapping[type[Event], type[Event]]:
        """The domain's own class of each event above."""
        return cls._kinds

    def begin(self, step: str, due: datetime) -> None:
        """Record, before anything of the step is done, that it may have an effect from now on."""
        self._record(StepBegun, step=step, due=due)

    def done(self, step: str, then: str | None = None, due: datetime | None = None) -> None:
        """Record that the step has its effect, and in the same commit that the next one begins, or that all are done."""
        self._record(StepDone, step=step)
        if then is not None:
            assert due is not None
            self.begin(then, due)
        else:
            self.finish(Ending.DONE)

    def refuse(self, step: str, why: str) -> None:
        """Record that the step has no effect and never will."""
        self._record(StepRefused, step=step, why=why[:WHY_CHARS_MAX])

    def undone(self, step: str) -> None:
        self._record(StepUndone, step=step)

    def fail(self, step: str, why: str, retry_at: datetime) -> None:
        """Record an attempt with an unknown outcome, and when to repeat it."""
        self._record(StepFailed, step=step, why=why[:WHY_CHARS_MAX], retry_at=retry_at)

    def finish(self, ending: Ending) -> None:
        self._record(Finished, ending=ending, why=self.progress.why if ending is Ending.UNDONE else "")

    def overdue(self, step: str) -> None:
        """The deadline's timer: nothing when the step has ended meanwhile."""
        if self.progress.ended is None and self.progress.steps.get(step) is StepState.BEGUN:
            self._record(StepOverdue, step=step)

    def retry(self, step: str) -> None:
        """The retry's timer: nothing when it went on meanwhile."""
        if self.progress.ended is None and self.progress.retry_at is not None:
            self._record(StepRetried, step=step)

    def _record(self, kind: type[Event], **fields: object) -> None:
        assert self.progress.ended is None, f"it has ended: {self.progress.ended}"
        self.trigger_event(self._kinds[kind], **fields)

    def check(self) -> None:
        open_steps = [step for step, state in self.progress.steps.items() if state is StepState.BEGUN]
        assert open_steps in ([], [self.progress.step]), f"only the last step may be open: {self.progress.steps}"


COMMANDS = ("begin", "done", "refuse", "undone", "fail", "finish", "overdue", "retry")


def _is_subclass(found: object, kind: type[Event]) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


def _own(cls: type[Process], method: Callable[..., None]) -> Callable[..., None]:
    """The method under the subclass's name: commands and timers are found by `Checkout.overdue`."""
    assert isinstance(method, types.FunctionType)
    copy = types.FunctionType(
        method.__code__, method.__globals__, method.__name__, method.__defaults__, method.__closure__
    )
    copy.__kwdefaults__, copy.__annotations__, copy.__doc__ = (
        method.__kwdefaults__,
        method.__annotations__,
        method.__doc__,
    )
    copy.__qualname__, copy.__module__ = f"{cls.__name__}.{method.__name__}", cls.__module__
    return copy
