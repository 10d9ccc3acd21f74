"""chDB as the engine behind the front: its configuration, its two roles, and one connection a query or session."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import escape

from infra.clickhouse.statement import literal, name
from infra.clickhouse.wire import Problem

ADMIN, ANALYST = "titan_admin", "titan_analyst"  # roles: every connection takes one before it sees a client's text

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
# An acknowledged insert is on the disk, not only in the page cache.
MERGE_TREE = {
    "fsync_after_insert": 1,
    "fsync_part_directory": 1,
    "merge_selecting_sleep_ms": 15_000,
    "max_merge_selecting_sleep_ms": 60_000,
    "number_of_free_entries_in_pool_to_lower_max_size_of_merge": 1,
    "number_of_free_entries_in_pool_to_execute_mutation": 1,
    "number_of_free_entries_in_pool_to_execute_optimize_entire_partition": 1,
}
PROFILE = {
    "implicit_select": 0,
    "max_memory_usage": 1 << 30,
    "max_bytes_before_external_group_by": 512 << 20,
    "max_bytes_before_external_sort": 512 << 20,
    "log_queries": 0,
}


class InUse(Exception):
    """Another process has the data folder."""


class Engine:
    """One chDB engine on one folder. Connections are independent of each other and may run at the same time."""

    def __init__(self, folder: Path):
        """Raises InUse when another process serves this folder, OSError when it can't be written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock: IO[str] = (folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{folder} is served by another process") from None
        (folder / "users.xml").write_text(_users())
        (folder / "config.xml").write_text(_config(folder))
        sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]  # chDB would load it, and it is not used here
        import chdb

        self._connect: Callable[[str], Any] = chdb._chdb.connect
        self._target = f"{folder / 'store'}?config-file={folder / 'config.xml'}"
        self._anchor = self._connect(self._target)  # the engine lives as long as one connection does
        facts = self._anchor.query("SELECT version(), timezone(), hostName()", "TSV").bytes().decode().rstrip("\n")
        self.version, self.timezone, self.host = facts.split("\t")

    def connect(self, role: str) -> Connection:
        raw = self._connect(self._target)
        raw.query(f"SET ROLE {role}")
        return Connection(raw)

    def close(self) -> None:
        self._anchor.close()
        self._lock.close()


@dataclass
class Connection:
    """One connection with its own settings, temporary tables and current database. Not for two threads at once."""

    raw: Any
    used: float = field(default_factory=time.monotonic)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, settings: Mapping[str, str], database: str) -> None:
        if database:
            self._run(f"USE {name(database)}")
        if settings:
            self._run("SET " + ", ".join(f"{key} = {literal(value)}" for key, value in settings.items()))

    def classify(self, text: str) -> tuple[str, int]:
        """What the engine says a text is: READ_ONLY, MUTATING, CONTROL or UNKNOWN, and how many statements it holds."""
        found = self.raw.classify_query(text)
        return found["query_class"].name, found["statement_count"]

    def query(self, text: str, format: str, params: Mapping[str, str]) -> Any:
        return self._call(self.raw.query, text, format, params=dict(params))

    def blocks(self, text: str, format: str, params: Mapping[str, str]) -> Iterator[Any]:
        """A SELECT's blocks, each encoded by itself; the last has no rows but may hold bytes (totals, a bare header)."""
        stream = self._call(self.raw.send_query, text, format, params=dict(params))
        done = False
        try:
            while not done:
                block = self._call(self.raw.streaming_fetch_result, stream)
                done = block is None or block.rows_read() == 0
                if block is not None:
                    yield block
        except Problem:
            done = True
            raise
        finally:
            if not done:
                self._call(self.raw.streaming_cancel_query, stream)

    def insert(self, head: str, format: str, data: Iterator[bytes], params: Mapping[str, str]) -> Any:
        """Push encoded rows into an INSERT as they arrive; returns the engine's result with the rows written."""
        if params:
            self._run("SET " + ", ".join(f"param_{key} = {literal(value)}" for key, value in params.items()))
        stream = self._call(self.raw.send_insert, head, format)
        done = False
        try:
            for piece in data:
                self._call(self.raw.insert_append, stream, piece)
            done = True
            return self._call(self.raw.insert_done, stream)
        finally:
            if not done:
                self._call(self.raw.insert_cancel, stream)

    def close(self) -> None:
        self.raw.close()

    def _run(self, text: str) -> None:
        self._call(self.raw.query, text, "Null")

    def _call(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        try:
            return call(*args, **named)
        except RuntimeError as error:
            raise Problem.of(error) from None


def _config(folder: Path) -> str:
    server = "".join(f"<{key}>{value}</{key}>" for key, value in SERVER.items())
    merge_tree = "".join(f"<{key}>{value}</{key}>" for key, value in MERGE_TREE.items())
    users = escape(os.fspath(folder / "users.xml"))
    return (
        f"<clickhouse><logger><level>none</level></logger><users_config>{users}</users_config>"
        f"{server}<merge_tree>{merge_tree}</merge_tree></clickhouse>\n"
    )


def _users() -> str:
    """chDB runs every connection as the user `default`; what it may do comes from the role it takes."""
    profile = "".join(f"<{key}>{value}</{key}>" for key, value in PROFILE.items())
    admin = "<query>GRANT ALL ON *.*</query>"
    analyst = "<query>GRANT SELECT, SHOW, dictGet ON *.*</query>"
    return (
        f"<clickhouse><profiles><default>{profile}</default></profiles><quotas><default/></quotas>"
        f"<roles><{ADMIN}><grants>{admin}</grants></{ADMIN}><{ANALYST}><grants>{analyst}</grants></{ANALYST}></roles>"
        "<users><default><no_password/><profile>default</profile><quota>default</quota>"
        "<networks><ip>::/0</ip></networks>"
        f"<grants><query>GRANT {ADMIN}</query><query>GRANT {ANALYST}</query></grants></default></users></clickhouse>\n"
    )
