"""The real servers, started once for the session when a test first asks, and a fresh corner of each for every test.

With `-n`, several processes run the tests: the one that hands them out has the servers, and all end with it.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from infra import servers
from infra.children import ON_LINUX, end_with
from infra.settings import Settings
from tests.kernel import tls
from tests.kernel.garbage import uncollected
from tests.kernel.mismatch import mismatches
from tests.kernel.servers import Kafka, Stack, cache, database, running, settings_of, shared, topics, warehouse


def pytest_configure(config: pytest.Config) -> None:
    tls.share()
    given = getattr(config, "workerinput", None)
    if given is not None:  # tests are given to this process by another: it ends with that one, and has ports of its own
        if ON_LINUX:  # elsewhere it ends some seconds after the pipe between them is closed
            end_with(given["parent"])
        own = len(servers.PORTS) // given["workercount"]
        first = servers.PORTS.start + own * int(given["workerid"].removeprefix("gw"))
        servers.PORTS = range(first, first + own)
    elif config.getoption("tx", None) and not config.option.collectonly:
        meanwhile = ExitStack()
        meanwhile.enter_context(shared())
        config.add_cleanup(meanwhile.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """No garbage is looked for among what is imported: it stays."""
    with uncollected():
        collected = yield
        gc.freeze()
    return collected


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # xdist has no types
    node.workerinput["parent"] = os.getpid()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the slowest tests first, so that no process is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """A test fails of what its vendors' stand-ins found wrong, whatever else became of it."""
    try:
        result = yield
    except BaseException as error:
        for one in mismatches():
            error.add_note(one)
        raise
    wrong = mismatches()
    assert not wrong, "\n".join(wrong)
    return result


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
