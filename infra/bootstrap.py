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
UNREACHED = ("Retrying (", "from versions: none", "Failed to fetch", "error sending request")  # as pip and uv tell it
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
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "-r"]
        uv = [str(ENV / "bin" / "uv"), "pip", "install", "--python", python, "--require-hashes", "-r", str(LOCK)]
        log = ENV.parent / "log" / "install.log"
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        why = _installing([*pip, str(alone)], log)
        if not why and _installing(uv, log):
            _say("uv did not manage; once more with pip (a few minutes)")
            why = _installing([*pip, str(LOCK)], log)
        if why:
            sys.exit(f"error: the packages can't be installed: {why}, then start again (details: {log})")
    site = next((ENV / "lib").glob("python3.*")) / "site-packages"
    (site / "titan-commerce.pth").write_text(f"{ROOT}\n")
    shim = ENV / "bin" / "titan"
    shim.write_text(SHIM.format(python=python))
    shim.chmod(0o755)
    _stamp().write_text(_wanted())


def _installing(command: list[str], log: Path) -> str:
    """Run an installer, its output in `log` and the newest line of it on a terminal. What to do, in a few words, when it failed."""
    said: list[str] = []
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as out:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:
                out.write(line)
                said.append(line.strip())
                if sys.stdout.isatty():
                    print(f"\r\033[K  {said[-1][: shutil.get_terminal_size().columns - 3]}", end="", flush=True)
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)
    if not run.returncode:
        return ""
    if any("No space left" in line or "quota exceeded" in line for line in said):
        raise OSError(errno.ENOSPC, "too little space")
    if any(sign in line for line in said for sign in UNREACHED):
        return "check the network, and the proxy and index that pip is to use"
    errors = [line for line in said if line.lower().startswith("error")]
    return f"mend this: {(errors or said or ['it said nothing'])[-1][:200]}"


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
