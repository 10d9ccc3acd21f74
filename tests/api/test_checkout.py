"""What `POST /checkouts` refuses before anything is begun, what it passes on, and who sees a checkout."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import redis as redis_client

from aggregates.cart import Cart
from aggregates.inventory import Stock
from aggregates.kernel.code import new_code, read_code
from api.kernel.limits import Limits
from projections.inventory import shelf_of, shelves
from projections.kernel.redis_sink import RedisSink
from tests.api.conftest import Market

ADDRESS = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}


def buying(cart: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"cart": cart["id"], "contents": cart["contents"], "method": "tok_visa", "address": ADDRESS, **more}


def for_sale(mall: Market, pieces: int) -> str:
    sku = f"MUG-{uuid4().hex[:12]}"
    mall.on_sale(mall.of(), sku, pieces=pieces)
    mall.live.catch_up()
    return sku


@pytest.fixture
def mug(mall: Market) -> str:
    return for_sale(mall, 10)


def refused(mall: Market, by: dict[str, str], cart: dict[str, Any], **more: Any) -> str:
    detail: str = mall.post("/checkouts", buying(cart, **more), by, 409)["detail"]
    return detail


def test_a_cart_is_bought_at_its_prices_with_tax_and_shipping(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    cart = mall.cart(me, **{mug: 2})
    made = mall.http.post("/checkouts", json=buying(cart, shipping="express"), headers=me)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"/checkouts/{made.json()['id']}"
    begun = mall.read(made.headers["location"], me, after=made.json()["position"])
    net, tax = 2 * 1999 + 1290, 760 + 245  # 19 % of 3998 and of 1290, each rounded
    assert (begun["cart"], begun["total"], begun["currency"]) == (cart["id"], net + tax, "EUR")
    [first] = mall.read(f"/checkouts/{begun['id']}/events", me)["items"]
    assert first["data"]["address"] == ADDRESS  # opened for whoever may see it
    assert first["data"]["contents"] == cart["contents"]
    abroad = mall.post("/checkouts", buying(mall.cart(me, **{mug: 2}), address={**ADDRESS, "country": "CH"}), me, 201)
    assert mall.read(f"/checkouts/{abroad['id']}", me, after=abroad["position"])["total"] == 2 * 1999 + 490


def test_a_cart_that_is_not_what_was_seen_is_refused(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    seen = mall.cart(me, **{mug: 1})
    more = mall.post(f"/carts/{seen['id']}/lines", {"sku": mug, "quantity": 1}, me)
    assert refused(mall, me, seen) == "the cart has changed: it is at contents 3, not 2"  # though nobody waited for it
    now = mall.read(f"/carts/{seen['id']}", me, after=more["position"])
    mall.post("/checkouts", buying(now), me, 201)


def test_a_cart_that_is_not_ones_own_is_refused(mall: Market, mug: str) -> None:
    me, other = mall.of("customer"), mall.of("customer")
    theirs = mall.cart(other, **{mug: 1})
    for cart in (theirs, {"id": str(uuid4()), "contents": 1}):
        assert refused(mall, me, cart) == "there is no such cart of yours"
    assert refused(mall, mall.of("admin"), theirs) == "there is no such cart of yours"
    mall.post("/checkouts", buying(theirs), {}, 401)
    mall.post("/checkouts", buying(theirs), mall.of("analyst"), 403)


def test_a_guests_cart_is_merged_first(mall: Market, mug: str) -> None:
    me, token = mall.of("customer"), uuid4().hex
    id = mall.post("/carts", {"currency": "EUR", "guest_token": token}, {}, 201)["id"]
    mall.post(f"/carts/{id}/lines", {"sku": mug, "quantity": 1}, {"Cart-Token": token})
    guests = {"id": id, "contents": 2}
    assert refused(mall, me, guests) == "this is a guest's cart: log in and merge it into one of your own first"
    mine = mall.post("/carts", {"currency": "EUR"}, me, 201)["id"]
    merged = mall.post(f"/carts/{mine}/merge", {"guest": id, "guest_token": token}, me)
    mall.post("/checkouts", buying(mall.read(f"/carts/{mine}", me, after=merged["position"])), me, 201)


def test_a_cart_that_cannot_be_bought_is_refused(mall: Market, mug: str) -> None:
    me, checkout = mall.of("customer"), uuid4()
    assert refused(mall, me, mall.cart(me)) == "the cart is empty"
    cart = mall.cart(me, **{mug: 1})
    mall.tell(cart["id"], Cart.lock, checkout, cart["contents"])
    assert refused(mall, me, cart) == "the cart is being checked out"
    mall.tell(cart["id"], Cart.check_out, checkout)
    assert refused(mall, me, cart) == "the cart is checked out"
    yen = mall.post("/carts", {"currency": "CHF"}, me, 201)
    assert refused(mall, me, {"id": yen["id"], "contents": 1}) == "nothing can be shipped for CHF yet"


def test_another_price_or_no_sale_is_refused(mall: Market) -> None:
    seller, me, sku = mall.of(), mall.of("customer"), f"TEE-{uuid4().hex[:12]}"
    mall.on_sale(seller, sku, pieces=5)
    mall.live.catch_up()
    cart = mall.cart(me, **{sku: 1})
    product = cart["lines"][0]["product"]
    prices = {"prices": [{"amount": 2500, "currency": "EUR"}]}
    mall.http.put(f"/products/{product}/variants/{sku}/prices", json=prices, headers=seller)
    mall.live.catch_up()
    assert refused(mall, me, cart) == f"the price of {sku} is 2500 now, not 1999: accept it in the cart first"
    accepted = mall.post(f"/carts/{cart['id']}/lines/{sku}/accept-price", None, me)
    cart = mall.read(f"/carts/{cart['id']}", me, after=accepted["position"])
    mall.post("/checkouts", buying(cart), me, 201)
    mall.post(f"/products/{product}/archive", None, seller)
    mall.live.catch_up()
    assert refused(mall, me, cart) == f"{sku} is not for sale any more: take it out of the cart"


def test_too_few_in_stock_is_refused(mall: Market) -> None:
    me, sku = mall.of("customer"), for_sale(mall, 3)
    cart = mall.cart(me, **{sku: 4})
    for _ in range(3):  # whether the gate says so or the stock itself
        assert refused(mall, me, cart) == f"4 of {sku} is more than the 3 left"
    mall.post("/checkouts", buying(mall.cart(me, **{sku: 3})), me, 201)
    unstocked = f"{sku}-2"
    mall.post(
        "/products",
        {"title": "x", "variants": [{"sku": unstocked, "prices": [{"amount": 1, "currency": "EUR"}]}], "publish": True},
        mall.of(),
        201,
    )
    mall.live.catch_up()
    assert refused(mall, me, mall.cart(me, **{unstocked: 1})) == f"{unstocked} is not in stock"


def test_a_fold_that_lags_refuses_nothing(mall: Market) -> None:
    me, sku = mall.of("customer"), for_sale(mall, 3)
    cart = mall.cart(me, **{sku: 5})
    assert refused(mall, me, cart) == f"5 of {sku} is more than the 3 left"
    [redis] = [runner for runner in mall.live.runners if isinstance(runner.sink, RedisSink)]
    with mall.live.locks[redis]:  # nothing reaches Redis
        mall.tell(str(shelf_of(sku)), Stock.receive, 2, "delivery note")
        answer = mall.http.post("/checkouts", json=buying(cart), headers=me)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:titan:problem:view-pending")
    mall.post("/checkouts", buying(cart), me, 201)


def test_a_fold_that_lost_a_row_leaves_it_to_the_saga(mall: Market) -> None:
    me, sku = mall.of("customer"), for_sale(mall, 3)
    cart = mall.cart(me, **{sku: 3})
    with redis_client.Redis.from_url(mall.settings.redis) as client:
        client.delete(f"{shelves.tag(mall.settings.namespace)}:{shelf_of(sku)}")
    mall.post("/checkouts", buying(cart), me, 201)


def test_a_run_on_the_last_pieces_is_turned_away_at_the_gate(mall: Market) -> None:
    """As many checkouts begin as there are pieces for, before any saga has reserved one."""
    sku = for_sale(mall, 5)
    shoppers = [mall.of("customer") for _ in range(16)]
    carts = [mall.cart(by, **{sku: 1}) for by in shoppers]

    async def run() -> list[int]:
        async with httpx.AsyncClient(base_url=mall.urls[0], timeout=20) as http:
            posts = [http.post("/checkouts", json=buying(c), headers=by) for c, by in zip(carts, shoppers, strict=True)]
            return [answer.status_code for answer in await asyncio.gather(*posts)]

    assert Counter(asyncio.run(run())) == {201: 5, 409: 11}
    mall.tell(str(shelf_of(sku)), Stock.receive, 20, "delivery note")
    mall.live.catch_up()
    mall.post("/checkouts", buying(mall.cart(shoppers[0], **{sku: 1})), shoppers[0], 201)


def test_a_request_sent_again_has_the_first_answer_though_the_cart_is_gone(mall: Market) -> None:
    me, sku = mall.of("customer", None, **{"Idempotency-Key": uuid4().hex}), for_sale(mall, 2)
    cart = mall.cart({"Authorization": me["Authorization"]}, **{sku: 2})
    body = buying(cart)
    first = mall.http.post("/checkouts", json=body, headers=me)
    assert first.status_code == 201, first.text
    made = first.json()

    def again() -> None:
        answer = mall.http.post("/checkouts", json=body, headers=me)
        assert (answer.status_code, answer.json()) == (201, made)
        assert answer.headers["idempotency-replayed"] == "true"
        assert answer.headers["location"] == first.headers["location"]

    again()  # the gate keeps the last pieces for the first one
    mall.live.catch_up()
    again()
    mall.tell(cart["id"], Cart.lock, UUID(made["id"]), cart["contents"])
    again()
    mall.tell(cart["id"], Cart.check_out, UUID(made["id"]))
    mall.live.catch_up()
    again()
    with redis_client.Redis.from_url(mall.settings.redis) as client:
        pending = client.hgetall(f"{shelves.tag(mall.settings.namespace)}!pending:{shelf_of(sku)}")
    assert {name.decode() for name in pending} <= {"", made["id"]}  # what was kept for the repetitions is given back
    changed = mall.http.post("/checkouts", json={**body, "shipping": "express"}, headers=me)
    assert (changed.status_code, changed.json()["type"]) == (422, "urn:titan:problem:reused")
    assert (
        mall.post("/checkouts", body, {**me, "Idempotency-Key": "another"}, 409)["detail"] == "the cart is checked out"
    )


@pytest.mark.parametrize(
    "more",
    [
        {"contents": 0},
        {"method": "4242424242424242"},
        {"method": ""},
        {"shipping": "drone"},
        {"address": {**ADDRESS, "country": "Germany"}},
        {"address": {key: value for key, value in ADDRESS.items() if key != "city"}},
        {"coupon": "FREE"},
    ],
)
def test_a_malformed_checkout_is_told_so(mall: Market, more: dict[str, Any]) -> None:
    mall.post("/checkouts", buying({"id": str(uuid4()), "contents": 1}, **more), mall.of("customer"), 422)


def test_a_card_number_in_a_token_is_refused_and_not_repeated(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    answer = mall.http.post(
        "/checkouts", json=buying(mall.cart(me, **{mug: 1}), method="tok_4242424242424242"), headers=me
    )
    assert answer.status_code == 409
    assert "card number" in answer.json()["detail"]
    assert "4242" not in answer.text


def test_a_checkout_is_its_customers(mall: Market, mug: str) -> None:
    me, other = mall.of("customer"), mall.of("customer")
    made = mall.post("/checkouts", buying(mall.cart(me, **{mug: 1})), me, 201)
    id, after = made["id"], made["position"]
    mall.read(f"/checkouts/{id}", me, after=after)
    for path in (f"/checkouts/{id}", f"/checkouts/{id}/events"):
        mall.read(path, other, 404)
        mall.read(path, {}, 401)
        mall.read(path, mall.of("admin"))
    assert [one["id"] for one in mall.read("/checkouts", me)["items"]] == [id]
    assert mall.read("/checkouts", other)["items"] == []
    assert mall.read(f"/checkouts/{id}", me, version=1)["status"] == "running"


def keep(mall: Market, by: dict[str, str], **more: str) -> str:
    """A way to pay that a customer saves."""
    way = {"gateway": "test", "token": "tok_mastercard", "brand": "visa", "last_four": "4242", "expires": "2099-12"}
    path = f"/payments/methods/{(id := str(uuid4()))}"
    answer = mall.http.put(path, json={**way, **more}, headers=by)
    assert answer.status_code == 200, answer.text
    return id


def test_a_saved_way_to_pay_is_used_by_whom_it_is(mall: Market, mug: str) -> None:
    me, other = mall.of("customer"), mall.of("customer")
    mine, old, gone = (keep(mall, me, token=token) for token in ("tok_mastercard", "tok_visa", "tok_webhookTwice"))
    keep(mall, other)
    expired = {"gateway": "test", "token": "tok_visa", "brand": "visa", "last_four": "4242", "expires": "2020-01"}
    assert mall.http.put(f"/payments/methods/{old}", json=expired, headers=me).status_code == 200
    assert mall.http.delete(f"/payments/methods/{gone}", headers=me).status_code == 200
    cart, theirs = mall.cart(me, **{mug: 1}), mall.cart(other, **{mug: 1})

    def shelf() -> str:
        with redis_client.Redis.from_url(mall.settings.redis) as client:
            return str(client.hgetall(f"{shelves.tag(mall.settings.namespace)}!pending:{shelf_of(mug)}"))

    kept = shelf()
    nowhere = "there is no such way to pay of yours: it was removed, or never saved"
    for by, seen, saved in ((other, theirs, mine), (me, cart, gone), (me, cart, str(uuid4()))):
        answer = mall.post("/checkouts", buying(seen, method=None, saved=saved), by, 404)
        assert answer["detail"] == nowhere
    assert refused(mall, me, cart, method=None, saved=old) == "this way to pay has expired"
    assert refused(mall, me, cart, saved=mine).startswith("a card is charged by a token, or by a way to pay")
    assert shelf() == kept, "nothing is kept at the gate for what was refused"
    made = mall.post("/checkouts", buying(cart, method=None, saved=mine), me, 201)
    [begun] = mall.read(f"/checkouts/{made['id']}/events", me, after=made["position"])["items"]
    chosen = {name: begun["data"][name] for name in ("saved", "gateway", "method")}
    assert chosen == {"saved": mine, "gateway": "test", "method": "tok_mastercard"}


def live_at(mall: Market, by: dict[str, str], id: UUID, **lines: str) -> str:
    """An address that a person keeps; the first one is the default."""
    path = f"/users/{id}/addresses/{(address := str(uuid4()))}"
    given = {"recipient": "Ada Lovelace", "street": "12 Milk Street\nRoom 4", "company": "Engines", **lines}
    answer = mall.http.put(path, json=given, headers=by)
    assert answer.status_code == 200, answer.text
    return address


def test_what_a_checkout_does_not_name_is_the_persons_own(mall: Market, mug: str) -> None:
    """The preferred way to pay and the default address, as they are at that moment."""
    ada, key = uuid4(), {"Idempotency-Key": uuid4().hex}
    me = mall.of("customer", ada)
    cart = mall.cart(me, **{mug: 1})
    bare = {"cart": cart["id"], "contents": cart["contents"]}
    none = "you keep no default shipping address: name an address"
    assert mall.post("/checkouts", {**bare, "method": "tok_visa"}, me, 422)["detail"] == none
    mall.post("/users", None, me, 201)
    assert mall.post("/checkouts", {**bare, "method": "tok_visa"}, me, 422)["detail"] == none
    home = live_at(mall, me, ada, city="Austin", region="TX", postcode="78701", country="US")
    left = "2489 of 2489 are left to be paid by a card: name a method, or prefer a saved one"
    assert mall.post("/checkouts", bare, me, 422)["detail"] == left
    keep(mall, me, token="tok_visa", expires="2020-01")  # preferred, being the first, and can't pay
    assert mall.post("/checkouts", bare, me, 422)["detail"] == left
    preferred = keep(mall, me)
    assert mall.http.post(f"/payments/methods/{preferred}/prefer", headers=me).status_code == 200
    made = mall.post("/checkouts", bare, {**me, **key}, 201)

    def data(of: dict[str, Any]) -> dict[str, Any]:
        [begun] = mall.read(f"/checkouts/{of['id']}/events", me, after=of["position"])["items"]
        found: dict[str, Any] = begun["data"]
        return found

    begun = data(made)
    assert [begun[name] for name in ("saved", "gateway", "method")] == [preferred, "test", "tok_mastercard"]
    assert begun["address"] == {
        "recipient": "Ada Lovelace, Engines", "street": "12 Milk Street, Room 4", "city": "AUSTIN, TX", "postcode": "78701",
        "country": "US",
    }  # fmt: skip

    # Sent again it is the same checkout, whatever is the default by then, and though there is none any more.
    moved = live_at(mall, me, ada, city="Berlin", postcode="10115", country="DE")
    mall.http.put(f"/users/{ada}/defaults/shipping/{moved}", headers=me)
    other = keep(mall, me, token="tok_webhookTwice")
    mall.http.post(f"/payments/methods/{other}/prefer", headers=me)
    assert mall.post("/checkouts", bare, {**me, **key}, 201) == made
    again = data(
        mall.post(
            "/checkouts", {"cart": (more := mall.cart(me, **{mug: 1}))["id"], "contents": more["contents"]}, me, 201
        )
    )
    assert (again["saved"], again["address"]["country"], again["shipping_tax_bp"]) == (other, "DE", 1900)
    named = buying(mall.cart(me, **{mug: 1}), method=None, saved=preferred)
    assert data(mall.post("/checkouts", named, me, 201))["saved"] == preferred
    for path in (f"/users/{ada}/addresses/{moved}", f"/users/{ada}/addresses/{home}", f"/payments/methods/{other}"):
        assert mall.http.delete(path, headers=me).status_code == 200
    assert mall.post("/checkouts", bare, {**me, **key}, 201) == made
    cart = mall.cart(me, **{mug: 1})
    bare = {"cart": cart["id"], "contents": cart["contents"]}
    assert mall.post("/checkouts", {**bare, "method": "tok_visa"}, me, 422)["detail"] == none
    assert "left to be paid by a card" in mall.post("/checkouts", {**bare, "address": ADDRESS}, me, 422)["detail"]


def gift(mall: Market, amount: int, currency: str = "EUR", **more: object) -> dict[str, Any]:
    return mall.post("/vouchers", {"amount": amount, "currency": currency, **more}, mall.of("service"), 201)


def purse(mall: Market, me: dict[str, str], amount: int) -> str:
    id: str = mall.post("/wallets", {"currency": "EUR"}, me, 201)["id"]
    mall.post(f"/wallets/{id}/credits", {"amount": amount, "currency": "EUR"}, mall.of("service"))
    return id


def shares(mall: Market, me: dict[str, str], made: dict[str, Any]) -> dict[str, int]:
    shown = mall.read(f"/checkouts/{made['id']}", me, after=made["position"])
    assert sum(one["amount"] for one in shown["tenders"]) == shown["total"]
    assert (shown["payment"] is None) == ("card" not in [one["kind"] for one in shown["tenders"]])
    return {one["source"]: one["amount"] for one in shown["tenders"]}


def test_vouchers_pay_first_then_the_wallet_then_the_card(mall: Market, mug: str) -> None:
    ada = uuid4()
    me, first, second = mall.of("customer", ada), gift(mall, 1_000), gift(mall, 500)
    wallet = purse(mall, me, 1_500)
    cart = mall.cart(me, **{mug: 2})  # 5341 in all
    named = [first["code"].lower().replace("-", ""), second["code"]]
    made = mall.post("/checkouts", buying(cart, vouchers=named, wallet=True), me, 201)
    paid = shares(mall, me, made)
    card = mall.read(f"/checkouts/{made['id']}", me)["payment"]
    assert list(paid.items()) == [(first["id"], 1_000), (second["id"], 500), (wallet, 1_500), (card, 2_341)]
    capped = mall.post("/checkouts", buying(mall.cart(me, **{mug: 1}), wallet=200), me, 201)
    assert shares(mall, me, capped)[wallet] == 200
    text = mall.http.get(f"/checkouts/{made['id']}/events", headers=me).text
    with mall.database() as connection:
        query = "SELECT string_agg(encode(state, 'escape'), '') FROM checkout_events"
        [(stored,)] = connection.execute(query).fetchall()
    assert str(first["id"]) in text
    for code in (first["code"], read_code(first["code"])):
        assert code not in text and code not in stored


def test_what_vouchers_or_a_wallet_cover_needs_no_card(mall: Market, mug: str) -> None:
    me, card = mall.of("customer"), gift(mall, 10_000)
    bare = {"cart": "", "contents": 0, "address": ADDRESS}
    cart = mall.cart(me, **{mug: 1})
    by_voucher = {**bare, "cart": cart["id"], "contents": cart["contents"], "vouchers": [card["code"]]}
    made = mall.post("/checkouts", by_voucher, me, 201)
    assert shares(mall, me, made) == {card["id"]: 2_962}
    purse(mall, me, 2_961)
    cart = mall.cart(me, **{mug: 1})
    by_wallet = {**bare, "cart": cart["id"], "contents": cart["contents"], "wallet": True}
    left = "1 of 2962 are left to be paid by a card: name a method, or prefer a saved one"
    assert mall.post("/checkouts", by_wallet, me, 422)["detail"] == left


def test_a_voucher_of_ones_own_is_named_by_its_id(mall: Market, mug: str) -> None:
    ada = uuid4()
    me, till = mall.of("customer", ada), mall.of("service")
    credit = mall.post("/vouchers/credits", {"amount": 700, "currency": "EUR", "holder": str(ada)}, till, 201)["id"]
    made = mall.post("/checkouts", buying(mall.cart(me, **{mug: 1}), vouchers=[credit]), me, 201)
    assert shares(mall, me, made)[credit] == 700
    other = mall.of("customer")
    unknown = "no voucher of yours has this code: look for a typing error"
    for id in (credit, gift(mall, 500)["id"], str(uuid4())):  # another's, nobody's yet, none
        answer = mall.post("/checkouts", buying(mall.cart(other, **{mug: 1}), vouchers=[id]), other, 404)
        assert answer["detail"] == unknown


def test_what_can_pay_nothing_is_told_so(mall: Market, mug: str) -> None:
    me, till = mall.of("customer"), mall.of("service")
    cart = mall.cart(me, **{mug: 1})
    dollars, used, voided = gift(mall, 500, "USD"), gift(mall, 500), gift(mall, 500)
    spent = {
        "amount": 500,
        "currency": "EUR",
        "code": used["code"],
        "customer": str(uuid4()),
        "redemption": str(uuid4()),
    }
    mall.post("/vouchers/redeem", spent, till)
    mall.post(f"/vouchers/{voided['id']}/void", {"reason": "lost"}, till)
    assert refused(mall, me, cart, vouchers=[dollars["code"]]).endswith("is in USD, not EUR")
    assert refused(mall, me, cart, vouchers=[used["code"]]).startswith("nothing is left of the voucher")
    assert refused(mall, me, cart, vouchers=[code := gift(mall, 5)["code"], code]) == "a voucher is named twice"
    assert refused(mall, me, cart, wallet=True) == "you have no wallet in EUR"
    for code in (voided["code"], new_code(), "nonsense"):
        mall.post("/checkouts", buying(cart, vouchers=[code]), me, 404)
    mall.post("/checkouts", buying(cart, vouchers=[code] * 11), me, 422)
    mall.post("/checkouts", buying(cart, wallet=0), me, 422)


def test_who_tries_codes_out_at_checkout_is_slowed_down_as_at_the_vouchers(mall: Market, mug: str) -> None:
    guesser, good = mall.of("customer", uuid4()), gift(mall, 500)["code"]
    cart = mall.cart(guesser, **{mug: 1})
    for n in range(Limits().code_tries):
        path, body = (
            ("/checkouts", buying(cart, vouchers=[new_code()])) if n % 2 else ("/vouchers/check", {"code": new_code()})
        )
        mall.post(path, body, guesser, 404)
    for code in (new_code(), good):
        mall.post("/checkouts", buying(cart, vouchers=[code]), guesser, 429)
