"""Disasters of a live shop: Redis, Kafka's disk, or all of Postgres are lost and made anew, and it goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import domains
from api.kernel.vault import Vault, read_master_key
from infra import demo
from infra.audit import audit
from infra.demo import Demo
from infra.kafka import topics
from infra.shop import lines_of, load
from infra.shopper import Api
from replay.domains import chosen
from replay.store import restore
from replay.topic import lost, rewrite_all
from replay.verify import known, verify
from tests.kernel.connections import connected
from tests.kernel.people import People
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Kafka, Stack, cache, database, folder, settings_of, warehouse
from tests.kernel.topic import stored

SECRETS = ("vault_keys", "secrets")  # in no topic: otherwise nobody could be forgotten
pytestmark = pytest.mark.slow


class Broker:
    """A broker of the shop's own, whose disk may be lost."""

    def __init__(self, data: Path) -> None:
        self._data, self._stack = data, Stack(data)
        self.address = self._stack["kafka"]

    def lose(self) -> None:
        """It is killed, its disk is new, and it starts again where clients know it."""
        broker = self._stack.children["kafka"]
        assert broker.process is not None
        broker.process.kill()
        broker.process.wait()
        shutil.rmtree(self._data / "kafka")
        del self._stack.addresses["kafka"]
        assert self._stack["kafka"] == self.address

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with folder() as data, closing(Broker(data)) as made:
        yield made


@pytest.fixture(scope="module")
def shop(stack: Stack, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Every process, and a few products of the real shop with their first orders."""
    with database(stack) as postgres, cache(stack) as redis, warehouse(stack) as clickhouse:
        kafka = Kafka(broker.address, f"test-{uuid4().hex[:12]}.")
        settings = settings_of(postgres, kafka, redis, clickhouse, tmp_path_factory.mktemp("shop"))
        with Platform(settings) as made:
            made.start()
            asyncio.run(load(made.settings, lines_of(invoices=6), lambda line: None))
            wait_for(lambda: stored(settings.postgres, "order"), "an order is placed")
            yield made


def visit(platform: Platform, seed: int, shoppers: int = 4) -> Demo:
    async def live() -> Demo:
        async with Api(platform.settings) as api:
            demo = Demo(api, seed)
            await demo.run(shoppers, at_once=3)
            assert await demo.check() == []
            return demo

    return asyncio.run(live())


def agree(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stores tell the same story, the test gateway's book included."""
    for name, value in platform.env.items():
        monkeypatch.setenv(name, value)
    assert audit(platform.settings) == []


def opened(platform: Platform, sealed: str) -> str:
    """A sealed text, as a process that starts reads it."""

    async def read() -> str:
        async with AsyncConnectionPool(
            platform.settings.postgres, connection_class=AsyncConnection, open=False
        ) as pool:
            return await Vault(pool, read_master_key(platform.settings.master_key)).open(sealed)

    return asyncio.run(read())


def check_out(platform: Platform) -> None:
    """Somebody buys, while nobody drives sagas."""
    with psycopg.connect(platform.settings.postgres) as connection:
        [sku] = connection.execute("SELECT sku FROM stocks ORDER BY available DESC LIMIT 1").fetchone() or [""]
    with platform.client("customer", uuid4()) as http:
        cart = http.post("/carts", json={"currency": "GBP"}).json()["id"]
        added = http.post(f"/carts/{cart}/lines", json={"sku": sku, "quantity": 1}).json()["position"]
        seen = http.get(f"/carts/{cart}", params={"after": added}).json()["contents"]
        where = {"recipient": "Ada", "street": "12 Square", "city": "London", "postcode": "SW1Y 4JH", "country": "GB"}
        buying = {"cart": cart, "contents": seen, "method": "tok_visa", "shipping": "express", "address": where}
        made = http.post("/checkouts", json=buying, headers={"Idempotency-Key": cart})
        assert made.is_success, made.text


def endings(platform: Platform) -> dict[str, int]:
    """How many checkouts there are, by what has become of them."""
    with connected(platform.settings.postgres) as connection:
        return dict(connection.execute("SELECT status, count(*) FROM checkouts GROUP BY status").fetchall())


def on_sale(platform: Platform) -> bool:
    """Whether the worker has got so far with the new database that shoppers see what was sold in the old one."""
    with platform.client("customer", uuid4()) as http:
        return bool(http.get("/products", params={"status": "published"}).json()["items"])


def backed_up(dsn: str) -> None:
    """A backup, made now."""
    with psycopg.connect(dsn) as connection:
        for table in SECRETS:
            connection.execute(f"CREATE TABLE {table}_backup AS TABLE {table}".encode())


def from_backup(old: str, new: str, table: str) -> None:
    """The rows of a table, as the backup has them."""
    with psycopg.connect(old) as backup, psycopg.connect(new) as connection:
        connection.execute(f"TRUNCATE {table}".encode())
        with (
            backup.cursor().copy(f"COPY {table}_backup TO STDOUT".encode()) as out,
            connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as into,
        ):
            for chunk in out:
                into.write(chunk)


def test_redis_is_empty(shop: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis.Redis.from_url(shop.settings.redis) as client:
        client.flushdb()
    visit(shop, 1)
    agree(shop, monkeypatch)


def test_kafkas_disk_is_lost_while_people_shop(shop: Platform, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is in no topic is lost with it: the consumer groups and where they were. Sagas are in flight."""
    monkeypatch.setattr(demo, "MAIL_S_MAX", 300)  # nobody's mail goes out before the topics are there again
    readers, before = ["sagas", "worker", "faust"], sum(endings(shop).values())
    with ThreadPoolExecutor(1) as others:
        shopping = others.submit(visit, shop, 2)
        wait_for(lambda: sum(endings(shop).values()) > before, "somebody buys")
        shop.kill("sagas")
        check_out(shop)
        for name in readers[1:]:
            shop.kill(name)
        broker.lose()
        topics.create(shop.settings, domains())
        shop.start(*readers)
        gone = lost(shop.settings, domains())
        assert {"order", "checkout", "inventory", "payment"} <= {*gone}
        with shop.client("customer", uuid4()) as http:  # the others may all be waiting for what is in flight
            assert http.post("/carts", json={"currency": "GBP"}).is_success
        wait_for(
            lambda: "Kafka has lost records" in shop.log("relay"), "the relay, which has run on, publishes nothing"
        )
        done = rewrite_all(shop.settings, gone)
        assert all(one.records for one in done)
        shopping.result()
    visit(shop, 3)
    assert endings(shop).keys() <= {"completed", "failed"}
    agree(shop, monkeypatch)


def test_all_is_verified_while_people_shop(shop: Platform) -> None:
    chosen((), True)
    with ThreadPoolExecutor(1) as others:
        shopping = others.submit(visit, shop, 4)
        found = list(verify(shop.settings, domains(), known()))
        shopping.result()
    assert [one.document() for one in found if not one.agrees] == []
    assert len(found) > len(domains())


def test_postgres_is_lost_with_all_that_was_in_it(
    shop: Platform, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the backup of what is in no topic is older than the erasure of somebody."""
    agree(shop, monkeypatch)
    with shop.client("customer", uuid4()) as http:
        people = People(http, shop.settings)
        ada, bob = people.join(), people.join()
        sealed = people.account(bob.email).email
        wait_for(lambda: http.get(f"/users/{bob.id}", headers=bob.headers).status_code == 200, "he has a profile")
        backed_up(shop.settings.postgres)
        people.post(f"/users/{bob.id}/erase", 200, bob.headers, confirm="erase everything")
        status = partial(
            http.get, f"/users/{bob.id}", headers={"Authorization": f"Bearer {shop.token('admin', uuid4())}"}
        )
        wait_for(lambda: status().json()["status"] == "erased", "he is erased")
    for name in list(shop.children):
        shop.kill(name)
    with database(stack) as dsn:
        done = {one.domain: one for one in restore(shop.settings, chosen((), True), dsn)}
        assert done["order"].claims > 0
        with Platform(shop.settings.model_copy(update={"postgres": dsn})) as again:
            for table in SECRETS:
                from_backup(shop.settings.postgres, dsn, table)
            again.start()
            wait_for(lambda: on_sale(again), "something is for sale again")
            visit(again, 5)
            agree(again, monkeypatch)
            with again.client("customer", uuid4()) as http:
                people = People(http, again.settings)
                mine = {"Authorization": f"Bearer {people.login(ada.email)['access_token']}"}
                assert http.get(f"/users/{ada.id}", headers=mine).status_code == 200
            assert opened(again, sealed) == ""
