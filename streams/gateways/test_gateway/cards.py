"""The test gateway's cards: what each token does. `GET /` of the running gateway shows this list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["authorise", "capture", "void", "refund", "attach", "detach"]
Fault = Literal["lost", "dropped", "unavailable"]
"""What happens to the first request of a kind: it is done and not answered, neither, or answered with 503."""

LIFE_S = 7 * 86_400  # of an authorisation
ACTION_S = 3_600  # for the customer to confirm


@dataclass(frozen=True)
class Card:
    """How a token behaves. `refuses`: (code, reason) by kind of request; `faults` are for the first request of a kind."""

    does: str
    refuses: Mapping[Kind, tuple[str, str]] = field(default_factory=dict)
    faults: Mapping[Kind, Fault] = field(default_factory=dict)
    action: bool = False
    slow_s: float = 0.0
    webhook_copies: int = 1
    first_webhook_s: float = 0.0
    life_s: int = LIFE_S


def _declined(code: str, reason: str) -> Card:
    return Card(f"declined: {code}", {"authorise": (code, reason)})


CARDS: Mapping[str, Card] = {
    "tok_visa": Card("everything works"),
    "tok_mastercard": Card("everything works"),
    "tok_declined": _declined("card_declined", "The bank does not say why."),
    "tok_insufficientFunds": _declined("insufficient_funds", "There is not enough money on the account."),
    "tok_expiredCard": _declined("expired_card", "The card has expired."),
    "tok_lostCard": _declined("lost_card", "The card was reported lost."),
    "tok_wrongCode": _declined("incorrect_cvc", "The card's security code is wrong."),
    "tok_fraud": _declined("fraudulent", "The payment looks like fraud."),
    "tok_requiresAction": Card("the customer confirms at the URL in the answer, then it is authorised", action=True),
    "tok_timeoutCharged": Card("authorised, but the first request is not answered", faults={"authorise": "lost"}),
    "tok_timeoutNotCharged": Card(
        "the first request is neither carried out nor answered", faults={"authorise": "dropped"}
    ),
    "tok_timeoutCapture": Card("captured, but the first request is not answered", faults={"capture": "lost"}),
    "tok_timeoutVoid": Card("voided, but the first request is not answered", faults={"void": "lost"}),
    "tok_timeoutRefund": Card("refunded, but the first request is not answered", faults={"refund": "lost"}),
    "tok_timeoutAttach": Card("kept for a customer, but the first request is not answered", faults={"attach": "lost"}),
    "tok_timeoutDetach": Card("forgotten again, but the first request is not answered", faults={"detach": "lost"}),
    "tok_unavailable": Card("the first request is answered with 503", faults={"authorise": "unavailable"}),
    "tok_slow": Card("every answer takes two seconds", slow_s=2.0),
    "tok_captureFailsOnce": Card("the first capture is answered with 503", faults={"capture": "unavailable"}),
    "tok_captureFails": Card("captures fail", {"capture": ("capture_failed", "The bank does not pay out.")}),
    "tok_refundFailsOnce": Card("the first refund is answered with 503", faults={"refund": "unavailable"}),
    "tok_refundFails": Card("refunds fail", {"refund": ("refund_failed", "The account is closed.")}),
    "tok_webhookTwice": Card("each webhook is sent twice", webhook_copies=2),
    "tok_webhookLate": Card(
        "the first webhook is sent five seconds late, after those that follow", first_webhook_s=5.0
    ),
    "tok_expiresSoon": Card("the authorisation expires after three seconds", life_s=3),
}
