"""The sagas' process, killed with -9 at one chosen moment, as often as is asked for: `python -m tests.chaos.crashing`.

A step asks for its effect, and then records that it has it. The moments: `asking` (the command is about to be given), `asked`
(the other side has done it, nobody knows), `recorded` (it is written down, nothing else has happened), and `undone` (the other side
has taken it back, nobody knows).

Each line of standard input, a step and a moment with a tab between them, or nothing for one that does not die by itself, starts
such a process: a fork of this one, which has imported everything already. Its process id is written at once, and when it has ended
its exit code, below zero for a signal.
"""

from __future__ import annotations

import os
import signal
import sys
from contextvars import ContextVar
from importlib import import_module
from typing import Any
from uuid import UUID

from aggregates.kernel import domains
from infra.children import ON_LINUX, end_with
from streams import sagas
from streams.kernel.runner import StoreDoor
from streams.kernel.saga import Saga

at_work: ContextVar[tuple[str, str]] = ContextVar("at_work", default=("", ""))


def main() -> int:
    sagas.discover()
    for domain in domains():
        import_module(f"aggregates.{domain}")
    this = os.getpid()
    for line in sys.stdin:
        step, _, moment = line.rstrip("\n").partition("\t")
        if not (pid := os.fork()):
            if ON_LINUX:
                end_with(this)
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # it logs there, and what is read from here are numbers
            sys.argv = sys.argv[:1]
            die_at(step, moment)
            return sagas.main()
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return 0


def die_at(chosen_step: str, chosen: str) -> None:
    """From now on this process ends there."""
    command_id, ask, record = Saga.command_id, StoreDoor.ask, StoreDoor.record

    def die(moment: str, step: str) -> None:
        if (moment, step) == (chosen, chosen_step):
            os.kill(os.getpid(), signal.SIGKILL)

    def noting(saga: Saga[Any], id: UUID, step: str, direction: str) -> UUID:
        at_work.set((direction, step))
        return command_id(saga, id, step, direction)

    async def asking(door: StoreDoor[Any], *args: Any) -> None:
        direction, step = at_work.get()
        die("asking" if direction == "do" else "", step)
        await ask(door, *args)
        die("asked" if direction == "do" else "undone", step)

    async def recording(door: StoreDoor[Any], state: Any, method: Any, *args: Any) -> Any:
        after = await record(door, state, method, *args)
        if method.__name__ == "done":
            die("recorded", args[0])
        return after

    for cls, name, replacement in (
        (Saga, "command_id", noting),
        (StoreDoor, "ask", asking),
        (StoreDoor, "record", recording),
    ):
        setattr(cls, name, replacement)


if __name__ == "__main__":
    sys.exit(main())
