"""A replay is killed with -9, all its processes at once, while it builds in Redis or ClickHouse. (Postgres: `test_rebuild`.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import closing
from typing import Any

import psutil
import pytest
import redis as redis_client

from infra.children import Child
from infra.servers import SERVERS
from infra.settings import ROOT, Settings
from projections.kernel.tables import AnyTable
from replay import projection
from replay.shadow import shadow_of, shadows_of
from tests.kernel.platform import variables, wait_for
from tests.kernel.servers import folder
from tests.projections.kernel.live import make_topic, publish
from tests.projections.kernel.purse import DOMAIN, HELD_UP, Filled, Log, fills, pockets, purses
from tests.projections.kernel.stores import PURSES, store
from tests.replay.test_rebuild import ask, traffic

TABLES: dict[str, AnyTable] = {"redis": pockets, "clickhouse": fills, "postgres": purses}


class Replay:
    """The command as a process, held up in the middle of its load while `held_up` is there."""

    def __init__(self, settings: Settings, sink: str) -> None:
        self.settings, self.sink, self.held_up = settings, sink, settings.data / "held up"
        self.env = {
            **os.environ,
            **variables(settings),
            "TITAN_DATA": str(settings.data),
            "TITAN_TEST_HELD_UP": str(self.held_up),
        }

    def start(self, *argv: str, stderr: int | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.replay.purse_replay", *argv, "--sink", self.sink, "--json"]
        return subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def build(self, stderr: int | None = None) -> subprocess.Popen[str]:
        return self.start(TABLES[self.sink].name, "--workers", "2", "--rows-max", "50", stderr=stderr)

    def told(self, process: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """All that it says."""
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        return [json.loads(line) for line in out.splitlines()]

    def done(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """The last that it says."""
        return self.told(process)[-1]

    def killed(self) -> None:
        """One that has loaded something is killed, and its workers with it."""
        self.held_up.touch()
        first = self.build()
        wait_for(self.loaded, "something is loaded")
        its = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        assert len(its) == 3
        for process in its:
            process.kill()
        first.communicate()
        psutil.wait_procs(its[1:], timeout=60)
        self.held_up.unlink()

    def names(self) -> Collection[str]:
        """Shadows that lie around."""
        with closing(shadows_of(self.sink, self.settings)) as shadows:
            return shadows.names()

    def loaded(self) -> bool:
        shadow = shadow_of(TABLES[self.sink])
        if shadow.name not in self.names():
            return False
        with closing(shadows_of(self.sink, self.settings)) as shadows, closing(shadows.loader()) as loader:
            return any(
                at.offset >= 0 for at in loader.positions([shadow], DOMAIN, range(self.settings.partitions)).values()
            )


@pytest.mark.parametrize("sink", ["clickhouse", "redis"])
def test_killed_it_goes_on_and_what_is_abandoned_is_removed(
    settings: Settings, sink: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_topic(settings)
    log, replay = Log(), Replay(settings, sink)
    traffic(log, 2_000, 300)
    log.add(1, Filled, amount=HELD_UP)
    traffic(log, 300, 300)
    publish(settings, log.rows)
    with store(sink, settings) as to:
        replay.killed()
        assert to.holds() == {}  # what is live is untouched
        [shadow] = replay.names()
        assert replay.done(replay.start("--clean")) == {"removed": [f"{sink}.{shadow}"], "at_work": []}
        assert replay.names() == [] and ask(settings, "SELECT shadow FROM replay_runs") == []
        if sink == "redis":
            with redis_client.Redis.from_url(settings.redis) as client:
                left = [key for key in client.scan_iter() if b"pockets" in key and not key.endswith(b"!builds")]
            assert left == []
        replay.killed()
        projection.main([TABLES[sink].name, "--sink", sink, "--dry-run", "--json"], [PURSES], settings)
        would = json.loads(capsys.readouterr().out)
        *_, progress, done = replay.told(replay.build())
        assert 0 < done["events"] < len(log.rows)  # the rest had been done before
        assert would["events"] == done["events"] == len(log.rows) - would["events_done"]
        assert progress["events"] == progress["of"] == done["events"]
        assert to.holds() == to.should_hold(log)
    assert replay.names() == [] and ask(settings, "SELECT shadow FROM replay_runs") == []


@pytest.fixture(scope="module")
def mortal() -> Iterator[Child]:
    """One that may be killed."""
    with folder() as data:
        server = SERVERS["postgres"](data, 0, lambda line: None)
        server.start()
        try:
            server.wait_ready()
            yield server
        finally:
            server.stop()


@pytest.mark.parametrize("sink", ["postgres", "redis"])
def test_postgres_is_killed_in_the_middle_of_it(settings: Settings, sink: str, mortal: Child) -> None:
    """It ends in one line, with nothing switched, also where only the register of rebuilds is in Postgres; and goes on afterwards."""
    own = settings.model_copy(update={"postgres": mortal.address})
    make_topic(own)
    log, replay = Log(), Replay(own, sink)
    traffic(log, 1_000, 100)
    log.add(1, Filled, amount=HELD_UP)
    publish(own, log.rows)
    with store(sink, own):
        pass  # the live table, empty
    replay.held_up.touch()
    process = replay.build(stderr=subprocess.PIPE)
    wait_for(replay.loaded, "something is loaded")
    assert mortal.process is not None
    mortal.process.kill()
    mortal.process.wait()
    replay.held_up.unlink()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and said.startswith("error: ") and said.count("\n") == 1, said
    assert "Postgres" in said and "Start again when that is mended" in said
    mortal.start()
    mortal.wait_ready()
    with store(sink, own) as to:
        assert to.holds() == {}
        done = replay.done(replay.start(TABLES[sink].name))
        assert done["events"] < len(log.rows) or sink == "postgres"  # whose crash empties what is not logged
        assert to.holds() == to.should_hold(log)
    assert replay.names() == [] and ask(own, "SELECT shadow FROM replay_runs") == []
