"""Ledger: whatever is moved, all accounts sum to zero, and nothing is moved that is not there."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import OUTSIDE, Ledger, Refused
from aggregates.kernel.ledger import ACCOUNT_MAX


def moved(ledger: Ledger, amount: int, source: str, target: str) -> Ledger:
    ledger.may_move(amount, source, target)
    ledger.move(amount, source, target)
    return ledger


def test_what_is_there_can_be_moved_to_the_last_unit_and_no_more() -> None:
    ledger = moved(Ledger("EUR"), 60, OUTSIDE, "mine")
    with pytest.raises(Refused, match="61 is more than the 60 mine"):
        ledger.may_move(61, "mine", "yours")
    moved(ledger, 60, "mine", "yours")
    assert ledger.balances == {OUTSIDE: -60, "yours": 60}
    with pytest.raises(Refused, match="1 is more than the 0 mine"):
        ledger.may_move(1, "mine", "yours")


@pytest.mark.parametrize("amount", [0, -1])
def test_at_least_one_unit_is_moved(amount: int) -> None:
    with pytest.raises(Refused, match="at least 1"):
        Ledger("EUR").may_move(amount, OUTSIDE, "mine")


def test_an_account_has_a_limit_and_the_outside_has_none() -> None:
    ledger = moved(Ledger("EUR", outside=(OUTSIDE, "peers")), ACCOUNT_MAX, OUTSIDE, "mine")
    with pytest.raises(Refused, match="the 0 that still fit"):
        ledger.may_move(1, OUTSIDE, "mine")
    moved(moved(ledger, ACCOUNT_MAX, "mine", "peers"), ACCOUNT_MAX, OUTSIDE, "mine")
    assert moved(ledger, ACCOUNT_MAX, "mine", "peers")["peers"] == 2 * ACCOUNT_MAX


def test_accounts_at_zero_take_no_room() -> None:
    ledger = moved(moved(Ledger("SKU"), 5, OUTSIDE, "bin 1"), 5, "bin 1", "bin 2")
    assert "bin 1" not in ledger.balances
    assert moved(ledger, 5, "bin 2", OUTSIDE).balances == {}


@pytest.mark.parametrize("balances", [{"mine": 1}, {"mine": -1, OUTSIDE: 1}, {"mine": 2, OUTSIDE: -1}])
def test_a_ledger_that_does_not_sum_to_zero_or_owes_is_a_bug(balances: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Ledger("EUR", balances=balances).check()


class Machine(RuleBasedStateMachine):
    """Against a plain model: how much each account has."""

    accounts = st.sampled_from([OUTSIDE, "a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger("EUR")
        self.has = dict.fromkeys([OUTSIDE, "a", "b", "c"], 0)

    @rule(amount=st.integers(-1, 9), source=accounts, goal=accounts)
    def move(self, amount: int, source: str, goal: str) -> None:
        if source == goal:
            return
        there = amount > 0 and (source == OUTSIDE or amount <= self.has[source])
        try:
            self.ledger.may_move(amount, source, goal)
        except Refused:
            assert not there
            return
        assert there
        self.ledger.move(amount, source, goal)
        self.has[source] -= amount
        self.has[goal] += amount

    @invariant()
    def each_has_what_it_should(self) -> None:
        self.ledger.check()
        assert {account: self.ledger[account] for account in self.has} == self.has


TestLedger = Machine.TestCase
