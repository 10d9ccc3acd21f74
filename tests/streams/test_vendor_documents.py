"""What we ask of Stripe and Adyen, and what their stand-ins answer and tell, is what the vendors publish; and that is really looked at."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aggregates.kernel import Money, clock
from aggregates.payment import ALL, Payment
from infra import jars
from streams.gateways.interface import Fact, open_gateway
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from tests.api.kernel.conftest import serving
from tests.kernel import published
from tests.kernel.adyen_facts import disagreements
from tests.kernel.adyen_stand_in import GOOD, AdyenStandIn, body_of, signed
from tests.kernel.gateway import gateway_settings
from tests.kernel.gateway_sites import adyen_fields, stripe_fields
from tests.kernel.held import adyen_api, hold_event, stripe_api
from tests.kernel.mismatch import mismatches
from tests.kernel.openapi import Api
from tests.kernel.published import ADYEN, DOCUMENTS, STRIPE, Another, Published, reason, text, text_of
from tests.kernel.stripe_stand_in import StripeStandIn
from tests.streams.test_gateway_contract import told


@pytest.fixture(autouse=True)
def _documents() -> None:
    for one in DOCUMENTS:
        if why := reason(one):
            pytest.skip(f"{one.name} can't be had here, only what we wrote of it ourselves is held against: {why}")


def test_what_is_not_the_pinned_file_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "cache", lambda: tmp_path)
    monkeypatch.setattr(published, "_go", lambda one, here: b"another text")
    with pytest.raises(Another, match="not the one that is named"):
        text(STRIPE)


@pytest.mark.parametrize("one", DOCUMENTS, ids=lambda one: one.client)
def test_without_a_client_that_fetches_them_nothing_is_held_against_them(
    one: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "cache", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"there is no {one.client} here" in reason.__wrapped__(one)


def test_our_facts_of_adyen_are_those_of_the_document() -> None:
    document = text_of(ADYEN)
    assert document is not None and not list(disagreements(orjson.loads(document)))


def api_of(vendor: str) -> Api:
    api = stripe_api() if vendor == "stripe" else adyen_api()
    assert api is not None
    return api


# What we ask.
@dataclass(frozen=True)
class Asked:
    """One request of an adapter's own."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: str

    def send(self, app: ASGIApp) -> httpx.Response:
        async def main() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vendor") as client:
                url, headers = f"{self.path}?{self.query}", dict(self.headers)
                return await client.request(self.method, url, headers=headers, content=self.body.encode())

        return asyncio.run(main())


Vendors = dict[str, tuple[ASGIApp, Mapping[str, Asked]]]


class Recorder:
    """Lets requests through; `seen` are the first ones of their kind, by their method and the last part of their path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.seen: dict[str, Asked] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        message = await receive()
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name != b"content-length"}
        asked = Asked(
            scope["method"], scope["path"], scope["query_string"].decode(), headers, message.get("body", b"").decode()
        )
        self.seen.setdefault(f"{asked.method} {asked.path.rpartition('/')[2]}", asked)
        again = [message]

        async def first() -> Message:
            return again.pop() if again else await receive()

        await self._app(scope, first, send)


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Vendors:
    """Each vendor's stand-in, and what its adapter asks of it for a payment that is captured, refunded and voided in part, and for a card that is saved."""
    folder = tmp_path_factory.mktemp("vendors")
    found: Vendors = {}
    for vendor, stand_in, fields, method in (
        ("stripe", StripeStandIn(), stripe_fields, "pm_card_visa"),
        ("adyen", AdyenStandIn(), adyen_fields, "adyen_M5N7TQ4TG5PFWR50"),
    ):
        recorder = Recorder(stand_in.app)
        with serving(recorder) as url:
            asyncio.run(
                all_of(vendor, gateway_settings(folder, gateways={vendor: Terms()}, **fields(url)), method, stand_in)
            )
        found[vendor] = stand_in.app, recorder.seen
    assert not mismatches()
    return found


async def all_of(vendor: str, settings: GatewaySettings, method: str, stand_in: StripeStandIn | AdyenStandIn) -> None:
    gateway = open_gateway(vendor, settings)
    payment, capture, refund = Payment(uuid4(), uuid4(), Money(1000, "EUR"), method), uuid4(), uuid4()

    def hear(facts: Sequence[Fact]) -> None:
        heard = [gateway.notice(headers.get, body, clock.now()) for headers, body in stand_in.webhooks()]
        told(payment, [*facts, *(one for notice in heard if notice for one in notice.facts)])

    hear(await gateway.authorise(payment))
    payment.capture(capture, Money(600, "EUR"))
    hear(await gateway.capture(payment, capture, Money(600, "EUR")))
    payment.refund(refund, Money(200, "EUR"))
    hear(await gateway.refund(payment, refund, Money(200, "EUR")))
    payment.void()
    hear(await gateway.void(payment))
    assert (payment.taken, payment.returned, payment.authorisation) == (600, 200, "voided")
    form = (stand_in.card(), {}) if isinstance(stand_in, StripeStandIn) else ("", stand_in.form(GOOD))
    token = await gateway.attach(payment.customer, uuid4(), *form)
    assert isinstance(token, str)
    for forgotten in (token, ALL):
        await gateway.detach(payment.customer, forgotten)
    await gateway.close()


Spoil = Callable[[Asked], Asked]  # something of a request is not as it should be any more


def text_to(old: str, new: str) -> Spoil:
    """Another text in the body. `old` is an expression."""
    return lambda one: replace(one, body=re.sub(old, new, one.body))


def path_to(old: str, new: str) -> Spoil:
    return lambda one: replace(one, path=one.path.replace(old, new))


def query_to(old: str, new: str) -> Spoil:
    return lambda one: replace(one, query=re.sub(old, new, one.query))


def header_to(name: str, value: str) -> Spoil:
    return lambda one: replace(one, headers={**one.headers, name: value})


def without(name: str) -> Spoil:
    return lambda one: replace(one, headers={other: of for other, of in one.headers.items() if other != name})


SPOILT: list[tuple[str, str, Spoil, str]] = [
    ("stripe", "POST payment_intents", text_to("amount=", "sum="), "'sum' was unexpected"),
    ("stripe", "POST payment_intents", text_to("&?currency=eur", ""), '"currency" is a required property'),
    ("stripe", "POST payment_intents", text_to("amount=1000", "amount=10.00"), '"10.00" is not of type "integer"'),
    ("stripe", "POST capture", text_to("=600", "=six"), '"six" is not of type "integer"'),
    ("stripe", "POST refunds", text_to("$", "&memo=x"), "'memo' was unexpected"),
    ("stripe", "POST confirm", text_to("$", "&payment_method_options[card][x]=1"), "'x' was unexpected"),
    ("stripe", "POST payment_intents", text_to("=manual", "=by_hand"), '"by_hand" is not one of'),
    ("stripe", "POST payment_intents", text_to("=eur", "=EUR"), "currencies are in lower case"),
    ("stripe", "POST refunds", path_to("refunds", "refund"), "there is no POST /v1/refund"),
    ("stripe", "POST refunds", header_to("content-type", "application/json"), "not of application/json"),
    ("stripe", "POST refunds", without("idempotency-key"), "there is no key"),
    ("stripe", "POST payment_intents", header_to("stripe-version", "2020-08-27"), "the version is the SDK's"),
    ("stripe", "GET refunds", query_to("^", "since=1&"), "query it: Additional properties"),
    ("stripe", "POST attach", text_to("customer=", "client="), "'client' was unexpected"),
    ("stripe", "POST customers", text_to("metadata", "meta"), "'meta' was unexpected"),
    ("adyen", "GET storedPaymentMethods", query_to("shopperRef", "ref"), "query it: Additional properties"),
    ("adyen", "POST payments", text_to('"reference"', '"merchantReference"'), "'merchantReference' was unexpected"),
    ("adyen", "POST captures", text_to('"merchantAccount": ?"\\w+", ?', ""), '"merchantAccount" is a required property'),
    ("adyen", "POST captures", text_to('"value": ?600', '"value":"600"'), '"600" is not of type "integer"'),
    ("adyen", "POST refunds", text_to('"value": ?200', '"value":200.5'), '200.5 is not of type "integer"'),
    ("adyen", "POST refunds", text_to('"value": ?200', '"value":200.0'), "a whole number of minor units"),
    ("adyen", "POST payments", text_to("^\\{", '{"memo":"x",'), "'memo' was unexpected"),
    ("adyen", "POST payments", text_to('"storedPay', '"x":"1","storedPay'), "'x' was unexpected"),
    ("adyen", "POST payments", text_to("ContAuth", "Continued"), '"Continued" is not one of'),
    ("adyen", "POST payments", text_to("EUR", "eur"), "currencies are in capitals"),
    ("adyen", "POST captures", path_to("captures", "capture"), "there is no POST"),
    ("adyen", "POST payments", path_to("/v71/", "/v70/"), "there is no POST /v70/payments"),
    ("adyen", "POST payments", header_to("content-type", "application/x-www-form-urlencoded"), "not of application/x-www"),
    ("adyen", "POST captures", without("idempotency-key"), "a key for idempotency"),
    ("adyen", "POST refunds", text_to("TitanCOM", "OtherCOM"), "the merchant account is not known"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("vendor", "which", "spoil", "said"), SPOILT, ids=[f"{vendor}: {said}" for vendor, _, _, said in SPOILT]
)
def test_a_request_that_is_not_as_published_is_refused_and_told(
    vendor: str, which: str, spoil: Spoil, said: str, vendors: Vendors
) -> None:
    app, asked = vendors[vendor]
    good, bad = asked[which], spoil(asked[which])
    assert bad != good
    assert good.send(app).status_code < 300 and not mismatches()  # under its key it is not done again
    answer = bad.send(app)
    assert answer.status_code == 400 and said in answer.text.replace('\\"', '"')
    [wrong] = mismatches()
    assert said in wrong


# What the stand-ins say.
@pytest.mark.parametrize(
    ("vendor", "path", "status", "body", "said"),
    [
        ("stripe", "/v1/refunds", 200, b'{"id": "re_1", "object": "refund"}', '"amount" is a required property'),
        ("stripe", "/v1/refunds", 400, b'{"error": {"type": "declined"}}', '"declined" is not one of'),
        ("stripe", "/v1/refunds", 200, b"thanks", "is no JSON"),
        ("adyen", "/v71/payments", 200, b'{"resultCode": "Accepted"}', '"Accepted" is not one of'),
        ("adyen", "/v71/payments", 200, b'{"reference": "1"}', "'reference' was unexpected"),
        ("adyen", "/v71/payments", 201, b"{}", "never answers 201"),
    ],
)
def test_an_answer_that_is_not_as_published_is_told(
    vendor: str, path: str, status: int, body: bytes, said: str
) -> None:
    assert said in api_of(vendor).wrong_answer("POST", path, status, {"content-type": "application/json"}, body)


REFUND = {"id": "re_1", "object": "refund", "amount": 1, "currency": "eur", "created": 1, "status": "succeeded"}
EVENT = {
    "id": "evt_1",
    "object": "event",
    "type": "refund.created",
    "created": 1,
    "livemode": False,
    "pending_webhooks": 1,
}


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"type": "refund.made"}, "no event refund.made"),
        ({"livemode": "false"}, 'livemode: "false" is not of type "boolean"'),
        ({"data": {"object": {**REFUND, "amount": "1"}}}, '"1" is not of type "integer"'),
        ({"data": {"object": {**REFUND, "payment": "pi_1"}}}, "'payment' was unexpected"),
        ({"sent": 1}, "'sent' was unexpected"),
    ],
)
def test_an_event_that_is_not_as_published_is_told(event: dict[str, Any], said: str) -> None:
    good = {**EVENT, "data": {"object": REFUND}}
    hold_event(good)
    assert not mismatches()
    hold_event({**good, **event})
    [wrong] = mismatches()
    assert said in wrong


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"eventCode": "CAPTURED"}, '"CAPTURED" is not one of'),
        ({"success": "yes"}, '"yes" is not one of "true" or "false"'),
        ({"amount": {"value": "1", "currency": "EUR"}}, '"1" is not of type "integer"'),
        ({"payment": "1"}, "'payment' was unexpected"),
    ],
)
def test_a_notification_that_is_not_as_published_is_told(field: dict[str, Any], said: str) -> None:
    good = {
        "eventCode": "CAPTURE", "pspReference": "P", "originalReference": "O", "merchantReference": "M", "merchantAccountCode": "A",
        "amount": {"value": 1, "currency": "EUR"}, "success": "true", "eventDate": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    body_of(signed(good))
    assert not mismatches()
    body_of(signed({**good, **field}, sign=lambda item, key: b"any"))
    [wrong] = mismatches()
    assert said in wrong
