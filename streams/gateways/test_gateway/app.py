"""The test gateway over HTTP. Everything is asked for under the shop's own reference, and asking again changes nothing."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import date
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field

from streams.gateways.settings import GatewaySettings
from streams.gateways.test_gateway.book import Book, Wrong
from streams.gateways.test_gateway.cards import CARDS, Kind
from streams.gateways.test_gateway.settlement import Error, report
from streams.gateways.test_gateway.webhooks import Sender

AMOUNT_MAX = 10**12
PAGE = "<!doctype html><meta charset=utf-8><title>Test gateway</title><body style='font-family:sans-serif;max-width:46em;margin:2em auto'>"

Document = dict[str, Any]


class Desk:
    """What the routes share."""

    def __init__(self, settings: GatewaySettings) -> None:
        name = "book" if settings.gateway_name == "test" else settings.gateway_name
        self.book = Book(settings.data / "test-gateway" / f"{name}.sqlite", settings.test_gateway_seen)
        self.terms = settings.gateways[settings.gateway_name]
        self.key = settings.test_key("api")
        self.hold_s = settings.test_gateway_hold_s
        self.sender = Sender(self.book, settings.webhook_url, settings.test_key("webhook"))

    async def serve(
        self, request: Request, kind: Kind, about: UUID, do: Callable[[], Document], token: str | None = None
    ) -> Document:
        """Carry out a request, about a payment or a customer, with what the card does to it on the way."""
        card = CARDS.get(token or self.book.token(str(about)) or "")
        first = self.book.tried(str(about), kind) == 1
        fault = card.faults.get(kind) if card and first else None
        if card:
            await asyncio.sleep(card.slow_s)
        if fault == "unavailable":
            raise HTTPException(503, "try again", {"retry-after": "1"})
        if fault == "dropped":
            await self._hold(request)
        made = do()
        self.sender.wake()
        if fault == "lost":
            await self._hold(request)
        return made

    async def _hold(self, request: Request) -> None:
        """No answer: until the caller hangs up, or long after it should have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.hold_s):
                while (await request.receive())["type"] != "http.disconnect":
                    pass
        raise HTTPException(504, "no answer")


def public(request: Request) -> Desk:
    """The desk, for anybody."""
    desk: Desk = request.app.state.desk
    return desk


def shop(request: Request) -> Desk:
    """The desk, for who has the key."""
    desk = public(request)
    if not hmac.compare_digest(request.headers.get("authorization", "").encode(), b"Bearer " + desk.key):
        raise HTTPException(401, "the key is wrong", {"www-authenticate": "Bearer"})
    return desk


Shop = Annotated[Desk, Depends(shop)]
Public = Annotated[Desk, Depends(public)]
router = APIRouter()


class Amount(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    amount: int = Field(ge=1, le=AMOUNT_MAX, description="minor units")


class Authorisation(Amount):
    currency: str = Field(pattern="^[A-Z]{3}$")
    token: str = Field(description="one of the test cards")


@router.put("/payments/{payment}", summary="Authorise")
async def authorise(payment: UUID, asked: Authorisation, request: Request, desk: Shop) -> Document:
    if asked.token not in CARDS:
        raise HTTPException(422, "there is no such test card: see the list at /")
    made = (str(payment), asked.amount, asked.currency, asked.token)
    return await desk.serve(
        request, "authorise", payment, lambda: desk.book.authorise(*made, time.time()), token=asked.token
    )


@router.put("/payments/{payment}/captures/{capture}", summary="Take authorised money")
async def capture(payment: UUID, capture: UUID, asked: Amount, request: Request, desk: Shop) -> Document:
    made = (str(payment), str(capture), asked.amount)
    return await desk.serve(request, "capture", payment, lambda: desk.book.capture(*made, time.time()))


@router.put("/payments/{payment}/void", summary="Give back what is held, and close the reference if it is not known")
async def void(payment: UUID, request: Request, desk: Shop) -> Document:
    return await desk.serve(request, "void", payment, lambda: desk.book.void(str(payment), time.time()))


@router.put("/payments/{payment}/refunds/{refund}", summary="Give captured money back")
async def refund(payment: UUID, refund: UUID, asked: Amount, request: Request, desk: Shop) -> Document:
    made = (str(payment), str(refund), asked.amount)
    return await desk.serve(request, "refund", payment, lambda: desk.book.refund(*made, time.time()))


@router.get("/payments/{payment}", summary="Look a payment up by the shop's reference")
async def find(payment: UUID, desk: Shop) -> Document:
    found = desk.book.find(str(payment))
    if found is None:
        raise HTTPException(404, "there is no such payment")
    return found


@router.put("/customers/{customer}/methods/{token}", summary="Keep a card for a customer, if it could pay")
async def attach(customer: UUID, token: str, request: Request, desk: Shop) -> Document:
    if token not in CARDS:
        raise HTTPException(422, "there is no such test card: see the list at /")
    code, reason = CARDS[token].refuses.get("authorise", ("", ""))
    if code:
        return {"declined": {"code": code, "reason": reason}}
    return await desk.serve(request, "attach", customer, lambda: desk.book.attach(str(customer), token), token=token)


@router.delete("/customers/{customer}/methods/{token}", summary="Forget a card of a customer's")
async def detach(customer: UUID, token: str, request: Request, desk: Shop) -> Document:
    return await desk.serve(request, "detach", customer, lambda: desk.book.detach(str(customer), token), token=token)


@router.delete("/customers/{customer}/methods", summary="Forget all cards of a customer's")
async def detach_all(customer: UUID, desk: Shop) -> Document:
    return desk.book.detach(str(customer), None)


@router.get("/customers/{customer}/methods", summary="The cards that are kept for a customer")
async def methods(customer: UUID, desk: Shop) -> Document:
    return desk.book.methods(str(customer))


@router.get("/settlements/{day}", summary="The settlement report of a day, UTC", response_class=PlainTextResponse)
async def settlement(day: date, desk: Shop) -> str:
    return report(day, desk.book, desk.terms)


@router.put("/errors/{operation}", summary="Have the reports be wrong about a capture or a refund", status_code=204)
async def err(operation: UUID, error: Error, desk: Shop) -> None:
    desk.book.err(str(operation), error)


@router.put("/reversals/{operation}", summary="Have a capture or a refund that was done fail after all")
async def reverse(operation: UUID, desk: Shop) -> Document:
    made = desk.book.reverse(str(operation), time.time())
    desk.sender.wake()
    return made


@router.get("/totals", summary="What is held, captured and refunded, by currency")
async def totals(desk: Shop) -> dict[str, dict[str, int]]:
    return desk.book.totals()


@router.get("/actions/{action}", summary="Where a customer confirms", response_class=HTMLResponse)
async def action_page(action: str) -> str:
    return (
        f"{PAGE}<h1>Your bank asks</h1><p>Is this payment yours?</p><form method=post>"
        "<button formaction='?answer=yes'>Yes, pay</button> <button formaction='?answer=no'>No</button></form>"
    )


@router.post("/actions/{action}", summary="The customer's answer", response_class=HTMLResponse)
async def decide(action: str, answer: Literal["yes", "no"], desk: Public) -> str:
    found = desk.book.decide(action, answer == "yes", time.time())
    desk.sender.wake()
    word = "Thank you" if found["status"] in ("authorised", "captured") else "Not paid"
    return f"{PAGE}<h1>{word}</h1><p>You may go back to the shop."


@router.get("/", summary="The test cards", response_class=HTMLResponse)
async def cards() -> str:
    rows = "".join(f"<tr><td><code>{token}</code><td>{card.does}" for token, card in CARDS.items())
    return f"{PAGE}<h1>Test gateway</h1><p>No money moves here. Pay with one of these tokens:</p><table>{rows}</table>"


@router.get("/health", summary="Whether it is up")
async def health(desk: Public) -> dict[str, str]:
    return {"status": "ok"}


async def wrong(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Wrong)
    return JSONResponse({"detail": str(error)}, error.status)


def create(settings: GatewaySettings) -> FastAPI:
    """The gateway's app; its state is in the settings' data folder."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.desk = desk = Desk(settings)
        sending = asyncio.create_task(desk.sender.run())
        try:
            yield
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending
            desk.book.close()

    app = FastAPI(title="Titan test gateway", version="1", lifespan=life, exception_handlers={Wrong: wrong})
    app.include_router(router)
    return app
