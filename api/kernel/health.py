"""What an orchestrator asks: alive, ready, and figures for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Literal

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.kernel.host import Host
from api.kernel.problems import Problem, retry_after
from api.kernel.route import Route
from api.kernel.stores import TheHost

CHECK_S = 1.0

router = APIRouter(route_class=Route, tags=["operations"])


class Health(BaseModel):
    status: Literal["ok"] = Field(examples=["ok"])


@router.get("/health/live", summary="The process answers")
async def live() -> Health:
    """Says nothing of the stores: restarting this process would not help them."""
    return Health(status="ok")


@router.get("/health/ready", summary="The stores answer too")
async def ready(host: TheHost) -> Health:
    """503 names the stores that did not answer within a second."""
    checks: dict[str, Awaitable[Any]] = {
        "postgres": _postgres(host),
        "redis": host.redis.ping(),
        "clickhouse": _clickhouse(host),
    }
    found = await asyncio.gather(
        *(asyncio.wait_for(check, CHECK_S) for check in checks.values()), return_exceptions=True
    )
    away = [name for name, one in zip(checks, found, strict=True) if isinstance(one, BaseException)]
    if away:
        raise Problem("unavailable", f"no answer from {', '.join(away)}", headers=retry_after(1))
    return Health(status="ok")


@router.get("/health", summary="The same as /health/ready")
async def health(host: TheHost) -> Health:
    return await ready(host)


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _postgres(host: Host) -> None:
    async with host.views.connection(timeout=CHECK_S) as connection:
        await connection.execute("SELECT 1")


async def _clickhouse(host: Host) -> None:
    client = await host.clickhouse()
    if not await client.ping():
        raise ConnectionError("ClickHouse does not answer")
