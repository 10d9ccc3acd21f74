"""The payment reactor's process, killed with -9 at one chosen moment, as often as is asked for: `python -m tests.chaos.paying`.

Each line of standard input is a JSON object: `dsn`, `settings`, `later_s` that its clock is ahead, `seen` in the log, and `at`: before which of its
effects it dies (a command given, a request to a gateway), counted from 1; 0 for one that does not. A fork of this process, which
has imported everything already, handles what is stored since. The line written is its exit code, below zero for a signal.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx

from aggregates.kernel import Commands
from infra.children import ON_LINUX, end_with
from streams.gateways.settings import GatewaySettings
from streams.gateways.test import TestGateway
from tests.kernel import tls
from tests.kernel.paying import at_desk


def main() -> None:
    this = os.getpid()
    tls.share()
    httpx.Client(trust_env=False).close()  # as the gateway: so that no fork has to make it
    for line in sys.stdin:
        if not (pid := os.fork()):
            if ON_LINUX:
                end_with(this)
            asyncio.run(handle(**json.loads(line)))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


async def handle(dsn: str, settings: dict[str, Any], later_s: float, seen: int, at: int) -> None:
    die_before(at)
    async with at_desk(dsn, GatewaySettings(**settings), new=False) as desk:
        desk.later, desk.seen = timedelta(seconds=later_s), seen
        await desk.react()
        await desk.move(timedelta(minutes=1))


def die_before(chosen: int) -> None:
    """From now on this process ends before the effect of that number."""
    effects = 0

    def counted(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def effect(*args: Any, **kwargs: Any) -> Any:
            nonlocal effects
            effects += 1
            if effects == chosen:
                os.kill(os.getpid(), signal.SIGKILL)
            return await call(*args, **kwargs)

        return effect

    for cls, names in ((Commands, ("tell", "tell_all")), (TestGateway, ("authorise", "void", "lookup"))):
        for name in names:
            setattr(cls, name, counted(getattr(cls, name)))


if __name__ == "__main__":
    main()
