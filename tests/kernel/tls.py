"""One TLS context for all of a process's clients of HTTP that ask for nothing else.

httpx reads all certificates that there are for each client anew: 15 ms of a processor, more than most of what is asked then, over HTTP.
"""

from __future__ import annotations

from functools import lru_cache

import httpx
from httpx._transports import default


def share() -> None:
    default.create_ssl_context = lru_cache(httpx.create_ssl_context)  # type: ignore[attr-defined]
