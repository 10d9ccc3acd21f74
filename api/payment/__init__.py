"""Payments over HTTP. Checkouts open them; here shops and machines capture, void and refund, and gateways tell what happened."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Literal
from uuid import NAMESPACE_URL, UUID, uuid5

from fastapi import Path
from prometheus_client import Counter
from psycopg.errors import UndefinedTable
from pydantic import BaseModel, Field

from aggregates.kernel import Money, NotFound, Origin, Refused, clock
from aggregates.kernel.token import require_usable
from aggregates.payment import OPERATIONS_MAX, Payment, State
from api.kernel import (
    Amount,
    Body,
    Caller,
    Commands,
    Country,
    Currency,
    Keyed,
    Problem,
    Raw,
    Receipt,
    app_of,
    caller,
    service,
)
from api.kernel.positions import caught_up, row_made
from api.kernel.stores import Store, TheHost
from api.payment import methods, reconciliation, returns
from api.payment.doors import door
from api.payment.methods import Token
from infra.logs import correlation
from projections.order import orders
from projections.payment import operations, payments
from projections.wallet import top_ups
from streams.gateways.interface import Forged, calls
from streams.gateways.routing import NAME
from streams.gateways.settings import GatewaySettings

log = logging.getLogger(__name__)

router = service("payments", Payment, payments, filters=("order", "authorisation", "attention"), order="-requested_at")
Reader = Annotated[Caller, caller("payments:read")]
Till = Annotated[Caller, caller("payments:settle")]

WEBHOOKS = Counter("payment_webhooks_total", "Webhooks of gateways that are genuine", ["gateway", "outcome"])
FAILING = """
SELECT gateway, max(until) FROM gateway_circuits WHERE NOT closed AND until > now() - interval '15 minutes' GROUP BY gateway
"""
"""Each try that fails again moves `until`; a process that has tried no more for so long, or is no more, says nothing of now."""


class Payable(Body):
    order: UUID
    customer: UUID
    amount: Amount
    currency: Currency
    method: Token | None = None
    saved: Annotated[
        UUID | None,
        Field(
            description="One of the customer's ways to pay, instead of a token. Its gateway alone knows it: while that is away the payment waits."
        ),
    ] = None
    gateway: Annotated[
        str,
        Field(
            pattern=f"^({NAME})?$",
            description="The only one that may take it, however long it is away; empty: by the rules of routing.",
        ),
    ] = ""
    country: Annotated[Country | None, Field(description="The buyer's; rules of routing may ask for it.")] = None


class Capture(Body):
    capture: Annotated[UUID, Field(description="Your own id of it: the same again is the same capture.")]
    amount: Amount
    currency: Currency


class Refund(Body):
    refund: Annotated[UUID, Field(description="Your own id of it: the same again is the same refund.")]
    amount: Amount
    currency: Currency


class Operation(BaseModel):
    """A capture or a refund; `amount` in minor units. `reversed`: the gateway had accepted it, and then it failed."""

    id: UUID
    kind: Literal["capture", "refund"]
    amount: int = Field(examples=[1999])
    currency: str = Field(examples=["EUR"])
    state: State
    code: str | None = Field(examples=[None])
    reason: str | None = Field(examples=[None])
    asked_at: datetime
    changed_at: datetime


class Operations(BaseModel):
    items: list[Operation]


class Door(BaseModel):
    """`failing`: some process got no answer and leaves it alone until then; the next request after that decides."""

    gateway: str = Field(examples=["test"])
    failing: bool
    until: datetime | None


class Gateways(BaseModel):
    items: list[Door]


class Heard(BaseModel):
    """What became of a webhook. `ignored`: it is genuine, and about nothing of ours or against what we know."""

    outcome: Literal["recorded", "known", "ignored"]


@router.get("/gateways", summary="The gateways, and whether they answer")
async def gateways(by: Till, host: TheHost) -> Gateways:
    failing: dict[str, datetime] = {}
    with suppress(UndefinedTable):  # no process has asked a gateway here yet
        async with host.views.connection() as connection:
            cursor = await connection.execute(FAILING)
            failing = {name: until async for name, until in cursor}
    names = GatewaySettings.of(host.settings).gateways
    return Gateways(items=[Door(gateway=name, failing=name in failing, until=failing.get(name)) for name in names])


@router.get("/{id}/operations", summary="A payment's captures and refunds")
async def operations_of(id: UUID, by: Reader, host: TheHost) -> Operations:
    row = await row_made(host, payments, "payment", id)
    if row is None or not (row["customer"] == by.id or by.may("payments:any")):
        raise NotFound(f"there is no payment {id}")
    page = await operations.page(host.views, where={"payment": id}, order="asked_at", limit=2 * OPERATIONS_MAX)
    return Operations(items=[Operation(**{name: one[name] for name in Operation.model_fields}) for one in page.rows])


@router.post("", status_code=201, summary="Have an amount authorised", responses={404: {}})
async def request(body: Payable, by: Till, commands: Keyed, host: TheHost, store: Store) -> Receipt:
    method, gateway = body.method, body.gateway
    if body.saved is not None:
        kept = (await methods.kept_by(store, body.customer)).found(body.saved)
        require_usable(kept.expires, clock.now())
        method, gateway = kept.token, kept.gateway
    if method is None or (body.saved is not None and (body.method or body.gateway)):
        raise Refused("a payment has a method, or one that is saved, which names its gateway")
    if gateway:
        GatewaySettings.of(host.settings).require_knows(gateway, method)
    amount = Money(body.amount, body.currency)
    return await commands.open(Payment, body.order, body.customer, amount, method, gateway, body.country)


@router.post("/{id}/capture", summary="Take authorised money, all or part of it")
async def capture(id: UUID, body: Capture, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Payment.capture, body.capture, Money(body.amount, body.currency))


@router.post("/{id}/void", summary="Give back what is authorised and not captured")
async def void(id: UUID, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Payment.void)


@router.post("/{id}/refund", summary="Give captured money back, all or part of it")
async def refund(id: UUID, body: Refund, by: Till, commands: Commands, host: TheHost) -> Receipt:
    """Not past the order or the wallet that the money is for: they decide how much of it can go back."""
    order = (await host.store.load(Payment, id)).order
    if await caught_up(host, orders, "order", order):
        raise Refused(f"it paid for order {order}: ask for a refund of that")
    if await caught_up(host, top_ups, "wallet", order):
        raise Refused("the money is in a wallet: withdraw it from there")
    return await commands.tell(id, Payment.refund, body.refund, Money(body.amount, body.currency))


@router.post(
    "/webhooks/{gateway}",
    summary="A gateway tells what happened; signed with its own scheme",
    responses={403: {}, 408: {}, 413: {}},
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def webhook(
    gateway: Annotated[str, Path(pattern=f"^{NAME}$", examples=["test"])], raw: Raw, host: TheHost
) -> Heard:
    try:
        notice = door(host, gateway).notice(raw.header, await raw(), clock.now())
    except LookupError as error:
        await raw.spend()
        raise NotFound(str(error)) from error
    except Forged as error:
        await (
            raw.spend()
        )  # only who can't sign spends of the address's limit: a gateway may send as fast as things happen
        raise Problem("forbidden", str(error)) from error
    outcome: Literal["recorded", "known", "ignored"] = "ignored"
    if notice is not None and notice.facts:
        command = uuid5(NAMESPACE_URL, f"{gateway}\n{notice.id}")  # sent again, it is the same command
        origin = Origin(actor=f"gateway:{gateway}", correlation=correlation.get(), command=command)
        try:
            receipt = await host.store.commands(origin).tell_all(calls(gateway, notice.payment, notice.facts))
            outcome = "known" if receipt.replayed else "recorded"
        except (NotFound, Refused) as no:
            # Sent again it would be no better. What a gateway did behind our back is found by reconciliation.
            log.error("webhook %s of %s says what cannot be: %s", notice.id, gateway, no)
    WEBHOOKS.labels(gateway, outcome).inc()
    return Heard(outcome=outcome)


for part in (methods, reconciliation, returns):
    router.routes.extend(part.router.routes)
app = app_of(router)
