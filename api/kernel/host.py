"""What one process of the API holds open: the event store, the read models' pool, Redis, ClickHouse, keys and limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import clickhouse_connect
import orjson
import psycopg
import redis.asyncio as aio
from clickhouse_connect.driver.asyncclient import AsyncClient
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aggregates.kernel import Store
from api.kernel.auth import Keys
from api.kernel.deadlines import Deadlines
from api.kernel.limits import Limits, RateLimiter
from api.kernel.secrets import Secrets
from api.kernel.vault import Pool, Vault, read_master_key
from infra.settings import Settings

log = logging.getLogger(__name__)

VIEW_CONNECTIONS_MAX = 8
POOL_WAIT_S = 2.0
REDIS_WAIT_S = 0.5


@dataclass(slots=True, eq=False)
class Host:
    """The stores behind the API, opened by `opened`. `running`: command ids that this process is at work on; `partitions`:
    of domains' topics, each with the time until which that is believed."""

    settings: Settings
    limits: Limits
    keys: Keys
    limiter: RateLimiter
    store: Store
    views: Pool
    redis: aio.Redis
    vault: Vault | None
    secrets: Secrets | None
    running: set[UUID] = field(default_factory=set)
    partitions: dict[str, tuple[float, int]] = field(default_factory=dict)
    deadlines: Deadlines = field(default_factory=Deadlines)
    _clickhouse: AsyncClient | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def clickhouse(self) -> AsyncClient:
        """The ClickHouse client, connected when first asked for."""
        async with self._opening:
            if self._clickhouse is None:
                url = urlsplit(self.settings.clickhouse)
                self._clickhouse = await clickhouse_connect.get_async_client(
                    interface=url.scheme,
                    host=url.hostname or "127.0.0.1",
                    port=url.port or (8443 if url.scheme == "https" else 8123),
                    username=url.username or "default",
                    password=url.password or "",
                    database=url.path.strip("/") or "default",
                    connect_timeout=2,
                    send_receive_timeout=10,
                    autogenerate_session_id=False,  # one session would let only one query run at a time
                )
            return self._clickhouse


async def _configured(connection: psycopg.AsyncConnection[Any]) -> None:
    set_json_loads(orjson.loads, connection)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Host]:
    """Open everything, without waiting for a server that is away: what needs it answers 503 until it is back."""
    limits = Limits()
    cache = aio.Redis.from_url(
        settings.redis, socket_timeout=REDIS_WAIT_S, socket_connect_timeout=REDIS_WAIT_S, retry=Retry(NoBackoff(), 0)
    )
    views: Pool = AsyncConnectionPool(
        settings.postgres,
        connection_class=psycopg.AsyncConnection,
        min_size=1,
        max_size=VIEW_CONNECTIONS_MAX,
        timeout=POOL_WAIT_S,
        open=False,
        configure=_configured,
        kwargs={"autocommit": True, "prepare_threshold": 2, "connect_timeout": 2, "options": "-c timezone=UTC"},
    )
    try:
        master = read_master_key(settings.master_key)
    except (OSError, ValueError) as error:
        log.warning("no vault for personal data: %s", error)
        master = None
    async with Store.open(settings.postgres, settings.postgres_domains) as store:
        await views.open(wait=False)
        host = Host(
            settings=settings,
            limits=limits,
            keys=Keys(settings.jwt_jwks, settings.jwt_issuer, settings.jwt_audience, views, settings.issuer),
            limiter=RateLimiter(cache, settings.namespace),
            store=store,
            views=views,
            redis=cache,
            vault=Vault(views, master) if master else None,
            secrets=Secrets(views, master) if master else None,
        )
        try:
            yield host
        finally:
            await views.close()
            await cache.aclose()
            if host._clickhouse is not None:
                await host._clickhouse.close()
