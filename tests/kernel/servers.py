"""The real servers, started when first asked for, and a fresh corner of each: for tests, benches and chaos alike.

TITAN_TEST_SERVERS names a servers.json of running ones instead (`python -m infra servers --data DIR`), or of some that are about
to run: each address is waited for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import psycopg
import redis as redis_client
from confluent_kafka.admin import AdminClient

from infra.children import Child, stop
from infra.errors import StackError
from infra.servers import SERVERS
from infra.settings import ROOT, Settings
from tests.kernel.connections import forget

REDIS_DATABASES = range(1, 64)  # 0 holds who uses which
SERVERS_S_MAX = 300  # from a run's start until the last server is ready, where Kafka has to be fetched first
SEIZE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('SET', KEYS[1], ARGV[2])"
LOOK_S = 0.05
SESSION_S = 6  # as short as a broker takes it: tests that kill a worker wait for it
REFRESH_S = 2  # tests that delete a topic wait until all consumers have noticed
FOLDERS = "titan-test-"


class Kafka(NamedTuple):
    """`bootstrap` servers, and a topic `prefix` that nobody else uses; its topics are deleted afterwards."""

    bootstrap: str
    prefix: str


class Stack:
    """The servers' addresses by name: postgres, redis, clickhouse, kafka. Each is started when it is first asked for.

    With `others`, a servers.json, they are somebody else's, and are waited for.
    """

    def __init__(self, data: Path, others: Path | None = None) -> None:
        self.data, self.others = data, others
        self.addresses: dict[str, str] = {}
        self.children: dict[str, Child] = {}
        self.give_up = time.monotonic() + SERVERS_S_MAX

    def __getitem__(self, name: str) -> str:
        if self.others and name not in self.addresses:
            self.addresses = self._published(self.others, name)
        elif name not in self.addresses:
            child = self.children[name] = SERVERS[name](self.data, 0, lambda line: None)
            child.start()
            child.wait_ready()
            self.addresses[name] = child.address
        return self.addresses[name]

    def _published(self, others: Path, name: str) -> dict[str, str]:
        while True:
            with suppress(FileNotFoundError):
                found: dict[str, str] = json.loads(others.read_text())
                if name in found:
                    return found
            if time.monotonic() > self.give_up:
                raise StackError(f"{name} is not in {others}; a log of each server is beside it")
            time.sleep(LOOK_S)

    def close(self) -> None:
        stop(list(self.children.values()))


@contextmanager
def running() -> Iterator[Stack]:
    """Servers of this process's own, or those of TITAN_TEST_SERVERS."""
    given = os.environ.get("TITAN_TEST_SERVERS")
    with folder() as data, closing(Stack(data, Path(given) if given else None)) as servers:
        yield servers


@contextmanager
def shared() -> Iterator[None]:
    """Servers for all processes that this one starts meanwhile, unless there are some already."""
    if os.environ.get("TITAN_TEST_SERVERS"):
        yield
        return
    with folder() as data:
        argv = [sys.executable, "-m", "infra.cli", "servers", "--data", str(data)]
        child = Child(
            "servers", argv, log=data / "log" / "servers.log", cwd=ROOT, death_signal=signal.SIGTERM, stop_s=60
        )
        child.start()
        os.environ["TITAN_TEST_SERVERS"] = str(data / "servers.json")
        try:
            yield
        finally:
            del os.environ["TITAN_TEST_SERVERS"]
            child.stop()


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder for servers, which PostgreSQL's user can pass through. Those of runs that were killed are removed."""
    for old in Path(tempfile.gettempdir()).glob(f"{FOLDERS}[0-9]*-*"):
        if not psutil.pid_exists(int(old.name.split("-")[2])):
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-"))
    made.chmod(0o711)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def database(stack: Stack) -> Iterator[str]:
    """The DSN of an empty database."""
    name, server = f"test_{uuid4().hex}", stack["postgres"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    dsn = urlsplit(server)._replace(path=f"/{name}").geturl()
    yield dsn
    forget(dsn)
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
        number = next(n for n in REDIS_DATABASES if _taken(users, f"test-database:{n}"))
        url = server._replace(path=f"/{number}").geturl()
        with redis_client.Redis.from_url(url) as mine:
            mine.flushdb()
            yield url
            mine.flushdb()
        users.delete(f"test-database:{number}")


def _taken(users: redis_client.Redis, key: str) -> bool:
    """Whether the place was free, or left behind by a process that was killed, and is this process's now."""
    if users.set(key, os.getpid(), nx=True):
        return True
    owner = users.get(key)
    assert owner is None or isinstance(owner, bytes)
    return (
        owner is not None and not psutil.pid_exists(int(owner)) and bool(users.eval(SEIZE, 1, key, owner, os.getpid()))
    )


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
        kafka_session_s=SESSION_S,
        kafka_refresh_s=REFRESH_S,
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
