"""The payment reactor: carries out at the gateways what payments ask for, and records what came of it.

It is called at least once for each intent, in the payment's order. What it sends goes under the intent's id, which a gateway
does once. Where an earlier try may have reached the gateway (its outcome was unknown, or a process died over it), the gateway is
asked first what it knows. An outcome that stays unknown is written down and asked for again by a durable timer, for ever: only the
gateway's word ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prometheus_client import Counter

from aggregates.kernel import Commands, Money, Recorded, Refused, clock
from aggregates.payment import Asked, CaptureRequested, Payment, RefundRequested, Requested, VoidRequested
from streams.gateways.interface import Fact, Gateway, Unknown, calls, open_gateway
from streams.gateways.settings import GatewaySettings
from streams.kernel import reacts

log = logging.getLogger(__name__)

FRESH = timedelta(seconds=3)  # an older intent may have been tried by a process that died: none is replaced sooner
GATEWAYS: dict[str, Gateway] = {}  # opened when first asked for

UNKNOWN = Counter("payment_unknown_total", "Requests to gateways whose outcome was not known", ["gateway"])
CONTRADICTED = Counter("payment_contradictions_total", "Gateways' words against what we know: alarm", ["gateway"])


@reacts
async def authorise(r: Recorded[Requested], commands: Commands) -> None:
    await settle(r, r.event.id, commands)


@reacts
async def capture(r: Recorded[CaptureRequested], commands: Commands) -> None:
    await settle(r, r.event.capture, commands)


@reacts
async def void(r: Recorded[VoidRequested], commands: Commands) -> None:
    await settle(r, Payment.void_id_of(r.event.id), commands)


@reacts
async def refund(r: Recorded[RefundRequested], commands: Commands) -> None:
    await settle(r, r.event.refund, commands)


@reacts
async def ask(r: Recorded[Asked], commands: Commands) -> None:
    await settle(r, r.event.intent, commands, times=r.event.times)


Intent = Requested | CaptureRequested | VoidRequested | RefundRequested | Asked


async def settle(r: Recorded[Intent], intent: UUID, commands: Commands, times: int = 0) -> None:
    """Bring an intent to its outcome, or note that it is unknown still. `times`: how often it was in vain by then."""
    id = r.event.id
    payment = await commands.load(Payment, id)
    if payment.waiting.get(intent) != times:
        return  # it has its outcome, or a later try is under way
    if intent == id and payment.voiding:
        return  # never sent: the void closes its reference
    gateway = open_gateway_once(payment.gateway)
    try:
        if times or clock.now() - r.event.at > FRESH:
            await record(commands, id, await gateway.lookup(payment))
            payment = await commands.load(Payment, id)
        if intent in payment.waiting:
            await record(commands, id, await send(gateway, payment, intent))
        why = "the gateway has not decided yet"
    except Unknown as unknown:
        why = str(unknown)
        UNKNOWN.labels(payment.gateway).inc()
        log.warning("payment %s, intent %s: %s", id, intent, why)
    except Refused as no:
        why = f"the gateway contradicts what is known: {no}"
        CONTRADICTED.labels(payment.gateway).inc()
        log.error("payment %s, intent %s: %s", id, intent, why)
    await commands.tell(id, Payment.unresolved, intent, times, why, clock.now())  # nothing, once it has its outcome


async def send(gateway: Gateway, payment: Payment, intent: UUID) -> Sequence[Fact]:
    """Ask the gateway to carry out one intent. Raises `Unknown`."""
    if intent == payment.id:
        return await gateway.authorise(payment)
    if intent in payment.captures:
        return await gateway.capture(payment, intent, Money(payment.captures[intent].amount, payment.amount.currency))
    if intent in payment.refunds:
        return await gateway.refund(payment, intent, Money(payment.refunds[intent].amount, payment.amount.currency))
    return await gateway.void(payment)


async def record(commands: Commands, id: UUID, facts: Sequence[Fact]) -> None:
    """Tell the payment all that the gateway says, in one commit."""
    if facts:
        await commands.tell_all(calls(id, facts))


def open_gateway_once(name: str) -> Gateway:
    if name not in GATEWAYS:
        GATEWAYS[name] = open_gateway(name, GatewaySettings())
    return GATEWAYS[name]
