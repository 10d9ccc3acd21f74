"""Where a bank sends a customer's browser back to, once they have confirmed a payment, or not."""

from __future__ import annotations

import logging
from uuid import NAMESPACE_URL, UUID, uuid5

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse

from aggregates.kernel import NotFound, Origin, Refused
from aggregates.payment import Methods, Payment
from api.kernel.route import Route
from api.kernel.stores import TheHost
from api.payment.doors import door
from infra.logs import correlation
from streams.gateways.interface import Confirming, Declined, Returning, Unknown, calls

log = logging.getLogger(__name__)

router = APIRouter(prefix="/payments", tags=["payments"], route_class=Route)

HTML = {"content": {"text/html": {"schema": {"type": "string"}}}, "description": "The way back to the shop"}
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "no-referrer",  # the address says what the bank said
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<p>Thank you. You can go back to the shop: {there}.</p></html>"""
PAID = PAGE.format(title="Your payment", there="your order shows how it went")
SAVED = PAGE.format(title="Your card", there="your ways to pay show whether it is saved")
FROM_BANKS = ("redirectResult", "payment_intent")  # Adyen's word, and Stripe's


@router.get(
    "/{id}/return",
    summary="A customer's browser comes back from the bank",
    response_class=HTMLResponse,
    responses={200: HTML},
)
async def back(id: UUID, request: Request, host: TheHost) -> HTMLResponse:
    """What the bank put into the address goes to the gateway, once, which also tells by a webhook what it makes of it. Whoever comes
    here is told the same, and nothing of the payment."""
    query = dict(request.query_params)
    payment = await host.store.load(Payment, id)
    if not any(name in query for name in FROM_BANKS):
        raise NotFound("nobody comes back from a bank with this address")
    if payment.authorisation == "action_required" and not payment.voiding:
        gateway = door(host, payment.gateway)
        if isinstance(gateway, Returning):
            try:
                facts = await gateway.returned(payment, query)
                command = uuid5(NAMESPACE_URL, f"{payment.gateway}\nreturn\n{id}\n{sorted(query.items())}")
                origin = Origin(f"gateway:{payment.gateway}", correlation.get(), command)
                await host.store.commands(origin).tell_all(calls(payment.gateway, id, facts))
            except (Unknown, Refused) as why:
                log.warning("payment %s, back from the bank: %s", id, why)
    return HTMLResponse(PAID, headers=HEADERS)


@router.get(
    "/methods/{customer}/{method}/return",
    summary="A customer's browser comes back from the bank, which was to confirm a way to pay",
    response_class=HTMLResponse,
    responses={200: HTML},
)
async def back_to_save(customer: UUID, method: UUID, request: Request, host: TheHost) -> HTMLResponse:
    """As of a payment: the gateway says what it makes of what the bank said, and saves it for nobody else."""
    query = dict(request.query_params)
    if not any(name in query for name in FROM_BANKS):
        raise NotFound("nobody comes back from a bank with this address")
    asked = (await host.store.load(Methods, customer)).asked.get(method)
    gateway = door(host, asked.gateway) if asked else None
    if asked and isinstance(gateway, Confirming):
        commands = host.store.commands(Origin(f"gateway:{asked.gateway}", correlation.get()))
        try:
            token = await gateway.confirmed(customer, method, query)
            await commands.tell(customer, Methods.attached, method, asked.gateway, token)
        except Declined as no:
            await commands.tell(customer, Methods.declined, method, asked.gateway, no.code, no.reason)
        except (Unknown, Refused, NotFound) as why:
            log.warning("way to pay %s, back from the bank: %s", method, why)
    return HTMLResponse(SAVED, headers=HEADERS)
