"""Ways to pay that are used no more: the gateway that keeps them is told to forget them, until it has.

A reactor of its own, so that no payment waits for it: while a gateway is away its customers' removals wait, each for itself.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from aggregates.kernel import Commands, NotFound, Recorded, Unavailable
from aggregates.payment import MethodRemoved, Methods, MethodsForgotten
from aggregates.user import Erased
from streams.gateways.interface import Gateway, Unknown, open_gateway
from streams.gateways.settings import GatewaySettings
from streams.kernel import reacts

GATEWAYS: dict[str, Gateway] = {}  # opened when first asked for


@reacts
async def forget(r: Recorded[Erased], commands: Commands) -> None:
    """Who is erased keeps no way to pay, not even one that a gateway attached when nobody knew of it here."""
    with suppress(NotFound):  # who never kept one
        await commands.tell(r.event.id, Methods.forget)


@reacts
async def detach(r: Recorded[MethodRemoved | MethodsForgotten], commands: Commands) -> None:
    """Raises what makes the follower call again later."""
    methods = await commands.load(Methods, r.event.id)
    for gateway, token in sorted(methods.leaving):
        try:
            await gateway_of(gateway).detach(methods.id, token)
        except Unknown as unknown:
            raise Unavailable(f"the gateway {gateway}: {unknown}") from unknown
        await commands.tell(methods.id, Methods.detached, gateway, token)


@lru_cache
def settings() -> GatewaySettings:
    return GatewaySettings()


def gateway_of(name: str) -> Gateway:
    """Raises `LookupError` for one that is in the settings no more: the event is parked, and an alarm, until it is again."""
    if name not in GATEWAYS:
        GATEWAYS[name] = open_gateway(name, settings())
    return GATEWAYS[name]
