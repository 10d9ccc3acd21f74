"""Payments over HTTP: who sees and does what, and webhooks that are forged, old, doubled, in any order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

import api.payment
from aggregates.kernel import Origin, Store
from aggregates.kernel.migrate import migrate as migrate_events
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.payment import Payment
from api.kernel import app_of
from api.kernel.app import App
from api.kernel.migrate import migrate as migrate_api
from infra.token import make_keys, token
from projections.kernel.clauses import PROJECTIONS
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from streams.gateways.signature import HEADER, TOLERANCE_S, sign
from streams.gateways.test_gateway.book import Book
from streams.kernel.migrate import CIRCUITS, make
from tests.api.kernel.conftest import serving
from tests.kernel.gateway import with_gateways
from tests.kernel.servers import Stack
from tests.kernel.topic import Live, settings_of

CARD = "4242424242424242"


def once(by: dict[str, str]) -> dict[str, str]:
    """The headers with a key of their own."""
    return {**by, "Idempotency-Key": uuid4().hex}


class Till:
    """The service of payments on real stores, its read models following, and a gateway's book to write webhooks from."""

    def __init__(self, http: httpx.Client, settings: GatewaySettings, app: App) -> None:
        self.http, self.settings, self.app = http, settings, app
        self.shop = self.of("service")
        self.book = Book(Path(":memory:"), "http://gateway")

    def of(self, role: str, subject: UUID | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {token(self.settings, role, subject or uuid4())}"}

    def asked(self, **more: Any) -> dict[str, Any]:
        given = {"order": str(uuid4()), "customer": str(uuid4()), "amount": 1000, "currency": "EUR"}
        return {**given, "method": "tok_visa", "gateway": "test", **more}

    def pay(self, customer: UUID | None = None, **more: Any) -> str:
        body = self.asked(customer=str(customer or uuid4()), **more)
        answer = self.http.post("/payments", json=body, headers=once(self.shop))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def webhook(
        self, document: Any, id: str = "", *, at: datetime | None = None, secret: bytes = b"", gateway: str = "test"
    ) -> httpx.Response:
        body = json.dumps({"id": id or f"evt_{uuid4().hex}", "type": "payment.changed", "payment": document}).encode()
        known = self.settings.at(gateway if gateway in self.settings.gateways else "test")
        signed = sign(secret or known.test_key("webhook"), body, at or datetime.now(UTC))
        return self.http.post(f"/payments/webhooks/{gateway}", content=body, headers={HEADER: signed})

    def authorised(self, customer: UUID | None = None) -> str:
        id = self.pay(customer)
        answer = self.webhook(self.book.authorise(id, 1000, "EUR", "tok_visa", datetime.now(UTC).timestamp()))
        assert answer.json() == {"outcome": "recorded"}
        return id

    def read(
        self, id: str, by: dict[str, str] | None = None, path: str = "", after: str | None = None
    ) -> httpx.Response:
        params = {"after": after} if after else {}
        return self.http.get(f"/payments/{id}{path}", params=params, headers=by or self.shop)

    def row(self, id: str, by: dict[str, str] | None = None) -> dict[str, Any]:
        """The read model once it shows all that is stored."""
        events = self.read(id, by, "/events").json()["items"]
        answer = self.read(id, by, after=events[-1]["position"])
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def till(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    name, server = f"test_{uuid4().hex}", stack["postgres"]
    folder = tmp_path_factory.mktemp("till")
    dsn = urlsplit(server)._replace(path=f"/{name}").geturl()
    plain = settings_of(dsn, stack["redis"], folder)
    given = GatewaySettings(
        **plain.model_dump(exclude_unset=True),
        test_gateway_secret=folder / "gateway",
        gateways={"test": Terms(), "two": Terms(adapter="test"), "vault": Terms(adapter="test", takes=("pm_",))},
    )
    with psycopg.connect(server, autocommit=True) as connection, with_gateways(given) as settings:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            make_keys(settings)
            migrate_api(settings)
            migrate_events(dsn, ["order", "payment", "wallet"])
            live = Live(settings, [PROJECTIONS["projections.payment"]], sinks=("postgres",))
            app = app_of(api.payment.router, settings=settings)
            with serving(app) as url, live.following():
                with httpx.Client(base_url=url, timeout=20) as http:
                    yield Till(http, settings, app)
            live.close()
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def test_a_payment_is_asked_for_captured_and_refunded(till: Till) -> None:
    id = till.authorised()
    capture, refund = str(uuid4()), str(uuid4())
    body = {"capture": capture, "amount": 600, "currency": "EUR"}
    for _ in range(2):
        assert till.http.post(f"/payments/{id}/capture", json=body, headers=till.shop).status_code == 200
    more = till.http.post(f"/payments/{id}/capture", json={**body, "amount": 601}, headers=till.shop)
    assert more.status_code == 409 and more.headers["content-type"] == "application/problem+json"
    for wrong, status in (
        ({"amount": 401}, 409),
        ({"currency": "USD"}, 409),
        ({"amount": 0}, 422),
        ({"amount": 10**30}, 422),
    ):
        other = {"capture": str(uuid4()), "amount": 400, "currency": "EUR", **wrong}
        assert till.http.post(f"/payments/{id}/capture", json=other, headers=till.shop).status_code == status
    till.webhook(till.book.capture(id, capture, 600, 0))
    body = {"refund": refund, "amount": 200, "currency": "EUR"}
    assert till.http.post(f"/payments/{id}/refund", json=body, headers=till.shop).status_code == 200
    till.webhook(till.book.refund(id, refund, 200, 0))
    assert till.http.post(f"/payments/{id}/void", headers=till.shop).status_code == 200
    till.webhook(till.book.void(id, 0))
    row = till.row(id)
    assert (row["authorisation"], row["captured"], row["refunded"], row["amount"]) == ("voided", 600, 200, 1000)
    shown = till.read(id, path="/operations").json()["items"]
    assert [(one["kind"], one["amount"], one["state"]) for one in shown] == [
        ("capture", 600, "done"),
        ("refund", 200, "done"),
    ]


def test_no_card_number_gets_in_or_comes_back(till: Till) -> None:
    for method in (CARD, f"tok_{CARD}", f"tok_x{CARD[:8]}-{CARD[8:]}", "visa"):
        answer = till.http.post("/payments", json=till.asked(method=method), headers=once(till.shop))
        assert answer.status_code == (409 if "_" in method else 422), answer.text
        assert CARD not in answer.text.replace("-", "")
    assert till.http.post("/payments", json=till.asked(amount=AMOUNT_MAX), headers=once(till.shop)).status_code == 201
    assert (
        till.http.post("/payments", json=till.asked(amount=AMOUNT_MAX + 1), headers=once(till.shop)).status_code == 422
    )


def test_a_customer_sees_the_own_payments_and_changes_none(till: Till) -> None:
    ada, bob = uuid4(), uuid4()
    hers, his = till.authorised(ada), till.authorised(bob)
    till.row(hers), till.row(his)
    as_ada = till.of("customer", ada)
    assert [one["id"] for one in till.http.get("/payments", headers=as_ada).json()["items"]] == [hers]
    assert till.http.get("/payments", params={"customer": str(bob)}, headers=as_ada).json()["items"] != [his]
    assert till.row(hers, as_ada)["customer"] == str(ada)
    for path in ("", "/events", "/operations"):
        assert till.read(hers, as_ada, path).status_code == 200
        assert till.read(his, as_ada, path).status_code == 404
        assert till.read(str(uuid4()), as_ada, path).status_code == 404
        assert till.http.get(f"/payments/{hers}{path}").status_code == 401
        assert till.read(his, till.of("admin"), path).status_code == 200
    amount = {"amount": 1, "currency": "EUR"}
    doing = {"capture": {"capture": str(uuid4()), **amount}, "void": None, "refund": {"refund": str(uuid4()), **amount}}
    for role in ("customer", "seller", "analyst"):
        by = till.of(role, ada)
        assert till.http.post("/payments", json=till.asked(customer=str(ada)), headers=by).status_code == 403
        for what, body in doing.items():
            assert till.http.post(f"/payments/{hers}/{what}", json=body, headers=by).status_code == 403
    assert till.http.post(f"/payments/{hers}/void").status_code == 401
    assert till.row(hers)["version"] == 2


def test_a_webhook_is_believed_only_with_its_signature_and_of_now(till: Till) -> None:
    id = till.pay()
    document = till.book.authorise(id, 1000, "EUR", "tok_visa", 0)
    now = datetime.now(UTC)
    assert till.webhook(document, secret=b"wrong").status_code == 403
    for age in (TOLERANCE_S + 60, -TOLERANCE_S - 60):
        old = till.webhook(document, at=now - timedelta(seconds=age))
        assert old.status_code == 403 and old.json()["detail"] == "the signature is not of now"
    assert till.webhook(document, gateway="nobody").status_code == 404
    assert till.webhook(document, gateway="interface").status_code == 404
    assert till.webhook(document, gateway="No").status_code == 422
    url, body = "/payments/webhooks/test", b"{}"
    assert till.http.post(url, content=body).status_code == 403
    assert till.http.post(url, content=body, headers={HEADER: "t=1,v1=00"}).status_code == 403
    assert till.http.post(url, content=b"x" * 10**7).status_code == 413
    signed = sign(till.settings.test_key("webhook"), body, now)
    assert (
        till.http.post(url, content=body, headers={HEADER: signed}).status_code == 403
    )  # signed, and no webhook of ours
    assert till.http.post(url, content=b"{} ", headers={HEADER: signed}).status_code == 403
    assert till.row(id)["authorisation"] == "requested"


def test_a_webhook_counts_once_and_what_cannot_be_is_ignored(till: Till) -> None:
    id, event = till.pay(), f"evt_{uuid4().hex}"
    document = till.book.authorise(id, 1000, "EUR", "tok_visa", datetime.now(UTC).timestamp())
    assert till.webhook(document, event).json() == {"outcome": "recorded"}
    assert till.webhook(document, event).json() == {"outcome": "known"}
    assert till.webhook(document).json() == {"outcome": "recorded"}  # another one with the same news
    assert till.row(id)["version"] == 2
    nobody = {**document, "reference": str(uuid4())}
    assert till.webhook(nobody).json() == {"outcome": "ignored"}
    declined = {**document, "status": "declined", "code": "no", "reason": "No."}
    assert till.webhook(declined).json() == {"outcome": "ignored"}
    unasked = {
        **document,
        "operations": [{"kind": "capture", "status": "done", "reference": str(uuid4()), "amount": 1}],
    }
    assert till.webhook(unasked).json() == {"outcome": "ignored"}
    assert till.row(id)["version"] == 2


def test_each_gateway_is_heard_of_its_own_payments_alone(till: Till) -> None:
    id = till.pay(gateway="two")
    document = till.book.authorise(id, 1000, "EUR", "tok_visa", 0)
    assert till.webhook(document).json() == {"outcome": "ignored"}  # genuine, and from one that is not in charge
    assert till.webhook(document, gateway="two", secret=till.settings.test_key("webhook")).status_code == 403
    assert till.row(id)["authorisation"] == "requested"
    assert till.webhook(document, gateway="two").json() == {"outcome": "recorded"}
    routed = till.pay(gateway="")
    document = till.book.authorise(routed, 1000, "EUR", "tok_visa", 0)
    assert till.webhook(document).json() == {"outcome": "ignored"}  # nobody has been asked
    unknown = till.http.post("/payments", json=till.asked(gateway="three"), headers=once(till.shop))
    assert unknown.status_code == 409 and "there is no gateway three" in unknown.text


def test_who_runs_the_shop_sees_which_gateways_answer(till: Till) -> None:
    def seen() -> dict[str, bool]:
        answer = till.http.get("/payments/gateways", headers=till.shop)
        return {one["gateway"]: one["failing"] for one in answer.json()["items"]}

    with psycopg.connect(till.settings.postgres, autocommit=True) as connection:
        make(connection, CIRCUITS)
        assert seen() == {"test": False, "two": False, "vault": False}
        connection.execute("INSERT INTO gateway_circuits VALUES ('two', 'a', false, now()), ('two', 'b', true, now())")
        assert seen() == {"test": False, "two": True, "vault": False}
        connection.execute("UPDATE gateway_circuits SET until = now() - interval '16 minutes'")
        assert seen() == {
            "test": False,
            "two": False,
            "vault": False,
        }  # that process has said nothing since: it may be no more
        connection.execute("UPDATE gateway_circuits SET closed = true, until = now()")
        assert seen() == {"test": False, "two": False, "vault": False}
    assert till.http.get("/payments/gateways", headers=till.of("customer")).status_code == 403


def test_a_gateway_is_not_slowed_down_by_those_who_forge_its_webhooks(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = till.app.stores
    assert stores is not None
    monkeypatch.setattr(stores, "limits", stores.limits.model_copy(update={"ip_per_s": 0.01, "ip_burst": 5}))
    monkeypatch.setattr(stores.limiter, "_prefix", f"test-{uuid4().hex}:rate:")
    monkeypatch.setattr(stores.limiter, "_leases", {})
    document = till.book.authorise(till.pay(), 1000, "EUR", "tok_visa", 0)
    assert [till.webhook(document).status_code for _ in range(10)] == [200] * 10
    assert [till.webhook(document, secret=b"wrong").status_code for _ in range(7)] == [403] * 5 + [429] * 2
    assert till.webhook(document, gateway="nobody").status_code == 429
    assert [till.webhook(document).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("seed", range(4))
def test_webhooks_in_any_order_at_once_and_doubled_give_one_state(till: Till, seed: int) -> None:
    dice, id = Random(seed), till.authorised()
    said = [till.book.find(id)]
    for amount in (300, 200, 500):
        capture = str(uuid4())
        body = {"capture": capture, "amount": amount, "currency": "EUR"}
        assert till.http.post(f"/payments/{id}/capture", json=body, headers=till.shop).status_code == 200
        said.append(till.book.capture(id, capture, amount, 0))
    said.append(till.book.reverse(capture, 0))  # the last one was done, and fails after all
    deliveries = [(document, f"evt_{id}_{n}") for n, document in enumerate(said)] * 3
    dice.shuffle(deliveries)
    with ThreadPoolExecutor(6) as senders:
        answers = list(senders.map(lambda one: till.webhook(*one).status_code, deliveries))
    assert set(answers) == {200}
    row = till.row(id)
    assert (row["captured"], row["authorisation"]) == (500, "authorised")
    kinds = [one["type"] for one in till.read(id, path="/events").json()["items"]]
    assert kinds.count("payment.Captured") - kinds.count("payment.CaptureReversed") == 2
    assert kinds.count("payment.Authorised") == 1
    states = {one["id"]: one["state"] for one in till.read(id, path="/operations").json()["items"]}
    assert states[capture] == "reversed" and sorted(states.values()) == ["done", "done", "reversed"]


def test_the_id_of_a_webhook_is_in_the_commit(till: Till) -> None:
    """It is told as a command of the store, so a crash between the two cannot be."""
    id = till.authorised()

    async def actors() -> list[str]:
        async with Store.open(till.settings.postgres) as store:
            assert store.commands(Origin("user:test"))
            return [one.actor for one in await store.history(Payment, UUID(id))]

    assert asyncio.run(actors())[-1] == "gateway:test"


def way(token: str = "tok_visa", **more: Any) -> dict[str, Any]:
    return {"gateway": "test", "token": token, "brand": "visa", "last_four": "4242", "expires": "2031-09", **more}


def test_a_customer_keeps_ways_to_pay(till: Till) -> None:
    ada, bob = till.of("customer"), till.of("customer")
    one, two = uuid4(), uuid4()

    def put(id: UUID, body: dict[str, Any], by: dict[str, str] = ada, status: int = 200) -> str:
        answer = till.http.put(f"/payments/methods/{id}", json=body, headers=by)
        assert answer.status_code == status, answer.text
        return str(answer.json().get("position"))

    def kept(after: str, by: dict[str, str] = ada) -> list[dict[str, Any]]:
        answer = till.http.get("/payments/methods", params={"after": after}, headers=by)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["items"]
        return sorted(items, key=lambda item: item["method"] == str(two))

    put(one, way())
    put(two, way("tok_mastercard", brand="mastercard", last_four="4444"))
    assert put(one, way()) == put(one, way())  # the same again is no change, though it is sealed anew
    last = put(one, way(expires="2032-01"))
    shown = kept(last)
    assert shown[0] == {
        "method": str(one), "gateway": "test", "brand": "visa", "last_four": "4242", "expires": "2032-01", "preferred": True,
    }  # fmt: skip
    assert (shown[1]["last_four"], shown[1]["preferred"]) == ("4444", False)
    last = till.http.post(f"/payments/methods/{two}/prefer", headers=ada).json()["position"]
    assert [item["preferred"] for item in kept(last)] == [False, True]
    for path in (f"/payments/methods/{one}/prefer", f"/payments/methods/{uuid4()}/prefer"):
        assert till.http.post(path, headers=bob).status_code == 404  # others' are not there
    theirs = put(one, way("tok_webhookTwice"), bob)  # ids are each customer's own
    assert [item["brand"] for item in kept(theirs, bob)] == ["visa"]
    assert till.http.delete(f"/payments/methods/{one}", headers=bob).status_code == 200
    assert len(kept(last)) == 2
    last = till.http.delete(f"/payments/methods/{two}", headers=ada).json()["position"]
    assert [(item["method"], item["preferred"]) for item in kept(last)] == [(str(one), False)]
    for wrong in ({"gateway": "nobody"}, {"token": f"tok_{CARD}"}):
        put(uuid4(), way(**{"token": "tok_webhookTwice", **wrong}), ada, 409)
    for wrong in ({"last_four": CARD}, {"brand": CARD}, {"expires": "2031-13"}, {"token": CARD}, {"number": CARD}):
        answer = till.http.put(f"/payments/methods/{uuid4()}", json={**way("tok_webhookTwice"), **wrong}, headers=ada)
        assert answer.status_code == 422 and CARD not in answer.text
    both: dict[str, Any] = {"details": {"encryptedCardNumber": "x"}}
    for more, status in ((both, 409), ({"token": None}, 409), ({"token": None, "details": {"number": "x"}}, 422)):
        put(uuid4(), {**way("tok_captureFails"), **more}, ada, status)
    for encrypted, why in ((CARD, "is not encrypted"), ("adyenjs_0_1_25$x", "no such card")):  # its form makes tokens
        body = {**way(), "token": None, "details": {"encryptedCardNumber": encrypted}}
        answer = till.http.put(f"/payments/methods/{uuid4()}", json=body, headers=ada)
        assert answer.status_code == 409 and why in answer.text and encrypted not in answer.text


def test_what_its_gateway_declines_or_does_not_answer_is_not_saved(till: Till) -> None:
    ada, id, key = till.of("customer"), uuid4(), {"Idempotency-Key": uuid4().hex}

    def put(body: dict[str, Any], status: int, **headers: str) -> dict[str, Any]:
        answer = till.http.put(f"/payments/methods/{id}", json=body, headers={**ada, **headers})
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def kept(after: str | None = None) -> list[str]:
        answer = till.http.get("/payments/methods", params={"after": after} if after else {}, headers=ada)
        return [one["method"] for one in answer.json()["items"]]

    assert "The card has expired." in put(way("tok_expiredCard"), 409)["detail"]
    lost = put(way("tok_timeoutAttach"), 503, **key)
    assert lost["detail"] == "test gives no answer: nothing is saved yet, send it again" and kept() == []
    made = put(way("tok_timeoutAttach"), 200, **key)  # it was attached all the same, and is once
    assert kept(made["position"]) == [str(id)] and made["confirm"] is None
    assert put(way("tok_timeoutAttach"), 200, **key)["position"] == made["position"]
    put(way("tok_visa"), 422, **key)


def test_a_payment_is_made_with_a_way_to_pay_that_is_kept(till: Till) -> None:
    ada, old, new = uuid4(), uuid4(), uuid4()
    by = till.of("customer", ada)
    for id, body in ((new, way(gateway="two")), (old, way("tok_webhookTwice", expires="2024-02"))):
        assert till.http.put(f"/payments/methods/{id}", json=body, headers=by).status_code == 200
    asked = {"order": str(uuid4()), "customer": str(ada), "amount": 1000, "currency": "EUR"}

    def pay(status: int, **more: Any) -> Any:
        answer = till.http.post("/payments", json={**asked, **more}, headers=once(till.shop))
        assert answer.status_code == status, answer.text
        return answer.json()

    row = till.row(pay(201, saved=str(new))["id"])
    assert (row["method"], row["gateway"]) == ("tok_visa", "two")
    assert "expired" in pay(409, saved=str(old))["detail"]
    pay(404, saved=str(uuid4()))
    pay(404, saved=str(new), customer=str(uuid4()))  # another customer's is not there
    pay(409, saved=str(new), method="tok_visa")
    pay(409)
    assert till.http.delete(f"/payments/methods/{new}", headers=by).status_code == 200
    pay(404, saved=str(new))


def test_a_gateway_is_sent_no_token_of_another_vendor(till: Till) -> None:
    asked = till.asked(gateway="vault")
    for method, status in (("tok_visa", 409), ("pm_1", 201)):
        answer = till.http.post("/payments", json={**asked, "method": method}, headers=once(till.shop))
        assert (answer.status_code, "knows no such token" in answer.text) == (status, status == 409)
        body, by = way(method, gateway="vault"), till.of("customer")
        kept = till.http.put(f"/payments/methods/{uuid4()}", json=body, headers=by)
        assert kept.status_code == 409
        assert ("There is no such card" in kept.text) is (status == 201)  # it was asked, and is a test gateway
