"""What was paid for which order, and each capture and refund. Amounts are in the minor units of the payment's currency."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.kernel import Event
from aggregates.payment import (
    ActionRequired,
    Asked,
    AttachDeclined,
    AttachRequested,
    Authorisation,
    Authorised,
    Captured,
    CaptureFailed,
    CaptureRequested,
    CaptureReversed,
    Closed,
    Compared,
    DayOpened,
    Declined,
    Detached,
    DifferenceFound,
    Leaving,
    Left,
    MethodPreferred,
    MethodRemoved,
    MethodSaved,
    MethodsForgotten,
    MethodsKept,
    Refunded,
    RefundFailed,
    RefundRequested,
    RefundReversed,
    ReportDue,
    ReportMissing,
    Requested,
    Routed,
    State,
    Unresolved,
    Voided,
    VoidRequested,
)
from projections.kernel import Change, Table, project
from schemas import Sealed

payments = Table(
    "payments",
    key="id",
    id=UUID,
    order=UUID,
    customer=UUID,
    amount=int,
    currency=str,
    method=str,
    gateway=str,  # in charge; empty while there is none
    country=str | None,
    authorisation=Authorisation,  # of what is not captured
    captured=int,
    refunded=int,
    url=str | None,  # where the customer confirms
    code=str | None,  # why it was declined
    reason=str | None,
    expires_at=datetime | None,
    unresolved=bool,  # the gateway did not answer last time: it is asked again
    attention=bool,  # captured money was taken from us again, and not captured anew since
    requested_at=datetime,
    changed_at=datetime,
    version=int,
    person="customer",
    indexes=[("customer", "requested_at"), ("order",), ("requested_at",), ("attention", "requested_at")],
)
operations = Table(
    "payment_operations",
    key=("payment", "id"),
    payment=UUID,
    id=UUID,
    kind=Literal["capture", "refund"],
    amount=int,
    currency=str,
    state=State,
    code=str | None,
    reason=str | None,
    asked_at=datetime,
    changed_at=datetime,
    indexes=[("state", "changed_at")],  # a day's, for reconciliation
    part_of="payment",
)
methods = Table(
    "payment_methods",
    key=("customer", "method"),
    customer=UUID,
    method=UUID,
    gateway=str,
    token=str,
    brand=str,
    last_four=Sealed,
    expires=str,
    changed_at=datetime,
    person="customer",
)
preferences = Table(
    "payment_preferences", key="customer", customer=UUID, method=UUID, version=int, person="customer"
)  # one removed since is none

reconciliations = Table(
    "reconciliations",
    key="id",
    id=UUID,
    gateway=str,
    day=str,
    status=Literal["open", "missing", "compared"],
    why=str | None,  # there is no report
    report=str | None,
    rows=int,
    agree=int,
    differences=int,
    run=int,
    changed_at=datetime,
    version=int,
    indexes=[("gateway", "day"), ("day",)],
)
differences = Table(
    "reconciliation_differences",
    key=("reconciliation", "version"),
    reconciliation=UUID,
    version=int,
    run=int,  # of the last one all count
    kind=str,
    payment=UUID | None,  # none of ours
    operation=UUID | None,
    row=str,
    ours=str,
    theirs=str,
    found_at=datetime,
    part_of="payment",
    indexes=[("reconciliation", "run", "version")],
)


@project
def methods_kept(e: MethodsKept) -> list[Change]:
    return [preferences.put(e.id, version=e.version)]


@project
def method_saved(e: MethodSaved) -> list[Change]:
    shown = methods.put(
        (e.id, e.method),
        gateway=e.gateway,
        token=e.token,
        brand=e.brand,
        last_four=e.last_four,
        expires=e.expires,
        changed_at=e.at,
    )
    return [shown, preferences.put(e.id, version=e.version)]


@project
def method_removed(e: MethodRemoved) -> list[Change]:
    return [methods.drop((e.id, e.method)), preferences.put(e.id, version=e.version)]


@project
def methods_under_way(e: AttachRequested | AttachDeclined | MethodsForgotten | Detached) -> list[Change]:
    return [preferences.put(e.id, version=e.version)]  # what a gateway has to do yet is seen in the history


@project
def method_preferred(e: MethodPreferred) -> list[Change]:
    return [preferences.put(e.id, method=e.method, version=e.version)]


@project
def requested(e: Requested) -> list[Change]:
    return _now(
        e,
        order=e.order,
        customer=e.customer,
        amount=e.amount.amount,
        currency=e.amount.currency,
        method=e.method,
        gateway=e.gateway,
        country=e.country,
        authorisation="requested",
        requested_at=e.at,
    )


@project
def routed(e: Routed) -> list[Change]:
    return _now(e, gateway=e.gateway, unresolved=False)


@project
def leaving(e: Leaving) -> list[Change]:
    return _now(e)


@project
def left(e: Left) -> list[Change]:
    return _now(e, gateway="", unresolved=False)


@project
def closed(e: Closed) -> list[Change]:
    return _now(e)


@project
def action_required(e: ActionRequired) -> list[Change]:
    return _now(e, authorisation="action_required", url=e.url, expires_at=e.expires_at, unresolved=False)


@project
def authorised(e: Authorised) -> list[Change]:
    return _now(e, authorisation="authorised", url=None, expires_at=e.expires_at, unresolved=False)


@project
def declined(e: Declined) -> list[Change]:
    return _now(e, authorisation="declined", url=None, expires_at=None, code=e.code, reason=e.reason, unresolved=False)


@project
def capture_requested(e: CaptureRequested) -> list[Change]:
    return [_asked(e, e.capture, "capture"), *_now(e)]


@project
def captured(e: Captured) -> list[Change]:
    taken = payments.add(e.id, captured=e.amount.amount)
    return [taken, _ended(e, e.capture, "done"), *_now(e, unresolved=False, attention=False)]


@project
def capture_failed(e: CaptureFailed) -> list[Change]:
    return [_failed(e, e.capture), *_now(e, unresolved=False)]


@project
def capture_reversed(e: CaptureReversed) -> list[Change]:
    gone = payments.add(e.id, captured=-e.amount.amount)
    return [gone, _ended(e, e.capture, "reversed", code=e.code, reason=e.reason), *_now(e, attention=True)]


@project
def void_requested(e: VoidRequested) -> list[Change]:
    return _now(e)


@project
def voided(e: Voided) -> list[Change]:
    return _now(e, authorisation="voided", url=None, expires_at=None, unresolved=False)


@project
def refund_requested(e: RefundRequested) -> list[Change]:
    return [_asked(e, e.refund, "refund"), *_now(e)]


@project
def refunded(e: Refunded) -> list[Change]:
    returned = payments.add(e.id, refunded=e.amount.amount)
    return [returned, _ended(e, e.refund, "done"), *_now(e, unresolved=False)]


@project
def refund_failed(e: RefundFailed) -> list[Change]:
    return [_failed(e, e.refund), *_now(e, unresolved=False)]


@project
def refund_reversed(e: RefundReversed) -> list[Change]:
    back = payments.add(e.id, refunded=-e.amount.amount)
    return [back, _ended(e, e.refund, "reversed", code=e.code, reason=e.reason), *_now(e)]


@project
def unresolved(e: Unresolved) -> list[Change]:
    return _now(e, unresolved=True) if e.gateway is None else _now(e)  # one that was left is nobody's worry


@project
def asked(e: Asked) -> list[Change]:
    return _now(e)


@project
def day_opened(e: DayOpened) -> list[Change]:
    return _day(e, gateway=e.gateway, day=e.day, status="open")


@project
def report_due(e: ReportDue) -> list[Change]:
    return _day(e)


@project
def report_missing(e: ReportMissing) -> list[Change]:
    return _day(e, status="missing", why=e.reason)


@project
def compared(e: Compared) -> list[Change]:
    counted = {"rows": e.rows, "agree": e.agree, "differences": e.differences}
    return [reconciliations.add(e.id, run=1), *_day(e, status="compared", why=None, report=e.report, **counted)]


@project
def difference_found(e: DifferenceFound) -> list[Change]:
    one = e.difference
    shown = differences.put(
        (e.id, e.version),
        run=e.run,
        kind=one.kind,
        payment=one.payment,
        operation=one.operation,
        row=one.row,
        ours=one.ours,
        theirs=one.theirs,
        found_at=e.at,
    )
    return [shown, *_day(e)]


def _day(e: Event, **columns: Any) -> list[Change]:
    return [reconciliations.put(e.id, changed_at=e.at, version=e.version, **columns)]


def _now(e: Event, **columns: Any) -> list[Change]:
    return [payments.put(e.id, changed_at=e.at, version=e.version, **columns)]


def _asked(e: CaptureRequested | RefundRequested, id: UUID, kind: str) -> Change:
    amount, currency = e.amount.amount, e.amount.currency
    return operations.put(
        (e.id, id), kind=kind, amount=amount, currency=currency, state="asked", asked_at=e.at, changed_at=e.at
    )


def _failed(e: CaptureFailed | RefundFailed, id: UUID) -> Change:
    return _ended(e, id, "reversed" if e.accepted else "failed", code=e.code, reason=e.reason)


def _ended(e: Event, id: UUID, state: State, **columns: Any) -> Change:
    return operations.put((e.id, id), state=state, changed_at=e.at, **columns)
