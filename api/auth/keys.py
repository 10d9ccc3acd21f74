"""The keys that our tokens are signed with: their public halves for everybody, their rotation for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field

from api.auth.fields import Told
from api.auth.signing import Signer
from api.kernel import Caller, caller
from api.kernel.reads import Cursor, Limit, paged
from api.kernel.route import Route
from api.kernel.stores import Secrets, TheHost
from projections.auth import signing_keys

router = APIRouter(tags=["auth"], route_class=Route)
Governor = Annotated[Caller, caller("accounts:govern")]


class Jwk(BaseModel):
    """A public key (RFC 7517)."""

    kty: str = Field(examples=["EC"])
    crv: str = Field(examples=["P-256"])
    x: str = Field(examples=["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"])
    y: str = Field(examples=["x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"])
    kid: str = Field(examples=["0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a"])
    use: str = Field("sig", examples=["sig"])
    alg: str = Field("ES256", examples=["ES256"])


class Jwks(BaseModel):
    keys: list[Jwk]


class SigningKey(BaseModel):
    kid: UUID
    active_from: datetime
    retired_at: datetime | None


class SigningKeys(BaseModel):
    items: list[SigningKey]
    next: str | None = Field(examples=[None])


@router.get("/.well-known/jwks.json", summary="The public keys of all tokens that the API accepts")
async def jwks(host: TheHost, secrets: Secrets) -> Jwks:
    found: list[dict[str, Any]] = await Signer.of(host, secrets).jwks()
    return Jwks(keys=[Jwk(**one) for one in found])


@router.get("/auth/keys", summary="Signing keys, and which were retired", responses={404: {}})
async def keys(by: Governor, host: TheHost, cursor: Cursor = None, limit: Limit = 20) -> SigningKeys:
    page = await paged(host, signing_keys, after=cursor, limit=limit)
    return SigningKeys(items=[SigningKey(**row) for row in page.rows], next=page.after)


@router.post("/auth/keys/rotate", summary="Sign with a new key from some minutes on", responses={409: {}})
async def rotate(by: Governor, host: TheHost, secrets: Secrets) -> Told:
    await Signer.of(host, secrets).rotate()
    return Told(detail="the new key is published; it signs as soon as everybody has it")


@router.post("/auth/keys/{kid}/revoke", summary="Refuse from now on what a key has signed", responses={409: {}})
async def revoke(kid: UUID, by: Governor, host: TheHost, secrets: Secrets) -> Told:
    await Signer.of(host, secrets).revoke(kid)
    return Told(detail="every process refuses its tokens within a minute")
