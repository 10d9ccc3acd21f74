"""A market of its own: services on real stores, their read models following live. `mall` has all there are, `market` two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

from aggregates.kernel import Origin, Store, domains
from aggregates.kernel.migrate import migrate as migrate_events
from api.app import routers
from api.kernel import app_of
from api.kernel.migrate import migrate as migrate_api
from infra.settings import Settings
from infra.token import make_keys, token
from projections.kernel.clauses import PROJECTIONS, projections
from schemas.registry import router as registry
from tests.api.kernel.conftest import listening, serving
from tests.kernel.gateway import with_gateways
from tests.kernel.servers import Stack, cache, database, warehouse
from tests.kernel.topic import Live, settings_of

DOMAINS = ["inventory", "product"]
MUG = {"sku": "", "options": {}, "prices": [{"amount": 1999, "currency": "EUR"}]}


class Market(NamedTuple):
    """`http` has no token; `of` makes the headers of one. `urls` are of several servers on the same stores."""

    http: httpx.Client
    settings: Settings
    live: Live
    urls: list[str]

    def of(self, role: str = "seller", subject: UUID | None = None, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(self.settings, role, subject or uuid4())}", **more}

    def post(self, path: str, body: Any, by: dict[str, str], status: int = 200) -> dict[str, Any]:
        """A command that has to be answered with that status; under a key of its own, unless `by` has one."""
        answer = self.http.post(path, json=body, headers={"Idempotency-Key": uuid4().hex, **by})
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def read(self, path: str, by: dict[str, str], status: int = 200, /, **query: Any) -> dict[str, Any]:
        """A question that has to be answered with that status."""
        answer = self.http.get(path, params=query, headers=by)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def cart(self, by: dict[str, str], **pieces: int) -> dict[str, Any]:
        """A cart with so many pieces of each SKU, as it is read."""
        last = self.post("/carts", {"currency": "EUR"}, by, 201)
        for sku, quantity in pieces.items():
            last = self.post(f"/carts/{last['id']}/lines", {"sku": sku, "quantity": quantity}, by)
        return self.read(f"/carts/{last['id']}", by, after=last["position"])

    def tell(self, id: str, method: Callable[..., None], *args: Any) -> str:
        """What a saga would tell an aggregate; the position."""

        async def told() -> str:
            async with Store.open(self.settings.postgres) as store:
                return (await store.commands(Origin(actor="saga:test")).tell(UUID(id), method, *args)).position

        return asyncio.run(told())

    def database(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.settings.postgres)

    def on_sale(self, by: dict[str, str], *skus: str, pieces: int = 0) -> list[str]:
        """Products of one variant each, published, with that many pieces in stock; the stocks' ids."""
        stocks = []
        for sku in skus:
            self.post("/products", {"title": sku, "variants": [{**MUG, "sku": sku}], "publish": True}, by, 201)
            id = self.post("/stocks", {"sku": sku}, by, 201)["id"]
            stocks.append(id)
            if pieces:
                self.post(f"/stocks/{id}/receive", {"quantity": pieces, "reference": "note"}, by)
        return stocks


@contextmanager
def patience() -> Iterator[None]:
    """A machine that runs tests in several processes may be slow to fold: reads wait longer for what was written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_API_VIEW_WAIT_S", "10")
        # One address asks for everybody here, and a quick machine asks fast.
        patch.setenv("TITAN_API_IP_PER_S", "10000")
        patch.setenv("TITAN_API_IP_BURST", "20000")
        yield


@contextmanager
def market_on(settings: Settings, servers: int = 1, domains: list[str] = DOMAINS) -> Iterator[Market]:
    make_keys(settings)
    migrate_api(settings)
    migrate_events(settings.postgres, domains)
    routers = [import_module(f"api.{domain}").router for domain in domains]
    live = Live(settings, [PROJECTIONS[f"projections.{domain}"] for domain in domains])
    with ExitStack() as stack:
        stack.callback(live.close)
        if "payment" in domains:
            settings = stack.enter_context(with_gateways(settings))
        with patience():
            urls = [stack.enter_context(serving(app_of(*routers, settings=settings))) for _ in range(servers)]
        http = stack.enter_context(httpx.Client(base_url=urls[0], timeout=20))
        stack.enter_context(live.following())
        yield Market(http, settings, live, urls)


@pytest.fixture(scope="session")
def market(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    name, server = f"test_{uuid4().hex}", stack["postgres"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            folder: Path = tmp_path_factory.mktemp("market")
            dsn = urlsplit(server)._replace(path=f"/{name}").geturl()
            with market_on(settings_of(dsn, stack["redis"], folder)) as market:
                yield market
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextmanager
def mall_on(settings: Settings) -> Iterator[Market]:
    """Every service there is behind one port, every read model following; the port is the issuer of its accounts' tokens."""
    make_keys(settings)
    migrate_api(settings)
    migrate_events(settings.postgres, domains())
    live = Live(settings, projections(), ("postgres", "redis", "clickhouse"))
    with ExitStack() as stack:
        stack.callback(live.close)
        settings = stack.enter_context(with_gateways(settings))
        at, url = stack.enter_context(listening())
        settings = settings.model_copy(update={"public_url": url})
        with patience():
            stack.enter_context(serving(app_of(*routers(), registry, settings=settings), at))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=20))
        stack.enter_context(live.following())
        yield Market(http, settings, live, [url])


@contextmanager
def mall_settings(stack: Stack, folder: Path) -> Iterator[Settings]:
    """Settings of empty stores, all of it gone afterwards."""
    with database(stack) as postgres, cache(stack) as redis, warehouse(stack) as clickhouse:
        yield settings_of(postgres, redis, folder).model_copy(update={"clickhouse": clickhouse})


@pytest.fixture(scope="session")
def mall(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with mall_settings(stack, tmp_path_factory.mktemp("mall")) as settings, mall_on(settings) as mall:
        yield mall
