"""Children end with their parent, however it ends, and on request."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra import children
from infra.children import Child
from infra.errors import StackError
from infra.settings import ROOT
from tests.kernel.platform import wait_for

WAIT_S = 20
PARENT = """
import sys, signal, time
from pathlib import Path
from infra import children
children.ON_LINUX = children.ON_LINUX and sys.argv[2] == "kernel"
made = [children.Child(str(n), ["sleep", "600"], log=Path(sys.argv[1])) for n in range(2)]
for child in made:
    child.start()
print(*(child.pid for child in made), flush=True)
time.sleep(600)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    wait_for(condition, "what it waits for", WAIT_S)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("way", ["kernel", "watchdog"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(way: str, number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), way]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and not any(gone(pid) for pid in pids)
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: all(gone(pid) for pid in pids))


def test_the_watchdog_forgets_a_child_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "ON_LINUX", False)
    stopped, kept = (Child(name, ["sleep", "600"], log=tmp_path / name) for name in ("stopped", "kept"))
    stopped.start()
    kept.start()
    stopped.stop()
    watchdog, pid = children._watchdog, kept.pid
    assert watchdog is not None and watchdog.stdin is not None and pid is not None
    watchdog.stdin.close()  # what the end of this process would do
    assert kept.process is not None and kept.process.wait(WAIT_S) == -signal.SIGKILL
    assert watchdog.wait(WAIT_S) == 0
    monkeypatch.setattr(children, "_watchdog", None)


def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    child = Child("deaf", [sys.executable, "-c", deaf], log=tmp_path / "log", stop_s=0.2)
    child.start()
    pid = child.pid
    assert pid is not None
    wait_until(lambda: "deaf" in (tmp_path / "log").read_text())
    child.stop()
    assert gone(pid) and child.pid is None


def test_a_child_steps_back_with_its_whole_session(tmp_path: Path) -> None:
    child = Child("behind", ["sleep", "600"], log=tmp_path / "log", nice=5)
    child.start()
    assert child.pid is not None
    group = Path(f"/proc/{child.pid}/autogroup")
    assert psutil.Process(child.pid).nice() == 5
    assert not group.exists() or group.read_text().split()[-2:] == ["nice", "5"]
    child.stop()


def test_a_child_that_ends_while_starting_is_one_line_with_its_error(tmp_path: Path) -> None:
    says = "import sys; print('Error: no space left'); print('bye'); sys.exit(3)"
    child = Child("broken", [sys.executable, "-c", says], log=tmp_path / "log", ready=lambda: False)
    child.start()
    with pytest.raises(StackError, match="broken ended while starting: Error: no space left"):
        child.wait_ready()
    child.stop()


def test_one_that_has_ended_is_not_ready_whoever_answers_for_it(tmp_path: Path) -> None:
    ended, waits = (
        Child(
            "ended", [sys.executable, "-c", "print('Error: port in use')"], log=tmp_path / "ended", ready=lambda: True
        ),
        Child("waits", ["sleep", "600"], log=tmp_path / "waits", ready=lambda: False),
    )
    ended.start()
    waits.start()
    assert ended.process is not None
    ended.process.wait()
    with pytest.raises(StackError, match="ended ended while starting: Error: port in use"):
        ended.wait_ready()
    with pytest.raises(StackError, match="ended ended while starting"):
        waits.wait_ready(beside=[waits, ended])  # not after the minutes that are given to the other
    children.stop([ended, waits])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["FATAL: no room", "bye"], "FATAL: no room"),
        (['{"event": "no error so far", "level": "info"}', "up"], "up"),
        (
            ['{"event": "ALARM: it stopped", "level": "critical", "exception": [{"exc_type": "E"}]}', "up"],
            "ALARM: it stopped",
        ),
        (['Error: {"not": "ours"}', '{"event": "bye", "level": "info"}', '{"cut off'], 'Error: {"not": "ours"}'),
        ([], "it said nothing"),
    ],
)
def test_the_last_words_of_a_log_are_for_people(lines: list[str], words: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"{line}\n" for line in lines))
    assert Child("x", ["true"], log=tmp_path / "log").last_words() == words


def test_a_child_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    child = Child("slow", ["sleep", "600"], log=tmp_path / "log", ready=lambda: False)
    child.start()
    with pytest.raises(StackError, match="slow was not ready within 0 s"):
        child.wait_ready(timeout_s=0.1)
    child.stop()


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="can't start ghost"):
        Child("ghost", ["/no/such/program"], log=tmp_path / "log").start()


def test_a_log_that_has_grown_long_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOG_BYTES_MAX", 10)
    log = tmp_path / "x.log"
    log.write_text("much more than ten bytes\n")
    child = Child("x", ["echo", "new"], log=log)
    child.start()
    assert child.process is not None
    child.process.wait()
    child.stop()
    assert (log.read_text(), (tmp_path / "x.log.1").read_text()) == ("new\n", "much more than ten bytes\n")
