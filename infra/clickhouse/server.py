"""The ASGI application: who asks, which thread answers, and what happens when either side goes away."""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import hmac
import logging
import secrets
import string
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from infra.clickhouse.engine import ADMIN, ANALYST, Engine
from infra.clickhouse.query import run
from infra.clickhouse.wire import Encoder, Problem

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

THREADS = {ADMIN: 32, ANALYST: 6}  # requests of a role that run at once: analysts never take the platform's threads
WAITING_MAX = 256  # requests of a role that run or wait for a thread
CLIENT_WAIT_S = 300.0  # a client that neither sends nor reads for so long is given up

TIDY_S = 20.0

log = logging.getLogger("titan.clickhouse")


@dataclass(frozen=True)
class User:
    name: str
    password: str
    role: str


class Gone(Exception):
    """The client has gone, or the answer can't be finished: the connection is closed as it is."""


class Server:
    """`users` by name; a request without credentials is the user `default`."""

    def __init__(self, engine: Engine, users: Mapping[str, User]):
        self.engine = engine
        self.users = users
        self.threads = {role: ThreadPoolExecutor(count, role) for role, count in THREADS.items()}
        self.helper = ThreadPoolExecutor(1, "kill")
        self.waiting = dict.fromkeys(THREADS, 0)
        self.running: set[str] = set()
        self._touched = False
        self._tidying: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        assert scope["type"] == "http", scope["type"]
        given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
        args = dict(given)
        exchange = HttpExchange(self, scope, args, receive, send)
        path, method = scope["path"], scope["method"]
        if path in ("/ping", "/replicas_status") or (path == "/" and method in ("GET", "HEAD") and "query" not in args):
            await _plain(send, 200, b"Ok.\n")
            return
        if path != "/":
            await _plain(send, 404, f"There is no handle {path}\n".encode())
            return
        if method not in ("GET", "HEAD", "POST", "PUT"):
            await _plain(send, 501, f"{method} is not supported\n".encode())
            return
        try:
            exchange.admit()
        except Problem as problem:
            await exchange.refuse(problem)
            return
        try:
            await exchange.loop.run_in_executor(self.threads[exchange.role], exchange.serve)
        except Gone:
            pass  # without an end to its answer uvicorn closes the connection, which is what a client has to see
        finally:
            exchange.leave()

    def tidy_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """After a request: look after sessions and memory until nothing happens any more; then no timer is left."""
        self._touched = True
        if self._tidying is None:
            self._tidying = loop.call_later(TIDY_S, self._tidy, loop)

    def _tidy(self, loop: asyncio.AbstractEventLoop) -> None:
        idle, self._touched = not self._touched, False
        left = self.engine.expire()
        if idle:
            self.engine.rest()
        self._tidying = loop.call_later(TIDY_S, self._tidy, loop) if left or not idle else None

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        for pool in (*self.threads.values(), self.helper):
            pool.shutdown(wait=True)
        self.engine.close()
        await send({"type": "lifespan.shutdown.complete"})


class HttpExchange:
    """One request. What `query.run` calls blocks its thread until the event loop has heard from the client."""

    def __init__(self, server: Server, scope: Message, args: dict[str, str], receive: Receive, send: Send):
        self.server, self.args, self._receive, self._send = server, args, receive, send
        self.loop = asyncio.get_running_loop()
        self.method: str = scope["method"]
        self.headers: dict[str, str] = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        self.query_id = args.get("query_id") or self.headers.get("x-clickhouse-query-id") or str(uuid.uuid4())
        self.user, self.role = "", ""
        self._tag = "".join(secrets.choice(string.ascii_lowercase) for _ in range(16))
        self._encoder: Encoder | None = None
        self._watch: asyncio.Task[None] | None = None
        self._begun = False

    def admit(self) -> None:
        """Check who asks and take a place in the role's queue, or raise Problem."""
        user = self._authenticate()
        server = self.server
        if server.waiting[user.role] >= WAITING_MAX:
            raise Problem(202, f"More than {WAITING_MAX} queries. (TOO_MANY_SIMULTANEOUS_QUERIES)")
        if self.query_id in server.running:
            raise Problem(
                216, f"Query with id = {self.query_id} is already running. (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)"
            )
        server.waiting[user.role] += 1
        server.running.add(self.query_id)
        self.user, self.role = user.name, user.role

    def leave(self) -> None:
        if self._watch:
            self._watch.cancel()
        self.server.waiting[self.role] -= 1
        self.server.tidy_later(self.loop)

    def serve(self) -> None:
        """In a thread: answer, or say why not."""
        try:
            run(self.server.engine, self)
        except Problem as problem:
            self._fail(problem)
        except Gone:
            self.server.running.discard(self.query_id)
            raise
        except Exception:
            log.exception("query %s failed", self.query_id)
            self._fail(Problem(1002, "The front failed; its log says where. (UNKNOWN_EXCEPTION)"))

    def pieces(self) -> Iterator[bytes]:
        more = True
        while more:
            message = self._wait(self._receive())
            if message["type"] == "http.disconnect":
                raise Gone
            more = message.get("more_body", False)
            if not more:
                self.loop.call_soon_threadsafe(self._watch_client)
            if body := message.get("body", b""):
                yield body

    def begin(self, fields: list[tuple[str, str]], empty: bool = False) -> None:
        asked = self.args.get("enable_http_compression", "1") not in ("0", "false")
        self._encoder = Encoder(self.headers.get("accept-encoding", "") if asked and not empty else "")
        if self._encoder.name:
            fields = [*fields, ("Content-Encoding", self._encoder.name)]
        self._start(200, [*fields, ("Content-Length", "0")] if empty else fields)

    def send(self, data: bytes) -> None:
        assert self._encoder is not None, "begin comes first"
        self._write(self._encoder.piece(data), True)

    def end(self) -> None:
        assert self._encoder is not None, "begin comes first"
        self.server.running.discard(self.query_id)  # its client may use it again as soon as it has read the answer
        self._write(self._encoder.end(), False)

    async def refuse(self, problem: Problem) -> None:
        body = problem.body(self.server.engine.version)
        fields = [("Content-Type", "text/plain; charset=UTF-8"), ("Content-Length", str(len(body)))]
        fields.append(("X-ClickHouse-Exception-Code", str(problem.code)))
        if problem.status == 401:
            fields.append(("WWW-Authenticate", 'Basic realm="ClickHouse server HTTP API"'))
        await self._send({"type": "http.response.start", "status": problem.status, "headers": self._all(fields)})
        await self._send({"type": "http.response.body", "body": body})

    def _fail(self, problem: Problem) -> None:
        """An error; when rows are on their way already it follows them, marked by the tag, and the answer breaks off."""
        self.server.running.discard(self.query_id)
        if not self._begun:
            self._wait(self.refuse(problem))
            return
        text = problem.body(self.server.engine.version).decode()
        frame = f"\r\n__exception__\r\n{self._tag}\r\n{text}{len(text.encode())} {self._tag}\r\n__exception__\r\n"
        self.send(frame.encode())
        if self._encoder and (rest := self._encoder.end()):
            self._write(rest, True)
        raise Gone

    def _authenticate(self) -> User:
        headers, args = self.headers, self.args
        given, password = headers.get("x-clickhouse-user", ""), headers.get("x-clickhouse-key", "")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given, _, password = base64.b64decode(token, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                raise Problem(516, "The Authorization header is not Basic. (AUTHENTICATION_FAILED)") from None
        given = given or args.get("user", "") or "default"
        password = password or args.get("password", "")
        user = self.server.users.get(given)
        if user is None or not hmac.compare_digest(user.password.encode(), password.encode()):
            why = "password is incorrect, or there is no user with such name"
            raise Problem(516, f"{given}: Authentication failed: {why}. (AUTHENTICATION_FAILED)")
        return user

    def _watch_client(self) -> None:
        self._watch = self.loop.create_task(self._kill_when_gone())

    async def _kill_when_gone(self) -> None:
        """Once the body is read the only thing to come from a client is its going; nobody waits for the answer then."""
        await self._receive()
        if self.query_id in self.server.running:
            kill = functools.partial(self.server.engine.kill, self.query_id)
            await self.loop.run_in_executor(self.server.helper, kill)

    def _start(self, status: int, fields: list[tuple[str, str]]) -> None:
        self._begun = True
        self._wait(self._send({"type": "http.response.start", "status": status, "headers": self._all(fields)}))

    def _write(self, data: bytes, more: bool) -> None:
        if data or not more:
            self._wait(self._send({"type": "http.response.body", "body": data, "more_body": more}))

    def _all(self, fields: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
        engine = self.server.engine
        every = [
            *fields,
            ("X-ClickHouse-Server-Display-Name", engine.host),
            ("X-ClickHouse-Query-Id", self.query_id),
            ("X-ClickHouse-Timezone", engine.timezone),
            ("X-ClickHouse-Exception-Tag", self._tag),
        ]
        return [(key.encode(), value.encode("latin-1", "replace")) for key, value in every]

    def _wait(self, todo: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(todo, CLIENT_WAIT_S)

        try:
            return asyncio.run_coroutine_threadsafe(bounded(), self.loop).result()
        except (TimeoutError, OSError) as error:
            raise Gone from error


async def _plain(send: Send, status: int, body: bytes) -> None:
    fields = [(b"Content-Type", b"text/html; charset=UTF-8"), (b"Content-Length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
