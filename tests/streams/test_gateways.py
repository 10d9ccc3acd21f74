"""The gateway's side: signatures, the test gateway over HTTP in a process of its own, and the adapter that asks it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.interface import Fact, Forged, Unknown, Unreached, open_gateway
from streams.gateways.settings import GatewaySettings
from streams.gateways.signature import HEADER, TOLERANCE_S, sign, verify
from streams.gateways.test import TestGateway
from streams.gateways.test_gateway.cards import CARDS
from tests.kernel.gateway import gateway_process, gateway_settings, running_gateway

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
SECRET, BODY = b"secret", b'{"id":"evt_1"}'


def refused(
    why: str, header: str | None, body: bytes = BODY, now: datetime = NOW, secrets: tuple[bytes, ...] = (SECRET,)
) -> None:
    with pytest.raises(Forged, match=why):
        verify(secrets, header, body, now)


def test_a_signature_holds_for_its_body_its_secret_and_its_time() -> None:
    signed = sign(SECRET, BODY, NOW)
    verify([SECRET], signed, BODY, NOW)
    verify([b"new", SECRET], signed, BODY, NOW)  # while keys change
    refused("does not fit", signed, BODY + b" ")
    refused("does not fit", signed, secrets=(b"other",))
    refused("does not fit", signed, secrets=())
    refused("does not fit", signed.replace("t=1", "t=2"))
    for way in (-1, 1):
        verify([SECRET], signed, BODY, NOW + way * timedelta(seconds=TOLERANCE_S))
        refused("not of now", signed, now=NOW + way * timedelta(seconds=TOLERANCE_S + 1))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "t=",
        "v1=00",
        "t=1",
        "t=x,v1=00",
        "t=1,t=1,v1=00",
        "t=-1,v1=00",
        "t=1e9,v1=00",
        "t=٣,v1=00",
        "t=1,v1=é",
        "t=1,v1=0,v1=0,v1=0,v1=0,v1=0",
        "t=9999999999999,v1=00",
    ],
)
def test_a_signature_that_is_none_is_refused(header: str | None) -> None:
    refused("signature", header)


@for_all(st.text(max_size=200), st.binary(max_size=100))
def test_no_signature_is_ever_guessed_and_none_breaks_it(header: str, body: bytes) -> None:
    with pytest.raises(Forged):
        verify([SECRET], header, body, NOW)


def test_the_shared_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    one, other = (gateway_settings(tmp_path / "keys" / "..") for _ in range(2))
    assert one.test_key("api") == other.test_key("api") != one.test_key("webhook")
    assert (tmp_path / "gateway-secret").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["gateway-secret"]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewaySettings, httpx.Client]]:
    settings = gateway_settings(tmp_path_factory.mktemp("gateway"))
    with running_gateway(settings) as shop:
        yield settings, shop


@asynccontextmanager
async def asking(settings: GatewaySettings) -> AsyncIterator[TestGateway]:
    gateway = open_gateway("test", settings)
    assert isinstance(gateway, TestGateway)
    try:
        yield gateway
    finally:
        await gateway.close()


def pay(token: str, amount: int = 1000) -> Payment:
    return Payment(uuid4(), uuid4(), Money(amount, "EUR"), token)


def told(payment: Payment, facts: Any) -> Payment:
    for one in facts:
        one.call(payment, *one.args)
    payment.check()
    return payment


def names(facts: Any) -> list[str]:
    return [one.call.__name__ for one in facts]


Try = Callable[[TestGateway, Payment], Any]


def run(settings: GatewaySettings, what: Callable[[TestGateway], Any]) -> Any:
    async def main() -> Any:
        async with asking(settings) as gateway:
            return await what(gateway)

    return asyncio.run(main())


def test_every_card_does_what_the_list_says(there: tuple[GatewaySettings, httpx.Client]) -> None:
    settings, shop = there
    listed = shop.get("/").text
    assert all(f"<code>{token}</code><td>{card.does}" in listed for token, card in CARDS.items())

    async def authorise(gateway: TestGateway) -> dict[str, str]:
        async def one(token: str) -> tuple[str, str]:
            payment = pay(token)
            try:
                told(payment, await gateway.authorise(payment))
            except Unknown as unknown:
                return token, str(unknown)
            return token, payment.authorisation

        return dict(await asyncio.gather(*(one(token) for token in CARDS)))

    came = run(settings.model_copy(update={"gateway_timeout_s": 3.0, "test_gateway_hold_s": 5.0}), authorise)
    for token, card in CARDS.items():
        match card.faults.get("authorise"):
            case "lost" | "dropped":
                assert came[token] == "no answer: ReadTimeout"
            case "unavailable":
                assert came[token] == 'it answers 503: {"detail":"try again"}'
            case _:
                refuses = "authorise" in card.refuses
                assert came[token] == ("declined" if refuses else "action_required" if card.action else "authorised")


def test_the_whole_of_a_payment(there: tuple[GatewaySettings, httpx.Client]) -> None:
    settings, shop = there
    payment, capture, refund = pay("tok_visa"), uuid4(), uuid4()

    async def whole(gateway: TestGateway) -> None:
        for _ in range(2):  # everything again does nothing
            told(payment, await gateway.authorise(payment))
            assert payment.held == 1000 or payment.captures
            payment.capture(capture, Money(600, "EUR"))
            told(payment, await gateway.capture(payment, capture, Money(600, "EUR")))
            payment.refund(refund, Money(200, "EUR"))
            told(payment, await gateway.refund(payment, refund, Money(200, "EUR")))
        payment.void()
        told(payment, await gateway.void(payment))
        assert (payment.authorisation, payment.taken, payment.returned, payment.held) == ("voided", 600, 200, 0)
        assert not payment.waiting
        assert names(await gateway.lookup(payment)) == ["captured", "refunded", "voided"]
        assert await gateway.lookup(pay("tok_visa")) == ()

    before = shop.get("/totals").json().get("EUR", {"captured": 0, "refunded": 0})
    run(settings, whole)
    after = shop.get("/totals").json()["EUR"]
    assert (after["captured"] - before["captured"], after["refunded"] - before["refunded"]) == (600, 200)


def test_operations_that_fail(there: tuple[GatewaySettings, httpx.Client]) -> None:
    settings, _ = there

    async def fail(gateway: TestGateway) -> None:
        captured = pay("tok_captureFails")
        told(captured, await gateway.authorise(captured))
        captured.capture(id := uuid4(), Money(1, "EUR"))
        told(captured, await gateway.capture(captured, id, Money(1, "EUR")))
        assert captured.captures[id].state == "failed" and captured.held == 1000
        refunded = pay("tok_refundFails")
        told(refunded, await gateway.authorise(refunded))
        refunded.capture(id := uuid4(), Money(1000, "EUR"))
        told(refunded, await gateway.capture(refunded, id, Money(1000, "EUR")))
        refunded.refund(id := uuid4(), Money(1, "EUR"))
        told(refunded, await gateway.refund(refunded, id, Money(1, "EUR")))
        assert refunded.refunds[id].state == "failed"
        assert names(await gateway.void(refunded)) == ["authorised", "captured", "refund_failed", "voided"]
        stranger = pay("tok_nobody")
        assert told(stranger, await gateway.authorise(stranger)).authorisation == "declined"

    run(settings, fail)


@pytest.mark.parametrize(("token", "charged"), [("tok_timeoutCharged", True), ("tok_timeoutNotCharged", False)])
def test_a_lost_answer_is_looked_up(there: tuple[GatewaySettings, httpx.Client], token: str, charged: bool) -> None:
    settings, _ = there
    payment = pay(token)

    async def lose(gateway: TestGateway) -> None:
        with pytest.raises(Unknown, match="no answer: ReadTimeout"):
            await gateway.authorise(payment)
        assert names(await gateway.lookup(payment)) == (["authorised"] if charged else [])
        assert names(await gateway.authorise(payment)) == ["authorised"]

    run(settings, lose)


def test_a_reference_is_closed_before_the_gateway_knows_it(there: tuple[GatewaySettings, httpx.Client]) -> None:
    settings, _ = there
    payment = pay("tok_visa")
    payment.void()

    async def close(gateway: TestGateway) -> None:
        assert names(await gateway.void(payment)) == ["voided"]
        assert names(await gateway.authorise(payment)) == ["voided"]  # what was on its way comes too late
        told(payment, await gateway.authorise(payment))

    run(settings, close)
    assert payment.authorisation == "voided" and not payment.transaction


def test_a_gateway_that_is_away_was_not_reached(tmp_path: Path) -> None:
    async def ask(gateway: TestGateway) -> None:
        with pytest.raises(Unreached):
            await gateway.authorise(pay("tok_visa"))

    run(gateway_settings(tmp_path), ask)


def test_one_reference_is_one_payment(there: tuple[GatewaySettings, httpx.Client]) -> None:
    _, shop = there
    payment, asked = f"/payments/{uuid4()}", {"amount": 5, "currency": "EUR", "token": "tok_visa"}
    assert shop.put(payment, json=asked).status_code == 200
    assert shop.put(payment, json={**asked, "amount": 6}).status_code == 409
    capture = f"{payment}/captures/{uuid4()}"
    assert shop.put(capture, json={"amount": 3}).json()["captured"] == 3
    assert shop.put(capture, json={"amount": 4}).status_code == 409
    assert (
        shop.put(f"{payment}/captures/{uuid4()}", json={"amount": 3}).json()["operations"][1]["code"]
        == "amount_too_large"
    )
    assert (
        shop.put(f"{payment}/refunds/{uuid4()}", json={"amount": 4}).json()["operations"][2]["code"]
        == "amount_too_large"
    )
    assert shop.put(f"/payments/{uuid4()}/captures/{uuid4()}", json={"amount": 3}).status_code == 404


def test_only_the_shop_asks(there: tuple[GatewaySettings, httpx.Client]) -> None:
    settings, _ = there
    for headers in ({}, {"authorization": "Bearer wrong"}):
        answer = httpx.get(f"{settings.test_gateway_url}/payments/{uuid4()}", headers=headers)
        assert answer.status_code == 401


def test_what_was_answered_survives_kill_9(tmp_path: Path) -> None:
    settings = gateway_settings(tmp_path)
    child, payment = gateway_process(settings), pay("tok_visa")
    for start in range(3):
        child.start()
        child.wait_ready()
        ask = TestGateway.lookup if start else TestGateway.authorise
        facts = run(settings, partial(ask, payment=payment))
        assert names(told(payment, facts) and facts) == ["authorised"]
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.stop()


class Listener:
    """Where webhooks go: keeps them, and answers with `status`."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status, self.came = 200, threading.Condition()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with listener.came:
                    listener.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                    self.send_response(listener.status)
                    self.end_headers()
                    listener.came.notify_all()

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def wait(self, number: int) -> list[tuple[dict[str, str], bytes]]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.got) >= number, timeout=20), self.got
            return list(self.got)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


def test_webhooks_tell_of_every_change_until_they_are_accepted(tmp_path: Path, listener: Listener) -> None:
    settings = gateway_settings(tmp_path, test_gateway_webhook=listener.url)
    listener.status = 500
    with running_gateway(settings) as shop:
        action = pay("tok_requiresAction")
        facts = run(settings, lambda gateway: gateway.authorise(action))
        assert names(told(action, facts) and facts) == ["action_required"]
        assert action.url.startswith(settings.test_gateway_url)
        assert "Is this payment yours?" in httpx.get(action.url).text
        assert httpx.post(action.url, params={"answer": "maybe"}).status_code == 422
        assert httpx.post(f"{action.url}x", params={"answer": "yes"}).status_code == 404
        for _ in range(2):
            assert "Thank you" in httpx.post(action.url, params={"answer": "yes"}).text
        listener.wait(2)
        listener.status = 200
        first = listener.wait(4)
        ids = {json.loads(body)["id"] for _, body in first}
        assert len(ids) == 2  # each of the two came again

        twice = pay("tok_webhookTwice")
        run(settings, lambda gateway: gateway.authorise(twice))
        copies = [body for _, body in listener.wait(6)[-2:]]
        assert copies[0] == copies[1]
        shop.put(f"/payments/{twice.id}/void")
        listener.wait(8)

        back, capture, refund = pay("tok_visa"), uuid4(), uuid4()
        told(back, run(settings, lambda gateway: gateway.authorise(back))).capture(capture, Money(1000, "EUR"))
        told(back, run(settings, lambda gateway: gateway.capture(back, capture, Money(1000, "EUR"))))
        back.refund(refund, Money(300, "EUR"))
        told(back, run(settings, lambda gateway: gateway.refund(back, refund, Money(300, "EUR"))))
        assert (back.taken, back.returned) == (1000, 300)
        for _ in range(2):  # taken back once
            assert [shop.put(f"/reversals/{one}").status_code for one in (refund, capture)] == [200, 200]
        assert shop.put(f"/reversals/{uuid4()}").status_code == 404
        types = [json.loads(body)["type"] for _, body in listener.wait(13)]
        assert {"payment.refund.reversed", "payment.capture.reversed"} <= set(types)

    gateway = TestGateway(settings)
    for headers, body in listener.wait(13):
        notice = gateway.notice(headers.get, body, datetime.now(UTC))
        assert notice is not None
        told({action.id: action, twice.id: twice, back.id: back}[notice.payment], notice.facts)
        for name, value in ((HEADER, headers[HEADER].replace("v1=", "v1=0")), ("x", "y")):
            with pytest.raises(Forged):
                gateway.notice({**headers, HEADER: "", name: value}.get, body, datetime.now(UTC))
    assert (action.authorisation, twice.authorisation) == ("authorised", "voided")
    assert (back.taken, back.returned, back.held, back.refunds[refund].state) == (0, 0, 1000, "reversed")


def test_what_is_signed_and_is_no_webhook_is_refused(tmp_path: Path) -> None:
    gateway = TestGateway(settings := gateway_settings(tmp_path))
    for body in (
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"id":"1","payment":{"reference":"x"}}',
        b'{"id":"1","payment":{"reference":"%s"}}' % str(uuid4()).encode(),
    ):
        with pytest.raises(Forged, match="none of our webhooks"):
            gateway.notice({HEADER: sign(settings.test_key("webhook"), body, NOW)}.get, body, NOW)


def test_an_authorisation_runs_out_at_the_gateway_too(tmp_path: Path, listener: Listener) -> None:
    settings = gateway_settings(tmp_path, test_gateway_webhook=listener.url)
    with running_gateway(settings):
        payment = pay("tok_expiresSoon")
        told(payment, run(settings, lambda gateway: gateway.authorise(payment)))
        types = [json.loads(body)["type"] for _, body in listener.wait(2)]
        assert types == ["payment.authorised", "payment.voided"]
        assert names(run(settings, lambda gateway: gateway.lookup(payment))) == ["voided"]


def test_there_are_gateways_by_name(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="there is no gateway nobody"):
        open_gateway("nobody", gateway_settings(tmp_path))
    assert Fact(Payment.voided, ("x",)) and UUID(int=1)
