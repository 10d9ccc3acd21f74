"""`titan up`: start the servers, make tables and topics, start the platform's processes, load the sample shop, and watch.

One thread. A child that ends is started again after a back-off that doubles; Ctrl-C or `titan down` stops all in order.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import psutil

from infra import state
from infra.children import Child, stop
from infra.errors import StackError
from infra.processes import processes
from infra.servers import HOST, SERVERS, http_ready, kept_port, port_is_free
from infra.settings import ROOT, as_given, running_file
from streams.gateways.settings import GatewaySettings, gateway_settings

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.5, 30.0
REWRITE_S = 10.0  # between two tries to write the state
HEALTHY_S = 60.0  # a process that ran this long begins its back-off anew
FREE_BYTES_MIN = 1024**3
LEFTOVER_S = 30.0
SLOWEST = "kafka"  # tables are made while it starts
DETACH_POLL_S = 0.1
SMALL = {
    "PYTHONUNBUFFERED": "1",
    "MALLOC_ARENA_MAX": "2",
}  # glibc's arenas cost each threaded process tens of megabytes


@dataclass
class Managed:
    """A child and how it has fared."""

    child: Child
    metrics: str = ""  # URL
    restarts: int = 0
    in_a_row: int = 0
    started: float = 0.0  # time.monotonic()
    retry_at: float | None = None
    error: str | None = None

    def start(self) -> None:
        self.child.start()
        self.started, self.retry_at = time.monotonic(), None

    def back_off(self, now: float) -> float:
        """It ended, or could not be started: the seconds until it is started again."""
        self.in_a_row = 1 if now - self.started > HEALTHY_S else self.in_a_row + 1
        wait: float = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** (self.in_a_row - 1))
        self.started, self.retry_at = now, now + wait
        return wait


class Supervisor:
    """Everything that `titan up` keeps running. `say` reports one line to the user."""

    def __init__(self, data: Path, say: Callable[[str], None]) -> None:
        self.data, self.say = data, say
        self.servers: list[Managed] = []
        self.processes: list[Managed] = []
        self.settings: GatewaySettings
        self.unwritten = False
        """The state on disk is an old one: there was no room."""
        self.began = time.monotonic()

    def start(self, servers_only: bool = False) -> None:
        """Returns when the API answers, or the servers do. Raises StackError in one line when something can't be started."""
        if shutil.disk_usage(self.data).free < FREE_BYTES_MIN:
            raise StackError(
                f"less than 1 GB is free for {self.data}: free some, or set TITAN_DATA to a folder elsewhere"
            )
        given = gateway_settings()
        if not servers_only:
            check_ports(given, self.data)
        self.publish("starting")
        local = {name: make for name, make in SERVERS.items() if not os.environ.get(f"TITAN_{name.upper()}")}
        for name in SERVERS.keys() - local.keys():
            self.say(f"{name}: the external one of TITAN_{name.upper()}")
        for make in local.values():
            managed = Managed(make(self.data, 0, self.say))
            self.servers.append(managed)
            managed.start()
        self.publish("starting")
        addresses = {managed.child.name: managed.child.address for managed in self.servers}
        state.write_private(
            running_file(), {**as_given(given), **addresses}
        )  # other terminals have not these variables
        self.settings = gateway_settings()
        servers = [managed.child for managed in self.servers]
        if servers_only:
            self.wait(servers, beside=servers)
            self.say("the servers are up, and nothing of the platform")
            return
        self.wait([child for child in servers if child.name != SLOWEST], beside=servers)
        migrate = self.tool("infra.migrate", "--keys", *["--starting"] * (SLOWEST in local))
        self.say("making keys, tables and topics")
        migrate.start()
        try:
            self.wait([child for child in servers if child.name == SLOWEST], beside=servers)
            assert migrate.process is not None
            if migrate.process.wait():
                raise StackError("keys, tables and topics could not be made, see above")
        finally:
            migrate.stop()
        for process in processes(self.settings, lambda name: kept_port(self.data, f"{name}-metrics")):
            child = Child(
                process.name,
                [sys.executable, "-m", process.module, *process.arguments],
                log=self.data / "log" / f"{process.name}.log",
                address=process.url,
                ready=partial(http_ready, process.url + process.health) if process.health else lambda: True,
                env={**SMALL, "TITAN_INSTANCE": process.name},
                cwd=ROOT,
                nice=process.nice,
            )
            managed = Managed(child, process.metrics)
            self.processes.append(managed)
            managed.start()
        self.publish("starting")
        takes = [managed.child for managed in self.processes if managed.child.address]
        self.wait(takes, beside=takes)  # those that work in the background are watched from now on
        self.say(f"the platform is up after {time.monotonic() - self.began:.1f} s")

    def wait(self, children: Sequence[Child], beside: Sequence[Child]) -> None:
        for child in children:
            child.wait_ready(beside=beside)
            self.say(f"{child.name} is ready")

    def tool(self, module: str, *arguments: str) -> Child:
        """A module that runs to its end, its output shown."""
        log = self.data / "log" / f"{module.rpartition('.')[2]}.log"
        return Child(module, [sys.executable, "-m", module, *arguments], log=log, env=SMALL, cwd=ROOT, show=True)

    def watch(self, wake: int, shop: Child | None) -> None:
        """Restart what ends, until a signal raises. `shop` is a child that ends by itself: the loading of the sample shop."""
        while True:
            changed = self.revive()
            if shop and shop.pid is None:
                assert shop.process is not None
                if shop.process.returncode:
                    self.say("the sample shop is not loaded, see above; `titan up` goes on where it stopped")
                shop.stop()
                shop, changed = None, True
            if changed or self.unwritten:
                self.publish("loading" if shop else "ready")
            due = [managed.retry_at for managed in self.all if managed.retry_at is not None]
            due += [time.monotonic() + REWRITE_S] if self.unwritten else []
            select.select([wake], [], [], max(0.0, min(due) - time.monotonic()) if due else None)
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)

    def revive(self) -> bool:
        """Note each child that has ended, start again those whose back-off is over. True when there was one."""
        now, changed = time.monotonic(), False
        for managed in self.all:
            child = managed.child
            if managed.retry_at is None and child.pid is None:
                assert child.process is not None
                code, changed = child.process.returncode, True
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                managed.error = f"{how}: {child.last_words()}" if code > 0 else how
                wait = managed.back_off(now)
                self.say(f"{child.name} ended ({managed.error}); it starts again in {wait:g} s (log: {child.log})")
            if managed.retry_at is not None and now >= managed.retry_at:
                changed = True
                child.stop()  # forgets the ended process
                try:
                    managed.start()
                except StackError as error:
                    managed.error = str(error)
                    self.say(f"{error}; it is tried again in {managed.back_off(now):g} s")
                else:
                    managed.restarts += 1
                    self.say(f"{child.name} was started again (process {child.pid})")
        return changed

    def stop(self) -> None:
        """First what takes requests, then what works on, last the servers: what was acknowledged is stored."""
        self.publish("stopping")
        takes = [managed.child for managed in self.processes if managed.child.address]
        works = [managed.child for managed in self.processes if not managed.child.address]
        for group in (takes, works, [managed.child for managed in self.servers]):
            stop(group)
        state.remove()

    @property
    def all(self) -> list[Managed]:
        return [*self.servers, *self.processes]

    def publish(self, word: str) -> None:
        """Tell the other commands. On a full disk it says so once, and `watch` tries again: nothing stops because of it."""
        try:
            self._write(word)
        except (OSError, StackError) as error:
            if not self.unwritten:
                self.say(
                    f"the state is not written ({error}): free some space; `titan status` shows an old one until then"
                )
            self.unwritten = True
        else:
            if self.unwritten:
                self.say("the state is written again")
            self.unwritten = False

    def _write(self, word: str) -> None:
        state.write(
            {
                "state": word,
                "pid": os.getpid(),
                "created": state.created(os.getpid()),
                "urls": {
                    name: url
                    for managed in self.all
                    for name, url in {managed.child.name: managed.child.address, **managed.child.more}.items()
                    if url
                },
                "processes": [
                    {
                        "name": managed.child.name,
                        "pid": managed.child.pid,
                        "created": state.created(managed.child.pid) if managed.child.pid else 0.0,
                        "restarts": managed.restarts,
                        "error": managed.error,
                        "metrics": managed.metrics or None,
                        "log": str(managed.child.log),
                    }
                    for managed in self.all
                ],
            }
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="titan up", description=__doc__)
    parser.add_argument("--detach", action="store_true", help="return when all is ready; `titan down` stops it")
    parser.add_argument("--port", type=int, help="the API's port, 8000 by default")
    parser.add_argument("--no-shop", action="store_true", help="don't load the sample shop")
    parser.add_argument(
        "--servers",
        action="store_true",
        help="only the servers, as `titan replay store` wants it when Postgres was lost",
    )
    given = parser.parse_args(argv)
    _from_here()
    mine = state.lock()
    if mine is None:
        running = state.read() or {}
        print(f"it runs already (process {running.get('pid')}, {running.get('state')}); `titan down` stops it")
        print(_urls(running))
        return 0
    if given.detach:
        mine.close()
        return _detached([argument for argument in argv if argument != "--detach"])
    with mine:
        clear_leftovers()
        if given.port:
            os.environ["TITAN_API_PORT"] = str(given.port)  # what is started here has it too
        return _run(shop=not given.no_shop, servers_only=given.servers)


def _from_here() -> None:
    """Files that settings name are meant from this folder; what is started here works in another one."""
    for name, field in GatewaySettings.model_fields.items():
        if field.annotation is Path and (given := os.environ.get(f"TITAN_{name.upper()}")):
            os.environ[f"TITAN_{name.upper()}"] = str(Path(given).absolute())


def _run(shop: bool, servers_only: bool) -> int:
    data = state.run_folder().parent
    supervisor = Supervisor(data, lambda line: _show(f"{time.strftime('%H:%M:%S')} {line}"))
    with _signals() as wake:
        try:
            supervisor.start(servers_only)
            _show(_urls(state.read() or {}))
            loader = None
            if shop and not servers_only and find_spec("infra.shop"):
                loader = supervisor.tool("infra.shop")
                loader.start()
            supervisor.publish("loading" if loader else "ready")
            try:
                supervisor.watch(wake, loader)
            finally:
                if loader:
                    loader.stop()
        except KeyboardInterrupt:
            supervisor.say("stopping")
            return 0
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # stopping in order takes a few seconds and is not interrupted
            began = bool(supervisor.all)
            supervisor.stop()
            if began:
                supervisor.say("everything is stopped")
    return 0


def _show(text: str) -> None:
    with contextlib.suppress(OSError):  # the log's disk is full, or the terminal is gone: no reason to stop a shop
        print(text, flush=True)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """INT, TERM and HUP raise KeyboardInterrupt; each signal, a child's end too, makes the yielded descriptor readable."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    yield readable


def _detached(argv: list[str]) -> int:
    """Start a supervisor of its own session and show what it says until it is ready or has given up."""
    log = state.run_folder().parent / "log" / "supervisor.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out, log.open("rb") as told:
        told.seek(0, os.SEEK_END)
        command = [sys.executable, "-m", "infra.cli", "up", *argv]
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=ROOT,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        while True:
            ended = child.poll()
            now = state.read() or {}
            sys.stdout.write(told.read().decode(errors="replace"))
            sys.stdout.flush()
            if ended is not None:
                return ended
            if now.get("pid") == child.pid and now.get("state") == "ready":
                print(f"it runs in the background (process {child.pid}); `titan down` stops it")
                return 0
            time.sleep(DETACH_POLL_S)


def clear_leftovers() -> None:
    """A killed supervisor's children are stopping: wait for them, so that their folders and ports are free."""
    entries = (state.read() or {}).get("processes", [])
    left = [process for entry in entries if (process := state.alive(entry))]
    if left:
        print(f"waiting for {len(left)} processes of the last run to end", flush=True)
        _, stuck = psutil.wait_procs(left, timeout=LEFTOVER_S)
        for process in stuck:
            process.kill()
        psutil.wait_procs(stuck, timeout=LEFTOVER_S)
    state.remove()


def check_ports(of: GatewaySettings, data: Path) -> None:
    """Whether each process can listen where it is to. Raises StackError, one line that says what to do.

    The servers go elsewhere when their last port is taken, and when a process is to have it.
    """
    taken: dict[int, str] = {}
    for process in processes(of):
        if not process.url:
            continue
        gateway = process.name.partition("-")[2] or "test"
        setting = {
            "api": "TITAN_API_HOST and TITAN_API_PORT",
            "gateway": "TITAN_TEST_GATEWAY, or TITAN_API_PORT, which it is after",
        }.get(process.name, f'"set": {{"test_gateway": "http://host:port"}} of {gateway} in TITAN_GATEWAYS')
        try:
            host, port = urlsplit(process.url).hostname or HOST, urlsplit(process.url).port or 80
            free = port_is_free(port, host)
        except (OSError, ValueError) as error:
            raise StackError(f"{process.name} can't listen at {process.url} ({error}): change {setting}") from error
        if port in taken:
            raise StackError(f"{taken[port]} and {process.name} are both to listen at port {port}: change {setting}")
        if not free:
            raise StackError(_who_has(port, process.name, setting))
        taken[port] = process.name
    for kept in (data / "ports").glob("*"):
        if kept.read_text().strip() in map(str, taken):
            kept.unlink()


def _who_has(port: int, name: str, setting: str) -> str:
    who = ""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if (
                connection.laddr
                and connection.laddr.port == port
                and connection.status == psutil.CONN_LISTEN
                and connection.pid
            ):
                who = f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    other = f"change {setting}"
    if name == "api":
        free = next((n for n in range(port + 1, 65_535) if port_is_free(n) and port_is_free(n + 1)), 8000)
        other = f"choose another with titan up --port {free}"  # the next one is the test gateway's
    return f"port {port}, for {name}, is in use{who}: stop it, or {other}"


def _urls(running: dict[str, Any]) -> str:
    urls = running.get("urls", {})
    if "api" in urls:
        urls = {"api": urls["api"], "docs": urls["api"] + "/docs", **urls}
    return "\n".join(f"  {name:<11} {url}" for name, url in urls.items())
