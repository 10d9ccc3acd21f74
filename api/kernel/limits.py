"""How fast a caller may ask: a token bucket a caller in Redis, drawn from in blocks so that most requests ask nobody.

A process leases a block of a caller's tokens and spends it locally. What it leased and has not spent is the only slack:
at most one block a process. Without Redis everybody is let through, and the log says so: a shop that sells without a
limit is better than one that is shut. What must not be guessed is counted in Postgres instead (`attempts`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

import redis.asyncio as aio
import redis.exceptions
from prometheus_client import Counter
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.kernel.problems import Problem, retry_after

log = logging.getLogger(__name__)

LEASES_MAX = 20_000
BLOCKS_A_BURST = 10
BACK_OFF_S = 1.0  # how long Redis is not asked after it failed
OPEN = Counter("titan_api_rate_limit_open_total", "Requests let through without a limit because Redis was away.")

# Answers {tokens granted, seconds until there is one again}. The bucket is full when its key has expired.
DRAW = """
local rate, burst, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = tonumber(bucket[1]) or burst
tokens = math.min(burst, tokens + math.max(0, now - (tonumber(bucket[2]) or now)) * rate)
local granted = math.min(want, math.floor(tokens))
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens - granted), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(burst / rate) + 1)
return {granted, tostring(math.max(0, (1 - tokens + granted) / rate))}
"""


class Limits(BaseSettings):
    """The API's limits; each can be set as TITAN_API_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="TITAN_API_", frozen=True)

    caller_per_s: float = Field(200, gt=0, description="requests a second of one caller")
    caller_burst: int = Field(400, ge=1, description="requests of one caller at once")
    service_per_s: float = Field(20_000, gt=0, description="the same for the roles service and admin")
    service_burst: int = Field(40_000, ge=1)
    ip_per_s: float = Field(100, gt=0, description="requests a second of one address without a good token")
    ip_burst: int = Field(200, ge=1)
    code_tries: int = Field(10, ge=1, description="codes that one caller may try, counted with or without Redis")
    code_s: float = Field(100, gt=0, description="… in so long")
    code_ip_tries: int = Field(150, ge=1, description="the same for one network, whoever calls from there")
    code_ip_s: float = Field(100, gt=0)
    body_bytes_max: int = Field(1 << 20, ge=1)
    request_s: float = Field(
        15.0, gt=0, description="a request that takes longer is answered 503, or 408 if its body is late"
    )
    view_wait_s: float = Field(3.0, gt=0, description="how long `?after=` waits for the read model")


@dataclass(slots=True)
class Lease:
    """Tokens of one caller that this process may spend, and when there may be more."""

    left: int = 0
    shut_until: float = 0.0
    drawing: asyncio.Task[None] | None = None


class RateLimiter:
    """Token buckets by name. `await admit(name, per_s, burst)` passes or raises the 429 problem."""

    def __init__(self, redis: aio.Redis, namespace: str) -> None:
        self._draw = redis.register_script(DRAW)
        self._prefix = f"{namespace}:rate:"
        self._leases: dict[str, Lease] = {}
        self._down_until = 0.0

    def pass_at_once(self, name: str) -> bool:
        """Spend a leased token, if there is one: the hot path, without an await."""
        lease = self._leases.get(name)
        if lease is None or lease.left < 1:
            return False
        lease.left -= 1
        return True

    async def admit(self, name: str, per_s: float, burst: int) -> None:
        """Spend a token, leasing a block when none is left. Raises `Problem` (429) when the bucket is empty."""
        lease = self._leases.get(name)
        if lease is None:
            while len(self._leases) >= LEASES_MAX:
                del self._leases[next(iter(self._leases))]
            lease = self._leases[name] = Lease()
        while lease.left < 1:
            now = time.monotonic()
            if now < lease.shut_until:
                raise Problem("too-many", "slow down", headers=retry_after(-int(now - lease.shut_until) + 1))
            if now < self._down_until:
                OPEN.inc()
                return
            if lease.drawing is None:  # all requests that wait for a block share one question
                lease.drawing = asyncio.ensure_future(self._lease(name, lease, per_s, burst))
            await asyncio.shield(lease.drawing)
        lease.left -= 1

    async def _lease(self, name: str, lease: Lease, per_s: float, burst: int) -> None:
        try:
            block = max(1, burst // BLOCKS_A_BURST)
            granted, wait = await self._draw(keys=[self._prefix + name], args=[per_s, burst, block])
            lease.left += int(granted)
            if not granted:
                lease.shut_until = time.monotonic() + max(float(wait), 0.001)
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            self._down_until = time.monotonic() + BACK_OFF_S
            log.warning("Redis does not answer, so requests pass without a rate limit: %s", error)
        finally:
            lease.drawing = None
