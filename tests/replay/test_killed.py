"""A replay is killed with -9, all its processes at once, while it builds in Redis or ClickHouse. (Postgres: `test_rebuild`.)"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import closing

import psutil
import pytest
import redis as redis_client

from infra.settings import ROOT, Settings
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from replay.shadow import shadow_of, shadows_of
from tests.kernel.platform import variables, wait_for
from tests.projections.kernel.live import make_topic, publish
from tests.projections.kernel.purse import DOMAIN, HELD_UP, Filled, Log, fills, pockets
from tests.projections.kernel.stores import store
from tests.replay.test_rebuild import ask, traffic

TABLES: dict[str, AnyTable] = {"redis": pockets, "clickhouse": fills}


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

    def start(self, *argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.replay.purse_replay", *argv, "--sink", self.sink, "--json"]
        return subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, text=True)

    def build(self) -> subprocess.Popen[str]:
        return self.start(TABLES[self.sink].name, "--workers", "2", "--rows-max", "50")

    def done(self, process: subprocess.Popen[str]) -> dict[str, object]:
        """The last that it says."""
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        last: dict[str, object] = json.loads(out.splitlines()[-1])
        return last

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
        with closing(sink_of(self.sink, self.settings)) as sink:
            return any(
                at.offset >= 0 for at in sink.positions([shadow], DOMAIN, range(self.settings.partitions)).values()
            )


@pytest.mark.parametrize("sink", sorted(TABLES))
def test_killed_it_goes_on_and_what_is_abandoned_is_removed(settings: Settings, sink: str) -> None:
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
        done = replay.done(replay.build())
        assert 0 < int(str(done["events"])) < len(log.rows)  # the rest had been done before
        assert to.holds() == to.should_hold(log)
    assert replay.names() == [] and ask(settings, "SELECT shadow FROM replay_runs") == []
