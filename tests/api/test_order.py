"""Orders over HTTP: who places, moves and sees them, their story, and how they were at any version or time."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.order import Order
from tests.api.conftest import Market

ADDRESS = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}
MUG, TEE = ({"sku": sku, "product": str(uuid4()), "title": sku.title()} for sku in ("MUG", "TEE"))
LINES = [{**MUG, "quantity": 2, "unit_price": 1000, "tax_bp": 1900}, {**TEE, "quantity": 1, "unit_price": 505}]
TOTAL = 2000 + 505 + 380  # the mugs' tax; the tee has none


def asked(customer: UUID, /, **more: Any) -> dict[str, Any]:
    return {"customer": str(customer), "currency": "EUR", "lines": LINES, "address": ADDRESS, **more}


class Case:
    """An order of a customer's: `go` moves it as the machines do, and waits until it can be read."""

    def __init__(self, mall: Market, **more: Any) -> None:
        self.mall, self.customer, self.till = mall, uuid4(), mall.of("service")
        self.me = mall.of("customer", self.customer)
        made = mall.post("/orders", asked(self.customer, **more), self.till, 201)
        self.id, self.after = str(made["id"]), made["position"]

    def go(self, step: str, status: int = 200, by: dict[str, str] | None = None, /, **body: Any) -> dict[str, Any]:
        made = self.mall.post(f"/orders/{self.id}/{step}", body or None, by or self.till, status)
        self.after = made.get("position", self.after)
        return made

    def read(self, path: str = "", **query: Any) -> dict[str, Any]:
        return self.mall.read(f"/orders/{self.id}{path}", self.me, after=self.after, **query)


def test_an_order_goes_from_placing_to_completion(mall: Market) -> None:
    order, parcels = Case(mall, shipping=490, shipping_tax_bp=1900, discount=250), [str(uuid4()), str(uuid4())]
    row = order.read()
    assert (row["subtotal"], row["discount"], row["shipping"], row["status"]) == (2505, 250, 490, "placed")
    assert row["total"] == row["subtotal"] - row["discount"] + row["shipping"] + row["tax"]
    assert re.fullmatch(r"T\d{6}-[0-9A-Z]{5}-[0-9A-Z]{4}", row["number"])
    assert row["address"] == ADDRESS
    order.go("confirm")
    order.go("pay", 409, payment=str(uuid4()), amount=row["total"] - 1)
    paying = {"payment": str(uuid4()), "amount": row["total"]}
    order.go("pay", **paying)
    order.go("pay", **paying)  # asked again
    order.go("pay", 409, payment=str(uuid4()), amount=row["total"])
    order.go("complete", 409)
    order.go("ship", 409, shipment=parcels[0], carrier="DHL", parts={"MUG": 3})
    order.go("ship", 409, shipment=parcels[0], carrier="DHL", parts={"CAP": 1})
    order.go("ship", shipment=parcels[0], carrier="DHL", tracking="42", parts={"MUG": 1})
    assert order.read()["status"] == "paid"  # the rest is still here
    assert order.go("cancel", 409, order.me, reason="too late")["detail"] == "a part of the order has been shipped"
    order.go("ship", shipment=parcels[1], carrier="DHL")
    assert order.read()["status"] == "shipped"
    for parcel in parcels:
        order.go(f"shipments/{parcel}/deliver")
    order.go(f"shipments/{uuid4()}/deliver", 409)
    order.go("complete")
    assert order.read()["status"] == "completed"
    story = [(one["version"], one["what"], one["detail"]) for one in order.read("/timeline")["items"]]
    assert story == [
        (1, "placed", row["number"]), (2, "confirmed", ""), (3, "paid", ""), (4, "shipped", "DHL 42: 1 × MUG"),
        (5, "shipped", "DHL : 1 × MUG, 1 × TEE"), (6, "delivered", parcels[0]), (7, "delivered", parcels[1]), (8, "completed", ""),
    ]  # fmt: skip


def test_an_order_just_made_has_its_story(mall: Market) -> None:
    for _ in range(5):
        order = Case(mall)
        assert [one["what"] for one in mall.read(f"/orders/{order.id}/timeline", order.me)["items"]] == ["placed"]


def test_an_order_as_it_was(mall: Market) -> None:
    order = Case(mall)
    order.go("pay", payment=str(uuid4()), amount=TOTAL)
    order.go("cancel", 200, order.me, reason="ordered twice")
    was = [order.read(version=version) for version in range(1, 5)]
    assert [one["status"] for one in was] == ["placed", "confirmed", "paid", "cancelled"]
    assert [one["version"] for one in was] == [1, 2, 3, 4]
    assert was[3] == order.read()
    assert (was[2]["cancelled_because"], was[3]["cancelled_because"]) == (None, "ordered twice")
    assert was[0]["address"] == ADDRESS
    times = [datetime.fromisoformat(one["at"]) for one in order.read("/timeline")["items"]]
    for time, row in zip(times, was, strict=True):
        then = order.read(at=time.isoformat())
        assert then["version"] >= row["version"]  # later ones of the same commit are of the same time
        assert then == was[then["version"] - 1]
    mall.read(f"/orders/{order.id}", order.me, 404, at=(times[0] - timedelta(seconds=1)).isoformat())
    mall.read(f"/orders/{order.id}", order.me, 404, version=5)
    for wrong in (
        {"version": 0},
        {"version": 2**31},
        {"at": "yesterday"},
        {"at": "2026-11-01T00:00:00"},
        {"after": "x"},
    ):
        mall.read(f"/orders/{order.id}", order.me, 422, **wrong)
    mall.read(f"/orders/{order.id}", order.me, 404, after="order:999999999")
    facts = order.read("/events")["items"]
    assert [one["type"] for one in facts] == ["order.Placed", "order.Confirmed", "order.Paid", "order.Cancelled"]
    assert [one["version"] for one in order.read("/events", **{"from": 2, "limit": 1})["items"]] == [3]
    assert facts[-1]["actor"] == f"user:{order.customer}"


def test_anothers_order_is_not_there(mall: Market) -> None:
    order, seller = Case(mall), mall.of("seller")
    order.read()
    for path in ("", "/events", "/timeline"):
        for other in (mall.of("customer"), seller, mall.of("analyst")):
            mall.read(f"/orders/{order.id}{path}", other, 404)
        mall.read(f"/orders/{order.id}{path}", {}, 401)
        for everybody in (mall.of("admin"), mall.of("service")):
            mall.read(f"/orders/{order.id}{path}", everybody)
    order.go("cancel", 404, mall.of("customer"), reason="not mine")
    order.go("cancel", 404, seller, reason="not mine")
    order.go("cancel", 200, mall.of("admin"), reason="asked on the phone")
    mall.read(f"/orders/{uuid4()}", order.me, 404)


def test_staff_find_an_order_whose_money_was_reversed_and_see_to_it(mall: Market) -> None:
    order, staff, payment = Case(mall), mall.of("admin"), uuid4()
    order.go("pay", payment=str(payment), amount=TOTAL)
    order.after = mall.tell(order.id, Order.payment_reversed, payment, uuid4(), TOTAL, "Closed account")
    found = {"after": order.after, "attention": "true", "number": order.read()["number"]}
    [one] = mall.read("/orders", staff, **found)["items"]
    assert (one["id"], one["owed"]) == (order.id, TOTAL)
    parcel = {"shipment": str(uuid4()), "carrier": "DHL"}
    assert "somebody has to see to it" in order.go("ship", 409, **parcel)["detail"]
    order.go("settle", 422, staff, reason="")
    order.go("settle", 200, staff, reason="paid by bank transfer")
    assert mall.read("/orders", staff, **{**found, "after": order.after})["items"] == []
    order.go("ship", **parcel)
    told = [(one["what"], one["detail"]) for one in order.read("/timeline")["items"]][3:5]
    assert told == [
        ("paymentreversed", f"{TOTAL} EUR: Closed account"),
        ("paymentsettled", "paid by bank transfer"),
    ]


@pytest.mark.parametrize("role", ["customer", "seller", "analyst"])
def test_what_machines_say_of_an_order_people_may_not(mall: Market, role: str) -> None:
    order = Case(mall)
    by = mall.of(role, order.customer)  # though it is their own
    mall.post("/orders", asked(order.customer), by, 403)
    order.go("confirm", 403, by)
    order.go("pay", 403, by, payment=str(uuid4()), amount=TOTAL)
    order.go("ship", 403, by, shipment=str(uuid4()), carrier="DHL")
    order.go(f"shipments/{uuid4()}/deliver", 403, by)
    order.go("complete", 403, by)
    order.go("settle", 403, by, reason="it is paid, is it not")
    if role == "analyst":
        order.go("cancel", 403, by, reason="x")


def test_a_customer_lists_own_orders(mall: Market) -> None:
    orders, me, customer = [Case(mall)], mall.of("customer"), uuid4()
    mine = mall.of("customer", customer)
    for _ in range(3):
        made = mall.post("/orders", asked(customer), orders[0].till, 201)
    last = mall.post(f"/orders/{made['id']}/cancel", {"reason": "ordered twice"}, mine)
    page = mall.read("/orders", mine, limit=2, after=last["position"])
    rest = mall.read("/orders", mine, limit=2, cursor=page["next"])
    found = [*page["items"], *rest["items"]]
    assert (len(page["items"]), len(found), rest["next"]) == (2, 3, None)
    assert {one["customer"] for one in found} == {str(customer)}
    assert [one["placed_at"] for one in found] == sorted((one["placed_at"] for one in found), reverse=True)
    assert [one["id"] for one in mall.read("/orders", mine, status="cancelled")["items"]] == [made["id"]]
    number = found[-1]["number"]
    assert [one["id"] for one in mall.read("/orders", mine, number=number)["items"]] == [found[-1]["id"]]
    assert mall.read("/orders", me, number=number)["items"] == []
    mall.read("/orders", mine, 422, status="lost")
    assert {one["id"] for one in mall.read("/orders", mall.of("admin"), number=number)["items"]} == {found[-1]["id"]}


def test_an_order_is_cancelled_before_it_is_sent(mall: Market) -> None:
    order = Case(mall)
    order.go("cancel", 200, order.me, reason="ordered twice")
    order.go("cancel", 200, order.me, reason="really")  # it is
    assert order.go("confirm", 409)["detail"] == "the order is cancelled"
    order.go("ship", 409, shipment=str(uuid4()), carrier="DHL")
    order.go("pay", payment=str(uuid4()), amount=TOTAL)  # the money comes too late, and goes back
    row = order.read()
    assert (row["status"], row["cancelled_because"]) == ("cancelled", "it had been cancelled before it was paid")


def test_a_step_on_the_version_that_was_seen(mall: Market) -> None:
    order = Case(mall)
    seen = mall.http.get(f"/orders/{order.id}", headers=order.me).headers["etag"]
    assert seen == '"1"'
    order.go("confirm")
    order.go("cancel", 412, {**order.me, "If-Match": seen}, reason="x")
    order.go("cancel", 200, {**order.me, "If-Match": '"2"'}, reason="x")


def test_the_same_order_sent_again_is_one_order(mall: Market) -> None:
    till, customer = mall.of("service", None, **{"Idempotency-Key": uuid4().hex}), uuid4()
    first = mall.post("/orders", asked(customer), till, 201)
    assert mall.post("/orders", asked(customer), till, 201) == first
    mall.post("/orders", asked(customer, shipping=1), till, 422)
    found = mall.read("/orders", mall.of("customer", customer), after=first["position"])
    assert [one["id"] for one in found["items"]] == [first["id"]]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"lines": []}, 422),
        ({"lines": [{**LINES[0], "sku": f"S{n}"} for n in range(201)]}, 422),
        ({"lines": [{**LINES[0], "quantity": 0}]}, 422),
        ({"lines": [{**LINES[0], "unit_price": -1}]}, 422),
        ({"lines": [{**LINES[0], "unit_price": 10**30}]}, 422),
        ({"lines": [{**LINES[0], "unit_price": 19.99}]}, 422),
        ({"lines": [{**LINES[0], "tax_bp": 10_001}]}, 422),
        ({"currency": "XXX"}, 422),
        ({"customer": "Ada"}, 422),
        ({"address": {**ADDRESS, "recipient": "sealed:1:mine"}}, 422),
        ({"total": 1}, 422),
        ({"lines": [LINES[0], LINES[0]]}, 409),
        ({"discount": 2506}, 409),
        ({"lines": [{**LINES[0], "quantity": 10_000, "unit_price": 10**12}]}, 409),
    ],
)
def test_an_order_that_cannot_be_is_told_so(mall: Market, more: dict[str, Any], status: int) -> None:
    mall.post("/orders", asked(uuid4(), **more), mall.of("service"), status)


def test_an_address_is_kept_encrypted(mall: Market) -> None:
    recipient = f"Ada {uuid4().hex}"
    order = Case(mall, address={**ADDRESS, "recipient": recipient})
    assert order.read()["address"]["recipient"] == recipient
    [placed] = order.read("/events")["items"]
    assert placed["data"]["address"]["recipient"] == recipient
    with mall.database() as connection:
        for table in ("order_events", "orders"):
            found = connection.execute(
                f"SELECT count(*) FROM {table} t WHERE t::text LIKE %s".encode(), (f"%{recipient}%",)
            )
            assert found.fetchone() == (0,)
