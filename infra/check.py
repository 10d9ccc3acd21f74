"""`titan test [pytest arguments]`: format, lint, types and import rules as pytest's first items, then the tests.

They are items of the one pytest run, so its closing line and its exit code speak for all of them. The whole suite runs in several
processes, a file of tests in one of them; what was narrowed down (a file, -k, -m, …) runs in one. `-n N` says it outright.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra.settings import ROOT

FOLDERS = ("aggregates", "api", "infra", "projections", "replay", "schemas", "streams", "tests")
PYTHON = [sys.executable, "-m"]
PARALLEL = [
    "-n",
    "auto",
    "--dist",
    "loadfile",
    "--no-loadscope-reorder",
]  # tests/conftest.py has put the longest files first


def main(argv: list[str]) -> int:
    """Hand this process over to pytest; does not return."""
    os.chdir(ROOT)
    os.execv(sys.executable, [*PYTHON, "pytest", "-p", "infra.check", *PARALLEL, *argv])


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Two processes more than there are cores, for tests mostly wait for servers; none beside this one for a few tests."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return None  # the plugin reads it
    narrowed = config.args_source is not config.ArgsSource.TESTPATHS or any(
        config.getoption(name) for name in ("keyword", "markexpr", "lf", "deselect", "collectonly")
    )
    return 0 if narrowed else (os.cpu_count() or 1) + 2


class Check(pytest.Item):
    """A command that must succeed; when it does not, its output and `advice` are the failure."""

    def __init__(self, *, command: Sequence[str], advice: str, **given: object) -> None:
        super().__init__(**given)  # type: ignore[arg-type]  # pytest's own keyword arguments, passed through
        self.command, self.advice = command, advice

    def runtest(self) -> None:
        done = subprocess.run(self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            pytest.fail(f"{done.stdout.rstrip()}\n\n{self.advice}", pytrace=False)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return ROOT, None, self.name


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> Iterator[None]:
    yield  # -k and its like have chosen among the tests, and these have their order
    folders = [folder for folder in FOLDERS if (ROOT / folder).is_dir()]
    lint_imports = str(Path(sys.executable).with_name("lint-imports"))
    checks = {
        "format": ([*PYTHON, "ruff", "format", "--check", "."], "run: python3 -m infra format"),
        "lint": ([*PYTHON, "ruff", "check", "."], "run: python3 -m infra format, then mend what it still names"),
        "types": ([*PYTHON, "mypy", *folders], "mend the types named above"),
        "imports": ([lint_imports, "--no-cache", "--no-logo"], "infra/imports.py says who may import whom"),
    }
    items[:0] = [
        Check.from_parent(session, name=name, command=command, advice=advice)
        for name, (command, advice) in checks.items()
    ]
