"""Orders over HTTP. Customers order through a checkout; `POST /orders` takes orders that were priced elsewhere."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import NotFound, clock
from aggregates.kernel.money import BASIS_POINTS, LINES_MAX, QUANTITY_MAX, Line
from aggregates.order import CARRIER_CHARS_MAX, Order, Part
from api.kernel import (
    Amount,
    Body,
    Caller,
    Commands,
    Currency,
    Name,
    Price,
    Receipt,
    Sku,
    Store,
    Vault,
    app_of,
    caller,
    reason,
    service,
)
from api.kernel.address import Destination, sealed
from api.kernel.positions import passed, row_made
from api.kernel.reads import After, rendered
from api.kernel.reason import Reason
from api.kernel.stores import TheHost
from api.kernel.types import ONE_LINE
from projections.order import order_timeline, orders

router = service("orders", Order, orders, filters=("status", "number", "attention"), order="-placed_at")
Reader = Annotated[Caller, caller("orders:read")]
Owner = Annotated[Caller, caller("orders:write")]
Till = Annotated[Caller, caller("orders:settle")]
MOMENTS_MAX = 500  # more than an order can have: its parcels are limited
Pieces = Annotated[int, Field(ge=1, le=QUANTITY_MAX, description="pieces", examples=[2])]


class Item(Body):
    sku: Sku
    product: UUID
    title: Name
    quantity: Pieces
    unit_price: Price
    tax_bp: Annotated[int, Field(0, ge=0, le=BASIS_POINTS, description="tax rate in basis points", examples=[1900])]
    location: Annotated[str, Field("main", min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$", examples=["main"])]


class Placing(Body):
    customer: UUID
    currency: Currency
    lines: Annotated[list[Item], Field(min_length=1, max_length=LINES_MAX)]
    address: Destination
    discount: Price = 0
    shipping: Price = 0
    shipping_tax_bp: Annotated[int, Field(ge=0, le=BASIS_POINTS, examples=[1900])] = 0


class Payment(Body):
    payment: UUID
    amount: Amount


class Parcel(Body):
    shipment: UUID
    parts: Annotated[
        dict[Sku, Pieces],
        Field(max_length=LINES_MAX, description="pieces by SKU; none for all that is left", examples=[{}]),
    ] = {}
    carrier: Annotated[str, Field(min_length=1, max_length=CARRIER_CHARS_MAX, pattern=ONE_LINE, examples=["DHL"])]
    tracking: Annotated[
        str, Field(max_length=CARRIER_CHARS_MAX, pattern=ONE_LINE, examples=["00340434161094042557"])
    ] = ""


class Cancellation(Body):
    reason: Reason


class Settling(Body):
    reason: Reason


class Moment(BaseModel):
    version: int = Field(examples=[1])
    at: datetime
    what: str = Field(examples=["placed"])
    detail: str = Field(examples=["T261124-7K3M9-Q2XB"])


class Timeline(BaseModel):
    items: list[Moment]


@router.get("/{id}/timeline", summary="The story of one order", response_model=Timeline)
async def timeline(id: UUID, by: Reader, host: TheHost, after: After = None) -> Response:
    if after:
        await passed(host, order_timeline, after)
    row = await row_made(host, orders, "order", id)
    if row is None or not (row["customer"] == by.id or by.may("orders:any")):
        raise NotFound(f"there is no order {id}")
    page = await order_timeline.page(host.views, where={"order": id}, order="version", limit=MOMENTS_MAX)
    return await rendered(host, {"items": [{name: one[name] for name in Moment.model_fields} for one in page.rows]})


@router.post("", status_code=201, summary="Take an order that was priced elsewhere")
async def place(body: Placing, by: Till, commands: Commands, vault: Vault) -> Receipt:
    lines = [
        Line(one.sku, one.product, one.title, one.quantity, one.unit_price, 0, one.tax_bp, 0, one.location)
        for one in body.lines
    ]
    return await commands.open(
        Order.place,
        customer=body.customer,
        currency=body.currency,
        lines=lines,
        address=await sealed(vault, body.customer, body.address),
        now=clock.now(),
        discount=body.discount,
        shipping=body.shipping,
        shipping_tax_bp=body.shipping_tax_bp,
    )


@router.post("/{id}/confirm", summary="Accept an order")
async def confirm(id: UUID, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Order.confirm)


@router.post("/{id}/pay", summary="Say that an order's money was taken")
async def pay(id: UUID, body: Payment, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Order.pay, body.payment, body.amount)


@router.post("/{id}/ship", summary="Say that a parcel left")
async def ship(id: UUID, body: Parcel, by: Till, commands: Commands) -> Receipt:
    parts = [Part(sku, quantity) for sku, quantity in body.parts.items()]
    return await commands.tell(id, Order.ship, body.shipment, parts, body.carrier, body.tracking)


@router.post("/{id}/shipments/{shipment}/deliver", summary="Say that a parcel arrived")
async def deliver(id: UUID, shipment: UUID, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Order.deliver, shipment)


@router.post("/{id}/complete", summary="Close a delivered order")
async def complete(id: UUID, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Order.complete)


@router.post("/{id}/settle", summary="Say that reversed money was seen to: paid otherwise, or let be")
async def settle(id: UUID, body: Settling, by: Till, commands: Commands, store: Store, vault: Vault) -> Receipt:
    customer = (await store.load(Order, id)).customer
    return await commands.tell(id, Order.settle_payment, by.id, await reason.sealed(vault, customer, body.reason))


@router.post("/{id}/cancel", summary="Cancel an order before it is shipped")
async def cancel(id: UUID, body: Cancellation, by: Owner, commands: Commands, store: Store, vault: Vault) -> Receipt:
    customer = (await store.load(Order, id)).customer
    return await commands.tell(id, Order.cancel, await reason.sealed(vault, customer, body.reason))


app = app_of(router)
