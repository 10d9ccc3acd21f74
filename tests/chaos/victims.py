"""Who is killed with -9, and comes back: servers, the platform's processes, and a rebuild of read models that runs meanwhile."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence

from infra.children import Child
from infra.settings import ROOT
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack

SERVERS = ("kafka", "postgres", "redis", "clickhouse")
PROCESSES = ("relay", "worker", "sagas", "faust", "gateway", "api")
REPLAY = "replay"
VICTIMS = (*SERVERS, *PROCESSES, REPLAY)
AFTER_S = (0.2, 1.2)  # between two kills
DOWN_S = (0.0, 1.0)  # how long it stays away
REPLAY_S_MAX = 60.0
INTO_REPLAY_S = (1.0, 2.5)  # how far a rebuild is: starting, loading or about to switch
TRIES = 10


class Victims:
    """`crashed` is told who is gone, and told again when a server is back. All of it is for one thread."""

    def __init__(self, servers: Stack, platform: Platform, crashed: Callable[[str], None]) -> None:
        self._servers, self._platform, self._crashed = servers, platform, crashed
        self._replay: Child | None = None
        self.tables: Sequence[str] = ()
        """What is rebuilt."""
        self.hit = set[str]()
        """Who was at work when it was killed, in the last round."""

    def close(self) -> None:
        if self._replay is not None:
            self._replay.stop()

    def suffer(self, dice: random.Random, victims: Sequence[str]) -> None:
        """Kill each at its moment, and start it again at another; outages overlap. Returns when all servers are back."""
        self.hit.clear()
        at, plan = time.monotonic(), list[tuple[float, Callable[[str], None], str]]()
        for victim in victims:
            at += dice.uniform(*AFTER_S)
            plan += [(at, self.kill, victim), (at + dice.uniform(*DOWN_S), self.start, victim)]
        for moment, act, victim in sorted(plan, key=lambda one: one[0]):
            time.sleep(max(0.0, moment - time.monotonic()))
            act(victim)
        for name in dict.fromkeys(victims):
            if name in SERVERS:
                self._servers.children[name].wait_ready()
                self._crashed(name)
        if REPLAY in victims:
            for _ in range(TRIES):
                if REPLAY in self.hit:
                    break
                self.start(REPLAY)  # it was done already, or gave up on a server
                time.sleep(dice.uniform(*INTO_REPLAY_S))
                self.kill(REPLAY)
            self.start(REPLAY)

    def kill(self, name: str) -> None:
        """End it with -9; one that is away already is left alone."""
        child = self._child(name)
        if child.process is not None and child.process.poll() is None:
            self.hit.add(name)
            child.process.kill()
            child.process.wait()
        child.stop()
        self._crashed(name)

    def start(self, name: str) -> None:
        """Start it again, and don't wait for it."""
        child = self._child(name)
        if child.pid is None:
            child.start()

    def fate(self, name: str) -> str:
        """Its name, and whether it was away already."""
        return name if name in self.hit else f"{name} (was away)"

    def revive(self) -> None:
        """Start again what gave up while a server was away: the supervisor does it, and the rebuild asks for it."""
        for name in self._platform.children:
            self.start(name)
        if self._replay is not None and self._replay.process is not None and self._replay.process.poll():
            self.start(REPLAY)

    def rebuild(self, tables: Sequence[str]) -> None:
        """Begin to rebuild these read models, or go on where a rebuild of them was killed."""
        self.tables = tables
        if self._replay is None:
            log = self._platform.settings.data / "log" / "replay.log"
            self._replay = Child(REPLAY, [], log=log, env={**os.environ, **self._platform.env}, cwd=ROOT)
        self._replay.argv = [sys.executable, "-m", "infra.cli", "replay", "projection", *tables]
        self.start(REPLAY)

    def rebuilt(self) -> list[str]:
        """Wait until the rebuild is done; what is wrong with it."""
        assert self._replay is not None
        until = time.monotonic() + REPLAY_S_MAX
        while time.monotonic() < until:
            if self._replay.process is not None and self._replay.process.poll() == 0:
                return []
            self.revive()
            time.sleep(0.1)
        return [f"{', '.join(self.tables)} not rebuilt within {REPLAY_S_MAX:.0f} s: {self._replay.last_words()}"]

    def _child(self, name: str) -> Child:
        if name == REPLAY:
            assert self._replay is not None
            return self._replay
        return self._servers.children[name] if name in SERVERS else self._platform.children[name]
