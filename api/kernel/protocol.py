"""uvicorn's HTTP protocol, writing head and body of an answer at once: a system call and a packet less for each request.

`send_whole` goes a step further for the answers that the kernel writes itself: it hands uvicorn the finished bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

WAITING_BYTES_MAX = 65_536  # what is longer goes out in parts, so that the transport's back-pressure is felt


class Protocol(HttpToolsProtocol):
    """`uvicorn --http api.kernel.protocol:Protocol`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_OneWrite(transport, self.loop))  # type: ignore[arg-type]


class _OneWrite:
    """A transport that keeps what is written until the present round of the loop is over."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)
        self._bytes += len(data)
        if self._bytes > WAITING_BYTES_MAX:
            self._flush()

    def write_now(self, data: bytes) -> None:
        """After what was written before."""
        if self._waiting:
            self.write(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting, self._bytes = [], 0
            if not self._transport.is_closing():
                self._transport.write(data)


async def send_whole(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    """Send a whole answer. `headers` say its content-length and nothing about the connection.

    Where `send` is that of our protocol, and nothing is special about the request, the bytes are written as they are: uvicorn's own
    way looks at each header with four patterns. Anywhere else it is ASGI's two messages. Raises `RuntimeError` for a header with a line's end in it.
    """
    cycle = getattr(send, "__self__", None)
    line: Any = getattr(cycle, "transport", None)
    if (
        type(cycle) is not RequestResponseCycle
        or type(line) is not _OneWrite
        or not cycle.keep_alive
        or cycle.access_log
        or cycle.disconnected
        or cycle.response_started
        or cycle.flow.write_paused
        or cycle.scope["method"] == "HEAD"
    ):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
        raise RuntimeError("a header has a line's end in it")
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    line.write_now(b"%b%b\r\n%b" % (STATUS_LINE[status], head, body))
    cycle.message_event.set()  # who waits for the client to go away
    cycle.on_response()
