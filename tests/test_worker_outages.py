"""Each server is killed under load and comes back: the worker goes on by itself, and nothing is lost or doubled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.children import Child, stop
from infra.servers import SERVERS
from infra.settings import Settings
from tests.kernel.servers import folder
from tests.projections.kernel.live import count, make_topic, passed, produce, publisher, until, workers
from tests.projections.kernel.purse import Filled, Log
from tests.projections.kernel.stores import store
from tests.test_worker import traffic

SINKS = ("postgres", "redis", "clickhouse")
DOWN_S = 3.0  # longer than every first retry


@pytest.fixture
def own() -> Iterator[dict[str, Child]]:
    """Servers of this test alone, which it may kill."""
    with folder() as data:
        children = {name: SERVERS[name](data, 0, lambda line: None) for name in ("kafka", *SINKS)}
        try:
            for child in children.values():
                child.start()
            for child in children.values():
                child.wait_ready()
            yield children
        finally:
            stop(list(children.values()))


@pytest.mark.slow
def test_each_server_is_killed_under_load(own: dict[str, Child], tmp_path: Path) -> None:
    settings = Settings(
        kafka=own["kafka"].address,
        postgres=own["postgres"].address,
        redis=own["redis"].address,
        clickhouse=own["clickhouse"].address,
        data=tmp_path,
    )
    make_topic(settings)
    log = Log()
    producer = publisher(settings, **{"message.timeout.ms": 0})
    with (
        store("postgres", settings) as postgres,
        store("redis", settings) as redis,
        store("clickhouse", settings) as click,
        workers(settings, 1, *SINKS) as (worker,),
    ):
        stores = (postgres, redis, click)
        for victim in own.values():
            for part in range(6):
                start = len(log.rows)
                traffic(log, 200)
                produce(producer, settings, log.rows[start:])
                producer.poll(0.2)
                if part == 2:
                    assert victim.process is not None
                    victim.process.kill()
                    victim.process.wait()
                    killed = time.monotonic()
                if part == 4:
                    until(lambda since=killed: time.monotonic() - since > DOWN_S)  # type: ignore[misc]
                    victim.start()
                    victim.wait_ready()
            assert producer.flush(60) == 0
            until(lambda: passed(settings) == len(log.rows), [worker])
            until(lambda: all(to.holds() == to.should_hold(log) for to in stores), [worker])
        fills = sum(isinstance(one.event, Filled) for one in log.events())
        assert count(settings, "SELECT fills FROM totals") == fills
        assert worker.stop() == 0
        assert "ALARM" not in worker.log, worker.log
