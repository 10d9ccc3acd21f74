"""Who pays how much: all of it, nobody more than there is, prepaid value first."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregates.kernel import Refused
from aggregates.kernel.money import Tender
from aggregates.kernel.tender import BACK, VOUCHERS_MAX, back, shared, tendered

CARD, WALLET = UUID(int=1), UUID(int=2)
amounts = st.integers(0, 50)


def voucher(number: int, amount: int) -> Tender:
    return Tender("voucher", UUID(int=100 + number), amount)


@pytest.mark.parametrize(
    ("offers", "paid"),
    [
        ([], {"card": 100}),
        ([voucher(0, 99)], {"voucher": 99, "card": 1}),
        ([voucher(0, 100)], {"voucher": 100}),
        ([voucher(0, 101)], {"voucher": 100}),
        ([Tender("wallet", WALLET, 100)], {"wallet": 100}),
        ([Tender("wallet", WALLET, 0)], {"card": 100}),
        ([Tender("wallet", WALLET, 70), voucher(0, 60)], {"voucher": 60, "wallet": 40}),
        ([Tender("wallet", WALLET, 30), voucher(0, 60)], {"voucher": 60, "wallet": 30, "card": 10}),
    ],
)
def test_vouchers_pay_first_then_the_wallet_then_a_card(offers: list[Tender], paid: dict[str, int]) -> None:
    assert {one.kind: one.amount for one in shared(100, offers, CARD)} == paid


def test_vouchers_pay_in_the_order_in_which_they_are_named() -> None:
    named = [voucher(2, 30), voucher(0, 30), voucher(1, 30), voucher(3, 30)]
    assert shared(70, named, CARD) == (voucher(2, 30), voucher(0, 30), voucher(1, 10))


def test_too_many_or_the_same_are_refused() -> None:
    most = [voucher(n, 1) for n in range(VOUCHERS_MAX)]
    tenders = shared(100, [*most, Tender("wallet", WALLET, 1)], CARD)
    assert tendered(tenders, CARD, 100) == tenders
    with pytest.raises(Refused, match="at most 10 vouchers"):
        shared(100, [*most, voucher(99, 1)], CARD)
    with pytest.raises(Refused, match="a voucher is named twice"):
        shared(100, [voucher(1, 1), voucher(1, 2)], CARD)
    with pytest.raises(Refused, match="one wallet"):
        shared(100, [Tender("wallet", WALLET, 1), Tender("wallet", CARD, 1)], CARD)


@given(total=st.integers(1, 200), vouchers=st.lists(amounts, max_size=5), wallet=st.none() | amounts)
def test_all_is_paid_and_nobody_pays_more_than_there_is(total: int, vouchers: list[int], wallet: int | None) -> None:
    offers = [voucher(n, amount) for n, amount in enumerate(vouchers)]
    offers += [] if wallet is None else [Tender("wallet", WALLET, wallet)]
    tenders = shared(total, offers, CARD)
    assert sum(one.amount for one in tenders) == total
    paid = {one.source: one.amount for one in tenders}
    has = {one.source: one.amount for one in offers}
    assert all(0 < paid[source] <= has.get(source, total) for source in paid)
    order = [*has, CARD]
    last = max(order.index(source) for source in paid)
    assert all(paid.get(source, 0) == has[source] for source in order[:last]), (
        "one pays while there is an earlier one's"
    )
    by_card = CARD if CARD in paid else None
    assert tendered(tenders, by_card, total) == tenders
    returned = back(tenders, total)
    assert sorted(returned, key=str) == sorted(tenders, key=str)
    assert [BACK[one.kind] for one in returned] == sorted(BACK[one.kind] for one in returned)
