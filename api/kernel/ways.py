"""Ways to pay that customers keep, for the services that take one: the one that is named, else the preferred one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from aggregates.kernel import NotFound, Refused, clock
from aggregates.kernel.token import Way, require_usable
from api.kernel.host import Host
from api.kernel.positions import caught_up
from streams.gateways.settings import GatewaySettings


@dataclass(frozen=True)
class Ways:
    """`methods` and `preferences` are payment's read models of them."""

    methods: Any
    preferences: Any

    async def chosen(self, host: Host, customer: UUID, token: str | None, saved: UUID | None) -> Way | None:
        """By the token or the saved one that is named; by the preferred one if neither is, and None without one.

        Raises `NotFound` or `Refused` for one that is named and not there, or not to be used, and for both at once.
        """
        if saved is None and token is not None:
            return Way(token)
        if token is not None:
            raise Refused("a card is charged by a token, or by a way to pay that is saved: not by both")
        await caught_up(host, self.methods, "payment", customer)
        if saved is not None:
            return await self._saved(host, customer, saved)
        preference = await self.preferences.get(host.views, customer)
        try:
            preferred = preference and preference["method"]
            return await self._saved(host, customer, preferred) if preferred else None
        except (NotFound, Refused):  # removed since, expired: as if there were none
            return None

    async def _saved(self, host: Host, customer: UUID, saved: UUID) -> Way:
        """The saga looks again, in case it is removed meanwhile."""
        row = await self.methods.get(host.views, (customer, saved))
        if row is None:
            raise NotFound("there is no such way to pay of yours: it was removed, or never saved")
        require_usable(row["expires"], clock.now())
        GatewaySettings.of(host.settings).require_knows(row["gateway"], row["token"])
        return Way(row["token"], saved, row["gateway"])
