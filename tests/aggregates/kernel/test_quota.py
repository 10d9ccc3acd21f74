"""Quota: limits in several scopes are reached exactly and never passed, and each reservation ends once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import Quota, Refused
from aggregates.kernel.quota import CLOSED_KEPT

NOW = datetime(2026, 11, 24, tzinfo=UTC)
A, B, C = (UUID(int=n) for n in range(3))


def reserved(quota: Quota, cause: UUID, **amounts: int) -> Quota:
    assert quota.may_reserve(cause, amounts)
    quota.reserve(cause, amounts)
    return quota


def test_a_limit_is_reached_exactly() -> None:
    quota = reserved(Quota(limits={"stock": 5}), A, stock=3)
    assert quota.free("stock") == 2
    with pytest.raises(Refused, match="3 of stock is more than the 2 left"):
        quota.may_reserve(B, {"stock": 3})
    assert reserved(quota, B, stock=2).free("stock") == 0


def test_a_common_limit_and_a_cap_a_customer_hold_at_once() -> None:
    quota = Quota(limits={"customer:ada": 1, "total": 2})
    reserved(quota, A, **{"customer:ada": 1, "total": 1})
    with pytest.raises(Refused, match="customer:ada"):
        quota.may_reserve(B, {"customer:ada": 1, "total": 1})
    reserved(quota, B, **{"customer:bob": 1, "total": 1})  # no limit of his own
    with pytest.raises(Refused, match="total"):
        quota.may_reserve(C, {"customer:cyd": 1, "total": 1})


def test_asked_again_nothing_is_counted_twice_even_when_all_is_gone() -> None:
    quota = reserved(Quota(limits={"stock": 1}), A, stock=1)
    assert not quota.may_reserve(A, {"stock": 1})
    with pytest.raises(Refused, match="other amounts"):
        quota.may_reserve(A, {"stock": 2})
    assert quota.may_confirm(A)
    quota.confirm(A, NOW)
    assert not quota.may_confirm(A) and not quota.may_reserve(A, {"stock": 1})
    assert quota.free("stock") == 0


def test_released_before_it_was_reserved_it_stays_closed() -> None:
    quota = Quota(limits={"stock": 1})
    assert quota.may_release(A)
    quota.release(A, NOW)
    assert not quota.may_release(A)
    with pytest.raises(Refused, match="already released"):
        quota.may_reserve(A, {"stock": 1})
    with pytest.raises(Refused, match="already released"):
        quota.may_confirm(A)


def test_what_is_confirmed_is_not_released() -> None:
    quota = reserved(Quota(limits={"stock": 1}), A, stock=1)
    quota.confirm(A, NOW)
    with pytest.raises(Refused, match="already confirmed"):
        quota.may_release(A)
    assert not quota.may_expire(A)


def test_a_lowered_limit_takes_nothing_back() -> None:
    quota = reserved(Quota(limits={"stock": 5}), A, stock=4)
    quota.limit("stock", 2)
    assert quota.free("stock") == -2
    assert quota.may_confirm(A)
    with pytest.raises(Refused):
        quota.may_reserve(B, {"stock": 1})
    quota.limit("stock", None)
    assert quota.free("stock") is None


def test_endings_are_remembered_for_a_while_and_no_longer() -> None:
    quota = Quota()
    for n in range(5):
        quota.release(UUID(int=n), NOW + n * CLOSED_KEPT / 2)
    assert list(quota.closed) == [UUID(int=n) for n in (2, 3, 4)]
    quota.release(UUID(int=9), NOW + timedelta(days=365))
    assert list(quota.closed) == [UUID(int=9)]


class Machine(RuleBasedStateMachine):
    """Against a plain model: what each cause holds or has used."""

    causes = st.sampled_from([A, B, C])
    amounts = st.fixed_dictionaries({"cap": st.integers(0, 3), "total": st.integers(0, 6)})

    def __init__(self) -> None:
        super().__init__()
        self.limits = {"cap": 3, "total": 6}
        self.quota = Quota(limits=dict(self.limits))
        self.held: dict[UUID, dict[str, int]] = {}
        self.used: dict[UUID, dict[str, int]] = {}
        self.over: set[UUID] = set()

    def taken(self, scope: str) -> int:
        return sum(one.get(scope, 0) for one in (*self.held.values(), *self.used.values()))

    @rule(cause=causes, amounts=amounts)
    def reserve(self, cause: UUID, amounts: dict[str, int]) -> None:
        fits = all(n > 0 and self.taken(scope) + n <= self.limits[scope] for scope, n in amounts.items())
        new = cause not in self.held and cause not in self.used and cause not in self.over
        try:
            accepted = self.quota.may_reserve(cause, amounts)
        except Refused:
            assert not (new and fits)
            assert cause not in self.used
            return
        assert accepted == new
        if new:
            assert fits
            self.quota.reserve(cause, amounts)
            self.held[cause] = amounts

    @rule(cause=causes)
    def confirm(self, cause: UUID) -> None:
        try:
            accepted = self.quota.may_confirm(cause)
        except Refused:
            assert cause not in self.held and cause not in self.used
            return
        assert accepted == (cause in self.held)
        if accepted:
            self.quota.confirm(cause, NOW)
            self.used[cause] = self.held.pop(cause)

    @rule(cause=causes, late=st.booleans())
    def end(self, cause: UUID, late: bool) -> None:
        if late:
            if not self.quota.may_expire(cause):
                return
        else:
            try:
                if not self.quota.may_release(cause):
                    return
            except Refused:
                assert cause in self.used
                return
        self.quota.release(cause, NOW, "expired" if late else "released")
        self.held.pop(cause, None)
        self.over.add(cause)

    @invariant()
    def the_sums_are_right(self) -> None:
        self.quota.check()
        for scope, limit in self.limits.items():
            assert self.quota.free(scope) == limit - self.taken(scope) >= 0


TestQuota = Machine.TestCase
