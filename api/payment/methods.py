"""The ways to pay that a customer keeps, here and at the gateway. A vendor's form in the browser makes the token, or encrypts the card; a
card number never comes here.

That the gateway is going to be asked is stored before it is, and its answer after: a process that dies in between leaves a card that is
kept there and not here. The same request again finds it; erasing the person has the gateway forget it in any case.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import Conflict, NotFound, Origin, Receipt, Refused, Sealed, require
from aggregates.kernel.token import TOKEN, masked, payment_token
from aggregates.payment import METHODS_MAX, Brand, Methods
from api.kernel import Body, Caller, Commands, Problem, Vault, caller
from api.kernel import Receipt as Answered
from api.kernel.positions import passed
from api.kernel.problems import retry_after
from api.kernel.reads import After, rendered
from api.kernel.route import Route
from api.kernel.stores import Store, TheHost
from api.kernel.types import ONE_LINE
from api.payment.doors import door
from infra.logs import correlation
from projections.payment import methods, preferences
from streams.gateways.interface import Confirm, Declined, Unknown
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

ENCRYPTED_CHARS_MAX = 15_000  # as Adyen's own limit

log = logging.getLogger(__name__)

router = APIRouter(prefix="/payments/methods", tags=["payments"], route_class=Route)


class Saving(Body):
    gateway: Annotated[str, Field(pattern=f"^{NAME}$", description="The one whose form it is from.", examples=["test"])]
    token: Annotated[Token | None, Field(description="What its form has made.", examples=["tok_visa"])] = None
    details: Annotated[
        dict[
            Annotated[str, Field(pattern="^encrypted[A-Z][A-Za-z]{0,40}$")],
            Annotated[str, Field(min_length=1, max_length=ENCRYPTED_CHARS_MAX, pattern=ONE_LINE)],
        ],
        Field(
            max_length=8,
            description="Of a form that makes no token (Adyen's) what it has encrypted, by its own names, as `encryptedCardNumber`."
            " Passed on, and kept nowhere.",
        ),
    ] = {}
    brand: Brand
    last_four: Annotated[str, Field(pattern="^[0-9]{4}$", examples=["4242"])]
    expires: Annotated[
        str, Field(pattern="^20[0-9]{2}-(0[1-9]|1[0-2])$", description="Its last month.", examples=["2031-09"])
    ]


class Saved(BaseModel):
    """`confirm`: the bank wants the customer to confirm there first; the way to pay is saved when they are back from it. Else null."""

    id: UUID
    version: int = Field(examples=[3])
    position: str = Field(
        description="Send it back as `?after=` to read what this command wrote.", examples=["payment:1042"]
    )
    confirm: str | None = Field(None, examples=[None])


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


@router.put("/{method}", summary="Save a way to pay under an id of one's own", responses={404: {}})
async def save(
    method: UUID, body: Saving, by: Owner, commands: Commands, store: Store, vault: Vault, host: TheHost
) -> Saved:
    """Its gateway keeps it for the customer, so that it can be charged again; one that it declines is not saved. The first one is used
    unless another is named. Another one under the same id replaces it, and the gateway forgets the one before."""
    require((body.token is None) != (not body.details), "a token, or the details that the gateway's form has encrypted")
    for text in body.details.values():
        require(masked(text) == text, "a card number is not encrypted: only the gateway itself may take it")
    if body.token is not None:
        payment_token(body.token)  # before anything is sealed
        GatewaySettings.of(host.settings).require_knows(body.gateway, body.token)
    before = await _before(store, by.id, method)
    # Sealed anew each time, equal digits are never equal: what does not change is kept as it is.
    same = before is not None and (await vault.open_all([before])) == [body.last_four]
    digits = before if same and before else await vault.seal(by.id, body.last_four)
    try:
        gateway = door(host, body.gateway)
    except LookupError as error:
        raise Refused(str(error)) from error
    origin = Origin(by.actor, correlation.get())
    given = (method, body.gateway, body.token or "", body.brand, digits, body.expires)
    asked = await _asked(store, origin, by.id, given)
    try:
        token = await gateway.attach(by.id, method, body.token or "", body.details)
    except Declined as no:
        await store.commands(origin).tell(by.id, Methods.declined, method, body.gateway, no.code, no.reason)
        raise Refused(f"{body.gateway} does not take it: {no.reason}") from no
    except Unknown as unknown:
        log.warning("a way to pay is not saved: %s: %s", body.gateway, unknown)
        raise Problem(
            "unavailable",
            f"{body.gateway} gives no answer: nothing is saved yet, send it again",
            headers=retry_after(5),
        ) from unknown
    if isinstance(token, Confirm):
        return Saved(id=by.id, version=asked.version, position=asked.position, confirm=token.url)
    stored = await commands.tell(by.id, Methods.attached, method, body.gateway, token)
    return Saved(id=stored.id, version=stored.version, position=stored.position, confirm=None)


@router.delete("/{method}", summary="Remove a way to pay")
async def remove(method: UUID, by: Owner, commands: Commands) -> Answered:
    return await commands.tell(by.id, Methods.remove, method)


@router.post("/{method}/prefer", summary="Use it unless another one is named")
async def prefer(method: UUID, by: Owner, commands: Commands) -> Answered:
    return await commands.tell(by.id, Methods.prefer, method)


async def kept_by(store: Store, customer: UUID) -> Methods:
    """Raises `NotFound`."""
    try:
        return await store.load(Methods, customer)
    except NotFound as error:
        raise NotFound("no payment method is saved") from error


async def _before(store: Store, customer: UUID, method: UUID) -> Sealed | None:
    """The digits of what is kept, or is about to be, under that id."""
    with suppress(NotFound):
        found = await store.load(Methods, customer)
        one = found.asked.get(method) or found.kept.get(method)
        return one.last_four if one else None
    return None


async def _asked(store: Store, origin: Origin, customer: UUID, given: tuple[Any, ...]) -> Receipt:
    """Write down that a gateway is going to be asked: by itself, since the request's own command is to save what it answers."""
    commands = store.commands(origin)
    try:
        return await commands.tell(customer, Methods.ask, *given)
    except NotFound:
        with suppress(Conflict):  # another request was faster
            await commands.open_as(customer, Methods)
        return await commands.tell(customer, Methods.ask, *given)
