"""Disasters of a live shop: Redis, topics, or all of Postgres are lost and made anew, and it goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import uuid4

import psycopg
import pytest
import redis
from confluent_kafka.admin import AdminClient
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import domains
from api.kernel.vault import Vault, read_master_key
from infra.audit import audit
from infra.demo import Demo
from infra.shop import lines_of, load
from infra.shopper import Api
from replay.domains import chosen
from replay.store import restore
from replay.topic import rewrite
from replay.verify import known, verify
from tests.kernel.people import People
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Stack, database, fresh_settings
from tests.kernel.topic import stored

SECRETS = ("vault_keys", "secrets")  # in no topic: otherwise nobody could be forgotten
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Every process, and a few products of the real shop with their first orders."""
    with fresh_settings(stack, tmp_path_factory.mktemp("shop")) as settings, Platform(settings) as made:
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


def test_topics_are_gone_while_people_shop(shop: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = AdminClient({"bootstrap.servers": shop.settings.kafka})
    lost = ["order", "inventory"]
    with ThreadPoolExecutor(1) as others:
        shopping = others.submit(visit, shop, 2)
        for future in admin.delete_topics([shop.settings.topic(domain) for domain in lost]).values():
            future.result(30)
        for domain in lost:
            assert rewrite(shop.settings, domain, force=True).events > 0
        shopping.result()
    visit(shop, 3)
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
