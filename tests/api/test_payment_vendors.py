"""Stripe and Adyen from the API to the read models: a payment over HTTP, the reactor, the vendor's stand-in, its webhooks and reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar
from unittest.mock import patch
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest

import api.payment
import streams.methods
import streams.reconciliation
import streams.reversal
from aggregates.kernel import Aggregate, Money, Origin, Recorded, Store, clock, wire
from aggregates.kernel.migrate import migrate as migrate_events
from aggregates.kernel.money import Line
from aggregates.order import Order
from aggregates.payment import CaptureReversed, MethodRemoved, Payment, Reconciliation, RefundReversed
from aggregates.wallet import Wallet, wallet_id
from api.kernel import app_of
from api.kernel.migrate import migrate as migrate_api
from infra.reconcile import main as reconcile
from infra.token import make_keys
from projections.kernel.clauses import PROJECTIONS
from schemas import Address, Sealed
from streams.gateways.interface import open_gateway
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from tests.api.kernel.conftest import serving
from tests.api.test_payment import Till
from tests.kernel.gateway import environment
from tests.kernel.gateway_sites import Site, site
from tests.kernel.paying import at_desk
from tests.kernel.servers import Stack
from tests.kernel.topic import Live, settings_of, stored

A = TypeVar("A", bound=Aggregate)
VENDORS = ("stripe", "adyen")


class Shop(Till):
    """A till whose payments go to the vendors by their tokens, with the reactor at its store."""

    def __init__(
        self, http: httpx.Client, settings: GatewaySettings, app: Any, dsn: str, sites: dict[str, Site]
    ) -> None:
        super().__init__(http, settings, app)
        self.dsn, self.sites = dsn, sites

    def react(self) -> None:
        async def main() -> None:
            async with at_desk(self.dsn, self.settings, new=False) as desk:
                await desk.react()

        asyncio.run(main())

    def follow(self) -> None:
        """What follows from reversals, each handled twice."""

        async def main() -> None:
            async with Store.open(self.dsn) as store:
                for row in stored(self.dsn, "payment"):
                    recorded: Recorded[Any] = wire.recorded("payment", row)
                    commands = store.commands(Origin("reactor.reversal", recorded.correlation, recorded.event_id))
                    for _ in range(2):
                        if isinstance(recorded.event, RefundReversed):
                            await streams.reversal.refund_reversed.call(recorded, commands)
                        elif isinstance(recorded.event, CaptureReversed):
                            await streams.reversal.capture_reversed.call(recorded, commands)

        asyncio.run(main())

    def load(self, cls: type[A], id: UUID) -> A:
        async def main() -> A:
            async with Store.open(self.dsn) as store:
                return await store.load(cls, id)

        return asyncio.run(main())

    def ordered(self, customer: UUID) -> UUID:
        """An order of the customer's, placed, that comes to 1000 euro cents."""

        async def main() -> UUID:
            async with Store.open(self.dsn) as store:
                line = Line("MUG", uuid4(), "A mug", 1, 1000, 0, 0, 0, "main")
                sealed = Sealed("sealed:1:ada:a")
                home = Address(sealed, sealed, sealed, sealed, "DE")
                commands = store.commands(Origin("user:test"))
                return (await commands.open(Order.place, customer, "EUR", [line], home, datetime.now(UTC))).id

        return asyncio.run(main())

    def detach(self) -> None:
        """Have the gateways forget what is removed."""

        async def main() -> None:
            gateways = {name: open_gateway(name, self.settings.at(name)) for name in self.settings.gateways}
            with patch.object(streams.methods, "GATEWAYS", gateways):
                async with Store.open(self.dsn) as store:
                    for row in stored(self.dsn, "payment", 0):
                        recorded = wire.recorded("payment", row)
                        if isinstance(recorded.event, MethodRemoved):
                            commands = store.commands(Origin("reactor", command=recorded.event_id))
                            await streams.methods.detach.call(recorded, commands)
            for gateway in gateways.values():
                await gateway.close()

        asyncio.run(main())

    def hear(self, vendor: str) -> list[str]:
        """Every webhook of the vendor twice, in any order; what became of them."""
        got = self.sites[vendor].webhooks()
        told = Random(len(got)).sample(2 * got, 2 * len(got))
        return [self.tell(vendor, headers, body).json()["outcome"] for headers, body in told]

    def tell(self, vendor: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        return self.http.post(f"/payments/webhooks/{vendor}", content=body, headers=headers)

    def ask(self, id: str, kind: str, amount: int) -> str:
        operation = str(uuid4())
        body = {kind: operation, "amount": amount, "currency": "EUR"}
        answer = self.http.post(f"/payments/{id}/{kind}", json=body, headers=self.shop)
        assert answer.status_code == 200, answer.text
        self.react()
        return operation


@pytest.fixture(scope="module")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    name, server = f"test_{uuid4().hex}", stack["postgres"]
    folder = tmp_path_factory.mktemp("vendors")
    dsn = urlsplit(server)._replace(path=f"/{name}").geturl()
    with ExitStack() as stood:
        sites = {vendor: stood.enter_context(site(vendor, folder)) for vendor in VENDORS}
        fields: dict[str, Any] = {**settings_of(dsn, stack["redis"], folder).model_dump(exclude_unset=True)}
        for vendor in VENDORS:
            given = sites[vendor].settings
            fields |= {one: getattr(given, one) for one in given.model_fields_set if one.startswith(vendor)}
        takes = {"stripe": Terms(takes=("pm_",)), "adyen": Terms(takes=("adyen_",))}
        settings = GatewaySettings(**fields, gateways=takes, gateway_timeout_s=2.0)
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
            try:
                make_keys(settings)
                migrate_api(settings)
                migrate_events(dsn, ["order", "payment", "refund", "wallet"])
                live = Live(settings, [PROJECTIONS["projections.payment"]], sinks=("postgres",))
                app = app_of(api.payment.router, settings=settings)
                with serving(app) as url, live.following(), httpx.Client(base_url=url, timeout=20) as http:
                    yield Shop(http, settings, app, dsn, sites)
                live.close()
            finally:
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_payment_goes_from_http_to_the_vendor_and_back_into_the_read_model(shop: Shop, vendor: str) -> None:
    there = shop.sites[vendor]
    before = there.totals()
    id = shop.pay(method=there.cards["good"], gateway="")
    shop.react()
    assert set(shop.hear(vendor)) <= {"recorded", "known"}
    row = shop.row(id)
    assert (row["gateway"], row["authorisation"], there.held(UUID(id))) == (vendor, "authorised", 1000)
    shop.ask(id, "capture", 600)
    shop.hear(vendor)
    refund = shop.ask(id, "refund", 200)
    shop.hear(vendor)
    row = shop.row(id)
    assert (row["captured"], row["refunded"]) == (600, 200)
    items = {one["id"]: one["state"] for one in shop.read(id, path="/operations").json()["items"]}
    assert items[refund] == "done" and set(items.values()) == {"done"}
    assert shop.http.post(f"/payments/{id}/void", headers=shop.shop).status_code == 200
    shop.react()
    shop.hear(vendor)
    assert shop.row(id)["authorisation"] == "voided" and there.held(UUID(id)) == 0
    after = there.totals()
    assert (after[0] - before[0], after[1] - before[1]) == (600, 200)


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_a_vendor_takes_back_is_made_up_for_or_told(shop: Shop, vendor: str) -> None:
    """Both words of the vendor arrive, twice and in any order; the last one counts."""
    there, customer = shop.sites[vendor], uuid4()
    order = shop.ordered(customer)
    before = there.totals()
    id = shop.pay(method=there.cards["good"], gateway="", customer=customer, order=str(order))
    shop.react()
    shop.hear(vendor)
    capture = shop.ask(id, "capture", 1000)
    shop.hear(vendor)
    refund = str(uuid4())  # over HTTP an order's payment is refunded by a refund of the order

    async def give_back() -> None:
        async with Store.open(shop.dsn) as store:
            commands = store.commands(Origin("user:test"))
            await commands.tell(UUID(id), Payment.give_back, UUID(refund), Money(300, "EUR"))

    asyncio.run(give_back())
    shop.react()
    first = there.webhooks()
    there.reverse(UUID(id), UUID(refund))
    heard = [shop.tell(vendor, *one).json()["outcome"] for one in [*there.webhooks(), *first, *first]]
    assert set(heard) <= {"recorded", "known"}
    row = shop.row(id)
    assert (row["captured"], row["refunded"], row["attention"]) == (1000, 0, False)
    states = {one["id"]: one["state"] for one in shop.read(id, path="/operations").json()["items"]}
    assert states == {capture: "done", refund: "reversed"}
    after = there.totals()
    assert (after[0] - before[0], after[1] - before[1]) == (1000, 0)
    if vendor == "adyen":  # a card's captures are final at Stripe
        there.reverse(UUID(id), UUID(capture))
        shop.hear(vendor)
        row = shop.row(id)
        assert (row["captured"], row["attention"], row["authorisation"]) == (0, True, "authorised")
        shop.follow()
        assert shop.load(Order, order).owed == 1000
        flagged = shop.http.get("/payments", params={"attention": "true"}, headers=shop.of("admin")).json()["items"]
        assert id in [one["id"] for one in flagged]


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_refund_that_was_done_comes_back_and_is_in_the_wallet(shop: Shop, vendor: str) -> None:
    there, customer = shop.sites[vendor], uuid4()
    id = shop.pay(method=there.cards["good"], gateway="", customer=customer)
    shop.react()
    shop.hear(vendor)
    shop.ask(id, "capture", 1000)
    shop.hear(vendor)
    refund = shop.ask(id, "refund", 300)
    shop.hear(vendor)
    assert shop.row(id)["refunded"] == 300
    there.reverse(UUID(id), UUID(refund))
    assert set(shop.hear(vendor)) == {"recorded", "known"}
    assert shop.row(id)["refunded"] == 0
    for _ in range(2):
        shop.follow()
        assert shop.load(Wallet, wallet_id(customer, "EUR")).balance == 300


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_customer_comes_back_from_the_bank(shop: Shop, vendor: str) -> None:
    there = shop.sites[vendor]
    id, others = (shop.pay(method=there.cards["action"], gateway="") for _ in range(2))
    shop.react()
    row = shop.row(id)
    assert row["authorisation"] == "action_required"
    back = {**there.decide(row["url"], True), "payment_intent": "pi_1"}
    assert shop.http.get(f"/payments/{id}/return").status_code == 404
    assert shop.http.get(f"/payments/{uuid4()}/return", params=back).status_code == 404
    for payment in (others, id, id):  # what the bank says of one payment says nothing of another
        page = shop.http.get(f"/payments/{payment}/return", params=back)
        assert page.status_code == 200 and "Thank you" in page.text
    shop.hear(vendor)
    assert shop.row(id)["authorisation"] == "authorised"
    assert shop.row(others)["authorisation"] == "action_required"


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_webhook_is_taken_once_and_only_from_the_vendor(shop: Shop, vendor: str) -> None:
    there, other = shop.sites[vendor], VENDORS[VENDORS.index(vendor) - 1]
    there.webhooks()
    id = shop.pay(method=there.cards["good"], gateway="")
    shop.react()
    [(headers, body), *_] = there.webhooks()
    assert json.loads(body) and id.encode() in body
    assert shop.tell(vendor, headers, body.replace(b"1000", b"9000")).status_code == 403
    assert shop.tell(vendor, {}, body.replace(id.encode(), str(uuid4()).encode())).status_code == 403
    assert shop.tell(other, headers, body).status_code == 403
    assert [shop.tell(vendor, headers, body).json()["outcome"] for _ in range(2)] == ["recorded", "known"]


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_a_vendors_report_says_differently_is_shown(
    shop: Shop, vendor: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = shop.sites[vendor]
    id = shop.pay(method=there.cards["good"], gateway="")
    shop.react()
    shop.hear(vendor)
    captures = [shop.ask(id, "capture", amount) for amount in (600, 400)]
    shop.hear(vendor)
    there.err(UUID(captures[1]), "amount")
    shop.row(id)
    for name, value in environment(shop.settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(streams.reconciliation, "OPENED", set())
    today = datetime.now(UTC).date()
    real = clock.set_clock(lambda: datetime.now(UTC) + timedelta(days=1))
    try:
        told = []
        for _ in range(2):
            assert reconcile(["--gateway", vendor, "--day", today.isoformat()]) == 1
            told.append(capsys.readouterr().out)
    finally:
        clock.set_clock(real)
    assert told[0] == told[1] and f"payment {id}: ours capture of 400 EUR" in told[0]
    by, path = shop.of("admin"), f"/reconciliations/{Reconciliation.id_of(vendor, today)}"
    last = shop.http.get(f"{path}/events", headers=by).json()["items"][-1]["position"]
    day = shop.http.get(path, params={"after": last}, headers=by).json()
    assert [
        one["day"] for one in shop.http.get("/reconciliations", params={"gateway": vendor}, headers=by).json()["items"]
    ]
    assert (day["status"], day["differences"], day["run"]) == ("compared", 1, 1)
    [found] = shop.http.get(f"{path}/differences", headers=by).json()["items"]
    assert (found["kind"], found["payment"], found["operation"]) == ("amount", id, captures[1])
    assert found["theirs"].startswith("capture of 401 EUR")


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_way_to_pay_that_is_saved_is_charged_again_until_it_is_removed(shop: Shop, vendor: str) -> None:
    there, ada = shop.sites[vendor], uuid4()
    by, path = shop.of("customer", ada), f"/payments/methods/{(id := uuid4())}"
    token, details = there.form("good")
    way = {
        "gateway": vendor,
        "token": token or None,
        "details": details,
        "brand": "visa",
        "last_four": "4242",
        "expires": "2099-12",
    }
    made = [shop.http.put(path, json=way, headers=by) for _ in range(2)]
    assert [(one.status_code, one.json()["confirm"]) for one in made] == [(200, None)] * 2, made[0].text
    [kept] = there.kept(ada)
    shown = shop.http.get("/payments/methods", params={"after": made[1].json()["position"]}, headers=by).json()["items"]
    assert [(one["method"], one["gateway"]) for one in shown] == [(str(id), vendor)]
    for _ in range(2):
        payment = shop.pay(ada, method=None, gateway="", saved=str(id))
        shop.react()
        assert (shop.row(payment)["method"], shop.row(payment)["authorisation"]) == (kept, "authorised")
    for text in details.values():
        with psycopg.connect(shop.dsn) as connection:
            query = "SELECT count(*) FROM payment_events WHERE encode(state, 'escape') LIKE %s"
            assert connection.execute(query, (f"%{text}%",)).fetchone() == (0,), "what a form encrypts is in no event"
    declined = {**way, **dict(zip(("token", "details"), there.form("declined"), strict=True)), "expires": "2098-01"}
    declined["token"] = declined["token"] or None
    assert shop.http.put(f"/payments/methods/{uuid4()}", json=declined, headers=by).status_code == 409
    theirs = shop.http.put(
        f"/payments/methods/{uuid4()}", json={**way, "token": kept, "details": {}}, headers=shop.of("customer")
    )
    assert (theirs.status_code, "not" in theirs.json()["detail"]) == (409, True)  # it is this customer's
    assert shop.http.delete(path, headers=by).status_code == 200
    shop.detach()
    assert there.kept(ada) == set()
    late = shop.pay(ada, method=kept, gateway="")
    shop.react()
    assert shop.row(late)["authorisation"] == "declined"


def test_a_way_to_pay_that_the_bank_wants_confirmed_is_saved_when_the_customer_is_back(shop: Shop) -> None:
    there, ada = shop.sites["adyen"], uuid4()
    by = shop.of("customer", ada)
    way = {
        "gateway": "adyen",
        "details": there.form("action")[1],
        "brand": "visa",
        "last_four": "4242",
        "expires": "2099-12",
    }

    def begun() -> tuple[str, str]:
        answer = shop.http.put(f"/payments/methods/{(id := uuid4())}", json=way, headers=by)
        assert answer.status_code == 200, answer.text
        return str(id), answer.json()["confirm"]

    def saved() -> list[str]:
        mine = (row for row in stored(shop.dsn, "payment", 0) if row.originator_id == ada)
        return [type(wire.recorded("payment", row).event).__name__ for row in mine]

    (id, url), (refused, other) = begun(), begun()
    assert saved() == ["MethodsKept", "AttachRequested", "AttachRequested"]
    back, no = there.decide(url, True), there.decide(other, False)
    home = f"/payments/methods/{ada}"
    assert shop.http.get(f"{home}/{id}/return").status_code == 404
    assert shop.http.get(f"/payments/methods/{uuid4()}/{id}/return", params=back).status_code == 404
    for method, query in (
        (refused, back),
        (id, back),
        (id, back),
        (refused, no),
    ):  # what is said of one says nothing of another
        page = shop.http.get(f"{home}/{method}/return", params=query)
        assert page.status_code == 200 and "Thank you" in page.text
    assert saved()[3:] == ["MethodSaved", "MethodPreferred", "AttachDeclined"]
    payment = shop.pay(ada, method=None, gateway="", saved=id)
    shop.react()
    assert shop.row(payment)["authorisation"] == "action_required"  # this bank wants every payment confirmed
