"""The outermost layer, plain ASGI: finds the route, admits the caller, answers every error as a problem, logs, measures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from starlette.responses import Response
from starlette.routing import Match, compile_path
from starlette.types import Message, Receive, Scope, Send

from aggregates.kernel.token import masked
from api.kernel.auth import Caller, looked_up
from api.kernel.call import Call
from api.kernel.host import Host
from api.kernel.problems import MEDIA_TYPE, Problem, problem_of
from api.kernel.protocol import send_whole
from api.kernel.route import Route
from infra import logs

REQUESTS = Counter("titan_api_requests_total", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "titan_api_request_seconds",
    "From the first byte of a request to the last of its answer.",
    ["route", "method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15),
)
LIMITLESS = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
QUIET = LIMITLESS
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"})
JSON = (b"content-type", b"application/json")
PROBLEM = (b"content-type", MEDIA_TYPE.encode())
NO_STORE = (b"cache-control", b"no-store")


class Found:
    """A path template, the routes that it has by method, and how to match it."""

    __slots__ = ("by_method", "convertors", "pattern", "template")

    def __init__(self, template: str) -> None:
        self.template = template
        self.pattern: re.Pattern[str]
        self.pattern, _, self.convertors = compile_path(template)
        self.by_method: dict[str, Route] = {}


class Index:
    """Routes by path: fixed paths by a dictionary, others by their first segment, so that 33 services cost what one does."""

    def __init__(self, routes: Iterable[Any]) -> None:
        self._fixed: dict[str, Found] = {}
        self._by_segment: dict[str, list[Found]] = {}
        known: dict[str, Found] = {}
        for route in routes:
            if not isinstance(route, Route):
                continue
            template = route.path
            if template not in known:
                known[template] = found = Found(template)
                if "{" in template:
                    self._by_segment.setdefault(template.split("/", 2)[1], []).append(found)
                else:
                    self._fixed[template] = found
            for method in route.methods or ():
                if method in known[template].by_method:
                    raise TypeError(f"two routes for {method} {template}")
                known[template].by_method[method] = route

    def find(self, path: str) -> tuple[Found | None, dict[str, Any]]:
        """The template of a path and its parameters."""
        if fixed := self._fixed.get(path):
            return fixed, {}
        for found in self._by_segment.get(path.split("/", 2)[1], ()) if path.startswith("/") else ():
            if match := found.pattern.fullmatch(path):
                return found, match.groupdict()
        return None, {}


class Edge:
    """One request in, one answer out. Never raises for a request, whatever is in it."""

    def __init__(self, app: FastAPI, routes: Iterable[Any]) -> None:
        self._app = app
        self._rest = app.build_middleware_stack()
        self._index = Index(routes)
        self._measures: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    async def __call__(self, host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        method = scope["method"]
        head = method == "HEAD"
        if head:  # answered as GET; the server drops the body
            scope = {**scope, "method": "GET"}
            method = "GET"
        call = Call(host, scope, receive)
        call.read_headers()
        scope["titan"] = call
        token = logs.correlation.set(call.correlation)
        status = 500
        begun = False

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"correlation-id", call.correlation.encode()),
                    *call.said,
                ]
            await send(message)

        scope["app"] = self._app
        found: Found | None = None
        problem: Problem | None = None
        try:
            with host.deadlines.within(host.limits.request_s):
                found, parameters = self._index.find(scope["path"])
                if found is not None:
                    call.route = found.template
                route = found.by_method.get(method) if found is not None else None
                if call.route not in LIMITLESS and not (route is not None and route.vouches):
                    await self._admit(call)
                if b"%00" in scope.get("raw_path", b"") or b"%00" in scope["query_string"]:
                    raise Problem("not-found" if found is None else "invalid", "no NUL character in an address")
                if found is not None and route is None:
                    raise Problem(
                        "method",
                        f"{found.template} takes {_allowed(found)}",
                        headers=[(b"allow", _allowed(found).encode())],
                    )
                if route is not None and route.short:
                    scope["path_params"] = parameters
                    made = await route.run(call)
                    if isinstance(made, Response):
                        await made(scope, receive, answer)
                    else:
                        status, body = made
                        begun = True
                        await _send(send, status, body, JSON, call)
                else:
                    await self._rest(scope, receive, answer)
        except Exception as error:
            if call.arriving and isinstance(error, TimeoutError):
                error = Problem("slow-request", "the body did not arrive in time", headers=[(b"connection", b"close")])
            problem = problem_of(error, if_match=call.if_match is not None)
            if begun:
                raise
            if problem.kind == "method" and found is None:
                problem.headers = [(b"allow", methods_of(self._app, scope).encode())]
            status = problem.status
            await _send(send, status, problem.body(call.correlation), PROBLEM, call, problem)
        finally:
            if call.command is not None:
                host.running.discard(call.command)
            self._done(call, method, status, perf_counter() - started)
            logs.correlation.reset(token)
            # The scope is kept by whom `receive` is a method of, and a problem by the frames that it came through. Such circles
            # only a collection of garbage would end, which takes milliseconds from the requests of its moment.
            del scope["titan"]
            call.refused = problem = None

    async def _admit(self, call: Call) -> None:
        """Spend a token of the caller's bucket, or of the address's when there is no good token of a caller's."""
        host, limits = call.host, call.host.limits
        caller: Caller | None = None
        if call.authorization is not None:
            try:
                caller = call.identified()
            except Problem as problem:
                caller = await looked_up(call, problem)
        if caller is None:
            name = f"ip:{call.network}"
            if not host.limiter.pass_at_once(name):
                await host.limiter.admit(name, limits.ip_per_s, limits.ip_burst)
        else:
            name = caller.actor
            if not host.limiter.pass_at_once(name):
                many = caller.role in ("service", "admin")
                await host.limiter.admit(
                    name,
                    limits.service_per_s if many else limits.caller_per_s,
                    limits.service_burst if many else limits.caller_burst,
                )

    def _done(self, call: Call, method: str, status: int, seconds: float) -> None:
        if method not in METHODS:
            method = "other"
        key = (call.route, method, status)
        measures = self._measures.get(key)
        if measures is None:
            route = call.route or "(none)"
            measures = (REQUESTS.labels(route, method, str(status)), SECONDS.labels(route, method))
            self._measures[key] = measures
        measures[0].inc()
        measures[1].observe(seconds)
        if call.route in QUIET:
            return
        logs.access(
            {
                "event": "request", "level": "info" if status < 500 else "warning", "method": method,
                "path": masked(call.scope["path"]), "route": call.route, "status": status, "ms": round(seconds * 1000, 2),
                "caller": call.caller.actor if call.caller else None, "correlation": call.correlation,
            }
        )  # fmt: skip


def _allowed(found: Found) -> str:
    return ", ".join(sorted(found.by_method))


async def _send(
    send: Send, status: int, body: bytes, kind: tuple[bytes, bytes], call: Call, problem: Problem | None = None
) -> None:
    headers = [kind, (b"content-length", b"%d" % len(body)), (b"correlation-id", call.correlation.encode()), NO_STORE]
    headers += call.said if problem is None else problem.headers
    if problem is None:
        await send_whole(send, status, headers, body)
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def methods_of(app: FastAPI, scope: Scope) -> str:
    """The methods that any route of FastAPI's own takes for this path (its 405 names one route's only)."""
    found: set[str] = set()
    for route in app.routes:
        match, _ = route.matches(dict(scope))
        if match is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(found))
