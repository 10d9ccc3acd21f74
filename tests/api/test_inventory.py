"""Stock over HTTP: the last pieces are sold, all of them and once, whoever asks, in whatever order, with Redis or without."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis as redis_client

from aggregates.inventory import Stock, stock_id
from aggregates.kernel import Store
from projections.inventory import shelves, stocks
from tests.api.conftest import Market, market_on
from tests.kernel.topic import rows_in, settings_of

CLIENTS = 64


def fresh() -> str:
    return f"MUG-{uuid4().hex[:12]}"


@pytest.fixture
def two(postgres: str, redis: str, tmp_path: Path) -> Iterator[Market]:
    """Two servers on one set of stores, and a Redis that may be flushed."""
    with market_on(settings_of(postgres, redis, tmp_path), servers=2) as market:
        yield market


def reserving(market: Market, wanted: Sequence[dict[str, int]]) -> list[tuple[str, int]]:
    """Each of these is asked for at once, by a client of its own, on either server: the reservation and its status."""

    async def one(http: httpx.AsyncClient, amounts: dict[str, int]) -> tuple[str, int]:
        reservation = str(uuid4())
        lines = [{"sku": sku, "quantity": quantity} for sku, quantity in amounts.items()]
        body = {"reservation": reservation, "lines": lines}
        headers = market.of("service", None, **{"Idempotency-Key": reservation})
        answer = await http.post("/stocks/reservations", json=body, headers=headers)
        assert answer.status_code in (201, 409), answer.text
        return reservation, answer.status_code

    async def every() -> list[tuple[str, int]]:
        clients = [httpx.AsyncClient(base_url=url, timeout=60) for url in market.urls]
        try:
            calls = [one(clients[n % len(clients)], amounts) for n, amounts in enumerate(wanted)]
            return list(await asyncio.gather(*calls))
        finally:
            for client in clients:
                await client.aclose()

    return asyncio.run(every())


def stock_of(market: Market, sku: str) -> Stock:
    """The stock as the event store has it."""

    async def load() -> Stock:
        async with Store.open(market.settings.postgres) as store:
            return await store.load(Stock, stock_id(sku))

    return asyncio.run(load())


def shelf_is_stock(market: Market, *skus: str) -> None:
    """Redis and Postgres show what the events say, to the piece; asked once all is projected."""
    market.live.catch_up()
    shown, counted = rows_in(market.settings, shelves), rows_in(market.settings, stocks)
    for sku in skus:
        stock = stock_of(market, sku)
        row, count = shown[stock.id,], counted[stock.id,]
        assert (row["on_hand"], row["reserved"]) == (stock.on_hand, stock.reserved)
        assert row["holds"] == {str(cause): held[sku] for cause, held in stock.quota.holds.items()}
        assert (count["on_hand"], count["reserved"], count["available"]) == (
            stock.on_hand,
            stock.reserved,
            stock.available,
        )


def test_stock_is_counted_by_its_seller_and_seen_by_all(market: Market) -> None:
    seller, sku = market.of(), fresh()
    [id] = market.on_sale(seller, sku, pieces=10)
    last = market.post(f"/stocks/{id}/adjust", {"delta": -2, "reason": "broken"}, seller)
    shown = market.http.get("/stocks/availability", params={"sku": [sku, "NONE"], "after": last["position"]})
    assert shown.json() == {"items": [{"sku": sku, "location": "main", "available": 8}]}
    row = market.http.get(f"/stocks/{id}", headers=seller).json()
    assert (row["on_hand"], row["reserved"], row["available"], row["version"]) == (8, 0, 8, 3)
    assert market.http.get(f"/stocks/{id}", headers=market.of()).status_code == 404
    assert [one["id"] for one in market.http.get("/stocks", headers=seller).json()["items"]] == [id]
    refused = market.post(f"/stocks/{id}/adjust", {"delta": -9, "reason": "lost"}, seller, 409)
    assert "fewer than the 0 reserved" in refused["detail"]


def test_a_stock_is_of_a_sku_of_ones_own(market: Market) -> None:
    seller, other, sku = market.of(), market.of(), fresh()
    market.post("/stocks", {"sku": sku}, seller, 409)  # nobody's
    market.post("/products", {"title": "Mug", "variants": [{"sku": sku}]}, seller, 201)
    assert market.post("/stocks", {"sku": sku}, other, 409)["detail"] == f"{sku} is no SKU of yours"
    id = market.post("/stocks", {"sku": sku}, seller, 201)["id"]
    assert id == str(stock_id(sku))
    market.post("/stocks", {"sku": sku}, seller, 409)  # it is there
    market.post("/stocks", {"sku": sku, "location": "east"}, seller, 201)
    for path, body in (("receive", {"quantity": 1, "reference": "x"}), ("adjust", {"delta": 1, "reason": "x"})):
        market.post(f"/stocks/{id}/{path}", body, other, 404)
        market.post(f"/stocks/{id}/{path}", body, market.of("customer"), 403)
        market.post(f"/stocks/{id}/{path}", body, market.of("admin"))


def test_a_reservation_is_committed_or_released(market: Market) -> None:
    seller, machine = market.of(), market.of("service")
    skus = [fresh(), fresh()]
    market.on_sale(seller, *skus, pieces=5)
    places = [{"sku": sku} for sku in skus]
    ids = [str(uuid4()) for _ in range(3)]
    for id in ids[:2]:
        lines = [{**place, "quantity": 2} for place in places]
        market.post("/stocks/reservations", {"reservation": id, "lines": lines, "ttl_s": 60}, machine, 201)
    market.post(f"/stocks/reservations/{ids[0]}/commit", {"lines": places}, machine)
    market.post(f"/stocks/reservations/{ids[1]}/release", {"lines": places}, machine)
    market.post(f"/stocks/reservations/{ids[1]}/commit", {"lines": places}, machine, 409)
    last = market.post(f"/stocks/reservations/{ids[2]}/release", {"lines": places}, machine)  # before its reserve
    late = {"reservation": ids[2], "lines": [{**places[0], "quantity": 1}]}
    assert "already released" in market.post("/stocks/reservations", late, machine, 409)["detail"]
    for id, status in zip(ids, ("committed", "released", "released"), strict=True):
        found = market.http.get(f"/stocks/reservations/{id}", params={"after": last["position"]}, headers=machine)
        assert [one["status"] for one in found.json()["items"]] == [status] * 2
    shelf_is_stock(market, *skus)
    assert stock_of(market, skus[0]).available == 3
    assert market.http.get(f"/stocks/reservations/{uuid4()}", headers=machine).status_code == 404


def test_reservations_are_for_machines(market: Market) -> None:
    body: dict[str, Any] = {"reservation": str(uuid4()), "lines": [{"sku": "A", "quantity": 1}]}
    for role in ("customer", "seller", "analyst"):
        market.post("/stocks/reservations", body, market.of(role), 403)
    market.post("/stocks/reservations", {**body, "lines": body["lines"] * 2}, market.of("service"), 409)
    market.post("/stocks/reservations", {**body, "ttl_s": 3601}, market.of("service"), 422)
    refused = market.post("/stocks/reservations", body, market.of("service"), 409)
    assert refused["detail"] == "one of the SKUs is not kept in stock there"


def test_the_same_reservation_again_is_answered_again(market: Market) -> None:
    sku = fresh()
    market.on_sale(market.of(), sku, pieces=1)
    body: dict[str, Any] = {"reservation": str(uuid4()), "lines": [{"sku": sku, "quantity": 1}]}
    machine = market.of("service", None, **{"Idempotency-Key": body["reservation"]})
    first = market.post("/stocks/reservations", body, machine, 201)
    assert market.post("/stocks/reservations", body, machine, 201) == first
    market.live.catch_up()
    assert market.post("/stocks/reservations", body, machine, 201) == first
    assert stock_of(market, sku).reserved == 1
    market.post(f"/stocks/reservations/{body['reservation']}/commit", {"lines": [{"sku": sku}]}, market.of("service"))
    market.live.catch_up()
    assert market.post("/stocks/reservations", body, machine, 201) == first
    assert stock_of(market, sku).on_hand == 0


def test_64_clients_on_the_last_20_pieces(two: Market) -> None:
    sku = fresh()
    two.on_sale(two.of(), sku, pieces=20)
    got = reserving(two, [{sku: 1}] * CLIENTS)
    assert Counter(status for _, status in got) == {201: 20, 409: CLIENTS - 20}
    stock = stock_of(two, sku)
    assert {str(cause) for cause in stock.quota.holds} == {id for id, status in got if status == 201}
    assert stock.available == 0
    shelf_is_stock(two, sku)


def test_64_clients_without_redis_sell_the_same_20_pieces(two: Market) -> None:
    sku = fresh()
    two.on_sale(two.of(), sku, pieces=20)
    with redis_client.Redis.from_url(two.settings.redis) as client:
        client.flushdb()  # nothing more happens to it until the first command: the gate knows nothing
    assert Counter(status for _, status in reserving(two, [{sku: 1}] * CLIENTS)) == {201: 20, 409: CLIENTS - 20}
    assert stock_of(two, sku).available == 0
    shelf_is_stock(two, sku)


def test_several_skus_are_reserved_together_or_not_at_all(two: Market) -> None:
    skus = [fresh() for _ in range(3)]
    two.on_sale(two.of(), *skus, pieces=20)
    dice, wanted = random.Random(4), []
    for _ in range(CLIENTS):
        some = dice.sample(skus, 2)  # in any order: nobody waits in a circle
        wanted.append({sku: dice.randrange(1, 4) for sku in some})
    got = reserving(two, wanted)
    after = [stock_of(two, sku) for sku in skus]
    held = {
        sku: {str(c): amounts[sku] for c, amounts in stock.quota.holds.items()}
        for sku, stock in zip(skus, after, strict=True)
    }
    for (id, status), amounts in zip(got, wanted, strict=True):
        for sku in skus:
            assert held[sku].get(id) == (amounts.get(sku) if status == 201 else None)
    assert all(stock.available >= 0 for stock in after)
    left = {sku: stock.available for sku, stock in zip(skus, after, strict=True)}
    late = reserving(
        two, [{sku: pieces} for sku, pieces in left.items() if pieces]
    )  # what is left can be had, to the piece
    assert {status for _, status in late} <= {201}
    shelf_is_stock(two, *skus)
    assert [stock_of(two, sku).available for sku in skus] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_redis_flushed_at_a_random_moment_sells_neither_too_much_nor_too_little(two: Market, seed: int) -> None:
    sku, dice, sold, calm = fresh(), random.Random(seed), threading.Event(), threading.Event()
    two.on_sale(two.of(), sku, pieces=40)

    def flush() -> None:
        with redis_client.Redis.from_url(two.settings.redis) as client:
            while not sold.is_set():
                client.flushdb()
                calm.wait(dice.random() / 20)

    flushing = threading.Thread(target=flush)
    flushing.start()
    try:
        got = reserving(two, [{sku: 1}] * CLIENTS)
    finally:
        sold.set()
        flushing.join()
    taken = sum(status == 201 for _, status in got)
    assert taken == stock_of(two, sku).reserved <= 40
    for _ in range(20):  # turned away by a stale fold at worst, so whoever asks again gets what is left
        if taken < 40:
            taken += sum(status == 201 for _, status in reserving(two, [{sku: 1}] * CLIENTS))
    assert taken == stock_of(two, sku).reserved == 40
    two.post(f"/stocks/{stock_id(sku)}/receive", {"quantity": 5, "reference": "note"}, two.of("admin"))
    shelf_is_stock(two, sku)
    with psycopg.connect(two.settings.postgres) as connection:
        timers = connection.execute("SELECT count(*) FROM inventory_timers").fetchone()
    assert timers == (40,)
