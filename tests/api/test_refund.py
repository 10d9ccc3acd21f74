"""Refunds over HTTP: who asks for what of which order, who decides, who sees it; and that money goes back no other way."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.kernel import clock
from aggregates.kernel.money import Tender
from aggregates.kernel.refunding import Returned
from aggregates.payment import Payment
from aggregates.refund import Refund
from tests.api.conftest import Market
from tests.api.test_order import TOTAL, Case


def bought(mall: Market) -> Case:
    order = Case(mall)
    order.go("pay", payment=str(uuid4()), amount=TOTAL)
    return order


def ask(order: Case, status: int = 201, by: dict[str, str] | None = None, /, **more: Any) -> dict[str, Any]:
    return order.mall.post("/refunds", {"order": order.id, "reason": "broken", **more}, by or order.me, status)


def allot(mall: Market, id: str) -> str:
    """What the order says, when the saga asks it."""
    mug = Returned("MUG", UUID(int=1), "Mug", "main", 1, 0, 1190, 1000, 190)
    return mall.tell(id, Refund.allot, "EUR", (mug,), 0, 1190, (Tender("card", UUID(int=2), 1190),), 1190)


def test_a_customer_asks_and_staff_find_it_in_their_queue_and_decide(mall: Market) -> None:
    order, staff = bought(mall), mall.of("admin")
    made = ask(order, lines=[{"sku": "MUG", "quantity": 1}, {"sku": "TEE", "quantity": 0, "amount": 100}])
    row = mall.read(f"/refunds/{made['id']}", order.me, after=made["position"])
    assert (row["status"], row["order"], row["customer"], row["amount"]) == (
        "requested",
        order.id,
        str(order.customer),
        0,
    )
    assert row["asked"] == [
        {"sku": "MUG", "quantity": 1, "amount": None}, {"sku": "TEE", "quantity": 0, "amount": 100},
    ]  # fmt: skip
    assert "look again" in mall.post(f"/refunds/{made['id']}/approve", {}, staff, 409)["detail"]
    at = allot(mall, made["id"])
    queue = mall.read("/refunds", staff, after=at, status="pending", customer=str(order.customer))["items"]
    assert [(one["id"], one["amount"], one["currency"]) for one in queue] == [(made["id"], 1190, "EUR")]
    assert (queue[0]["lines"][0]["sku"], queue[0]["tenders"][0]["kind"]) == ("MUG", "card")
    herself = mall.of("admin", order.customer)
    assert "of their own" in mall.post(f"/refunds/{made['id']}/approve", {}, herself, 409)["detail"]
    decided = mall.post(f"/refunds/{made['id']}/approve", {"restock": False}, staff)
    row = mall.read(f"/refunds/{made['id']}", order.me, after=decided["position"])
    assert (row["status"], row["restock"], row["decided_by"] is not None) == ("approved", False, True)
    mall.post(f"/refunds/{made['id']}/approve", {}, staff)
    assert "is approved" in mall.post(f"/refunds/{made['id']}/reject", {"reason": "late"}, staff, 409)["detail"]
    assert "is approved" in mall.post(f"/refunds/{made['id']}/withdraw", None, order.me, 409)["detail"]
    assert [one["id"] for one in mall.read("/refunds", order.me, order=order.id)["items"]] == [made["id"]]


def test_staff_find_what_somebody_has_to_look_at(mall: Market) -> None:
    order, staff = bought(mall), mall.of("admin")
    made = ask(order)
    allot(mall, made["id"])
    at = mall.tell(made["id"], Refund.withhold, "1190 EUR is more than the 90 EUR left")
    query = {"after": at, "attention": "true", "customer": str(order.customer)}
    [one] = mall.read("/refunds", staff, **query)["items"]
    assert (one["id"], one["withheld"]) == (made["id"], 1190)
    assert one["card_refused"] == "1190 EUR is more than the 90 EUR left"
    assert mall.read("/refunds", staff, **{**query, "attention": "false"})["items"] == []


def test_it_is_turned_down_or_withdrawn_with_words(mall: Market) -> None:
    order, staff = bought(mall), mall.of("service")
    no, back = ask(order)["id"], ask(order)["id"]
    mall.post(f"/refunds/{no}/reject", {"reason": ""}, staff, 422)
    last = mall.post(f"/refunds/{no}/reject", {"reason": "worn"}, staff)
    row = mall.read(f"/refunds/{no}", order.me, after=last["position"])
    assert (row["status"], row["why"]) == ("rejected", "worn")
    last = mall.post(f"/refunds/{back}/withdraw", None, order.me)
    assert mall.read(f"/refunds/{back}", order.me, after=last["position"])["status"] == "withdrawn"
    assert "is withdrawn" in mall.post(f"/refunds/{back}/reject", {"reason": "x"}, staff, 409)["detail"]


def test_only_an_own_order_can_be_asked_for_and_only_staff_decide(mall: Market) -> None:
    order, bob, seller = bought(mall), mall.of("customer"), mall.of("seller")
    for stranger in (bob, seller):
        ask(order, 404, stranger)
    ask(order, 403, mall.of("analyst"))
    mall.post("/refunds", {"order": str(uuid4()), "reason": "x"}, order.me, 404)
    made = ask(order)
    for path, body in (("approve", {}), ("reject", {"reason": "mine"})):
        for by in (order.me, bob, seller):
            mall.post(f"/refunds/{made['id']}/{path}", body, by, 403)
    mall.post(f"/refunds/{made['id']}/withdraw", None, bob, 404)
    mall.read(f"/refunds/{made['id']}", bob, 404, after=made["position"])
    mall.read(f"/refunds/{made['id']}/events", bob, 404)
    for_her = ask(order, 201, mall.of("service"))
    row = mall.read(f"/refunds/{for_her['id']}", order.me, after=for_her["position"])
    assert row["customer"] == str(order.customer), "whoever asks, it is the customer's"


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"reason": ""}, 422),
        ({"destination": "cash"}, 422),
        ({"lines": [{"sku": "MUG", "quantity": -1}]}, 422),
        ({"lines": [{"sku": "MUG", "quantity": 10_001}]}, 422),
        ({"lines": [{"sku": "MUG", "quantity": 1, "amount": 10**30}]}, 422),
        ({"lines": [{"sku": "MUG", "quantity": 1}] * 201}, 422),
        ({"customer": str(uuid4())}, 422),
        ({"auto_max": 10}, 422),
        ({"window_days": 10_000}, 422),
    ],
)
def test_what_makes_no_sense_is_told_by_field(mall: Market, wrong: dict[str, Any], status: int) -> None:
    ask(bought(mall), status, None, **wrong)


def test_the_same_request_again_is_the_same_refund(mall: Market) -> None:
    order = bought(mall)
    keyed = {**order.me, "Idempotency-Key": uuid4().hex}
    assert ask(order, 201, keyed)["id"] == ask(order, 201, keyed)["id"]


def test_customers_are_bound_by_the_policy_and_staff_are_not(mall: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITAN_REFUND_WINDOW_DAYS", "14")
    monkeypatch.setenv("TITAN_REFUND_AUTO_MAX", "500")
    order, staff = bought(mall), mall.of("service")
    for by, window in ((order.me, 14), (staff, None)):
        made = ask(order, 201, by)
        [fact] = mall.read(f"/refunds/{made['id']}/events", staff)["items"]
        assert (fact["data"]["window_days"], fact["data"]["auto_max"]) == (window, 500)


def test_money_does_not_go_back_past_the_order_or_the_wallet_that_it_is_for(mall: Market) -> None:
    till, order = mall.of("service"), Case(mall)

    def captured(cause: str) -> str:
        money = {"amount": TOTAL, "currency": "EUR"}
        asked = {"order": cause, "customer": str(order.customer), "method": "tok_visa", **money}
        id, capture = mall.post("/payments", asked, till, 201)["id"], str(uuid4())
        mall.tell(id, Payment.authorised, "txn", clock.now())
        mall.post(f"/payments/{id}/capture", {"capture": capture, **money}, till)
        return str(id)

    refund = {"refund": str(uuid4()), "amount": 1, "currency": "EUR"}
    paid = captured(order.id)
    assert "ask for a refund of that" in mall.post(f"/payments/{paid}/refund", refund, till, 409)["detail"]
    wallet = mall.post("/wallets", {"currency": "EUR"}, order.me, 201)["id"]
    topping = {"amount": 500, "currency": "EUR", "method": "tok_visa"}
    top_up = mall.post(f"/wallets/{wallet}/topups", topping, order.me, 201)["id"]
    assert "withdraw it" in mall.post(f"/payments/{captured(top_up)}/refund", refund, till, 409)["detail"]
    other = captured(str(uuid4()))
    assert "of what is captured" in mall.post(f"/payments/{other}/refund", refund, till, 409)["detail"]
