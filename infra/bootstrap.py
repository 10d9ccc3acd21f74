"""The project's own environment, `.titan/env`, from the locked and hashed requirements. Standard library alone.

It is made once and installed into again only when infra/requirements.txt has changed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / ".titan" / "env"
LOCK = Path(__file__).with_name("requirements.txt")
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64")}
FREE_BYTES_MIN = 2 * 1024**3  # the environment takes 1.3 GB, Kafka and PostgreSQL 0.2 GB
SHIM = """#!{python}
import sys
from infra.cli import main
sys.exit(main())
"""


def inside() -> bool:
    """Whether this Python is the environment's, and up to date."""
    return Path(sys.prefix) == ENV and _installed()


def prepare(argv: list[str]) -> NoReturn:
    """Make the environment or bring it up to date, and start `argv` again inside it. Exits with one line on failure."""
    if (platform.system(), platform.machine()) not in PLATFORMS:
        sys.exit(
            f"error: the local servers are not built for {platform.system()} {platform.machine()}. Use Linux (x86-64, arm64) or "
            "macOS (arm64), or run servers elsewhere and set TITAN_KAFKA, TITAN_POSTGRES, TITAN_REDIS and TITAN_CLICKHOUSE there"
        )
    try:
        if not _done():
            ENV.parent.mkdir(exist_ok=True)
            with (ENV.parent / "env.lock").open("w") as mine:
                fcntl.flock(mine, fcntl.LOCK_EX)  # a second start waits here, then finds it done
                if not _done():
                    _make()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sys.exit(f"error: the disk of {ROOT} is full: free about 2 GB and start again")
        if error.errno in (errno.EACCES, errno.EROFS):
            sys.exit(f"error: can't write to {error.filename}: clone the project to a folder of your own")
        raise
    python = str(ENV / "bin" / "python")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.execv(python, [python, "-m", "infra.cli", *argv])


def _make() -> None:
    free = shutil.disk_usage(ENV.parent).free
    if free < FREE_BYTES_MIN:
        raise OSError(errno.ENOSPC, "too little space")
    if not _runs():
        _say(f"making the environment {ENV.relative_to(ROOT)} with Python {platform.python_version()}")
        try:
            venv.create(ENV, clear=True, with_pip=True, symlinks=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "error: this Python has no pip to give (on Debian and Ubuntu: apt install python3-venv), then start again"
            )
    lines = LOCK.read_text()
    count = sum(not line.startswith((" ", "#")) for line in lines.splitlines())
    _say(f"installing {count} locked packages (about a minute the first time, cached after that)")
    python = str(ENV / "bin" / "python")
    # uv installs the same lock several times faster than pip; it is itself one of the locked packages.
    [block] = [b for b in lines.replace("\\\n", " ").splitlines() if b.startswith("uv==")]
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "uv.txt"
        alone.write_text(block + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"]
        uv = [str(ENV / "bin" / "uv"), "pip", "install", "--python", python, "--require-hashes", "-r", str(LOCK)]
        if not sys.stderr.isatty():  # no progress bars there, only a line a package
            uv.append("--quiet")
        if subprocess.run([*pip, str(alone)]).returncode or subprocess.run(uv).returncode:
            _say("uv did not manage; once more with pip (a few minutes)")
            done = subprocess.run([*pip, str(LOCK)], stderr=subprocess.PIPE, text=True)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
                why = (errors or ["pip failed"])[-1]
                sys.exit(f"error: can't install the packages ({why}): check network and disk, then start again")
    site = next((ENV / "lib").glob("python3.*")) / "site-packages"
    (site / "titan-commerce.pth").write_text(f"{ROOT}\n")
    shim = ENV / "bin" / "titan"
    shim.write_text(SHIM.format(python=python))
    shim.chmod(0o755)
    _stamp().write_text(_wanted())


def _done() -> bool:
    return _installed() and _runs()


def _installed() -> bool:
    return _stamp().exists() and _stamp().read_text() == _wanted()


def _runs() -> bool:
    """False too when the Python that the environment was made of has been removed since."""
    try:
        return subprocess.run([ENV / "bin" / "python", "-Ic", "import pip"], capture_output=True).returncode == 0
    except OSError:
        return False


def _stamp() -> Path:
    return ENV / "titan-installed"


def _wanted() -> str:
    return hashlib.sha256(LOCK.read_bytes() + str(ROOT).encode()).hexdigest()


def _say(line: str) -> None:
    print(f"· {line}", flush=True)
