"""Commands over HTTP: stored once whatever is repeated, on the version that was meant, by whom it belongs to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from tests.api.kernel.conftest import Shop, shop_on

OPEN = {"currency": "EUR", "holder": "Ada"}


def events_of(shop: Shop, id: str) -> list[tuple[str, str, str]]:
    with psycopg.connect(shop.settings.postgres) as connection:
        return connection.execute(
            "SELECT event_type, correlation_id, actor FROM purse_events WHERE originator_id = %s ORDER BY originator_version",
            (id,),
        ).fetchall()


def test_a_command_is_answered_with_where_it_is_stored(shop: Shop) -> None:
    me = uuid4()
    made = shop.http.post("/purses", json=OPEN, headers=shop.of(subject=me))
    assert made.status_code == 201
    id = made.json()["id"]
    assert made.headers["location"] == f"/purses/{id}"
    assert made.headers["etag"] == '"1"'
    filled = shop.http.post(f"/purses/{id}/fill", json={"amount": 5}, headers=shop.of(subject=me))
    assert (filled.status_code, filled.json()["version"], filled.headers["etag"]) == (200, 2, '"2"')
    assert filled.json().keys() == {"id", "version", "position"}
    assert filled.json()["position"].startswith("purse:")
    assert [(kind, actor) for kind, _, actor in events_of(shop, id)] == [
        ("purse.Opened", f"user:{me}"),
        ("purse.Filled", f"user:{me}"),
    ]


def test_the_same_key_and_request_is_answered_with_the_first_answer(shop: Shop) -> None:
    me = shop.of(more={"Idempotency-Key": "k-1"})
    first = shop.http.post("/purses", json=OPEN, headers=me)
    again = shop.http.post(
        "/purses", content=b'{ "holder":"Ada",\n"currency":"EUR"}', headers={**me, "Content-Type": "application/json"}
    )
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert len(events_of(shop, first.json()["id"])) == 1


def test_the_same_key_with_another_request_is_refused(shop: Shop) -> None:
    me = shop.of(more={"Idempotency-Key": "k-1"})
    assert shop.http.post("/purses", json=OPEN, headers=me).status_code == 201
    other = shop.http.post("/purses", json={**OPEN, "currency": "USD"}, headers=me)
    assert (other.status_code, other.json()["type"]) == (422, "urn:titan:problem:reused")


def test_a_key_is_each_callers_own_and_each_routes(shop: Shop) -> None:
    ada = shop.of(more={"Idempotency-Key": "k-1"})
    ids = {
        shop.http.post("/purses", json=OPEN, headers=who).json()["id"]
        for who in (ada, shop.of(more={"Idempotency-Key": "k-1"}))
    }
    assert len(ids) == 2
    mine = shop.http.post("/purses", json=OPEN, headers=ada).json()["id"]
    assert shop.http.post(f"/purses/{mine}/fill", json={"amount": 5}, headers=ada).json()["version"] == 2


def test_a_refusal_is_not_remembered_as_an_answer(shop: Shop) -> None:
    me = shop.of(more={"Idempotency-Key": "late"})
    id = shop.opened({"Authorization": me["Authorization"]})
    assert shop.http.post(f"/purses/{id}/spend", json={"amount": 5}, headers=me).status_code == 409
    shop.http.post(f"/purses/{id}/fill", json={"amount": 5}, headers={"Authorization": me["Authorization"]})
    spent = shop.http.post(f"/purses/{id}/spend", json={"amount": 5}, headers=me)
    assert (spent.status_code, spent.json()["version"]) == (200, 3)
    again = shop.http.post(f"/purses/{id}/spend", json={"amount": 5}, headers=me)
    assert (again.status_code, again.json(), again.headers["idempotency-replayed"]) == (200, spent.json(), "true")


def test_of_many_at_once_with_one_key_one_is_done_and_the_others_wait_or_see_its_answer(shop: Shop) -> None:
    me = shop.of(more={"Idempotency-Key": "race"})
    id = shop.opened({"Authorization": me["Authorization"]})

    def fill(_: int) -> tuple[int, str]:
        answer = shop.http.post(f"/purses/{id}/fill", json={"amount": 5}, headers=me)
        return answer.status_code, answer.json().get("type", "")

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(fill, range(64)))
    assert (200, "") in answers
    assert answers <= {(200, ""), (409, "urn:titan:problem:running")}
    assert [kind for kind, _, _ in events_of(shop, id)] == ["purse.Opened", "purse.Filled"]


def test_a_request_of_two_commands_is_repeated_as_one(shop: Shop) -> None:
    id = shop.opened(shop.of())
    machine = shop.of("service", more={"Idempotency-Key": "two"})
    first, again = (shop.http.post(f"/purses/{id}/refill", headers=machine) for _ in range(2))
    assert first.json() == again.json()
    assert first.json()["version"] == 3
    assert len(events_of(shop, id)) == 3


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "caf\xe9", "tab\tkey"])
def test_a_bad_key_is_refused(shop: Shop, key: str) -> None:
    headers = [*shop.of().items(), ("Idempotency-Key", key.encode("latin-1"))]
    answer = shop.http.post("/purses", json=OPEN, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "Idempotency-Key")


def test_if_match_lets_only_the_named_version_be_changed(shop: Shop) -> None:
    me = shop.of()
    id = shop.opened(me)

    def fill(tag: str) -> int:
        answer = shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers={**me, "If-Match": tag})
        assert answer.headers["content-type"] == "application/" + (
            "json" if answer.status_code == 200 else "problem+json"
        )
        return answer.status_code

    assert [fill(tag) for tag in ('"1"', '"1"', "2", "*", '"99999999999999999999"', 'W/"4"', '"x"')] == [
        200, 412, 200, 200, 412, 412, 412,
    ]  # fmt: skip
    assert [fill(tag) for tag in ("four", "", '"4', '"3", "4"')] == [422] * 4
    assert len(events_of(shop, id)) == 4


def test_what_is_anothers_is_as_if_it_were_not_there(shop: Shop) -> None:
    id = shop.opened(shop.of())
    other = shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers=shop.of())
    nobodys = shop.http.post(f"/purses/{uuid4()}/fill", json={"amount": 1}, headers=shop.of())
    assert other.status_code == nobodys.status_code == 404
    assert other.json()["detail"].replace(id, "") == nobodys.json()["detail"].replace(
        nobodys.json()["detail"][-36:], ""
    )
    assert shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers=shop.of("seller")).status_code == 404
    assert shop.http.post(f"/purses/{id}/fill", json={"amount": 1}, headers=shop.of("admin")).status_code == 200
    assert len(events_of(shop, id)) == 2


def test_a_rule_that_refuses_is_told_in_words(shop: Shop) -> None:
    me = shop.of()
    answer = shop.http.post(f"/purses/{shop.opened(me)}/spend", json={"amount": 5}, headers=me)
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:titan:problem:refused")
    assert answer.json()["detail"] == "5 is more than the balance of 0"


def test_the_trace_of_a_request_reaches_its_events(shop: Shop) -> None:
    trace = uuid4().hex
    me = shop.of(more={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    made = shop.http.post("/purses", json=OPEN, headers=me)
    assert made.headers["correlation-id"] == trace
    assert [correlation for _, correlation, _ in events_of(shop, made.json()["id"])] == [trace]


@pytest.mark.parametrize(
    "bad", ["00-0-0-00", f"ff-{'a' * 32}-{'b' * 16}-01", f"00-{'0' * 32}-{'b' * 16}-01", f"00-{'A' * 32}-{'b' * 16}-01"]
)
def test_a_bad_trace_is_ignored(shop: Shop, bad: str) -> None:
    made = shop.http.post("/purses", json=OPEN, headers=shop.of(more={"traceparent": bad}))
    assert made.status_code == 201
    assert made.headers["correlation-id"] not in bad


def test_two_processes_with_one_key_store_one_command(shop: Shop) -> None:
    """The second process knows nothing of the first but what is committed."""
    me = shop.of(more={"Idempotency-Key": "across"})
    with shop_on(shop.settings) as other, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(each.http.post, "/purses", json=OPEN, headers=me) for each in (shop, other) * 8]
        answers = [job.result() for job in jobs]
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(ids) == 1
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len(events_of(shop, ids.pop())) == 1
