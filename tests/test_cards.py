"""No card number gets anywhere: clients try to send some, in every place that takes a way to pay, and every store is searched."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import clickhouse_connect
import psycopg
import pytest
import redis as redis_client
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql

from infra.settings import Settings
from tests.kernel.platform import Platform, wait_for

pytestmark = pytest.mark.slow

CARD, OTHER = "4242424242424242", "378282246310005"
SPELLINGS = [
    CARD, "4242 4242 4242 4242", "4242-4242-4242-4242", f"tok_{CARD}", "tok_4242-4242-4242-4242", "pm_4242_4242_4242_4242",
    f"tok_x{OTHER}y", OTHER, f"{CARD}_visa",
]  # fmt: skip
MARK = "9999888877776666"  # no card's number: it is let through everywhere, and has to be found everywhere
ADDRESS = {"recipient": "Ada", "street": "Strasse 1", "city": "Berlin", "postcode": "10117", "country": "DE"}


def written(number: str) -> re.Pattern[bytes]:
    """A number with or without something between its digits."""
    return re.compile(rb"(?:[ ._+-]|%20)?".join(digit.encode() for digit in number))


def whole(value: Any) -> bytes:
    if isinstance(value, memoryview | bytes | bytearray):
        return bytes(value)
    return str(value).encode()


def topics(settings: Settings) -> Iterator[bytes]:
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": uuid4().hex, "enable.auto.commit": False})
    try:
        names = [name for name in consumer.list_topics(timeout=10).topics if name.startswith(settings.topic_prefix)]
        assert names
        # All ends are asked for before anything is fetched: a question waits behind a fetch that waits for more.
        parts = [(name, p) for name in names for p in consumer.list_topics(name, timeout=10).topics[name].partitions]
        ends = {part: consumer.get_watermark_offsets(TopicPartition(*part), timeout=10)[1] for part in parts}
        left = {part for part, end in ends.items() if end}
        consumer.assign([TopicPartition(*part, 0) for part in left])
        while left:
            for message in consumer.consume(1_000, 0.2):
                assert message.error() is None
                yield b" ".join([message.key() or b"", message.value() or b"", whole(message.headers())])
            reached = consumer.position([TopicPartition(*part) for part in left])
            left = {(p.topic, p.partition) for p in reached if p.offset < ends[p.topic, p.partition]}
    finally:
        consumer.close()


def tables(settings: Settings) -> Iterator[bytes]:
    with psycopg.connect(settings.postgres) as connection:
        names = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema !~ '^(pg_|information_)'"
        ).fetchall()
        assert names
        for name in names:
            for row in connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(*name))):
                yield b" ".join(map(whole, row))


def once() -> dict[str, str]:
    """A key of the request's own."""
    return {"Idempotency-Key": uuid4().hex}


def keys(settings: Settings) -> Iterator[bytes]:
    with redis_client.Redis.from_url(settings.redis) as client:
        for key in client.scan_iter():
            match client.type(key):
                case b"string":
                    value: Any = client.get(key)
                case b"hash":
                    value = client.hgetall(key)
                case b"set":
                    value = client.smembers(key)
                case b"zset":
                    value = client.zrange(key, 0, -1)
                case b"list":
                    value = client.lrange(key, 0, -1)
                case other:
                    raise AssertionError(f"{key!r} is a {other!r}: how is it read?")
            yield key + b" " + whole(value)


def columns(settings: Settings) -> Iterator[bytes]:
    client = clickhouse_connect.get_client(dsn=settings.clickhouse)
    for (name,) in client.query("SHOW TABLES").result_rows:
        yield client.raw_query(f"SELECT * FROM {name} FORMAT JSONEachRow")
    client.close()


def files(settings: Settings) -> Iterator[bytes]:
    """Logs, mails, and what the test gateway has of its own."""
    for file in Path(settings.data).rglob("*"):
        if file.suffix == ".sqlite":
            with sqlite3.connect(file) as book:
                yield "\n".join(book.iterdump()).encode()
        elif file.is_file():
            yield file.read_bytes()


STORES = {"topics": topics, "Postgres": tables, "Redis": keys, "ClickHouse": columns, "files": files}


def test_no_card_number_is_anywhere_though_clients_send_them(settings: Settings) -> None:
    with Platform(settings, TITAN_API_VIEW_WAIT_S="10") as platform:
        platform.start("relay", "worker", "sagas", "gateway", "api")
        customer = uuid4()
        ada, shop, seller = (
            platform.client(role, customer if role == "customer" else uuid4())
            for role in ("customer", "service", "seller")
        )
        wallet = ada.post("/wallets", json={"currency": "EUR"}).json()["id"]
        cart = ada.post("/carts", json={"currency": "EUR"}).json()["id"]
        money = {"amount": 1000, "currency": "EUR"}
        asked = {"order": str(uuid4()), "customer": str(customer), **money}
        way = {"gateway": "test", "token": "tok_visa", "brand": "visa", "last_four": "4242", "expires": "2031-09"}
        bare = {name: given for name, given in way.items() if name != "token"}
        buying = {"cart": cart, "contents": 1, "address": ADDRESS}
        for n, text in enumerate(SPELLINGS):
            tries = [
                shop.post("/payments", json={**asked, "method": text}, headers=once()),
                shop.post("/payments", json={**asked, "method": "tok_visa", "gateway": text}, headers=once()),
                shop.post("/payments", json={**asked, "saved": text}, headers=once()),
                shop.post("/payments", json={**asked, "method": "tok_visa", text: text}, headers=once()),
                ada.post(f"/wallets/{wallet}/topups", json={**money, "method": text}, headers=once()),
                ada.post("/checkouts", json={**buying, "method": text}, headers={"Idempotency-Key": f"n-{n}"}),
                ada.put(f"/payments/methods/{uuid4()}", json={**way, "token": text}),
                ada.put(f"/payments/methods/{uuid4()}", json={**bare, "details": {"encryptedCardNumber": text}}),
                ada.put(f"/payments/methods/{uuid4()}", json={**way, "brand": text}),
                ada.put(f"/payments/methods/{uuid4()}", json={**way, "last_four": text}),
                ada.put(f"/payments/methods/{text}", json=way),
                ada.delete(f"/payments/methods/{text}"),
                ada.get(f"/payments/{text}"),
                ada.get("/payments", params={"order": text}),
                shop.post(f"/payments/webhooks/{text}", content=text),
                shop.post("/payments/webhooks/test", content=text, headers={"titan-signature": text}),
            ]
            assert [(answer.url.path, answer.text) for answer in tries if not 400 <= answer.status_code < 500] == []
        # The same way for what is no card's number: it gets everywhere, so the search would have found one.
        paid = shop.post("/payments", json={**asked, "method": f"tok_{MARK}"}, headers=once()).json()["id"]
        kept = ada.put(f"/payments/methods/{uuid4()}", json={**way, "token": f"tok_{MARK}"})
        assert kept.status_code == 409  # no such test card
        made = seller.post(
            "/products",
            json={
                "title": MARK, "publish": True,
                "variants": [{"sku": f"A{MARK}", "options": {}, "prices": [{"amount": 1999, "currency": "EUR"}]}],
            },
        )  # fmt: skip
        assert made.status_code == 201, made.text
        ada.get(f"/payments/{MARK}")
        wait_for(lambda: _seen(settings, "payment.Declined", paid), "the payment went all the way")  # no such test card
        wait_for(lambda: shop.get(f"/payments/{paid}").json()["authorisation"] == "declined", "it is shown")
        mark, cards = written(MARK), [written(CARD), written(OTHER)]
        wait_for(lambda: any(mark.search(one) for one in keys(settings)), "Redis has the product")
    for name, store in STORES.items():
        marked = False
        for one in store(platform.settings):
            marked = marked or bool(mark.search(one))
            for card in cards:
                found = card.search(one)
                assert not found, f"{name} has a card's number: {one[max(found.start() - 200, 0) : found.end() + 50]!r}"
        assert marked, f"the search of {name} finds nothing at all"


def _seen(settings: Settings, kind: str, aggregate: str) -> bool:
    client = clickhouse_connect.get_client(dsn=settings.clickhouse)
    try:
        query = "SELECT count() FROM events WHERE type = %(kind)s AND aggregate = %(aggregate)s"
        return bool(client.query(query, {"kind": kind, "aggregate": aggregate}).result_rows[0][0])
    finally:
        client.close()
