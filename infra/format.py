"""`titan format`: what `titan test` asks for."""

from __future__ import annotations

import subprocess
import sys

from infra.settings import ROOT


def main(argv: list[str]) -> int:
    ruff = [sys.executable, "-m", "ruff"]
    fixed = subprocess.run([*ruff, "check", "--fix", *(argv or ["."])], cwd=ROOT).returncode
    return subprocess.run([*ruff, "format", *(argv or ["."])], cwd=ROOT).returncode or fixed
