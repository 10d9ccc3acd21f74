"""Drives one saga from where it is until it waits or has ended. Everything it meets may happen twice, late, or to two drivers.

What is written down, and when, makes that harmless:
- a step is recorded as begun, with its deadline, before its command is given, so after any crash its effect is asked for again,
  under the same command id: it happens once;
- each record is made at the version that it was decided on, so of two drivers one is right and the other looks again;
- a refusal is believed only once the command's id is banned: an earlier attempt of unknown fate can then never be stored any
  more, and if it had been, the step is done after all. A step that is undone without being known is banned in the same way.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import datetime
from types import MethodType
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from prometheus_client import Counter

from aggregates.kernel.errors import Conflict, Invalid, NotFound, Refused, Reused
from aggregates.kernel.event import Event
from aggregates.kernel.process import Process, StepState
from streams.kernel.saga import Begin, Do, Effect, Finish, Move, Saga, Step, Undo, retry_at

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Process)
RACES_MAX = 50  # records lost to other drivers in one drive: more means that something is wrong

FINISHED = Counter("saga_finished_total", "Sagas that ended", ["saga", "ending"])
REFUSED = Counter("saga_refused_total", "Steps that were refused", ["saga", "step"])
FAILED = Counter("saga_failed_attempts_total", "Attempts of unknown outcome", ["saga", "step", "direction"])
STUCK = Counter(
    "saga_stuck_attempts_total", "Failed attempts that can only be repeated: alarm", ["saga", "step", "direction"]
)


class Door(Protocol[S]):
    """What a driver needs of the world. Each call may raise, whether it had its effect or not."""

    async def load(self, id: UUID) -> S:
        """The saga's state, newest, and the driver's own. Raises `NotFound`."""

    async def record(self, state: S, method: Callable[..., None], *args: object) -> S:
        """Give the saga's aggregate a command at the version of `state`; the state after it. Raises `Conflict` when it is at
        another: `state` is of no use then."""

    async def ask(self, command: UUID, effect: Effect) -> None:
        """Carry out an effect under a command id, once. Raises `Refused`, `NotFound` or `Invalid` when it says no."""

    async def ban(self, command: UUID, effect: Effect) -> bool:
        """Make sure that the command can't be stored any more; False when it has been."""

    async def answer(
        self, effect: Effect, kinds: tuple[type[Event], ...], fits: Callable[[Event], bool]
    ) -> Event | None:
        """The first fitting event of these kinds in the history of what the effect went to."""


class Driver(Generic[S]):
    """Drives the sagas of one kind."""

    def __init__(self, saga: Saga[S], door: Door[S], clock: Callable[[], datetime]) -> None:
        self._saga, self._door, self._clock = saga, door, clock

    async def drive(self, id: UUID, answer: Event | None = None) -> None:
        """Go on until it waits or has ended. `answer`: an event that decides a step. Raises when nothing could be recorded."""
        for race in range(RACES_MAX):
            state: S | None = await self._door.load(id)
            try:
                while state is not None:
                    state = await self._go(state, self._saga.move(state), answer)
                return
            except Conflict:
                await asyncio.sleep(0.002 * race * random.random())
        raise Conflict(f"the saga {self._saga.name} {id} is driven by others all the time")

    async def _go(self, state: S, move: Move, answer: Event | None) -> S | None:
        """One move; the state after it, None when it can't go on now."""
        match move:
            case Begin(step):
                return await self._door.record(state, state.begin, step, self._due(step))
            case Do(step):
                return await self._do(state, self._saga.steps[step], answer)
            case Undo(step):
                return await self._undo(state, self._saga.steps[step])
            case Finish(ending):
                after = await self._door.record(state, state.finish, ending)
                FINISHED.labels(self._saga.name, ending).inc()
                return after
            case None:
                return None

    async def _do(self, state: S, step: Step[S], answer: Event | None) -> S | None:
        effect: Effect = None
        command = self._saga.command_id(state.id, step.name, "do")
        if not isinstance(answer, step.answers) or self._saga.whose(step, answer) != state.id:
            answer = None
            try:
                effect = step.do(state)
                await self._door.ask(command, effect)
            except (Refused, NotFound, Invalid, Reused) as no:
                if not self._saga.refusable(step, no):
                    await self._failed(state, step, "do", no, stuck=True)
                    return None
                if await self._door.ban(command, effect):
                    lost = isinstance(no, Reused)  # banned before, by someone who died over recording it
                    return await self._refused(state, step, "refused; the reason is lost" if lost else str(no))
            except Exception as error:
                stuck = step.undo is None
                await self._failed(state, step, "do", error, stuck)
                return None
            if step.answers and effect is not None:
                answer = await self._door.answer(effect, step.answers, lambda e: self._saga.whose(step, e) == state.id)
                if answer is None:
                    if state.progress.steps[step.name] is StepState.OVERDUE:
                        await self._failed(state, step, "do", TimeoutError("no answer yet"), stuck=True)
                    return None
        if answer is not None and step.learn is not None and (note := step.learn(state, answer)) is not None:
            return await self._door.record(state, MethodType(note.method, state), *note.args)  # and again, knowing it
        if answer is not None and (why := step.refusal(answer)) is not None:
            return await self._refused(state, step, why)
        after = self._saga.after(step.name, state)
        state = await self._door.record(state, state.done, step.name, after, self._due(after) if after else None)
        if after is None:
            FINISHED.labels(self._saga.name, "done").inc()
        return state

    async def _undo(self, state: S, step: Step[S]) -> S | None:
        banned = False
        try:
            if state.progress.steps[step.name] is StepState.OVERDUE:
                banned = await self._door.ban(self._saga.command_id(state.id, step.name, "do"), step.do(state))
            assert callable(step.undo)
            await self._door.ask(self._saga.command_id(state.id, step.name, "undo"), step.undo(state))
        except NotFound as no:
            if not banned:
                await self._failed(state, step, "undo", no, stuck=True)
                return None
            # Nothing was made, and now nothing will be.
        except Exception as error:
            await self._failed(state, step, "undo", error, stuck=True)
            return None
        return await self._door.record(state, state.undone, step.name)

    async def _refused(self, state: S, step: Step[S], why: str) -> S:
        state = await self._door.record(state, state.refuse, step.name, why)
        REFUSED.labels(self._saga.name, step.name).inc()
        return state

    async def _failed(self, state: S, step: Step[S], direction: str, error: Exception, stuck: bool) -> None:
        """The outcome is unknown: to be repeated, until its deadline or, when `stuck`, for ever."""
        why = f"{type(error).__name__}: {error}"
        (log.error if stuck else log.warning)(
            "saga %s %s: %s %r, attempt %d: %s",
            self._saga.name, state.id, direction, step.name, state.progress.attempts + 1, why,
            exc_info=None if isinstance(error, (Refused, NotFound, TimeoutError, Conflict)) else error,
        )  # fmt: skip
        await self._door.record(state, state.fail, step.name, why, retry_at(self._clock(), state.progress.attempts))
        (STUCK if stuck else FAILED).labels(self._saga.name, step.name, direction).inc()

    def _due(self, step: str) -> datetime:
        return self._clock() + self._saga.steps[step].within
