"""Signed webhooks: `t=<unix seconds>,v1=<hex>`, the HMAC-SHA-256 of `<t>.<body>`, as the large gateways sign theirs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime

TOLERANCE_S = 300  # how far a webhook's time may be from ours, either way: an old one is a replay
HEADER = "titan-signature"
SIGNATURES_MAX = 4  # two while keys change


class Forged(Exception):
    """The webhook is not the gateway's, or not of now."""


def sign(secret: bytes, body: bytes, now: datetime) -> str:
    """The header's value for a body sent now."""
    at = int(now.timestamp())
    return f"t={at},v1={_digest(secret, at, body)}"


def verify(secrets: Sequence[bytes], header: str | None, body: bytes, now: datetime) -> None:
    """Raises `Forged`. Any of `secrets` will do: the new one and the old one while keys change."""
    given = [part.partition("=") for part in (header or "").split(",")]
    times = [value for name, _, value in given if name == "t"]
    signatures = [value.encode() for name, _, value in given if name == "v1"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdigit() and len(times[0]) <= 12):
        raise Forged("the signature has no time")
    if not 0 < len(signatures) <= SIGNATURES_MAX:
        raise Forged("there is no signature")
    at = int(times[0])
    # Every pair is compared, in constant time, before anything is said: nothing is learnt from how long it took.
    expected = [_digest(secret, at, body).encode() for secret in secrets]
    fits = [hmac.compare_digest(one, signature) for one in expected for signature in signatures]
    if not any(fits):
        raise Forged("the signature does not fit")
    if abs(now.timestamp() - at) > TOLERANCE_S:
        raise Forged("the signature is not of now")


def _digest(secret: bytes, at: int, body: bytes) -> str:
    return hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
