"""OAuth clients: registered and disabled by administrators."""

from __future__ import annotations

from secrets import token_urlsafe
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from aggregates.auth import Client, Grant, Role
from aggregates.auth.client import NAME_CHARS_MAX, SCOPES_MAX, URI_CHARS_MAX, URIS_MAX
from aggregates.kernel import NotFound
from aggregates.kernel.clock import new_id
from api.auth.server import CLIENT_SECRET
from api.kernel import Body, Caller, Commands, Receipt, caller, service
from api.kernel.secrets import Secrets as Kept
from api.kernel.stores import Secrets, Store
from api.kernel.types import ONE_LINE
from projections.auth import clients

SECRET_BYTES = 32
URI = (
    r"^(https://[A-Za-z0-9.-]{1,253}|http://(127\.0\.0\.1|localhost|\[::1\]))(:([1-9][0-9]{0,3}|[1-5][0-9]{4}))?"
    r"(/[A-Za-z0-9._~/?=&%+,;:!$()@-]*)?$"
)

router = service("clients", Client, clients, order="-registered_at")
Governor = Annotated[Caller, caller("clients:govern")]


class Registration(Body):
    name: Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX, pattern=ONE_LINE, examples=["Price watch"])]
    redirect_uris: Annotated[
        list[Annotated[str, Field(max_length=URI_CHARS_MAX, pattern=URI, examples=["https://watch.example.com/back"])]],
        Field(max_length=URIS_MAX, description="Where codes go: https, or http to the own machine."),
    ] = []
    grants: Annotated[
        list[Grant], Field(min_length=1, max_length=3, examples=[["authorization_code", "refresh_token"]])
    ]
    scopes: Annotated[
        list[Annotated[str, Field(pattern="^([a-z]{1,32}:[a-z]{1,32}|openid|email|offline_access)$")]],
        Field(max_length=SCOPES_MAX, examples=[["openid", "email", "orders:read"]]),
    ]
    role: Annotated[Role | None, Field(description="What it is when it acts for itself.")] = None
    public: Annotated[bool, Field(description="An app or a page, which can keep no secret.", examples=[False])] = False


class Registered(BaseModel):
    """`client_secret` is shown this one time."""

    client_id: UUID
    client_secret: str | None = Field(examples=["nW7pX0i2m5m6q6Z2V0bXkq0b0O4r0q0L1m3Jx9c0xkE"])


@router.post("", status_code=201, summary="Register an OAuth client", responses={409: {}})
async def register(body: Registration, by: Governor, commands: Commands, secrets: Secrets) -> Registered:
    id = new_id()
    text, kept = (None, None) if body.public else await _secret(secrets, id)
    made = await commands.open_as(
        id, Client.register, by.id, body.name, body.redirect_uris, body.grants, body.scopes, body.role, kept
    )
    return Registered(client_id=made.id, client_secret=text if made.id == id else None)


@router.post("/{id}/secret", summary="A new secret instead of the old one")
async def change_secret(id: UUID, by: Governor, commands: Commands, secrets: Secrets, store: Store) -> Registered:
    client = await store.load(Client, id)
    if client.owner != by.id and not by.may("clients:any"):
        raise NotFound(f"there is no client {id}")
    text, kept = await _secret(secrets, id)
    await commands.tell(id, Client.change_secret, kept)
    if client.secret is not None:
        await secrets.drop(client.secret)
    return Registered(client_id=id, client_secret=text)


@router.post("/{id}/disable", summary="Give a client nothing any more")
async def disable(id: UUID, by: Governor, commands: Commands) -> Receipt:
    return await commands.tell(id, Client.disable)


async def _secret(secrets: Kept, client: UUID) -> tuple[str, UUID]:
    """A new secret, of which a keyed digest is kept."""
    text = token_urlsafe(SECRET_BYTES)
    return text, await secrets.keep(client, CLIENT_SECRET, secrets.digest(CLIENT_SECRET, text.encode()))
