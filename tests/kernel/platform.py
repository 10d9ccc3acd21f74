"""The whole platform as processes of its own on the test's servers, to be used over HTTP, and to be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import httpx

from infra import servers
from infra.children import Child, stop
from infra.migrate import migrate
from infra.processes import Process, processes
from infra.servers import http_ready
from infra.settings import ROOT, Settings
from infra.token import make_keys, token

READY_S_MAX = 60.0
STOP_S = 15.0
LOOK_S_MIN, LOOK_S_MAX = (
    0.01,
    0.1,
)  # between two looks at a condition, growing: looking costs what is waited for its processor


def free_ports(count: int) -> int:
    """The first of so many free ports in a row (the test gateway's is the API's and one), below those of outgoing connections."""
    while True:
        first = random.choice(servers.PORTS[:-count])
        try:
            for port in range(first, first + count):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def variables(settings: Settings) -> dict[str, str]:
    """The settings as TITAN_* variables, for a process that shall have the same."""
    made = {}
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        made[f"TITAN_{name.upper()}"] = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return made


def wait_for(condition: Callable[[], object], what: str, seconds: float = READY_S_MAX) -> None:
    """Return once the condition holds. Raises AssertionError naming `what` when it does not in time."""
    give_up, pause = time.monotonic() + seconds, LOOK_S_MIN
    while not condition():
        assert time.monotonic() < give_up, f"after {seconds:.0f} s still not: {what}"
        time.sleep(pause)
        pause = min(1.5 * pause, LOOK_S_MAX)


class Platform:
    """Processes of `infra/processes.py`, by name. `with Platform(settings) as platform: platform.start("api", "relay")`.

    `extra`: variables for all of them.
    """

    measured = False
    """Whether those that take no requests have ports for their figures."""

    def __init__(self, settings: Settings, **extra: str) -> None:
        self.settings = settings.model_copy(update={"api_port": free_ports(2)})
        self.table = {
            process.name: process
            for process in processes(self.settings, (lambda _: free_ports(1)) if self.measured else None)
        }
        self.env = {**variables(self.settings), "TITAN_DATA": str(self.settings.data), **extra}
        self.children: dict[str, Child] = {}
        make_keys(self.settings)
        migrate(self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        stop(list(self.children.values()))

    @property
    def url(self) -> str:
        return f"http://{self.settings.api_host}:{self.settings.api_port}"

    def start(self, *names: str) -> None:
        """Start these, all there are by default, and wait for those that take requests."""
        for name in names or self.table:
            self.children[name] = self._child(self.table[name])
            self.children[name].start()
        for name in names or self.table:
            if self.table[name].url:
                self.ready(name)

    def ready(self, name: str) -> None:
        """Wait until a process that takes requests does."""
        process = self.table[name]

        def answers() -> bool:
            assert self.children[name].pid is not None, f"{name} ended: {self.log(name)[-2000:]}"
            return http_ready(process.url + process.health)

        wait_for(answers, f"{name} answers at {process.url}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a process without asking, and see that it is gone."""
        child = self.children[name]
        assert child.process is not None
        child.process.send_signal(number)
        child.process.wait(STOP_S)
        child.stop()

    def log(self, name: str) -> str:
        file = Path(self.settings.data) / "log" / f"{name}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The same, each whole line the object that it is."""
        return [json.loads(line) for line in self.log(name).splitlines(keepends=True) if line.endswith("\n")]

    def token(self, role: str, subject: UUID) -> str:
        return token(self.settings, role, subject)

    def client(self, role: str, subject: UUID) -> httpx.Client:
        """HTTP as somebody."""
        headers = {"Authorization": f"Bearer {self.token(role, subject)}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def _child(self, process: Process) -> Child:
        return Child(
            process.name,
            [sys.executable, "-m", process.module, *process.arguments],
            log=Path(self.settings.data) / "log" / f"{process.name}.log",
            env={**os.environ, **self.env, "TITAN_INSTANCE": process.name},
            cwd=ROOT,
            stop_s=STOP_S,
            nice=process.nice,
        )
