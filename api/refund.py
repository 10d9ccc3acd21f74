"""Refunds over HTTP: customers ask for one of an own order, staff decide. `GET /refunds?status=pending` is the staff's queue."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from aggregates.kernel import NotFound, clock
from aggregates.kernel.money import AMOUNT_MAX, LINES_MAX, QUANTITY_MAX
from aggregates.kernel.refunding import Return
from aggregates.refund import Destination, Refund
from api.kernel import Body, Caller, Commands, Keyed, Receipt, Sku, Store, Vault, app_of, caller, reason, service
from api.kernel.positions import row_made
from api.kernel.reason import Reason
from api.kernel.stores import TheHost
from projections.order import orders
from projections.refund import refunds

router = service(
    "refunds", Refund, refunds, filters=("status", "order", "customer", "attention"), order="-requested_at"
)
Owner = Annotated[Caller, caller("refunds:write")]
Staff = Annotated[Caller, caller("refunds:settle")]


class Policy(BaseSettings):
    """What customers may ask for; each can be set as TITAN_REFUND_<NAME>. Staff are not bound by it."""

    model_config = SettingsConfigDict(env_prefix="TITAN_REFUND_", frozen=True)

    window_days: int = Field(
        30, ge=0, le=3_650, description="since the last parcel's arrival, or the payment while none has arrived"
    )
    auto_max: int = Field(
        0, ge=0, le=AMOUNT_MAX, description="minor units: up to so much of an order is given back with nobody looking"
    )


class Returning(Body):
    """Pieces of a line. With a quantity of 0 money alone: for a scratch, say."""

    sku: Sku
    quantity: Annotated[int, Field(ge=0, le=QUANTITY_MAX, description="pieces", examples=[1])]
    amount: Annotated[
        int | None,
        Field(
            ge=0,
            le=AMOUNT_MAX,
            description="With tax, minor units: less than they are worth. Null: all of that.",
            examples=[None],
        ),
    ] = None


class Requesting(Body):
    order: UUID
    lines: Annotated[
        list[Returning], Field(max_length=LINES_MAX, description="None: all that is left of the order.", examples=[[]])
    ] = []
    shipping: Annotated[
        bool | None,
        Field(description="Whether shipping goes back. Null: with the last piece of the order.", examples=[None]),
    ] = None
    restock: Annotated[
        bool, Field(description="Whether pieces that come back are sold again; staff may say otherwise.")
    ] = True
    destination: Annotated[
        Destination, Field(description="Where what cards and wallets paid goes; vouchers get theirs back in any case.")
    ] = "original"
    reason: Reason


class Approval(Body):
    restock: Annotated[
        bool | None, Field(description="Whether the pieces are sold again. Null: as it was asked.", examples=[True])
    ] = None


class Rejection(Body):
    reason: Reason


@router.post("", status_code=201, summary="Ask for a refund of an order", responses={404: {}})
async def request(body: Requesting, by: Owner, commands: Keyed, host: TheHost, vault: Vault) -> Receipt:
    row, staff = await row_made(host, orders, "order", body.order), by.may("refunds:settle")
    if row is None or not (row["customer"] == by.id or staff):
        raise NotFound(f"there is no order {body.order}")
    policy = Policy()
    return await commands.open(
        Refund.request,
        order=body.order,
        customer=row["customer"],
        asked=[Return(one.sku, one.quantity, one.amount) for one in body.lines],
        because=await reason.sealed(vault, row["customer"], body.reason),
        now=clock.now(),
        shipping=body.shipping,
        restock=body.restock,
        destination=body.destination,
        window_days=None if staff else policy.window_days,
        auto_max=policy.auto_max,
    )


@router.post("/{id}/approve", summary="Have a refund given back")
async def approve(id: UUID, body: Approval, by: Staff, commands: Commands) -> Receipt:
    return await commands.tell(id, Refund.approve, by.id, body.restock)


@router.post("/{id}/reject", summary="Turn a refund down")
async def reject(id: UUID, body: Rejection, by: Staff, commands: Commands, store: Store, vault: Vault) -> Receipt:
    customer = (await store.load(Refund, id)).customer
    return await commands.tell(id, Refund.reject, by.id, await reason.sealed(vault, customer, body.reason))


@router.post("/{id}/withdraw", summary="Take a request back")
async def withdraw(id: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, Refund.withdraw, by.id)


app = app_of(router)
