"""Vouchers over HTTP: a code is shown once and worth the same everywhere, never spent twice, and not to be guessed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from aggregates.kernel.code import new_code, read_code
from api.voucher import BATCH_MAX
from tests.api.conftest import Market, market_on
from tests.kernel.servers import Stack, database
from tests.kernel.topic import settings_of

Headers = dict[str, str]
NO_REDIS = "redis://127.0.0.1:9/0"  # nothing listens there


@pytest.fixture(scope="module")
def desk(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """Two servers on one set of stores, among them no Redis: what may not be guessed does not need it. A caller may try three codes."""
    with database(stack) as postgres, pytest.MonkeyPatch.context() as patch:
        for name, value in {"CODE_TRIES": 3, "CODE_S": 1_000, "CODE_IP_TRIES": 1_000}.items():
            patch.setenv(f"TITAN_API_{name}", str(value))
        settings = settings_of(postgres, NO_REDIS, tmp_path_factory.mktemp("desk"))
        with market_on(settings, servers=2, domains=["voucher"]) as market:
            yield market


@pytest.fixture(scope="module")
def till(desk: Market) -> Headers:
    return desk.of("service")


def eur(amount: int, **more: object) -> dict[str, Any]:
    return {"amount": amount, "currency": "EUR", **more}


def card(desk: Market, till: Headers, amount: int = 5_000, **more: object) -> dict[str, Any]:
    made = desk.post("/vouchers", eur(amount, **more), till, 201)
    assert read_code(made["code"])
    return made


def test_a_card_is_looked_at_and_spent_in_parts(desk: Market, till: Headers) -> None:
    ada = uuid4()
    hers, made = desk.of("customer", ada), card(desk, till)
    worth = desk.post("/vouchers/check", {"code": made["code"].lower().replace("-", " ")}, hers)
    assert worth == {"id": made["id"], "balance": 5_000, "currency": "EUR", "expires_at": None}
    redeem = eur(3_000, code=made["code"], customer=str(ada), redemption=str(uuid4()))
    first = desk.post("/vouchers/redeem", redeem, till)
    assert desk.post("/vouchers/redeem", redeem, till)["version"] == first["version"]  # asked again
    more = {**redeem, "redemption": str(uuid4())}
    assert "2000 left" in desk.post("/vouchers/redeem", {**more, "amount": 2_001}, till, 409)["detail"]
    desk.post("/vouchers/redeem", {**more, "amount": 2_000}, till)
    assert desk.post("/vouchers/check", {"code": made["code"]}, hers)["balance"] == 0


def test_a_checkout_reserves_a_part_and_confirms_or_releases_it(desk: Market, till: Headers) -> None:
    made, ada = card(desk, till), str(uuid4())
    one, other = str(uuid4()), str(uuid4())
    path = f"/vouchers/{made['id']}/reservations"
    desk.post(path, eur(3_000, reservation=one, customer=ada), till)
    desk.post(path, eur(2_001, reservation=other, customer=ada), till, 409)
    desk.post(path, eur(2_000, reservation=other, customer=ada), till)
    desk.post(f"{path}/{one}/confirm", None, till)
    last = desk.post(f"{path}/{other}/release", None, till)
    row = desk.read(f"/vouchers/{made['id']}", till, after=last["position"])
    assert (row["balance"], row["reserved"], row["redeemed"], row["hint"]) == (2_000, 0, 3_000, made["code"][-4:])
    uses = desk.read(f"/vouchers/{made['id']}/uses", till)["items"]
    assert {(use["amount"], use["status"]) for use in uses} == {(3_000, "redeemed"), (2_000, "released")}


def test_two_redemptions_at_once_never_exceed_the_balance_and_reach_it(desk: Market, till: Headers) -> None:
    made = card(desk, till, 1_000)

    async def one(http: httpx.AsyncClient) -> int:
        body = eur(300, code=made["code"], customer=str(uuid4()), redemption=str(uuid4()))
        answer = await http.post("/vouchers/redeem", json=body, headers=till)
        assert answer.status_code in (200, 409), answer.text
        return answer.status_code

    async def all_of_them() -> list[int]:
        clients = [httpx.AsyncClient(base_url=url, timeout=60) for url in desk.urls]
        try:
            return await asyncio.gather(*(one(clients[n % 2]) for n in range(32)))
        finally:
            for client in clients:
                await client.aclose()

    assert asyncio.run(all_of_them()).count(200) == 3
    desk.live.catch_up()
    row = desk.read(f"/vouchers/{made['id']}", till)
    assert (row["balance"], row["redeemed"]) == (100, 900)


def test_a_code_is_in_no_event_row_or_later_answer(desk: Market, till: Headers) -> None:
    keyed = {**till, "Idempotency-Key": uuid4().hex}
    made = desk.post("/vouchers", eur(5_000), keyed, 201)
    again = desk.post("/vouchers", eur(5_000), keyed, 201)
    assert again == {**made, "code": None}
    code = read_code(made["code"])
    desk.live.catch_up()
    for path in ("", "/events", "/uses"):
        text = desk.http.get(f"/vouchers/{made['id']}{path}", headers=till).text
        assert code not in text and made["code"] not in text
    dump = []
    with desk.database() as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in names:
            dump += connection.execute(f'SELECT t::text FROM "{name}" t'.encode()).fetchall()
    shown = "\n".join(row[0] for row in dump)
    assert made["id"] in shown and code not in shown and code[:12] not in shown
    stored = code.encode().hex()  # bodies are shown in hexadecimal
    assert stored not in shown and stored[:24] not in shown


def test_a_batch_is_issued_with_a_code_each_and_once(desk: Market, till: Headers) -> None:
    keyed = {**till, "Idempotency-Key": uuid4().hex}
    answer = desk.http.post("/vouchers/batches", json=eur(1_000, count=20), headers=keyed)
    assert answer.status_code == 201 and not {"etag", "location"} & answer.headers.keys()
    made = answer.json()
    assert len({one["code"] for one in made["items"]}) == len({one["id"] for one in made["items"]}) == 20
    again = desk.post("/vouchers/batches", eur(1_000, count=20), keyed, 201)
    assert again["batch"] == made["batch"]
    assert [one["id"] for one in again["items"]] == [one["id"] for one in made["items"]]
    assert {one["code"] for one in again["items"]} == {None}
    desk.live.catch_up()
    listed = desk.read("/vouchers", till, batch=made["batch"], limit=100)["items"]
    assert {one["id"] for one in listed} == {one["id"] for one in made["items"]}
    desk.post("/vouchers/batches", eur(1_000, count=BATCH_MAX + 1), till, 422)
    desk.post("/vouchers/batches", eur(1_000, count=0), till, 422)


def test_a_claimed_card_is_its_holders_and_can_be_given_on(desk: Market, till: Headers) -> None:
    ada, bob = uuid4(), uuid4()
    hers, his, made = desk.of("customer", ada), desk.of("customer", bob), card(desk, till)
    desk.read(f"/vouchers/{made['id']}", hers, 404)
    claimed = desk.post("/vouchers/claim", {"code": made["code"]}, hers)
    assert desk.post("/vouchers/claim", {"code": made["code"]}, hers)["version"] == claimed["version"]
    desk.post("/vouchers/claim", {"code": made["code"]}, his, 404)
    desk.post("/vouchers/check", {"code": made["code"]}, his, 404)
    body = eur(1, reservation=str(uuid4()), customer=str(bob))
    desk.post(f"/vouchers/{made['id']}/reservations", body, till, 404)
    assert desk.read(f"/vouchers/{made['id']}", hers, after=claimed["position"])["balance"] == 5_000
    desk.post(f"/vouchers/{made['id']}/transfer", {"to": str(bob)}, his, 404)
    given = desk.post(f"/vouchers/{made['id']}/transfer", {"to": str(bob)}, hers)
    desk.read(f"/vouchers/{made['id']}", hers, 404, after=given["position"])
    assert [one["id"] for one in desk.read("/vouchers", his)["items"]] == [made["id"]]
    desk.post(f"/vouchers/{made['id']}/reservations", body, till)


def test_store_credit_has_no_code(desk: Market, till: Headers) -> None:
    ada = uuid4()
    hers = desk.of("customer", ada)
    made = desk.post("/vouchers/credits", eur(700, holder=str(ada)), till, 201)
    row = desk.read(f"/vouchers/{made['id']}", hers, after=made["position"])
    assert (row["kind"], row["balance"], row["hint"]) == ("credit", 700, "")


def test_codes_that_cannot_be_used_are_all_answered_alike(desk: Market, till: Headers) -> None:
    """One that is no code, does not exist, is void, is somebody else's."""
    void, theirs = card(desk, till), card(desk, till)
    desk.post(f"/vouchers/{void['id']}/void", {"reason": "lost"}, till)
    desk.post("/vouchers/claim", {"code": theirs["code"]}, desk.of("customer"))
    answers = []
    for code in ("nonsense", new_code(), void["code"], theirs["code"]):
        for path in ("check", "claim"):
            answer = desk.http.post(f"/vouchers/{path}", json={"code": code}, headers=desk.of("customer"))
            answers.append((answer.status_code, {**answer.json(), "correlation": ""}))
    assert all(one == answers[0] for one in answers) and answers[0][0] == 404, answers


def test_who_tries_codes_out_is_slowed_down_whether_they_are_good_or_not(desk: Market, till: Headers) -> None:
    guesser, made = desk.of("customer", uuid4()), card(desk, till)
    for _ in range(3):
        desk.post("/vouchers/check", {"code": new_code()}, guesser, 404)
    for code, url in ((new_code(), desk.urls[0]), (made["code"], desk.urls[1]), ("nonsense", desk.urls[0])):
        answer = httpx.post(f"{url}/vouchers/check", json={"code": code}, headers=guesser)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    desk.post("/vouchers/claim", {"code": made["code"]}, guesser, 429)
    assert desk.read("/vouchers", guesser)["items"] == []  # the rest goes on
    desk.post("/vouchers/check", {"code": made["code"]}, desk.of("customer"))
    for _ in range(5):
        desk.post("/vouchers/redeem", eur(1, code=made["code"], customer=str(uuid4()), redemption=str(uuid4())), till)


def test_only_machines_issue_and_spend(desk: Market, till: Headers) -> None:
    made, someone = card(desk, till), str(uuid4())
    path = f"/vouchers/{made['id']}"
    for role in ("customer", "seller", "analyst"):
        by = desk.of(role, UUID(int=1))
        for url, body in (
            ("/vouchers", eur(1)),
            ("/vouchers/batches", eur(1, count=1)),
            ("/vouchers/credits", eur(1, holder=someone)),
            ("/vouchers/redeem", eur(1, code=made["code"], customer=someone, redemption=someone)),
            (f"{path}/void", {"reason": "x"}),
            (f"{path}/reservations", eur(1, reservation=someone, customer=someone)),
            (f"{path}/reservations/{someone}/confirm", None),
            (f"{path}/reservations/{someone}/release", None),
        ):
            desk.post(url, body, by, 403)
    for amount in (0, -1, 10**30):
        desk.post("/vouchers", eur(amount), till, 422)
    desk.post("/vouchers", eur(1, expires_at="2020-01-01T00:00:00Z"), till, 409)


def test_an_address_may_try_only_so_many_whoever_calls(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_API_CODE_IP_TRIES", "6")
    with database(stack) as postgres:
        settings = settings_of(postgres, NO_REDIS, tmp_path_factory.mktemp("address"))
        with market_on(settings, domains=["voucher"]) as one:
            statuses = [
                one.http.post("/vouchers/check", json={"code": new_code()}, headers=one.of("customer")).status_code
                for _ in range(8)
            ]
    assert statuses == [404] * 6 + [429] * 2
