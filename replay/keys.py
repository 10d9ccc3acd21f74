"""`titan replay keys --save FILE`: a copy of what no topic has, the keys of personal data and the secrets, to be put back one day by
`titan replay store … --keys FILE`.

Both are as of one moment. All of it is sealed by the master key, which is not in the copy: it lies in a file of its own
(`TITAN_MASTER_KEY`), and is to be kept elsewhere. The copy is a script as pg_dump writes it, and pg_dump's are taken, too.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import sql

from api.kernel import secrets, vault
from infra.settings import settings
from replay.failures import line
from replay.log import ReplayError
from replay.progress import tell

TABLES = {
    "vault_keys": ("subject", "wrapped", "created_at"),
    "secrets": ("id", "subject", "kind", "sealed", "used", "used_at", "kept_at"),
}
START = re.compile(rb'COPY (?:[\w"]+\.)?(\w+) \(([\w, ]+)\) FROM stdin;\r?\n')
END = b"\\."
Connection = psycopg.Connection[Any]


def save(dsn: str, file: Path) -> dict[str, int]:
    """Write the copy, whole or not at all and for its owner alone; answers with the number of rows by table. Raises ReplayError."""
    new, counts = file.with_name(f"{file.name}.{os.getpid()}"), {}
    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                for table, columns in TABLES.items():
                    out.write(f"COPY {table} ({', '.join(columns)}) FROM stdin;\n".encode())
                    with connection.cursor() as cursor:
                        with cursor.copy(f"COPY {table} ({', '.join(columns)}) TO STDOUT".encode()) as rows:
                            for chunk in rows:
                                out.write(chunk)
                        counts[table] = cursor.rowcount
                    out.write(END + b"\n")
                out.flush()
                os.fsync(out.fileno())
        new.replace(file)
    except psycopg.Error as error:
        raise ReplayError(f"the keys' database: {line(error)}") from error
    except OSError as error:
        raise ReplayError(f"can't write {file}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)
    return counts


def put_back(connection: Connection, file: Path) -> dict[str, int]:
    """Insert what a copy has, in the connection's transaction; answers with the number of new rows by table. A key that is there stays:
    so does its erasure. Raises ReplayError for a file that is no whole copy."""
    put = {}
    for module in (vault, secrets):
        connection.execute(module.TABLE)
    try:
        with file.open("rb") as copy:
            for start in filter(None, map(START.fullmatch, copy)):
                table, columns = start[1].decode(), [name.strip() for name in start[2].decode().split(",")]
                if table in TABLES and set(columns) <= {*TABLES[table]}:
                    put[table] = _insert(connection, table, columns, copy)
    except OSError as error:
        raise ReplayError(f"can't read {file}: {error.strerror}") from error
    except (psycopg.errors.DataError, psycopg.errors.IntegrityError, EOFError) as error:
        raise ReplayError(f"{file} is damaged ({line(error)}): give another copy, nothing was changed") from error
    if missing := TABLES.keys() - put.keys():
        raise ReplayError(f"{file} is no copy of {' and '.join(sorted(missing))}: nothing was changed")
    return put


def _insert(connection: Connection, table: str, columns: list[str], copy: IO[bytes]) -> int:
    names = {
        "table": sql.Identifier(table),
        "copied": sql.Identifier(f"{table}_copied"),
        "columns": sql.SQL(", ").join(map(sql.Identifier, columns)),
    }
    connection.execute(
        sql.SQL("CREATE TEMPORARY TABLE {copied} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP").format(**names)
    )
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {copied} ({columns}) FROM STDIN").format(**names)) as into,
    ):
        for row in _rows(copy):
            into.write(row)
    return connection.execute(
        sql.SQL("INSERT INTO {table} SELECT * FROM {copied} ON CONFLICT DO NOTHING").format(**names)
    ).rowcount


def _rows(copy: IO[bytes]) -> Iterator[bytes]:
    """Up to the line that ends them. Raises EOFError when it doesn't come."""
    for row in copy:
        if row.rstrip(b"\r\n") == END:
            return
        yield row
    raise EOFError("it ends in the middle")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="titan replay keys", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--save", type=Path, required=True, metavar="FILE", help="the copy; an older one is replaced")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    of = settings()
    counts = save(of.postgres, given.save)
    if given.json:
        tell({"keys": counts["vault_keys"], "secrets": counts["secrets"], "file": str(given.save)})
        return 0
    print(
        f"{given.save}: {counts['vault_keys']:,} keys and {counts['secrets']:,} secrets. Without {of.master_key} nobody can read them: "
        "keep a copy of that elsewhere"
    )
    return 0
