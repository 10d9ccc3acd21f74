"""Stock over HTTP: sellers count it, anybody sees what is available, and checkouts reserve it for a while."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from aggregates.inventory import (
    LOCATION_CHARS_MAX,
    MAIN,
    NOTE_CHARS_MAX,
    PIECES_MAX,
    QUANTITY_MAX,
    Stock,
    stock_id,
)
from aggregates.kernel import NotFound, Refused, clock
from api.kernel import Body, Caller, Commands, Receipt, Sku, Views, app_of, caller, service
from api.kernel.positions import passed, row_made
from api.kernel.reads import After
from api.kernel.stores import TheHost
from api.kernel.types import ONE_LINE
from projections.inventory import reservations, shelves, stocks
from projections.kernel.gate import Gate
from projections.product import products

LINES_MAX = 200  # stocks of one reservation
SKUS_MAX = 100  # of one question
TTL_S, TTL_S_MAX = 900, 3_600
router = service("stocks", Stock, stocks, owner="seller", filters=("sku", "location"), order="sku")
Seller = Annotated[Caller, caller("stocks:sell")]
Machine = Annotated[Caller, caller("stocks:settle")]

Location = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LOCATION_CHARS_MAX,
        pattern=ONE_LINE,
        description="Where it is kept.",
        examples=[MAIN],
    ),
]
Note = Annotated[str, Field(min_length=1, max_length=NOTE_CHARS_MAX, pattern=ONE_LINE, examples=["delivery note 4711"])]
Pieces = Annotated[int, Field(ge=1, le=QUANTITY_MAX, description="Pieces.", examples=[2])]


class Opening(Body):
    sku: Sku
    location: Location = MAIN


class Receiving(Body):
    quantity: Annotated[int, Field(ge=1, le=PIECES_MAX, description="Pieces.", examples=[100])]
    reference: Note


class Adjusting(Body):
    delta: Annotated[
        int, Field(ge=-PIECES_MAX, le=PIECES_MAX, description="Pieces; negative for fewer.", examples=[-1])
    ]
    reason: Note


class Place(Body):
    """A SKU at a location."""

    sku: Sku
    location: Location = MAIN


class Wanted(Place):
    quantity: Pieces


class Reserving(Body):
    reservation: Annotated[UUID, Field(description="The cause: an order's id, say.")]
    lines: Annotated[list[Wanted], Field(min_length=1, max_length=LINES_MAX, description="All of them or none.")]
    ttl_s: Annotated[int, Field(ge=1, le=TTL_S_MAX, description="Seconds until it expires.")] = TTL_S


class Ending(Body):
    lines: Annotated[list[Place], Field(min_length=1, max_length=LINES_MAX, description="What was reserved.")]


class Available(BaseModel):
    sku: str
    location: str
    available: int = Field(description="Pieces that can be reserved.", examples=[12])


class Availability(BaseModel):
    items: list[Available]


class Held(BaseModel):
    """`status`: held, committed, released or expired."""

    stock: UUID
    quantity: int
    status: str
    expires_at: datetime | None
    ended_at: datetime | None


class Reservation(BaseModel):
    reservation: UUID
    items: list[Held]


@router.get("/availability", summary="What is available of these SKUs, by location")
async def availability(
    host: TheHost,
    views: Views,
    sku: Annotated[list[Sku], Query(min_length=1, max_length=SKUS_MAX, description="SKUs; unknown ones are left out.")],
    after: After = None,
) -> Availability:
    if after:
        await passed(host, stocks, after)
    page = await stocks.page(views, where={"sku": sku}, limit=500)
    return Availability(items=[Available(**{name: row[name] for name in Available.model_fields}) for row in page.rows])


@router.post("", status_code=201, summary="Keep a SKU in stock at a location")
async def open_stock(body: Opening, by: Seller, host: TheHost, commands: Commands) -> Receipt:
    seller = await _seller(host, body.sku)
    if not by.may("stocks:any") and seller != by.id:
        raise Refused(f"{body.sku} is no SKU of yours")
    return await commands.open(Stock.open, body.sku, body.location, seller)


@router.post("/{id}/receive", summary="Pieces came in")
async def receive(id: UUID, body: Receiving, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Stock.receive, body.quantity, body.reference)


@router.post("/{id}/adjust", summary="A count found more or fewer")
async def adjust(id: UUID, body: Adjusting, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Stock.adjust, body.delta, body.reason)


@router.post("/reservations", status_code=201, summary="Set pieces of several SKUs aside, all or nothing")
async def reserve(body: Reserving, by: Machine, host: TheHost, commands: Commands) -> Receipt:
    until = clock.now() + timedelta(seconds=body.ttl_s)
    places = _stocks(body.lines)
    amounts = {id: line.quantity for id, line in places.items() if isinstance(line, Wanted)}
    gate = Gate(host.redis, shelves.name, host.settings.namespace)
    async with gate.passing(body.reservation, amounts, {id: line.sku for id, line in places.items()}):
        try:
            return await commands.tell_all(
                [(id, Stock.reserve, (body.reservation, quantity, until)) for id, quantity in amounts.items()]
            )
        except NotFound as error:
            raise Refused("one of the SKUs is not kept in stock there") from error


@router.post("/reservations/{reservation}/commit", summary="Reserved pieces are sold")
async def commit(reservation: UUID, body: Ending, by: Machine, commands: Commands) -> Receipt:
    return await commands.tell_all([(id, Stock.commit, (reservation,)) for id in _stocks(body.lines)])


@router.post("/reservations/{reservation}/release", summary="Reserved pieces are free again")
async def release(reservation: UUID, body: Ending, by: Machine, commands: Commands) -> Receipt:
    return await commands.tell_all([(id, Stock.release, (reservation,)) for id in _stocks(body.lines)])


@router.get("/reservations/{reservation}", summary="What became of a reservation")
async def reservation_of(
    reservation: UUID, by: Machine, host: TheHost, views: Views, after: After = None
) -> Reservation:
    if after:
        await passed(host, reservations, after)
    page = await reservations.page(views, where={"reservation": reservation}, limit=LINES_MAX)
    if not page.rows:
        raise NotFound(f"there is no reservation {reservation}")
    held = [Held(**{name: row[name] for name in Held.model_fields}) for row in page.rows]
    return Reservation(reservation=reservation, items=held)


def _stocks(lines: list[Wanted] | list[Place]) -> dict[UUID, Wanted | Place]:
    """The lines by their stock. Raises `Refused` for a stock that stands there twice."""
    made = {stock_id(line.sku, line.location): line for line in lines}
    if len(made) < len(lines):
        raise Refused("a SKU at a location stands in one line")
    return made


async def _seller(host: TheHost, sku: str) -> UUID | None:
    """Whose SKU it is; None when no product has it."""
    product = await host.store.owner("product", "sku", sku)
    if product is None:
        return None
    row = await row_made(host, products, "product", product)
    return None if row is None else row["seller"]


app = app_of(router)
