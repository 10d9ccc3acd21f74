"""The values that events of several domains share; their records are in schemas/avro/common.avsc."""

from __future__ import annotations

from typing import NewType

from schemas.values import value

Sealed = NewType("Sealed", str)
"""Personal data, encrypted with its subject's key: `sealed:1:<subject uuid>:<base64>`. Plaintext never reaches an event."""


@value
class Money:
    """`amount` in minor units (cents, or whole yen) of `currency`, an ISO 4217 code."""

    amount: int
    currency: str


@value
class Address:
    """Where a parcel or a letter goes. Only `country` (ISO 3166-1 alpha-2) is readable: taxes and shipping need it.

    `street` is everything between the recipient and the city, one line a newline.
    """

    recipient: Sealed
    street: Sealed
    city: Sealed
    postcode: Sealed
    country: str
