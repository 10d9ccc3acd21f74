"""`checkout`: whole sagas a second, and how long from the click until the order is there and paid, all over HTTP.

The click is POST /checkouts; the order is paid when GET /orders/{id} says so: after every step of the saga that this takes, each a
durable commit of its own, through relay, Kafka and read model. One process of each kind, as `titan up` starts them. The baseline
(tests/bench/plain_checkout.py) is an endpoint that does the same in one SQL transaction, at the same Postgres and gateway.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import psycopg
import uvloop

from infra.shopper import Api
from tests.bench import Figure, percentile
from tests.bench.commands import answers, uvicorn
from tests.bench.load import Result, Wire, request
from tests.bench.plain_checkout import TABLES
from tests.kernel.platform import Platform, free_ports, wait_for
from tests.kernel.servers import Stack, fresh_settings

SKUS = 100
STOCK = 1_000_000
LINES = 2  # in each cart
PRICE = 550
AT_ONCE = 16  # shoppers, for the rate
WARM = 40  # of them buy before anything is measured
PER_S = 5.0  # clicks, for the time one takes
SETTING_UP = 16  # requests at once, to set the shop up
LOOK_S, GIVE_UP_S = 0.01, 60.0
ADDRESS = {
    "recipient": "Ada Lovelace", "street": "12 St James's Square", "city": "London", "postcode": "SW1Y 4JH", "country": "GB",
}  # fmt: skip
LIMITS = {  # one address asks for everybody
    f"TITAN_API_{name}": "1000000" for name in ("CALLER_PER_S", "CALLER_BURST", "IP_PER_S", "IP_BURST")
}


@dataclass(frozen=True)
class Shopper:
    """A cart, and the requests to buy it."""

    customer: UUID
    cart: str
    contents: int
    token: str

    def buying(self, method: str | None) -> dict[str, Any]:
        paying = {"method": method} if method else {"wallet": True}
        return {"cart": self.cart, "contents": self.contents, "address": ADDRESS, **paying}


Buy = Callable[[Wire, Shopper], Awaitable[None]]


def run(servers: Stack, quick: bool) -> list[Figure]:
    count, clicks = (120, 40) if quick else (400, 120)
    figures = []
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings, **LIMITS) as platform:
            platform.start()
            port = free_ports(1)
            environment = {**os.environ, **platform.env, "PLAIN_DSN": settings.postgres}
            child = uvicorn(
                "tests.bench.plain_checkout:app", platform.settings.api_host, port, environment, Path(folder)
            )
            plain = f"http://{platform.settings.api_host}:{port}/checkouts"
            with psycopg.connect(settings.postgres) as connection:
                connection.execute(TABLES.encode())
            child.start()
            try:
                wait_for(lambda: answers(plain), f"{plain} answers")
                all_of_them = uvloop.run(_set_up(platform, WARM + 2 * (count + clicks)))
                _plain_tables(settings.postgres, all_of_them)
                shoppers = iter(all_of_them)
                uvloop.run(_rate(platform.url, _ours(platform.url, "tok_visa"), [next(shoppers) for _ in range(WARM)]))
                for how, method in (("from a wallet", None), ("by card", "tok_visa")):
                    there, here = _plainly(plain, method), _ours(platform.url, method)
                    many = [next(shoppers) for _ in range(count)]
                    few = [next(shoppers) for _ in range(clicks)]
                    base = uvloop.run(_rate(plain, there, many))
                    ours = uvloop.run(_rate(platform.url, here, many))
                    figures.append(
                        Figure(
                            "checkout", f"paid {how}, {AT_ONCE} at once", ours, "sagas/s", base, "one SQL transaction"
                        )
                    )
                    theirs = uvloop.run(_times(plain, there, few))
                    took = uvloop.run(_times(platform.url, here, few))
                    figures += [
                        Figure(
                            "checkout", f"click → paid {how}, {name} at {PER_S:.0f}/s", 1_000 * percentile(took, part), "ms",
                            1_000 * percentile(theirs, part), "one SQL transaction",
                        )
                        for name, part in (("p50", 0.5), ("p99", 0.99))
                    ]  # fmt: skip
            finally:
                child.stop()
    return figures


def _ours(url: str, method: str | None) -> Buy:
    """Click, and look until the order is paid."""

    async def buy(wire: Wire, shopper: Shopper) -> None:
        headers = {"Authorization": f"Bearer {shopper.token}"}
        made = await _asked(wire, request(f"{url}/checkouts", "POST", shopper.buying(method), headers), 201)
        look = request(f"{url}/orders/{made['id']}", "GET", None, headers)
        give_up = time.monotonic() + GIVE_UP_S
        while True:
            await asyncio.sleep(LOOK_S)
            if (await _asked(wire, look, 0)).get("status") == "paid":
                return
            assert time.monotonic() < give_up, f"checkout {made['id']} is not paid"

    return buy


def _plainly(url: str, method: str | None) -> Buy:
    async def buy(wire: Wire, shopper: Shopper) -> None:
        body = {"customer": str(shopper.customer), "cart": shopper.cart, "method": method, "address": ADDRESS}
        await _asked(wire, request(url, "POST", body), 201)

    return buy


async def _asked(wire: Wire, sent: bytes, expect: int) -> dict[str, Any]:
    """The document of an answer; `expect` 0: of any."""
    result = Result()
    body = await wire.ask(sent, expect, result)
    assert not expect or not result.failed, result.failed[0][:500]
    found: dict[str, Any] = orjson.loads(body)
    return found


async def _rate(url: str, buy: Buy, shoppers: list[Shopper]) -> float:
    """How many a second buy when so many do at once."""
    queue = iter(shoppers)

    async def one() -> None:
        wire = await Wire.open(url)
        for shopper in queue:
            await buy(wire, shopper)
        wire.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return len(shoppers) / (time.perf_counter() - began)


async def _times(url: str, buy: Buy, shoppers: list[Shopper]) -> list[float]:
    """How many seconds each takes when they come at a fixed rate, whatever the ones before do."""

    async def one(number: int, shopper: Shopper) -> float:
        due = began + number / PER_S
        wire = await Wire.open(url)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await buy(wire, shopper)
        wire.close()
        return time.perf_counter() - due

    began = time.perf_counter() + 0.1
    return await asyncio.gather(*(one(*each) for each in enumerate(shoppers)))


async def _set_up(platform: Platform, count: int) -> list[Shopper]:
    """A shop with products in stock; shoppers with a full cart and a full wallet."""
    shop, turn = uuid4(), asyncio.Semaphore(SETTING_UP)
    async with Api(platform.settings) as api:

        async def posted(path: str, document: Any, by: UUID, role: str = "service") -> Any:
            answer = await api.post(path, document, by, role, key=uuid4().hex)
            assert answer.ok, answer
            return answer.document

        async def product(number: int) -> None:
            async with turn:
                variant = {"sku": f"mug-{number}", "prices": [{"amount": PRICE, "currency": "EUR"}]}
                made = await posted("/products", {"title": "A mug", "variants": [variant], "publish": True}, shop)
                stock = await posted("/stocks", {"sku": variant["sku"]}, shop)
                last = await posted(
                    f"/stocks/{stock['id']}/receive", {"quantity": STOCK, "reference": "opening stock"}, shop
                )
                for path, position in ((f"/products/{made['id']}", made), (f"/stocks/{stock['id']}", last)):
                    assert (await api.get(path, shop, "service", after=position["position"])).ok

        async def shopper(number: int) -> Shopper:
            async with turn:
                me = uuid4()
                wallet = await posted("/wallets", {"currency": "EUR"}, me, "customer")
                await posted(f"/wallets/{wallet['id']}/credits", {"amount": 10**6, "currency": "EUR"}, shop)
                cart = await posted("/carts", {"currency": "EUR"}, me, "customer")
                for line in range(LINES):
                    put = {"sku": f"mug-{(number + line) % SKUS}", "quantity": 1}
                    last = await posted(f"/carts/{cart['id']}/lines", put, me, "customer")
                return Shopper(me, cart["id"], last["version"], platform.token("customer", me))

        await asyncio.gather(*(product(number) for number in range(SKUS)))
        return await asyncio.gather(*(shopper(number) for number in range(count)))


def _plain_tables(dsn: str, shoppers: list[Shopper]) -> None:
    """The same shop for the baseline."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO plain_products VALUES (%s, %s, %s)", [(f"mug-{n}", PRICE, STOCK) for n in range(SKUS)]
        )
        cursor.executemany(
            "INSERT INTO plain_carts VALUES (%s, %s, 'open')", [(one.cart, one.customer) for one in shoppers]
        )
        cursor.executemany(
            "INSERT INTO plain_cart_lines VALUES (%s, %s, 1, %s)",
            [(one.cart, f"mug-{(n + line) % SKUS}", PRICE) for n, one in enumerate(shoppers) for line in range(LINES)],
        )
        cursor.executemany("INSERT INTO plain_wallets VALUES (%s, 1000000)", [(one.customer,) for one in shoppers])
