"""Fraud cases over HTTP: analysts read and review them, nobody else does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from aggregates.fraud import Case
from aggregates.kernel import Origin, Store
from api.kernel.reason import REASON_CHARS_MAX
from tests.api.conftest import Market


def raised(mall: Market, subject: UUID, rule: str = "card_testing") -> tuple[str, str]:
    """A case as a rule raises it; its id and position."""

    async def main() -> tuple[str, str]:
        async with Store.open(mall.settings.postgres) as store:
            cause, now = uuid4(), datetime.now(UTC)
            receipt = await store.commands(Origin("rule:test@1")).open_as(
                Case.id_of(rule, 1, cause), Case, rule, 1, subject, 60, "6 tries", cause, "payment.Requested", uuid4(), now, 1
            )  # fmt: skip
            return str(receipt.id), receipt.position

    return asyncio.run(main())


@pytest.mark.parametrize("role", ["analyst", "admin"])
def test_an_analyst_finds_a_case_and_says_what_it_is(mall: Market, role: str) -> None:
    subject, by = uuid4(), mall.of(role)
    id, position = raised(mall, subject)
    shown = mall.read(f"/fraud/{id}", by, after=position)
    assert (shown["why"], shown["score"], shown["stands"], shown["verdict"]) == ("6 tries", 60, True, "open")
    found = mall.read("/fraud", by, subject=str(subject), verdict="open", rule="card_testing", stands=True)["items"]
    assert [one["id"] for one in found] == [id]
    receipt = mall.post(f"/fraud/{id}/confirm", {"reason": "the bank says so"}, by)
    after = mall.read(f"/fraud/{id}", by, after=receipt["position"])
    assert (after["verdict"], after["reason"]) == ("confirmed", "the bank says so")
    assert mall.read("/fraud", by, subject=str(subject), verdict="open")["items"] == []
    [first, last] = mall.read(f"/fraud/{id}/events", by)["items"]
    assert first["actor"] == "rule:test@1"
    assert last["type"] == "fraud.Confirmed" and last["actor"].startswith("user:")
    assert mall.read(f"/fraud/{id}", by, version=1)["verdict"] == "open"
    refused = mall.post(f"/fraud/{id}/dismiss", {"reason": "no"}, by, 409)
    assert "confirmed already" in refused["detail"]
    mall.post(f"/fraud/{id}/dismiss", {"reason": ""}, by, 422)
    mall.post(f"/fraud/{id}/dismiss", {"reason": "x" * (REASON_CHARS_MAX + 1)}, by, 422)


@pytest.mark.parametrize("role", ["customer", "seller", "service"])
def test_nobody_else_sees_or_reviews_one(mall: Market, role: str) -> None:
    subject = uuid4()
    id, _ = raised(mall, subject)
    for by in (mall.of(role), mall.of(role, subject)):  # the suspect least of all
        for path in ("/fraud", f"/fraud/{id}", f"/fraud/{id}/events"):
            mall.read(path, by, 403)
        for what in ("confirm", "dismiss"):
            mall.post(f"/fraud/{id}/{what}", {"reason": "mine"}, by, 403)
    assert mall.http.get(f"/fraud/{id}").status_code == 401
