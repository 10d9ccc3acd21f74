"""chDB as the engine behind the front: its configuration, its two roles, its connections and sessions."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape

from infra.clickhouse.repair import forget_unfinished_inserts
from infra.clickhouse.statement import Insert, literal, name
from infra.clickhouse.wire import Problem

ADMIN, ANALYST = (
    "titan_admin",
    "titan_analyst",
)  # roles; an analyst's connection takes the second before it sees the text
SESSIONS_MAX = 1000
MADV_DONTNEED = 4  # of Linux's madvise

# Sized for a laptop that runs a whole stack: few background threads, small caches, no system log tables.
SERVER = {
    "max_server_memory_usage": 2 << 30,
    "mark_cache_size": 16 << 20,
    "index_mark_cache_size": 4 << 20,
    "uncompressed_cache_size": 0,
    "mmap_cache_size": 64,
    "compiled_expression_cache_size": 8 << 20,
    "background_pool_size": 2,
    "background_merges_mutations_concurrency_ratio": 2,
    "background_schedule_pool_size": 2,
    "background_common_pool_size": 2,
    "background_move_pool_size": 1,
    "background_fetches_pool_size": 1,
    "background_buffer_flush_schedule_pool_size": 1,
    "background_message_broker_schedule_pool_size": 1,
    "background_distributed_schedule_pool_size": 1,
    "max_thread_pool_size": 500,
    "max_thread_pool_free_size": 8,
    "asynchronous_metrics_update_period_s": 60,
}
# An acknowledged insert is on the disk, not only in the page cache; so is what a merge makes of it.
MERGE_TREE = {
    "fsync_after_insert": 1,
    "fsync_part_directory": 1,
    "min_rows_to_fsync_after_merge": 1,
    "merge_selecting_sleep_ms": 15_000,
    "max_merge_selecting_sleep_ms": 60_000,
    "number_of_free_entries_in_pool_to_lower_max_size_of_merge": 1,
    "number_of_free_entries_in_pool_to_execute_mutation": 1,
    "number_of_free_entries_in_pool_to_execute_optimize_entire_partition": 1,
}
PROFILE = {
    "implicit_select": 0,  # a server's parser has no bare expressions
    "max_memory_usage": 1 << 30,
    "max_bytes_before_external_group_by": 512 << 20,
    "max_bytes_before_external_sort": 512 << 20,
    "log_queries": 0,
}
# What an analyst's query starts with and can't go above.
ANALYST_LIMITS = {"max_execution_time": 300, "max_memory_usage": 768 << 20, "max_threads": os.cpu_count() or 1}
# Table functions that only compute or read tables. Any other may touch a file or the network before the engine looks at
# grants: sqlite() makes its file first.
ANALYST_TABLE_FUNCTIONS = {
    *("dictionary", "format", "generaterandom", "generateseries", "generate_series", "merge", "mergetreeindex", "null"),
    *(
        "numbers",
        "numbers_mt",
        "primes",
        "sqlstandardvalues",
        "values",
        "view",
        "viewexplain",
        "viewifpermitted",
        "zeros",
    ),
    "zeros_mt",
}


class CannotServe(Exception):
    """The data folder can't be used; the text says why, in one line."""


class Engine:
    """One chDB engine on one folder. Connections are independent of each other and may run at the same time."""

    def __init__(self, folder: Path):
        """Raises CannotServe when another process serves this folder, OSError when it can't be written."""
        if set("?&") & set(os.fspath(folder)):  # chDB takes what follows for its own options
            raise CannotServe(f"the path {folder} has a ? or & in it: give another --data")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock: IO[str] = (folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotServe(f"{folder} is served by another process: stop that one or give another --data") from None
        (folder / "users.xml").write_text(_users())
        (folder / "config.xml").write_text(_config(folder))
        forget_unfinished_inserts(folder / "store")
        # chDB loads pyarrow for its Python() table function, which would read this process's own variables.
        sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]
        from chdb import _chdb

        self._connect: Callable[[str], Any] = vars(_chdb)["connect"]
        self._target = f"{folder / 'store'}?config-file={folder / 'config.xml'}"
        default = folder / "store" / "metadata" / "default.sql"
        if default.exists() and not _has_tables(folder / "store", default):
            default.unlink()  # an empty database can be made anew, but not attached: the engine only knows one by its tables
        self._anchor = self._connect(self._target)  # the engine lives as long as one connection does
        self._replace_default(default)
        facts = self._anchor.query("SELECT version(), timezone(), hostName()", "TSV").bytes().decode().rstrip("\n")
        self.version, self.timezone, self.host = facts.split("\t")
        known = self._anchor.query("SELECT lower(name) FROM system.table_functions", "TSV").bytes().decode().split()
        self.outside = frozenset(known) - ANALYST_TABLE_FUNCTIONS
        self.rest()
        self._sessions: dict[tuple[str, str], Session] = {}
        self._guard = threading.Lock()

    def _replace_default(self, written: Path) -> None:
        """chDB lays local files under the database `default`; take the plain database that a server has there."""
        self._anchor.query("DETACH DATABASE default")
        made = written.exists()
        self._anchor.query("ATTACH DATABASE default" if made else "CREATE DATABASE default ENGINE = Atomic")

    def connect(self) -> Connection:
        """A new connection, with the rights of both roles until it gives up one."""
        return Connection(self._connect(self._target))

    @contextmanager
    def session(self, user: str, id: str, timeout_s: float, must_exist: bool) -> Iterator[Connection]:
        """The connection that a session keeps between requests: settings, temporary tables, current database.

        Raises Problem when another request uses the session now, or when it must exist and doesn't.
        """
        self.expire()
        with self._guard:
            session = self._sessions.get((user, id))
            if session is None:
                if must_exist:
                    raise Problem(372, f"Session {id} not found. (SESSION_NOT_FOUND)")
                if len(self._sessions) >= SESSIONS_MAX:
                    raise Problem(202, f"More than {SESSIONS_MAX} sessions. (TOO_MANY_SIMULTANEOUS_QUERIES)")
                session = self._sessions[user, id] = Session(self.connect())
            if not session.free.acquire(blocking=False):
                raise Problem(373, f"Session {id} is locked by a concurrent client. (SESSION_IS_LOCKED)")
        try:
            yield session.connection
        finally:
            session.until = time.monotonic() + timeout_s
            session.free.release()

    def expire(self, everything: bool = False) -> int:
        """Close the sessions whose time is over; returns how many are left."""
        with self._guard:
            now = time.monotonic()
            over = [key for key, session in self._sessions.items() if everything or session.is_over(now)]
            closing = [self._sessions.pop(key) for key in over]
            left = len(self._sessions)
        for session in closing:
            session.connection.close()
        return left

    def kill(self, tag: str) -> None:
        """Stop the running query that was given this tag."""
        connection = self.connect()
        try:
            connection.run(f"KILL QUERY WHERE Settings['log_comment'] = {literal(tag)} ASYNC")
        finally:
            connection.close()

    def rest(self) -> None:
        """Unmap the engine's code; the kernel maps each page again when it is called.

        Takes about 100 MB off an idle process's resident memory on Linux; elsewhere it does nothing.
        """
        if sys.platform != "linux":
            return
        libc = ctypes.CDLL(None)
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "_chdb" in line and " r-xp " in line:  # code is never written to, so dropping it loses nothing
                first, last = (int(address, 16) for address in line.split()[0].split("-"))
                libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)

    def close(self) -> None:
        self.expire(everything=True)
        self._anchor.close()
        self._lock.close()


@dataclass
class Connection:
    """One connection with its own settings, temporary tables and current database. Not for two threads at once."""

    raw: Any
    lent: dict[str, str] = field(default_factory=dict)  # setting → what it becomes when its request is over
    has_own: bool = False  # a client's own SET ran here
    home: str = "default"  # the session's own database; "" when a client's own USE has changed it
    current: str = "default"

    def run(self, text: str) -> None:
        self._call(self.raw.query, text, "Null")

    def lend(self, settings: Mapping[str, str], database: str) -> None:
        """Settings and a database for one request; what was lent to the request before it is taken back."""
        if database or self.home != self.current:
            self.home = self.home or str(self.query("SELECT currentDatabase()", "RawBLOB", {}).bytes(), "utf-8")
            self.current = database or self.home
            self.run(f"USE {name(self.current)}")
        self._assign(self.lent)
        self.lent = {}
        back = dict.fromkeys(settings, "DEFAULT")
        if self.has_own and settings:  # what the session itself has SET comes back, not the default
            asked = f"SELECT name, value FROM system.settings WHERE changed AND name IN ({', '.join(map(literal, settings))})"
            rows = self.query(asked, "JSONCompactEachRow", {}).bytes().splitlines()
            back |= {key: literal(value) for key, value in map(json.loads, rows)}
        self._assign({_setting(key): literal(value) for key, value in settings.items()})
        self.lent = back

    def classify(self, text: bytes) -> tuple[str, int]:
        """What the engine says a text is: READ_ONLY, MUTATING, …, CONTROL or UNKNOWN, and its number of statements."""
        found = self.raw.classify_query(text)
        return found["query_class"].name, found["statement_count"]

    def canonical(self, text: bytes) -> bytes:
        """The statement as the engine writes it after parsing: no comments, no needless quotes or escapes."""
        escaped = text.replace(b"\\", b"\\\\").replace(b"'", b"\\'")
        asked = b"SELECT formatQuerySingleLine('%b')" % escaped
        return bytes(self.query(asked, "RawBLOB", {}).bytes())

    def query(self, text: str | bytes, format: str, params: Mapping[str, str]) -> Any:
        return self._call(self.raw.query, text, format, params=dict(params))

    def blocks(self, text: bytes, format: str, params: Mapping[str, str]) -> Generator[Any]:
        """A SELECT's blocks, each encoded by itself; the last has no rows, and of an empty result the header."""
        stream = self._call(self.raw.send_query, text, format, params=dict(params))
        done = False
        try:
            while not done:
                try:
                    block = self._call(self.raw.streaming_fetch_result, stream)
                except Problem:
                    done = True
                    raise
                done = block is None or block.rows_read() == 0
                if block is not None:
                    yield block
        finally:
            if not done:
                self._call(self.raw.streaming_cancel_query, stream)

    def insert(self, statement: Insert, data: Iterable[bytes], params: Mapping[str, str]) -> Any:
        """Insert encoded rows; returns the engine's result with the rows written.

        From a file, not by the engine's own stream for inserts: that one loses the errors of the table (a constraint, too many
        parts, a full disk) and answers as if all were written. Data inside a statement ends for the engine at an empty line.
        """
        with tempfile.NamedTemporaryFile(prefix="titan-insert-") as file:
            for piece in data:
                file.write(piece)
            file.flush()
            return self.query(statement.from_file(file.name), "Null", params)

    def close(self) -> None:
        self.raw.close()

    def _assign(self, values: Mapping[str, str]) -> None:
        if values:
            self.run("SET " + ", ".join(f"{key} = {value}" for key, value in values.items()))

    def _call(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        try:
            return call(*args, **named)
        except RuntimeError as error:
            raise Problem.of(error) from None


@dataclass
class Session:
    connection: Connection
    until: float = float("inf")  # on the monotonic clock
    free: threading.Lock = field(default_factory=threading.Lock)

    def is_over(self, now: float) -> bool:
        return now > self.until and not self.free.locked()


def _setting(key: str) -> str:
    if not re.fullmatch(r"\w+", key):
        raise Problem(115, f"Unknown setting {key!r}. (UNKNOWN_SETTING)")
    return key


def _config(folder: Path) -> str:
    server = "".join(f"<{key}>{value}</{key}>" for key, value in SERVER.items())
    merge_tree = "".join(f"<{key}>{value}</{key}>" for key, value in MERGE_TREE.items())
    users = escape(os.fspath(folder / "users.xml"))
    return (
        f"<clickhouse><logger><level>none</level></logger><users_config>{users}</users_config>"
        f"{server}<merge_tree>{merge_tree}</merge_tree></clickhouse>\n"
    )


def _has_tables(store: Path, database: Path) -> bool:
    """Whether there is a table in the database of that metadata file."""
    found = re.search(r"UUID '([0-9a-f-]{36})'", database.read_text())
    return found is not None and any((store / "store" / found[1][:3] / found[1]).glob("*.sql"))


def _users() -> str:
    """chDB runs every connection as the user `default`; what that may do comes from the role it takes.

    Local files are for neither role: in-process chDB does not keep them to one folder, as a server does.
    """
    profile = "".join(f"<{key}>{value}</{key}>" for key, value in PROFILE.items())
    grants = {
        ADMIN: ("GRANT ALL ON *.*", "REVOKE FILE, SQLITE ON *.*"),
        ANALYST: ("GRANT SELECT, SHOW, dictGet ON *.*",),
        "": (f"GRANT {ADMIN}", f"GRANT {ANALYST}"),
    }
    written = {
        role: "<grants>" + "".join(f"<query>{grant}</query>" for grant in lines) + "</grants>"
        for role, lines in grants.items()
    }
    return (
        f"<clickhouse><profiles><default>{profile}</default></profiles><quotas><default/></quotas><roles>"
        + "".join(f"<{role}>{written[role]}</{role}>" for role in (ADMIN, ANALYST))
        + "</roles><users><default><no_password/><profile>default</profile><quota>default</quota>"
        f"<networks><ip>::/0</ip></networks>{written['']}</default></users></clickhouse>\n"
    )
