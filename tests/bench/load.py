"""HTTP load that costs its own process little: prepared requests over keep-alive connections, answers read by length."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Result:
    """`seconds` of each answered request, in all `took` seconds; `failed`: answers that are none of the expected status."""

    took: float = 0.0
    seconds: list[float] = field(default_factory=list)
    failed: list[bytes] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        assert not self.failed, self.failed[0][:500]
        return len(self.seconds) / self.took


def request(url: str, method: str, document: Any = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole request as bytes."""
    parts = urlsplit(url)
    body = b"" if document is None else json.dumps(document).encode()
    lines = [
        f"{method} {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1",
        f"Host: {parts.netloc}",
    ]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def closed_loop(
    url: str, make: Callable[[int], bytes], connections: int, count: int, expect: int = 201
) -> Result:
    """So many requests over so many connections, each connection's next one when it has the answer."""
    numbers, result = iter(range(count)), Result()

    async def client() -> None:
        wire = await Wire.open(url)
        for number in numbers:
            await wire.ask(make(number), expect, result)
        wire.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    result.took = time.perf_counter() - began
    return result


async def open_loop(
    url: str, make: Callable[[int], bytes], per_second: float, count: int, connections: int, expect: int
) -> Result:
    """So many requests at a fixed rate. The time that one waits for a connection counts: it was due."""
    result, idle = Result(), asyncio.Queue[Wire]()
    for _ in range(connections):
        idle.put_nowait(await Wire.open(url))

    async def one(number: int, due: float) -> None:
        wire = await idle.get()
        await wire.ask(make(number), expect, result, due)
        idle.put_nowait(wire)

    began, under_way = time.perf_counter(), []
    for number in range(count):
        due = began + number / per_second
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        under_way.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*under_way)
    result.took = time.perf_counter() - began
    while not idle.empty():
        idle.get_nowait().close()
    return result


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> Wire:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def ask(self, sent: bytes, expect: int, result: Result, due: float | None = None) -> bytes:
        began = time.perf_counter() if due is None else due
        self._writer.write(sent)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        result.seconds.append(time.perf_counter() - began)
        if int(head[9:12]) != expect:
            result.failed.append(head + body)
        return body

    def close(self) -> None:
        self._writer.close()
