"""A real server of the toy service, on the real stores, one for the session."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
import uvicorn
from starlette.types import ASGIApp

from aggregates.kernel.migrate import migrate as migrate_events
from api.kernel import app_of
from api.kernel.app import App
from api.kernel.migrate import migrate
from api.kernel.protocol import Protocol
from infra.settings import Settings
from infra.token import make_keys, token
from projections.kernel.postgres import migrate as migrate_views
from tests.api.kernel import purse_api
from tests.api.kernel.purse_view import PARTITIONS, catch_up, purses
from tests.kernel.servers import Stack

NONE: Mapping[str, str] = {}


class Shop(NamedTuple):
    """A running API: `http` has no token, `of(role, subject)` makes the headers of one, `project` fills the read model."""

    http: httpx.Client
    settings: Settings
    app: App

    def of(self, role: str = "customer", subject: UUID | None = None, more: Mapping[str, str] = NONE) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(self.settings, role, subject or uuid4())}", **more}

    def project(self) -> None:
        catch_up(self.settings.postgres)

    def opened(self, headers: dict[str, str], currency: str = "EUR") -> str:
        answer = self.http.post("/purses", json={"currency": currency, "holder": "Ada"}, headers=headers)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


@contextmanager
def serving(app: ASGIApp, at: socket.socket | None = None) -> Iterator[str]:
    """The URL of a uvicorn worker in a thread of this process. `at`: a socket that listens, for an app that has to know its URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, loop="uvloop", http=Protocol, access_log=False, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, args=([at] if at else None,), daemon=True)
    thread.start()
    give_up = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < give_up
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """A free port that is taken already, and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as at:
        yield at, f"http://127.0.0.1:{at.getsockname()[1]}"


@contextmanager
def shop_on(settings: Settings) -> Iterator[Shop]:
    app = app_of(purse_api.router, settings=settings)
    with serving(app) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield Shop(http, settings, app)


def set_up(settings: Settings) -> None:
    make_keys(settings)
    migrate(settings)
    migrate_events(settings.postgres, ["purse"])
    with psycopg.connect(settings.postgres) as connection:
        migrate_views(connection, [purses])


@pytest.fixture(scope="session")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder: Path = tmp_path_factory.mktemp("api")
    name, server = f"test_{uuid4().hex}", stack["postgres"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        settings = Settings(
            postgres=urlsplit(server)._replace(path=f"/{name}").geturl(),
            redis=stack["redis"],
            clickhouse="http://127.0.0.1:9",  # nothing listens there: no test of the kernel reads it
            namespace=f"test-{uuid4().hex}",
            partitions=PARTITIONS,
            data=folder,
            jwt_jwks=folder / "jwks.json",
            jwt_private_key=folder / "jwt.json",
            master_key=folder / "master",
        )
        try:
            set_up(settings)
            with shop_on(settings) as shop:
                yield shop
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
