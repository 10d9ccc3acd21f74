"""The sagas' process, killed with -9 at one chosen moment: `python -m tests.chaos.crashing --step "take the stock" --moment …`.

A step asks for its effect, and then records that it has it. The moments: `asking` (the command is about to be given), `asked`
(the other side has done it, nobody knows), `recorded` (it is written down, nothing else has happened).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from streams import sagas
from streams.kernel.runner import StoreDoor
from streams.kernel.saga import Saga

MOMENTS = ("asking", "asked", "recorded")
at_work: ContextVar[str] = ContextVar("at_work", default="")


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--step", required=True)
    options.add_argument("--moment", choices=MOMENTS, required=True)
    given = options.parse_args()
    command_id, ask, record = Saga.command_id, StoreDoor.ask, StoreDoor.record

    def die(moment: str, step: str) -> None:
        if (moment, step) == (given.moment, given.step):
            os.kill(os.getpid(), signal.SIGKILL)

    def noting(saga: Saga[Any], id: UUID, step: str, direction: str) -> UUID:
        at_work.set(step if direction == "do" else "")
        return command_id(saga, id, step, direction)

    async def asking(door: StoreDoor[Any], *args: Any) -> None:
        die("asking", at_work.get())
        await ask(door, *args)
        die("asked", at_work.get())

    async def recording(door: StoreDoor[Any], state: Any, method: Any, *args: Any) -> None:
        await record(door, state, method, *args)
        if method.__name__ == "done":
            die("recorded", args[0])

    for cls, name, replacement in (
        (Saga, "command_id", noting),
        (StoreDoor, "ask", asking),
        (StoreDoor, "record", recording),
    ):
        setattr(cls, name, replacement)
    sys.argv = sys.argv[:1]
    return sagas.main()


if __name__ == "__main__":
    sys.exit(main())
