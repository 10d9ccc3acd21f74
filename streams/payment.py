"""The payment reactor: carries out at the gateways what payments ask for, and records what came of it.

It is called at least once for each intent, in the payment's order. What it sends goes under the intent's id, which a gateway
does once. Where an earlier try may have reached the gateway (its outcome was unknown, or a process died over it), the gateway is
asked first what it knows. An outcome that stays unknown is written down and asked for again by a durable timer, for ever: only the
gateway's word ends it.

Which gateway authorises is chosen here, when it matters, and written down before it is asked; all that follows goes to that one. It
is left for the next one in two cases. It was not reached, and the process that asks is the one that chose it: nobody else can have
asked it. Or it was asked, and says later that it has never heard of it: then it closes our reference first. While it cannot
be asked, the payment waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from uuid import UUID

import psycopg
from prometheus_client import Counter, Gauge

from aggregates.kernel import Commands, Money, Recorded, Refused, clock
from aggregates.payment import Asked, CaptureRequested, Left, Payment, RefundRequested, Requested, VoidRequested
from streams.gateways.circuit import Circuit, Guarded, State
from streams.gateways.interface import Fact, Gateway, Unknown, Unreached, calls, open_gateway
from streams.gateways.routing import Ranking, rank
from streams.gateways.settings import GatewaySettings, gateway_settings
from streams.kernel import reacts

log = logging.getLogger(__name__)

FRESH = timedelta(seconds=3)  # an older intent may have been tried by a process that died: none is replaced sooner
GATEWAYS: dict[str, Gateway] = {}  # opened when first asked for
CIRCUITS: dict[str, Circuit] = {}
TELLING: set[asyncio.Future[None]] = set()
TOLD = """
INSERT INTO gateway_circuits VALUES (%s, %s, %s, %s)
ON CONFLICT (gateway, process) DO UPDATE SET closed = excluded.closed, until = excluded.until
"""
FORGET = "DELETE FROM gateway_circuits WHERE until < now() - interval '1 day'"  # of processes that are no more

UNKNOWN = Counter("payment_unknown_total", "Requests to gateways whose outcome was not known", ["gateway"])
CONTRADICTED = Counter("payment_contradictions_total", "Gateways' words against what we know: alarm", ["gateway"])
ROUTED = Counter("payment_routed_total", "Payments that a gateway was chosen for", ["gateway"])
LEFT = Counter("payment_left_total", "Payments that went on to another gateway", ["gateway"])
CIRCUIT = Gauge("payment_circuit_open", "Whether a gateway is left alone because it did not answer", ["gateway"])


@reacts
async def authorise(r: Recorded[Requested], commands: Commands) -> None:
    await settle(r, r.event.id, commands)


@reacts
async def go_on(r: Recorded[Left], commands: Commands) -> None:
    LEFT.labels(r.event.gateway).inc()
    await settle(r, r.event.id, commands)
    if not r.event.closed:
        await settle(r, Payment.close_id_of(r.event.id, r.event.gateway), commands)


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


Intent = Requested | Left | CaptureRequested | VoidRequested | RefundRequested | Asked


async def settle(r: Recorded[Intent], intent: UUID, commands: Commands, times: int = 0) -> None:
    """Bring an intent to its outcome, or note that it is unknown still. `times`: how often it was in vain by then."""
    id = r.event.id
    payment = await commands.load(Payment, id)
    if payment.waiting.get(intent) != times:
        return  # it has its outcome, or a later try is under way
    if intent == id and payment.voiding:
        return  # never sent: the void closes its reference
    name = payment.closing.get(intent, payment.gateway)
    why = "the gateway has not decided yet"
    try:
        if intent in payment.closing:
            await gateway_of(name).void(payment.as_left())
            await commands.tell(id, Payment.closed, name)
        elif name:
            await carry_out(payment, intent, commands, tried=times > 0 or clock.now() - r.event.at > FRESH, times=times)
        elif intent == id:
            if not await authorise_anywhere(payment, commands):
                return
        else:
            await commands.tell(id, Payment.voided, "")  # no gateway has been asked, and none will be
    except Unknown as unknown:
        why = str(unknown) + (": no other gateway knows this method" if intent == id and payment.pinned else "")
        UNKNOWN.labels(name).inc()
        log.warning("payment %s, intent %s: %s", id, intent, why)
    except Refused as no:
        why = f"the gateway contradicts what is known: {no}"
        CONTRADICTED.labels(name).inc()
        log.error("payment %s, intent %s: %s", id, intent, why)
    await commands.tell(id, Payment.unresolved, intent, times, why, clock.now())  # nothing, once it has its outcome


async def carry_out(payment: Payment, intent: UUID, commands: Commands, tried: bool, times: int) -> None:
    """Have the gateway in charge do it. `tried`: it may have been asked before. Raises `Unknown`, or `Refused` for what cannot be."""
    gateway = gateway_of(payment.gateway)
    if tried:
        known = await gateway.lookup(payment)
        await record(commands, payment, known)
        if times and intent == payment.id and not known and (other := next_gateway(payment)):
            why = f"it did not answer, and has not heard of it; {other} is there"
            await commands.tell(payment.id, Payment.close, payment.gateway, why)
        in_charge, payment = payment.gateway, await commands.load(Payment, payment.id)
        if payment.gateway != in_charge:
            return  # it has closed our reference by now: another event goes on with it
    if intent in payment.waiting:
        await record(commands, payment, await send(gateway, payment, intent))


async def authorise_anywhere(payment: Payment, commands: Commands) -> bool:
    """Choose a gateway and ask it. Raises `Unknown`. False: another event goes on with it, since the gateway was not reached and
    there is another one, or since another process has chosen."""
    ranking = rank_of(payment)
    if not ranking.gateways:
        await commands.tell(
            payment.id, Payment.declined, "no_gateway", f"No gateway takes this payment: {ranking.why}."
        )
        return True
    name = next_gateway(payment)
    if name is None:
        raise Unreached(f"none of {', '.join(ranking.gateways)} can be reached")
    over = [one for one in ranking.gateways[: ranking.gateways.index(name)] if one not in payment.left]
    why = ranking.why + "".join(f"; left {one}" for one in payment.left) + "".join(f"; {one} is away" for one in over)
    try:
        await commands.tell(payment.id, Payment.route, name, why)
    except Refused:
        return False  # that one sees to it; or it is given up, and its void is to come
    ROUTED.labels(name).inc()
    payment = await commands.load(Payment, payment.id)
    try:
        facts = await gateway_of(name).authorise(payment)
    except Unreached as unreached:
        if next_gateway(payment) is None:
            raise
        await commands.tell(payment.id, Payment.leave, name, str(unreached))
        return False
    await record(commands, payment, facts)
    return True


async def send(gateway: Gateway, payment: Payment, intent: UUID) -> Sequence[Fact]:
    """Ask the gateway to carry out one intent. Raises `Unknown`."""
    if intent == payment.id and not payment.leaving:
        return await gateway.authorise(payment)
    if intent in payment.captures:
        return await gateway.capture(payment, intent, Money(payment.captures[intent].amount, payment.amount.currency))
    if intent in payment.refunds:
        return await gateway.refund(payment, intent, Money(payment.refunds[intent].amount, payment.amount.currency))
    return await gateway.void(payment)


async def record(commands: Commands, payment: Payment, facts: Sequence[Fact]) -> None:
    """Tell the payment all that the gateway in charge of it said, in one commit. Raises `Refused` for what cannot be."""
    if facts:
        await commands.tell_all(calls(payment.gateway, payment.id, facts))


def rank_of(payment: Payment) -> Ranking:
    chosen = settings()
    return rank(chosen.gateways, chosen.routes, payment.amount, payment.country, payment.method)


def next_gateway(payment: Payment) -> str | None:
    """The first gateway for a payment that is not in charge, was not left, and is not left alone."""
    over = {*payment.left, payment.gateway}
    if payment.pinned:
        return None
    return next((one for one in rank_of(payment).gateways if one not in over and circuit(one).passes), None)


@lru_cache
def settings() -> GatewaySettings:
    return gateway_settings()


def gateway_of(name: str) -> Gateway:
    if name not in GATEWAYS:
        GATEWAYS[name] = Guarded(open_gateway(name, settings()), circuit(name))
    return GATEWAYS[name]


def circuit(name: str) -> Circuit:
    """The one before a gateway, in this process."""
    if name not in CIRCUITS:
        CIRCUITS[name] = Circuit(name, clock.now, changed=_turned)
        CIRCUIT.labels(name).set(0)
    return CIRCUITS[name]


def _turned(name: str, state: State) -> None:
    CIRCUIT.labels(name).set(state != "closed")
    log.warning("the circuit before the gateway %s is %s", name, state)
    telling = asyncio.ensure_future(_tell(name, state == "closed", CIRCUITS[name].until))
    TELLING.add(telling)
    telling.add_done_callback(TELLING.discard)


async def _tell(name: str, closed: bool, until: datetime) -> None:
    """So that others see it, at `/payments/gateways`."""
    process = settings().instance or f"{socket.gethostname()}:{os.getpid()}"
    try:
        async with await psycopg.AsyncConnection.connect(settings().postgres, connect_timeout=5) as connection:
            await connection.execute(TOLD, (name, process, closed, until))
            await connection.execute(FORGET)
    except psycopg.Error as error:
        log.warning("nobody is told of the gateway %s: %s", name, error)
