"""The real servers, started when first asked for, and a fresh corner of each: for tests, benches and chaos alike.

TITAN_TEST_SERVERS names a servers.json of running ones instead (`python -m infra servers --data DIR`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import redis as redis_client
from confluent_kafka.admin import AdminClient

from infra.children import Child
from infra.servers import SERVERS
from infra.settings import Settings

REDIS_DATABASES = range(1, 64)  # 0 holds who uses which
TEST_S_MAX = 900  # a Redis database that a killed test took is free again after this


class Kafka(NamedTuple):
    """`bootstrap` servers, and a topic `prefix` that nobody else uses; its topics are deleted afterwards."""

    bootstrap: str
    prefix: str


class Stack:
    """The servers' addresses by name: postgres, redis, clickhouse, kafka. Each is started when it is first asked for."""

    def __init__(self, data: Path, running: dict[str, str]) -> None:
        self.data, self.addresses = data, dict(running)
        self.children: dict[str, Child] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self.addresses:
            child = self.children[name] = SERVERS[name](self.data, 0, lambda line: None)
            child.start()
            child.wait_ready()
            self.addresses[name] = child.address
        return self.addresses[name]

    def close(self) -> None:
        for child in reversed(self.children.values()):
            child.stop()


@contextmanager
def running() -> Iterator[Stack]:
    """Servers of this process's own, or those of TITAN_TEST_SERVERS."""
    given = os.environ.get("TITAN_TEST_SERVERS")
    data = Path(tempfile.mkdtemp(prefix="titan-test-"))
    data.chmod(0o711)  # PostgreSQL may run as another user
    servers = Stack(data, json.loads(Path(given).read_text()) if given else {})
    try:
        yield servers
    finally:
        servers.close()
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def database(stack: Stack) -> Iterator[str]:
    """The DSN of an empty database."""
    name, server = f"test_{uuid4().hex}", stack["postgres"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    with psycopg.connect(server, autocommit=True) as connection:  # another one: the test may have killed the server
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextmanager
def topics(stack: Stack) -> Iterator[Kafka]:
    """A prefix for topics of one's own."""
    bootstrap, prefix = stack["kafka"], f"test-{uuid4().hex[:12]}."
    yield Kafka(bootstrap, prefix)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    if names := [topic for topic in admin.list_topics(timeout=10).topics if topic.startswith(prefix)]:
        for future in admin.delete_topics(names).values():
            future.result(timeout=30)


@contextmanager
def cache(stack: Stack) -> Iterator[str]:
    """The URL of an empty Redis database."""
    server = urlsplit(stack["redis"])
    with redis_client.Redis.from_url(server._replace(path="/0").geturl()) as users:
        number = next(
            n for n in REDIS_DATABASES if users.set(f"test-database:{n}", os.getpid(), nx=True, ex=TEST_S_MAX)
        )
        url = server._replace(path=f"/{number}").geturl()
        with redis_client.Redis.from_url(url) as mine:
            mine.flushdb()
            yield url
            mine.flushdb()
        users.delete(f"test-database:{number}")


@contextmanager
def warehouse(stack: Stack) -> Iterator[str]:
    """The URL of an empty ClickHouse database."""
    name, server = f"test_{uuid4().hex}", stack["clickhouse"]
    _clickhouse(server, f"CREATE DATABASE {name}")
    yield urlsplit(server)._replace(path=f"/{name}").geturl()
    _clickhouse(server, f"DROP DATABASE {name}")


def settings_of(postgres: str, kafka: Kafka, redis: str, clickhouse: str, data: Path) -> Settings:
    """Settings of a platform of one's own on these."""
    return Settings(
        kafka=kafka.bootstrap,
        postgres=postgres,
        redis=redis,
        clickhouse=clickhouse,
        topic_prefix=kafka.prefix,
        namespace=kafka.prefix.rstrip("."),
        data=data,
        jwt_jwks=data / "jwks.json",
        jwt_private_key=data / "jwt.json",
        master_key=data / "master",
    )


@contextmanager
def fresh_settings(stack: Stack, data: Path) -> Iterator[Settings]:
    """Settings of an empty platform, all of it gone afterwards."""
    data.mkdir(parents=True, exist_ok=True)
    with database(stack) as postgres, topics(stack) as kafka, cache(stack) as redis, warehouse(stack) as clickhouse:
        yield settings_of(postgres, kafka, redis, clickhouse, data)


def _clickhouse(server: str, statement: str) -> None:
    url = urlsplit(server)
    address = f"{url.scheme}://{url.hostname}:{url.port}/"
    headers = {"X-ClickHouse-User": url.username or "default", "X-ClickHouse-Key": url.password or ""}
    with urllib.request.urlopen(urllib.request.Request(address, statement.encode(), headers), timeout=30) as answer:
        answer.read()
