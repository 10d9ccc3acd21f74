"""Where something goes, as requests state it and as events hold it."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from api.kernel.types import Body, Country, Name
from api.kernel.vault import Vault
from schemas import Address


class Destination(Body):
    """Where it goes. Stored encrypted with the customer's own key, but for the country."""

    recipient: Name
    street: Name
    city: Name
    postcode: Annotated[str, Field(min_length=1, max_length=20, examples=["10115"])]
    country: Country


async def sealed(vault: Vault, subject: UUID, where: Destination) -> Address:
    """An address as events hold it, readable with the subject's key alone."""
    recipient, street, city, postcode = await vault.seal_all(
        subject, where.recipient, where.street, where.city, where.postcode
    )
    return Address(recipient=recipient, street=street, city=city, postcode=postcode, country=where.country)
