"""`python -m infra.clickhouse --host 127.0.0.1 --port P --data DIR`

TITAN_CLICKHOUSE_ADMIN_PASSWORD is the password of the user `titan`, who may do everything;
TITAN_CLICKHOUSE_ANALYST_PASSWORD that of `analyst`, who may only read. Without the first one the user `default` needs
no password, and then only a loopback address is served. Ends with code 1 and one line when it can't start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import uvicorn

from infra.clickhouse.engine import ADMIN, ANALYST, Engine, InUse
from infra.clickhouse.server import Server, User

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHUTDOWN_S = 20  # running queries get so long to end


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.clickhouse", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--data", type=Path, required=True, help="folder for the data; made when missing")
    given = parser.parse_args()
    admin = os.environ.pop("TITAN_CLICKHOUSE_ADMIN_PASSWORD", "")
    analyst = os.environ.pop("TITAN_CLICKHOUSE_ANALYST_PASSWORD", "")
    users = [User("titan", admin, ADMIN) if admin else User("default", "", ADMIN)]
    if analyst:
        users.append(User("analyst", analyst, ANALYST))
    if not admin and given.host not in LOOPBACK:
        return _refuse(f"set TITAN_CLICKHOUSE_ADMIN_PASSWORD to serve on {given.host}")
    try:
        engine = Engine(given.data.resolve())
    except (InUse, OSError) as error:
        return _refuse(str(error))
    app = Server(engine, {user.name: user for user in users})
    config = uvicorn.Config(
        app,
        given.host,
        given.port,
        http="httptools",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    uvicorn.Server(config).run()
    return 0


def _refuse(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
