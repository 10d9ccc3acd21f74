"""Reconciliation: each day of each gateway becomes due once it is over; then its settlement report is fetched and held against us,
together with those of the days before, so that what settles later is neither lost nor found twice.

A day is opened by the first payment that a gateway gets, and from then on by the day before. `titan reconcile` does the same by hand.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta

import psycopg
from prometheus_client import Counter

from aggregates.kernel import Commands, Conflict, Money, Recorded, clock
from aggregates.payment import Reconciliation, ReportDue, Requested, Routed
from streams.gateways.interface import Gateway, Unknown, open_gateway
from streams.gateways.settings import GatewaySettings, gateway_settings
from streams.gateways.settlement import Done, NoReport, Settled, Settles, compare, day_of, days_before
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
    settings = gateway_settings()
    try:
        gateway = open_gateway(name, settings)
    except LookupError as error:
        await commands.tell(r.event.id, Reconciliation.report_missing, str(error), clock.now())
        return
    try:
        settles = settling(gateway)
        report, *earlier = await reports(settles, day)
        await reconcile(name, day, report, earlier, settles, settings, commands)
    except (Unknown, NoReport, ValueError) as error:
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


async def reports(gateway: Settles, day: date) -> list[bytes]:
    """The report of a day, and those of the days before that there are. Raises `NoReport` when there is none of the day, or `Unknown`."""
    found = [await gateway.settlement(day)]
    for one in reversed(days_before(day, gateway.within)):
        with suppress(NoReport):  # nothing happened on that day, or the gateway is new
            found.append(await gateway.settlement(one))
    return found


async def reconcile(
    name: str,
    day: date,
    report: bytes,
    earlier: Sequence[bytes],
    gateway: Settles,
    settings: GatewaySettings,
    commands: Commands,
) -> Reconciliation:
    """Hold a report against what we know and record what does not agree. `earlier`: the reports of the days before, the latest first.
    Raises `ValueError` for one that can't be read, and `Refused` while the day is not over."""
    theirs = gateway.settled(report)
    before = [row for one in reversed(earlier) for row in gateway.settled(one)]
    ours = await done(name, day, gateway.within, [*theirs, *before], settings)
    agree, found = compare(day, ours, theirs, before, gateway.within)
    id, digest = Reconciliation.id_of(name, day), hashlib.sha256(report).hexdigest()
    runs = (await commands.load(Reconciliation, id)).runs
    await commands.tell(id, Reconciliation.compared, digest, len(theirs), agree, found, clock.now())
    made = await commands.load(Reconciliation, id)
    for one in found if made.runs > runs else ():  # the same result again is no news
        DIFFERENCES.labels(name, one.kind).inc()
    return made


async def done(
    name: str, day: date, within: timedelta, rows: Sequence[Settled], settings: GatewaySettings
) -> list[Done]:
    """What was done at a gateway and is to be in a report by the end of a day, and whatever else of it the rows name."""
    first = datetime.combine(day, time(), UTC) - within
    named = [*{row.payment for row in rows if row.payment}]
    asked = {"gateway": name, "first": first, "end": first + timedelta(days=1), "named": named}
    async with await psycopg.AsyncConnection.connect(settings.postgres, connect_timeout=5) as connection:
        found = await (await connection.execute(OURS, asked)).fetchall()
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
        for kind, payment, operation, amount, currency, at in found
    ]
