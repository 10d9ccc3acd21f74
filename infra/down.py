"""`titan down`: stop what `titan up` started in this clone, by its process id."""

from __future__ import annotations

import psutil

from infra import state
from infra.stack import clear_leftovers

STOP_S_MAX = 120.0


def main(argv: list[str]) -> int:
    """Returns when everything is gone; 0 also when nothing ran."""
    mine = state.lock()
    if mine is not None:
        with mine:
            clear_leftovers()
        print("nothing runs here")
        return 0
    supervisor = state.alive(state.read())
    if supervisor is None:
        print("it is starting or stopping right now: try again in a moment")
        return 1
    print(f"stopping process {supervisor.pid} and its children", flush=True)
    supervisor.terminate()
    try:
        supervisor.wait(STOP_S_MAX)
    except psutil.TimeoutExpired:
        supervisor.kill()  # its children go with it
    with state.lock() or open("/dev/null"):
        clear_leftovers()
    print("everything is stopped")
    return 0
