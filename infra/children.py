"""Child processes that never outlive the process that started them, however that ends.

On Linux the kernel signals a child when its parent dies. Elsewhere one watchdog process (`python -m infra.children`)
holds a pipe: when the parent is gone the pipe closes, and the watchdog ends the process ids that were written into it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from infra.errors import StackError

PR_SET_PDEATHSIG = 1
LOG_BYTES_MAX = (
    16 * 1024 * 1024
)  # a log that is longer when its process starts is begun anew; the old one is kept as .1
LAST_BYTES = 100_000  # of a log that its last words are looked for in: a traceback is one long line
READY_POLL_S = 0.05
READY_S_MAX = 180.0  # Kafka takes 4 s on a quiet machine, over a minute on a busy one; what has ended is not waited for
WATCHDOG_GRACE_S = 10


@dataclass
class Child:
    """A process to start, wait for and stop. `address` is what its clients connect to, `more` names further addresses.

    `stop_signal` asks for an orderly end; `death_signal` is what it gets when this process dies without asking.
    """

    name: str
    argv: Sequence[str]
    log: Path
    address: str = ""
    more: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: Path | None = None
    stop_signal: int = signal.SIGTERM
    death_signal: int = signal.SIGKILL
    stop_s: float = 20
    nice: int = 0  # how far it steps back, 0 to 19, when others want the processor
    show: bool = False  # its output goes to this process's, not to the log
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; call this from a thread that lives as long as the program (Linux ends children by thread). Raises StackError."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs"
        group = pwd.getpwnam(self.user).pw_gid if self.user else None
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
                self.log.replace(self.log.with_suffix(".log.1"))
            with self.log.open("ab") as log:
                out = None if self.show else log
                self.process = subprocess.Popen(
                    list(self.argv),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **self.env},
                    cwd=self.cwd,
                    user=self.user,
                    group=group,
                    extra_groups=[] if self.user else None,
                    start_new_session=True,  # Ctrl-C reaches only the supervisor, which stops its children in order
                    preexec_fn=tie(self.death_signal),
                )
        except OSError as error:
            raise StackError(f"can't start {self.name}: {error}") from error
        if self.nice:
            step_back(self.process.pid, self.nice)
        _watch(f"+{self.process.pid} {int(self.death_signal)}")

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process and self.process.poll() is None else None

    def wait_ready(self, timeout_s: float = READY_S_MAX, beside: Sequence[Child] = ()) -> None:
        """Return when `ready()` says so. Raises StackError with the log's last words when it, or one beside it, ended or the time is over."""
        until = time.monotonic() + timeout_s
        while True:
            for child in (self, *beside):
                if child.pid is None:  # first: somebody else may answer at its address
                    raise StackError(f"{child.name} ended while starting: {child.last_words()} (log: {child.log})")
            if self.ready():
                return
            if time.monotonic() > until:
                raise StackError(f"{self.name} was not ready within {timeout_s:.0f} s (log: {self.log})")
            time.sleep(READY_POLL_S)

    def stop(self) -> None:
        """Ask it to end, insist after `stop_s` seconds, and return when it is gone."""
        stop([self])

    def last_words(self) -> str:
        """The last line of the log that tells of an error, else its last line."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LAST_BYTES))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError as error:
            return f"its log can't be read ({error.strerror})"
        said = [_as_said(line) for line in lines]
        telling = [words for words, tells in said if tells]
        return (telling or [words for words, _ in said] or ["it said nothing"])[-1][:300]


def _as_said(line: str) -> tuple[str, bool]:
    """A line of a log as a person reads it, and whether it tells of an error. Our own are JSON (`infra/logs.py`)."""
    with contextlib.suppress(ValueError):
        told = json.loads(line) if line.startswith("{") else None
        if isinstance(told, dict) and "event" in told:
            return str(told["event"]), told.get("level") in ("error", "critical")
    return line, any(word in line for word in ("rror", "ERROR", "FATAL", "fatal", "Exception"))


def stop(children: Sequence[Child]) -> None:
    """Ask all of them to end at once, and return when the last is gone; each is killed after its own `stop_s` seconds."""
    asked = time.monotonic()
    running = [(child, child.process) for child in children if child.process is not None]
    for child, process in running:
        if process.poll() is None:
            process.send_signal(child.stop_signal)
    for child, process in running:
        try:
            process.wait(max(0.0, asked + child.stop_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _watch(f"-{process.pid}")
        child.process = None


ON_LINUX = sys.platform == "linux"  # a test turns it off, to try the watchdog here
_libc = ctypes.CDLL(None, use_errno=True) if ON_LINUX else None  # loaded before any fork


def step_back(pid: int, nice: int) -> None:
    """Have a process that leads a session of its own step back, 0 to 19, when others want the processor.

    Where Linux groups processes by session (sched_autogroup) its own `nice` only counts within that; the group has one too. A
    process that has ended, or that is not ours to move, stays as it is.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        group = Path(f"/proc/{pid}/autogroup")
        try:
            group.write_text(str(nice))
        except BlockingIOError:  # whoever is not root may do so ten times a second
            time.sleep(0.11)
            group.write_text(str(nice))


def tie(death_signal: int = signal.SIGKILL) -> Callable[[], None] | None:
    """What a new process has to do (a `preexec_fn`) so that it gets that signal when this thread has ended; Linux alone has it."""
    parent = os.getpid()
    return partial(end_with, parent, death_signal) if ON_LINUX else None


def end_with(parent: int, death_signal: int = signal.SIGKILL) -> None:
    """Tie the calling process to its parent, of which it tells the process id."""
    assert _libc is not None
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


_watchdog: subprocess.Popen[bytes] | None = None


def _watch(line: str) -> None:
    global _watchdog
    if ON_LINUX:
        return
    if _watchdog is None:
        command, root = [sys.executable, "-m", "infra.children"], Path(__file__).parent.parent
        _watchdog = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, start_new_session=True)
    assert _watchdog.stdin is not None
    _watchdog.stdin.write(line.encode() + b"\n")
    _watchdog.stdin.flush()


def _watchdog_main() -> None:
    """Read `+pid signal` and `-pid` lines; at the end of input signal those left, then kill what stays."""
    alive: dict[int, int] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            pid, death_signal = line[1:].split()
            alive[int(pid)] = int(death_signal)
        else:
            alive.pop(int(line[1:]), None)
    until = time.monotonic() + WATCHDOG_GRACE_S
    for pid, death_signal in alive.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, death_signal)
    while alive and time.monotonic() < until:
        time.sleep(READY_POLL_S)
        for pid in list(alive):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                del alive[pid]
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _watchdog_main()
