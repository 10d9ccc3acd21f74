"""What ends a process of streams/ is one line of its log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from infra.settings import ROOT


@pytest.mark.parametrize("taken", [True, False], ids=["port", "settings"])
def test_what_can_not_be_meant_ends_a_process_with_one_line(taken: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "streams.relay", "--metrics-port", str(port)]
        given = {"TITAN_KAFKA": "127.0.0.1:9" if taken else "nonsense"}
        done = subprocess.run(command, env={**os.environ, **given}, cwd=ROOT, capture_output=True, text=True)
    line = json.loads(done.stdout)
    why = f"metrics can't be served at 127.0.0.1:{port}: Address already in use"
    assert (done.returncode, done.stderr, line["level"]) == (1, "", "critical")
    assert line["event"] == (why if taken else "TITAN_KAFKA: write it as host:port[,host:port]")


def test_a_process_imports_neither_the_web_nor_clients_of_stores_that_it_does_not_use() -> None:
    """They would be half of what it takes to start, and a quarter of its memory, of each."""
    code = "import sys, streams.sagas, streams.faust_app, streams.worker, streams.relay; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"fastapi", "uvicorn", "redis", "clickhouse_connect"} & set(done.stdout.split()) == set()
