"""The whole platform over HTTP: from a shopper's request through the topics to every read model, and all stores agree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from prometheus_client.parser import text_string_to_metric_families

from aggregates.auth import Account
from aggregates.kernel import Aggregate, Store, domains
from aggregates.order import Order
from aggregates.user import User
from infra.audit import Audit, audit
from infra.demo import FIRST, Demo
from infra.servers import free_port
from infra.settings import Settings
from infra.shop import Journal, Shop, lines_of, load, report
from infra.shopper import Api
from projections.kernel.clauses import projections
from projections.kernel.clickhouse import client_of
from replay import projection, verify
from streams import faust_app, sagas
from streams.kernel.rules.found import discover as rules
from tests.kernel.eventlog import published
from tests.kernel.people import People
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Stack, fresh_settings
from tests.kernel.traces import everything, opened, topics

pytestmark = pytest.mark.slow

INVOICES = 60
BOUGHT = {"cart", "checkout", "inventory", "order", "payment", "product"}  # what a purchase touches


class Measured(Platform):
    measured = True


@pytest.fixture(scope="module")
def platform(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Every process of `titan up` on servers of the tests, with the first invoices of the sample shop."""
    with (
        fresh_settings(stack, tmp_path_factory.mktemp("platform")) as settings,
        Measured(settings) as made,
    ):
        made.start()
        yield made


@pytest.fixture(scope="module")
def shop(platform: Platform) -> Shop:
    return asyncio.run(load(platform.settings, lines_of(invoices=INVOICES), lambda line: None))


def agree(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stores tell the same story."""
    for name, value in platform.env.items():
        monkeypatch.setenv(name, value)  # the audit asks the test gateway, which has settings of its own
    assert audit(platform.settings) == []


def test_real_invoices_become_orders_and_what_is_no_sale_is_listed(
    platform: Platform, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shop.journal.done
    orders = [result for unit, result in results.items() if unit.startswith("orders/")]
    assert sum(bool(one["order"]) for one in orders) >= INVOICES * 3 // 4
    listed = tmp_path / "refused.csv"
    assert f"{len(shop.lines):,} lines" in report(shop, listed)
    refused = shop.refused()
    assert len(listed.read_text().splitlines()) == len(refused) + 1
    accepted = sum(1 for line in shop.lines if not any(line is one.line for one in refused))
    assert accepted + len(refused) == len(shop.lines)
    agree(platform, monkeypatch)


def test_a_gateway_that_does_not_tell_is_a_difference(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there, and one that knows another secret: in both cases nobody knows whether the money is there."""
    monkeypatch.setattr("infra.audit.GATEWAY_S_MAX", 0)
    gateway = platform.table["gateway"].url
    for url, secret, why in (
        (f"http://127.0.0.1:{free_port()}", platform.settings.data / "keys" / "test-gateway", "ConnectError"),
        (gateway, platform.settings.data / "another-secret", "401"),
    ):
        monkeypatch.setenv("TITAN_TEST_GATEWAY", url)
        monkeypatch.setenv("TITAN_TEST_GATEWAY_SECRET", str(secret))
        with closing(Audit(platform.settings)) as made:
            made._money()
        [difference] = made.differences
        assert difference.startswith("the money of the gateway test: it does not tell: ") and why in difference


def test_loading_again_does_nothing(platform: Platform, shop: Shop) -> None:
    before = audit_heads(platform)
    asyncio.run(load(platform.settings, shop.lines, lambda line: None))
    assert audit_heads(platform) == before


def test_loading_again_without_its_journal_does_nothing_either(platform: Platform, shop: Shop, tmp_path: Path) -> None:
    before = audit_heads(platform)

    async def again() -> None:
        async with Api(platform.settings) as api:
            await Shop(api, Journal(tmp_path / "lost.jsonl"), shop.lines, lambda line: None).load()

    asyncio.run(again())
    assert audit_heads(platform) == before


def audit_heads(platform: Platform) -> dict[str, int]:
    """How many events each domain has; what fraud rules tell of the orders comes when it comes."""
    with psycopg.connect(platform.settings.postgres) as connection:
        return dict(connection.execute("SELECT domain, last FROM log_heads WHERE domain <> 'fraud'").fetchall())


def test_shoppers_who_change_their_minds_leave_all_stores_in_agreement(
    platform: Platform, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `titan demo`: everything that has to happen does, and what is left out is told."""

    async def visit() -> tuple[Demo, list[str]]:
        async with Api(platform.settings) as api:
            demo = Demo(api, seed=11)
            await demo.run(len(FIRST) + 5, at_once=4, first=FIRST)
            return demo, await demo.check()

    demo, wrong = asyncio.run(visit())
    assert wrong == [] and demo.missed() == []
    for left_out in ("cancelled", "refunded", "declined", "gave up"):
        others = [told for told in demo.told if told.ending != left_out]
        assert left_out in replace(demo, told=others).missed()
    ways = {" and ".join(plan.way) for plan in FIRST} | {"saved card"}
    assert ways >= {
        "card", "wallet", "voucher", "wallet and card", "voucher and card", "voucher and wallet", "saved card",
    }  # fmt: skip
    for way in ways:
        others = [told for told in demo.told if told.paid_by != way]
        assert f"paid by {way}" in replace(demo, told=others).missed()
    agree(platform, monkeypatch)


def test_real_money_comes_into_a_wallet_is_given_on_and_goes_back(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the card through the saga and the gateway to the statement, and the rest of it back to the card."""

    def post(by: httpx.Client, path: str, **body: object) -> dict[str, Any]:
        answer = by.post(path, json=body, headers={"Idempotency-Key": uuid4().hex})
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def balance(by: httpx.Client, id: str) -> tuple[int, int]:
        row = by.get(f"/wallets/{id}").json()
        return row["balance"], row["withdrawing"]

    with platform.client("customer", uuid4()) as ada, platform.client("customer", uuid4()) as bob:
        hers, his = (post(by, "/wallets", currency="EUR")["id"] for by in (ada, bob))
        money = {"amount": 5_000, "currency": "EUR"}
        top_up = post(ada, f"/wallets/{hers}/topups", **money, method="tok_visa")["id"]
        declined = post(ada, f"/wallets/{hers}/topups", **money, method="tok_declined")["id"]

        def ends() -> dict[str, str]:
            return {one["id"]: one["status"] for one in ada.get(f"/wallets/{hers}/topups").json()["items"]}

        wait_for(lambda: ends() == {top_up: "done", declined: "failed"}, "both top-ups end")
        wait_for(lambda: balance(ada, hers) == (5_000, 0), "the money is there")
        post(ada, f"/wallets/{hers}/transfers", to=his, amount=1_500, currency="EUR")
        post(ada, f"/wallets/{hers}/withdrawals", topup=top_up, amount=3_000, currency="EUR")
        wait_for(lambda: balance(ada, hers) == (500, 0), "the card has its money back")
        lines = ada.get(f"/wallets/{hers}/statement").json()["items"]
        assert [(one["what"], one["amount"], one["balance"]) for one in lines] == [
            ("withdrawn", 0, 500), ("withdrawing", -3_000, 500), ("sent", -1_500, 3_500), ("topup", 5_000, 5_000),
        ]  # fmt: skip
        payment = ada.get(f"/wallets/{hers}/topups").json()["items"][-1]["payment"]
        paid = ada.get(f"/payments/{payment}").json()
        assert (paid["captured"], paid["refunded"]) == (5_000, 3_000)
        wait_for(lambda: balance(bob, his) == (1_500, 0), "the other one has it")
    with platform.client("service", uuid4()) as till:
        card = post(till, "/vouchers", amount=2_500, currency="EUR")
        row = till.get(f"/vouchers/{card['id']}", params={"after": card["position"]}).json()
        assert (row["balance"], row["hint"]) == (2_500, card["code"][-4:])
    agree(platform, monkeypatch)


def test_an_order_is_refunded_in_parts_by_many_at_once_to_where_its_money_came_from(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bought with a gift card, a wallet and a card; sent back by requests that come all at once, each of one piece."""

    def post(by: httpx.Client, path: str, **body: object) -> dict[str, Any]:
        answer = by.post(path, json=body, headers={"Idempotency-Key": uuid4().hex})
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    sku, me = f"MUG-{uuid4().hex[:8]}", uuid4()
    where = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}
    with (
        platform.client("customer", me) as ada,
        platform.client("service", uuid4()) as till,
        platform.client("admin", uuid4()) as staff,
    ):

        def read(path: str, **query: object) -> dict[str, Any]:
            answer = ada.get(path, params=query)  # type: ignore[arg-type]
            assert answer.is_success, answer.text
            found: dict[str, Any] = answer.json()
            return found

        variant = {"sku": sku, "prices": [{"amount": 999, "currency": "EUR"}]}
        post(till, "/products", title="Mug", variants=[variant], publish=True)
        stock = post(till, "/stocks", sku=sku)["id"]
        post(till, f"/stocks/{stock}/receive", quantity=10, reference="delivery")
        card = post(till, "/vouchers", amount=1_000, currency="EUR")
        wallet = post(ada, "/wallets", currency="EUR")["id"]
        post(till, f"/wallets/{wallet}/credits", amount=500, currency="EUR")
        wait_for(lambda: bool(ada.get("/products/offers", params={"sku": sku}).json()["items"]), "it is for sale")
        cart = post(ada, "/carts", currency="EUR")["id"]
        added = post(ada, f"/carts/{cart}/lines", sku=sku, quantity=3)
        contents = read(f"/carts/{cart}", after=added["position"])["contents"]
        buying = {"cart": cart, "contents": contents, "method": "tok_visa", "address": where}
        order = post(ada, "/checkouts", **buying, vouchers=[card["code"]], wallet=True)["id"]
        wait_for(lambda: read(f"/checkouts/{order}")["status"] == "completed", "it is bought")
        wait_for(lambda: bool(read(f"/orders/{order}")["tenders"]), "its row says how it was paid")
        bought = read(f"/orders/{order}")
        total = bought["total"]
        paid = [("voucher", card["id"], 1_000), ("wallet", wallet, 500), ("card", bought["payment"], total - 1_500)]
        for shown in (bought, read(f"/checkouts/{order}")):
            assert [(one["kind"], one["source"], one["amount"]) for one in shown["tenders"]] == paid
        assert read(f"/wallets/{wallet}/statement")["items"][0] | {"at": ""} == {
            "version": 4, "at": "", "what": "spent", "amount": 0, "balance": 0, "reference": order, "other": None,
        }  # fmt: skip
        assert [(one["amount"], one["status"]) for one in till.get(f"/vouchers/{card['id']}/uses").json()["items"]] == [
            (1_000, "redeemed")
        ]
        piece = [{"sku": sku, "quantity": 1}]
        with ThreadPoolExecutor(5) as many:
            asked = list(
                many.map(lambda _: post(ada, "/refunds", order=order, lines=piece, reason="broken")["id"], range(5))
            )

        def queue() -> list[str]:
            found = staff.get("/refunds", params={"order": order, "status": "pending"}).json()["items"]
            return [one["id"] for one in found]

        def statuses() -> list[str]:
            return sorted(one["status"] for one in read("/refunds", order=order)["items"])

        wait_for(lambda: statuses() == ["pending"] * 3 + ["refused"] * 2, "the order has decided whose the pieces are")
        for id in queue():
            post(staff, f"/refunds/{id}/approve")
        wait_for(lambda: statuses() == ["completed"] * 3 + ["refused"] * 2, "the money is back")
        items = [read(f"/refunds/{id}") for id in asked]
        assert sum(one["amount"] for one in items if one["status"] == "completed") == total
        assert {one["why"] for one in items if one["status"] == "refused"} <= {
            f"1 of {sku} is more than the 0 left to refund", "a cancelled order has nothing to refund",
        }  # fmt: skip
        after = read(f"/orders/{order}")
        assert (after["status"], after["refunded"], after["refunding"]) == ("cancelled", total, 0)
        payment = read(f"/payments/{after['payment']}")
        assert payment["refunded"] == payment["captured"] == total - 1_500
        assert read(f"/wallets/{wallet}")["balance"] == 500
        shown = till.get(f"/vouchers/{card['id']}").json()
        assert (shown["balance"], shown["redeemed"]) == (1_000, 0)
        wait_for(lambda: till.get(f"/stocks/{stock}").json()["on_hand"] == 10, "the pieces are back")
        story = [one["what"] for one in read(f"/orders/{order}/timeline")["items"]]
        assert story.count("refundbegun") == story.count("refunded") == 3 and story[-1] == "cancelled"
    agree(platform, monkeypatch)


def test_somebody_elses_client_decodes_every_topic(platform: Platform, shop: Shop) -> None:
    """Confluent's own deserializer, with the schemas that the API serves."""
    deserialize = AvroDeserializer(SchemaRegistryClient({"url": platform.url}))
    consumer = Consumer({"bootstrap.servers": platform.settings.kafka, "group.id": f"stock-{uuid4().hex}"})
    try:
        topics = {platform.settings.topic(domain): domain for domain in domains()}
        # All ends are asked for before anything is fetched: a question waits behind a fetch that waits for more.
        ends = {
            (topic, number): consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
            for topic in topics
            for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions
        }
        for topic, domain in topics.items():
            some = any(end for (of, _), end in ends.items() if of == topic)
            assert some or domain not in BOUGHT, f"nothing has happened in {domain}"
        consumer.assign([TopicPartition(*where, 0) for where, end in ends.items() if end])
        left = sum(ends.values())
        while left:
            messages = consumer.consume(min(left, 1_000), timeout=10)  # it waits for as many
            assert messages, f"{left} messages do not come"
            for message in messages:
                left -= 1
                context = SerializationContext(message.topic() or "", MessageField.VALUE)
                document = deserialize(message.value(), context)
                assert isinstance(document, dict)
    finally:
        consumer.close()


def test_an_orders_way_can_be_followed_from_the_request_to_every_view(platform: Platform, shop: Shop) -> None:
    """One traceparent, found again in the request's log line, the event, its record and ClickHouse."""
    trace = uuid4().hex
    customer = uuid4()
    with platform.client("service", uuid4()) as client:
        line = {
            "sku": "mug",
            "product": str(uuid4()),
            "title": "A mug",
            "quantity": 2,
            "unit_price": 550,
            "tax_bp": 1900,
        }
        address = {"recipient": "Ada", "street": "1", "city": "London", "postcode": "SW1Y", "country": "GB"}
        placed = client.post(
            "/orders",
            json={"customer": str(customer), "currency": "EUR", "lines": [line], "address": address},
            headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
        )
        assert placed.status_code == 201, placed.text
        receipt = placed.json()
        shown = client.get(f"/orders/{receipt['id']}", params={"after": receipt["position"]}).json()
        assert (shown["status"], shown["total"], shown["address"]["recipient"]) == ("placed", 1309, "Ada")
        [event] = client.get(f"/orders/{receipt['id']}/events").json()["items"]
        assert (event["type"], event["correlation"]) == ("order.Placed", trace)
        topic = platform.settings.topic("order")
        [record] = [
            row
            for partition in published(platform.settings.kafka, topic)
            for row in partition
            if str(row.originator_id) == receipt["id"]
        ]
        assert (record.event_type, record.correlation_id) == ("order.Placed", trace)
        kept = "SELECT type, correlation FROM events FINAL WHERE aggregate = {id:UUID}"
        with client_of(platform.settings.clickhouse) as warehouse:
            wait_for(
                lambda: warehouse.query(kept, {"id": receipt["id"]}).result_rows == [("order.Placed", trace)],
                "ClickHouse has it, under the same id",
            )

        def asked() -> list[Any]:
            return [
                line["route"]
                for line in platform.lines("api")
                if line.get("correlation") == trace and line["event"] == "request"
            ]

        wait_for(lambda: asked() == ["/orders"], "the API's log has the request")
    with platform.client("customer", uuid4()) as stranger:
        assert stranger.get(f"/orders/{receipt['id']}").status_code == 404
    with platform.client("customer", customer) as owner:
        assert owner.get(f"/orders/{receipt['id']}").json()["id"] == receipt["id"]
        assert [one["id"] for one in owner.get("/orders").json()["items"]] == [receipt["id"]]
        assert [one["what"] for one in owner.get(f"/orders/{receipt['id']}/timeline").json()["items"]] == ["placed"]
        assert owner.get("/analytics/revenue/products").status_code == 403


def test_every_lag_is_a_figure_and_falls_to_nothing(platform: Platform, shop: Shop) -> None:
    """Where Prometheus would ask: of each domain, each table, each saga, reactor, processor and rule."""
    expected: dict[str, tuple[str, set[tuple[str, ...]]]] = {
        "relay": ("relay_lag_events", {(domain,) for domain in domains()}),
        "worker": (
            "projection_lag_events",
            {(table.sink, table.name) for one in projections() for table in one.tables},
        ),
        "sagas": ("follower_lag_events", {(one.name,) for one in sagas.followings(*sagas.discover())}),
        "faust": (
            "processor_lag_events",
            {(kind.name,) for kind in faust_app.discover()} | {(f"rule.{rule.id}",) for rule in rules()},
        ),
    }
    for process, (figure, whose) in expected.items():

        def lag(process: str = process, figure: str = figure) -> dict[tuple[str, ...], float]:
            told = httpx.get(platform.table[process].metrics).text
            samples = [one for family in text_string_to_metric_families(told) for one in family.samples]
            return {
                tuple(label for _, label in sorted(one.labels.items())): one.value
                for one in samples
                if one.name == figure
            }

        wait_for(lambda: lag() == dict.fromkeys(whose, 0.0), f"no {figure} of {process}")  # noqa: B023


def test_every_process_logs_lines_of_json(platform: Platform, shop: Shop) -> None:
    for process in platform.table:
        lines = platform.lines(process)
        assert lines and all(line.keys() >= {"event", "level", "timestamp"} for line in lines), process


def test_analysts_see_revenue_by_minute_and_by_product(platform: Platform, shop: Shop) -> None:
    with platform.client("analyst", UUID(int=1)) as analyst:
        minutes = analyst.get("/analytics/revenue/minutes").json()["items"]
        products = analyst.get("/analytics/revenue/products", params={"currency": "GBP", "limit": 1000}).json()["items"]
        types = {one["type"]: one["events"] for one in analyst.get("/analytics/events").json()["items"]}
    assert (
        sum(one["revenue"] for one in minutes if one["currency"] == "GBP")
        == sum(one["revenue"] for one in products)
        > 0
    )
    assert types["order.Paid"] > 0


def test_of_an_erased_person_nothing_is_found_anywhere_and_everything_replays(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ada registers, buys, sends a piece back and cancels, always in words of her own; then she is erased over HTTP, by the processes."""
    of, mark = platform.settings, uuid4().hex[:12]
    email, name, street, city, gift, broken, changed, worn = (
        f"{mark}@example.com",
        *(f"{mark} {what}" for what in ("Lovelace", "Strasse 1", "Stadt", "Weg 2", "cracked", "moved", "scratched")),
    )
    said = {email, name, street, city, gift, broken, changed, worn, "+4930231251"}
    where = {"recipient": name, "street": street, "city": city, "postcode": "10115", "country": "DE"}
    with (
        httpx.Client(base_url=platform.url, timeout=30) as http,
        platform.client("service", uuid4()) as till,
        platform.client("admin", uuid4()) as staff,
    ):

        def ok(answer: httpx.Response) -> dict[str, Any]:
            assert answer.is_success, answer.text
            found: dict[str, Any] = answer.json()
            return found

        def post(by: httpx.Client, path: str, **body: object) -> dict[str, Any]:
            return ok(by.post(path, json=body, headers={"Idempotency-Key": uuid4().hex}))

        people = People(http, of)
        ada = people.join(email)
        http.headers.update(ada.headers)
        me, sku = f"/users/{ada.id}", f"MUG-{mark}"
        wait_for(lambda: http.get(me).is_success, "who answered the mail has a profile")
        ok(http.put(f"{me}/name", json={"name": name}))
        ok(http.put(f"{me}/phone", json={"phone": "+4930231251"}))
        ok(http.put(f"{me}/addresses/{uuid4()}", json=where))
        card = {"gateway": "test", "token": "tok_visa", "brand": "visa", "last_four": "4242", "expires": "2031-09"}
        ok(http.put(f"/payments/methods/{uuid4()}", json=card))
        post(
            till,
            "/products",
            title="Mug",
            variants=[{"sku": sku, "prices": [{"amount": 999, "currency": "EUR"}]}],
            publish=True,
        )
        post(till, f"/stocks/{post(till, '/stocks', sku=sku)['id']}/receive", quantity=9, reference="delivery")
        wait_for(lambda: bool(http.get("/products/offers", params={"sku": sku}).json()["items"]), "it is for sale")

        def bought() -> str:
            cart = post(http, "/carts", currency="EUR")["id"]
            added = post(http, f"/carts/{cart}/lines", sku=sku, quantity=2)["position"]
            contents = ok(http.get(f"/carts/{cart}", params={"after": added}))["contents"]
            buying = {"cart": cart, "contents": contents, "method": "tok_visa", "address": {**where, "street": gift}}
            return str(post(http, "/checkouts", **buying)["id"])

        kept, dropped = bought(), bought()
        for order in (kept, dropped):
            wait_for(lambda: ok(http.get(f"/checkouts/{order}"))["status"] == "completed", "it is bought")  # noqa: B023
        refunds = [
            post(http, "/refunds", order=kept, lines=[{"sku": sku, "quantity": 1}], reason=broken)["id"] for _ in "12"
        ]

        def status(refund: str) -> str:
            return str(ok(http.get(f"/refunds/{refund}"))["status"])

        wait_for(lambda: {status(one) for one in refunds} == {"pending"}, "both pieces are set aside")
        post(staff, f"/refunds/{refunds[0]}/approve")
        post(staff, f"/refunds/{refunds[1]}/reject", reason=worn)
        post(http, f"/orders/{dropped}/cancel", reason=changed)
        wait_for(lambda: [status(one) for one in refunds] == ["completed", "rejected"], "one piece went back")
        assert [one["why"] for one in map(ok, (http.get(f"/refunds/{one}") for one in refunds))] == ["", worn]
        snapshots(of, ada.id, kept, dropped)

        # Until now all of it is in the topics, for who has the key.
        wait_for(lambda: said <= opened(of, ada.id, topics(of)), "her words are in the topics, sealed")

        def orders() -> dict[str, dict[str, Any]]:
            return {id: ok(staff.get(f"/orders/{id}")) for id in (kept, dropped)}

        wait_for(lambda: orders()[dropped]["cancelled_because"] == changed, "the cancelled order says why")
        before = orders()
        post(http, f"{me}/erase", confirm="erase everything")
        wait_for(lambda: ok(staff.get(me))["status"] == "erased", "she is erased")

        # Whatever is still sealed for her says nothing, and nothing of hers is in the clear: in no mail, log or other file either.
        gone(of, ada.id, said)
        for variable, value in platform.env.items():
            monkeypatch.setenv(variable, value)  # the commands' settings are the platform's
        assert projection.main(["users", "user_addresses", "orders"], chosen=of) == 0
        assert verify.main(["user", "order"]) == 0
        gone(of, ada.id, said)

        # The sums stand as they stood. An API process may remember a key for half a minute: what it opens is not compared.
        words = dict.fromkeys(("address", "cancelled_because"))
        assert {id: one | words for id, one in orders().items()} == {id: one | words for id, one in before.items()}


def gone(of: Settings, person: UUID, said: set[str]) -> None:
    """Nothing yields what somebody said; what was sealed is in each kind of store still, and opens to nothing."""
    found = list(everything(of))
    assert [(place, words) for place, content in found for words in said if words.encode() in content] == []
    places = {place.split(" ")[0] for place, content in found if f"sealed:1:{person}:".encode() in content}
    assert places == {"topic", "table", "bytes", "clickhouse"}
    assert {place.split(" ")[0] for place, _ in found} == {*places, "key", "file"}
    assert opened(of, person, found) == {""}


def snapshots(of: Settings, person: UUID, *orders: str) -> None:
    """What a store keeps of long histories, made of short ones."""

    async def main() -> None:
        async with Store.open(of.postgres, of.postgres_domains) as store:
            kinds: dict[type[Aggregate], list[UUID]] = {
                User: [person],
                Account: [person],
                Order: [UUID(one) for one in orders],
            }
            for cls, ids in kinds.items():
                for id in ids:
                    await store.snapshot(await store.load(cls, id))

    asyncio.run(main())
