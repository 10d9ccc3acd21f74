"""What Stripe's PaymentIntents and refunds say, as facts of our payments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.interface import Fact, fact
from streams.gateways.minor import STRIPE

PAYMENT, REFUND, CAPTURE, CUSTOMER = (
    "titan_payment",
    "titan_refund",
    "capture_",
    "titan_customer",
)  # metadata's keys have 40 characters at most
ACTION = timedelta(hours=1)  # Stripe waits for a customer without end, we don't
HELD = timedelta(
    days=7
)  # for a card online, where an answer doesn't say: docs.stripe.com/payments/place-a-hold-on-a-payment-method


def facts_of(intent: Mapping[str, Any]) -> list[Fact]:
    """What a PaymentIntent says, in the order in which it can have happened. Raises `ValueError` for amounts that can't be."""
    facts, status, made = [], intent["status"], time_of(intent["created"])
    currency = intent["currency"].upper()
    url = ((intent.get("next_action") or {}).get("redirect_to_url") or {}).get("url")
    if status == "requires_action" and url:
        facts.append(fact(Payment.action_required, url, made + ACTION))
    elif status == "requires_payment_method" and (error := error_of(intent)):
        code = error.get("decline_code") or error.get("code") or "declined"
        facts.append(fact(Payment.declined, code, error.get("message") or "The card was declined."))
    elif status in ("requires_capture", "succeeded"):
        card = (charge_of(intent).get("payment_method_details") or {}).get("card") or {}
        before = card.get("capture_before")
        facts.append(fact(Payment.authorised, intent["id"], time_of(before) if before else made + HELD))
    for name, amount in intent["metadata"].items():
        if name.startswith(CAPTURE):
            facts.append(fact(Payment.captured, UUID(name.removeprefix(CAPTURE)), Money(int(amount), currency)))
    if status == "canceled" or (status == "succeeded" and intent["amount_received"] < intent["amount"]):
        facts.append(fact(Payment.voided, intent["id"]))
    return facts


def facts_of_refund(refund: Mapping[str, Any]) -> list[Fact]:
    """What a refund says; nothing of one that is not ours, or under way."""
    if REFUND not in refund["metadata"]:
        return []
    id, amount = UUID(refund["metadata"][REFUND]), STRIPE.ours(refund["amount"], refund["currency"].upper())
    if refund["status"] == "succeeded":
        return [fact(Payment.refunded, id, amount)]
    if refund["status"] in ("failed", "canceled"):  # for good, whatever it was before
        why = refund.get("failure_reason") or refund["status"]
        return [fact(Payment.refund_reversed, id, amount, why, f"The refund is {refund['status']}.")]
    return []


def charge_of(intent: Mapping[str, Any]) -> Mapping[str, Any]:
    """The expanded charge; empty where there is only its id."""
    charge = intent.get("latest_charge")
    return charge if isinstance(charge, Mapping) else {}


def error_of(intent: Mapping[str, Any]) -> Mapping[str, Any]:
    return intent.get("last_payment_error") or {}


def time_of(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
