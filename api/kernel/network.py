"""Where a request comes from, for limits: what one customer has, which is an IPv4 address or an IPv6 network of /64.

Behind a proxy it is what the proxy says in `X-Forwarded-For`, if uvicorn is told that it is one of ours (`FORWARDED_ALLOW_IPS`, by default
this machine alone): the last address in it that is not a proxy's. Whatever anybody else writes there is ignored.
"""

from __future__ import annotations

import ipaddress
import logging
from functools import lru_cache

log = logging.getLogger(__name__)

TOLD_MAX = 20  # anybody can send such a header: the log is not theirs to fill
TOLD: set[str] = set()
UNKNOWN = "unknown"  # a Unix socket's peer, or what a proxy says that is no address


@lru_cache(maxsize=4096)
def network_of(host: str) -> str:
    """The network of an address, as text."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return UNKNOWN
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:  # each by itself: all IPv4 addresses would be in one such network
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def tell_ignored(peer: str) -> None:
    """Say once that a proxy is not known as one: all who come by it are one caller to limits on guessing."""
    if peer not in TOLD and len(TOLD) < TOLD_MAX:
        TOLD.add(peer)
        log.warning("X-Forwarded-For from %s is ignored: FORWARDED_ALLOW_IPS does not name it as a proxy", peer)
