"""Reconciliation: each day of each gateway becomes due once it is over; then its settlement report is fetched and held against us.

A day is opened by the first payment that a gateway gets, and from then on by the day before. `titan reconcile` does the same by hand.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

import psycopg
from prometheus_client import Counter

from aggregates.kernel import Commands, Conflict, Money, NotFound, Recorded, clock
from aggregates.payment import Reconciliation, ReportDue, Requested, Routed
from streams.gateways.interface import Gateway, Unknown, open_gateway
from streams.gateways.settings import GatewaySettings
from streams.gateways.settlement import Done, Settled, Settles, compare, day_of
from streams.kernel import reacts

log = logging.getLogger(__name__)

DIFFERENCES = Counter("reconciliation_differences_total", "Differences to gateways' reports", ["gateway", "kind"])
OPENED: set[tuple[str, date]] = set()  # known to be open, by this process

OURS = """
SELECT o.kind, o.payment, o.id, o.amount, o.currency, o.changed_at
FROM payment_operations o JOIN payments p ON p.id = o.payment
WHERE p.gateway = %(gateway)s AND o.state = 'done'
    AND ((o.changed_at >= %(first)s AND o.changed_at < %(end)s) OR o.payment = ANY(%(named)s))
"""


@reacts
async def open_day(r: Recorded[Requested | Routed], commands: Commands) -> None:
    if r.event.gateway:
        await opened(r.event.gateway, day_of(r.event.at), commands)


@reacts
async def fetch(r: Recorded[ReportDue], commands: Commands) -> None:
    name, day = r.event.gateway, date.fromisoformat(r.event.day)
    await opened(name, day + timedelta(days=1), commands)
    settings = GatewaySettings()
    try:
        gateway = open_gateway(name, settings)
    except LookupError as error:
        await commands.tell(r.event.id, Reconciliation.report_missing, str(error), clock.now())
        return
    try:
        report = await settling(gateway).settlement(day)
        await reconcile(name, day, report, settling(gateway), settings, commands)
    except (Unknown, ValueError) as error:
        log.warning("the settlement report of %s for %s is asked for again: %s", name, day, error)
        await commands.tell(r.event.id, Reconciliation.report_missing, str(error), clock.now())
    finally:
        await gateway.close()


async def opened(name: str, day: date, commands: Commands) -> None:
    """Make sure that a day of a gateway is going to be reconciled."""
    if (name, day) not in OPENED:
        with suppress(Conflict):  # it is open
            await commands.open_as(Reconciliation.id_of(name, day), Reconciliation, name, day.isoformat())
        OPENED.add((name, day))


def settling(gateway: Gateway) -> Settles:
    """Raises `ValueError` for a gateway without reports."""
    if not isinstance(gateway, Settles):
        raise ValueError("this gateway has no settlement reports")
    return gateway


async def reconcile(
    name: str, day: date, report: bytes, gateway: Settles, settings: GatewaySettings, commands: Commands
) -> Reconciliation:
    """Hold a report against what we know and record what does not agree. Raises `ValueError` for one that can't be read, and
    `Refused` while the day is not over."""
    theirs = gateway.settled(report)
    id, before = Reconciliation.id_of(name, day), Reconciliation.id_of(name, day - timedelta(days=1))
    try:
        awaited = (await commands.load(Reconciliation, before)).awaited
    except NotFound:
        awaited = []
    agree, found = compare(day, await done(name, day, theirs, awaited, settings), theirs, awaited)
    digest = hashlib.sha256(report).hexdigest()
    await commands.tell(id, Reconciliation.compared, digest, len(theirs), agree, found, clock.now())
    for one in found:
        DIFFERENCES.labels(name, one.kind).inc()
    return await commands.load(Reconciliation, id)


async def done(
    name: str, day: date, theirs: Sequence[Settled], awaited: Sequence[tuple[UUID, UUID]], settings: GatewaySettings
) -> list[Done]:
    """What was done at a gateway on a day, and whatever else of it a report or the day before names."""
    first = datetime.combine(day, time(), UTC)
    named = [*{row.payment for row in theirs}, *{payment for payment, _ in awaited}]
    asked = {"gateway": name, "first": first, "end": first + timedelta(days=1), "named": named}
    async with await psycopg.AsyncConnection.connect(settings.postgres, connect_timeout=5) as connection:
        rows = await (await connection.execute(OURS, asked)).fetchall()
    terms = settings.gateways[name]
    priced = terms.fee_bp or terms.fee_fixed
    return [
        Done(
            kind,
            payment,
            operation,
            amount,
            currency,
            terms.cost(Money(amount, currency)) if priced and kind == "capture" else None,
            at,
        )
        for kind, payment, operation, amount, currency, at in rows
    ]
