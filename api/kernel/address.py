"""Where something goes, as requests state it and as events hold it; and the addresses that people keep as their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from api.kernel.host import Host
from api.kernel.positions import caught_up
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
    return await _sealed(vault, subject, where.country, where.recipient, where.street, where.city, where.postcode)


async def _sealed(vault: Vault, subject: UUID, country: str, *lines: str) -> Address:
    recipient, street, city, postcode = await vault.seal_all(subject, *lines)
    return Address(recipient=recipient, street=street, city=city, postcode=postcode, country=country)


@dataclass(frozen=True)
class Defaults:
    """The addresses that are used where none is named. `users` and `addresses` are user's read models."""

    users: Any
    addresses: Any

    async def address(self, host: Host, vault: Vault, person: UUID) -> Address | None:
        """Where a person's parcels go. What an order has no line for stands in those that it has, and what the country's own format
        knows no city or postcode of has none. None if the person keeps no address."""
        place = await self._place(host, person, "shipping")
        known = await vault.open_all(place) if place else {"recipient": ""}
        if place is None or not known["recipient"]:  # the key is destroyed
            return None

        def line(*names: str) -> str:
            return ", ".join(part for name in names for part in (known[name] or "").splitlines() if part)

        lines = (line("recipient", "company"), line("street", "district"), line("city", "region"), line("postcode"))
        return await _sealed(vault, person, place["country"], *lines)

    async def billing_country(self, host: Host, person: UUID) -> str | None:
        """The country of the person's bills."""
        place = await self._place(host, person, "billing")
        return place["country"] if place else None

    async def _place(self, host: Host, person: UUID, purpose: Literal["shipping", "billing"]) -> dict[str, Any] | None:
        if not await caught_up(host, self.users, "user", person):
            return None
        user = await self.users.get(host.views, person)
        row = await self.addresses.get(host.views, (person, user[purpose])) if user and user[purpose] else None
        return row["place"] if row else None  # one that was removed since is none
