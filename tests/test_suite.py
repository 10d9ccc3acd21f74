"""How the tests themselves are run: nothing that they start outlives them, and nothing piles up."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis as redis_client

from infra.children import Child
from infra.errors import StackError
from infra.settings import ROOT
from tests.kernel.platform import wait_for
from tests.kernel.servers import FOLDERS, Stack, cache, folder
from tests.test_infra_children import gone, wait_until

WAITS = """
import os, time
from pathlib import Path

def test_waits():
    Path({told!r}).write_text(str(os.getpid()))
    time.sleep(600)
"""


def test_a_process_that_runs_tests_ends_with_the_one_that_gives_them_out(tmp_path: Path) -> None:
    told, module = tmp_path / "pid", tmp_path / "test_waits.py"
    module.write_text(WAITS.format(told=str(told)))
    argv = ["pytest", "-n1", "-p", "tests.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(module)]
    env = {"TITAN_TEST_SERVERS": "none are needed"}
    whole = Child("pytest", [sys.executable, "-m", *argv], log=tmp_path / "log", cwd=ROOT, env=env)
    whole.start()
    try:
        wait_for(lambda: told.exists() and told.read_text(), "the test has begun")
        pid = int(told.read_text())
        assert whole.process is not None and pid != whole.pid and not gone(pid)
        whole.process.kill()
        wait_until(lambda: gone(pid))
    finally:
        whole.stop()


def test_what_a_killed_run_left_in_the_way_is_removed_by_the_next() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = Path(tempfile.mkdtemp(prefix=f"{FOLDERS}{ended.pid}-"))
    with folder() as mine:
        assert not left.exists()
        with folder():
            assert mine.exists()
    assert not mine.exists()


def test_a_redis_database_is_its_owners_until_that_has_ended(stack: Stack) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with cache(stack) as first, cache(stack) as second:
        assert first != second
        number = urlsplit(second).path[1:]
        with redis_client.Redis.from_url(stack["redis"]) as users:
            users.set(f"test-database:{number}", ended.pid)
            with cache(stack) as third:
                assert third == second
            users.set(f"test-database:{number}", os.getpid())


def test_a_server_that_never_comes_is_one_line(tmp_path: Path) -> None:
    servers = Stack(tmp_path, tmp_path / "servers.json")
    servers.give_up = 0.0
    with pytest.raises(StackError, match=r"redis is not in .*servers\.json"):
        servers["redis"]
