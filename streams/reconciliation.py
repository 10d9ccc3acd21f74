"""Reconciliation: each day of each gateway becomes due once it is over; then its settlement report is fetched and held against us,
together with those of the days before, so that what settles later is neither lost nor found twice.

What we know is read from the events, not from a read model, which may be behind. A day is opened by the first payment that a gateway gets, and from then on by the day before. `titan reconcile` does the same by hand.
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

from aggregates.kernel import Commands, Conflict, Event, Money, NotFound, Recorded, Refused, clock, wire
from aggregates.kernel.wire import COLUMNS, Row
from aggregates.payment import (
    Captured,
    CaptureFailed,
    CaptureReversed,
    Left,
    Payment,
    Reconciliation,
    Refunded,
    RefundFailed,
    RefundReversed,
    ReportDue,
    Requested,
    Routed,
)
from streams.gateways.interface import Gateway, Unknown, calls, fact, open_gateway
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings, gateway_settings
from streams.gateways.settlement import Done, NoReport, Ours, Settled, Settles, compare, day_of, days_before
from streams.kernel import reacts

log = logging.getLogger(__name__)

DIFFERENCES = Counter("reconciliation_differences_total", "Differences to gateways' reports", ["gateway", "kind"])
OPENED: set[tuple[str, date]] = set()  # known to be open, by this process

TAKEN_BACK = {"capture reversed": Payment.capture_reversed, "refund reversed": Payment.refund_reversed}
REPORTED = "reversed_in_report"  # code of what a report was the first to tell
SKEW = timedelta(hours=1)  # by which the clocks of processes may differ at the very most
WORDS = {kind.type: kind for kind in (Captured, Refunded, CaptureReversed, RefundReversed, CaptureFailed, RefundFailed)}
IN_CHARGE = (Requested.type, Routed.type, Left.type)
NEXT = "SELECT occurred_at FROM payment_events WHERE notification_id > %s ORDER BY notification_id LIMIT 1"
TOUCHED = """
SELECT DISTINCT originator_id FROM payment_events
WHERE notification_id > %s AND event_type = ANY(%s) AND occurred_at >= %s AND occurred_at < %s
"""
OURS = f"""
SELECT {COLUMNS} FROM payment_events WHERE originator_id = ANY(%s) AND event_type = ANY(%s)
ORDER BY originator_id, originator_version
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
    await hear(name, day, theirs, ours, commands)
    made = await commands.load(Reconciliation, id)
    for one in found if made.runs > runs else ():  # the same result again is no news
        DIFFERENCES.labels(name, one.kind).inc()
    return made


async def hear(name: str, day: date, rows: Sequence[Settled], ours: Sequence[Done], commands: Commands) -> None:
    """Record what was taken back, if the gateway's report is the first that tells: its webhook was lost."""
    known = {(one.payment, one.operation, one.kind) for one in ours}
    for row in rows:
        call = TAKEN_BACK.get(row.kind)
        if call is None or row.payment is None or row.operation is None or row.amount is None:
            continue
        if (row.payment, row.operation, row.kind) not in known:
            said = fact(call, row.operation, Money(row.amount, row.currency), REPORTED, f"So its report of {day} says.")
            try:
                await commands.tell_all(calls(name, row.payment, [said]))
            except (NotFound, Refused) as no:  # it stays a difference
                log.error("the settlement report of %s for %s says what cannot be: %s", name, day, no)


async def done(
    name: str, day: date, within: timedelta, rows: Sequence[Settled], settings: GatewaySettings
) -> list[Done]:
    """What was done or taken back at a gateway by payments of which something is to be in a report by the end of a day, or that the
    rows name."""
    first = datetime.combine(day, time(), UTC) - within
    named = {row.payment for row in rows if row.payment}
    async with await psycopg.AsyncConnection.connect(settings.dsn("payment"), connect_timeout=5) as connection:
        span = await _before(connection, first - SKEW), [*WORDS], first, first + timedelta(days=1)
        named |= {id async for (id,) in await connection.execute(TOUCHED, span)}
        rows_of = await connection.execute(OURS, ([*named], [*WORDS, *IN_CHARGE]))
        events = [wire.recorded("payment", Row(*row)).event async for row in rows_of]
    in_charge: dict[UUID, str] = {}
    told: list[Done] = []
    for e in events:
        match e:
            case Requested() | Routed():
                in_charge[e.id] = e.gateway
            case Left():
                in_charge[e.id] = ""
            case _ if in_charge.get(e.id) == name:
                told += _said(e, settings.gateways[name])
    return told


def _said(e: Event, terms: Terms) -> list[Done]:
    """What an event says of the gateway's books."""
    match e:
        case Captured():
            fee = terms.cost(e.amount) if terms.fee_bp or terms.fee_fixed else None
            return [Done("capture", e.id, e.capture, e.amount.amount, e.amount.currency, fee, e.at)]
        case CaptureReversed():
            heard = e.code != REPORTED  # else it is in a report of earlier
            return [Done("capture reversed", e.id, e.capture, e.amount.amount, e.amount.currency, None, e.at, heard)]
        case Refunded():
            return [Done("refund", e.id, e.refund, e.amount.amount, e.amount.currency, None, e.at)]
        case RefundReversed():
            heard = e.code != REPORTED
            return [Done("refund reversed", e.id, e.refund, e.amount.amount, e.amount.currency, None, e.at, heard)]
        case CaptureFailed() | RefundFailed() if e.accepted:
            kinds: tuple[Ours, Ours] = ("refund", "refund reversed")
            if isinstance(e, CaptureFailed):
                kinds = ("capture", "capture reversed")
            operation = e.capture if isinstance(e, CaptureFailed) else e.refund
            return [
                Done(kind, e.id, operation, e.amount.amount, e.amount.currency, None, e.at, certain=False)
                for kind in kinds
            ]
    return []


async def _before(connection: psycopg.AsyncConnection, at: datetime) -> int:
    """The position in the log of payments up to which everything happened before that time."""
    [[last]] = await (
        await connection.execute("SELECT coalesce(max(notification_id), 0) FROM payment_events")
    ).fetchall()
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        row = await (await connection.execute(NEXT, (middle,))).fetchone()
        if row is None or row[0] >= at:
            high = middle
        else:
            low = middle + 1
    return low
