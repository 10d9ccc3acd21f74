"""One request on its way through the kernel: its headers read once, its body read once, its caller found once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from starlette.types import Message, Receive, Scope

from api.kernel.auth import Caller
from api.kernel.network import network_of, tell_ignored
from api.kernel.problems import Header, Problem, unauthenticated

if TYPE_CHECKING:
    from api.kernel.host import Host

TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
IDEMPOTENCY_KEY = "^[!-~]{1,255}$"
_KEY = re.compile(IDEMPOTENCY_KEY.encode())
ENTITY_TAG = '^(\\*|"[0-9]{1,9}"|[0-9]{1,9})$'
_TAG = re.compile(rb'(W/)?"([!#-~\x80-\xff]*)"')
VERSION_CHARS_MAX = 9
DEEPEST = "nested too deeply"
PLAIN_MAX = 100  # objects and arrays: no deeper than any of our tools goes


@dataclass(slots=True, eq=False)
class Call:
    """A request. `said`: headers that the answer will have; `route`: the template that was found, for logs and metrics;
    `arriving`: a part of the body is awaited."""

    host: Host
    scope: Scope
    receive: Receive
    correlation: str = ""
    authorization: bytes | None = None
    idempotency_key: bytes | None = None
    if_match: bytes | None = None
    content_type: bytes | None = None
    content_length: bytes | None = None
    forwarded: bytes | None = None
    route: str = ""
    caller: Caller | None = None
    refused: Problem | None = None
    said: list[Header] = field(default_factory=list)
    _value: Any = None
    _canonical: bytes | None = b""
    command: UUID | None = None
    commands: int = 0
    arriving: bool = False

    def read_headers(self) -> None:
        """Keep the headers that the kernel knows, in one pass."""
        for name, value in self.scope["headers"]:
            match name:
                case b"authorization":
                    self.authorization = value
                case b"idempotency-key":
                    self.idempotency_key = value
                case b"if-match":
                    self.if_match = value
                case b"content-type":
                    self.content_type = value
                case b"content-length":
                    self.content_length = value
                case b"x-forwarded-for":
                    self.forwarded = value if self.forwarded is None else self.forwarded + b"," + value
                case b"traceparent":
                    if found := TRACEPARENT.fullmatch(value):
                        self.correlation = found[1].decode()
        if not self.correlation:
            self.correlation = os.urandom(16).hex()

    @property
    def network(self) -> str:
        """Where it comes from: an IPv4 address, or an IPv6 network of /64."""
        host = (self.scope["client"] or ("",))[0]
        if self.forwarded is not None and host.encode() not in self.forwarded:  # uvicorn would have taken it from there
            tell_ignored(network_of(host))
        return network_of(host)

    def identified(self) -> Caller:
        """The caller. Raises the 401 problem without a good token."""
        if self.refused is not None:
            raise self.refused
        if self.caller is None:
            if self.authorization is None:
                raise unauthenticated("this needs a token: Authorization: Bearer …", tried=False)
            scheme, _, token = self.authorization.partition(b" ")
            if scheme.lower() != b"bearer" or not token:
                raise unauthenticated("this needs a token: Authorization: Bearer …", tried=True)
            self.caller = self.host.keys.caller(token.strip())
        return self.caller

    async def body(self) -> bytes:
        """The whole body. Raises 413 past the limit, counted in bytes that arrive, and 408 when it is slow."""
        limits = self.host.limits
        if self.content_length is not None and (
            not self.content_length.isdigit() or int(self.content_length) > limits.body_bytes_max
        ):
            raise Problem(
                "too-large", f"the limit is {limits.body_bytes_max} bytes", headers=[(b"connection", b"close")]
            )
        message = await self._message()
        if not message.get("more_body"):
            return self._bounded(message.get("body", b""))
        parts, size = [message.get("body", b"")], len(message.get("body", b""))
        while message.get("more_body"):
            message = await self._message()
            part = message.get("body", b"")
            size += len(part)
            if size > limits.body_bytes_max:
                break
            parts.append(part)
        return self._bounded(b"".join(parts), size)

    async def _message(self) -> Message:
        self.arriving = True
        message = await self.receive()
        self.arriving = False
        if message["type"] == "http.disconnect":
            raise Problem("slow-request", "the client went away")
        return message

    def _bounded(self, body: bytes, size: int | None = None) -> bytes:
        limit = self.host.limits.body_bytes_max
        if (len(body) if size is None else size) > limit:
            raise Problem("too-large", f"the limit is {limit} bytes", headers=[(b"connection", b"close")])
        return body

    async def json(self) -> Any:
        """The body as JSON values. Raises 415, 413, 408, or 422 for what is not JSON that every store can hold."""
        kind = (self.content_type or b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
            raise Problem("media-type", "the body is JSON, declared as Content-Type: application/json")
        return self.parsed(await self.body())

    def parsed(self, body: bytes) -> Any:
        """JSON values from bytes, kept canonical for the fingerprint. Raises 422."""
        try:
            value = self._value = orjson.loads(body)
            self._canonical = None
            if _plain(body):
                return value
            canonical = self.canonical
        except orjson.JSONDecodeError as error:
            why = f"not JSON: {error}" if body else "a body is needed"
            raise Problem("invalid", why, errors=[{"pointer": "#", "detail": why}]) from error
        except TypeError as error:
            raise Problem("invalid", DEEPEST, errors=[{"pointer": "#", "detail": DEEPEST}]) from error
        # Canonical JSON has one spelling of each character, so a search in it can't be evaded by escapes.
        if (b"\\u0000" in canonical or b'"sealed:' in canonical) and (found := _forbidden(value)):
            pointer, why = found
            raise Problem("invalid", f"{pointer}: {why}", errors=[{"pointer": pointer, "detail": why}])
        return value

    @property
    def canonical(self) -> bytes:
        """The body, each of its values in its one spelling; empty when there was none."""
        if self._canonical is None:
            self._canonical = orjson.dumps(self._value, option=orjson.OPT_SORT_KEYS)
        return self._canonical

    def fingerprint(self) -> bytes:
        """What tells this request from another one under the same key."""
        asked = (
            f"{self.scope['method']} {self.scope['path']}?".encode()
            + self.scope["query_string"]
            + b"\n"
            + self.canonical
        )
        return sha256(asked).digest()

    def key(self) -> str | None:
        """The Idempotency-Key. Raises 422 for one that is empty, too long or not printable ASCII."""
        if self.idempotency_key is None:
            return None
        if not _KEY.fullmatch(self.idempotency_key):
            why = "1 to 255 printable ASCII characters without a space"
            raise Problem("invalid", f"Idempotency-Key: {why}", errors=_in_header("Idempotency-Key", why))
        return self.idempotency_key.decode()

    def needs_key(self) -> None:
        """Raises 422 without an Idempotency-Key."""
        if self.idempotency_key is None:
            why = "this moves money: a key is needed, so that it is done once however often it is sent"
            raise Problem("invalid", f"Idempotency-Key: {why}", errors=_in_header("Idempotency-Key", why))

    def expected(self) -> int | None:
        """The version of If-Match, None for any. Raises 422 for what is no entity tag, 412 for one that is no version."""
        if self.if_match is None or self.if_match == b"*":
            return None
        if self.if_match.isdigit() and len(self.if_match) <= VERSION_CHARS_MAX:
            return int(self.if_match)  # a version without its quotes, as people type it
        found = _TAG.fullmatch(self.if_match)
        if found is None:
            why = 'one entity tag is needed, as "3"'
            raise Problem("invalid", f"If-Match: {why}", errors=_in_header("If-Match", why))
        weak, tag = found.groups()
        if weak or not tag.isdigit() or len(tag) > VERSION_CHARS_MAX:
            raise Problem("stale", "no version has this tag")
        return int(tag)


def _in_header(name: str, why: str) -> list[dict[str, str]]:
    return [{"parameter": name, "in": "header", "detail": why}]


def _plain(body: bytes) -> bool:
    """Whether JSON is not nested deeply, and no text in it can be one that is forbidden; False when that has to be looked for."""
    return b"\\" not in body and b'"sealed:' not in body and body.count(b"{") + body.count(b"[") <= PLAIN_MAX


def _forbidden(value: Any) -> tuple[str, str] | None:
    """Where a text is that no store may hold: with a NUL, or made to look like sealed personal data of somebody."""
    todo: list[tuple[str, Any]] = [("#", value)]
    while todo:
        pointer, one = todo.pop()
        if isinstance(one, str):
            if "\0" in one:
                return pointer, "a text has no NUL character"
            if one.startswith("sealed:"):
                return pointer, "a text does not start with sealed:"
        elif isinstance(one, list):
            todo += [(f"{pointer}/{n}", item) for n, item in enumerate(one)]
        elif isinstance(one, dict):
            for name, item in one.items():
                step = name.replace("~", "~0").replace("/", "~1")[:100]
                todo += [(f"{pointer}/{step}", item), (pointer, name)]
    return None
