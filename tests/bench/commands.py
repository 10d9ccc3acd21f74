"""`commands`: POST /orders to the durable commit, one uvicorn worker, 64 connections, beside a hand-written INSERT endpoint.

Ours checks a token, the rate limit and the body, encrypts the address, decides, and answers once the event is on the disk;
the baseline (tests/bench/plain.py) parses the same body and commits one row. The same load, in turn.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import httpx
import uvloop

from infra.children import Child
from infra.settings import ROOT
from tests.bench import Figure, at_least, in_turn
from tests.bench.load import closed_loop, request
from tests.kernel.platform import Platform, free_ports, wait_for
from tests.kernel.servers import Stack, fresh_settings

CONNECTIONS = 64
UVICORN = ("--loop", "uvloop", "--no-access-log", "--no-server-header")
OURS = ("--http", "api.kernel.protocol:Protocol")  # as the platform runs it
PLAIN = ("--http", "httptools")


def order(customer: str) -> dict[str, object]:
    """Three lines and an address, as a shop's orders have."""
    lines = [
        {
            "sku": f"sku-{n}",
            "product": str(uuid4()),
            "title": f"A thing {n}",
            "quantity": n,
            "unit_price": 550,
            "tax_bp": 1900,
        }
        for n in (1, 2, 3)
    ]
    address = {
        "recipient": "Ada Lovelace",
        "street": "12 St James's Square",
        "city": "London",
        "postcode": "SW1Y 4JH",
        "country": "GB",
    }
    return {"customer": customer, "currency": "EUR", "lines": lines, "shipping": 490, "address": address}


def run(servers: Stack, quick: bool) -> list[Figure]:
    count = 4_000 if quick else 20_000
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings) as platform:
            host, port = platform.settings.api_host, platform.settings.api_port
            environment = {**os.environ, **platform.env, "PLAIN_DSN": settings.postgres}
            plain_port = free_ports(1)
            children = [
                uvicorn("api.order:app", host, port, environment, Path(folder), OURS),
                uvicorn("tests.bench.plain:app", host, plain_port, environment, Path(folder), PLAIN),
            ]
            try:
                for child in children:
                    child.start()
                ours, plain = f"http://{host}:{port}/orders", f"http://{host}:{plain_port}/orders"
                for url in (ours, plain):
                    wait_for(lambda url=url: answers(url), f"{url} answers")  # type: ignore[misc]
                customers = [str(uuid4()) for _ in range(100)]
                headers = {"Authorization": f"Bearer {platform.token('service', uuid4())}"}
                mine = [request(ours, "POST", order(one), headers) for one in customers]
                theirs = [request(plain, "POST", order(one)) for one in customers]

                def load(url: str, bodies: list[bytes], requests: int) -> float:
                    made = closed_loop(url, lambda n: bodies[n % len(bodies)], CONNECTIONS, requests)
                    return uvloop.run(made).per_second

                load(ours, mine, 1_000), load(plain, theirs, 1_000)
                measured, baseline = in_turn(
                    3, lambda: load(ours, mine, count), lambda: load(plain, theirs, count // 2)
                )
            finally:
                for child in children:
                    child.stop()
    return [at_least("commands", "POST /orders, 64 connections", measured, "requests/s", baseline, "plain INSERT", 2)]


def uvicorn(
    app: str, host: str, port: int, environment: dict[str, str], folder: Path, more: tuple[str, ...] = PLAIN
) -> Child:
    argv = [sys.executable, "-m", "uvicorn", app, "--host", host, "--port", str(port), *UVICORN, *more]
    return Child(app, argv, log=folder / f"{app}.log", env=environment, cwd=ROOT)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.TransportError:
        return False
