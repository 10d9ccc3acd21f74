"""Sagas on the event store: the door that a driver goes through, and who wakes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid5

from aggregates.kernel import Aggregate, Conflict, Event, NotFound, Origin, Recorded, Store
from aggregates.kernel.commands import owner_of
from aggregates.kernel.process import Process, StepOverdue, StepRetried
from aggregates.kernel.recorder import Append, CommandRow
from infra.logs import correlation
from streams.kernel.driver import Driver
from streams.kernel.saga import Effect, OpenAs, Saga, Step, Tell, Wait

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Process)
BANNED = b"banned"  # the fingerprint of a command id under which nothing may be stored any more
NOBODY = UUID(int=0)


class StoreDoor(Generic[S]):
    """The world of one drive: commands under the saga's own correlation, which it knows once it has loaded it."""

    def __init__(self, store: Store, cls: type[S], correlation: str, causation: UUID | None) -> None:
        self._store, self._cls = store, cls
        self._origin = Origin(f"saga:{cls.domain}", correlation, causation)

    async def load(self, id: UUID) -> S:
        history = await self._store.history(self._cls, id)
        state = None
        for one in history:
            state = one.event.mutate(state)
        if not isinstance(state, self._cls):
            raise NotFound(f"there is no {self._cls.domain} {id}")
        self._origin = replace(self._origin, correlation=history[0].correlation)
        correlation.set(self._origin.correlation)  # a timer that wakes it has another one
        return state

    async def record(self, state: S, method: Callable[..., None], *args: object) -> S:
        method(*args)
        await self._store.commands(self._origin).save(state)
        return state

    async def ask(self, command: UUID, effect: Effect) -> None:
        commands = self._store.commands(self._origin).under(command=command)
        match effect:
            case Tell(id, method, args, kwargs):
                await commands.tell(id, method, *args, **kwargs)
            case OpenAs(id, cls, args, kwargs):
                try:
                    await commands.open_as(id, cls, *args, **kwargs)
                except Conflict:
                    if not (effect.unless_there or await self._mine(effect)):
                        raise
            case Wait() | None:
                pass
            case _:
                assert not any(one.kwargs for one in effect), "several commands in one commit take positional arguments"
                await commands.tell_all([(one.id, one.method, one.args) for one in effect])

    async def _mine(self, effect: OpenAs) -> bool:
        """Whether this saga made what is there: an event store that was rebuilt from its topic knows no commands of sagas."""
        [(cls, id)] = _targets(effect)
        first = await self._store.history(cls, id, limit=1)
        return bool(first) and (first[0].actor, first[0].correlation) == (self._origin.actor, self._origin.correlation)

    async def ban(self, command: UUID, effect: Effect) -> bool:
        targets = _targets(effect)
        if not targets:
            return True
        domain = targets[0][0].domain
        row = CommandRow(command, BANNED, NOBODY, 0, 0)
        pending = self._store.database(domain).committer.submit(Append(domain, [], [], command=row), [])
        if (await pending.told).problem is None:
            return True
        stored = await self._store.answer(domain, command)
        return stored is not None and stored.fingerprint == BANNED

    async def answer(
        self, effect: Effect, kinds: tuple[type[Event], ...], fits: Callable[[Event], bool]
    ) -> Event | None:
        for cls, id in [(self._cls, effect.id)] if isinstance(effect, Wait) else _targets(effect):
            if any(kind.domain == cls.domain for kind in kinds):
                for one in await self._store.history(cls, id):
                    if isinstance(one.event, kinds) and fits(one.event):
                        return one.event
        return None


def _targets(effect: Effect) -> list[tuple[type[Aggregate], UUID]]:
    """What an effect goes to."""
    match effect:
        case Wait() | None:
            return []
        case Tell(id, method):
            return [(owner_of(method), id)]
        case OpenAs(id, cls):
            owner = cls if isinstance(cls, type) else getattr(cls, "__self__", None)
            assert isinstance(owner, type) and issubclass(owner, Aggregate), f"{cls} makes no aggregate"
            return [(owner, id)]
        case _:
            return [target for one in effect for target in _targets(one)]


class SagaRunner(Generic[S]):
    """Wakes the sagas of one kind: by what starts them, what they wait for, and their own timers."""

    def __init__(self, saga: Saga[S], store: Store, clock: Callable[[], datetime]) -> None:
        self.saga, self._store, self._clock = saga, store, clock
        self._locks: dict[UUID, list[Any]] = {}  # saga → [lock, users]

    async def handle(self, recorded: Recorded[Event]) -> None:
        """Drive whatever the event concerns until it waits or has ended. Raises when that could not be recorded."""
        event, saga = recorded.event, self.saga
        if isinstance(event, saga.starts):
            if saga.opens is None:
                await self.drive(event.id, cause=recorded)
            elif (opening := saga.opens(event)) is not None:
                await self.drive(await self._open(opening, recorded), cause=recorded)
        if event.domain == saga.name and isinstance(event, (StepOverdue, StepRetried)):
            await self.drive(event.id, cause=recorded)
        for step in saga.answers.get(type(event), ()):
            await self._answered(step, recorded)

    async def _open(self, opening: OpenAs, recorded: Recorded[Event]) -> UUID:
        """Make the state, once for this event, whatever id is asked for the second time; one that is there goes on."""
        command = uuid5(recorded.event_id, f"titan:saga:{self.saga.name}")
        origin = Origin(f"saga:{self.saga.name}", recorded.correlation, recorded.event_id, command)
        try:
            made = await self._store.commands(origin).open_as(opening.id, opening.cls, *opening.args, **opening.kwargs)
        except Conflict:
            return opening.id
        return made.id

    async def _answered(self, step: Step[S], recorded: Recorded[Event]) -> None:
        try:
            await self.drive(self.saga.whose(step, recorded.event), answer=recorded.event, cause=recorded)
        except NotFound:
            log.debug("%s waits for nothing of %s", self.saga.name, recorded.event.type)

    async def drive(self, id: UUID, answer: Event | None = None, cause: Recorded[Event] | None = None) -> None:
        """Drive one saga. Raises `NotFound`, `Unavailable`, and `LookupError` for a step that the code has no more."""
        async with self._alone(id):
            door = StoreDoor(self._store, self.saga.state, "", cause.event_id if cause else None)
            await Driver(self.saga, door, self._clock).drive(id, answer)

    @asynccontextmanager
    async def _alone(self, id: UUID) -> AsyncIterator[None]:
        """One driver a saga in this process; one in another process meets it at the versions."""
        held = self._locks.setdefault(id, [asyncio.Lock(), 0])
        held[1] += 1
        try:
            async with held[0]:
                yield
        finally:
            held[1] -= 1
            if not held[1]:
                del self._locks[id]
