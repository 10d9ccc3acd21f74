"""Mails are answered on a page, too: the one that their link leads to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import HTMLResponse, Response

from aggregates.kernel import Refused
from api.auth.fields import Proof
from api.auth.forms import Form, form_of
from api.auth.page import answer_page, done_page
from api.auth.passwords import CHARS_MAX, CHARS_MIN
from api.auth.registration import chosen_anew, verified
from api.kernel.route import Route
from api.kernel.stores import Secrets, TheHost

HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}
TOKEN_CHARS_MAX = 120

router = APIRouter(prefix="/auth/mail", tags=["auth"], route_class=Route)
Purpose = Annotated[Literal["verify", "reset"], Path(examples=["verify"])]


@router.get("/{purpose}", summary="The page that a mail leads to", response_class=HTMLResponse, responses={200: HTML})
async def ask(purpose: Purpose, token: Annotated[Proof, Query()]) -> Response:
    return answer_page(purpose, token)


@router.post(
    "/{purpose}",
    summary="Answer a mail at that page",
    response_class=HTMLResponse,
    responses={200: HTML, 408: {}, 409: HTML, 413: {}, 415: {}},
    openapi_extra=form_of(
        ("token", "password"), token="AZHR8J07fD6PAFwqfR9Lag", password="correct horse battery staple"
    ),
)
async def answer(purpose: Purpose, form: Form, host: TheHost, secrets: Secrets) -> Response:
    given = dict(await form())
    token, password = given.get("token", "")[:TOKEN_CHARS_MAX], given.get("password", "")
    try:
        if not CHARS_MIN <= len(password) <= CHARS_MAX:
            raise Refused(f"a password has {CHARS_MIN} to {CHARS_MAX} characters")
        await (verified if purpose == "verify" else chosen_anew)(host, secrets, token, password)
    except Refused as no:
        return answer_page(purpose, token, str(no), 409)
    if purpose == "verify":
        return done_page("Your account is there", "Your address is verified: you can sign in now.")
    return done_page("Your password is changed", "Every session is over: sign in with the new password.")
