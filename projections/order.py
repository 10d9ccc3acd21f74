"""What was ordered and where it stands, the story of each order, and for analysts the sold lines."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.kernel import Event
from aggregates.kernel.money import Line, Tender
from aggregates.order import (
    Cancelled,
    Completed,
    Confirmed,
    Delivered,
    Paid,
    PaymentReversed,
    PaymentSettled,
    Placed,
    RefundBegun,
    RefundDropped,
    Refunded,
    SentAll,
    Shipped,
    Status,
)
from projections.kernel import Change, ClickTable, Table, project
from schemas import Address

orders = Table(
    "orders",
    key="id",
    id=UUID,
    number=str,
    customer=UUID,
    status=Status,
    currency=str,
    lines=list[Line],
    subtotal=int,
    discount=int,
    shipping=int,
    tax=int,
    total=int,
    address=Address,
    payment=UUID | None,  # the card's
    tenders=list[Tender],  # what it was paid with
    refunding=int,  # on its way back
    refunded=int,
    cancelled_because=str | None,
    owed=int,  # reversed at the gateway after it was captured
    attention=bool,  # somebody has to see to what is owed
    placed_at=datetime,
    changed_at=datetime,
    version=int,
    person="customer",
    indexes=[("customer", "placed_at"), ("placed_at",), ("number",), ("attention", "placed_at")],
)
order_lines = Table(
    "order_lines",
    key=("order", "sku"),
    order=UUID,
    sku=str,
    product=UUID,
    title=str,
    quantity=int,
    net=int,
    shipped=int,
    refunding=int,  # pieces
    refunded=int,  # pieces
    placed_at=datetime,
    part_of="order",
    indexes=[("product", "placed_at")],
)
order_timeline = Table(
    "order_timeline",
    key=("order", "version"),
    order=UUID,
    version=int,
    at=datetime,
    what=str,
    detail=str,
    part_of="order",
)

# An order as a list shows it.
order_summary = Table(
    "order_summary",
    key="id",
    id=UUID,
    number=str,
    customer=UUID,
    status=Status,
    currency=str,
    lines=int,
    total=int,
    refunded=int,
    placed_at=datetime,
    changed_at=datetime,
    person="customer",
    indexes=[("customer", "placed_at"), ("status", "changed_at")],
)

# For analysts a row each time that an order's status changes; what was ordered stands in the first.
order_states = ClickTable(
    "order_summary",
    order_by=("order",),
    order=UUID,
    version=int,
    at=datetime,
    status=Status,
    number=str,
    customer=UUID,
    currency=str,
    lines=int,
    total=int,
    part_of="order",  # who ordered stands in the first row alone
    views={
        "order_now": "SELECT order, max(number) AS number, max(customer) AS customer, max(currency) AS currency,"
        " max(lines) AS lines, max(total) AS total, argMax(status, version) AS status, min(at) AS placed_at,"
        " max(at) AS changed_at FROM order_summary FINAL GROUP BY order",
    },
)

# Amounts without tax, in minor units. A cancelled order's lines stand here again, negative; so does what is refunded of a line.
sales = ClickTable(
    "sales",
    order_by=("product", "at"),
    at=datetime,
    kind=Literal["sale", "cancellation", "refund"],
    order=UUID,
    customer=UUID,
    product=UUID,
    sku=str,
    title=str,
    currency=str,
    quantity=int,
    revenue=int,
    tax=int,
    person="customer",
    views={
        "revenue_by_minute": "SELECT toStartOfMinute(at) AS minute, currency, sum(revenue) AS revenue, sum(tax) AS tax,"
        " sum(quantity) AS quantity, uniqExact(order) AS orders FROM sales FINAL GROUP BY minute, currency",
        "revenue_by_product": "SELECT product, currency, argMax(title, at) AS title, sum(revenue) AS revenue, sum(tax) AS tax,"
        " sum(quantity) AS quantity, uniqExact(order) AS orders FROM sales FINAL GROUP BY product, currency",
    },
)


@project
def placed(e: Placed) -> list[Change]:
    row = orders.put(
        e.id,
        number=e.number,
        customer=e.customer,
        currency=e.currency,
        lines=list(e.lines),
        subtotal=e.subtotal,
        discount=e.discount,
        shipping=e.shipping,
        tax=e.tax,
        total=e.total,
        address=e.address,
        placed_at=e.at,
    )
    lines = [
        order_lines.put(
            (e.id, line.sku),
            product=line.product,
            title=line.title,
            quantity=line.quantity,
            net=line.net,
            placed_at=e.at,
        )
        for line in e.lines
    ]
    return [row, *lines, *_now(e, "placed", e.number, status="placed")]


@project
def summed_up(e: Placed) -> list[Change]:
    return [
        order_summary.put(
            e.id,
            number=e.number,
            customer=e.customer,
            status="placed",
            currency=e.currency,
            lines=len(e.lines),
            total=e.total,
            placed_at=e.at,
            changed_at=e.at,
        )
    ]


@project
def moved_on(e: Confirmed | Paid | Completed | Cancelled) -> list[Change]:
    return [order_summary.put(e.id, status=STATUS[type(e)], changed_at=e.at)]


@project
def parcel_moved(e: Shipped | Delivered) -> list[Change]:
    if e.last:
        return [order_summary.put(e.id, status=STATUS[type(e)], changed_at=e.at)]
    return [order_summary.put(e.id, changed_at=e.at)]


@project
def money_went_back(e: Refunded) -> list[Change]:
    return [order_summary.add(e.id, refunded=e.amount), order_summary.put(e.id, changed_at=e.at)]


@project
def money_was_reversed(e: PaymentReversed | PaymentSettled) -> list[Change]:
    return [order_summary.put(e.id, changed_at=e.at)]


@project
def refund_moved(e: RefundBegun | RefundDropped) -> list[Change]:
    return [order_summary.put(e.id, changed_at=e.at)]


@project
def nothing_left_to_send(e: SentAll) -> list[Change]:
    return [order_summary.put(e.id, status=status_of(e), changed_at=e.at)]


@project
def came_in(e: Placed) -> list[Change]:
    return [
        order_states.row(
            order=e.id,
            version=e.version,
            at=e.at,
            status="placed",
            number=e.number,
            customer=e.customer,
            currency=e.currency,
            lines=len(e.lines),
            total=e.total,
        )
    ]


@project
def went_on(e: Confirmed | Paid | Completed | Cancelled) -> list[Change]:
    return [order_states.row(order=e.id, version=e.version, at=e.at, status=STATUS[type(e)])]


@project
def parcel_went_on(e: Shipped | Delivered) -> list[Change]:
    return [order_states.row(order=e.id, version=e.version, at=e.at, status=STATUS[type(e)])] if e.last else []


@project
def sent_all_of_it(e: SentAll) -> list[Change]:
    return [order_states.row(order=e.id, version=e.version, at=e.at, status=status_of(e))]


def status_of(e: SentAll) -> Status:
    return "delivered" if e.arrived else "shipped"


STATUS: dict[type[Event], Status] = {
    Confirmed: "confirmed",
    Paid: "paid",
    Shipped: "shipped",
    Delivered: "delivered",
    Completed: "completed",
    Cancelled: "cancelled",
}


@project
def confirmed(e: Confirmed) -> list[Change]:
    return _now(e, "confirmed", status="confirmed")


@project
def paid(e: Paid) -> list[Change]:
    return [*_now(e, "paid", status="paid", payment=e.payment, tenders=list(e.parts)), *_sold(e, "sale", 1)]


@project
def shipped(e: Shipped) -> list[Change]:
    said = ", ".join(f"{part.quantity} × {part.sku}" for part in e.parts)
    lines = [order_lines.add((e.id, part.sku), shipped=part.quantity) for part in e.parts]
    return [
        *lines,
        *_now(e, "shipped", f"{e.carrier} {e.tracking}: {said}", **({"status": "shipped"} if e.last else {})),
    ]


@project
def delivered(e: Delivered) -> list[Change]:
    return _now(e, "delivered", str(e.shipment), **({"status": "delivered"} if e.last else {}))


@project
def completed(e: Completed) -> list[Change]:
    return _now(e, "completed", status="completed")


@project
def cancelled(e: Cancelled) -> list[Change]:
    why = e.because or e.reason  # sealed, where somebody typed it
    return [
        *_now(e, "cancelled", why, status="cancelled", cancelled_because=why),
        *_sold(e, "cancellation", -1),
    ]


@project
def refund_begun(e: RefundBegun) -> list[Change]:
    lines = [order_lines.add((e.id, line.sku), refunding=line.quantity) for line in e.lines]
    return [*lines, orders.add(e.id, refunding=e.amount), *_now(e, "refundbegun", _said(e))]


@project
def refunded(e: Refunded) -> list[Change]:
    lines = [order_lines.add((e.id, line.sku), refunding=-line.quantity, refunded=line.quantity) for line in e.lines]
    moved = orders.add(e.id, refunding=-e.amount, refunded=e.amount)
    rows = [
        sales.row(
            at=e.at,
            kind="refund",
            order=e.id,
            customer=e.customer,
            product=line.product,
            sku=line.sku,
            title=line.title,
            currency=e.currency,
            quantity=-line.quantity,
            revenue=-line.net,
            tax=-line.tax,
        )
        for line in e.lines
    ]
    return [*lines, moved, *_now(e, "refunded", _said(e)), *rows]


@project
def refund_dropped(e: RefundDropped) -> list[Change]:
    lines = [order_lines.add((e.id, line.sku), refunding=-line.quantity) for line in e.lines]
    return [*lines, orders.add(e.id, refunding=-e.amount), *_now(e, "refunddropped", str(e.refund))]


@project
def payment_reversed(e: PaymentReversed) -> list[Change]:
    said = f"{e.amount} {e.currency}: {e.reason}"
    return [orders.add(e.id, owed=e.amount), *_now(e, "paymentreversed", said, attention=True)]


@project
def payment_settled(e: PaymentSettled) -> list[Change]:
    said = e.because or f"{e.amount} {e.currency}: {e.reason}"  # what is sealed stands alone, to be opened
    return _now(e, "paymentsettled", said, owed=0, attention=False)


@project
def sent_all(e: SentAll) -> list[Change]:
    return _now(e, "sentall", status=status_of(e))


def _said(e: RefundBegun | Refunded) -> str:
    pieces = [f"{line.quantity} × {line.sku}" for line in e.lines if line.quantity]
    return f"{e.amount} {e.currency}: {', '.join(pieces) or 'no pieces'}"


def _now(e: Event, what: str, detail: str = "", **columns: Any) -> list[Change]:
    """The order's row and its story after an event."""
    return [
        orders.put(e.id, changed_at=e.at, version=e.version, **columns),
        order_timeline.put((e.id, e.version), at=e.at, what=what, detail=detail),
    ]


def _sold(e: Paid | Cancelled, kind: str, sign: int) -> list[Change]:
    return [
        sales.row(
            at=e.at,
            kind=kind,
            order=e.id,
            customer=e.customer,
            product=line.product,
            sku=line.sku,
            title=line.title,
            currency=e.currency,
            quantity=sign * line.quantity,
            revenue=sign * line.net,
            tax=sign * line.tax,
        )
        for line in e.lines
    ]
