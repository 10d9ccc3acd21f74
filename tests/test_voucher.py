from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import Money, NotFound, Take, Timer
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.voucher import (
    RESERVATIONS_MAX,
    Expired,
    Issued,
    Lapsed,
    Redeemed,
    Refunded,
    Released,
    Reserved,
    Transferred,
    Voided,
    Voucher,
)
from tests.kernel import SAID, Fact, accepted, fact, given

ADA, BOB, R, R2, BATCH = (UUID(int=n) for n in range(1, 6))
NOW = datetime.now(UTC)
SOON, YEAR = NOW + timedelta(minutes=15), NOW + timedelta(days=365)
FIFTY = Money(50, "EUR")


def eur(amount: int) -> Money:
    return Money(amount, "EUR")


def issued(**more: object) -> Fact:
    fields = {"kind": "gift", "value": FIFTY, "code": "hash", "hint": "61VV", "holder": None, "batch": None}
    return fact(Issued, **{**fields, "expires_at": YEAR, **more})


CARD = issued()
CREDIT = issued(kind="credit", code="", hint="", holder=ADA)
RESERVED = fact(Reserved, reservation=R, amount=30, balance=20, expires_at=SOON)
REDEEMED = fact(Redeemed, reservation=R, amount=30, balance=20)
RELEASED = fact(Released, reservation=R, amount=30, balance=50)
LAPSED = fact(Lapsed, reservation=R, amount=30, balance=50)
VOID = fact(Voided, reason="", because=SAID, amount=50)
OVER = fact(Expired, amount=50)
BACK = fact(Refunded, refund=R2, amount=20, balance=40)


def test_a_gift_card_is_issued_with_the_hash_of_its_code() -> None:
    given(Voucher).opening(Voucher.gift, FIFTY, "hash", "61VV", YEAR, NOW).then(CARD)
    given(Voucher).opening(Voucher.gift, FIFTY, "hash", "61VV", None, NOW, BATCH).then(
        issued(expires_at=None, batch=BATCH)
    )
    for value in (0, -1, AMOUNT_MAX + 1):
        given(Voucher).opening(Voucher.gift, eur(value), "hash", "61VV", YEAR, NOW).refused("between 1")
    given(Voucher).opening(Voucher.gift, Money(1, "EURO"), "hash", "61VV", YEAR, NOW).refused("EURO")
    given(Voucher).opening(Voucher.gift, FIFTY, "hash", "61VV", NOW, NOW).refused("in the future")


def test_store_credit_is_one_persons_and_has_no_code() -> None:
    given(Voucher).opening(Voucher.credit, FIFTY, ADA, YEAR, NOW).then(CREDIT)


def test_a_code_is_taken_and_the_expiry_timed_at_issue() -> None:
    [card] = Voucher.gift(FIFTY, "hash", "61VV", YEAR, NOW).collect_events()
    assert list(card.claims()) == [Take("code", "hash")]
    assert list(card.timers()) == [Timer("expire", YEAR, Voucher.expire)]
    [credit] = Voucher.credit(FIFTY, ADA, None, NOW).collect_events()
    assert [*credit.claims(), *credit.timers()] == []


def test_a_part_is_reserved_to_the_last_cent_and_no_more() -> None:
    given(Voucher, CARD).when(Voucher.reserve, R, eur(30), ADA, SOON, NOW).then(RESERVED)
    held = given(Voucher, CARD, RESERVED)
    held.when(Voucher.reserve, R2, eur(20), ADA, SOON, NOW).then(
        fact(Reserved, reservation=R2, amount=20, balance=0, expires_at=SOON)
    )
    held.when(Voucher.reserve, R2, eur(21), ADA, SOON, NOW).refused("21 of value is more than the 20 left")
    held.when(Voucher.reserve, R2, Money(1, "USD"), ADA, SOON, NOW).refused("in EUR, not USD")
    held.when(Voucher.reserve, R2, eur(0), ADA, SOON, NOW).refused("between 1")


def test_the_same_reservation_again_does_nothing() -> None:
    given(Voucher, CARD, RESERVED).when(Voucher.reserve, R, eur(30), ADA, SOON, NOW).nothing()
    given(Voucher, CARD, RESERVED, REDEEMED).when(Voucher.reserve, R, eur(30), ADA, SOON, NOW).nothing()
    given(Voucher, CARD, RESERVED).when(Voucher.reserve, R, eur(29), ADA, SOON, NOW).refused("other amounts")
    for then, why in ((RELEASED, "released"), (LAPSED, "expired")):
        given(Voucher, CARD, RESERVED, then).when(Voucher.reserve, R, eur(30), ADA, SOON, NOW).refused(f"already {why}")


def test_a_reservation_ends_once() -> None:
    held = given(Voucher, CARD, RESERVED)
    held.when(Voucher.confirm, R).then(REDEEMED)
    held.when(Voucher.release, R).then(RELEASED)
    held.when(Voucher.lapse, str(R)).then(LAPSED)
    given(Voucher, CARD, RESERVED, REDEEMED).when(Voucher.confirm, R).nothing()
    given(Voucher, CARD, RESERVED, REDEEMED).when(Voucher.release, R).refused("already confirmed")
    given(Voucher, CARD, RESERVED, RELEASED).when(Voucher.confirm, R).refused("already released")
    for end in (REDEEMED, RELEASED, LAPSED):
        given(Voucher, CARD, RESERVED, end).when(Voucher.lapse, str(R)).nothing()
    closed = fact(Released, reservation=R, amount=0, balance=50)
    given(Voucher, CARD).when(Voucher.release, R).then(closed)
    given(Voucher, CARD, closed).when(Voucher.reserve, R, eur(30), ADA, SOON, NOW).refused("already released")


def test_a_part_is_spent_at_once() -> None:
    soon = fact(Reserved, reservation=R, amount=30, balance=20, expires_at=NOW + timedelta(minutes=1))
    given(Voucher, CARD).when(Voucher.redeem, R, eur(30), ADA, NOW).then(soon, REDEEMED)
    given(Voucher, CARD, soon, REDEEMED).when(Voucher.redeem, R, eur(30), ADA, NOW).nothing()
    given(Voucher, CARD, soon, REDEEMED).when(Voucher.redeem, R2, eur(21), ADA, NOW).refused("the 20 left")


def test_credit_is_spent_by_its_holder_alone() -> None:
    given(Voucher, CREDIT).when(Voucher.reserve, R, eur(30), ADA, SOON, NOW).then(RESERVED)
    with pytest.raises(NotFound):
        given(Voucher, CREDIT).state.reserve(R, eur(30), BOB, SOON, NOW)


def test_who_claims_a_card_has_it_alone() -> None:
    mine = fact(Transferred, holder=ADA)
    given(Voucher, CARD).when(Voucher.claim, ADA, NOW).then(mine)
    given(Voucher, CARD, mine).when(Voucher.claim, ADA, NOW).nothing()
    claimed = given(Voucher, CARD, mine).state
    assert claimed.usable(ADA, NOW) and not claimed.usable(BOB, NOW)
    for voucher, at in (
        (claimed, NOW),
        (given(Voucher, CARD, VOID).state, NOW),
        (given(Voucher, CARD, OVER).state, NOW),
        (given(Voucher, CARD).state, YEAR),
    ):
        with pytest.raises(NotFound):
            voucher.claim(BOB, at)


def test_a_voucher_passes_from_holder_to_holder() -> None:
    given(Voucher, CREDIT).when(Voucher.transfer, BOB).then(fact(Transferred, holder=BOB))
    given(Voucher, CREDIT).when(Voucher.transfer, ADA).nothing()
    given(Voucher, CARD).when(Voucher.transfer, BOB).refused("by its code, or claimed first")
    given(Voucher, CREDIT, VOID).when(Voucher.transfer, BOB).refused("is void")


def test_what_is_over_is_spent_no_more() -> None:
    given(Voucher, CARD).when(Voucher.void, SAID).then(VOID)
    given(Voucher, CARD).when(Voucher.expire).then(OVER)
    for end, why in ((VOID, "void"), (OVER, "expired")):
        ended = given(Voucher, CARD, end)
        assert ended.state.balance == 0
        ended.when(Voucher.reserve, R, eur(1), ADA, SOON, NOW).refused(f"is {why}")
        ended.when(Voucher.expire).nothing()
    given(Voucher, CARD, VOID).when(Voucher.void, SAID).nothing()
    given(Voucher, CARD, OVER).when(Voucher.void, SAID).refused("is expired")
    # The timer may be late: the time counts.
    given(Voucher, CARD).when(Voucher.reserve, R, eur(30), ADA, SOON, YEAR).refused("expired")
    just = YEAR - timedelta(microseconds=1)
    given(Voucher, CARD).when(Voucher.reserve, R, eur(30), ADA, SOON, just).then(RESERVED)


def test_what_was_reserved_in_time_can_still_be_redeemed_but_is_not_freed() -> None:
    for end in (fact(Voided, reason="", because=SAID, amount=20), fact(Expired, amount=20)):
        given(Voucher, CARD, RESERVED, end).when(Voucher.confirm, R).then(
            fact(Redeemed, reservation=R, amount=30, balance=0)
        )
        given(Voucher, CARD, RESERVED, end).when(Voucher.release, R).then(
            fact(Released, reservation=R, amount=30, balance=0)
        )


def test_what_is_reserved_without_a_time_stays_until_it_is_settled() -> None:
    forever = fact(Reserved, reservation=R, amount=30, balance=20, expires_at=None)
    given(Voucher, CARD).when(Voucher.reserve, R, Money(30, "EUR"), BOB, None, NOW).then(forever)
    kept = given(Voucher, CARD, forever)
    assert list(kept.events[-1].timers()) == []
    kept.when(Voucher.confirm, R).then(REDEEMED)
    kept.when(Voucher.release, R).then(RELEASED)


def test_what_was_spent_is_put_back_once_and_no_more_of_it() -> None:
    spent = given(Voucher, CARD, RESERVED, REDEEMED)
    spent.when(Voucher.refund, R2, eur(20), ADA, NOW).then(BACK)
    spent.when(Voucher.refund, R2, eur(31), ADA, NOW).refused("31 of value is not between 1 and the 30 used")
    spent.when(Voucher.refund, R2, eur(30), ADA, NOW).then(fact(Refunded, refund=R2, amount=30, balance=50))
    spent.when(Voucher.refund, R2, Money(1, "USD"), ADA, NOW).refused("in EUR, not USD")
    given(Voucher, CARD, RESERVED).when(Voucher.refund, R2, eur(1), ADA, NOW).refused("the 0 used")
    again = given(Voucher, CARD, RESERVED, REDEEMED, BACK)
    again.when(Voucher.refund, R2, eur(20), ADA, NOW).nothing()
    again.when(Voucher.refund, R2, eur(10), ADA, NOW).refused("is of 20, not 10")
    again.when(Voucher.refund, R, eur(11), ADA, NOW).refused("the 10 used")


def test_what_has_ended_or_is_anothers_takes_nothing_back() -> None:
    for end, why in ((VOID, "is void"), (OVER, "is expired"), (fact(Transferred, holder=BOB), "another person's")):
        past = given(Voucher, CARD, RESERVED, REDEEMED, end)
        past.when(Voucher.refund, R2, eur(20), ADA, NOW).refused(why)
    given(Voucher, CARD, RESERVED, REDEEMED).when(Voucher.refund, R2, eur(20), ADA, YEAR).refused("expired")
    late = given(Voucher, CARD, RESERVED, REDEEMED, BACK, OVER)  # asked again
    late.when(Voucher.refund, R2, eur(20), ADA, NOW).nothing()


def test_so_many_are_reserved_at_a_time_and_no_more() -> None:
    voucher = Voucher.gift(eur(10_000), "hash", "61VV", None, NOW)
    for _ in range(RESERVATIONS_MAX):
        assert accepted(voucher.reserve, uuid4(), eur(1), ADA, SOON, NOW)
    assert not accepted(voucher.reserve, uuid4(), eur(1), ADA, SOON, NOW)


class Machine(RuleBasedStateMachine):
    """Any commands in any order: what is spent and reserved never exceeds the value, and reaches it."""

    reservations = st.sampled_from([UUID(int=n) for n in range(4)])
    amounts = st.integers(-1, 60)

    def __init__(self) -> None:
        super().__init__()
        self.voucher = Voucher.gift(FIFTY, "hash", "61VV", None, NOW)
        self.held: dict[UUID, int] = {}
        self.spent: dict[UUID, int] = {}
        self.ended: set[UUID] = set()
        self.back: dict[UUID, int] = {}
        self.over = False

    def free(self) -> int:
        return 50 - sum(self.held.values()) - sum(self.spent.values()) + sum(self.back.values())

    @rule(r=reservations, amount=amounts)
    def reserve(self, r: UUID, amount: int) -> None:
        known = r in self.held or r in self.spent or r in self.ended
        done = accepted(self.voucher.reserve, r, eur(amount), ADA, SOON, NOW)
        if not known:
            assert done == (0 < amount <= self.free() and not self.over)
            if done:
                self.held[r] = amount

    @rule(r=reservations, amount=amounts)
    def redeem(self, r: UUID, amount: int) -> None:
        known = r in self.held or r in self.spent or r in self.ended
        if not known:
            done = accepted(self.voucher.redeem, r, eur(amount), ADA, NOW)
            assert done == (0 < amount <= self.free() and not self.over)
            if done:
                self.spent[r] = amount

    @rule(r=reservations)
    def confirm(self, r: UUID) -> None:
        assert accepted(self.voucher.confirm, r) == (r in self.held or r in self.spent)
        if r in self.held:
            self.spent[r] = self.held.pop(r)

    @rule(r=reservations, late=st.booleans())
    def free_up(self, r: UUID, late: bool) -> None:
        done = accepted(self.voucher.lapse, str(r)) if late else accepted(self.voucher.release, r)
        assert done == (late or r not in self.spent)
        if r in self.held or (not late and r not in self.spent):
            self.held.pop(r, 0)
            self.ended.add(r)

    @rule(r=reservations, amount=amounts)
    def refund(self, r: UUID, amount: int) -> None:
        done = accepted(self.voucher.refund, r, eur(amount), ADA, NOW)
        if r in self.back:
            assert done == (amount == self.back[r])
        else:
            used = sum(self.spent.values()) - sum(self.back.values())
            assert done == (0 < amount <= used and not self.over)
            if done:
                self.back[r] = amount

    @rule(how=st.sampled_from(["void", "expire", "", "", ""]))
    def end(self, how: str) -> None:
        if how == "void":
            self.over |= accepted(self.voucher.void, SAID)
        elif how == "expire":
            assert accepted(self.voucher.expire)
            self.over = True

    @invariant()
    def the_value_is_kept(self) -> None:
        self.voucher.check()
        assert self.voucher.balance == (0 if self.over else self.free())
        assert 0 <= sum(self.back.values()) <= sum(self.spent.values())
        assert 0 <= self.free() <= 50


TestVoucher = Machine.TestCase
