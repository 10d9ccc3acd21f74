"""The reads of a service: now and as it was, one's own and nobody else's, after one's own writes."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from aggregates.kernel import Origin, Store
from aggregates.kernel.partition import murmur2, partition_of
from tests.api.kernel.conftest import Shop
from tests.api.kernel.purse import Purse
from tests.api.kernel.purse_view import PARTITIONS, catch_up


def fill(shop: Shop, id: str, me: dict[str, str], amount: int) -> str:
    answer = shop.http.post(f"/purses/{id}/fill", json={"amount": amount}, headers=me)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["position"])


def test_one_row_is_read_with_its_version_and_its_personal_data_open(shop: Shop) -> None:
    me = uuid4()
    id = shop.opened(shop.of(subject=me))
    fill(shop, id, shop.of(subject=me), 7)
    shop.project()
    answer = shop.http.get(f"/purses/{id}", headers=shop.of(subject=me))
    assert answer.json() == {"id": id, "owner": str(me), "currency": "EUR", "holder": "Ada", "balance": 7, "version": 2}
    assert (answer.headers["etag"], answer.headers["cache-control"]) == ('"2"', "no-store")


def test_as_it_was_at_a_version_and_at_a_time(shop: Shop) -> None:
    me = shop.of()
    id = shop.opened(me)
    fill(shop, id, me, 7)
    between = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    fill(shop, id, me, 10)
    shop.project()

    def balance(query: str) -> int | None:
        answer = shop.http.get(f"/purses/{id}?{query}", headers=me)
        assert answer.status_code in (200, 404), answer.text
        found: int | None = answer.json().get("balance")
        return found

    assert [balance(f"version={version}") for version in (1, 2, 3, 4)] == [0, 7, 17, None]
    assert balance(f"at={between}") == 7
    assert balance("at=2030-01-01T00:00:00Z") == 17
    assert balance("at=2020-01-01T00:00:00Z") is None
    assert balance(f"at={between}&version=3") == 7
    assert shop.http.get(f"/purses/{id}?version=2", headers=me).headers["etag"] == '"2"'


@pytest.mark.parametrize(
    "query", ["version=0", "version=-1", "version=x", "version=99999999999999999999", "at=yesterday", "at=2026-01-01T00:00:00",
              "at=0001-01-01T00:00:00%2B14:00", "at=-1", "after=x",
              "after=purse:99999999999999999999", "after=purse:-1", "after=purse:%00"],
)  # fmt: skip
def test_a_bad_parameter_is_named(shop: Shop, query: str) -> None:
    me = shop.of()
    id = shop.opened(me)
    shop.project()
    answer = shop.http.get(f"/purses/{id}?{query}", headers=me)
    assert answer.status_code == 422, answer.text


def test_what_happened_in_order_and_in_pages(shop: Shop) -> None:
    me = uuid4()
    id = shop.opened(shop.of(subject=me))
    for amount in (1, 2, 3):
        fill(shop, id, shop.of(subject=me), amount)
    shop.project()
    first = shop.http.get(f"/purses/{id}/events?limit=3", headers=shop.of(subject=me)).json()
    rest = shop.http.get(f"/purses/{id}/events?from={first['next']}", headers=shop.of(subject=me)).json()
    assert [one["version"] for one in first["items"] + rest["items"]] == [1, 2, 3, 4]
    assert rest["next"] is None
    opened, filled = first["items"][0], first["items"][1]
    assert (opened["type"], opened["data"]) == ("purse.Opened", {"owner": str(me), "currency": "EUR", "holder": "Ada"})
    assert (filled["data"], filled["actor"]) == ({"amount": 1}, f"user:{me}")


def test_a_list_shows_ones_own_and_pages_by_cursor(shop: Shop) -> None:
    me = shop.of()
    mine = {shop.opened(me, currency) for currency in ("EUR", "USD", "EUR", "EUR", "JPY")}
    shop.opened(shop.of())
    shop.project()
    found, cursor = [], ""
    while cursor is not None:
        page = shop.http.get(f"/purses?limit=2{cursor and '&cursor=' + cursor}", headers=me).json()
        found += [row["id"] for row in page["items"]]
        assert len(page["items"]) <= 2
        cursor = page["next"]
    assert (len(found), set(found)) == (5, mine)
    assert len(shop.http.get("/purses?currency=EUR", headers=me).json()["items"]) == 3
    everybodys = shop.http.get("/purses?limit=100", headers=shop.of("admin")).json()["items"]
    assert {row["id"] for row in everybodys} - mine
    assert shop.http.get("/purses", headers=shop.of("analyst")).json() == {"items": [], "next": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "cursor=%%%", "cursor=" + "A" * 3000, "cursor=%00"]
)  # fmt: skip
def test_a_bad_cursor_or_limit_is_refused(shop: Shop, query: str) -> None:
    assert shop.http.get(f"/purses?{query}", headers=shop.of()).status_code == 422


def test_a_position_or_page_that_never_was_is_not_found(shop: Shop) -> None:
    me = shop.of()
    id = shop.opened(me)
    shop.project()
    for path in (
        *(f"/purses/{id}?after={after}" for after in ("purse:0", "purse:999999999", "nothing:1")),
        *(f"/purses?cursor={cursor}" for cursor in ("AAAA", "W10", "WyIiLCJ4Il0", "A")),
    ):
        assert shop.http.get(path, headers=me).status_code == 404, path


def test_what_is_anothers_is_not_there(shop: Shop) -> None:
    id = shop.opened(shop.of())
    shop.project()
    for path in (
        f"/purses/{id}",
        f"/purses/{id}?version=1",
        f"/purses/{id}/events",
        f"/purses/{uuid4()}",
        f"/purses/{uuid4()}/events",
    ):
        answer = shop.http.get(path, headers=shop.of())
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:titan:problem:not-found"), path
        assert answer.json()["detail"].startswith("there is no purse ")
    assert shop.http.get(f"/purses/{id}", headers=shop.of("admin")).status_code == 200


def test_after_a_write_its_reader_waits_until_it_shows(shop: Shop) -> None:
    me = shop.of()
    id = shop.opened(me)
    shop.project()
    position = fill(shop, id, me, 9)
    assert shop.http.get(f"/purses/{id}", headers=me).json()["balance"] == 0
    later = threading.Timer(0.3, shop.project)
    later.start()
    assert shop.http.get(f"/purses/{id}?after={position}", headers=me).json()["balance"] == 9
    later.join()
    assert shop.http.get(f"/purses?after={position}", headers=me).json()["items"][0]["balance"] == 9


def test_what_was_made_a_moment_ago_is_waited_for_without_being_asked(shop: Shop) -> None:
    me = shop.of()
    id = shop.opened(me)
    later = threading.Timer(0.3, shop.project)
    later.start()
    assert shop.http.get(f"/purses/{id}", headers=me).status_code == 200
    later.join()


def test_what_one_command_wrote_on_several_aggregates_is_waited_for_in_all_their_partitions(shop: Shop) -> None:
    me = shop.of()
    purses: dict[int, str] = {}
    while len(purses) < 2:
        id = shop.opened(me)
        purses[partition_of(id.encode(), PARTITIONS)] = id
    shop.project()
    (here, first), (there, last) = purses.items()

    async def fill_both() -> str:
        async with Store.open(shop.settings.postgres) as store:
            calls = [(UUID(id), Purse.fill, (7,)) for id in (first, last)]
            return (await store.commands(Origin("user:test")).tell_all(calls)).position

    position = asyncio.run(fill_both())  # that of the last one's event
    catch_up(shop.settings.postgres, [there])
    assert shop.http.get(f"/purses/{last}", headers=me).json()["balance"] == 7
    answer = shop.http.get(f"/purses/{first}?after={position}", headers=me)
    assert (answer.status_code, answer.json().get("type")) == (503, "urn:titan:problem:view-pending"), answer.text
    catch_up(shop.settings.postgres, [here])
    assert shop.http.get(f"/purses/{first}?after={position}", headers=me).json()["balance"] == 7


def test_a_view_that_stays_behind_is_told_from_a_failure(shop: Shop) -> None:
    me = shop.of()
    id = shop.opened(me)
    shop.project()
    position = fill(shop, id, me, 9)
    answer = shop.http.get(f"/purses/{id}?after={position}", headers=me)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:titan:problem:view-pending")
    assert int(answer.headers["retry-after"]) >= 1


def test_an_erased_person_is_gone_from_rows_and_events(shop: Shop) -> None:
    import psycopg

    me = uuid4()
    id = shop.opened(shop.of(subject=me))
    shop.project()
    with psycopg.connect(shop.settings.postgres) as connection:
        row = connection.execute("SELECT holder FROM purses WHERE id = %s", (id,)).fetchone()
        assert row is not None
        assert row[0].startswith(f"sealed:1:{me}:")
        connection.execute("DELETE FROM vault_keys WHERE subject = %s", (me,))
    assert shop.app.stores is not None
    assert shop.app.stores.vault is not None
    shop.app.stores.vault._cache.clear()  # what half a minute does
    assert shop.http.get(f"/purses/{id}", headers=shop.of(subject=me)).json()["holder"] == ""
    assert shop.http.get(f"/purses/{id}/events", headers=shop.of(subject=me)).json()["items"][0]["data"]["holder"] == ""


@pytest.mark.parametrize(
    ("key", "hashed"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536),
     (b"a-little-bit-longer-string", -1486304829), (b"abc", 479470107)],
)  # fmt: skip
def test_keys_hash_as_kafkas_own_client_does(key: bytes, hashed: int) -> None:
    """Vectors of the Java client's own test."""
    assert murmur2(key) == hashed & 0xFFFFFFFF
    assert 0 <= partition_of(str(UUID(int=1)).encode(), 4) < 4
