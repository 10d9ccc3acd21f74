"""The saga's rules: what is not well-formed is refused at import, and whatever goes wrong, it ends as all or nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from aggregates.kernel import NotFound, Refused, Reused
from aggregates.kernel.process import Ending, Process, Progress, StepState
from streams.kernel import NOTHING, Saga, Step, tell
from streams.kernel.saga import Begin, Do, Finish, Undo, retry_at
from tests.kernel.desk import Confirmed, Denied, Desk, Granted, Held, Opened
from tests.kernel.journey import journey
from tests.kernel.trip import Planned, Trip
from tests.kernel.world import LEAVE, SEATS, TILL, TRIP, World

HALF_A_MINUTE = timedelta(seconds=30)


def step(name: str, **changes: Any) -> Step[Trip]:
    plain: Step[Trip] = Step(name, within=HALF_A_MINUTE, do=lambda t: tell(t.seats, Desk.hold, t.id), undo=NOTHING)
    return replace(plain, **changes)


def pivot(name: str = "pay", **changes: Any) -> Step[Trip]:
    return step(name, undo=None, **changes)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([step("a"), step("a"), pivot()], "two steps of one name"),
        ([step("a")], "the pivot 'pay' is none of its steps"),
        ([step("a", undo=None), pivot()], "'a' comes before the pivot, so it states its undo"),
        ([pivot(), step("a")], "'a' is not before the pivot, so it has no undo"),
        ([step("pay")], "'pay' is not before the pivot, so it has no undo"),
        ([step("a", unless=Denied), pivot()], "has `unless` and no `until`"),
        ([pivot(), pivot("a", until=Granted, unless=Denied)], "nothing can refuse it for good"),
        ([step("a", unhurt=(NotFound,)), pivot()], "'a' is not after the pivot, so a refusal turns back"),
        ([pivot(unhurt=(NotFound,))], "'pay' is not after the pivot, so a refusal turns back"),
        ([pivot(), pivot("a", until=Granted, unless=Denied, unhurt=(NotFound,))], "nothing can refuse it for good"),
        ([pivot(learn=lambda t, e: None)], "has `learn` and no `until`"),
        ([pivot(within=timedelta(0))], "the deadline of 'pay' is not after its beginning"),
        ([step("a", until=Opened), pivot()], "desk.Opened has no field 'trip', so 'a' needs a `match`"),
    ],
)
def test_a_saga_that_is_not_well_formed_is_refused(steps: list[Step[Trip]], why: str) -> None:
    with pytest.raises(TypeError, match=why.replace("(", r"\(")):
        Saga(Trip, starts=Planned, pivot="pay", steps=steps)


def test_an_event_of_another_domain_starts_a_saga_only_with_opens() -> None:
    with pytest.raises(TypeError, match="`opens` is for an event of another domain"):
        Saga(Trip, starts=Granted, pivot="pay", steps=[pivot()])
    with pytest.raises(TypeError, match="`opens` is for an event of another domain"):
        Saga(Trip, starts=Planned, opens=lambda e: None, pivot="pay", steps=[pivot()])


def test_a_state_without_its_events_is_refused() -> None:
    with pytest.raises(TypeError, match=r"class StepBegun\(process.StepBegun\)"):
        type("Lost", (Process,), {"__module__": "tests.kernel.desk"})


def after(**steps: StepState) -> Trip:
    return at(Progress(steps={name.replace("_", " "): state for name, state in steps.items()}))


def at(progress: Progress) -> Trip:
    trip = Trip(SEATS, LEAVE, TILL)
    trip.progress = progress
    return trip


def test_what_comes_next() -> None:
    done, begun, refused, overdue, undone = (
        StepState.DONE, StepState.BEGUN, StepState.REFUSED, StepState.OVERDUE, StepState.UNDONE,
    )  # fmt: skip
    for trip, move in [
        (after(), Begin("hold a seat")),
        (after(hold_a_seat=begun), Do("hold a seat")),
        (after(hold_a_seat=done), Begin("book")),
        (after(hold_a_seat=refused), Finish(Ending.UNDONE)),
        (after(hold_a_seat=done, book=refused), Undo("hold a seat")),
        (after(hold_a_seat=done, book=overdue), Undo("book")),
        (after(hold_a_seat=done, book=undone), Undo("hold a seat")),
        (after(hold_a_seat=done, book=done, write_it_in=overdue), Undo("book")),  # nothing to undo of its own
        (after(hold_a_seat=undone, book=undone), Finish(Ending.UNDONE)),
        (after(hold_a_seat=done, pay=overdue), Do("pay")),  # the pivot is only repeated
        (after(hold_a_seat=done, pay=refused), Undo("hold a seat")),
        (after(hold_a_seat=done, pay=done, confirm=overdue), Do("confirm")),
        (after(hold_a_seat=done, pay=done, confirm=done), Finish(Ending.DONE)),
    ]:
        assert journey.move(trip) == move, trip.progress
    assert journey.move(at(Progress(ended=Ending.DONE))) is None
    with pytest.raises(LookupError, match="no step pray any more"):
        journey.move(after(pray=begun))


def test_a_step_that_a_saga_does_not_have_is_passed_over() -> None:
    def without(*names: str) -> Saga[Trip]:
        steps = [replace(one, when=lambda t: False) if one.name in names else one for one in journey.steps.values()]
        return Saga(Trip, starts=Planned, pivot="pay", steps=steps)

    done, overdue, refused = StepState.DONE, StepState.OVERDUE, StepState.REFUSED
    no_seat = without("hold a seat", "ask for leave")
    assert no_seat.move(after()) == Begin("book")
    assert no_seat.move(after(book=done, write_it_in=done)) == Begin("pay")
    assert no_seat.move(after(book=done, write_it_in=refused)) == Undo("book")
    no_end = without("pay", "confirm")  # not even a pivot: what comes before it is undone, and then it is done
    assert no_end.move(after(hold_a_seat=done, ask_for_leave=overdue)) == Undo("hold a seat")
    assert no_end.move(after(hold_a_seat=done, ask_for_leave=done)) == Finish(Ending.DONE)
    assert without(*journey.steps).move(after()) == Finish(Ending.DONE)
    without_pivot = without("pay")
    assert without_pivot.move(after(ask_for_leave=done)) == Begin("confirm")
    assert without_pivot.move(after(ask_for_leave=done, confirm=overdue)) == Do("confirm")


def test_a_step_without_an_effect_is_done_at_once_whatever_it_waits_for() -> None:
    """The driver itself, on a trip whose leave needs nobody's word."""
    saga = Saga(
        Trip,
        starts=Planned,
        pivot="pay",
        steps=[
            replace(one, do=lambda t: None) if one.name == "ask for leave" else one for one in journey.steps.values()
        ],
    )
    world = World(0, calm=True, saga=saga)
    world.run()
    assert world.trip.progress.steps["ask for leave"] is StepState.DONE
    assert world.trip.progress.ended is Ending.DONE
    assert world.happened(Granted, LEAVE) == 0


def test_a_refusal_that_does_not_hurt_leaves_it_on_its_way() -> None:
    card = pivot("card", until=Granted, unless=Denied, unhurt=(Denied, NotFound))
    saga = Saga(Trip, starts=Planned, pivot="pay", steps=[step("a"), pivot(), card, pivot("wallet")])
    done, begun, refused = StepState.DONE, StepState.BEGUN, StepState.REFUSED
    for trip, move in [
        (after(a=done, pay=done, card=begun), Do("card")),
        (after(a=done, pay=done, card=refused), Begin("wallet")),
        (after(a=done, pay=done, card=refused, wallet=begun), Do("wallet")),
        (after(a=done, pay=done, card=refused, wallet=done), Finish(Ending.DONE)),
        (after(a=done, pay=refused), Finish(Ending.UNDONE)),
    ]:
        assert saga.move(trip) == move, trip.progress
    for name, no, refusable in [
        ("card", NotFound(""), True), ("card", Reused(""), True), ("card", Refused(""), False), ("wallet", NotFound(""), False),
        ("wallet", Reused(""), False), ("pay", Refused(""), True), ("a", Refused(""), True),
    ]:  # fmt: skip
        assert saga.refusable(saga.steps[name], no) == refusable, (name, no)


def test_attempts_are_repeated_after_ever_longer_pauses_up_to_a_limit() -> None:
    now = World(0).now
    pauses = [(retry_at(now, n) - now).total_seconds() for n in range(100)]
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert pauses[-1] == 300


def test_without_faults_every_step_is_done_once() -> None:
    world = World(0, calm=True)
    world.run()
    judge(world)


def test_whatever_goes_wrong_a_refusal_that_does_not_hurt_is_noted_once_and_the_rest_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "streams.kernel.driver")
    extra: Step[Trip] = pivot(
        "an extra", do=lambda t: tell(t.seats, Desk.hold, SEATS), unhurt=(Refused,)
    )  # there is one seat
    *before, confirm = journey.steps.values()
    saga = Saga(Trip, starts=Planned, pivot="pay", steps=[*before, extra, confirm])
    for seed in range(SEEDS // 3):
        world = World(seed, saga=saga)
        world.run()
        if judge(world) is Ending.DONE:
            assert world.trip.progress.steps["an extra"] is StepState.REFUSED, seed


SEEDS = 600


def test_whatever_goes_wrong_it_ends_as_all_or_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(
        logging.CRITICAL, "streams.kernel.driver"
    )  # of the tens of thousands of faults, each with its traceback
    endings = set()
    for seed in range(SEEDS):
        world = World(seed)
        try:
            world.run()
            endings.add(judge(world))
        except BaseException as error:
            raise AssertionError(f"World({seed}): {world.trip.progress}") from error
    assert endings == {Ending.DONE, Ending.UNDONE}


def judge(world: World) -> Ending:
    """Once each when done; nothing held anywhere, now or later, when undone."""
    ended = world.trip.progress.ended
    assert ended is not None
    seats, till, booked = world.desk(SEATS), world.desk(TILL), world.desk(world.booking)
    assert seats and till
    for id in (SEATS, TILL, world.booking):
        assert world.happened(Held, id) <= 1
        assert world.happened(Confirmed, id) <= 1
    if ended is Ending.DONE:
        assert booked
        assert seats.confirmed == booked.confirmed == {TRIP} == till.held & {TRIP}
        assert world.happened(Granted, world.trip.leave) == 1
    else:
        assert not any(TRIP in desk.held | desk.confirmed for desk in (seats, till, booked) if desk)
        assert booked is None or TRIP in booked.closed  # opened in vain, it was closed
        assert world.trip.progress.why
    return ended
