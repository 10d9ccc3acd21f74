"""`python -m infra.clickhouse --host 127.0.0.1 --port P --data DIR`

TITAN_CLICKHOUSE_ADMIN_PASSWORD is the password of the user `titan`, who may do everything;
TITAN_CLICKHOUSE_ANALYST_PASSWORD that of `analyst`, who may only read. Without the first one the user `default` needs
no password, and then only a loopback address is served. Ends with code 1 and one line when it can't start.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from infra.clickhouse.engine import ADMIN, ANALYST, CannotServe, Engine
from infra.clickhouse.server import Server, User

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHUTDOWN_S = 20  # running queries get so long to end


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.clickhouse", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--data", type=Path, required=True, help="folder for the data; made when missing")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    admin = os.environ.pop("TITAN_CLICKHOUSE_ADMIN_PASSWORD", "")
    analyst = os.environ.pop("TITAN_CLICKHOUSE_ANALYST_PASSWORD", "")
    users = [User("titan", admin, ADMIN) if admin else User("default", "", ADMIN)]
    if analyst:
        users.append(User("analyst", analyst, ANALYST))
    if not admin and given.host not in LOOPBACK:
        return _refuse(f"set TITAN_CLICKHOUSE_ADMIN_PASSWORD to serve on {given.host}")
    try:
        listening = socket.create_server((given.host, given.port), backlog=2048)
    except OSError as error:
        return _refuse(
            f"can't listen on {given.host}:{given.port} ({os.strerror(error.errno or 0)}): give another --port"
        )
    try:
        engine = Engine(given.data.resolve())
    except (CannotServe, OSError, RuntimeError) as error:
        return _refuse(f"can't serve: {str(error).splitlines()[0]}")
    app = Server(engine, {user.name: user for user in users})
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="on",
        log_level="critical",  # what goes wrong within a request is logged by the application
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    Front(config).run(sockets=[listening])
    return 0


class Front(uvicorn.Server):
    """uvicorn that wakes once a second, for its Date header, instead of ten times: the idle stack takes little."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._leave = asyncio.Event()

    async def main_loop(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        while not await self.on_tick(0):
            try:
                await asyncio.wait_for(self._leave.wait(), 1)
            except TimeoutError:
                continue

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # uvicorn would raise them again at the end: an orderly end is code 0
        self._leave.set()


def _refuse(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
