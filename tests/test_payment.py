from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aggregates.kernel import Invalid, Money, Refused, Timer
from aggregates.kernel.event import under_id
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.kernel.token import payment_token
from aggregates.payment import (
    ASK_FIRST,
    ASK_LAST,
    NOT_COVERED,
    OPERATIONS_MAX,
    ActionRequired,
    Asked,
    Authorised,
    Captured,
    CaptureFailed,
    CaptureRequested,
    CaptureReversed,
    Closed,
    Declined,
    Leaving,
    Left,
    Payment,
    Refunded,
    RefundFailed,
    RefundRequested,
    RefundReversed,
    Requested,
    Routed,
    Unresolved,
    Voided,
    VoidRequested,
)
from streams.gateways.interface import Fact as Told
from streams.gateways.interface import fact as told
from streams.gateways.test import facts_of
from streams.gateways.test_gateway.book import Book, Wrong
from tests.kernel import accepted, fact, given

ORDER, ADA, C, C2, R, R2 = (uuid4() for _ in range(6))
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
WEEK, HOUR = NOW + timedelta(days=7), NOW + timedelta(hours=1)


def eur(amount: int) -> Money:
    return Money(amount, "EUR")


REQUESTED = fact(Requested, order=ORDER, customer=ADA, amount=eur(1000), method="tok_visa", gateway="", country=None)
ACTION = fact(ActionRequired, order=ORDER, url="https://bank.example/1", expires_at=HOUR)
AUTHORISED = fact(Authorised, order=ORDER, amount=eur(1000), transaction="txn_1", expires_at=WEEK)
DECLINED = fact(Declined, order=ORDER, code="insufficient_funds", reason="There is not enough money.", customer=ADA)
VOIDING = fact(VoidRequested, order=ORDER, cause="asked")
VOIDED = fact(Voided, order=ORDER, transaction="txn_1")
HELD = (REQUESTED, AUTHORISED)
ASKED_600 = fact(CaptureRequested, order=ORDER, capture=C, amount=eur(600))
TOOK_600 = fact(Captured, order=ORDER, capture=C, amount=eur(600), left=400)
TAKEN = (*HELD, ASKED_600, TOOK_600)
NOT_TAKEN = fact(
    CaptureFailed, order=ORDER, capture=C, amount=eur(600), code="capture_failed", reason="No.", accepted=False
)
ASKED_BACK = fact(RefundRequested, order=ORDER, refund=R, amount=eur(200))
GAVE_BACK = fact(Refunded, order=ORDER, refund=R, amount=eur(200))
NOT_BACK = fact(
    RefundFailed, order=ORDER, refund=R, amount=eur(200), code="refund_failed", reason="Closed.", accepted=False
)
BOUNCED = fact(RefundReversed, order=ORDER, refund=R, amount=eur(200), code="closed", reason="Closed.")
TAKEN_BACK = fact(CaptureReversed, order=ORDER, capture=C, amount=eur(600), code="no", reason="No.", expires_at=WEEK)


def test_a_payment_is_asked_for() -> None:
    given(Payment).opening(Payment, ORDER, ADA, eur(1000), "tok_visa").then(REQUESTED)
    for amount in (1, AMOUNT_MAX):
        assert Payment(ORDER, ADA, eur(amount), "tok_visa").waiting
    for amount in (0, -1, AMOUNT_MAX + 1):
        given(Payment).opening(Payment, ORDER, ADA, eur(amount), "tok_visa").refused("an amount is between")
    given(Payment).opening(Payment, ORDER, ADA, Money(1, "EURO"), "tok_visa").refused("not a currency")


def test_a_card_number_is_no_token() -> None:
    for number in ("tok_4242424242424242", "tok_x4242-4242_4242-4242y", "tok_378282246310005"):
        given(Payment).opening(Payment, ORDER, ADA, eur(1), number).refused("a card number is no token")
    for wrong in ("4242424242424242", "visa", "tok_", "tok_visa\n", "tok_ 1", "tok_" + "x" * 91):
        given(Payment).opening(Payment, ORDER, ADA, eur(1), wrong).refused("a payment method is a gateway's token")
    for token in ("tok_visa", "pm_1NG8Du2eZvKYlo2C0XyRTuCx", "tok_4242424242424241", "tok_" + "x" * 90):
        assert payment_token(token) == token


def test_the_gateway_holds_the_money() -> None:
    given(Payment, REQUESTED).when(Payment.authorised, "txn_1", WEEK).then(AUTHORISED)
    given(Payment, *HELD).when(Payment.authorised, "txn_1", WEEK).nothing()
    assert given(Payment, *HELD).state.held == 1000


def test_the_gateway_declines() -> None:
    given(Payment, REQUESTED).when(Payment.declined, "insufficient_funds", "There is not enough money.").then(DECLINED)
    given(Payment, REQUESTED, DECLINED).when(Payment.declined, "insufficient_funds", "Again.").nothing()
    given(Payment, REQUESTED, DECLINED).when(Payment.capture, C, eur(1)).refused("declined cannot be captured")
    given(Payment, REQUESTED, DECLINED).when(Payment.void).nothing()


def test_the_customer_is_to_confirm_first() -> None:
    given(Payment, REQUESTED).when(Payment.action_required, "https://bank.example/1", HOUR).then(ACTION)
    given(Payment, REQUESTED, ACTION).when(Payment.authorised, "txn_1", WEEK).then(AUTHORISED)
    given(Payment, REQUESTED, ACTION).when(Payment.declined, "no", "No.").then(
        fact(Declined, order=ORDER, code="no", reason="No.", customer=ADA)
    )
    given(Payment, *HELD).when(Payment.action_required, "https://bank.example/1", HOUR).nothing()
    given(Payment, REQUESTED, ACTION).when(Payment.capture, C, eur(1)).refused("action_required cannot be captured")


def test_two_outcomes_of_one_intent_contradict_each_other() -> None:
    given(Payment, REQUESTED, DECLINED).when(Payment.authorised, "txn_1", WEEK).refused("it is declined")
    given(Payment, *HELD).when(Payment.authorised, "txn_2", WEEK).refused("it is authorised")  # held twice
    given(Payment, *HELD, VOIDED).when(Payment.authorised, "txn_2", WEEK).refused("it is voided")
    given(Payment, *HELD).when(Payment.declined, "no", "No.").refused("it is authorised")
    given(Payment, *TAKEN).when(Payment.capture_failed, C, eur(600), "no", "No.").refused("is done")
    given(Payment, *HELD, ASKED_600, NOT_TAKEN).when(Payment.captured, C, eur(600)).refused("is failed")
    given(Payment, *HELD, ASKED_600).when(Payment.captured, C, eur(601)).refused("is of 600 EUR")
    given(Payment, *HELD, ASKED_600).when(Payment.captured, C, Money(600, "USD")).refused("is of 600 EUR")
    given(Payment, *HELD).when(Payment.captured, C, eur(600)).refused("was not asked for")


def test_a_capture_takes_what_is_held_and_no_more() -> None:
    given(Payment, *HELD).when(Payment.capture, C, eur(600)).then(ASKED_600)
    given(Payment, *HELD, ASKED_600).when(Payment.captured, C, eur(600)).then(TOOK_600)
    given(Payment, *HELD).when(Payment.capture, C, eur(1000)).then(
        fact(CaptureRequested, order=ORDER, capture=C, amount=eur(1000))
    )
    given(Payment, *HELD).when(Payment.capture, C, eur(1001)).refused("1001 is more than the 1000 left")
    for asked in (HELD + (ASKED_600,), TAKEN):  # noqa: RUF005
        given(Payment, *asked).when(Payment.capture, C2, eur(400)).then(
            fact(CaptureRequested, order=ORDER, capture=C2, amount=eur(400))
        )
        given(Payment, *asked).when(Payment.capture, C2, eur(401)).refused("401 is more than the 400 left")
    given(Payment, *HELD).when(Payment.capture, C, Money(600, "USD")).refused("the payment is in EUR, not USD")
    given(Payment, *HELD).when(Payment.capture, C, eur(0)).refused("an amount is between")


def test_a_capture_that_failed_leaves_the_money_held() -> None:
    given(Payment, *HELD, ASKED_600).when(Payment.capture_failed, C, eur(600), "capture_failed", "No.").then(NOT_TAKEN)
    failed = given(Payment, *HELD, ASKED_600, NOT_TAKEN)
    failed.when(Payment.capture, C, eur(600)).refused("try again under a new id")
    failed.when(Payment.capture, C2, eur(1000)).then(fact(CaptureRequested, order=ORDER, capture=C2, amount=eur(1000)))


def test_the_same_capture_or_refund_again_does_nothing() -> None:
    for past in ((*HELD, ASKED_600), TAKEN):
        given(Payment, *past).when(Payment.capture, C, eur(600)).nothing()
        given(Payment, *past).when(Payment.capture, C, eur(599)).refused("is of 600, not 599")
    given(Payment, *TAKEN).when(Payment.captured, C, eur(600)).nothing()
    for back in ((ASKED_BACK,), (ASKED_BACK, GAVE_BACK)):
        given(Payment, *TAKEN, *back).when(Payment.refund, R, eur(200)).nothing()
        given(Payment, *TAKEN, *back).when(Payment.refund, R, eur(201)).refused("is of 200, not 201")
    given(Payment, *TAKEN).when(Payment.refund, C, eur(200)).refused("is in use here")


def test_a_refund_gives_back_what_was_captured_and_no_more() -> None:
    given(Payment, *TAKEN).when(Payment.refund, R, eur(200)).then(ASKED_BACK)
    given(Payment, *TAKEN, ASKED_BACK).when(Payment.refunded, R, eur(200)).then(GAVE_BACK)
    given(Payment, *TAKEN).when(Payment.refund, R, eur(601)).refused("601 is more than the 600 left")
    given(Payment, *HELD, ASKED_600).when(Payment.refund, R, eur(1)).refused("1 is more than the 0 left")
    for past in ((ASKED_BACK,), (ASKED_BACK, GAVE_BACK)):
        back = given(Payment, *TAKEN, *past)
        back.when(Payment.refund, R2, eur(400)).then(fact(RefundRequested, order=ORDER, refund=R2, amount=eur(400)))
        back.when(Payment.refund, R2, eur(401)).refused("401 is more than the 400 left")


def test_what_is_given_back_on_an_orders_word_is_there_or_has_failed() -> None:
    """An order that believes more of a payment than there is gets an answer all the same."""
    taken, usd = given(Payment, *TAKEN), Money(1, "USD")
    taken.when(Payment.give_back, R, eur(200)).then(ASKED_BACK)

    def not_covered(amount: Money, why: str) -> tuple[Any, ...]:
        asked = fact(RefundRequested, order=ORDER, refund=R2, amount=amount)
        return asked, fact(
            RefundFailed, order=ORDER, refund=R2, amount=amount, code=NOT_COVERED, reason=why, accepted=False
        )

    for past, amount, why in (
        ((), eur(601), "601 EUR is more than the 600 EUR left of what is captured"),
        ((ASKED_BACK,), eur(401), "401 EUR is more than the 400 EUR left of what is captured"),
        ((), usd, "1 USD is more than the 600 EUR left of what is captured"),
    ):
        failed = not_covered(amount, why)
        given(Payment, *TAKEN, *past).when(Payment.give_back, R2, amount).then(*failed)
        again = given(Payment, *TAKEN, *past, *failed)
        again.when(Payment.give_back, R2, amount).nothing()
        again.when(Payment.give_back, R2, eur(7)).refused("not 7")
        assert R2 not in again.state.waiting and again.state.returned == 0
    given(Payment, *TAKEN, ASKED_BACK, NOT_BACK).when(Payment.give_back, R, eur(200)).nothing()


def test_a_refund_that_failed_can_be_tried_again_under_another_id() -> None:
    given(Payment, *TAKEN, ASKED_BACK).when(Payment.refund_failed, R, eur(200), "refund_failed", "Closed.").then(
        NOT_BACK
    )
    given(Payment, *TAKEN, ASKED_BACK, NOT_BACK).when(Payment.refund, R2, eur(600)).then(
        fact(RefundRequested, order=ORDER, refund=R2, amount=eur(600))
    )


def test_a_void_gives_back_what_is_held() -> None:
    given(Payment, *HELD).when(Payment.void).then(VOIDING)
    given(Payment, *HELD, VOIDING).when(Payment.voided, "txn_1").then(VOIDED)
    given(Payment, *TAKEN).when(Payment.void).then(VOIDING)
    given(Payment, *HELD, ASKED_600).when(Payment.void).refused("a capture is under way")
    all_of_it = fact(CaptureRequested, order=ORDER, capture=C, amount=eur(1000))
    took = fact(Captured, order=ORDER, capture=C, amount=eur(1000), left=0)
    given(Payment, *HELD, all_of_it, took).when(Payment.void).refused("refund it")
    for past in ((*HELD, VOIDING), (*HELD, VOIDING, VOIDED)):
        given(Payment, *past).when(Payment.void).nothing()
        given(Payment, *past).when(Payment.capture, C, eur(1)).refused("void")


def test_a_void_before_the_outcome_is_known_bans_what_comes_late() -> None:
    given(Payment, REQUESTED).when(Payment.void).then(VOIDING)
    given(Payment, REQUESTED, VOIDING).when(Payment.voided, "").then(fact(Voided, order=ORDER, transaction=""))
    given(Payment, REQUESTED, VOIDING, VOIDED).when(Payment.authorised, "txn_1", WEEK).nothing()
    given(Payment, REQUESTED, VOIDING, VOIDED).when(Payment.capture, C, eur(1)).refused("voided cannot be captured")
    given(Payment, REQUESTED, VOIDING).when(Payment.authorised, "txn_1", WEEK).then(AUTHORISED)
    given(Payment, REQUESTED, VOIDING, AUTHORISED).when(Payment.capture, C, eur(1)).refused("being voided")


def test_an_authorisation_runs_out() -> None:
    ran_out = fact(VoidRequested, order=ORDER, cause="expired")
    given(Payment, *HELD).when(Payment.expire, WEEK).then(ran_out)
    given(Payment, *HELD).when(Payment.expire, WEEK - timedelta(microseconds=1)).nothing()
    given(Payment, REQUESTED, ACTION).when(Payment.expire, HOUR).then(ran_out)
    given(Payment, REQUESTED, ACTION, AUTHORISED).when(Payment.expire, HOUR).nothing()
    given(Payment, *TAKEN).when(Payment.expire, WEEK).then(ran_out)
    for past in ((VOIDING,), (VOIDING, VOIDED)):
        given(Payment, *HELD, *past).when(Payment.expire, WEEK).nothing()


def test_an_unknown_outcome_is_asked_for_ever_more_rarely() -> None:
    unknown = fact(Unresolved, order=ORDER, intent=C, times=1, reason="no answer", ask_at=NOW + ASK_FIRST, gateway=None)
    waiting = given(Payment, *HELD, ASKED_600)
    waiting.when(Payment.unresolved, C, 0, "no answer", NOW).then(unknown)
    waiting.when(Payment.unresolved, C, 1, "no answer", NOW).nothing()
    given(Payment, *TAKEN).when(Payment.unresolved, C, 0, "no answer", NOW).nothing()
    once = given(Payment, *HELD, ASKED_600, unknown)
    once.when(Payment.ask, str(C), 1).then(fact(Asked, order=ORDER, intent=C, times=1))
    once.when(Payment.ask, str(C), 0).nothing()
    given(Payment, *HELD, ASKED_600, unknown, TOOK_600).when(Payment.ask, str(C), 1).nothing()
    often = fact(Unresolved, order=ORDER, intent=C, times=40, reason="no answer", ask_at=NOW, gateway=None)
    given(Payment, *HELD, ASKED_600, often).when(Payment.unresolved, C, 40, "x" * 300, NOW).then(
        fact(Unresolved, order=ORDER, intent=C, times=41, reason="x" * 200, ask_at=NOW + ASK_LAST, gateway=None)
    )


ROUTED = fact(Routed, order=ORDER, gateway="one", reason="cheapest")
ROUTED_ON = fact(Routed, order=ORDER, gateway="two", reason="one was left")
LEAVING = fact(Leaving, order=ORDER, gateway="one", reason="never heard")
LEFT_CLOSED = fact(Left, order=ORDER, gateway="one", reason="it has closed our reference", closed=True)
LEFT_OPEN = fact(Left, order=ORDER, gateway="one", reason="not reached", closed=False)


def test_a_gateway_is_put_in_charge_before_it_is_asked() -> None:
    given(Payment, REQUESTED).when(Payment.route, "one", "cheapest").then(ROUTED)
    routed = given(Payment, REQUESTED, ROUTED)
    routed.when(Payment.route, "two", "another process").refused("one is in charge")
    routed.when(Payment.leave, "one", "not reached").then(LEFT_OPEN)
    routed.when(Payment.leave, "two", "another process").refused("one is in charge")
    routed.when(Payment.close, "one", "never heard").then(LEAVING)
    pinned = fact(Requested, order=ORDER, customer=ADA, amount=eur(1), method="tok_visa", gateway="one", country="DE")
    for call in (Payment.leave, Payment.close):
        given(Payment, pinned).when(call, "one", "why").refused("no other gateway knows this method")
        for past in ((ACTION,), (AUTHORISED,), (DECLINED,), (VOIDING,)):
            given(Payment, REQUESTED, ROUTED, *past).when(call, "one", "why").refused("nothing to be authorised")
    given(Payment, REQUESTED, DECLINED).when(Payment.route, "one", "why").refused("nothing to be authorised")
    given(Payment, REQUESTED, VOIDING).when(Payment.route, "one", "why").refused("nothing to be authorised")


def test_a_gateway_that_was_left_is_asked_no_more_and_closes_our_reference() -> None:
    left = given(Payment, REQUESTED, ROUTED, LEFT_OPEN)
    left.when(Payment.route, "one", "again").refused("one has been left")
    left.when(Payment.route, "two", "one was left").then(ROUTED_ON)
    intent = Payment.close_id_of(left.state.id, "one")
    assert left.state.waiting == {left.state.id: 0, intent: 0}
    left.when(Payment.closed, "one").then(fact(Closed, order=ORDER, gateway="one"))
    left.when(Payment.closed, "two").nothing()
    elsewhere = given(Payment, REQUESTED, ROUTED, LEFT_OPEN, ROUTED_ON, AUTHORISED)
    assert elsewhere.state.waiting.keys() == {Payment.close_id_of(elsewhere.state.id, "one")}
    elsewhere.state.check()
    for ended in (DECLINED, VOIDED):
        given(Payment, REQUESTED, ROUTED, LEFT_OPEN, ROUTED_ON, ended).state.check()
    given(Payment, REQUESTED, ROUTED, LEFT_OPEN, fact(Closed, order=ORDER, gateway="one")).when(
        Payment.closed, "one"
    ).nothing()
    seen = elsewhere.state.as_left()
    assert (seen.transaction, seen.id, elsewhere.state.transaction) == ("", elsewhere.state.id, "txn_1")


def test_a_gateway_that_was_asked_is_left_once_it_has_closed_our_reference() -> None:
    leaving = given(Payment, REQUESTED, ROUTED, LEAVING)
    leaving.when(Payment.close, "one", "again").nothing()
    leaving.when(Payment.authorised, "txn_1", WEEK).nothing()  # asked late; the closing gives it back
    leaving.when(Payment.action_required, "https://bank.example/1", HOUR).nothing()
    leaving.when(Payment.declined, "insufficient_funds", "There is not enough money.").then(DECLINED)
    for transaction in ("", "txn_1"):
        leaving.when(Payment.voided, transaction).then(LEFT_CLOSED)
    assert given(Payment, REQUESTED, ROUTED, LEAVING, LEFT_CLOSED).state.closing == {}
    given(Payment, REQUESTED, ROUTED, LEAVING, VOIDING).when(Payment.voided, "").then(
        fact(Voided, order=ORDER, transaction="")
    )


def test_only_the_gateway_in_charge_is_heard() -> None:
    given(Payment, REQUESTED, ROUTED).when(Payment.speaks, "one").nothing()
    given(Payment, REQUESTED, ROUTED).when(Payment.speaks, "two").refused("two is not in charge, but one")
    given(Payment, REQUESTED, ROUTED, LEFT_OPEN).when(Payment.speaks, "one").refused("not in charge, but no gateway")


def test_a_payment_has_a_limit_of_captures() -> None:
    payment = Payment(ORDER, ADA, eur(OPERATIONS_MAX + 1), "tok_visa")
    payment.authorised("txn_1", WEEK)
    for n in range(OPERATIONS_MAX):
        payment.capture(UUID(int=n), eur(1))
    with pytest.raises(Refused, match=f"at most {OPERATIONS_MAX} captures"):
        payment.capture(C, eur(1))


def test_a_refund_that_was_done_fails_after_all() -> None:
    bounced = given(Payment, *TAKEN, ASKED_BACK, GAVE_BACK)
    bounced.when(Payment.refund_reversed, R, eur(200), "closed", "Closed.").then(BOUNCED)
    after = given(Payment, *TAKEN, ASKED_BACK, GAVE_BACK, BOUNCED)
    assert (after.state.returned, after.state.refundable) == (0, 600)
    for call in (Payment.refund_reversed, Payment.refund_failed):
        after.when(call, R, eur(200), "closed", "Closed.").nothing()
    after.when(Payment.refunded, R, eur(200)).nothing()  # an earlier word, late
    after.when(Payment.refund, R, eur(200)).refused("has failed: try again under a new id")
    after.when(Payment.refund, R2, eur(600)).then(fact(RefundRequested, order=ORDER, refund=R2, amount=eur(600)))
    bounced.when(Payment.refund_failed, R, eur(200), "closed", "Closed.").refused(
        "failed, but refund"
    )  # never accepted
    bounced.when(Payment.refund_reversed, R, eur(201), "closed", "Closed.").refused("is of 200 EUR")
    given(Payment, *TAKEN).when(Payment.refund_reversed, R, eur(200), "closed", "Closed.").refused("was not asked for")


def test_a_capture_that_was_done_fails_after_all() -> None:
    given(Payment, *TAKEN).when(Payment.capture_reversed, C, eur(600), "no", "No.").then(TAKEN_BACK)
    after = given(Payment, *TAKEN, TAKEN_BACK)
    assert (after.state.taken, after.state.held) == (0, 1000)
    after.when(Payment.capture_reversed, C, eur(600), "no", "No.").nothing()
    after.when(Payment.captured, C, eur(600)).nothing()  # an earlier word, late
    after.when(Payment.capture, C, eur(600)).refused("has failed: try again under a new id")
    after.when(Payment.capture, C2, eur(1000)).then(fact(CaptureRequested, order=ORDER, capture=C2, amount=eur(1000)))
    after.when(Payment.expire, WEEK).then(fact(VoidRequested, order=ORDER, cause="expired"))
    after.when(Payment.refund, R, eur(1)).refused("more than the 0 left")
    payment = given(Payment, *TAKEN).state
    payment.capture_reversed(C, eur(600), "no", "No.")
    [event] = payment.collect_events()
    assert [one.due for one in event.timers() if isinstance(one, Timer)] == [WEEK], "what is held again runs out"
    voided = given(Payment, *TAKEN, VOIDING, VOIDED)
    nothing_held = fact(CaptureReversed, **{**TAKEN_BACK.fields, "expires_at": None})
    voided.when(Payment.capture_reversed, C, eur(600), "no", "No.").then(nothing_held)


@pytest.mark.parametrize("first", ["done", "failed"])
def test_what_fails_once_it_was_accepted_is_one_state_whichever_is_heard_first(first: str) -> None:
    asked = (*TAKEN, fact(CaptureRequested, order=ORDER, capture=C2, amount=eur(100)), ASKED_BACK)
    payment = given(Payment, *asked).state
    said: list[tuple[Any, ...]] = [
        (payment.captured, C2, eur(100)), (payment.refunded, R, eur(200)),
        (payment.capture_reversed, C2, eur(100), "no", "No."), (payment.refund_reversed, R, eur(200), "no", "No."),
    ]  # fmt: skip
    for call, *args in said if first == "done" else said[::-1]:
        call(*args)
        payment.check()
    kinds = [type(one).__name__ for one in payment.collect_events()]
    gone = ["Captured", "Refunded", "CaptureReversed", "RefundReversed"]
    assert kinds == (gone if first == "done" else ["RefundFailed", "CaptureFailed"])
    assert {payment.captures[C2].state, payment.refunds[R].state} == {"reversed"}
    assert (payment.taken, payment.returned, payment.waiting) == (600, 0, {})


def test_what_is_not_captured_any_more_is_nobodys() -> None:
    """Of a refund that fails when its capture has, too, nobody is owed anything: the customer has not paid."""
    said = "a capture was reversed, and 0 are left of what is captured; Closed."
    late = given(Payment, *TAKEN, ASKED_BACK, TAKEN_BACK)
    late.state.check()
    late.when(Payment.refund_failed, R, eur(200), "closed", "Closed.").then(
        fact(RefundFailed, **{**NOT_BACK.fields, "code": NOT_COVERED, "reason": said})
    )
    both = given(Payment, *TAKEN, ASKED_BACK, GAVE_BACK, TAKEN_BACK)
    both.state.check()
    assert (both.state.taken, both.state.returned, both.state.refundable) == (0, 200, 0)
    both.when(Payment.refund_reversed, R, eur(200), "closed", "Closed.").then(
        fact(RefundReversed, **{**BOUNCED.fields, "code": NOT_COVERED, "reason": said})
    )
    both.when(Payment.give_back, R2, eur(1)).then(
        fact(RefundRequested, order=ORDER, refund=R2, amount=eur(1)),
        fact(
            RefundFailed, order=ORDER, refund=R2, amount=eur(1), code=NOT_COVERED, accepted=False,
            reason="1 EUR is more than the 0 EUR left of what is captured",
        ),
    )  # fmt: skip


def state(payment: Payment) -> dict[str, Any]:
    """All that is known of it, whatever the way there."""
    return {name: value for name, value in vars(payment).items() if not name.startswith("_")}


def apply(payment: Payment, facts: list[Told]) -> None:
    for one in facts:
        one.call(payment, *one.args)
    payment.check()


class Machine(RuleBasedStateMachine):
    """Any commands in any order, at the real test gateway's book. What it says arrives late, often and in any order."""

    ids = st.sampled_from([UUID(int=n) for n in range(4)])

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.book = Book(Path(":memory:"), "http://gateway")
        with under_id(UUID(int=99)):  # Hypothesis wants the same again
            self.payment = Payment(ORDER, ADA, eur(100), "tok_visa")
        self.said: list[list[Told]] = []
        self.ended: dict[object, str] = {}

    @rule(token=st.sampled_from(["tok_visa", "tok_visa", "tok_requiresAction", "tok_declined", "tok_captureFails"]))
    def authorise(self, token: str) -> None:
        token = self.book.token(str(self.payment.id)) or token
        self.hear(self.book.authorise(str(self.payment.id), 100, "EUR", token, self.now))

    @rule(capture=ids, amount=st.integers(-1, 101))
    def capture(self, capture: UUID, amount: int) -> None:
        accepted(self.payment.capture, capture, eur(amount))

    @rule(refund=ids, amount=st.integers(-1, 101))
    def refund(self, refund: UUID, amount: int) -> None:
        accepted(self.payment.refund, refund, eur(amount))

    @rule()
    def void(self) -> None:
        accepted(self.payment.void)

    @rule()
    def run_out(self) -> None:
        accepted(self.payment.expire, datetime.now(UTC) + timedelta(days=30))

    @precondition(lambda self: self.payment.waiting)
    @rule(data=st.data())
    def the_gateway_does(self, data: st.DataObject) -> None:
        intent = data.draw(st.sampled_from(sorted(self.payment.waiting)))
        name, payment = str(self.payment.id), self.payment
        if intent in payment.captures:
            self.hear(self.book.capture(name, str(intent), payment.captures[intent].amount, self.now))
        elif intent in payment.refunds:
            self.hear(self.book.refund(name, str(intent), payment.refunds[intent].amount, self.now))
        elif intent == payment.void_id:
            found = self.book.void(name, self.now)
            self.hear(found)
            if found["status"] == "captured":
                self.said.append([told(Payment.voided, found["transaction"])])
        else:
            self.authorise("tok_visa")

    @rule(operation=ids)
    def the_gateway_takes_it_back(self, operation: UUID) -> None:
        with suppress(Wrong):
            self.hear(self.book.reverse(str(operation), self.now))

    @rule(yes=st.booleans())
    def the_customer_decides(self, yes: bool) -> None:
        found = self.book.find(str(self.payment.id))
        if found and found["action_url"]:
            self.hear(self.book.decide(found["action_url"].rpartition("/")[2], yes, self.now))

    @rule()
    def the_gateway_lets_it_run_out(self) -> None:
        self.book.expire(self.now + 10**9)
        if found := self.book.find(str(self.payment.id)):
            self.hear(found)

    @precondition(lambda self: self.said)
    @rule(data=st.data())
    def a_webhook_arrives(self, data: st.DataObject) -> None:
        self.listen(data.draw(st.sampled_from(self.said)))

    def hear(self, document: dict[str, Any]) -> None:
        self.said.append(facts_of(document))

    def listen(self, facts: list[Told]) -> None:
        before = self.payment.version
        try:
            apply(self.payment, facts)
        except (Refused, Invalid) as no:
            raise AssertionError("a gateway that is at one with itself is never contradicted") from no
        for event in self.payment.collect_events():
            if isinstance(event, Authorised | Declined | Voided):
                assert self.ended.setdefault(type(event), "once") == "once" and before < self.payment.version
                self.ended[type(event)] = "already"
            for name in ("capture", "refund"):
                if isinstance(event, Captured | CaptureFailed | Refunded | RefundFailed) and hasattr(event, name):
                    assert getattr(event, name) not in self.ended, "each intent has one outcome"
                    self.ended[getattr(event, name)] = event.type
                if isinstance(event, CaptureReversed | RefundReversed) and hasattr(event, name):
                    before_it = "payment.Captured" if name == "capture" else "payment.Refunded"
                    assert self.ended.get(getattr(event, name)) == before_it, "reversed once, and only what was done"
                    self.ended[getattr(event, name)] = event.type

    @invariant()
    def money_is_conserved(self) -> None:
        self.payment.check()
        found = self.book.find(str(self.payment.id))
        captured, refunded = (found["captured"], found["refunded"]) if found else (0, 0)
        assert refunded >= 0 and 0 <= captured <= 100
        reversals = [one for one in found["operations"] if one["status"] == "reversed"] if found else []
        assert refunded <= captured or reversals
        if not reversals:
            assert self.payment.taken <= captured and self.payment.returned <= refunded  # what we know has happened

    def teardown(self) -> None:
        for facts in [*self.said, *self.said[::-1]]:
            self.listen(facts)
        found = self.book.find(str(self.payment.id))
        if found is not None:
            assert (self.payment.taken, self.payment.returned) == (found["captured"], found["refunded"])
            assert self.payment.held == (100 - found["captured"] if found["status"] == "authorised" else 0)
        self.book.close()


TestPayment = Machine.TestCase


@for_all(st.data())
def test_any_order_and_any_number_of_webhooks_give_one_state(data: st.DataObject) -> None:
    book, payment = Book(Path(":memory:"), "http://gateway"), Payment(ORDER, ADA, eur(100), "tok_visa")
    name = str(payment.id)
    token = data.draw(
        st.sampled_from(["tok_visa", "tok_visa", "tok_requiresAction", "tok_captureFails", "tok_refundFails"])
    )
    said = [book.authorise(name, 100, "EUR", token, 0)]
    if action := said[0]["action_url"]:
        said.append(book.decide(action.rpartition("/")[2], data.draw(st.booleans()), 1))
    if data.draw(st.booleans()):  # the outcome is known before there are captures; a void may come earlier
        apply(payment, facts_of(said[-1]))
        for n in range(data.draw(st.integers(0, 3))):
            capture, amount = UUID(int=n), data.draw(st.integers(1, 60))
            if accepted(payment.capture, capture, eur(amount)):
                said.append(book.capture(name, str(capture), amount, 2))
        apply(payment, facts_of(said[-1]) if data.draw(st.booleans()) else [])
        for n in range(data.draw(st.integers(0, 3))):
            refund, amount = UUID(int=10 + n), data.draw(st.integers(1, 30))
            if accepted(payment.refund, refund, eur(amount)):
                said.append(book.refund(name, str(refund), amount, 3))
        for operation in data.draw(st.lists(st.sampled_from([UUID(int=0), UUID(int=1), UUID(int=10)]), max_size=2)):
            with suppress(Wrong):
                said.append(book.reverse(str(operation), 3))
    if accepted(payment.void):
        said.append(book.void(name, 4))
    payment.collect_events()

    def after(order: list[dict[str, Any]]) -> dict[str, Any]:
        copy = given(Payment, REQUESTED).state
        copy.__dict__.update({**vars(payment), "captures": dict(payment.captures), "refunds": dict(payment.refunds)})
        copy.__dict__.update({"waiting": dict(payment.waiting), "_pending_events": []})
        for document in order:
            apply(copy, facts_of(document))
        return state(copy)

    shuffled = data.draw(st.permutations(said + data.draw(st.lists(st.sampled_from(said), max_size=4))))
    assert after(shuffled) == after(said)
    book.close()
