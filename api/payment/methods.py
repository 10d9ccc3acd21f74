"""The ways to pay that a customer keeps. A vendor's form in the browser makes the token; a card number never comes here."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import NotFound
from aggregates.kernel.token import TOKEN, payment_token
from aggregates.payment import METHODS_MAX, Brand, Methods
from api.kernel import Body, Caller, Commands, Receipt, Vault, caller
from api.kernel.positions import passed
from api.kernel.reads import After, rendered
from api.kernel.route import Route
from api.kernel.stores import Store, TheHost
from projections.payment import methods, preferences
from streams.gateways.routing import NAME
from streams.gateways.settings import GatewaySettings

Reader = Annotated[Caller, caller("payments:read")]
Owner = Annotated[Caller, caller("payments:write")]
Token = Annotated[
    str,
    Field(
        pattern=f"^{TOKEN.pattern}$",
        max_length=100,
        description="A gateway's token, never a card's number.",
        examples=["tok_visa"],
    ),
]

router = APIRouter(prefix="/payments/methods", tags=["payments"], route_class=Route)


class Saving(Body):
    gateway: Annotated[str, Field(pattern=f"^{NAME}$", description="The one that made the token.", examples=["test"])]
    token: Token
    brand: Brand
    last_four: Annotated[str, Field(pattern="^[0-9]{4}$", examples=["4242"])]
    expires: Annotated[
        str, Field(pattern="^20[0-9]{2}-(0[1-9]|1[0-2])$", description="Its last month.", examples=["2031-09"])
    ]


class Kept(BaseModel):
    """A way to pay; its token stays here."""

    method: UUID
    gateway: str = Field(examples=["test"])
    brand: str = Field(examples=["visa"])
    last_four: str | None = Field(examples=["4242"])
    expires: str = Field(examples=["2031-09"])
    preferred: bool


class AllKept(BaseModel):
    items: list[Kept]


@router.get("", summary="My ways to pay", response_model=AllKept)
async def kept(by: Reader, host: TheHost, after: After = None) -> Response:
    if after:
        await passed(host, methods, after)
    preference = await preferences.get(host.views, by.id)
    page = await methods.page(host.views, where={"customer": by.id}, limit=METHODS_MAX)
    names = Kept.model_fields.keys() - {"preferred"}
    items = [
        {
            **{name: row[name] for name in names},
            "preferred": preference is not None and preference["method"] == row["method"],
        }
        for row in page.rows
    ]
    return await rendered(host, {"items": items})


@router.put("/{method}", summary="Save a way to pay under an id of one's own")
async def save(
    method: UUID, body: Saving, by: Owner, commands: Commands, store: Store, vault: Vault, host: TheHost
) -> Receipt:
    """The first one is used unless another is named."""
    payment_token(body.token)  # before anything is sealed
    GatewaySettings.of(host.settings).require_knows(body.gateway, body.token)
    try:
        before = (await store.load(Methods, by.id)).kept.get(method)
    except NotFound:
        before = None
    asked = (method, body.gateway, body.token, body.brand)
    # Sealed anew each time, equal digits are never equal: what does not change is kept as it is.
    same = before is not None and (await vault.open_all([before.last_four])) == [body.last_four]
    digits = before.last_four if same and before else await vault.seal(by.id, body.last_four)
    try:
        return await commands.tell(by.id, Methods.save, *asked, digits, body.expires)
    except NotFound:
        return await commands.open_as(by.id, Methods.begin, *asked, digits, body.expires)


@router.delete("/{method}", summary="Remove a way to pay")
async def remove(method: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(by.id, Methods.remove, method)


@router.post("/{method}/prefer", summary="Use it unless another one is named")
async def prefer(method: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(by.id, Methods.prefer, method)


async def kept_by(store: Store, customer: UUID) -> Methods:
    """Raises `NotFound`."""
    try:
        return await store.load(Methods, customer)
    except NotFound as error:
        raise NotFound("no payment method is saved") from error
