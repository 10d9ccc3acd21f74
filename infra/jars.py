"""Kafka's and PostgreSQL's files, from Maven Central through `jgo`: pinned and checked by `jars.lock`, cached for all clones.

`python -m infra.jars lock` writes `jars.lock` anew from the versions named here.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.errors import StackError

LOCK = Path(__file__).with_name("jars.lock")
# kafka-clients is named on its own, or log4j-core's dependency management pulls an older one and the broker dies.
KAFKA = (
    "org.apache.kafka:kafka_2.13:4.3.1+org.apache.kafka:kafka-clients:4.3.1"
    "+org.apache.logging.log4j:log4j-slf4j-impl:2.25.1+org.apache.logging.log4j:log4j-core:2.25.1"
)
POSTGRES_GROUP, POSTGRES_VERSION = "io.zonky.test.postgres", "18.4.0"
POSTGRES = {
    ("Linux", "x86_64"): "linux-amd64",
    ("Linux", "aarch64"): "linux-arm64v8",
    ("Darwin", "arm64"): "darwin-arm64v8",
    ("Darwin", "x86_64"): "darwin-amd64",
}
DOWNLOADS_AT_ONCE = 8

Progress = Callable[[str], None]


def cache() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/titan-commerce`, shared by every clone of this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "titan-commerce"


def kafka_jars(progress: Progress = lambda line: None) -> list[Path]:
    """The broker's class path; downloads what is missing. Raises StackError when a download fails or differs."""
    return _fetch([line for line in _locked() if not line[1].startswith(POSTGRES_GROUP)], "Kafka (46 MB)", progress)


def postgres_home(folder: Path, progress: Progress = lambda line: None) -> Path:
    """PostgreSQL's `bin`, `lib` and `share`, unpacked under `folder` when they are not there yet."""
    machine = (platform.system(), platform.machine())
    if machine not in POSTGRES:
        raise StackError(f"there is no PostgreSQL for {' '.join(machine)}: set TITAN_POSTGRES to a server of your own")
    name = f"embedded-postgres-binaries-{POSTGRES[machine]}"
    home = folder / f"postgres-{POSTGRES_VERSION}-{POSTGRES[machine]}"
    if home.is_dir():
        return home
    [jar] = _fetch([line for line in _locked() if f":{name}:" in line[1]], "PostgreSQL (15 MB)", progress)
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking-"))
    with zipfile.ZipFile(jar) as archive:
        [inner] = [entry for entry in archive.namelist() if entry.endswith(".txz")]
        with archive.open(inner) as packed, lzma.open(packed) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)  # 3.11.0-3 have none; the archive is checked
            tar.extractall(unpacked)
    unpacked.chmod(0o755)
    try:
        unpacked.rename(home)
    except OSError:  # another process unpacked it meanwhile
        shutil.rmtree(unpacked)
    return home


def _locked() -> list[tuple[str, str]]:
    return [(digest, name) for digest, name in (line.split() for line in LOCK.read_text().splitlines())]


def _cached(name: str) -> Path:
    """Where `jgo` keeps that jar: as Maven does."""
    group, artifact, version = name.split(":")
    return cache() / "maven" / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"


def _fetch(lines: list[tuple[str, str]], what: str, progress: Progress) -> list[Path]:
    checked = cache() / "checked"  # one empty file for each digest seen right, so that starting again hashes nothing
    checked.mkdir(parents=True, exist_ok=True)
    found = {line: path for line in lines if (path := _cached(line[1])).exists() and (checked / line[0]).exists()}
    missing = [line for line in lines if line not in found]
    if not missing:
        return list(found.values())
    progress(f"downloading {what}: {len(missing)} files")
    from jgo.maven import (
        MavenContext,
    )  # only for who has to: its HTTP client takes longer than all that is left to do here

    maven = MavenContext(repo_cache=cache() / "maven")

    def fetch(line: tuple[str, str]) -> Path:
        if line in found:
            return found[line]
        digest, name = line
        group, artifact, version = name.split(":")
        mark = checked / digest
        try:
            path = maven.project(group, artifact).at_version(version).artifact().resolve()
        except Exception as error:  # jgo lets every kind of network error through
            raise StackError(f"can't download {name} ({error}): check the network and start again") from error
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            path.unlink()
            raise StackError(f"{name} is not the file that infra/jars.lock names: start again, or check your mirror")
        mark.touch()
        return path

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        return list(pool.map(fetch, lines))


def lock() -> None:
    """Resolve the versions named above and write `jars.lock`."""
    import jgo
    from jgo.maven import MavenContext

    maven = MavenContext(repo_cache=cache() / "maven")
    artifacts = [a for a in jgo.resolve(KAFKA) if a.packaging == "jar"]
    names = sorted({(a.groupId, a.artifactId, a.version) for a in artifacts})
    names += [(POSTGRES_GROUP, f"embedded-postgres-binaries-{p}", POSTGRES_VERSION) for p in POSTGRES.values()]
    lines = []
    for group, artifact, version in names:
        path = maven.project(group, artifact).at_version(version).artifact().resolve()
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {group}:{artifact}:{version}\n")
    LOCK.write_text("".join(lines))


if __name__ == "__main__":
    if sys.argv[1:] != ["lock"]:
        sys.exit("usage: python -m infra.jars lock")
    lock()
