"""The real servers, started once for the session when a test first asks, and a fresh corner of each for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.settings import Settings
from tests.kernel.servers import Kafka, Stack, cache, database, running, settings_of, topics, warehouse


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with running() as servers:
        yield servers


@pytest.fixture
def postgres(stack: Stack) -> Iterator[str]:
    """The DSN of an empty database."""
    with database(stack) as dsn:
        yield dsn


@pytest.fixture
def kafka(stack: Stack) -> Iterator[Kafka]:
    with topics(stack) as mine:
        yield mine


@pytest.fixture
def redis(stack: Stack) -> Iterator[str]:
    """The URL of an empty database of the server."""
    with cache(stack) as url:
        yield url


@pytest.fixture
def clickhouse(stack: Stack) -> Iterator[str]:
    """The URL of an empty database."""
    with warehouse(stack) as url:
        yield url


@pytest.fixture
def settings(postgres: str, kafka: Kafka, redis: str, clickhouse: str, tmp_path: Path) -> Settings:
    """Settings of a platform of this test's own on the shared servers."""
    return settings_of(postgres, kafka, redis, clickhouse, tmp_path)
