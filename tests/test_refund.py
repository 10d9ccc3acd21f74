"""Refund: who may decide what and when; whatever its steps answer, it gives all of it back once, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, note
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregates.kernel import Event, Refused, Timer
from aggregates.kernel.money import Tender
from aggregates.kernel.process import Ending, StepState
from aggregates.kernel.refunding import Return, Returned
from aggregates.refund import (
    DECIDE,
    DECISION,
    SET_ASIDE,
    TO_CARD,
    TO_VOUCHERS,
    Allotted,
    Approved,
    CardReversed,
    Finished,
    Refund,
    Rejected,
    Requested,
    StepBegun,
    StepOverdue,
    StepRefused,
    Withheld,
)
from projections.kernel.clauses import PROJECTIONS
from projections.refund import refunds
from streams.kernel.saga import Begin, Do, Finish, Undo
from streams.refund import refund as saga
from tests.kernel import SAID, Fact, fact, through_avro
from tests.kernel import given as past
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

ADA, BOB, ORDER, PRODUCT, PAYMENT, WALLET, GIFT = (UUID(int=n) for n in range(1, 8))
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
CARD, PURSE, CODE = Tender("card", PAYMENT, 600), Tender("wallet", WALLET, 300), Tender("voucher", GIFT, 100)
ONE_MUG = Return("mug", 2)
MUGS = Returned("mug", PRODUCT, "A mug", "main", 2, 1, 1000, 900, 100)


def requested(**more: Any) -> Fact:
    fields: dict[str, Any] = {
        "order": ORDER, "customer": ADA, "asked": (ONE_MUG,), "shipping": None, "restock": True, "destination": "original",
        "reason": "", "because": SAID, "window_days": 30, "auto_max": 0, "decide_by": NOW + DECISION,
    }  # fmt: skip
    return fact(Requested, **{**fields, **more})


def allotted(*tenders: Tender) -> Fact:
    parts = tenders or (CARD, PURSE, CODE)
    amount = sum(one.amount for one in parts)
    line = replace(MUGS, net=amount - 100)
    return fact(
        Allotted, currency="EUR", lines=(line,), shipping=0, amount=amount, tenders=parts, altogether=amount + 1
    )  # fmt: skip


ASKED, SET = requested(), allotted()
YES = fact(Approved, by=BOB, restock=True)
NO = fact(Rejected, how="rejected", by=BOB, reason="", because=SAID)


SHORT = fact(Withheld, amount=600, reason="600 is more than the 100 left")


def refused(step: str) -> tuple[Fact, Fact]:
    return fact(StepBegun, step=step, due=NOW), fact(StepRefused, step=step, why="no")


def test_it_is_asked_for_with_a_reason_and_decided_within_a_time() -> None:
    past(Refund).opening(Refund.request, ORDER, ADA, [ONE_MUG], SAID, NOW, window_days=30).then(ASKED)
    many = [Return(str(n), 1) for n in range(201)]
    past(Refund).opening(Refund.request, ORDER, ADA, many, SAID, NOW).refused("at most 200 lines")
    [event] = Refund.request(ORDER, ADA, [], SAID, NOW).collect_events()
    assert list(event.timers()) == [Timer("lapse", NOW + DECISION, Refund.lapse)]


def test_what_the_order_sets_aside_is_noted_once() -> None:
    allot = {**SET.fields}
    past(Refund, ASKED).when(Refund.allot, **allot).then(SET)
    past(Refund, ASKED, SET).when(Refund.allot, **allot).nothing()


def test_up_to_a_sum_of_all_refunds_of_an_order_nobody_has_to_look() -> None:
    allot = {**SET.fields}  # 1001 altogether
    past(Refund, requested(auto_max=1_001)).when(Refund.allot, **allot).then(SET, fact(Approved, by=None, restock=True))
    past(Refund, requested(auto_max=1_000)).when(Refund.allot, **allot).then(SET)
    past(Refund, requested(auto_max=1_001), NO).when(Refund.allot, **allot).nothing()


def test_staff_decide_once_what_the_order_has_allotted() -> None:
    past(Refund, ASKED, SET).when(Refund.approve, BOB).then(YES)
    past(Refund, ASKED, SET).when(Refund.approve, BOB, False).then(fact(Approved, by=BOB, restock=False))
    past(Refund, ASKED, SET).when(Refund.reject, BOB, SAID).then(NO)
    past(Refund, ASKED).when(Refund.approve, BOB).refused("look again in a moment")
    past(Refund, ASKED).when(Refund.reject, BOB, SAID).then(NO)
    past(Refund, ASKED, SET).when(Refund.approve, ADA).refused("of their own")
    past(Refund, ASKED, SET, YES).when(Refund.approve, ADA).nothing()
    past(Refund, ASKED, SET, NO).when(Refund.reject, ADA, SAID).nothing()
    past(Refund, ASKED, SET, YES).when(Refund.reject, BOB, SAID).refused("is approved")
    past(Refund, ASKED, SET, NO).when(Refund.approve, BOB).refused("is rejected")
    past(Refund, ASKED, *refused(SET_ASIDE)).when(Refund.approve, BOB).refused("was refused: no")


def test_a_customer_may_withdraw_it_and_time_may_pass() -> None:
    withdrawn = fact(Rejected, how="withdrawn", by=ADA, reason="the customer has withdrawn it", because=None)
    past(Refund, ASKED, SET).when(Refund.withdraw, ADA).then(withdrawn)
    past(Refund, ASKED, SET, withdrawn).when(Refund.withdraw, ADA).nothing()
    past(Refund, ASKED, SET, YES).when(Refund.withdraw, ADA).refused("is approved")
    lapsed = fact(Rejected, how="lapsed", by=None, reason="nobody decided within 30 days", because=None)
    past(Refund, ASKED, SET).when(Refund.lapse).then(lapsed)
    for end in ((SET, YES), (SET, NO), refused(SET_ASIDE)):
        past(Refund, ASKED, *end).when(Refund.lapse).nothing()


def test_each_part_goes_back_to_where_it_came_from() -> None:
    state = past(Refund, ASKED, SET, YES).state
    assert (state.card, state.to_wallet, state.vouchers, state.to_credit) == (CARD, 300, (CODE,), 0)
    wallet = past(Refund, requested(destination="wallet"), SET, YES).state
    assert (wallet.card, wallet.to_wallet, wallet.vouchers) == (None, 900, (CODE,))
    bank = past(Refund, ASKED, SET, YES, *refused(TO_CARD)).state
    assert (bank.to_wallet, bank.to_credit) == (900, 0)
    short = past(Refund, ASKED, SET, YES, SHORT, *refused(TO_CARD)).state
    assert (short.withheld, short.to_wallet) == (600, 300), "the wallet makes up for a bank's no, and for nothing else"
    ended = past(Refund, ASKED, SET, YES, *refused(TO_VOUCHERS)).state
    assert (ended.to_wallet, ended.to_credit) == (300, 100)


def test_what_the_cards_payment_does_not_have_is_withheld_once() -> None:
    past(Refund, ASKED, SET, YES).when(Refund.withhold, "600 is more than the 100 left").then(SHORT)
    past(Refund, ASKED, SET, YES, SHORT).when(Refund.withhold, "600 is more than the 100 left").nothing()


def test_that_a_card_sends_its_part_back_is_noted_once() -> None:
    given_back = past(Refund, ASKED, SET, YES)
    given_back.when(Refund.card_reversed, "closed").then(fact(CardReversed, reason="closed"))
    past(Refund, ASKED, SET, YES, fact(CardReversed, reason="closed")).when(Refund.card_reversed, "closed").nothing()


def test_pieces_are_sold_again_if_staff_say_so_and_those_that_never_left_in_any_case() -> None:
    kept = fact(Approved, by=BOB, restock=False)
    for decision, count in ((YES, 2), (kept, 1)):
        assert [n for _, n in past(Refund, ASKED, SET, decision).state.pieces] == [count]


class Machine(RuleBasedStateMachine):
    """The saga's own rule says what comes next; its steps answer at will, decisions come at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.refund = Refund.request(ORDER, ADA, [], SAID, NOW)
        self.events: list[Event] = []
        self.effects: dict[str, int] = {}
        self.tenders: tuple[Tender, ...] = (CARD, PURSE, CODE)

    @initialize(
        tenders=st.lists(st.sampled_from([CARD, PURSE, CODE]), min_size=1, unique=True),
        wallet=st.booleans(),
        auto=st.booleans(),
    )
    def start(self, tenders: list[Tender], wallet: bool, auto: bool) -> None:
        self.refund = Refund.request(
            ORDER, ADA, [], SAID, NOW, destination="wallet" if wallet else "original", auto_max=10_000 * auto
        )
        self.tenders = tuple(tenders)

    def keep(self) -> None:
        self.events += [through_avro(event) for event in self.refund.collect_events()]

    def due(self) -> datetime:
        return NOW + timedelta(minutes=1)

    def worth(self, step: str) -> int:
        """The money that the step moves to the customer."""
        r = self.refund
        return {
            TO_CARD: r.card.amount if r.card else 0,
            "give back to the wallet": r.to_wallet,
            TO_VOUCHERS: sum(one.amount for one in r.vouchers),
            "issue store credit": r.to_credit,
        }.get(step, 0)

    @precondition(lambda self: self.refund.progress.ended is None)
    @rule(answer=st.sampled_from(["ok", "ok", "ok", "refused", "withheld", "unknown"]))
    def go_on(self, answer: str) -> None:
        move, r = saga.move(self.refund), self.refund
        note(f"{move} {answer}")
        match move:
            case Begin(step):
                r.begin(step, self.due())
            case Do(step) if step == DECIDE:
                if r.decision == "approved":
                    r.done(step, saga.after(step, r), self.due())
                elif r.decision:
                    r.refuse(step, r.decision)
            case Do(step) if answer == "ok":
                if step == SET_ASIDE and not r.amount:
                    r.allot(**allotted(*self.tenders).fields)
                self.effects[step] = self.worth(step)
                r.done(step, saga.after(step, r), self.due())
            case Do(step) if answer == "withheld" and step == TO_CARD:
                r.withhold("it has less")
                r.refuse(step, "it has less")
            case Do(step) if answer == "refused" and (step in (TO_CARD, TO_VOUCHERS) or saga.before_pivot(step)):
                r.refuse(step, "no")
            case Do(step):
                r.fail(step, "no answer", NOW)
            case Undo(step) if answer == "ok":
                self.effects.pop(step, None)
                r.undone(step)
            case Undo(step):
                r.fail(step, "no answer", NOW)
            case Finish(ending):
                r.finish(ending)
        self.keep()

    @precondition(lambda self: TO_CARD in self.effects)
    @rule()
    def the_card_sends_it_back(self) -> None:
        """Whenever it does, `streams/reversal.py` gives it to the wallet; the saga goes on as it would have."""
        self.refund.card_reversed("closed")
        self.keep()

    @rule()
    def retry(self) -> None:
        self.refund.retry(self.refund.progress.step)
        self.keep()

    @rule(what=st.sampled_from(["approve", "approve", "reject", "withdraw", "lapse"]))
    def decide(self, what: str) -> None:
        with suppress(Refused):
            match what:
                case "approve":
                    self.refund.approve(BOB)
                case "reject":
                    self.refund.reject(BOB, SAID)
                case "withdraw":
                    self.refund.withdraw(ADA)
                case _:
                    self.refund.lapse()
        self.keep()

    @precondition(lambda self: self.refund.progress.ended is None)
    @rule()
    def deadline(self) -> None:
        step = self.refund.progress.step
        if step and self.refund.progress.steps[step] is StepState.BEGUN and step == SET_ASIDE:
            self.effects[step] = 0  # nobody was told
        self.refund.overdue(step)
        self.keep()

    @invariant()
    def all_of_it_goes_back_once_or_nothing(self) -> None:
        self.refund.check()
        progress = self.refund.progress
        back = sum(self.effects.values())
        assert back <= self.refund.amount
        assert not back or self.refund.decision == "approved"
        if progress.ended is Ending.DONE:
            assert back + self.refund.withheld == self.refund.amount == sum(one.amount for one in self.tenders)
            assert "settle it on the order" in self.effects
        if progress.ended is Ending.UNDONE:
            assert not self.effects, f"left behind: {self.effects}"
        prepaid = self.effects.get(TO_VOUCHERS, 0) + self.effects.get("issue store credit", 0)
        assert progress.ended is not Ending.DONE or prepaid == sum(one.amount for one in self.refund.vouchers)


TestRefund = Machine.TestCase


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.refund"]], sinks=("postgres",))
    yield made
    made.close()


@given(
    answers=st.lists(
        st.sampled_from(
            [
                "ok",
                "ok",
                "ok",
                "approve",
                "refused",
                "withheld",
                "unknown",
                "deadline",
                "reject",
                "withdraw",
                "lapse",
                "back",
            ]
        ),
        max_size=50,
    ),
    seed=st.integers(0, 99),
)
@hypothesis(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, answers: list[str], seed: int) -> None:
    machine = Machine()
    machine.keep()
    for answer in answers:
        if answer in ("approve", "reject", "withdraw", "lapse"):
            machine.decide(answer)
        elif answer == "back":
            if TO_CARD in machine.effects:
                machine.the_card_sends_it_back()
        elif machine.refund.progress.ended is None:
            if answer == "deadline":
                machine.deadline()
            else:
                machine.go_on(answer)
    rows = rows_of(machine.events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = rows_in(live.settings, refunds)
    live.wipe()
    live.feed(rows)
    assert rows_in(live.settings, refunds) == shown
    one, row = machine.refund, shown[machine.refund.id,]
    assert (row["order"], row["customer"], row["amount"], row["version"]) == (ORDER, ADA, one.amount, one.version)
    no = [e for e in machine.events if isinstance(e, StepRefused | StepOverdue) and e.step == SET_ASIDE]
    now = (
        "completed" if one.progress.ended is Ending.DONE else one.decision or ("pending" if one.amount else "requested")
    )
    assert row["status"] == ("refused" if no else now)
    assert bool(row["why"]) == (row["status"] in ("refused", "rejected", "withdrawn", "lapsed"))
    assert bool(row["card_refused"]) == (one.refused(TO_CARD) or one.reversed)
    assert (row["withheld"], row["attention"]) == (one.withheld, one.withheld > 0)
    assert bool(row["voucher_refused"]) == one.refused(TO_VOUCHERS)
    assert (row["ended_at"] is not None) == any(isinstance(event, Finished) for event in machine.events)
