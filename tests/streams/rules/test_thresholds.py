"""Each rule exactly at its limits: the last that is fine, the first that is not."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from aggregates.kernel import Event, Money, Sealed
from aggregates.order import Order, Placed
from aggregates.payment import Declined, Payment, Requested
from schemas import Address
from streams.rules.card_testing import SMALL_MINOR_UNITS, TRIES_MAX, card_testing
from streams.rules.order_velocity import BY_ACCOUNT_MAX, TO_ADDRESS_MAX, address_velocity, order_velocity
from streams.rules.unusual_amount import ORDERS_MIN, TIMES_LARGEST, TIMES_MEDIAN, YEAR_S, unusual_amount

NOON = datetime(2031, 1, 1, 12, tzinfo=UTC)
ADA, BOB = uuid4(), uuid4()


def happened(kind: type[Event], at_s: float, id: UUID | None = None, **fields: Any) -> Any:
    """An event so many seconds after noon."""
    makes: dict[type[Event], str] = {Requested: Payment.TOPIC, Placed: Order.TOPIC}
    first = makes.get(kind)
    envelope: dict[str, Any] = {"originator_topic": first} if first else {}
    at = NOON + timedelta(seconds=at_s)
    return kind(originator_id=id or uuid4(), originator_version=1, timestamp=at, **envelope, **fields)


# Card testing.


def requested(
    at_s: float, amount: int = SMALL_MINOR_UNITS, card: str = "tok_1", id: UUID | None = None, by: UUID = ADA
) -> Event:
    money = Money(amount, "EUR")
    asked = {"order": uuid4(), "customer": by, "amount": money, "method": card, "gateway": "test", "country": None}
    made: Event = happened(Requested, at_s, id, **asked)
    return made


def declined(at_s: float, id: UUID | None = None, by: UUID | None = ADA) -> Event:
    made: Event = happened(Declined, at_s, id, order=uuid4(), code="stolen", reason="No.", customer=by)
    return made


def test_so_many_small_payments_are_fine_and_one_more_is_card_testing() -> None:
    tries = [requested(n, card=f"tok_{n}") for n in range(TRIES_MAX + 1)]
    assert card_testing.over(tries[:-1]) == []
    [hit] = card_testing.over(tries)
    assert (hit.subject, hit.score) == (ADA, 60)
    assert hit.why == "6 payments within 10 minutes of at most 300 minor units or declined (0), with 6 different cards"


def test_a_payment_that_is_not_small_is_no_try_until_it_is_declined() -> None:
    large, ids = SMALL_MINOR_UNITS + 1, [uuid4() for _ in range(TRIES_MAX + 1)]
    asked = [requested(n, large, id=id) for n, id in enumerate(ids)]
    assert card_testing.over(asked) == []
    refused = [declined(100 + n, id) for n, id in enumerate(ids)]
    assert card_testing.over([*asked, *refused[:-1]]) == []
    assert len(card_testing.over([*asked, *refused])) == 1


def test_a_small_payment_that_is_declined_is_one_try() -> None:
    ids = [uuid4() for _ in range(TRIES_MAX)]
    both = [event for n, id in enumerate(ids) for event in (requested(n, id=id), declined(n + 0.5, id))]
    assert card_testing.over(both) == []


def test_tries_of_others_and_of_ten_minutes_ago_do_not_count() -> None:
    tries = [requested(n) for n in range(TRIES_MAX)]
    assert card_testing.over([*tries, requested(600)]) == []  # the first one is out by now
    assert len(card_testing.over([*tries, requested(599.999999)])) == 1
    assert card_testing.over([*tries, requested(10, by=BOB)]) == []
    assert card_testing.over([*tries, declined(10, by=None)]) == []  # an event from before it named its customer


# Order velocity.


def sealed(text: str) -> Sealed:
    return Sealed(f"sealed:1:{text}")


def placed(
    at_s: float, total: int = 1000, by: UUID = ADA, street: str = "1 High Street", currency: str = "EUR"
) -> Event:
    address = Address(sealed("Ada"), sealed(street), sealed("London"), sealed("SW1Y 4JH"), "GB")
    made: Event = happened(
        Placed, at_s, number="T", customer=by, currency=currency, lines=(), subtotal=total, discount=0, shipping=0, tax=0,
        total=total, address=address,
    )  # fmt: skip
    return made


def test_so_many_orders_of_an_account_within_an_hour_are_fine_and_one_more_is_not() -> None:
    orders = [placed(n, 100 + n) for n in range(BY_ACCOUNT_MAX + 1)]
    assert order_velocity.over(orders[:-1]) == []
    [hit] = order_velocity.over(orders)
    assert (hit.subject, hit.why) == (ADA, "6 orders of one account within an hour, over 615 EUR")
    assert order_velocity.over([*orders[:-1], placed(3600)]) == []
    assert len(order_velocity.over([*orders[:-1], placed(3599.999999)])) == 1
    assert order_velocity.over([*orders[:-1], placed(9, by=BOB)]) == []


def test_several_accounts_order_to_one_address_however_it_is_written() -> None:
    written = ("1 High Street", "1, high street", "1 HIGH STREET.", "１ High  Street")
    orders = [placed(n, by=uuid4(), street=written[n % 4]) for n in range(TO_ADDRESS_MAX + 1)]
    assert address_velocity.over(orders[:-1]) == []
    [hit] = address_velocity.over(orders)
    assert hit.why == "9 orders of 9 accounts to one address within an hour, over 9000 EUR"
    assert hit.score == 90
    assert address_velocity.over([*orders[:-1], placed(9, street="2 High Street")]) == []
    assert "1000 EUR + 1000 GBP" in worth_of([placed(0), placed(1, currency="GBP")])


def worth_of(orders: Iterable[Event]) -> str:
    few = [placed(-n, 0) for n in range(1, TO_ADDRESS_MAX)]
    return address_velocity.over([*few, *orders])[-1].why


# Unusual amounts.

MONTH_S = 30 * 86_400


def test_an_order_far_above_the_habit_of_an_account_that_has_one() -> None:
    usual = [placed(n * MONTH_S, 1000 + n) for n in range(ORDERS_MIN)]  # the median is 1002, the largest 1004
    limit = TIMES_MEDIAN * 1002
    assert unusual_amount.over([*usual, placed(6 * MONTH_S, limit)]) == []
    [hit] = unusual_amount.over([*usual, placed(6 * MONTH_S, limit + 1)])
    assert hit.why == (
        "an order of 10021 EUR, 10 times the median of the 5 orders of the year before (1002), of which the largest was of 1004"
    )
    assert (hit.subject, hit.score) == (ADA, 50)


def test_it_takes_so_many_orders_before_there_is_a_habit() -> None:
    usual = [placed(n * MONTH_S) for n in range(ORDERS_MIN)]
    assert unusual_amount.over([*usual[1:], placed(6 * MONTH_S, 10**6)]) == []
    assert len(unusual_amount.over([*usual, placed(6 * MONTH_S, 10**6)])) == 1
    foreign = [*usual[1:], placed(5, currency="GBP"), placed(6 * MONTH_S, 10**6)]
    assert unusual_amount.over(foreign) == []
    assert unusual_amount.over([*usual, placed(YEAR_S, 10**6)]) == []  # the first one is a year old


def test_who_has_had_a_large_order_before_may_have_another() -> None:
    usual = [*(placed(n * MONTH_S) for n in range(ORDERS_MIN)), placed(150 * 86_400, 30_000)]
    assert len(unusual_amount.over([*usual, placed(6 * MONTH_S, TIMES_LARGEST * 30_000 + 1)])) == 1 + 1
    assert len(unusual_amount.over([*usual, placed(6 * MONTH_S, TIMES_LARGEST * 30_000)])) == 1
