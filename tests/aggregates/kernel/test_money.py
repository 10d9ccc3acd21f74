"""Prices to the minor unit, whatever the lines."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregates.kernel import Refused
from aggregates.kernel.money import AMOUNT_MAX, Line, allocate, price, share_of

lines = st.lists(
    st.builds(
        Line,
        sku=st.just("a"),
        product=st.just(UUID(int=1)),
        title=st.just("A"),
        quantity=st.integers(1, 50),
        unit_price=st.integers(0, 10_000_00),
        discount=st.just(0),
        tax_bp=st.sampled_from([0, 700, 1900, 2000, 10_000]),
        tax=st.just(0),
        location=st.just("main"),
    ),
    min_size=1,
    max_size=20,
)


@given(lines, st.floats(0, 1), st.integers(0, 5_000), st.sampled_from([0, 1900]))
def test_totals_are_the_sums_of_the_lines(lines: list[Line], part: float, shipping: int, shipping_bp: int) -> None:
    discount = int(sum(line.gross for line in lines) * part)
    priced, totals = price(lines, discount, shipping, shipping_bp)
    assert sum(line.discount for line in priced) == discount == totals.discount
    assert all(0 <= line.discount <= line.gross for line in priced)
    assert totals.total == sum(line.net + line.tax for line in priced) + shipping + share_of(shipping, shipping_bp)
    assert price(priced, discount, shipping, shipping_bp) == (priced, totals)


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1).filter(any))
def test_shares_sum_to_the_amount_and_are_within_one_of_exact(amount: int, weights: list[int]) -> None:
    shares = allocate(amount, weights)
    assert sum(shares) == amount
    assert all(
        abs(share * sum(weights) - amount * weight) < sum(weights)
        for share, weight in zip(shares, weights, strict=True)
    )


def test_a_half_is_rounded_away_from_zero() -> None:
    assert [share_of(amount, 5_000) for amount in (1, 3, -1, -3, 2)] == [1, 2, -1, -2, 1]
    assert [share_of(10, bp) for bp in (1_499, 1_500, 1_501)] == [1, 2, 2]


def test_a_purchase_has_limits() -> None:
    one = Line("a", UUID(int=1), "A", 1, AMOUNT_MAX, 0, 0, 0, "main")
    assert price([one])[1].total == AMOUNT_MAX
    with pytest.raises(Refused, match="comes to"):
        price([one], shipping=1)
    with pytest.raises(Refused, match="a discount is 0 to"):
        price([one], discount=AMOUNT_MAX + 1)
    with pytest.raises(Refused, match="1 to 200 lines"):
        price([one] * 201)
