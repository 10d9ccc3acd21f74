"""multipart/form-data bodies: long parameters, and external tables that one query may join with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from infra.clickhouse.engine import Connection
from infra.clickhouse.statement import Insert, literal, name
from infra.clickhouse.wire import Problem

BODY_MAX = 64 << 20  # bytes
_FIELD = re.compile(rb'(?i)^content-disposition:\s*form-data\s*;.*?\bname="([^"]*)"', re.MULTILINE)


@dataclass(frozen=True)
class Form:
    fields: Mapping[str, str]
    files: Mapping[str, bytes]


def read_form(content_type: str, pieces: Iterator[bytes]) -> Form:
    """A part with a file name is an external table, any other one is as if it stood in the URL."""
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)
    body = bytearray()
    for piece in pieces:
        body += piece
        if len(body) > BODY_MAX:
            raise Problem(229, f"The form is larger than {BODY_MAX} bytes. (QUERY_IS_TOO_LARGE)")
    if boundary is None:
        raise Problem(36, "A multipart body needs a boundary. (BAD_ARGUMENTS)")
    fields, files = {}, {}
    mark = b"\r\n--" + boundary.group(1).encode()
    for part in (b"\r\n" + bytes(body)).split(mark)[1:]:
        head, gap, data = part.partition(b"\r\n\r\n")
        if found := _FIELD.search(head) if gap else None:
            key = found.group(1).decode("utf-8", "replace")
            if b"filename=" in head.lower():
                files[key] = data
            else:
                fields[key] = data.decode("utf-8", "surrogateescape")
    return Form(fields, files)


def add_tables(connection: Connection, form: Form, args: Mapping[str, str]) -> None:
    """Make each file a temporary table of its name, with the columns and format that the arguments state."""
    for table, data in form.files.items():
        types = args.get(f"{table}_types", "")
        numbered = ", ".join(f"_{at} {kind}" for at, kind in enumerate(_top_level(types), 1)) if types else ""
        columns = args.get(f"{table}_structure") or numbered
        if not columns:
            raise Problem(36, f"External table {table} needs {table}_structure or {table}_types. (BAD_ARGUMENTS)")
        # null() takes names and types alone: whatever else stands in a client's text is never evaluated
        source = f"SELECT * FROM null({literal(columns)})"
        connection.query(f"CREATE TEMPORARY TABLE {name(table)} ENGINE = Memory AS {source}", "Null", {})
        format = args.get(f"{table}_format") or "TabSeparated"
        if not format.isidentifier():
            raise Problem(73, f"Unknown format {format}. (UNKNOWN_FORMAT)")
        connection.insert(Insert(f"INSERT INTO {name(table)}", "", format, 0), [data], {})


def drop_tables(connection: Connection, form: Form) -> None:
    for table in form.files:
        connection.query(f"DROP TEMPORARY TABLE IF EXISTS {name(table)}", "Null", {})


def is_form_argument(key: str, form: Form) -> bool:
    return any(key in (f"{table}_types", f"{table}_structure", f"{table}_format") for table in form.files)


def _top_level(types: str) -> list[str]:
    """Split at the commas that stand in no parentheses."""
    depth, found = 0, [""]
    for char in types:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [kind.strip() for kind in found]
