"""A store that is away: 503 with Retry-After, soon, and all is well once it is back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from infra.children import Child
from infra.servers import SERVERS
from infra.settings import Settings
from tests.api.kernel.conftest import Shop, set_up, shop_on
from tests.kernel.servers import Stack, folder


@pytest.fixture(scope="module")
def database() -> Iterator[Child]:
    """A Postgres of our own, to be stopped."""
    with folder() as data:
        server = SERVERS["postgres"](data, 0, lambda line: None)
        server.start()
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


def test_postgres_away_and_back(database: Child, stack: Stack, tmp_path: Path) -> None:
    settings = Settings(
        postgres=database.address, redis=stack["redis"], clickhouse="http://127.0.0.1:9", namespace=f"test-{uuid4().hex}",
        jwt_jwks=tmp_path / "jwks.json", jwt_private_key=tmp_path / "jwt.json", master_key=tmp_path / "master",
    )  # fmt: skip
    set_up(settings)
    with shop_on(settings) as shop:
        me = shop.of()
        id = shop.opened(me)
        shop.project()
        database.stop()
        key = {**me, "Idempotency-Key": "through-the-outage"}
        for answer in (
            shop.http.get("/purses", headers=me),
            shop.http.get(f"/purses/{id}", headers=me),
            shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers=key),
            shop.http.get("/health/ready"),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
        assert shop.http.get("/health/live").status_code == 200
        assert shop.http.get("/purses").status_code == 401
        database.start()
        database.wait_ready()
        give_up = time.monotonic() + 30
        while (answer := shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers=key)).status_code != 200:
            assert answer.status_code in (503, 409), answer.text
            assert time.monotonic() < give_up
        shop.project()
        while (read := shop.http.get(f"/purses/{id}?after={answer.json()['position']}", headers=me)).status_code != 200:
            assert read.status_code == 503, read.text  # a connection from before, met once
            assert time.monotonic() < give_up
        assert read.json()["balance"] == 1


def test_redis_away_limits_nobody(shop: Shop, tmp_path: Path) -> None:
    without = shop.settings.model_copy(update={"redis": "redis://127.0.0.1:9/0"})
    with shop_on(without) as other:
        me = other.of()
        assert other.http.post("/purses", json={"currency": "EUR", "holder": "Ada"}, headers=me).status_code == 201
        ready = other.http.get("/health/ready")
        assert (ready.status_code, "redis" in ready.json()["detail"]) == (503, True)


def test_without_a_master_key_only_personal_data_is_away(shop: Shop, tmp_path: Path) -> None:
    without = shop.settings.model_copy(update={"master_key": tmp_path / "none"})
    with shop_on(without) as other:
        me = other.of()
        assert other.http.post("/purses", json={"currency": "EUR", "holder": "Ada"}, headers=me).status_code == 503
        assert other.http.get("/purses", headers=me).status_code == 200


def test_without_tables_it_says_that_it_is_not_set_up(stack: Stack, postgres: str, shop: Shop) -> None:
    with shop_on(shop.settings.model_copy(update={"postgres": postgres})) as other:
        answer = other.http.get("/purses", headers=other.of())
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:titan:problem:unavailable")


def test_ready_when_every_store_answers(shop: Shop, stack: Stack) -> None:
    with shop_on(shop.settings.model_copy(update={"clickhouse": stack["clickhouse"]})) as other:
        for path in ("/health", "/health/ready", "/health/live"):
            answer = other.http.get(path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_request_that_takes_too_long_is_ended(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = shop.app.stores
    assert stores is not None
    me = shop.of()
    id = shop.opened(me)
    shop.project()
    position = shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers=me).json()["position"]
    monkeypatch.setattr(stores, "limits", stores.limits.model_copy(update={"request_s": 0.2}))
    answer = shop.http.get(f"/purses/{id}?after={position}", headers=me)  # its view is never filled
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:titan:problem:unavailable")
    assert "Idempotency-Key" in answer.json()["detail"]


def test_a_body_that_does_not_arrive_is_not_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = shop.app.stores
    assert stores is not None
    monkeypatch.setattr(stores, "limits", stores.limits.model_copy(update={"request_s": 0.2}))
    address = urlsplit(str(shop.http.base_url))
    head = [
        "POST /purses HTTP/1.1", "Host: shop", "Content-Type: application/json", "Content-Length: 100",
        f"Authorization: {shop.of()['Authorization']}", "", '{"curr',
    ]  # fmt: skip
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall("\r\n".join(head).encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"urn:titan:problem:slow-request" in answer
