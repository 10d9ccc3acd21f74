"""Figures over everybody, from ClickHouse. Amounts are minor units without tax; cancelled orders are taken off again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from aggregates.kernel import NotFound, clock
from api.kernel import Caller, ClickHouse, Currency, Moment, app_of, caller
from api.kernel.route import Route

ROWS_MAX = 1_000
SPAN = timedelta(hours=24)  # of a list by minute that names no beginning
# Times that ClickHouse can be asked about: nothing happened before, and its DateTime64 ends in 2299.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2299, 1, 1, tzinfo=UTC)

router = APIRouter(prefix="/analytics", tags=["analytics"], route_class=Route)
Analyst = Annotated[Caller, caller("analytics:analyse")]
Since = Annotated[Moment | None, Query(description="From this time on; a day before `until` unless given.")]
Until = Annotated[
    Moment | None, Query(description="Before this time; now unless given.", examples=["2026-11-02T00:00:00Z"])
]
Of = Annotated[Currency | None, Query(description="Only this currency.")]
Most = Annotated[int, Query(ge=1, le=ROWS_MAX, description="Rows at the most.", examples=[100])]


class Figures(BaseModel):
    currency: str = Field(examples=["GBP"])
    revenue: int = Field(examples=[129900])
    tax: int = Field(examples=[25980])
    quantity: int = Field(examples=[42])
    orders: int = Field(description="Orders that these sales, cancellations and refunds are of.", examples=[17])


class MinuteFigures(Figures):
    minute: datetime


class ProductFigures(Figures):
    product: UUID
    title: str = Field(examples=["A mug"])


class MinuteRevenue(BaseModel):
    items: list[MinuteFigures]


class ProductRevenue(BaseModel):
    items: list[ProductFigures]


class TypeCount(BaseModel):
    type: str = Field(examples=["order.Placed"])
    events: int = Field(examples=[1042])
    first: datetime
    last: datetime


class TypeCounts(BaseModel):
    items: list[TypeCount]


@router.get("/revenue/minutes", summary="Revenue by minute, oldest first", responses={404: {}})
async def by_minute(
    by: Analyst,
    clickhouse: ClickHouse,
    since: Since = None,
    until: Until = None,
    currency: Of = None,
    limit: Most = 100,
) -> MinuteRevenue:
    rows = await _rows(
        clickhouse,
        """SELECT toStartOfMinute(at) AS minute, currency, sum(revenue) AS revenue, sum(tax) AS tax, sum(quantity) AS quantity,
        uniqExact(order) AS orders FROM sales FINAL WHERE at >= {since:DateTime64(6, 'UTC')} AND at < {until:DateTime64(6, 'UTC')}
        AND ({currency:String} = '' OR currency = {currency:String}) GROUP BY minute, currency ORDER BY minute, currency LIMIT {limit:UInt32}""",
        _between(since, until) | {"currency": currency or "", "limit": limit},
    )
    return MinuteRevenue(items=[MinuteFigures(**row) for row in rows])


@router.get("/revenue/products", summary="Revenue by product, most first")
async def by_product(by: Analyst, clickhouse: ClickHouse, currency: Of = None, limit: Most = 100) -> ProductRevenue:
    rows = await _rows(
        clickhouse,
        """SELECT * FROM revenue_by_product WHERE {currency:String} = '' OR currency = {currency:String}
        ORDER BY revenue DESC, product LIMIT {limit:UInt32}""",
        {"currency": currency or "", "limit": limit},
    )
    return ProductRevenue(items=[ProductFigures(**row) for row in rows])


@router.get("/events", summary="How many events of each type there are")
async def event_types(by: Analyst, clickhouse: ClickHouse) -> TypeCounts:
    rows = await _rows(
        clickhouse,
        "SELECT type, count() AS events, min(at) AS first, max(at) AS last FROM events FINAL GROUP BY type ORDER BY type",
        {},
    )
    return TypeCounts(items=[TypeCount(**row) for row in rows])


def _between(since: datetime | None, until: datetime | None) -> dict[str, Any]:
    end = until or clock.now()
    if since is not None and since >= end:
        raise NotFound("`since` is not before `until`: there is no time between them")
    end = min(max(end, EARLIEST + SPAN), LATEST)
    return {"since": min(max(since or end - SPAN, EARLIEST), LATEST), "until": end}


async def _rows(clickhouse: ClickHouse, query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    client = await clickhouse()
    found = await client.query(query, parameters=parameters, tz_mode="aware")
    return list(found.named_results())


app = app_of(router)
