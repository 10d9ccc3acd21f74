"""Whatever is sent: answered with a 4xx that says what is wrong, never with a 5xx."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from infra import logs
from tests.api.kernel.conftest import Shop

GOOD = {"currency": "EUR", "holder": "Ada"}
JSON = {"Content-Type": "application/json"}
LIMIT = 1 << 20
NOBODY = "01a21199-91df-70bb-86ad-63fb04ed571f"


def text(**changed: Any) -> bytes:
    return json.dumps({**GOOD, **changed}).encode()


BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 422, "#"),
    "not JSON": (b"{", 422, "#"),
    "two documents": (b"{}{}", 422, "#"),
    "a list": (b"[]", 422, "#"),
    "a number": (b"7", 422, "#"),
    "null": (b"null", 422, "#"),
    "nothing in it": (b"{}", 422, "#/currency"),
    "unknown field": (text(admin=True), 422, "#/admin"),
    "not UTF-8": (b'{"currency":"EUR","holder":"\xff\xfe"}', 422, "#"),
    "byte order mark": (b"\xef\xbb\xbf" + text(), 422, "#"),
    "lone surrogate": (b'{"currency":"EUR","holder":"\\ud800"}', 422, "#"),
    "NUL": (text(holder="A\0da"), 422, "#/holder"),
    "escaped NUL where any text may be": (text(note="A\\u0000 \0"), 422, "#/note"),
    "NUL in a name": (text(**{"a\0": 1}), 422, "#"),
    "deep": (b'{"currency":' + b"[" * 400 + b"]" * 400 + b"}", 422, "#"),
    "deeper than any reader": (b"[" * 100_000, 422, "#"),
    "not a number": (b'{"currency":"EUR","holder":NaN}', 422, "#"),
    "infinity": (b'{"currency":"EUR","holder":1e999}', 422, "#"),
    "no such currency": (text(currency="XXX"), 422, "#/currency"),
    "currency is a number": (text(currency=978), 422, "#/currency"),
    "name is a list": (text(holder=["Ada"]), 422, "#/holder"),
    "name is empty": (text(holder=""), 422, "#/holder"),
    "name is too long": (text(holder="x" * 201), 422, "#/holder"),
    "two lines": (text(holder="a\nb"), 422, "#/holder"),
    "made to look sealed": (text(holder=f"sealed:1:{uuid4()}:AAAA"), 422, "#/holder"),
    "made to look sealed, escaped": (b'{"currency":"EUR","holder":"\\u0073ealed:1:x"}', 422, "#/holder"),
    "a name with a slash and a tilde": (text(**{"a/b~c": 1}), 422, "#/a~1b~0c"),
    "above the limit": (text(note="x" * LIMIT), 413, ""),
}


@pytest.mark.parametrize(("body", "status", "pointer"), BODIES.values(), ids=BODIES)
def test_a_bad_body_is_refused(shop: Shop, body: bytes, status: int, pointer: str) -> None:
    answer = shop.http.post("/purses", content=body, headers={**shop.of(), **JSON})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    if status == 422:
        assert problem["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize(
    "amount", [0, -1, 10**12 + 1, 2**53, 2**63, 2**64, 10**30, -(10**30), 0.0, 1e13, 1.5, "5", True, None, [1], {}]
)
def test_an_amount_out_of_its_limits_is_refused(shop: Shop, amount: Any) -> None:
    me = shop.of()
    answer = shop.http.post(f"/purses/{uuid4()}/fill", json={"amount": amount}, headers=me)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/amount")


@pytest.mark.parametrize("amount", [1, 1.0, 10**12])
def test_an_amount_at_its_limits_is_taken(shop: Shop, amount: float) -> None:
    me = shop.of()
    assert shop.http.post(f"/purses/{shop.opened(me)}/fill", json={"amount": amount}, headers=me).status_code == 200


def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(shop: Shop) -> None:
    padding = LIMIT - len(text())
    me = {**shop.of(), **JSON}
    assert shop.http.post("/purses", content=text() + b" " * padding, headers=me).status_code == 201
    assert shop.http.post("/purses", content=text() + b" " * (padding + 1), headers=me).status_code == 413


def test_bytes_are_counted_when_no_length_is_declared(shop: Shop) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        body = text() + b" " * (size - len(text()))
        yield from (body[at : at + 60_000] for at in range(0, size, 60_000))

    me = {**shop.of(), **JSON}
    assert shop.http.post("/purses", content=chunks(LIMIT), headers=me).status_code == 201
    assert shop.http.post("/purses", content=chunks(LIMIT + 1), headers=me).status_code == 413


@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "json", "\xff"]
)  # fmt: skip
def test_only_json_is_read(shop: Shop, kind: str | None) -> None:
    headers: list[tuple[str, Any]] = list(shop.of().items())
    if kind is not None:
        headers.append(("Content-Type", kind.encode("latin-1")))
    assert shop.http.post("/purses", content=text(), headers=headers).status_code == 415


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/merge-patch+json"]
)
def test_json_by_any_of_its_names(shop: Shop, kind: str) -> None:
    assert shop.http.post("/purses", content=text(), headers={**shop.of(), "Content-Type": kind}).status_code == 201


@pytest.mark.parametrize(
    "path", ["/purses/x", "/purses/1", "/purses/" + "a" * 5000, "/purses/%00", "/purses/%ff%fe", "/purses/..%2f..", "/purses/ / ", "/purses/😀", f"/purses/{NOBODY}%0a"]
)  # fmt: skip
def test_a_bad_id_is_refused(shop: Shop, path: str) -> None:
    answer = shop.http.get(path, headers=shop.of())
    assert answer.status_code in (404, 422), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    ["/purse", "/purses/", "/purses//x", f"/purses/{NOBODY}/events/", "/PURSES", "/purses/a/b/c", "/.env", "/%00"],
)
def test_an_unknown_path_is_a_404(shop: Shop, path: str) -> None:
    answer = shop.http.get(path, headers=shop.of())
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/purses", "GET, POST"), ("PUT", f"/purses/{NOBODY}", "GET"), ("GET", f"/purses/{NOBODY}/fill", "POST"),
     ("OPTIONS", "/purses", "GET, POST"), ("TRACE", "/purses", "GET, POST"),
     ("POST", "/openapi.json", "GET, HEAD"), ("HEAD", f"/purses/{NOBODY}/fill", "POST"), ("POST", "/metrics", "GET")],
)  # fmt: skip
def test_another_method_is_a_405_that_names_the_right_ones(shop: Shop, method: str, path: str, allowed: str) -> None:
    answer = shop.http.request(method, path, headers=shop.of())
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_a_head_is_a_get_without_its_body(shop: Shop) -> None:
    answer = shop.http.head("/purses", headers=shop.of())
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


def test_a_bug_is_told_without_a_trace_of_the_code(shop: Shop) -> None:
    out = BytesIO()
    logs.configure("info", out)
    try:
        answer = shop.http.get("/purses/hello/bug", headers=shop.of())
    finally:
        logs.flush()
        logs.configure("info")
    assert answer.status_code == 500
    assert "KeyError" not in answer.text
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    mine = [line for line in lines if line.get("correlation") == answer.headers["correlation-id"]]
    [logged] = [line for line in mine if line["event"] == "unforeseen"]
    assert logged["correlation"] == answer.json()["correlation"]
    assert logged["exception"][0]["exc_type"] == "KeyError"
    assert "locals" not in json.dumps(logged)
    [request] = [line for line in mine if line["event"] == "request"]
    assert (request["status"], request["route"], request["correlation"]) == (
        500,
        "/purses/hello/bug",
        logged["correlation"],
    )


@pytest.mark.parametrize(
    "sent",
    [b"POST /purses HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00\x01\x02\r\n\r\n",
     b"GET /purses HTTP/1.1\r\nHost: a\r\nBad Header\r\n\r\n", b"GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http_harms_nobody(shop: Shop, sent: bytes) -> None:
    address = urlsplit(str(shop.http.base_url))
    with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(100).startswith(b"HTTP/1.1 5")
    assert shop.http.get("/health/live").status_code == 200


def test_a_route_that_fastapi_solves_keeps_our_rules(shop: Shop) -> None:
    def echo(body: bytes, query: str = "", **headers: str) -> tuple[int, Any]:
        answer = shop.http.post(f"/purses/hello/echo{query}", content=body, headers={**JSON, **headers})
        assert answer.headers["correlation-id"]
        return answer.status_code, answer.json().get("hello") or answer.json()["type"].rpartition(":")[2]

    me = shop.of()
    assert echo(text(), "?n=4", **me) == (202, "Ada 8 customer")
    assert echo(text(), "?n=11", **me) == (422, "invalid")
    assert echo(text(), **shop.of("analyst")) == (403, "forbidden")
    assert echo(b"{") == (401, "unauthenticated")
    assert echo(b"{", **me) == (422, "invalid")
    assert echo(text(holder="A\0"), **me) == (422, "invalid")
    assert echo(text(note="x" * LIMIT), **me) == (413, "too-large")
    assert echo(text(), **{**me, "Content-Type": "text/plain"}) == (415, "media-type")
    assert shop.http.get("/purses/hello/echo").headers["allow"] == "POST"
