"""One request, from its bytes to its answer, in straight lines: it runs in a thread of its own over one connection."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import Any, Protocol

from infra.clickhouse.engine import ADMIN, ANALYST, ANALYST_LIMITS, Connection, Engine
from infra.clickhouse.forms import Form, add_tables, drop_tables, is_form_argument, read_form
from infra.clickhouse.statement import (
    HEAD_MAX,
    Insert,
    answer_format,
    changes_settings,
    first_word,
    names_file,
    outline,
    split_insert,
)
from infra.clickhouse.wire import STREAMED, Problem, content_type, decoded, without_header

QUERY_MAX = 16 << 20  # bytes of a statement's text, without an insert's data
SEND_PIECE = 1 << 20  # bytes
SESSION_S, SESSION_S_MAX = 60, 3600  # as ClickHouse's own defaults

# Arguments that are the protocol's own; every other one is a setting or, with `param_` before it, a parameter.
PROTOCOL = {
    *("query", "database", "user", "password", "quota_key", "query_id", "role", "default_format", "stacktrace"),
    *("session_id", "session_timeout", "session_check", "close_session", "compress", "decompress", "readonly"),
    *("client_protocol_version", "buffer_size", "wait_end_of_query", "http_write_exception_in_output_format"),
    *("enable_http_compression", "http_zlib_compression_level", "send_progress_in_http_headers"),
    *("http_headers_progress_interval_ms", "http_response_buffer_size", "log_comment"),
    "cancel_http_readonly_queries_on_client_close",  # always on here
}
# The settings that an analyst may give; the rest could name files or change how a text is parsed.
ANALYST_SETTINGS = re.compile(
    r"output_format_(?!schema)\w+|date_time_\w+|session_timezone|join_use_nulls|join_algorithm|final|limit|offset|extremes"
    r"|max_(?:execution_time|memory_usage|threads|block_size|result_rows|result_bytes|rows_to_read|bytes_to_read)"
    r"|(?:timeout|result|read)_overflow_mode|aggregate_functions_null_for_empty|transform_null_in|group_by_use_nulls"
    r"|prefer_column_name_to_alias|format_csv_delimiter|decimal_check_overflow|use_uncompressed_cache|max_query_size"
)
# Functions that reach the machine behind the engine's back, which grants do not cover; as any name at all, since a
# function may be passed by its name alone.
ANALYST_NAMES = {"file", "python", "eval", "executable", "chdb", "fuzzquery", "arrowstream"}


class Exchange(Protocol):
    """The HTTP request and its response, as the thread sees them; each call may wait for the client."""

    user: str
    role: str
    method: str
    query_id: str
    args: dict[str, str]
    headers: dict[str, str]

    def pieces(self) -> Iterator[bytes]: ...
    def begin(self, fields: list[tuple[str, str]], empty: bool = False) -> None: ...
    def send(self, data: bytes) -> None: ...
    def end(self) -> None: ...


def run(engine: Engine, exchange: Exchange) -> None:
    """Answer one request. Raises Problem, before or after the answer has begun."""
    args, headers = exchange.args, exchange.headers
    pieces = decoded(headers.get("content-encoding", "").lower(), exchange.pieces())
    form = Form({}, {})
    if headers.get("content-type", "").lower().startswith("multipart/form-data"):
        form = read_form(headers["content-type"], pieces)
        args |= form.fields
        pieces = iter(())
    for key, value in args.items():
        if key != "query" and not _is_utf8(key + value):
            raise Problem(36, f"The argument {key!r} is not UTF-8. (BAD_ARGUMENTS)")
    for unknown in ("compress", "decompress"):
        if args.get(unknown, "0") not in ("0", "false"):
            raise Problem(48, f"{unknown}=1 is not supported: use HTTP compression. (NOT_IMPLEMENTED)")
    if args.get("role"):
        raise Problem(512, f"Role {args['role']} is not granted. (SET_NON_GRANTED_ROLE)")
    began = time.monotonic()
    text, rest, insert = _split(args.get("query", ""), pieces)
    reads_only = exchange.method in ("GET", "HEAD") or args.get("readonly", "0") != "0" or exchange.role == ANALYST
    if insert and reads_only:
        raise Problem(164, "Cannot execute query in readonly mode. (READONLY)")
    params = {key[6:]: value for key, value in args.items() if key.startswith("param_")}
    with ExitStack() as stack:  # left before the answer ends: by then a session is free for the client's next request
        connection = _connection(engine, exchange, form, stack)
        if insert:
            _refuse_files(outline(insert.head.encode()))
            data = _chain(text[insert.data_at :], rest)
            summary = _summary(connection.insert(insert, data, params), began)
        else:
            _answer(engine, connection, exchange, text, params, reads_only, began)
    if insert:
        exchange.begin([("Content-Type", "text/plain; charset=UTF-8"), summary], empty=True)
    exchange.end()


def _answer(
    engine: Engine,
    connection: Connection,
    exchange: Exchange,
    text: bytes,
    params: Mapping[str, str],
    reads_only: bool,
    began: float,
) -> None:
    """Any statement but an INSERT with data: stream what can be streamed, send everything else whole."""
    tokens = outline(text)
    kind = _permitted(engine, connection, text, tokens, params, exchange.role, reads_only)
    asked = exchange.args.get("default_format") or exchange.headers.get("x-clickhouse-format")
    format = answer_format(tokens) or asked or "TabSeparated"
    asked_whole = {exchange.args.get(key, "0") for key in ("wait_end_of_query", "extremes")} - {"0", "false"}
    whole = asked_whole or "TOTALS" in (token.upper() for token in tokens)  # the engine's stream has no totals
    fields = [("Content-Type", content_type(format)), ("X-ClickHouse-Format", format)]
    streams = kind == "READ_ONLY" and first_word(tokens) in ("SELECT", "WITH", "FROM") and format in STREAMED
    if streams and not whole:
        with closing(connection.blocks(text, format, params)) as blocks:  # an open stream would block its connection
            _stream(exchange, blocks, format, fields, began)
    else:
        result = connection.query(text, format, params)
        exchange.begin([*fields, _summary(result, began)])
        _send(exchange, result)


def _connection(engine: Engine, exchange: Exchange, form: Form, stack: ExitStack) -> Connection:
    """A connection that has the user's role, the request's database, settings and external tables."""
    args = exchange.args
    settings = {
        key: value
        for key, value in args.items()
        if key not in PROTOCOL and not key.startswith("param_") and not is_form_argument(key, form)
    }
    database = args.get("database") or exchange.headers.get("x-clickhouse-database", "")
    session = args.get("session_id", "") if exchange.role == ADMIN else ""  # an analyst has nothing to keep in one
    if session:
        timeout = args.get("session_timeout", str(SESSION_S))
        if not timeout.isdigit() or int(timeout) > SESSION_S_MAX:
            raise Problem(374, f"session_timeout is at most {SESSION_S_MAX} seconds. (INVALID_SESSION_TIMEOUT)")
        held = engine.session(exchange.user, session, int(timeout), args.get("session_check", "0") == "1")
        connection = stack.enter_context(held)
    else:
        connection = engine.connect()
        stack.callback(connection.close)
    if form.files:
        add_tables(connection, form, args)
        stack.callback(drop_tables, connection, form)
    tag = {"log_comment": exchange.query_id}
    if exchange.role == ADMIN:
        connection.lend(settings | tag, database)
    else:
        connection.lend(_analyst_settings(settings) | tag, database)
        connection.run(f"SET ROLE {exchange.role}")
        connection.run("SET readonly = 1")
    return connection


def _analyst_settings(given: Mapping[str, str]) -> dict[str, str]:
    for key, value in given.items():
        if not ANALYST_SETTINGS.fullmatch(key):
            raise Problem(164, f"Cannot modify '{key}' setting in readonly mode. (READONLY)")
        if key in ANALYST_LIMITS and not (value.isdigit() and 0 < int(value) <= ANALYST_LIMITS[key]):
            raise Problem(452, f"Setting {key} is between 1 and {ANALYST_LIMITS[key]}. (SETTING_CONSTRAINT_VIOLATION)")
    return {key: str(value) for key, value in ANALYST_LIMITS.items()} | dict(given)


def _permitted(
    engine: Engine,
    connection: Connection,
    text: bytes,
    tokens: list[str],
    params: Mapping[str, str],
    role: str,
    reads_only: bool,
) -> str:
    """The statement's class, if this user may send it this way; else Problem."""
    kind, count = connection.classify(text)
    if count > 1:
        raise Problem(62, "Syntax error (Multi-statements are not allowed). (SYNTAX_ERROR)")
    _refuse_files(tokens)
    word = first_word(tokens)
    if not word:
        raise Problem(62, "Syntax error: empty query. (SYNTAX_ERROR)")
    if word == "INSERT" and any(pair == ("input", "(") for pair in pairwise(tokens)):
        raise Problem(48, "INSERT … SELECT FROM input() is not supported: insert into a table. (NOT_IMPLEMENTED)")
    if role == ANALYST:
        _refuse_analyst(outline(connection.canonical(text)), params, engine.outside)
    if (
        reads_only
        and kind not in ("READ_ONLY", "UNKNOWN")
        and word not in ("USE", "SET")[: 1 if role == ANALYST else 2]
    ):
        raise Problem(164, "Cannot execute query in readonly mode. (READONLY)")
    connection.has_own |= word == "SET"
    if word == "USE":
        connection.home = ""
    return kind


def _refuse_analyst(tokens: list[str], params: Mapping[str, str], outside: frozenset[str]) -> None:
    """Refuse what grants and readonly leave open. `tokens` are canonical, so no quoting or comment hides a name."""
    plain = [token.strip('`"').lower() for token in tokens]
    taken = set(plain) & ANALYST_NAMES
    taken |= {name for name, mark in pairwise(plain) if mark == "("} & outside
    if "Identifier" in tokens:  # a parameter may stand for a name
        taken |= {part.lower() for value in params.values() for part in re.split(r"\W+", value)} & ANALYST_NAMES
        taken |= {value for value in params.values() if "\\" in value}
    if taken or changes_settings(tokens):
        raise Problem(497, f"Not enough privileges for {', '.join(sorted(taken)) or 'SETTINGS'}. (ACCESS_DENIED)")


def _refuse_files(tokens: list[str]) -> None:
    if names_file(tokens):
        raise Problem(358, "INTO OUTFILE and FROM INFILE are not allowed. (INTO_OUTFILE_NOT_ALLOWED)")


def _split(query: str, pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes], Insert | None]:
    """A statement's text and, for an INSERT with data, the rest of the body behind it."""
    text = bytearray(query.encode("utf-8", "surrogateescape") + b"\n" if query else b"")
    while len(text) < HEAD_MAX:
        found = split_insert(bytes(text), False) if text else False
        if isinstance(found, Insert):
            return bytes(text), pieces, found
        if found is None:
            break
        piece = next(pieces, None)
        if piece is None:
            break
        text += piece
    for piece in pieces:
        if len(text) + len(piece) > QUERY_MAX:
            raise Problem(229, f"The query is larger than {QUERY_MAX} bytes. (QUERY_IS_TOO_LARGE)")
        text += piece
    whole = bytes(text)
    found = split_insert(whole, True)
    return whole, iter(()), found if isinstance(found, Insert) else None


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _stream(
    exchange: Exchange, blocks: Iterator[Any], format: str, fields: list[tuple[str, str]], began: float
) -> None:
    """Send each block as it comes. The answer begins with the first, so that an error before it has its own status."""
    first = next(blocks, None)
    exchange.begin([*fields, _summary(first, began)] if first else fields)
    if first is not None:
        _send(exchange, first)
    for block in blocks:
        if block.rows_read():  # the last has none: it would only repeat the header
            _send(exchange, block, format)


def _send(exchange: Exchange, result: Any, repeats: str = "") -> None:
    """Send the engine's own buffer piece by piece, without the header that a later block of format `repeats` has."""
    held = result.get_memview()
    data = memoryview(held.view())
    for at in range(0, len(data), SEND_PIECE):
        piece = bytes(data[at : at + SEND_PIECE])
        exchange.send(without_header(piece, repeats) if repeats and not at else piece)


def _summary(result: Any, began: float) -> tuple[str, str]:
    known = {
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "written_rows": result.rows_written(),
        "written_bytes": result.bytes_written(),
        "total_rows_to_read": result.storage_rows_read(),
        "result_rows": result.rows_read(),
        "result_bytes": result.bytes_read(),
        "elapsed_ns": int((time.monotonic() - began) * 1e9),
    }
    return "X-ClickHouse-Summary", json.dumps({key: str(value) for key, value in known.items()})
