"""Carts over HTTP: customers' and guests', whose they are, what they show of prices and stock, and merging at login."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest

from aggregates.cart import Cart
from tests.api.conftest import Market

EUROS = [{"amount": 1999, "currency": "EUR"}]


@pytest.fixture
def mug(mall: Market) -> str:
    """A SKU for sale at 19.99 EUR, ten pieces in stock."""
    sku = f"MUG-{uuid4().hex[:12]}"
    mall.on_sale(mall.of(), sku, pieces=10)
    mall.live.catch_up()
    return sku


def guest(mall: Market, sku: str, quantity: int) -> tuple[str, dict[str, str]]:
    """A guest's cart, and the headers that prove it."""
    token = uuid4().hex
    id = mall.post("/carts", {"currency": "EUR", "guest_token": token}, {}, 201)["id"]
    mine = {"Cart-Token": token}
    mall.post(f"/carts/{id}/lines", {"sku": sku, "quantity": quantity}, mine)
    return id, mine


def problems(cart: dict[str, Any]) -> dict[str, Any]:
    return {line["sku"]: line["problem"] for line in cart["lines"]}


def test_a_customer_fills_a_cart_and_reads_each_change_at_once(mall: Market, mug: str) -> None:
    me, other = mall.of("customer"), f"{mug}-2"
    mall.on_sale(mall.of(), other)
    mall.live.catch_up()
    id = mall.post("/carts", {"currency": "EUR"}, me, 201)["id"]
    put, lines = mall.http.put, f"/carts/{id}/lines"
    steps: list[tuple[Callable[[], httpx.Response], int, dict[str, int]]] = [
        (lambda: mall.http.post(lines, json={"sku": mug, "quantity": 2}, headers=me), 2, {mug: 2}),
        (lambda: mall.http.post(lines, json={"sku": mug, "quantity": 1}, headers=me), 3, {mug: 3}),
        (lambda: mall.http.post(lines, json={"sku": other, "quantity": 1}, headers=me), 4, {mug: 3, other: 1}),
        (lambda: put(f"{lines}/{mug}", json={"quantity": 5}, headers=me), 5, {mug: 5, other: 1}),
        (lambda: put(f"{lines}/{mug}", json={"quantity": 5}, headers=me), 5, {mug: 5, other: 1}),
        (lambda: put(f"{lines}/{other}", json={"quantity": 0}, headers=me), 6, {mug: 5}),
        (lambda: mall.http.delete(f"{lines}/{mug}", headers=me), 7, {}),
        (lambda: mall.http.delete(f"{lines}/{mug}", headers=me), 7, {}),
    ]
    for send, contents, quantities in steps:
        answer = send()
        assert answer.status_code == 200, answer.text
        cart = mall.read(f"/carts/{id}", me, after=answer.json()["position"])
        assert {one["sku"]: one["quantity"] for one in cart["lines"]} == quantities
        assert (cart["contents"], cart["version"], cart["status"]) == (contents, contents, "open")
        assert cart["subtotal"] == sum(1999 * quantity for quantity in quantities.values())


def test_a_cart_just_made_is_read_without_its_position(mall: Market) -> None:
    me = mall.of("customer")
    for _ in range(5):
        assert mall.read(f"/carts/{mall.post('/carts', {'currency': 'EUR'}, me, 201)['id']}", me)["lines"] == []


def test_a_line_shows_what_is_in_stock(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    cart = mall.cart(me, **{mug: 10})
    assert [(line["available"], line["problem"]) for line in cart["lines"]] == [(10, None)]
    more = mall.post(f"/carts/{cart['id']}/lines", {"sku": mug, "quantity": 1}, me)  # a wish; the checkout refuses it
    cart = mall.read(f"/carts/{cart['id']}", me, after=more["position"])
    assert problems(cart) == {mug: "too few in stock"}
    unstocked = f"{mug}-2"
    mall.post(
        "/products", {"title": "x", "variants": [{"sku": unstocked, "prices": EUROS}], "publish": True}, mall.of(), 201
    )
    mall.live.catch_up()
    [line] = mall.cart(me, **{unstocked: 1})["lines"]
    assert (line["available"], line["problem"]) == (None, None)


def test_another_price_is_shown_and_accepted(mall: Market) -> None:
    seller, me, sku = mall.of(), mall.of("customer"), f"TEE-{uuid4().hex[:12]}"
    [stock] = mall.on_sale(seller, sku, pieces=5)
    assert stock
    mall.live.catch_up()
    cart = mall.cart(me, **{sku: 2})
    product = cart["lines"][0]["product"]
    prices = {"prices": [{"amount": 2500, "currency": "EUR"}]}
    assert mall.http.put(f"/products/{product}/variants/{sku}/prices", json=prices, headers=seller).status_code == 200
    mall.live.catch_up()
    cart = mall.read(f"/carts/{cart['id']}", me)
    assert [(line["unit_price"], line["price_now"], line["problem"]) for line in cart["lines"]] == [
        (1999, 2500, "price changed")
    ]
    assert cart["subtotal"] == 5000
    mall.post(f"/carts/{cart['id']}/lines/{sku}/accept-price", None, mall.of("customer"), 404)
    mall.post(f"/carts/{cart['id']}/lines/NONE/accept-price", None, me, 404)
    taken = mall.post(f"/carts/{cart['id']}/lines/{sku}/accept-price", None, me)
    cart = mall.read(f"/carts/{cart['id']}", me, after=taken["position"])
    assert problems(cart) == {sku: None}
    mall.post(f"/products/{product}/archive", None, seller)
    mall.live.catch_up()
    cart = mall.read(f"/carts/{cart['id']}", me)
    assert (problems(cart), cart["subtotal"]) == ({sku: "not for sale"}, 0)
    mall.post(f"/carts/{cart['id']}/lines/{sku}/accept-price", None, me, 404)


def test_what_is_not_for_sale_does_not_go_in(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    id = mall.post("/carts", {"currency": "JPY"}, me, 201)["id"]
    for sku, why in (("NONE", "NONE is not for sale"), (mug, f"{mug} has no price in this cart's currency")):
        assert mall.post(f"/carts/{id}/lines", {"sku": sku, "quantity": 1}, me, 409)["detail"] == why
    for body in (
        {"sku": mug, "quantity": 0},
        {"sku": mug, "quantity": 10_001},
        {"sku": "a b", "quantity": 1},
        {"sku": mug},
    ):
        mall.post(f"/carts/{id}/lines", body, me, 422)
    mall.post("/carts", {"currency": "EURO"}, me, 422)


def test_anothers_cart_is_not_there(mall: Market, mug: str) -> None:
    me, other = mall.of("customer"), mall.of("customer")
    id = mall.cart(me, **{mug: 1})["id"]
    theirs, token = guest(mall, mug, 1)
    mall.live.catch_up()
    for cart, who in (
        (id, other), (id, {}), (id, {"Cart-Token": uuid4().hex}), (theirs, other), (theirs, {}),
        (theirs, {"Cart-Token": uuid4().hex}), (str(uuid4()), me),
    ):  # fmt: skip
        assert mall.http.get(f"/carts/{cart}", headers=who).status_code == 404
        assert mall.http.put(f"/carts/{cart}/lines/{mug}", json={"quantity": 3}, headers=who).status_code == 404
        assert mall.http.delete(f"/carts/{cart}/lines/{mug}", headers=who).status_code == 404
        for sku in (mug, "NONE"):
            mall.post(f"/carts/{cart}/lines", {"sku": sku, "quantity": 1}, who, 404)
        mall.post(f"/carts/{cart}/lines/{mug}/accept-price", None, who, 404)
    mall.post(f"/carts/{id}/merge", {"guest": theirs, "guest_token": token["Cart-Token"]}, other, 404)
    mall.read(f"/carts/{id}", mall.of("admin"))
    assert [one["id"] for one in mall.read("/carts", me)["items"]] == [id]
    assert mall.read("/carts", other)["items"] == []
    mall.read("/carts", {}, 401)


def test_a_guest_has_a_token_and_a_customer_none(mall: Market, mug: str) -> None:
    id, mine = guest(mall, mug, 2)
    mall.live.catch_up()
    cart = mall.read(f"/carts/{id}", mine)
    assert (cart["owner"], [line["quantity"] for line in cart["lines"]]) == (None, [2])
    mall.post("/carts", {"currency": "EUR"}, {}, 409)
    mall.post("/carts", {"currency": "EUR", "guest_token": uuid4().hex}, mall.of("customer"), 409)
    mall.post("/carts", {"currency": "EUR", "guest_token": "short"}, {}, 422)
    said = mall.http.get(f"/carts/{id}", headers={"Cart-Token": "short"})
    assert said.status_code == 422
    assert "Cart-Token" in said.json()["errors"][0]["parameter"]


def test_a_guests_cart_is_taken_over_at_login(mall: Market, mug: str) -> None:
    me, other = mall.of("customer"), f"{mug}-2"
    mall.on_sale(mall.of(), other, pieces=5)
    mall.live.catch_up()
    theirs, token = guest(mall, mug, 3)
    mine = mall.cart(me, **{mug: 1, other: 2})
    merging = {"guest": theirs, "guest_token": token["Cart-Token"]}
    mall.post(f"/carts/{mine['id']}/merge", {**merging, "guest_token": uuid4().hex}, me, 404)
    mall.post(f"/carts/{mine['id']}/merge", {**merging, "guest": mine["id"]}, me, 404)
    key = {**me, "Idempotency-Key": uuid4().hex}
    merged = mall.post(f"/carts/{mine['id']}/merge", merging, key)
    assert mall.post(f"/carts/{mine['id']}/merge", merging, key) == merged
    mall.post(f"/carts/{mine['id']}/merge", merging, me)  # by another request: nothing more happens
    mall.live.catch_up()
    cart = mall.read(f"/carts/{mine['id']}", me)
    assert {line["sku"]: line["quantity"] for line in cart["lines"]} == {mug: 3, other: 2}
    gone = mall.read(f"/carts/{theirs}", token)
    assert (gone["status"], gone["lines"]) == ("given up", [])
    assert (
        mall.post(f"/carts/{theirs}/lines", {"sku": mug, "quantity": 1}, token, 409)["detail"] == "the cart is given up"
    )


def test_carts_of_two_currencies_do_not_merge(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    theirs, token = guest(mall, mug, 1)
    id = mall.post("/carts", {"currency": "USD"}, me, 201)["id"]
    merging = {"guest": theirs, "guest_token": token["Cart-Token"]}
    assert "does not merge" in mall.post(f"/carts/{id}/merge", merging, me, 409)["detail"]
    mall.live.catch_up()
    assert mall.read(f"/carts/{theirs}", token)["status"] == "open"


def test_a_cart_that_is_being_checked_out_does_not_change(mall: Market, mug: str) -> None:
    me, checkout = mall.of("customer"), uuid4()
    cart = mall.cart(me, **{mug: 1})
    locked = mall.tell(cart["id"], Cart.lock, checkout, cart["contents"])
    line = f"/carts/{cart['id']}/lines/{mug}"
    for refused in (
        mall.http.post(f"/carts/{cart['id']}/lines", json={"sku": mug, "quantity": 1}, headers=me),
        mall.http.put(line, json={"quantity": 2}, headers=me),
        mall.http.delete(line, headers=me),
    ):
        assert (refused.status_code, refused.json()["detail"]) == (409, "the cart is being checked out")
    assert mall.read(f"/carts/{cart['id']}", me, after=locked)["status"] == "locked"
    done = mall.tell(cart["id"], Cart.check_out, checkout)
    cart = mall.read(f"/carts/{cart['id']}", me, after=done)
    assert (cart["status"], cart["lines"], cart["subtotal"]) == ("checked out", [], 0)
    assert mall.http.delete(line, headers=me).json()["detail"] == "the cart is checked out"


def test_a_change_on_the_version_that_was_seen(mall: Market, mug: str) -> None:
    me = mall.of("customer")
    cart = mall.cart(me, **{mug: 1})
    line, seen = f"/carts/{cart['id']}/lines/{mug}", {**me, "If-Match": f'"{cart["version"]}"'}
    assert mall.http.put(line, json={"quantity": 2}, headers=seen).status_code == 200
    assert mall.http.put(line, json={"quantity": 3}, headers=seen).status_code == 412
