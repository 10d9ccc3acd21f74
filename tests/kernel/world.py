"""A world that goes wrong, for the saga's driver: aggregates in memory, faults and interleavings from one seed.

Every call of a driver waits until the scheduler lets it go on, so any two drivers meet in any order. A call may fail before
its effect, after it, or be delayed and have its effect much later; the process may die at any call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from copy import copy, deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

from aggregates.kernel import Aggregate, Cancel, Conflict, Event, NotFound, Reused, Timer, Unavailable
from aggregates.kernel.event import under_id
from aggregates.kernel.process import Progress
from streams.kernel.driver import Driver
from streams.kernel.saga import Effect, OpenAs, Saga, Tell, Wait
from tests.kernel.desk import Denied, Desk, Granted
from tests.kernel.journey import booking, journey
from tests.kernel.trip import Planned, StepOverdue, StepRetried, Trip

SEATS, LEAVE, TILL, TRIP = (UUID(int=n) for n in range(1, 5))


class Killed(BaseException):
    """The process of a driver died."""


class World:
    """One trip among participants with little room."""

    def __init__(self, seed: int, calm: bool = False, saga: Saga[Trip] = journey) -> None:
        self.saga = saga
        self.choose = random.Random(seed)
        self.calm = calm
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.events: dict[UUID, list[Event]] = {}
        self.folded: dict[UUID, tuple[int, Any]] = {}  # of an aggregate so many events, and the state after them
        self.commands: dict[UUID, str] = {}  # id → done | banned
        self.timers: dict[tuple[UUID, str], Timer] = {}
        self.delayed: list[tuple[UUID, Effect]] = []  # on their way still
        self.waiting: list[asyncio.Future[None]] = []
        self.wakes: list[Event | None] = []  # what could wake a driver: delivered in any order, more than once
        self.running: set[asyncio.Task[None]] = set()
        self.errors: list[BaseException] = []
        room: Callable[[], int] = (lambda: self.choose.choice([0, 1, 1, 1])) if not calm else (lambda: 1)
        for id in (SEATS, LEAVE, TILL):
            self._open(id, Desk, room())
        self._open(TRIP, Trip, SEATS, LEAVE, TILL)

    # What a driver calls.

    async def load(self, id: UUID) -> Trip:
        await self._turn()
        return cast(Trip, self._load(Trip, id))

    async def record(self, state: Trip, method: Callable[..., None], *args: object) -> Trip:
        await self._turn()
        self._fault_before()
        current: Trip = self._load(Trip, state.id)
        if current.version != state.version:
            raise Conflict("another driver was faster")
        getattr(current, method.__name__)(*args)
        self._commit(current)
        self._fault_after()
        return current

    async def ask(self, command: UUID, effect: Effect) -> None:
        await self._turn()
        if effect is not None and not self.calm and self.choose.random() < 0.08:
            self.delayed.append((command, effect))
            raise Unavailable("no answer; it may happen yet")
        self._fault_before()
        self._carry_out(command, effect)
        self._fault_after()

    async def ban(self, command: UUID, effect: Effect) -> bool:
        await self._turn()
        self._fault_before()
        banned = self.commands.setdefault(command, "banned") == "banned"
        self._fault_after()
        return banned

    async def answer(
        self, effect: Effect, kinds: tuple[type[Event], ...], fits: Callable[[Event], bool]
    ) -> Event | None:
        await self._turn()
        self._fault_before()
        assert isinstance(effect, Tell)
        return next((e for e in self.events[effect.id] if isinstance(e, kinds) and fits(e)), None)

    # How it goes on.

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        """Let things happen at random, then calm down until nothing is left that could."""
        self.wakes.append(None)
        for _ in range(self.choose.randint(50, 400)):
            self._something()
            await asyncio.sleep(0)
        self.calm = True
        for _ in range(5_000):
            if not (self.running or self.delayed or self.wakes or self.timers or self._unanswered()):
                break
            self._something()
            await asyncio.sleep(0)
        else:
            raise AssertionError(f"it does not end: {self.trip.progress} {self.timers}")
        for error in self.errors:
            raise error

    def _something(self) -> None:
        options: list[Callable[[], None]] = []
        options += [self._go_on] * (4 if self.waiting else 0)
        options += [self._wake] * (2 if self.wakes and len(self.running) < 3 else 0)
        options += [self._deliver_late] if self.delayed else []
        options += [self._decide] if self._unanswered() else []
        options += [self._pass_time] if self.timers else []
        options += [self._jostle] if not self.calm else []
        if options:
            self.choose.choice(options)()

    def _go_on(self) -> None:
        future = self.waiting.pop(self.choose.randrange(len(self.waiting)))
        if not future.done():
            future.set_result(None)

    def _wake(self) -> None:
        number = self.choose.randrange(len(self.wakes))
        cause = self.wakes[number]

        async def drive() -> None:
            answer = cause if isinstance(cause, Granted | Denied) else None
            try:
                await Driver(self.saga, self, lambda: self.now).drive(TRIP, answer)
            except (Killed, Unavailable):
                return  # not acknowledged: it comes again
            if cause in self.wakes and (self.calm or self.choose.random() < 0.8):
                self.wakes.remove(cause)

        self._start(drive())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self.running.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self.running.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self.errors.append(error)

        task.add_done_callback(ended)

    def _deliver_late(self) -> None:
        command, effect = self.delayed.pop(self.choose.randrange(len(self.delayed)))
        try:
            self._carry_out(command, effect)
        except Exception:  # nobody hears of it
            return

    def _unanswered(self) -> bool:
        leave = self._look(Desk, LEAVE)
        return bool(leave.asked - leave.answered)

    def _decide(self) -> None:
        leave = self._load(Desk, LEAVE)
        leave.answer(TRIP, self.choose.choice(["", "", "not this year"]))
        self._commit(leave)

    def _jostle(self) -> None:
        """Others take the room, and leave it again: what was refused a moment ago would not be now."""
        desk = self._load(Desk, self.choose.choice([SEATS, TILL]))
        others = desk.held - {TRIP}
        if others:
            desk.give_back(others.pop())
        elif len(desk.held | desk.confirmed) < desk.room:
            desk.hold(uuid4())
        self._commit(desk)

    def _pass_time(self) -> None:
        self.now += timedelta(seconds=self.choose.choice([0.1, 1, 10, 100]))
        for (id, key), timer in list(self.timers.items()):
            if self.timers.get((id, key)) is timer and timer.due <= self.now and self.choose.random() < 0.9:
                trip = self._load(Trip, id)
                del self.timers[id, key]
                timer.call(trip, *timer.args)
                self._commit(trip)

    # What is stored.

    def _open(self, id: UUID, cls: Callable[..., Aggregate], *args: object, **kwargs: object) -> None:
        if id in self.events:
            raise Conflict("there is one already")
        with under_id(id):
            self._commit(cls(*args, **kwargs))

    def _carry_out(self, command: UUID, effect: Effect) -> None:
        match self.commands.get(command):
            case "done":
                return
            case "banned":
                raise Reused("banned")
        match effect:
            case Wait() | None:
                return
            case OpenAs(id, cls, args, kwargs):
                self._open(id, cls, *args, **kwargs)
            case Tell():
                self._tell([effect])
            case _:
                self._tell(list(effect))
        self.commands[command] = "done"

    def _tell(self, calls: list[Tell]) -> None:
        changed = {one.id: self._load(Desk, one.id) for one in calls}
        for one in calls:
            one.method(changed[one.id], *one.args)
        for aggregate in changed.values():
            self._commit(aggregate)

    def _load(self, cls: Any, id: UUID) -> Any:
        """A copy of its own for whoever may change it, and fail before that is stored."""
        made = copy(kept := self._look(cls, id))
        for name, of in vars(kept).items():
            if isinstance(of, set | list):
                setattr(made, name, of.copy())
            elif isinstance(of, Progress):
                setattr(made, name, deepcopy(of))
        return made

    def _look(self, cls: Any, id: UUID) -> Any:
        """The state after all that is stored, to be read only."""
        if id not in self.events:
            raise NotFound(f"there is no {id}")
        done, kept = self.folded.get(id, (0, None))
        for event in self.events[id][done:]:
            kept = event.mutate(kept)
        self.folded[id] = len(self.events[id]), kept
        return kept

    def _commit(self, aggregate: Aggregate) -> None:
        aggregate.check()
        for event in aggregate.collect_events():
            self.events.setdefault(aggregate.id, []).append(event)
            for timer in event.timers():
                if isinstance(timer, Cancel):
                    self.timers.pop((aggregate.id, timer.key), None)
                else:
                    self.timers[aggregate.id, timer.key] = timer
            if isinstance(event, Planned | Granted | Denied | StepOverdue | StepRetried):
                self.wakes.append(event)

    # What goes wrong.

    async def _turn(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        await future
        if not self.calm and self.choose.random() < 0.02:
            raise Killed

    def _fault_before(self) -> None:
        if not self.calm and self.choose.random() < 0.06:
            raise Unavailable("it did not happen")

    def _fault_after(self) -> None:
        if not self.calm and self.choose.random() < 0.06:
            raise (Unavailable("it happened, and the answer was lost") if self.choose.random() < 0.7 else Killed())

    # What came of it.

    @property
    def trip(self) -> Trip:
        return self._look(Trip, TRIP)  # type: ignore[no-any-return]

    def desk(self, id: UUID) -> Desk | None:
        return self._look(Desk, id) if id in self.events else None

    def happened(self, kind: type[Event], id: UUID) -> int:
        """How often it happened to this aggregate for the trip."""
        of = [event for event in self.events.get(id, ()) if isinstance(event, kind)]
        return sum(TRIP in (getattr(event, "cause", None), getattr(event, "trip", None)) for event in of)

    @property
    def booking(self) -> UUID:
        return booking(TRIP)
