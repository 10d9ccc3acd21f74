"""OAuth 2 and OpenID Connect over HTTP. What they allow is Authlib's to say (`server`); here are the requests and the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from aggregates.kernel import NotFound
from api.auth.fields import EMAIL_CHARS_MAX, Network
from api.auth.forms import Form, SentForm, fields, form_of
from api.auth.grants import Answer, Asked, CodeGrant, Known, User, malformed
from api.auth.login import checked
from api.auth.page import page
from api.auth.passwords import CHARS_MAX
from api.auth.second import second
from api.auth.server import Server
from api.kernel import Caller, Problem
from api.kernel.auth import ROLES, anybody
from api.kernel.call import Call
from api.kernel.host import Host
from api.kernel.piece import Piece
from api.kernel.route import Route
from api.kernel.secrets import Secrets as Kept
from api.kernel.stores import Secrets, TheHost

SIGN_IN = ("email", "password", "code", "answer")

router = APIRouter(tags=["oauth"], route_class=Route)
Anybody = Annotated[Caller, anybody()]


class Wrong(BaseModel):
    """An error of OAuth 2 (RFC 6749, 5.2)."""

    error: str = Field(examples=["invalid_grant"])
    error_description: str | None = Field(None, examples=["Invalid 'code' in request."])


class TokenAnswer(BaseModel):
    access_token: str = Field(examples=["eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI…"])
    token_type: str = Field(examples=["Bearer"])
    expires_in: int = Field(examples=[600])
    scope: str = Field(examples=["openid orders:read"])
    refresh_token: str | None = Field(None, examples=["0191d1f09d3b7c3e8f005c2a7d1f4b6a.1.aGVsbG8"])
    id_token: str | None = Field(None, examples=["eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI…"])


class Nothing(BaseModel):
    """What is revoked is not told."""


class Introspected(BaseModel):
    """What a token says (RFC 7662); `active` alone for one that is not good, or not the caller's to see."""

    active: bool = Field(examples=[True])
    sub: str | None = None
    client_id: str | None = None
    scope: str | None = None
    exp: int | None = None


class UserInfo(BaseModel):
    sub: UUID
    email: str | None = Field(None, examples=["ada@example.com"])
    email_verified: bool | None = Field(None, examples=[True])


class Discovery(BaseModel):
    """OpenID Connect Discovery 1.0, and RFC 8414."""

    issuer: str = Field(examples=["https://shop.example.com"])
    authorization_endpoint: str = Field(examples=["https://shop.example.com/oauth/authorize"])
    token_endpoint: str = Field(examples=["https://shop.example.com/oauth/token"])
    userinfo_endpoint: str = Field(examples=["https://shop.example.com/oauth/userinfo"])
    revocation_endpoint: str = Field(examples=["https://shop.example.com/oauth/revoke"])
    introspection_endpoint: str = Field(examples=["https://shop.example.com/oauth/introspect"])
    jwks_uri: str = Field(examples=["https://shop.example.com/.well-known/jwks.json"])
    response_types_supported: list[str] = ["code"]
    response_modes_supported: list[str] = ["query"]
    grant_types_supported: list[str] = ["authorization_code", "refresh_token", "client_credentials"]
    subject_types_supported: list[str] = ["public"]
    id_token_signing_alg_values_supported: list[str] = ["ES256"]
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic", "client_secret_post", "none"]
    code_challenge_methods_supported: list[str] = ["S256"]
    scopes_supported: list[str] = ["openid", "email", "offline_access"]
    claims_supported: list[str] = ["sub", "email", "email_verified", "auth_time", "amr", "nonce", "at_hash"]
    roles_supported: list[str] = sorted(ROLES)


class QueryPiece(Piece[list[tuple[str, str]]]):
    """The parameters of the address in their order, each as often as it is there."""

    def take(self, call: Call) -> list[tuple[str, str]]:
        return fields(call.scope["query_string"])


Parameters = Annotated[list[tuple[str, str]], Depends(QueryPiece())]


ERRORS: dict[int | str, dict[str, Any]] = {400: {"model": Wrong}, 408: {}, 413: {}, 415: {}, 422: {}}
UNKNOWN_CLIENT: dict[int | str, dict[str, Any]] = {401: {"model": Wrong}}
CLIENT = {
    "client_id": "0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a",
    "client_secret": "nW7pX0i2m5m6q6Z2V0bXkq0b0O4r0q0L1m3Jx9c0xkE",
}
TOLD_HERE = {"content": {"application/json": {"schema": Wrong.model_json_schema()}}}  # `model` would make it HTML
REDIRECTED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/html": {"schema": {"type": "string"}}}},
    302: {"description": "Back to the client, with what went wrong."},
}


@router.get("/.well-known/openid-configuration", summary="Where everything of OpenID Connect is")
async def discovery(host: TheHost) -> Discovery:
    url = host.settings.issuer
    return Discovery(
        issuer=url,
        authorization_endpoint=f"{url}/oauth/authorize",
        token_endpoint=f"{url}/oauth/token",
        userinfo_endpoint=f"{url}/oauth/userinfo",
        revocation_endpoint=f"{url}/oauth/revoke",
        introspection_endpoint=f"{url}/oauth/introspect",
        jwks_uri=f"{url}/.well-known/jwks.json",
    )


@router.get("/.well-known/oauth-authorization-server", summary="The same for clients that know OAuth alone")
async def metadata(host: TheHost) -> Discovery:
    return await discovery(host)


def parameter(example: str) -> Any:
    return Query(max_length=2_000, examples=[example])


@router.get(
    "/oauth/authorize",
    summary="The page on which somebody lets a client act for them",
    response_class=HTMLResponse,
    responses={**REDIRECTED, 400: TOLD_HERE},
)
async def ask(
    host: TheHost,
    secrets: Secrets,
    given: Parameters,
    response_type: Annotated[str | None, parameter("code")] = None,
    client_id: Annotated[str | None, parameter("0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a")] = None,
    redirect_uri: Annotated[str | None, parameter("https://watch.example.com/back")] = None,
    scope: Annotated[str | None, parameter("openid orders:read")] = None,
    state: Annotated[str | None, parameter("af0ifjsldkj")] = None,
    nonce: Annotated[str | None, parameter("n-0S6_WzA2Mj")] = None,
    code_challenge: Annotated[str | None, parameter("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM")] = None,
    code_challenge_method: Annotated[str | None, parameter("S256")] = None,
) -> Response:
    """Errors go to a registered redirect URI alone; with another, or none, they are told here."""
    server, asked = Server(host, secrets), Asked("GET", given, {})
    grant = await asyncio.to_thread(server.asked_for, asked)
    return sent(grant) if isinstance(grant, Answer) else _page(grant, given)


@router.post(
    "/oauth/authorize",
    summary="Somebody signs in at that page, and says yes or no",
    response_class=HTMLResponse,
    responses={**REDIRECTED, **ERRORS, 400: TOLD_HERE, 401: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    openapi_extra=form_of(
        ("response_type", "client_id", "redirect_uri", "code_challenge", "code_challenge_method", "answer"),
        response_type="code",
        client_id=CLIENT["client_id"],
        redirect_uri="https://watch.example.com/back",
        scope="openid orders:read",
        state="af0ifjsldkj",
        nonce="n-0S6_WzA2Mj",
        code_challenge="E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
        code_challenge_method="S256",
        email="ada@example.com",
        password="correct horse battery staple",
        code="",
        answer="yes",
    ),
)
async def answer(form: Form, network: Network, host: TheHost, secrets: Secrets) -> Response:
    everything = await form()
    given = [(name, value) for name, value in everything if name not in SIGN_IN]
    typed = {name: value for name, value in everything if name in SIGN_IN}
    server, asked = Server(host, secrets), Asked("POST", given, {})
    grant = await asyncio.to_thread(server.asked_for, asked)
    if isinstance(grant, Answer):
        return sent(grant)
    user = None
    if typed.get("answer") == "yes":
        email, code = typed.get("email", "")[:EMAIL_CHARS_MAX], typed.get("code", "").strip()
        try:
            password = typed.get("password", "")[:CHARS_MAX]
            account, _, where = await checked(host, secrets, network, email, password, None)
            user = User(account, await second(host, secrets, account, code or None, where))
        except Problem as problem:
            if problem.status not in (401, 429):
                raise
            return _page(grant, given, problem.detail, problem.status)
    return sent(await asyncio.to_thread(server.create_authorization_response, asked, user, grant))


@router.post(
    "/oauth/token",
    summary="Tokens for a code, for a refresh token, or for a client itself",
    response_model=TokenAnswer,
    responses={**ERRORS, **UNKNOWN_CLIENT},
    openapi_extra=form_of(
        ("grant_type",), grant_type="client_credentials", scope="orders:read", code="", redirect_uri="", code_verifier="",
        refresh_token="", **CLIENT,
    ),
)  # fmt: skip
async def token(form: Form, host: TheHost, secrets: Secrets) -> Response:
    return await _asked(Server.create_token_response, form, host, secrets)


@router.post(
    "/oauth/revoke",
    summary="End the session of a token (RFC 7009)",
    response_model=Nothing,
    responses={**ERRORS, **UNKNOWN_CLIENT},
    openapi_extra=form_of(
        ("token",), token="0191d1f09d3b7c3e8f005c2a7d1f4b6a.1.aGVsbG8", token_type_hint="refresh_token", **CLIENT
    ),
)
async def revoke(form: Form, host: TheHost, secrets: Secrets) -> Response:
    return await _asked(lambda server, asked: server.create_endpoint_response("revocation", asked), form, host, secrets)


@router.post(
    "/oauth/introspect",
    summary="What a token says, if it is good (RFC 7662)",
    response_model=Introspected,
    responses={**ERRORS, **UNKNOWN_CLIENT},
    openapi_extra=form_of(
        ("token",), token="0191d1f09d3b7c3e8f005c2a7d1f4b6a.1.aGVsbG8", token_type_hint="refresh_token", **CLIENT
    ),
)
async def introspect(form: Form, host: TheHost, secrets: Secrets) -> Response:
    return await _asked(
        lambda server, asked: server.create_endpoint_response("introspection", asked), form, host, secrets
    )


@router.get("/oauth/userinfo", summary="Who has let a client know it", response_model=UserInfo, responses={404: {}})
@router.post(
    "/oauth/userinfo", summary="The same for clients that ask so", response_model=UserInfo, responses={404: {}}
)
async def userinfo(by: Anybody, host: TheHost, secrets: Secrets) -> Response:
    if by.scopes is None or "openid" not in by.scopes:
        raise Problem("forbidden", "this needs a token with the scope openid")
    account = await Server(host, secrets).account(by.id)
    if account is None:
        raise NotFound("there is no account of this token")
    described = await Server(host, secrets).described(account, " ".join(by.scopes))
    return JSONResponse({"sub": str(account.id), **described}, headers={"cache-control": "no-store"})


async def _asked(work: Callable[[Server, Asked], Answer], form: SentForm, host: Host, secrets: Kept) -> Response:
    """Let Authlib answer. Raises the 503 problem when a store did not in time."""
    server, asked = Server(host, secrets), Asked("POST", await form(), form.basic())
    no = malformed(asked)
    return sent(no if no is not None else await asyncio.to_thread(work, server, asked))


def sent(answer: Answer) -> Response:
    """Authlib's answer over HTTP."""
    headers = dict(answer.headers)
    if "Location" in headers:
        return RedirectResponse(headers["Location"], 302 if answer.status == 302 else 303)
    return JSONResponse(answer.body, answer.status, headers)


def _page(grant: CodeGrant, given: Sequence[tuple[str, str]], wrong: str = "", status: int = 200) -> Response:
    client: Known = grant.request.client
    return page(client.client.name, grant.request.scope, grant.redirect_uri, given, wrong, status)
