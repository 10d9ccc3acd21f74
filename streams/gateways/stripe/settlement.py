"""Stripe's report of a day: the balance transactions that were created on it, UTC, one JSON object a line. Reading is pure.

Each is one movement of the account's balance (docs.stripe.com/reports/balance-transaction-types), told apart by its reporting category
(docs.stripe.com/reports/reporting-categories). Its source, expanded, is the charge, refund or dispute: a charge has the metadata that
its PaymentIntent had when it was made (docs.stripe.com/metadata), a refund has ours, of a dispute the PaymentIntent is read. A card
that is captured once, and in part, has two: what was authorised, and in the other direction what was not captured of it; together they
are the capture.

An amount that Stripe converted is compared as its source has it, in the payment's currency, if the source has it: of several captures
of one charge it does not. Its fee is in another currency and is not compared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ValidationError
from stripe import params

from streams.gateways.minor import STRIPE
from streams.gateways.settlement import FOREIGN, Kind, Settled
from streams.gateways.stripe.facts import PAYMENT, REFUND, time_of

PAGE_ROWS = 100  # the most that Stripe hands out
KINDS: Mapping[str, Kind] = {
    "charge": "capture",
    "charge_failure": "capture reversed",
    "partial_capture_reversal": "capture reversed",
    "refund": "refund",
    "refund_failure": "refund reversed",
    "dispute": "chargeback",
    "dispute_reversal": "chargeback reversed",
}
"""By reporting category. What is neither here nor below is `other`."""
NOT_PAYMENTS = frozenset((
    "advance", "advance_funding", "anticipation_repayment", "climate_order_purchase", "climate_order_refund",
    "connect_collection_transfer", "connect_reserved_funds", "contribution", "fee", "financing_paydown",
    "financing_paydown_reversal", "financing_payout", "financing_payout_reversal", "issuing_authorization_hold",
    "issuing_authorization_release", "issuing_dispute", "issuing_disbursement", "issuing_transaction",
    "network_cost", "payout", "payout_reversal", "platform_earning", "platform_earning_refund",
    "risk_reserved_funds", "tax", "topup", "topup_reversal", "transfer", "transfer_reversal",
))  # fmt: skip
"""Movements of the account that are of no payment: payouts, Stripe's own fees, transfers, reserves."""


class Intent(BaseModel):
    id: str
    metadata: dict[str, str] = {}


class Multicapture(BaseModel):
    status: str


class Card(BaseModel):
    multicapture: Multicapture | None = None


class Details(BaseModel):
    card: Card | None = None


class Source(BaseModel):
    """What moved the money. Nothing else of it is kept: not the card's number or holder, nor the customer."""

    id: str
    object: str
    amount: int | None = None
    amount_captured: int | None = None
    currency: str | None = None
    metadata: dict[str, str] = {}
    payment_intent: Intent | str | None = None
    payment_method_details: Details | None = None

    @property
    def whole(self) -> int | None:
        """The amount of all that this is about; None for a charge that may have been captured in parts."""
        card = self.payment_method_details.card if self.payment_method_details else None
        if card and card.multicapture and card.multicapture.status == "available":
            return None
        return self.amount if self.amount_captured is None else self.amount_captured


class Movement(BaseModel):
    """A balance transaction. Amounts are in Stripe's minor units, negative when the money leaves."""

    id: str
    reporting_category: str
    created: int
    amount: int
    currency: str
    fee: int
    source: Source | None = None

    @property
    def intent(self) -> str:
        found = self.source.payment_intent if self.source else None
        return found.id if isinstance(found, Intent) else found or ""

    @property
    def ours(self) -> Mapping[str, str]:
        """Our references."""
        found = self.source.payment_intent if self.source else None
        given = found.metadata if isinstance(found, Intent) else {}
        return {**given, **(self.source.metadata if self.source else {})}


def asked_for(day: date) -> params.BalanceTransactionListParams:
    first = datetime.combine(day, time(), UTC)
    end = first + timedelta(days=1)
    created: params.BalanceTransactionListParamsCreated = {"gte": int(first.timestamp()), "lt": int(end.timestamp())}
    return {"created": created, "limit": PAGE_ROWS, "expand": ["data.source"]}


async def report_of(found: Iterable[Mapping[str, Any]], read: Callable[[str], Awaitable[Mapping[str, Any]]]) -> bytes:
    """The report of what Stripe listed. `read`: a PaymentIntent by its id. Raises `ValueError` for what is no balance transaction."""
    read_before: dict[str, Intent] = {}
    lines = []
    for number, one in enumerate(found, start=1):
        movement = _movement(number, one)
        id = movement.intent
        if id and movement.source and PAYMENT not in movement.ours and movement.reporting_category not in NOT_PAYMENTS:
            if id not in read_before:
                read_before[id] = Intent.model_validate(await read(id))
            movement.source.payment_intent = read_before[id]
        lines.append(movement)
    lines.sort(key=lambda one: (one.created, one.id))
    return b"".join(one.model_dump_json(exclude_none=True).encode() + b"\n" for one in lines)


def rows_of(report: bytes) -> list[Settled]:
    """The rows of a report. Raises `ValueError` naming row and field."""
    rows: list[Settled] = []
    captured: dict[str, int] = {}  # PaymentIntent → its last capture among the rows
    movements = [_movement(number, line) for number, line in enumerate(report.splitlines(), start=1)]
    for number, one in sorted(enumerate(movements, start=1), key=_in_turn):
        if one.reporting_category in NOT_PAYMENTS:
            continue
        try:
            row = _row(one)
        except ValueError as error:
            raise ValueError(f"row {number}, amount: {error}") from error
        if one.reporting_category == "partial_capture_reversal" and one.intent in captured:
            rows[captured[one.intent]] = _without(rows[captured[one.intent]], row)
            continue
        if row.kind == "capture":
            captured[one.intent] = len(rows)
        rows.append(row)
    return rows


def _in_turn(numbered: tuple[int, Movement]) -> tuple[int, bool]:
    """By time, and what reverses part of a charge after the charge, which is of the same second."""
    _, one = numbered
    return one.created, one.reporting_category == "partial_capture_reversal"


def _row(one: Movement) -> Settled:
    kind = KINDS.get(one.reporting_category, "other")
    payment, refund = _uuid(one.ours.get(PAYMENT)), _uuid(one.ours.get(REFUND))
    operation = refund or FOREIGN if kind in ("refund", "refund reversed") else None
    source = one.source
    if source is None or source.currency in (None, one.currency):
        currency = one.currency.upper()
        amount: int | None = STRIPE.ours(one.amount if kind == "other" else abs(one.amount), currency).amount
        return Settled(
            one.id, kind, payment, operation, amount, currency, STRIPE.nearest(one.fee, currency), time_of(one.created)
        )
    currency = str(source.currency).upper()
    amount = None if source.whole is None or kind == "other" else STRIPE.ours(source.whole, currency).amount
    return Settled(one.id, kind, payment, operation, amount, currency, None, time_of(one.created))


def _without(captured: Settled, reversal: Settled) -> Settled:
    """A capture less what was reversed of it."""
    if captured.amount is None or reversal.amount is None or captured.currency != reversal.currency:
        return captured
    fee = None if captured.fee is None or reversal.fee is None else captured.fee + reversal.fee
    return replace(captured, amount=captured.amount - reversal.amount, fee=fee)


def _movement(number: int, one: Mapping[str, Any] | bytes) -> Movement:
    try:
        return Movement.model_validate_json(one) if isinstance(one, bytes) else Movement.model_validate(one)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise ValueError(f"row {number}, {where}: {first['msg']}") from None


def _uuid(text: str | None) -> UUID | None:
    try:
        return UUID(text) if text else None
    except ValueError:
        return None
