"""`token`: what it costs to verify the token of a request, beside an endpoint that does nothing, over HTTP.

The same request in two ways, one after the other over one connection, so that both meet the same machine: with its token under a header that
nobody reads, and with a caller's token, again and again as it comes in life. Then with a token each that was never seen before.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated
from uuid import uuid4

import httpx
import uvloop
from fastapi import APIRouter
from pydantic import BaseModel

from api.kernel import Caller, app_of, caller
from api.kernel.migrate import migrate
from api.kernel.route import Route
from infra.token import make_keys, token
from tests.bench import Figure
from tests.bench.commands import OURS, uvicorn
from tests.bench.load import closed_loop, request
from tests.kernel.platform import free_ports, variables, wait_for
from tests.kernel.servers import Stack, cache, database
from tests.kernel.topic import settings_of

SHARE_MAX = 0.05  # of the time of the endpoint that does nothing

router = APIRouter(prefix="/nothing", route_class=Route)


class Nothing(BaseModel):
    pass


@router.get("/plain", summary="Nothing")
async def nothing() -> Nothing:
    return Nothing()


@router.get("/known", summary="Nothing, for somebody known")
async def known(by: Annotated[Caller, caller("nothing:read")]) -> Nothing:
    return Nothing()


app = app_of(router)


def run(servers: Stack, quick: bool) -> list[Figure]:
    count = 1_000 if quick else 10_000
    with tempfile.TemporaryDirectory() as folder, database(servers) as postgres, cache(servers) as redis:
        settings = settings_of(postgres, redis, Path(folder))
        make_keys(settings)
        migrate(settings)
        port = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        limits = {f"TITAN_API_{who}_{what}": "100000000" for who in ("CALLER", "IP") for what in ("PER_S", "BURST")}
        environment = {**os.environ, **variables(settings), **limits, "TITAN_DATA": folder}
        child = uvicorn(f"{__name__}:app", "127.0.0.1", port, environment, Path(folder), OURS)
        try:
            child.start()
            wait_for(lambda: _answers(url), f"{url} answers")
            somebody = uuid4()
            its = f"Bearer {token(settings, 'customer', somebody)}"
            one = request(f"{url}/nothing/known", "GET", headers={"Authorization": its})
            plain = request(f"{url}/nothing/plain", "GET", headers={"Unrequested-1": its})

            def took(requests: list[bytes]) -> tuple[float, float]:
                """Microseconds of a request that needs no token, and of these."""
                both = [each for one in requests for each in (plain, one)]
                seconds = uvloop.run(closed_loop(url, both.__getitem__, 1, len(both), expect=200)).seconds
                return median(seconds[::2]) * 1e6, median(seconds[1::2]) * 1e6

            def fresh() -> list[bytes]:
                tokens = [
                    token(settings, "customer", somebody, ("nothing:read", f"x{n}:read")) for n in range(count // 2)
                ]
                return [
                    request(f"{url}/nothing/known", "GET", headers={"Authorization": f"Bearer {made}"})
                    for made in tokens
                ]

            took([one] * 500)
            none, again = took([one] * 5 * count)
            nobody, first = took(fresh())
        finally:
            child.stop()
    cost = again - none  # below nothing, when the caller's bucket is found sooner than the address's
    return [
        Figure(
            "token", "to verify a token that was seen lately", cost, "µs", none, "µs, does nothing", f"≤ {SHARE_MAX} ×",
            cost <= SHARE_MAX * none,
        ),
        Figure("token", "to verify a token for the first time", first - nobody, "µs", nobody, "µs, does nothing"),
    ]  # fmt: skip


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/nothing/plain", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
