"""Checkout: whatever its steps answer, in any order and at any time, it ends, and ends as all or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, note
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregates.checkout import Checkout, Started, payment_of
from aggregates.kernel import Event
from aggregates.kernel.event import under_id
from aggregates.kernel.money import Line, Tender, price
from aggregates.kernel.process import Ending, StepState
from aggregates.kernel.token import Way
from projections.checkout import checkouts
from projections.kernel.clauses import PROJECTIONS
from schemas import Address, Sealed
from streams.checkout import checkout
from streams.kernel.saga import Begin, Do, Finish, Undo
from tests.kernel import Fact, Outcome, fact, through_avro
from tests.kernel import given as past
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

ADA, CART, PRODUCT = (UUID(int=n) for n in (1, 2, 3))
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
SEALED = Sealed("sealed:1:ada:a")
HOME = Address(SEALED, SEALED, SEALED, SEALED, "DE")
MUGS = Line("mug", PRODUCT, "A mug", 2, 550, 0, 1900, 0, "main")


GIFT, PURSE = Tender("voucher", UUID(int=4), 500), Tender("wallet", UUID(int=5), 700)
ID, SAVED = UUID(int=6), UUID(int=7)
LOOK = "use the saved method"  # it has nothing to undo


def started(*offers: Tender, saved: UUID | None = None) -> Checkout:
    return Checkout.start(
        ADA, CART, 4, "EUR", [MUGS], HOME, Way("tok_visa", saved, "test" if saved else ""), shipping=490, shipping_tax_bp=1900,
        offers=offers,
    )  # fmt: skip


def opened(method: str | None, *offers: Tender, saved: UUID | None = None, gateway: str = "") -> Outcome:
    way = Way(method, saved, gateway) if method else None
    with under_id(ID):
        return past(Checkout).opening(Checkout.start, ADA, CART, 4, "EUR", [MUGS], HOME, way, offers=offers)


def begun(method: str, *tenders: Tender, saved: UUID | None = None, gateway: str = "") -> Fact:
    return fact(
        Started, customer=ADA, cart=CART, contents=4, currency="EUR", lines=tuple(price([MUGS])[0]), discount=0,
        shipping=0, shipping_tax_bp=0, total=1309, address=HOME, method=method,
        tenders=tenders, saved=saved, gateway=gateway,
    )  # fmt: skip


def card(amount: int) -> Tender:
    return Tender("card", payment_of(ID), amount)


def test_a_checkout_is_priced_and_its_payment_shared_when_it_starts() -> None:
    opened("tok_visa").then(begun("tok_visa", card(1309)))
    opened("tok_visa", PURSE, GIFT).then(begun("tok_visa", GIFT, PURSE, card(109)))


def test_what_prepaid_value_covers_needs_no_card_and_keeps_none() -> None:
    more = replace(PURSE, amount=900)
    covered = begun("", GIFT, replace(PURSE, amount=809))
    opened(None, GIFT, more).then(covered)
    opened("tok_visa", GIFT, more).then(covered)
    opened(None, GIFT, PURSE).refused("109 of 1309 are left to be paid by a card: name a method, or prefer")
    opened(None).refused("1309 of 1309 are left")


def test_a_saved_method_is_kept_with_its_gateway_as_far_as_a_card_pays() -> None:
    opened("pm_1", GIFT, saved=SAVED, gateway="stripe").then(
        begun("pm_1", GIFT, card(809), saved=SAVED, gateway="stripe")
    )
    all_of_it = replace(GIFT, amount=1309)
    opened("pm_1", all_of_it, saved=SAVED, gateway="stripe").then(begun("", all_of_it))
    with_it = past(Checkout, begun("pm_1", card(1309), saved=SAVED, gateway="stripe")).state
    assert checkout.move(with_it) == Begin(LOOK)
    assert checkout.move(past(Checkout, begun("pm_1", card(1309))).state) == Begin("lock the cart")


def test_a_checkout_of_before_there_were_vouchers_is_all_by_card() -> None:
    old = past(Checkout, begun("tok_visa")).state
    assert old.tenders == (Tender("card", old.payment, 1309),)
    assert old.by_card == 1309
    assert (old.saved, old.gateway) == (None, "")
    assert checkout.move(old) == Begin("lock the cart")
    assert checkout.after("lock the cart", old) == "reserve the stock"
    assert checkout.after("reserve the stock", old) == "authorise the payment"


def test_a_checkout_of_nothing_is_none() -> None:
    free = Line("mug", PRODUCT, "A mug", 2, 0, 0, 1900, 0, "main")
    past(Checkout).opening(Checkout.start, ADA, CART, 4, "EUR", [free], HOME, Way("tok_visa")).refused("nothing to pay")
    past(Checkout).opening(Checkout.start, ADA, CART, 4, "EUR", [], HOME, Way("tok_visa")).refused("1 to 200 lines")


class Machine(RuleBasedStateMachine):
    """The saga's own rule says what comes next; here its steps answer at will, late and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.checkout = started(GIFT, PURSE)
        self.events: list[Event] = []
        self.effects: dict[str, bool] = {}

    @initialize(
        offers=st.lists(st.sampled_from([GIFT, PURSE, replace(PURSE, amount=9_999)]), unique_by=lambda o: o.kind),
        saved=st.sampled_from([None, SAVED]),
    )
    def start(self, offers: list[Tender], saved: UUID | None) -> None:
        self.checkout = started(*offers, saved=saved)

    def keep(self) -> None:
        self.events += [through_avro(event) for event in self.checkout.collect_events()]

    @precondition(lambda self: self.checkout.progress.ended is None)
    @rule(answer=st.sampled_from(["ok", "ok", "ok", "refused", "unknown"]))
    def go_on(self, answer: str) -> None:
        move = checkout.move(self.checkout)
        note(f"{move} {answer}")
        match move:
            case Begin(step):
                self.checkout.begin(step, NOW + timedelta(minutes=1))
            case Do(step) if answer == "ok":
                self.effects[step] = True
                self.checkout.done(step, checkout.after(step, self.checkout), NOW + timedelta(minutes=1))
            case Do(step) if answer == "refused" and (checkout.before_pivot(step) or step == checkout.pivot):
                self.checkout.refuse(step, "no")
            case Do(step):
                self.checkout.fail(step, "no answer", NOW)
            case Undo(step) if answer == "ok":
                self.effects.pop(step, None)
                self.checkout.undone(step)
            case Undo(step):
                self.checkout.fail(step, "no answer", NOW)
            case Finish(ending):
                self.checkout.finish(ending)
        self.keep()

    @precondition(lambda self: self.checkout.progress.ended is None)
    @rule(had_its_effect=st.booleans())
    def deadline(self, had_its_effect: bool) -> None:
        step = self.checkout.progress.step
        if step and self.checkout.progress.steps[step] is StepState.BEGUN and had_its_effect:
            self.effects[step] = True  # nobody was told
        self.checkout.overdue(step)
        self.keep()

    @rule()
    def retry(self) -> None:
        self.checkout.retry(self.checkout.progress.step)
        self.keep()

    def steps(self) -> set[str]:
        """All that there is to do for it."""
        kinds = {one.kind for one in self.checkout.tenders}
        return {
            "lock the cart", "reserve the stock", "place the order", "mark the order paid", "take the stock", "clear the cart",
            *(("reserve the vouchers", "confirm the vouchers") if "voucher" in kinds else ()),
            *(("hold in the wallet", "spend from the wallet") if "wallet" in kinds else ()),
            *(("authorise the payment", "take the money") if "card" in kinds else ()),
            *((LOOK,) if self.checkout.saved else ()),
        }  # fmt: skip

    @invariant()
    def it_is_all_or_nothing(self) -> None:
        self.checkout.check()
        progress = self.checkout.progress
        if progress.ended is Ending.DONE:
            assert set(self.effects) == self.steps()
        if progress.ended is Ending.UNDONE:
            assert self.effects.keys() <= {LOOK}, f"left behind: {self.effects}"
        if StepState.DONE is progress.steps.get(checkout.pivot):
            assert not checkout.turned_back(progress), "the money is taken: only forward from here"


TestCheckout = Machine.TestCase


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.checkout"]], sinks=("postgres",))
    yield made
    made.close()


@given(
    answers=st.lists(st.sampled_from(["ok", "ok", "refused", "unknown", "deadline"]), max_size=40),
    seed=st.integers(0, 99),
)
@hypothesis(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, answers: list[str], seed: int) -> None:
    machine = Machine()
    events: list[Event] = list(machine.checkout.collect_events())
    for answer in answers:
        if machine.checkout.progress.ended is None:
            machine.deadline(False) if answer == "deadline" else machine.go_on(answer)
    rows = rows_of([*events, *machine.events])
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = rows_in(live.settings, checkouts)
    live.wipe()
    live.feed(rows)
    assert rows_in(live.settings, checkouts) == shown
    row, progress = shown[machine.checkout.id,], machine.checkout.progress
    status = {None: "running", Ending.DONE: "completed", Ending.UNDONE: "failed"}[progress.ended]
    assert (row["status"], row["step"], row["version"]) == (status, progress.step, machine.checkout.version)
    assert (row["payment"], row["total"]) == (machine.checkout.payment, machine.checkout.total)
    assert [one["amount"] for one in row["tenders"]] == [500, 700, 692]
