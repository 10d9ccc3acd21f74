"""The ASGI application: one request is one statement, run in a thread of its own over one chDB connection."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from infra.clickhouse.engine import ADMIN, ANALYST, Connection, Engine
from infra.clickhouse.statement import HEAD_MAX, Insert, answer_format, first_word, split_insert
from infra.clickhouse.wire import STREAMED, Encoder, Problem, content_type, decoded, without_header

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

THREADS = 64  # requests that run or wait for the engine at once
QUERY_MAX = 64 << 20  # bytes of a statement's text, without an insert's data
SEND_PIECE = 1 << 20  # bytes
CLIENT_WAIT_S = 300.0  # a client that neither sends nor reads for so long is given up
SESSION_S, SESSION_MAX_S = 60, 3600  # as ClickHouse's own defaults

# Query arguments that are the protocol's own; every other one is a setting or, with `param_` before it, a parameter.
PROTOCOL = {
    "query", "database", "user", "password", "quota_key", "session_id", "session_timeout", "session_check", "query_id",
    "default_format", "compress", "decompress", "stacktrace", "role", "client_protocol_version", "buffer_size",
    "wait_end_of_query", "http_write_exception_in_output_format", "close_session", "enable_http_compression",
    "http_zlib_compression_level", "send_progress_in_http_headers", "http_headers_progress_interval_ms",
    "http_response_buffer_size", "readonly",
}  # fmt: skip


@dataclass(frozen=True)
class User:
    name: str
    password: str
    role: str


@dataclass
class Request:
    """One HTTP request as the worker thread sees it; `pieces` blocks until the client has sent more."""

    method: str
    headers: Mapping[str, str]
    args: Mapping[str, str]
    pieces: Callable[[], Iterator[bytes]]
    start: Callable[[int, list[tuple[str, str]]], None]
    write: Callable[[bytes, bool], None]
    begun: bool = False


class Server:
    """`users` by name; a request without credentials is the user `default`."""

    def __init__(self, engine: Engine, users: Mapping[str, User]):
        self.engine = engine
        self.users = users
        self.threads = ThreadPoolExecutor(THREADS, "query")
        self.sessions: dict[tuple[str, str], Connection] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        assert scope["type"] == "http", scope["type"]
        loop = asyncio.get_running_loop()
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}

        def wait(todo: Awaitable[Any]) -> Any:
            async def bounded() -> Any:
                return await asyncio.wait_for(todo, CLIENT_WAIT_S)

            return asyncio.run_coroutine_threadsafe(bounded(), loop).result()

        def pieces() -> Iterator[bytes]:
            more = True
            while more:
                message = wait(receive())
                if message["type"] == "http.disconnect":
                    raise ConnectionAbortedError
                more = message.get("more_body", False)
                yield message.get("body", b"")

        def start(status: int, fields: list[tuple[str, str]]) -> None:
            request.begun = True
            encoded = [(key.lower().encode(), value.encode("latin-1", "replace")) for key, value in fields]
            wait(send({"type": "http.response.start", "status": status, "headers": encoded}))

        def write(data: bytes, more: bool) -> None:
            wait(send({"type": "http.response.body", "body": data, "more_body": more}))

        args = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        request = Request(scope["method"], headers, args, pieces, start, write)
        if scope["path"] in ("/ping", "/replicas_status") or (
            scope["path"] == "/" and request.method in ("GET", "HEAD") and "query" not in args
        ):
            return await _plain(send, 200, b"Ok.\n")
        if scope["path"] != "/":
            return await _plain(send, 404, f"There is no handle {scope['path']}\n".encode())
        if request.method not in ("GET", "HEAD", "POST", "PUT"):
            return await _plain(send, 501, f"{request.method} is not supported\n".encode())
        await loop.run_in_executor(self.threads, self._serve, request)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.threads.shutdown(wait=True)
                for session in self.sessions.values():
                    session.close()
                self.engine.close()
                return await send({"type": "lifespan.shutdown.complete"})
            await send({"type": "lifespan.startup.complete"})

    def _serve(self, request: Request) -> None:
        query_id = request.args.get("query_id") or request.headers.get("x-clickhouse-query-id") or str(uuid.uuid4())
        common = [
            ("X-ClickHouse-Server-Display-Name", self.engine.host),
            ("X-ClickHouse-Query-Id", query_id),
            ("X-ClickHouse-Timezone", self.engine.timezone),
        ]
        try:
            self._run(request, common)
        except ConnectionAbortedError:
            return
        except Problem as problem:
            if request.begun:
                raise
            body = problem.body(self.engine.version)
            fields = [("Content-Type", "text/plain; charset=UTF-8"), ("Content-Length", str(len(body)))]
            if problem.status == 401:
                fields.append(("WWW-Authenticate", 'Basic realm="ClickHouse server HTTP API"'))
            request.start(problem.status, [*common, *fields, ("X-ClickHouse-Exception-Code", str(problem.code))])
            request.write(body, False)

    def _run(self, request: Request, common: list[tuple[str, str]]) -> None:
        user = self._user(request)
        args, headers = request.args, request.headers
        pieces = decoded(headers.get("content-encoding", "").lower(), request.pieces())
        text, rest, insert = _split(args.get("query", ""), pieces)
        settings = {key: value for key, value in args.items() if key not in PROTOCOL and not key.startswith("param_")}
        params = {key[6:]: value for key, value in args.items() if key.startswith("param_")}
        format = args.get("default_format") or headers.get("x-clickhouse-format") or "TabSeparated"
        database = args.get("database") or headers.get("x-clickhouse-database", "")
        began = time.monotonic()
        connection = self.engine.connect(user.role)
        try:
            connection.prepare(settings, database)
            if insert:
                if user.role == ANALYST or request.method in ("GET", "HEAD"):
                    raise Problem(164, "Cannot execute query in readonly mode. (READONLY)")
                data = _chain(text[insert.data_at :], rest)
                result = connection.insert(insert.head, insert.format, data, params if "{" in insert.head else {})
                return self._answer_empty(request, common, result, began)
            query = text.decode("utf-8", "replace")
            kind, count = connection.classify(query)
            if count > 1:
                raise Problem(62, "Syntax error (Multi-statements are not allowed). (SYNTAX_ERROR)")
            if kind not in ("READ_ONLY", "UNKNOWN") and (user.role == ANALYST or request.method in ("GET", "HEAD")):
                raise Problem(164, "Cannot execute query in readonly mode. (READONLY)")
            format = answer_format(text) or format
            if kind == "READ_ONLY" and first_word(text) in ("SELECT", "WITH", "FROM") and format in STREAMED:
                self._stream(request, common, connection, query, format, params)
            else:
                result = connection.query(query, format, params)
                self._answer(request, common, result, format, began)
        finally:
            connection.close()

    def _stream(
        self,
        request: Request,
        common: list[tuple[str, str]],
        connection: Connection,
        query: str,
        format: str,
        params: Mapping[str, str],
    ) -> None:
        blocks = connection.blocks(query, format, params)
        first = next(blocks, None)
        encoder = self._encoder(request)
        request.start(200, [*common, *_kind(format), *_encoding(encoder)])
        if first is not None:
            request.write(encoder.piece(first.bytes()), True)
        for block in blocks:
            data = block.bytes()
            if block.rows_read():
                data = without_header(data, STREAMED[format])
            if data:
                request.write(encoder.piece(data), True)
        request.write(encoder.end(), False)

    def _answer(
        self, request: Request, common: list[tuple[str, str]], result: Any, format: str, began: float
    ) -> None:
        encoder = self._encoder(request)
        request.start(200, [*common, *_kind(format), *_encoding(encoder), _summary(result, began)])
        data = result.bytes()
        for at in range(0, len(data), SEND_PIECE):
            request.write(encoder.piece(data[at : at + SEND_PIECE]), True)
        request.write(encoder.end() if data else b"", False)

    def _answer_empty(self, request: Request, common: list[tuple[str, str]], result: Any, began: float) -> None:
        fields = [("Content-Type", "text/plain; charset=UTF-8"), ("Content-Length", "0"), _summary(result, began)]
        request.start(200, [*common, *fields])
        request.write(b"", False)

    def _encoder(self, request: Request) -> Encoder:
        asked = request.args.get("enable_http_compression", "1") in ("1", "true")
        return Encoder(request.headers.get("accept-encoding", "") if asked else "")

    def _user(self, request: Request) -> User:
        headers, args = request.headers, request.args
        given, password = headers.get("x-clickhouse-user", ""), headers.get("x-clickhouse-key", "")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given, _, password = base64.b64decode(token, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                raise Problem(516, "The Authorization header is not Basic. (AUTHENTICATION_FAILED)") from None
        given = given or args.get("user", "") or "default"
        password = password or args.get("password", "")
        user = self.users.get(given)
        if user is None or not hmac.compare_digest(user.password.encode(), password.encode()):
            raise Problem(
                516,
                f"{given}: Authentication failed: password is incorrect, or there is no user with such name. "
                "(AUTHENTICATION_FAILED)",
            )
        return user


def _split(query: str, pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes], Insert | None]:
    """A statement's text and, for an INSERT with data, the rest of the body behind it."""
    text = bytearray(query.encode() + b"\n" if query else b"")
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


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _kind(format: str) -> list[tuple[str, str]]:
    return [("Content-Type", content_type(format)), ("X-ClickHouse-Format", format)]


def _encoding(encoder: Encoder) -> list[tuple[str, str]]:
    return [("Content-Encoding", encoder.name)] if encoder.name else []


def _summary(result: Any, began: float) -> tuple[str, str]:
    known = {
        "read_rows": result.storage_rows_read(),
        "read_bytes": result.storage_bytes_read(),
        "written_rows": result.rows_written(),
        "written_bytes": result.bytes_written(),
        "result_rows": result.rows_read(),
        "result_bytes": result.bytes_read(),
        "elapsed_ns": int((time.monotonic() - began) * 1e9),
    }
    return "X-ClickHouse-Summary", json.dumps({key: str(value) for key, value in known.items()})


async def _plain(send: Send, status: int, body: bytes) -> None:
    fields = [(b"content-type", b"text/html; charset=UTF-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
