"""The gateways as this service opens them: for what comes from them, not for what is asked of them."""

from __future__ import annotations

from api.kernel.host import Host
from streams.gateways.interface import Gateway, open_gateway
from streams.gateways.settings import GatewaySettings

GATEWAYS: dict[tuple[Host, str], Gateway] = {}  # one process has one host


def door(host: Host, name: str) -> Gateway:
    """The gateway of that name, opened once. Raises `LookupError`."""
    if (host, name) not in GATEWAYS:
        GATEWAYS[host, name] = open_gateway(name, GatewaySettings.of(host.settings))
    return GATEWAYS[host, name]
