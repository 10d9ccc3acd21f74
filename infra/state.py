"""What the supervisor tells the other commands: `.titan/run/`, one lock that it holds for life and two files."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

import psutil

from infra.errors import StackError
from infra.settings import data_folder, running_file


def run_folder() -> Path:
    folder = data_folder() / "run"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(
            f"can't make the folder {folder} ({error.strerror}): set TITAN_DATA to one that you may write to"
        ) from error
    return folder


def lock() -> IO[str] | None:
    """The supervisor's lock, held until the file is closed or the process ends; None when another one has it."""
    file = (run_folder() / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def read() -> dict[str, Any] | None:
    """The last supervisor's state: pid, state (starting, ready, stopping), urls, processes. None when there was none."""
    try:
        state: dict[str, Any] = json.loads((run_folder() / "stack.json").read_text())
    except (FileNotFoundError, ValueError):  # a power cut may have left half of it
        return None
    return state


def write(state: dict[str, Any]) -> None:
    write_private(run_folder() / "stack.json", state)


def write_private(file: Path, value: object) -> None:
    """JSON, whole or not at all, readable by its owner alone: it holds passwords."""
    new = file.with_suffix(f".{os.getpid()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            json.dump(value, out, indent=1)
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def remove() -> None:
    for file in (run_folder() / "stack.json", running_file()):
        file.unlink(missing_ok=True)


def alive(entry: dict[str, Any] | None) -> psutil.Process | None:
    """The process that `entry` (pid, created) tells of, unless it ended; a pid that was given anew is not it."""
    if entry is None or entry["pid"] is None:
        return None
    try:
        process = psutil.Process(entry["pid"])
        if abs(process.create_time() - entry["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    except psutil.Error:
        pass
    return None


def created(pid: int) -> float:
    """When a process started, seconds since the epoch; 0 when it is gone."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0
