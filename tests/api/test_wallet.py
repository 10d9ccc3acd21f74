"""Wallets over HTTP: whose money it is, what the statement says, and one wallet that everybody pays into and from at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from aggregates.kernel import Store
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.wallet import TopUp, wallet_id
from projections.wallet import wallet_entries, wallets
from tests.api.conftest import Market, market_on
from tests.kernel.servers import Stack, cache, database
from tests.kernel.topic import rows_in, settings_of

CLIENTS = 64
Headers = dict[str, str]


@pytest.fixture(scope="module")
def bank(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """Two servers on one set of stores."""
    with database(stack) as postgres, cache(stack) as redis:
        settings = settings_of(postgres, redis, tmp_path_factory.mktemp("bank"))
        with market_on(settings, servers=2, domains=["payment", "user", "wallet"]) as market:
            yield market


@pytest.fixture(scope="module")
def till(bank: Market) -> Headers:
    return bank.of("service")


def eur(amount: int, **more: object) -> dict[str, Any]:
    return {"amount": amount, "currency": "EUR", **more}


def opened(bank: Market, till: Headers, amount: int = 0) -> tuple[str, Headers]:
    """Somebody's wallet with some money in it, and their headers."""
    owner = uuid4()
    by = bank.of("customer", owner)
    id = bank.post("/wallets", {"currency": "EUR"}, by, 201)["id"]
    assert id == str(wallet_id(owner, "EUR"))
    if amount:
        bank.post(f"/wallets/{id}/credits", eur(amount), till)
    return id, by


def balance(bank: Market, id: str, by: Headers, receipt: dict[str, Any]) -> tuple[int, int]:
    row = bank.read(f"/wallets/{id}", by, after=receipt["position"])
    return row["balance"], row["held"]


def test_an_order_is_paid_out_of_escrow_and_partly_refunded(bank: Market, till: Headers) -> None:
    (ada, hers), (shop, theirs) = opened(bank, till, 10_000), opened(bank, till)
    order = str(uuid4())
    held = bank.post(f"/wallets/{ada}/escrows", eur(6_000, escrow=order), till)
    assert balance(bank, ada, hers, held) == (4_000, 6_000)
    assert bank.post(f"/wallets/{ada}/escrows", eur(6_000, escrow=order), till)["version"] == held["version"]
    bank.post(f"/wallets/{ada}/escrows", eur(6_001, escrow=order), till, 409)
    bank.post(f"/wallets/{ada}/escrows", eur(4_001, escrow=str(uuid4())), till, 409)
    path = f"/wallets/{ada}/escrows/{order}"
    bank.post(f"{path}/release", {"part": eur(1_000)}, till)
    bank.post(f"{path}/freeze", {"reason": "not as described"}, till)
    assert "frozen" in bank.post(f"{path}/capture", {"payee": shop}, till, 409)["detail"]
    bank.post(f"{path}/unfreeze", None, till)
    bank.post(f"{path}/capture", {"payee": shop, "part": eur(2_000)}, till)
    bank.post(f"{path}/capture", {"payee": shop}, till)
    bank.post(f"{path}/release", {}, till, 409)
    bank.post(f"{path}/refund", eur(5_001, payee=shop), till, 409)
    last = bank.post(f"{path}/refund", eur(500, payee=shop), till)
    assert balance(bank, ada, hers, last) == (5_500, 0)
    assert bank.read(f"/wallets/{shop}", theirs)["balance"] == 4_500
    [escrow] = bank.read(f"/wallets/{ada}/escrows", hers)["items"]
    assert {n: escrow[n] for n in ("amount", "left", "captured", "refunded", "status")} == {
        "amount": 6_000, "left": 0, "captured": 5_000, "refunded": 500, "status": "captured",
    }  # fmt: skip


def test_a_statement_runs_from_line_to_line_and_page_to_page(bank: Market, till: Headers) -> None:
    (ada, hers), (bob, _) = opened(bank, till, 1_000), opened(bank, till)
    for amount in range(1, 8):
        last = bank.post(f"/wallets/{ada}/transfers", eur(amount, to=bob), hers)
    lines, cursor = [], None
    while True:
        page = bank.read(
            f"/wallets/{ada}/statement", hers, limit=3, after=last["position"], **({"cursor": cursor} if cursor else {})
        )
        lines += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
        assert len(page["items"]) == 3
    assert [one["amount"] for one in lines] == [-7, -6, -5, -4, -3, -2, -1, 1_000]
    assert [one["what"] for one in lines] == ["sent"] * 7 + ["credit"]
    for later, earlier in pairwise(lines):
        assert later["balance"] == earlier["balance"] + later["amount"]
    assert {one["other"] for one in lines[:7]} == {bob}


def test_a_transfer_with_a_key_is_made_once(bank: Market, till: Headers) -> None:
    (ada, hers), (bob, _) = opened(bank, till, 1_000), opened(bank, till)
    keyed = {**hers, "Idempotency-Key": uuid4().hex}
    first = bank.post(f"/wallets/{ada}/transfers", eur(600, to=bob), keyed)
    assert bank.post(f"/wallets/{ada}/transfers", eur(600, to=bob), keyed) == first
    bank.post(f"/wallets/{ada}/transfers", eur(400, to=bob), keyed, 422)
    assert balance(bank, ada, hers, first) == (400, 0)


def test_what_moves_money_needs_a_key(bank: Market, till: Headers) -> None:
    """Sent again because its answer was lost, it would be done twice: whoever has no key is told so, and nothing is done."""
    (ada, hers), (bob, _), escrow = opened(bank, till, 1_000), opened(bank, till), uuid4()
    document = bank.http.get("/openapi.json").json()["paths"]
    held = "/wallets/{id}/escrows/{escrow}"
    for path, body, by in (
        ("/wallets/{id}/topups", eur(1, method="tok_visa"), hers),
        ("/wallets/{id}/withdrawals", eur(1, topup=str(uuid4())), hers),
        ("/wallets/{id}/transfers", eur(1, to=bob), hers),
        ("/wallets/{id}/credits", eur(1), till),
        (f"{held}/release", {"part": eur(1)}, till),
        (f"{held}/capture", {"part": eur(1), "payee": bob}, till),
        (f"{held}/refund", eur(1, payee=bob), till),
    ):
        filled = path.format(id=ada, escrow=escrow)
        answer = bank.http.post(filled, json=body, headers=by)
        assert answer.status_code == 422, (path, answer.text)
        assert [one["parameter"] for one in answer.json()["errors"]] == ["Idempotency-Key"]
        [key] = [one for one in document[path]["post"]["parameters"] if one["name"] == "Idempotency-Key"]
        assert key["required"], path
    done = bank.post(f"/wallets/{ada}/transfers", eur(1, to=bob), hers)
    assert balance(bank, ada, hers, done) == (999, 0)


def test_a_wallets_money_is_its_owners(bank: Market, till: Headers) -> None:
    (ada, hers), (bob, his) = opened(bank, till, 1_000), opened(bank, till, 1_000)
    order = str(uuid4())
    bank.post(f"/wallets/{ada}/transfers", eur(1, to=bob), his, 404)
    bank.post(f"/wallets/{ada}/topups", eur(1, method="tok_visa"), his, 404)
    bank.post(f"/wallets/{ada}/withdrawals", eur(1, topup=order), his, 404)
    bank.post(f"/wallets/{ada}/transfers", eur(1, to=str(uuid4())), hers, 404)
    for path in ("", "/events", "/statement", "/escrows", "/topups"):
        bank.read(f"/wallets/{ada}{path}", his, 404)
        bank.read(f"/wallets/{ada}{path}", hers)
        bank.read(f"/wallets/{ada}{path}", bank.of("admin"))
        assert bank.http.get(f"/wallets/{ada}{path}").status_code == 401
    assert [one["id"] for one in bank.read("/wallets", hers)["items"]] == [ada]
    escrow = f"/wallets/{ada}/escrows/{order}"
    for path, body in (
        (f"/wallets/{ada}/credits", eur(1)),
        (f"/wallets/{ada}/escrows", eur(1, escrow=order)),
        (f"{escrow}/release", {}),
        (f"{escrow}/capture", {"payee": bob}),
        (f"{escrow}/refund", eur(1, payee=bob)),
        (f"{escrow}/freeze", {"reason": "x"}),
        (f"{escrow}/unfreeze", None),
    ):
        for role in ("customer", "seller", "analyst"):
            bank.post(path, body, bank.of(role, UUID(int=1)), 403)
    bank.post("/wallets", {"currency": "USD", "owner": str(uuid4())}, hers, 403)
    bank.post("/wallets", {"currency": "USD", "owner": str(uuid4())}, till, 201)
    bank.post("/wallets", {"currency": "EUR"}, hers, 409)  # there is one


def test_amounts_are_of_the_wallets_currency_and_have_a_limit(bank: Market, till: Headers) -> None:
    id, by = opened(bank, till)
    for amount, currency, status in ((0, "EUR", 422), (-1, "EUR", 422), (10**30, "EUR", 422), (1, "euro", 422)):
        bank.post(f"/wallets/{id}/credits", {"amount": amount, "currency": currency}, till, status)
    bank.post(f"/wallets/{id}/credits", {"amount": 1, "currency": "USD"}, till, 409)
    bank.post(f"/wallets/{id}/topups", {"amount": 1, "currency": "USD", "method": "tok_visa"}, by, 409)
    bank.post(f"/wallets/{id}/credits", eur(AMOUNT_MAX), till)
    bank.post(f"/wallets/{id}/credits", eur(AMOUNT_MAX + 1), till, 422)


def test_a_top_up_is_seen_to_be_under_way_and_no_card_number_gets_in(bank: Market, till: Headers) -> None:
    id, by = opened(bank, till, 100)
    made = bank.post(f"/wallets/{id}/topups", eur(500, method="tok_visa"), by, 201)
    [one] = bank.read(f"/wallets/{id}/topups", by, after=made["position"])["items"]
    assert (one["id"], one["amount"], one["status"]) == (made["id"], 500, "running")
    bank.post(f"/wallets/{id}/topups", eur(500, method="tok_4242424242424242"), by, 409)
    bank.post(f"/wallets/{id}/topups", eur(500, method="4242424242424242"), by, 422)
    assert "no money in" in bank.post(f"/wallets/{id}/withdrawals", eur(1, topup=made["id"]), by, 409)["detail"]
    other, others = opened(bank, till, 100)
    bank.post(f"/wallets/{other}/withdrawals", eur(1, topup=made["id"]), others, 404)


def test_a_top_up_is_by_the_owners_ways_to_pay_and_routed_by_the_owners_country(bank: Market, till: Headers) -> None:
    ada = uuid4()
    by, (theirs, other) = bank.of("customer", ada), opened(bank, till)
    id = bank.post("/wallets", {"currency": "EUR"}, by, 201)["id"]
    path, key = f"/wallets/{id}/topups", {"Idempotency-Key": uuid4().hex}
    left = "name a method, or prefer a saved one"
    assert bank.post(path, eur(500), by, 422)["detail"] == left

    def keep(token: str, expires: str = "2099-12") -> str:
        way = {"gateway": "test", "token": token, "brand": "visa", "last_four": "4242", "expires": expires}
        answer = bank.http.put(f"/payments/methods/{(method := str(uuid4()))}", json=way, headers=by)
        assert answer.status_code == 200, answer.text
        return method

    first, second = keep("tok_visa"), keep("tok_mastercard")
    made = bank.post(path, eur(500), {**by, **key}, 201)
    named = bank.post(path, eur(500, saved=second, country="CH"), by, 201)
    bank.post(path, eur(500, saved=second, method="tok_visa"), by, 409)
    bank.post(f"/wallets/{theirs}/topups", eur(500, saved=second), other, 404)
    bank.http.post(f"/payments/methods/{second}/prefer", headers=by)
    bank.post("/users", None, by, 201)
    home = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}
    assert bank.http.put(f"/users/{ada}/addresses/{uuid4()}", json=home, headers=by).status_code == 200
    assert bank.post(path, eur(500), {**by, **key}, 201) == made
    again = bank.post(path, eur(500), by, 201)
    by_token = bank.post(path, eur(500, method="tok_slow"), by, 201)
    assert [started(bank, one) for one in (made, named, again, by_token)] == [
        (UUID(first), "test", "tok_visa", None),
        (UUID(second), "test", "tok_mastercard", "CH"),
        (UUID(second), "test", "tok_mastercard", "DE"),
        (None, "", "tok_slow", "DE"),
    ]


def started(bank: Market, made: dict[str, Any]) -> tuple[Any, ...]:
    """What a top-up began with."""

    async def load() -> TopUp:
        async with Store.open(bank.settings.postgres) as store:
            return await store.load(TopUp, UUID(made["id"]))

    one = asyncio.run(load())
    return one.saved, one.gateway, one.method, one.country


def test_a_hot_wallet_under_64_clients_neither_loses_nor_makes_a_cent(bank: Market, till: Headers) -> None:
    """Everybody pays the shop and is paid by it at once, through two servers; money runs out here and there."""
    shop, theirs = opened(bank, till, 300)
    people = [opened(bank, till, 100) for _ in range(8)]
    dice = Random(2)

    async def one(http: httpx.AsyncClient) -> int:
        (id, by), amount, out = dice.choice(people), dice.randint(1, 60), dice.random() < 0.5
        source, target, who = (shop, id, theirs) if out else (id, shop, by)
        headers = {**who, "Idempotency-Key": uuid4().hex}
        answer = await http.post(f"/wallets/{source}/transfers", json=eur(amount, to=target), headers=headers)
        assert answer.status_code in (200, 409), answer.text
        return (-amount if out else amount) if answer.status_code == 200 else 0

    async def all_of_them() -> list[int]:
        clients = [httpx.AsyncClient(base_url=url, timeout=60) for url in bank.urls]
        try:
            return await asyncio.gather(*(one(clients[n % 2]) for n in range(CLIENTS)))
        finally:
            for client in clients:
                await client.aclose()

    by = asyncio.run(all_of_them())
    bank.live.catch_up()
    shown = rows_in(bank.settings, wallets)
    ids = [UUID(shop), *(UUID(id) for id, _ in people)]
    assert shown[ids[0],]["balance"] == 300 + sum(by)
    assert sum(shown[id,]["balance"] for id in ids) == 300 + 100 * len(people)
    assert sum(amount != 0 for amount in by) > CLIENTS // 4
    lines = rows_in(bank.settings, wallet_entries)
    for id in ids:
        mine = sorted((row for row in lines.values() if row["wallet"] == id), key=lambda row: row["version"])
        running = 0
        for row in mine:
            running += row["amount"]
            assert row["balance"] == running >= 0
