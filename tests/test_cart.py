"""Cart's rules: what is in it, who may change it when, and that it ends once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.cart import (
    KEPT,
    Abandoned,
    Added,
    Cart,
    Changed,
    CheckedOut,
    Expired,
    GivenUp,
    Line,
    Locked,
    Merged,
    Opened,
    Removed,
    Repriced,
    Returned,
    Unlocked,
)
from aggregates.kernel.money import LINES_MAX, QUANTITY_MAX
from tests.kernel import Fact, accepted, fact, given

ADA, PRODUCT, CHECKOUT, OTHER = (UUID(int=n) for n in range(1, 5))
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = NOW + KEPT
OPENED = fact(Opened, owner=ADA, secret="", currency="EUR", expires_at=LATER)
GUEST = fact(Opened, owner=None, secret="5e", currency="EUR", expires_at=LATER)
LOCKED = fact(Locked, checkout=CHECKOUT)
UNLOCKED = fact(Unlocked, checkout=CHECKOUT, reopened=True, expires_at=LATER)
CLOSED = fact(Unlocked, checkout=CHECKOUT, reopened=False, expires_at=LATER)


def added(sku: str, quantity: int, unit_price: int = 550) -> Fact:
    return fact(
        Added, sku=sku, product=PRODUCT, title="A mug", quantity=quantity, unit_price=unit_price, expires_at=LATER
    )


def test_adding_again_adds_up_at_the_newer_price() -> None:
    past = given(Cart, OPENED, added("mug", 2))
    past.when(Cart.add, "mug", PRODUCT, "A mug", 3, 500, NOW).then(added("mug", 3, 500))
    cart = past.state
    cart.add("mug", PRODUCT, "A mug", 3, 500, NOW)
    assert cart.lines == {"mug": Line("mug", PRODUCT, "A mug", 5, 500)}


def test_a_line_has_a_limit() -> None:
    past = given(Cart, OPENED, added("mug", QUANTITY_MAX - 1))
    past.when(Cart.add, "mug", PRODUCT, "A mug", 1, 550, NOW).then(added("mug", 1))
    past.when(Cart.add, "mug", PRODUCT, "A mug", 2, 550, NOW).refused(f"at most {QUANTITY_MAX} pieces")
    past.when(Cart.add, "mug", PRODUCT, "A mug", 0, 550, NOW).refused("at least one piece")


def test_a_cart_has_a_limit_of_lines() -> None:
    past = given(Cart, OPENED, *(added(f"sku-{n}", 1) for n in range(LINES_MAX)))
    past.when(Cart.add, "one-more", PRODUCT, "A mug", 1, 550, NOW).refused(f"at most {LINES_MAX} lines")
    past.when(Cart.add, "sku-0", PRODUCT, "A mug", 1, 550, NOW).then(added("sku-0", 1))


def test_changing_a_quantity_to_none_removes_the_line() -> None:
    past = given(Cart, OPENED, added("mug", 2))
    past.when(Cart.change, "mug", 3, NOW).then(fact(Changed, sku="mug", quantity=3, expires_at=LATER))
    past.when(Cart.change, "mug", 2, NOW).nothing()
    past.when(Cart.change, "mug", 0, NOW).then(fact(Removed, sku="mug", expires_at=LATER))
    past.when(Cart.change, "pot", 1, NOW).refused("pot is not in the cart")
    past.when(Cart.remove, "pot", NOW).nothing()


def test_a_new_price_is_accepted_once() -> None:
    past = given(Cart, OPENED, added("mug", 2))
    past.when(Cart.reprice, "mug", 600, NOW).then(fact(Repriced, sku="mug", unit_price=600, expires_at=LATER))
    past.when(Cart.reprice, "mug", 550, NOW).nothing()


def test_a_guests_cart_needs_a_secret_and_a_customers_none() -> None:
    given(Cart).opening(Cart.take, None, "EUR", NOW).refused("has a secret")
    given(Cart).opening(Cart.take, ADA, "EUR", NOW, "5e").refused("has a secret")
    given(Cart).opening(Cart.take, ADA, "EUR", NOW).then(OPENED)
    given(Cart).opening(Cart.take, ADA, "XXX", NOW).refused("not a currency")


def test_merging_takes_the_larger_quantity_and_the_guests_price() -> None:
    lines = [Line("mug", PRODUCT, "A mug", 3, 500), Line("pot", PRODUCT, "A pot", 1, 1999)]
    merged = fact(Merged, guest=OTHER, lines=tuple(lines), expires_at=LATER)
    past = given(Cart, OPENED, added("mug", 2))
    past.when(Cart.merge, OTHER, "EUR", lines, NOW).then(merged)
    past.when(Cart.merge, OTHER, "USD", lines, NOW).refused("does not merge into one in EUR")
    given(Cart, OPENED, merged).when(Cart.merge, OTHER, "EUR", lines, NOW).nothing()


def test_a_guests_cart_is_given_up_with_just_what_was_taken_over() -> None:
    past = given(Cart, GUEST, added("mug", 2))
    past.when(Cart.give_up, OTHER, 2).then(fact(GivenUp, into=OTHER))
    past.when(Cart.give_up, OTHER, 1).refused("changed meanwhile")
    given(Cart, GUEST, added("mug", 2), fact(GivenUp, into=OTHER)).when(Cart.give_up, OTHER, 2).nothing()
    given(Cart, OPENED, added("mug", 2)).when(Cart.give_up, OTHER, 2).refused("only a guest's cart")


def test_a_checkout_locks_just_what_it_has_priced() -> None:
    past = given(Cart, OPENED, added("mug", 2))
    past.when(Cart.lock, CHECKOUT, 2).then(LOCKED)
    past.when(Cart.lock, CHECKOUT, 1).refused("changed since the checkout began")
    given(Cart, OPENED).when(Cart.lock, CHECKOUT, 1).refused("the cart is empty")


def test_a_locked_cart_is_not_changed() -> None:
    past = given(Cart, OPENED, added("mug", 2), LOCKED)
    past.when(Cart.add, "mug", PRODUCT, "A mug", 1, 550, NOW).refused("being checked out")
    past.when(Cart.change, "mug", 1, NOW).refused("being checked out")
    past.when(Cart.remove, "mug", NOW).refused("being checked out")
    past.when(Cart.lock, OTHER, 2).refused("being checked out")
    past.when(Cart.lock, CHECKOUT, 2).nothing()


def test_a_lock_that_comes_after_its_unlock_finds_the_checkout_closed() -> None:
    given(Cart, OPENED, added("mug", 2)).when(Cart.unlock, CHECKOUT, NOW).then(CLOSED)
    given(Cart, OPENED, added("mug", 2), CLOSED).when(Cart.lock, CHECKOUT, 2).refused("has given the cart back")
    given(Cart, OPENED, added("mug", 2), LOCKED).when(Cart.unlock, CHECKOUT, NOW).then(UNLOCKED)
    given(Cart, OPENED, added("mug", 2), LOCKED, UNLOCKED).when(Cart.unlock, CHECKOUT, NOW).nothing()
    given(Cart, OPENED, added("mug", 2), LOCKED, UNLOCKED).when(Cart.lock, OTHER, 2).then(fact(Locked, checkout=OTHER))


def test_unlocking_for_another_checkout_leaves_the_lock() -> None:
    assert (
        given(
            Cart, OPENED, added("mug", 2), LOCKED, fact(Unlocked, checkout=OTHER, reopened=False, expires_at=LATER)
        ).state.status
        == "locked"
    )


def test_a_cart_is_checked_out_once_by_the_checkout_that_locked_it() -> None:
    done = fact(CheckedOut, checkout=CHECKOUT)
    past = given(Cart, OPENED, added("mug", 2), LOCKED)
    past.when(Cart.check_out, CHECKOUT).then(done)
    past.when(Cart.check_out, OTHER).refused("not locked by checkout")
    over = given(Cart, OPENED, added("mug", 2), LOCKED, done)
    over.when(Cart.check_out, CHECKOUT).nothing()
    over.when(Cart.unlock, CHECKOUT, NOW).nothing()
    over.when(Cart.add, "mug", PRODUCT, "A mug", 1, 550, NOW).refused("the cart is checked out")


def test_a_cart_is_abandoned_once_and_only_if_nobody_touched_it_since() -> None:
    past = given(Cart, OPENED, added("mug", 2))
    since = past.state.touched_at
    abandoned = fact(Abandoned, untouched_since=since)
    past.when(Cart.abandon, since).then(abandoned)
    past.when(Cart.abandon, since - timedelta(microseconds=1)).nothing()
    given(Cart, OPENED, added("mug", 2), abandoned).when(Cart.abandon, since).nothing()
    given(Cart, OPENED).when(Cart.abandon, since + KEPT).nothing()


def test_a_shopper_who_comes_back_withdraws_it() -> None:
    past = given(Cart, OPENED, added("mug", 2), fact(Abandoned, untouched_since=NOW))
    past.when(Cart.add, "mug", PRODUCT, "A mug", 1, 550, NOW).then(fact(Returned), added("mug", 1))
    past.when(Cart.lock, CHECKOUT, 2).then(fact(Returned), LOCKED)


def test_a_cart_expires_only_when_nobody_touched_it_for_long() -> None:
    past = given(Cart, OPENED, added("mug", 2))
    touched = past.state.touched_at
    past.when(Cart.expire, touched + KEPT).then(fact(Expired))
    past.when(Cart.expire, touched + KEPT - timedelta(microseconds=1)).nothing()
    given(Cart, OPENED, added("mug", 2), LOCKED).when(Cart.expire, touched + KEPT * 2).nothing()


class Machine(RuleBasedStateMachine):
    """Any commands in any order: the lines are what was asked for, and nothing changes under a lock or after the end."""

    skus = st.sampled_from(["mug", "pot", "cup"])
    checkouts = st.sampled_from([CHECKOUT, OTHER])

    def __init__(self) -> None:
        super().__init__()
        self.cart = Cart.take(ADA, "EUR", NOW)
        self.lines: dict[str, int] = {}
        self.ended = False

    @property
    def changeable(self) -> bool:
        return self.cart.status == "open"

    @rule(sku=skus, quantity=st.integers(-1, QUANTITY_MAX))
    def add(self, sku: str, quantity: int) -> None:
        able = self.changeable and quantity > 0 and self.lines.get(sku, 0) + quantity <= QUANTITY_MAX
        assert accepted(self.cart.add, sku, PRODUCT, "A mug", quantity, 550, NOW) == able
        if able:
            self.lines[sku] = self.lines.get(sku, 0) + quantity

    @rule(sku=skus, quantity=st.integers(-1, 9))
    def change(self, sku: str, quantity: int) -> None:
        if accepted(self.cart.change, sku, quantity, NOW) and sku in self.lines:
            self.lines[sku] = quantity
            if not quantity:
                del self.lines[sku]

    @rule(checkout=checkouts, stale=st.booleans())
    def lock(self, checkout: UUID, stale: bool) -> None:
        accepted(self.cart.lock, checkout, self.cart.contents - stale)

    @rule(checkout=checkouts)
    def unlock(self, checkout: UUID) -> None:
        accepted(self.cart.unlock, checkout, NOW)

    @rule(checkout=checkouts)
    def check_out(self, checkout: UUID) -> None:
        able = self.cart.checkout == checkout
        assert accepted(self.cart.check_out, checkout) == able

    @rule(late=st.booleans())
    def abandon(self, late: bool) -> None:
        accepted(self.cart.abandon, self.cart.touched_at - timedelta(seconds=late))

    @rule(long=st.booleans())
    def expire(self, long: bool) -> None:
        accepted(self.cart.expire, self.cart.touched_at + (KEPT if long else timedelta()))

    @invariant()
    def the_lines_are_what_was_asked_for(self) -> None:
        self.cart.check()
        self.ended = self.ended or self.cart.status in ("checked out", "expired")
        if self.ended:
            assert self.cart.status in ("checked out", "expired") and not self.cart.lines
        else:
            assert {line.sku: line.quantity for line in self.cart.lines.values()} == self.lines


TestCart = Machine.TestCase
