"""`cart`: adding to carts and reading them over HTTP, 200 requests a second in all, one uvicorn worker with every service.

An add reads the offer, decides, and answers once the event is on the disk; a read shows today's prices and stock. Requests
come when they are due, whatever the ones before do. Relay and worker run beside it and keep the read models.

A figure is the median round's: a disk that stands still for half a second makes the p99 of all adds of its round. The worst round is
shown beside it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import redis.asyncio as aio
import uvloop

from infra.settings import Settings
from infra.shopper import Api
from tests.bench import Figure, at_most, percentile
from tests.bench.load import open_loop, request
from tests.kernel.garbage import uncollected
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, fresh_settings

PER_S = 200.0  # half of it adds, half reads
SKUS = 300
CARTS = 200
LINES = 3  # in each cart to begin with
CONNECTIONS = 32
STOCK = 1_000_000
P99_MS = 10
SETTING_UP = 16  # requests at once, to set the shop up


def run(servers: Stack, quick: bool) -> list[Figure]:
    seconds, rounds = (5, 1) if quick else (20, 3)
    p99: dict[str, list[float]] = {"add": [], "read": [], "get": []}  # ms, of each round
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings) as platform:
            platform.start("relay", "worker", "api")
            carts = uvloop.run(_set_up(platform.settings))
            tokens = {customer: platform.token("customer", customer) for customer, _ in carts}
            uvloop.run(_load(platform.url, carts, tokens, 3))  # statements are prepared, code is warm
            for _ in range(rounds):
                add, read = uvloop.run(_load(platform.url, carts, tokens, seconds))
                get = uvloop.run(_gets(settings.redis, seconds))
                for what, took in (("add", add), ("read", read), ("get", get)):
                    p99[what].append(1_000 * percentile(took, 0.99))
    get_ms, figures = median(p99["get"]), []
    for what in ("add", "read"):
        shown = f"{what}, p99 at {PER_S:.0f} requests/s"
        figures += [
            at_most("cart", shown, median(p99[what]), "ms", get_ms, "Redis GET", P99_MS),
            Figure("cart", f"{shown}, worst of {rounds} rounds", max(p99[what]), "ms", get_ms, "Redis GET"),
        ]
    return figures


async def _set_up(settings: Settings) -> list[tuple[UUID, UUID]]:
    """A shop with products in stock, and a cart each of so many customers: (customer, cart)."""
    dice, shop, turn = Random(0), uuid4(), asyncio.Semaphore(SETTING_UP)

    async with Api(settings) as api:

        async def posted(path: str, document: Any, by: UUID, role: str) -> Any:
            answer = await api.post(path, document, by, role)
            assert answer.ok, answer
            return answer.document

        async def visible(path: str, position: str, by: UUID, role: str, **query: Any) -> None:
            answer = await api.get(path, by, role, after=position, **query)
            assert answer.ok, answer

        async def product(number: int) -> None:
            async with turn:
                sku, price = _sku(number), {"amount": 100 + number, "currency": "EUR"}
                document = {
                    "title": f"Mug no. {number}",
                    "variants": [{"sku": sku, "prices": [price]}],
                    "publish": True,
                }
                made = await posted("/products", document, shop, "service")
                await visible("/products/offers", made["position"], shop, "service", sku=sku)
                await visible(f"/products/{made['id']}", made["position"], shop, "service")
                stock = await posted("/stocks", {"sku": sku}, shop, "service")
                delivery = {"quantity": STOCK, "reference": "opening stock"}
                await posted(f"/stocks/{stock['id']}/receive", delivery, shop, "service")

        async def cart(customer: UUID) -> tuple[UUID, UUID]:
            async with turn:
                made = await posted("/carts", {"currency": "EUR"}, customer, "customer")
                path = f"/carts/{made['id']}"
                for number in dice.sample(range(SKUS), LINES):
                    last = await posted(f"{path}/lines", _adding(number), customer, "customer")
                await visible(path, last["position"], customer, "customer")
                return customer, UUID(made["id"])

        await asyncio.gather(*(product(number) for number in range(SKUS)))
        return await asyncio.gather(*(cart(uuid4()) for _ in range(CARTS)))


def _sku(number: int) -> str:
    return f"mug-{number}"


def _adding(number: int) -> dict[str, Any]:
    return {"sku": _sku(number), "quantity": 1}


async def _load(
    url: str, carts: list[tuple[UUID, UUID]], tokens: dict[UUID, str], seconds: float
) -> tuple[list[float], list[float]]:
    """How long adds and reads took, each at half of the rate for so many seconds."""
    dice, count = Random(seconds), int(seconds * PER_S / 2)

    def target() -> tuple[str, dict[str, str]]:
        customer, cart = dice.choice(carts)
        return f"{url}/carts/{cart}", {"Authorization": f"Bearer {tokens[customer]}"}

    def add() -> bytes:
        path, headers = target()
        return request(f"{path}/lines", "POST", _adding(dice.randrange(SKUS)), headers)

    def read() -> bytes:
        path, headers = target()
        return request(path, "GET", None, headers)

    async def loop(requests: list[bytes], late_s: float) -> list[float]:
        await asyncio.sleep(late_s)
        result = await open_loop(url, requests.__getitem__, PER_S / 2, count, CONNECTIONS, 200)
        assert not result.failed, result.failed[0][:500]
        return result.seconds

    adds, reads = [add() for _ in range(count)], [read() for _ in range(count)]
    with uncollected():  # in this process it would be measured, too
        return await asyncio.gather(loop(adds, 0), loop(reads, 1 / PER_S))


async def _gets(url: str, seconds: float) -> list[float]:
    """Round trips of a GET, at the same rate."""
    took = []
    async with aio.Redis.from_url(url) as client:
        await client.set("bench", bytes(100))
        began = time.perf_counter()
        for number in range(int(seconds * PER_S)):
            await asyncio.sleep(max(0.0, began + number / PER_S - time.perf_counter()))
            asked = time.perf_counter()
            await client.get("bench")
            took.append(time.perf_counter() - asked)
    return took
