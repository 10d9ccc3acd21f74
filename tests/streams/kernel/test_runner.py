"""Sagas on a real Postgres: what the event store keeps of them, refusals, deadlines, late and doubled commands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from aggregates.kernel import Conflict, Event, NotFound, Origin, Recorded, Reused, Store, Unavailable, recorder
from aggregates.kernel.migrate import migrate
from aggregates.kernel.process import Ending, StepState
from aggregates.kernel.recorder import Append, Connection, Outcome
from streams.kernel import OpenAs, Saga, Step, open_as, tell
from streams.kernel.runner import SagaRunner, StoreDoor
from streams.kernel.timers import Timers
from tests.kernel.desk import Denied, Desk, Granted, Held, Opened
from tests.kernel.journey import booking, journey
from tests.kernel.told import logged
from tests.kernel.trip import Finished, Planned, StepDone, StepFailed, StepOverdue, StepRetried, StepUndone, Trip

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
ME = Origin("user:test", correlation="trace-1")


class Agency:
    """A store, a runner of the toy saga, its timers, and a clock that the test moves."""

    def __init__(self, store: Store) -> None:
        self.store, self.now = store, NOON
        self.runner = SagaRunner(journey, store, lambda: self.now)
        self.timers = Timers(store, ["trip", "desk"], lambda: self.now)

    async def desk(self, room: int = 1) -> UUID:
        return (await self.store.commands(ME).open(Desk, room)).id

    async def plan(self, seats: int = 1, till: int = 1) -> UUID:
        desks = [await self.desk(seats), await self.desk(), await self.desk(till)]
        return (await self.store.commands(ME).open(Trip, *desks)).id

    async def trip(self, id: UUID) -> Trip:
        return await self.store.load(Trip, id)

    async def answer(self, trip: Trip, why_not: str = "") -> Recorded[Event]:
        await self.store.commands(ME).tell(trip.leave, Desk.answer, trip.id, why_not)
        return (await self.store.history(Desk, trip.leave))[-1]

    async def later(self, by: timedelta, id: UUID) -> None:
        """Move the clock; what timers record wakes the saga, as its topic would."""
        seen = (await self.trip(id)).version
        self.now += by
        await self.timers.fire_due()
        for one in await self.store.history(Trip, id, after=seen):
            if isinstance(one.event, StepOverdue | StepRetried):
                await self.runner.handle(one)

    async def judge(self, id: UUID, ending: Ending) -> None:
        trip = await self.trip(id)
        assert trip.progress.ended is ending
        seats, till = await self.store.load(Desk, trip.seats), await self.store.load(Desk, trip.till)
        if ending is Ending.DONE:
            booked = await self.store.load(Desk, booking(id))
            assert seats.confirmed == booked.confirmed == till.held == {id}
        else:
            assert not seats.held | seats.confirmed | till.held


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, ["trip", "desk"])
    return postgres


def run(dsn: str, work: Callable[[Agency], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Store.open(dsn) as store:
            await work(Agency(store))

    asyncio.run(main())


def test_it_waits_for_an_answer_and_then_goes_to_its_end(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan()
        await at.runner.drive(id)
        trip = await at.trip(id)
        assert trip.progress.step == "ask for leave"
        await at.runner.handle(await at.answer(trip))
        await at.judge(id, Ending.DONE)
        history = await at.store.history(Trip, id)
        assert [one.event.step for one in history if isinstance(one.event, StepDone)] == journey.order
        assert {one.correlation for one in history} == {"trace-1"}
        assert {one.actor for one in history[1:]} == {"saga:trip"}
        assert await at.timers.fire_due() == 0

    run(dsn, work)


def test_an_answer_that_came_before_it_was_waited_for_counts(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan()
        trip = await at.trip(id)
        await at.store.commands(ME).tell(trip.leave, Desk.ask, id)
        await at.answer(trip)
        await at.runner.drive(id)
        await at.judge(id, Ending.DONE)

    run(dsn, work)


def test_refused_it_undoes_the_steps_before_in_reverse_order(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan()
        await at.runner.drive(id)
        await at.runner.handle(await at.answer(await at.trip(id), "not this year"))
        await at.judge(id, Ending.UNDONE)
        history = [one.event for one in await at.store.history(Trip, id)]
        assert [e.step for e in history if isinstance(e, StepUndone)] == ["book", "hold a seat"]
        assert isinstance(history[-1], Finished) and history[-1].why == "not this year"
        assert id in (await at.store.load(Desk, booking(id))).closed

    run(dsn, work)


def test_refused_at_once_it_ends_with_nothing_to_undo(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan(seats=0)
        await at.runner.drive(id)
        await at.judge(id, Ending.UNDONE)
        assert (await at.trip(id)).progress.why == "no room is left"
        with pytest.raises(NotFound):
            await at.store.load(Desk, booking(id))

    run(dsn, work)


def test_the_pivot_refused_undoes_all(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan(till=0)
        await at.runner.drive(id)
        await at.runner.handle(await at.answer(await at.trip(id)))
        await at.judge(id, Ending.UNDONE)

    run(dsn, work)


def test_a_deadline_before_the_pivot_undoes_and_a_late_answer_changes_nothing(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan()
        await at.runner.drive(id)
        await at.later(timedelta(minutes=1), id)
        assert (await at.trip(id)).progress.ended is None
        await at.later(timedelta(minutes=2), id)
        await at.judge(id, Ending.UNDONE)
        assert (await at.trip(id)).progress.why == "ask for leave: no answer in time"
        await at.runner.handle(await at.answer(await at.trip(id)))
        await at.judge(id, Ending.UNDONE)

    run(dsn, work)


def test_after_the_pivot_it_is_repeated_past_its_deadline_until_it_succeeds(dsn: str) -> None:
    async def work(at: Agency) -> None:
        id = await at.plan()
        await at.runner.drive(id)
        trip = await at.trip(id)
        answer = await at.answer(trip)
        await at.store.commands(ME).tell(trip.seats, Desk.give_back, id)  # so that it can't be confirmed
        await at.runner.handle(answer)
        for _ in range(12):
            await at.later(timedelta(minutes=6), id)
        progress = (await at.trip(id)).progress
        assert progress.steps["confirm"] is StepState.OVERDUE
        assert progress.attempts > 10 and "it is not held" in progress.trouble
        assert progress.ended is None

    with logged() as lines:
        run(dsn, work)
    told = [line for line in lines() if line["event"].startswith("saga trip ")]
    assert len(told) > 10 and {line["correlation"] for line in told} == {ME.correlation}, "not those of its timers"


def test_many_at_once_driven_by_two_processes_are_each_done_once(dsn: str) -> None:
    async def work(at: Agency) -> None:
        async with Store.open(dsn) as second:
            other = SagaRunner(journey, second, lambda: NOON)
            ids = [await at.plan() for _ in range(20)]
            await asyncio.gather(*(one.drive(id) for one in (at.runner, other) for id in ids))
            answers = [await at.answer(await at.trip(id)) for id in ids]
            await asyncio.gather(*(one.handle(answer) for one in (other, at.runner) for answer in answers))
            for id in ids:
                await at.judge(id, Ending.DONE)
                kinds = [one.event for one in await at.store.history(Desk, (await at.trip(id)).seats)]
                assert sum(isinstance(one, Held) for one in kinds) == 1

    run(dsn, work)


def test_a_command_with_an_unknown_outcome_is_repeated_under_its_id(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store stops answering just after the seat was held; later the attempt is repeated, and finds itself."""
    real = StoreDoor.ask
    broken: list[UUID] = []

    async def loses_an_answer(self: StoreDoor[Trip], command: UUID, effect: object) -> None:
        await real(self, command, effect)  # type: ignore[arg-type]
        if not broken:
            broken.append(command)
            raise Unavailable("the answer is lost")

    monkeypatch.setattr(StoreDoor, "ask", loses_an_answer)

    async def work(at: Agency) -> None:
        id = await at.plan()
        await at.runner.drive(id)
        progress = (await at.trip(id)).progress
        assert progress.step == "hold a seat" and progress.attempts == 1 and progress.retry_at
        await at.later(timedelta(seconds=1), id)
        await at.runner.handle(await at.answer(await at.trip(id)))
        await at.judge(id, Ending.DONE)
        history = [one.event for one in await at.store.history(Trip, id)]
        assert sum(isinstance(one, StepFailed) for one in history) == 1

    run(dsn, work)


def test_a_banned_command_is_never_stored_and_a_stored_one_never_banned(dsn: str) -> None:
    async def work(at: Agency) -> None:
        door = StoreDoor(at.store, Trip, "trace-1", None)
        seats, made, first, second, third = await at.desk(), uuid4(), uuid4(), uuid4(), uuid4()
        hold = tell(seats, Desk.hold, uuid4())
        assert await door.ban(first, hold)
        assert await door.ban(first, hold)
        with pytest.raises(Reused):
            await door.ask(first, hold)
        assert not (await at.store.load(Desk, seats)).held
        await door.ask(second, hold)
        assert not await door.ban(second, hold)
        assert await door.ban(third, open_as(made, Desk, 1))
        with pytest.raises(Reused):
            await door.ask(third, open_as(made, Desk, 1))
        with pytest.raises(NotFound):
            await at.store.load(Desk, made)
        bans = [door.ban(uuid4(), hold) for _ in range(8)] + [door.ask(uuid4(), hold) for _ in range(8)]
        await asyncio.gather(*bans)

    run(dsn, work)


def test_what_a_saga_made_is_its_own_in_a_store_that_has_lost_its_commands(dsn: str) -> None:
    async def work(at: Agency) -> None:
        made = OpenAs(uuid4(), Desk, (1,), {})
        door = StoreDoor(at.store, Trip, "trace-1", None)
        await door.ask(uuid4(), made)
        async with at.store.database("desk").reading() as connection:
            await connection.execute("TRUNCATE desk_commands")
        await door.ask(uuid4(), made)
        with pytest.raises(Conflict):
            await StoreDoor(at.store, Trip, "trace-2", None).ask(uuid4(), made)

    run(dsn, work)


def test_a_store_that_is_away_leaves_the_saga_where_it_is(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, away = recorder.append, [False]

    async def may_be_away(connection: Connection, batch: Sequence[Append]) -> list[Outcome]:
        if away[0]:
            raise ZeroDivisionError("a row that the database refuses")
        return await real(connection, batch)

    monkeypatch.setattr(recorder, "append", may_be_away)

    async def work(at: Agency) -> None:
        id = await at.plan()
        away[0] = True
        with pytest.raises(ZeroDivisionError):
            await at.runner.drive(id)
        away[0] = False
        assert (await at.trip(id)).version == 1
        await at.runner.drive(id)
        await at.runner.handle(await at.answer(await at.trip(id)))
        await at.judge(id, Ending.DONE)

    run(dsn, work)


def test_an_event_of_another_aggregate_can_start_one(dsn: str) -> None:
    def opens(opened: Opened) -> OpenAs | None:
        return open_as(uuid4(), Trip, opened.id, opened.id, opened.id) if opened.room else None

    saga = Saga(
        Trip,
        starts=Opened,
        opens=opens,
        pivot="hold",
        steps=[Step("hold", within=timedelta(minutes=1), do=lambda t: tell(t.seats, Desk.hold, t.id))],
    )

    async def work(at: Agency) -> None:
        runner = SagaRunner(saga, at.store, lambda: at.now)
        empty, desk = await at.desk(0), await at.desk(3)
        for id in (empty, desk, desk):
            await runner.handle((await at.store.history(Desk, id))[0])
        assert len((await at.store.load(Desk, desk)).held) == 1
        assert saga.wanted["desk"] == {"desk.Opened"}

    run(dsn, work)


def test_what_wakes_it() -> None:
    assert journey.wanted == {
        "trip": {Planned.type, StepOverdue.type, StepRetried.type},
        "desk": {Granted.type, Denied.type},
    }
