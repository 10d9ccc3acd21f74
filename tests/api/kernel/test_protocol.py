"""What goes over the wire, byte by byte: whole answers, in order, and what uvicorn does with special requests left as it is."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from api.kernel.call import Call
from api.kernel.protocol import send_whole
from tests.api.kernel.conftest import Shop, serving
from tests.kernel.garbage import uncollected
from tests.kernel.platform import wait_for


@contextmanager
def line_to(url: str) -> Iterator[socket.socket]:
    host, _, port = urlsplit(url).netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as line:
        yield line


def told(line: socket.socket, until: bytes) -> bytes:
    got = b""
    while until not in got:
        part = line.recv(65_536)
        assert part, got
        got += part
    return got


def to_the_end(line: socket.socket) -> bytes:
    return b"".join(iter(lambda: line.recv(65_536), b""))


def request(shop: Shop, currency: str, version: str = "1.1", more: str = "") -> bytes:
    body = json.dumps({"currency": currency, "holder": "Ada"})
    token = shop.of()["Authorization"]
    head = f"POST /purses HTTP/{version}\r\nHost: x\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{more}\r\n{body}".encode()


def test_an_answer_is_one_packet_with_all_its_headers(shop: Shop) -> None:
    with line_to(str(shop.http.base_url)) as line:
        line.sendall(request(shop, "EUR"))
        head, _, body = line.recv(65_536).partition(b"\r\n\r\n")
        first, *headers = head.decode().split("\r\n")
        assert first == "HTTP/1.1 201 Created"
        found = dict(one.lower().split(": ", 1) for one in headers)
        assert {"date", "content-type", "content-length", "correlation-id", "cache-control", "location", "etag"} <= {
            *found
        }
        assert int(found["content-length"]) == len(body)
        assert found["location"] == f"/purses/{json.loads(body)['id']}"
        assert len(found) == len(headers)


def test_requests_sent_in_a_row_are_answered_in_their_order(shop: Shop) -> None:
    """Answers written at once (201) and those that go uvicorn's way (problems) keep their order on one connection."""
    wanted = [b"201", b"422", b"201", b"201", b"422", b"201"]
    sent = [request(shop, "EUR" if status == b"201" else "euro") for status in wanted]
    with line_to(str(shop.http.base_url)) as line:
        line.sendall(b"".join(sent[:-1]) + sent[-1].replace(b"Host: x", b"Host: x\r\nConnection: close"))
        got = to_the_end(line)
    assert [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]] == wanted


@pytest.mark.parametrize(
    ("version", "more"), [("1.1", "Connection: close\r\n"), ("1.0", "")], ids=["asked to close", "HTTP/1.0"]
)
def test_a_connection_that_is_not_kept_is_closed_behind_the_whole_answer(shop: Shop, version: str, more: str) -> None:
    with line_to(str(shop.http.base_url)) as line:
        line.sendall(request(shop, "EUR", version, more))
        head, _, body = to_the_end(line).partition(b"\r\n\r\n")
    assert b" 201 " in head and b"connection: close" in head.lower()
    assert json.loads(body)["version"] == 1


def test_head_has_the_headers_of_get_and_no_body(shop: Shop) -> None:
    headers = shop.of()
    id = shop.opened(headers)
    shop.project()
    with line_to(str(shop.http.base_url)) as line:
        asked = f"HEAD /purses/{id} HTTP/1.1\r\nHost: x\r\nAuthorization: {headers['Authorization']}\r\nConnection: close\r\n\r\n"
        line.sendall(asked.encode())
        head, _, body = to_the_end(line).partition(b"\r\n\r\n")
    assert b" 200 " in head and body == b""
    [length] = re.findall(rb"(?i)content-length: ([0-9]+)", head)
    assert int(length) > 0


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(shop: Shop) -> None:
    asked = request(shop, "EUR", more="Expect: 100-continue\r\n")
    head, _, body = asked.partition(b"\r\n\r\n")
    with line_to(str(shop.http.base_url)) as line:
        line.sendall(head + b"\r\n\r\n")
        assert told(line, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        line.sendall(body)
        assert told(line, b"}").startswith(b"HTTP/1.1 201 ")


def test_a_header_with_a_line_s_end_in_it_is_never_written() -> None:
    wrong = [(b"content-length", b"2"), (b"etag", b"1\r\nset-cookie: a=b")]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send_whole(send, 200, wrong if scope["path"] == "/wrong" else wrong[:1], b"{}")
        else:
            for _ in range(2):
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})

    with serving(app) as url:
        assert httpx.get(f"{url}/right").text == "{}"
        answer = httpx.get(f"{url}/wrong")
    assert answer.status_code == 500 and "set-cookie" not in answer.headers


def test_elsewhere_it_is_two_messages() -> None:
    said: list[object] = []

    async def send(message: object) -> None:
        said.append(message)

    asyncio.run(send_whole(send, 200, [(b"content-length", b"2")], b"{}"))
    assert said == [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]},
        {"type": "http.response.body", "body": b"{}"},
    ]


def test_what_a_request_made_goes_with_it(shop: Shop) -> None:
    """Nothing of it waits for a collection of garbage, which would hold up the requests of its moment."""
    mine, there = shop.of(), {"currency": "EUR", "holder": "Ada"}
    gc.collect()
    with uncollected():
        answers = [
            shop.http.post("/purses", json=there, headers=mine),
            shop.http.post("/purses", json={}, headers=mine),
            shop.http.post("/purses", json=there),
            shop.http.post("/purses", json=there, headers={"Authorization": "Bearer wrong"}),
            shop.http.post("/purses", content=b"{", headers={**mine, "Content-Type": "application/json"}),
            shop.http.get(f"/purses/{uuid4()}", headers=mine),
            shop.http.head(f"/purses/{uuid4()}", headers=mine),
            shop.http.put("/purses", headers=mine),
            shop.http.get("/nowhere"),
            shop.http.get("/openapi.json"),
            shop.http.get("/docs"),
        ]
        assert {answer.status_code for answer in answers} == {200, 201, 401, 404, 405, 422}
        wait_for(lambda: not any(isinstance(one, Call) for one in gc.get_objects()), "the last request to be gone", 5)
