"""What Adyen's answers and webhooks say, as facts of our payments. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from aggregates.kernel import clock
from aggregates.payment import Payment
from streams.gateways.interface import Fact, fact
from streams.gateways.minor import ADYEN

ACTION = timedelta(hours=1)  # for the customer to confirm
HELD = timedelta(days=7)  # Adyen holds cards for 28 days, the networks promise the money for seven
CODES = {
    "not enough balance": "insufficient_funds",
    "expired card": "expired_card",
    "blocked card": "blocked_card",
    "cvc declined": "incorrect_cvc",
    "3d not authenticated": "authentication_failed",
    "fraud": "fraudulent",
    "fraud-cancelled": "fraudulent",
    "acquirer fraud": "fraudulent",
}
"""Our words for Adyen's refusal reasons (docs.adyen.com/development-resources/refusal-reasons); others are `refused`."""


def facts_of(found: Mapping[str, Any]) -> list[Fact]:
    """What Adyen's answer to a payment, or to the return from the bank, says; nothing of one that is not decided yet."""
    action, now = found.get("action") or {}, clock.now()
    match found.get("resultCode"):
        case "Authorised":
            return [fact(Payment.authorised, found["pspReference"], now + HELD)]
        case "RedirectShopper" if action.get("url"):
            return [fact(Payment.action_required, action["url"], now + ACTION)]
        case "Refused" | "Cancelled" | "Error":
            return [fact(Payment.declined, *_words(found.get("refusalReason")))]
    return []


def facts_of_notice(item: Mapping[str, Any], operation: UUID | None) -> list[Fact]:
    """What a webhook says. `operation`: our capture or refund that it is about. What ends in FAILED follows what Adyen had accepted."""
    done, words = item["success"] == "true", _words(item.get("reason"))
    original = item.get("originalReference") or item["pspReference"]
    match item["eventCode"]:
        case "AUTHORISATION" if done:
            return [fact(Payment.authorised, item["pspReference"], datetime.fromisoformat(item["eventDate"]) + HELD)]
        case "AUTHORISATION":
            return [fact(Payment.declined, *words)]
        case "CANCELLATION" | "TECHNICAL_CANCEL" | "EXPIRE" if done:
            return [fact(Payment.voided, original)]
    if operation is None:
        return []
    amount = ADYEN.ours(item["amount"]["value"], item["amount"]["currency"])
    match item["eventCode"]:
        case "CAPTURE" if done:
            return [fact(Payment.captured, operation, amount)]
        case "CAPTURE":
            return [fact(Payment.capture_failed, operation, amount, *words)]
        case "CAPTURE_FAILED":
            return [fact(Payment.capture_reversed, operation, amount, *words)]
        case "REFUND" if done:
            return [fact(Payment.refunded, operation, amount)]
        case "REFUND":
            return [fact(Payment.refund_failed, operation, amount, *words)]
        case "REFUND_FAILED" | "REFUNDED_REVERSED":
            return [fact(Payment.refund_reversed, operation, amount, *words)]
    return []


def refusal(found: Mapping[str, Any]) -> tuple[str, str]:
    """Code and reason of an answer that is a refusal."""
    return _words(found.get("refusalReason"))


def references(text: str) -> tuple[UUID | None, UUID | None]:
    """Payment and operation of a reference; of what is not ours nothing."""
    payment, _, operation = text.partition(".")
    try:
        return UUID(payment), UUID(operation) if operation else None
    except ValueError:
        return None, None


def _words(reason: str | None) -> tuple[str, str]:
    """Code and reason of a refusal. A webhook may put the bank's own number before the reason."""
    said = (reason or "").rpartition(":")[2].strip() or "It is refused."
    return CODES.get(said.lower(), "refused"), said
