"""Payment methods are gateways' tokens. A card number must not even look like one: it would be kept for ever, in an event."""

from __future__ import annotations

import re
from datetime import datetime
from uuid import UUID

from aggregates.kernel.errors import Invalid, require
from schemas.values import value

TOKEN = re.compile(r"[A-Za-z]{1,20}_[A-Za-z0-9_-]{1,90}")
CARD_NUMBER = re.compile(r"[1-9](?:[ ._-]?\d){11,18}")


@value
class Way:
    """A way to pay. Of one that the customer has `saved`, `gateway` is the only one that knows the token."""

    token: str
    saved: UUID | None = None
    gateway: str = ""

    def __post_init__(self) -> None:
        assert (self.saved is None) == (not self.gateway), "a saved method, and only that, names its gateway"


def payment_token(text: str) -> str:
    """The token of a gateway for a card or an account, as `tok_visa`. Raises `Invalid`, or `Refused` for a card number; neither
    repeats the text."""
    if not TOKEN.fullmatch(text):
        raise Invalid("a payment method is a gateway's token, as tok_visa")
    require(masked(text) == text, "a card number is no token: only the gateway itself may take it")
    return text


def require_usable(expires: str, now: datetime) -> None:
    """Refuse a method after its last month, as 2027-09, UTC."""
    require(f"{now:%Y-%m}" <= expires, "this way to pay has expired")


def masked(text: str) -> str:
    """The text with what looks like a card number struck out, for logs."""
    return CARD_NUMBER.sub(lambda found: "[card number]" if _is_card_number(found[0]) else found[0], text)


def _is_card_number(text: str) -> bool:
    """Whether the digits pass the check (Luhn) that every card number passes."""
    digits = [int(digit) for digit in text if digit.isdigit()][::-1]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0
