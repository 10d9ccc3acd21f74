"""Figures from ClickHouse over HTTP: what was sold and taken back, by minute and by product, and what happened how often."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

import api.analytics
from aggregates.kernel import clock
from api.kernel import app_of
from infra.token import make_keys, token
from tests.api.conftest import Market
from tests.api.kernel.conftest import serving
from tests.api.test_order import ADDRESS
from tests.kernel.topic import settings_of

MUG, TEE = (str(uuid4()) for _ in range(2))
NOON = datetime(2031, 5, 4, 12, 0, 30, tzinfo=UTC)


class Clock:
    """The time that events are stamped with."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def hands() -> Iterator[Clock]:
    mine = Clock()
    before = clock.set_clock(mine)
    try:
        yield mine
    finally:
        clock.set_clock(before)


def sold(mall: Market, currency: str, mugs: int, tees: int, pay: bool = True) -> str:
    """An order of so many mugs at 10.00 with 19 % tax and tees at 5.00 without, with 5.00 of shipping."""
    till = mall.of("service")
    lines = [
        {"sku": "MUG", "product": MUG, "title": "Mug", "quantity": mugs, "unit_price": 1000, "tax_bp": 1900},
        {"sku": "TEE", "product": TEE, "title": "Tee", "quantity": tees, "unit_price": 500},
    ]
    order = {"customer": str(uuid4()), "currency": currency, "lines": lines, "address": ADDRESS, "shipping": 500}
    made = mall.post("/orders", order, till, 201)
    if pay:
        paying = {"payment": str(uuid4()), "amount": 1190 * mugs + 500 * tees + 500}
        mall.post(f"/orders/{made['id']}/pay", paying, till)
    return str(made["id"])


def figures(mall: Market, path: str, **query: Any) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = mall.read(f"/analytics/{path}", mall.of("analyst"), **query)["items"]
    return items


def test_revenue_counts_what_was_paid_and_takes_off_what_was_cancelled(mall: Market, hands: Clock) -> None:
    sold(mall, "NOK", 2, 1)
    hands.at += timedelta(minutes=1)
    late = sold(mall, "NOK", 1, 3)
    sold(mall, "NOK", 7, 7, pay=False)  # no sale
    sold(mall, "SEK", 1, 1)
    hands.at += timedelta(minutes=1)
    mall.post(f"/orders/{late}/cancel", {"reason": "ordered twice"}, mall.of("admin"))
    unpaid = sold(mall, "NOK", 1, 1, pay=False)
    mall.post(f"/orders/{unpaid}/cancel", {"reason": "never paid"}, mall.of("admin"))  # was no sale
    hands.at += timedelta(minutes=1)
    mall.live.catch_up()
    minutes = figures(mall, "revenue/minutes", currency="NOK")
    assert [
        (datetime.fromisoformat(one["minute"]), one["revenue"], one["tax"], one["quantity"], one["orders"])
        for one in minutes
    ] == [
        (NOON.replace(second=0), 2500, 380, 3, 1),
        (NOON.replace(second=0) + timedelta(minutes=1), 2500, 190, 4, 1),
        (NOON.replace(second=0) + timedelta(minutes=2), -2500, -190, -4, 1),
    ]
    products = figures(mall, "revenue/products", currency="NOK")
    assert products == [
        {"product": MUG, "title": "Mug", "currency": "NOK", "revenue": 2000, "tax": 380, "quantity": 2, "orders": 2},
        {"product": TEE, "title": "Tee", "currency": "NOK", "revenue": 500, "tax": 0, "quantity": 1, "orders": 2},
    ]
    assert {one["currency"] for one in figures(mall, "revenue/products")} >= {"NOK", "SEK"}
    assert len(figures(mall, "revenue/products", currency="NOK", limit=1)) == 1
    assert figures(mall, "revenue/products", currency="CLP") == []


def test_a_span_has_its_beginning_and_not_its_end(mall: Market, hands: Clock) -> None:
    hands.at = NOON.replace(year=2032, second=0)
    sold(mall, "DKK", 1, 1)
    mall.live.catch_up()
    at, microsecond = hands.at, timedelta(microseconds=1)
    hands.at += timedelta(hours=1)

    def minutes(**span: datetime) -> int:
        texts = {name: time.isoformat() for name, time in span.items()}
        return len(figures(mall, "revenue/minutes", currency="DKK", **texts))

    assert minutes(since=at, until=at + microsecond) == 1
    assert minutes(since=at - timedelta(hours=1), until=at) == 0
    assert minutes(since=at + microsecond) == 0
    assert minutes(since=at) == 1
    assert minutes(until=at + timedelta(hours=24)) == 1
    assert minutes(until=at + timedelta(hours=24) + microsecond) == 0
    assert minutes() == 1
    hands.at = at + timedelta(hours=25)
    assert minutes() == 0  # a day is shown unless more is asked for


@pytest.mark.parametrize(
    "span",
    [
        {"since": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59Z"},
        {"until": "0001-01-01T00:00:00Z"},
        {"since": "0001-01-01T00:00:00Z", "until": "0240-12-22T11:02:03-05:57"},
        {"since": "9999-12-31T23:59:58Z", "until": "9999-12-31T23:59:59Z"},
        {"since": "1969-07-20T20:17:40Z", "until": "1969-07-20T20:17:41Z"},
    ],
)
def test_any_span_has_an_answer(mall: Market, span: dict[str, str]) -> None:
    figures(mall, "revenue/minutes", currency="CLP", **span)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"since": "2026-11-01T00:00:00Z", "until": "2026-11-01T00:00:00Z"}, 404),
        ({"since": "2026-11-02T00:00:00Z", "until": "2026-11-01T00:00:00Z"}, 404),
        ({"since": "2999-01-01T00:00:00Z"}, 404),
        ({"since": "2026-11-01"}, 422),
        ({"since": "2026-11-01T00:00:00"}, 422),
        ({"until": "2026-11-31T00:00:00Z"}, 422),
        ({"until": "noon"}, 422),
        ({"currency": "GOLD"}, 422),
        ({"limit": 0}, 422),
        ({"limit": 1001}, 422),
    ],
)
def test_a_span_that_is_none_is_told_so(mall: Market, query: dict[str, Any], status: int) -> None:
    mall.read("/analytics/revenue/minutes", mall.of("analyst"), status, **query)


def test_events_are_counted_by_type(mall: Market) -> None:
    def counts() -> dict[str, dict[str, Any]]:
        mall.live.catch_up()
        return {one["type"]: one for one in figures(mall, "events")}

    before = counts()
    sold(mall, "EUR", 1, 1)
    after = counts()
    for kind in ("order.Placed", "order.Confirmed", "order.Paid"):
        assert after[kind]["events"] == before.get(kind, {"events": 0})["events"] + 1
        assert after[kind]["first"] <= after[kind]["last"]


@pytest.mark.parametrize("path", ["revenue/minutes", "revenue/products", "events"])
def test_figures_are_for_analysts(mall: Market, path: str) -> None:
    for role, status in (("customer", 403), ("seller", 403), ("service", 403), ("analyst", 200), ("admin", 200)):
        mall.read(f"/analytics/{path}", mall.of(role), status)
    mall.read(f"/analytics/{path}", {}, 401)


@pytest.mark.parametrize("there", [True, False])
def test_without_its_tables_or_without_clickhouse_it_says_when_to_come_again(
    there: bool, postgres: str, redis: str, clickhouse: str, tmp_path: Path
) -> None:
    settings = settings_of(postgres, redis, tmp_path)  # its ClickHouse is one where nothing listens
    settings = settings.model_copy(update={"clickhouse": clickhouse}) if there else settings
    make_keys(settings)
    by = {"Authorization": f"Bearer {token(settings, 'analyst', uuid4())}"}
    with serving(app_of(api.analytics.router, settings=settings)) as url, httpx.Client(base_url=url) as http:
        for path in ("revenue/minutes", "revenue/products", "events"):
            answer = http.get(f"/analytics/{path}", headers=by)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:titan:problem:unavailable"), answer.text
            assert int(answer.headers["retry-after"]) > 0
