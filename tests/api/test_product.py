"""Products over HTTP: who sees what, what is refused and how, and what can be bought."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from tests.api.conftest import Market

SIZES = [{"name": "Size", "values": ["S", "L"]}]
EUROS = [{"amount": 1999, "currency": "EUR"}]


def fresh() -> str:
    return f"MUG-{uuid4().hex[:12]}"


def tee(sku: str, **more: Any) -> dict[str, Any]:
    return {
        "title": "Tee \u2615 茶",
        "description": "Cotton.",
        "attributes": {"Cloth": "cotton"},
        "media": [{"url": "https://img.example.com/tee.jpg", "alt": "A tee"}],
        "options": SIZES,
        "variants": [
            {"sku": f"{sku}-S", "options": {"Size": "S"}, "prices": [*EUROS, {"amount": 2500, "currency": "JPY"}]},
            {"sku": f"{sku}-L", "options": {"Size": "L"}},
        ],
        **more,
    }


def test_a_product_is_prepared_in_one_request_and_goes_on_sale(market: Market) -> None:
    seller, sku = market.of(), fresh()
    made = market.post("/products", tee(sku, publish=True), seller, 201)
    read = market.http.get(f"/products/{made['id']}", params={"after": made["position"]})
    assert read.status_code == 200, read.text
    row = read.json()
    assert (row["title"], row["status"], row["options"]) == ("Tee \u2615 茶", "published", SIZES)
    assert row["media"] == [{"kind": "image", "url": "https://img.example.com/tee.jpg", "alt": "A tee"}]
    assert read.headers["etag"] == f'"{made["version"]}"'
    shown = market.http.get(f"/products/{made['id']}/variants", params={"after": made["position"]}).json()["items"]
    assert [one["sku"] for one in shown] == [f"{sku}-S"]  # the other has no price
    mine = market.http.get(f"/products/{made['id']}/variants", headers=seller).json()["items"]
    assert {one["sku"]: one["offer"] for one in mine} == {f"{sku}-L": "draft", f"{sku}-S": "listed"}
    offers = market.http.get(
        "/products/offers", params={"sku": [f"{sku}-S", f"{sku}-L", "NONE"], "after": made["position"]}
    )
    assert [one["sku"] for one in offers.json()["items"]] == [f"{sku}-S"]
    assert offers.json()["items"][0]["prices"] == [
        {"amount": 1999, "currency": "EUR", "decimal": "19.99"},
        {"amount": 2500, "currency": "JPY", "decimal": "2500"},
    ]


def test_a_product_is_prepared_step_by_step(market: Market) -> None:
    seller, sku = market.of(), fresh()
    id = market.post("/products", {}, seller, 201)["id"]

    def put(path: str, body: Any) -> None:
        answer = market.http.put(f"/products/{id}/{path}", json=body, headers=seller)
        assert answer.status_code == 200, answer.text

    put("title", {"title": "Mug"})
    put("description", {"description": "Red."})
    put("attributes", {"attributes": {"Glaze": "matt"}})
    put("media", {"media": []})
    put("options", {"options": SIZES})
    market.post(f"/products/{id}/variants", {"sku": sku, "options": {"Size": "S"}}, seller, 201)
    put(f"variants/{sku}/prices", {"prices": EUROS})
    market.post(f"/products/{id}/variants", {"sku": f"{sku}-2", "options": {"Size": "L"}, "prices": EUROS}, seller, 201)
    removed = market.http.delete(f"/products/{id}/variants/{sku}-2", headers=seller)
    assert removed.status_code == 200, removed.text
    market.post(f"/products/{id}/variants", {"sku": f"{sku}-3", "options": {"Size": "L"}, "prices": EUROS}, seller, 201)
    market.post(f"/products/{id}/publish", None, seller)
    market.post(f"/products/{id}/variants/{sku}/withdraw", None, seller)
    market.post(f"/products/{id}/variants/{sku}/relist", None, seller)
    last = market.post(f"/products/{id}/archive", None, seller)
    sold = market.http.get("/products/offers", params={"sku": [sku], "after": last["position"]})
    assert sold.json() == {"items": []}
    kinds = [one["type"] for one in market.http.get(f"/products/{id}/events", headers=seller).json()["items"]]
    assert kinds[0] == "product.Drafted"
    assert kinds[-4:] == ["product.Published", "product.Withdrawn", "product.Relisted", "product.Archived"]
    assert market.http.put(f"/products/{id}/title", json={"title": "x"}, headers=seller).status_code == 409


def test_a_draft_is_the_sellers_own(market: Market) -> None:
    me = uuid4()
    seller, other = market.of(subject=me), market.of()
    made = market.post("/products", tee(fresh()), seller, 201)
    id, after = made["id"], {"after": made["position"]}
    assert market.http.get(f"/products/{id}", params=after, headers=seller).status_code == 200
    assert market.http.get(f"/products/{id}", headers=other).status_code == 404
    assert market.http.get(f"/products/{id}").status_code == 404
    assert market.http.get(f"/products/{id}/variants").status_code == 404
    assert market.http.get(f"/products/{id}", headers=market.of("admin")).status_code == 200
    assert id in {
        one["id"] for one in market.http.get("/products", params={"seller": str(me)}, headers=seller).json()["items"]
    }
    assert market.http.get("/products", params={"seller": str(me)}, headers=other).json()["items"] == []
    assert market.http.get("/products", params={"seller": str(me), "status": "draft"}).json()["items"] == []
    assert market.http.post(f"/products/{id}/publish", headers=other).status_code == 404
    assert market.http.post(f"/products/{id}/publish", headers=market.of("customer")).status_code == 403
    assert market.http.post(f"/products/{id}/publish").status_code == 401
    assert market.http.get(f"/products/{id}/events", headers=other).status_code == 404
    assert market.http.get(f"/products/{id}", params={"version": 1}, headers=seller).json()["status"] == "draft"


def test_the_past_of_what_is_public_is_its_sellers(market: Market) -> None:
    seller = market.of()
    id = market.post("/products", tee(fresh(), publish=True), seller, 201)["id"]
    assert market.http.get(f"/products/{id}/events", headers=seller).status_code == 200
    assert market.http.get(f"/products/{id}/events", headers=market.of()).status_code == 403
    assert market.http.get(f"/products/{id}/events").status_code == 401


def test_a_sku_is_one_on_the_platform(market: Market) -> None:
    sku = fresh()
    drafts = [{"title": f"{n}", "variants": [{"sku": sku, "prices": EUROS}]} for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda draft: market.http.post("/products", json=draft, headers=market.of()), drafts))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 15
    assert {answer.json()["detail"] for answer in answers if answer.status_code == 409} == {f"sku {sku} is taken"}


def test_a_removed_variants_sku_is_free_for_another_seller(market: Market) -> None:
    seller, other, sku = market.of(), market.of(), fresh()
    draft = {"title": "Mug", "variants": [{"sku": sku, "prices": EUROS}]}
    id = market.post("/products", draft, seller, 201)["id"]
    market.post("/products", draft, other, 409)
    market.http.delete(f"/products/{id}/variants/{sku}", headers=seller)
    made = market.post("/products", {**draft, "publish": True}, other, 201)
    found = market.http.get("/products/offers", params={"sku": [sku], "after": made["position"]}).json()["items"]
    assert [one["product"] for one in found] == [made["id"]]


@pytest.mark.parametrize(
    "draft",
    [
        {"titel": "x"},
        {"title": 5},
        {"title": "x" * 201},
        {"title": "\x07"},
        {"variants": [{"sku": "no spaces"}]},
        {"variants": [{"sku": "A", "prices": [{"amount": 0, "currency": "EUR"}]}]},
        {"variants": [{"sku": "A", "prices": [{"amount": 1.5, "currency": "EUR"}]}]},
        {"variants": [{"sku": "A", "prices": [{"amount": 10**30, "currency": "EUR"}]}]},
        {"variants": [{"sku": "A", "prices": [{"amount": 1, "currency": "XXX"}]}]},
        {"media": [{"url": "http://insecure.example.com/x.jpg"}]},
        {"media": [{"kind": "hologram", "url": "https://img.example.com/x"}]},
        {"attributes": {f"a{n}": "x" for n in range(101)}},
        {"options": [{"name": "Size", "values": []}]},
    ],
)
def test_a_malformed_draft_is_told_so(market: Market, draft: dict[str, Any]) -> None:
    answer = market.http.post("/products", json=draft, headers=market.of())
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text


@pytest.mark.parametrize(
    ("draft", "why"),
    [
        ({"publish": True}, "needs a title"),
        ({"title": "x", "publish": True}, "needs a variant with a price"),
        ({"variants": [{"sku": "A"}, {"sku": "A"}]}, "A stands there twice"),
        ({"variants": [{"sku": "A"}, {"sku": "B"}]}, "A is the variant of this product already"),
        ({"options": SIZES, "variants": [{"sku": "A", "options": {"Size": "XL"}}]}, "Size has no value XL"),
        ({"variants": [{"sku": "A", "prices": EUROS * 2}]}, "one price a currency"),
    ],
)
def test_a_draft_against_the_rules_is_refused_and_takes_no_sku(market: Market, draft: dict[str, Any], why: str) -> None:
    refused = market.post("/products", draft, market.of(), 409)
    assert why in refused["detail"]
    market.post("/products", {"title": "x", "variants": [{"sku": f"A-{uuid4().hex}"}]}, market.of(), 201)


def test_a_change_on_the_version_that_was_read(market: Market) -> None:
    seller = market.of()
    id = market.post("/products", {"title": "Mug"}, seller, 201)["id"]
    first = market.http.put(f"/products/{id}/title", json={"title": "Cup"}, headers={**seller, "If-Match": '"1"'})
    late = market.http.put(f"/products/{id}/title", json={"title": "Jug"}, headers={**seller, "If-Match": '"1"'})
    assert (first.status_code, late.status_code) == (200, 412)
