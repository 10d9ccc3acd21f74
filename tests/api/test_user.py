"""People over HTTP: what they say of themselves, what is known of them, and that nothing of it is left when they are erased."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis as redis_client
from psycopg import sql

import streams.people
from aggregates.auth import AddressVerified
from aggregates.fraud import Case
from aggregates.kernel import Event, Origin, Recorded, Store, clock, domains, wire
from aggregates.user import ErasureRequested
from api.kernel.vault import Vault, read_master_key
from projections.kernel import changes
from tests.api.conftest import Market
from tests.kernel.people import People, Person
from tests.kernel.topic import stored

SEALED = re.compile(r"sealed:1:[0-9a-f-]{36}:[A-Za-z0-9+/=]+")
BERLIN = {
    "recipient": "Ada Lovelace",
    "street": "Platz der Republik 1",
    "city": "Berlin",
    "postcode": "11011",
    "country": "DE",
}
WHY = "my mother  has fallen ill"
CONFIRM = {"confirm": "erase everything"}


@pytest.fixture(scope="module")
def people(mall: Market) -> People:
    made = People(mall.http, mall.settings)
    made.forget_tries()  # other files of this process's were here before
    return made


@pytest.fixture(scope="module", autouse=True)
def forgetful() -> Iterator[None]:
    """Processes remember a key for half a minute: here for no time at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.kernel.vault.CACHED_S", 0.0)
        yield


@pytest.fixture
def ada(people: People, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Somebody who has answered the mail, and for whom that was reacted to."""
    monkeypatch.setattr(streams.people, "settings", lambda: people.settings)
    person = people.join()
    reacted(people, person.id, AddressVerified)
    return person


def reacted(people: People, person: UUID, kind: type[Event]) -> None:
    """What the reactors make of somebody's last event of a kind, twice, as after a crash."""
    row = [
        row
        for row in stored(people.settings.postgres, kind.domain)
        if row.originator_id == person and row.event_type == kind.type
    ][-1]
    recorded: Recorded[Any] = wire.recorded(kind.domain, row)
    reactor = {AddressVerified: streams.people.welcome, ErasureRequested: streams.people.erase}[kind]

    async def react() -> None:
        async with Store.open(people.settings.postgres) as store:
            for _ in range(2):
                await reactor.call(recorded, store.commands(Origin(actor="reactor.people")))

    asyncio.run(react())


def put(mall: Market, path: str, body: Any, by: dict[str, str], status: int = 200) -> dict[str, Any]:
    answer = mall.http.put(path, json=body, headers=by)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_who_answers_the_mail_has_a_profile(mall: Market, ada: Person) -> None:
    me = f"/users/{ada.id}"
    done = put(mall, f"{me}/name", {"name": "Ada Lovelace"}, ada.headers)
    assert mall.read(me, ada.headers, after=done["position"])["name"] == "Ada Lovelace"
    assert mall.http.post("/users", headers=ada.headers).status_code == 409
    assert [one["type"] for one in mall.read(f"{me}/events", ada.headers)["items"]] == ["user.Joined", "user.Named"]


@pytest.mark.parametrize(
    ("phone", "country", "kept"),
    [
        ("030 901820", "DE", ("+4930901820", "DE")), ("+44 20 7946 0018", None, ("+442079460018", "GB")),
        ("(650) 253-0000", "US", ("+16502530000", "US")), ("030 901820", None, None), ("+49 1", None, None), ("12345", "US", None),
    ],
)  # fmt: skip
def test_a_phone_number_is_one_of_its_country(
    mall: Market, ada: Person, phone: str, country: str | None, kept: tuple[str, str] | None
) -> None:
    me = f"/users/{ada.id}"
    done = put(mall, f"{me}/phone", {"phone": phone, "country": country}, ada.headers, 200 if kept else 409)
    if kept:
        shown = mall.read(me, ada.headers, after=done["position"])
        assert (shown["phone"], shown["phone_country"]) == kept


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (BERLIN, None),
        ({**BERLIN, "postcode": "1101"}, "postcode invalid"),
        ({**BERLIN, "postcode": None}, "postcode required"),
        ({**BERLIN, "city": None}, "city required"),
        ({**BERLIN, "country": "US", "region": "CA", "postcode": "94043", "city": "Mountain View"}, None),
        ({**BERLIN, "country": "US", "region": "XX", "postcode": "94043"}, "region invalid"),
        ({**BERLIN, "country": "US", "postcode": "94043"}, "region required"),
        ({**BERLIN, "country": "JP", "postcode": "154-0023"}, "region required"),
        ({**BERLIN, "country": "QQ"}, "country invalid"),
    ],
)  # fmt: skip
def test_an_address_is_as_its_country_writes_them(
    mall: Market, ada: Person, where: dict[str, Any], wrong: str | None
) -> None:
    me, id = f"/users/{ada.id}", uuid4()
    done = put(mall, f"{me}/addresses/{id}", where, ada.headers, 409 if wrong else 200)
    if wrong:
        assert wrong in done["detail"]
    else:
        [found] = mall.read(f"{me}/addresses", ada.headers, after=done["position"])["items"]
        assert found["recipient"] == "Ada Lovelace" and found["country"] == where["country"]
        shown = mall.read(me, ada.headers, after=done["position"])
        assert (shown["shipping"], shown["billing"]) == (str(id), str(id))


def test_addresses_are_chosen_and_removed(mall: Market, ada: Person) -> None:
    me, home, work = f"/users/{ada.id}", uuid4(), uuid4()
    for id in (home, work):
        put(mall, f"{me}/addresses/{id}", BERLIN, ada.headers)
    put(mall, f"{me}/defaults/billing/{work}", None, ada.headers)
    put(mall, f"{me}/defaults/billing/{uuid4()}", None, ada.headers, 409)
    done = mall.http.delete(f"{me}/addresses/{home}", headers=ada.headers).json()
    assert [one["address"] for one in mall.read(f"{me}/addresses", ada.headers, after=done["position"])["items"]] == [
        str(work)
    ]


def test_preferences_and_consents_with_their_history(mall: Market, ada: Person) -> None:
    me = f"/users/{ada.id}"
    done = put(mall, f"{me}/preferences/units", {"value": "metric"}, ada.headers)
    assert mall.read(f"{me}/preferences", ada.headers, after=done["position"])["items"] == {"units": "metric"}
    put(mall, f"{me}/consents/marketing_email", {"text": "2026-11 en"}, ada.headers)
    put(mall, f"{me}/consents/analytics", {"text": "2026-11 en"}, ada.headers)
    done = mall.http.delete(f"{me}/consents/marketing_email", headers=ada.headers).json()
    found = mall.read(f"{me}/consents", ada.headers, after=done["position"])
    assert found["given"] == {"analytics": "2026-11 en"}
    assert [(one["consent"], one["what"]) for one in found["items"]] == [
        ("marketing_email", "withdrawn"), ("analytics", "given"), ("marketing_email", "given"),
    ]  # fmt: skip


def test_nothing_is_written_for_somebody_else(mall: Market, people: People, ada: Person) -> None:
    bob = people.join()
    for path, body in (
        ("name", {"name": "Eve"}),
        ("phone", {"phone": "+4930901820"}),
        (f"addresses/{uuid4()}", BERLIN),
    ):
        assert mall.http.put(f"/users/{ada.id}/{path}", json=body, headers=bob.headers).status_code == 404
    unknown = uuid4()
    put(mall, f"/users/{unknown}/name", {"name": "Nobody"}, mall.of("admin"), 404)
    with psycopg.connect(mall.settings.postgres) as connection:  # and no key is made for whoever does not exist
        assert connection.execute("SELECT 1 FROM vault_keys WHERE subject = %s", (unknown,)).fetchone() is None


def lived(mall: Market, ada: Person) -> str:
    """Ada has said all that can be said, and has a cart and an order; the order."""
    me = f"/users/{ada.id}"
    put(mall, f"{me}/name", {"name": "Ada Lovelace"}, ada.headers)
    put(mall, f"{me}/phone", {"phone": "+4930901820"}, ada.headers)
    put(mall, f"{me}/addresses/{uuid4()}", BERLIN, ada.headers)
    put(mall, f"{me}/preferences/units", {"value": "Ada's own"}, ada.headers)
    put(mall, f"{me}/consents/analytics", {"text": "1"}, ada.headers)
    line = {"sku": "MUG", "product": str(uuid4()), "title": "Mug", "quantity": 2, "unit_price": 1999}
    order = {"customer": str(ada.id), "currency": "EUR", "lines": [line], "address": BERLIN}
    mall.cart(ada.headers)
    id = str(mall.post("/orders", order, mall.of("service"), 201)["id"])
    mall.post(f"/orders/{id}/cancel", {"reason": WHY}, ada.headers)
    return id


def paid(mall: Market, ada: Person, order: str) -> None:
    """Ada has ways to pay: a card, a wallet, vouchers of her own and of nobody's; and a rule finds her and her order suspicious."""
    till, money = mall.of("service"), {"amount": 500, "currency": "EUR"}
    card = {"gateway": "test", "token": "tok_visa", "brand": "visa", "last_four": "4242", "expires": "2031-09"}
    put(mall, f"/payments/methods/{uuid4()}", card, ada.headers)
    wallet = mall.post("/wallets", {"currency": "EUR"}, ada.headers, 201)["id"]
    mall.post(f"/wallets/{wallet}/topups", {**money, "method": "tok_visa"}, ada.headers, 201)
    given = mall.post("/vouchers/credits", {**money, "holder": str(uuid4())}, till, 201)["id"]
    mall.post(f"/vouchers/{given}/transfer", {"to": str(ada.id)}, mall.of("admin"))
    gift = mall.post("/vouchers", money, till, 201)["id"]
    for voucher in (given, gift):
        mall.post(f"/vouchers/{voucher}/reservations", {**money, "reservation": order, "customer": str(ada.id)}, till)

    async def suspected() -> None:
        async with Store.open(mall.settings.postgres) as store:
            commands = store.commands(Origin(actor="processor.rules"))
            for subject in (ada.id, UUID(order)):
                why = (50, "many", uuid4(), "order.Placed", UUID(order), clock.now(), 1)
                made = await commands.open(Case, f"rule_{subject.hex[:8]}", 1, subject, *why)
            case.append(made.id)

    case: list[UUID] = []
    asyncio.run(suspected())
    mall.live.catch_up()
    mall.post(
        f"/fraud/{case[0]}/confirm", {"reason": "her sister did it"}, mall.of("analyst")
    )  # of the order: it is about Ada


def test_a_person_gets_all_that_is_known_of_them(mall: Market, people: People, ada: Person) -> None:
    order = lived(mall, ada)
    paid(mall, ada, order)
    mall.live.catch_up()
    mall.read(f"/orders/{order}", ada.headers)
    found = mall.read(f"/users/{ada.id}/export", ada.headers)
    tables, events = found["tables"], found["events"]
    assert {
        "users",
        "accounts",
        "sessions",
        "user_addresses",
        "user_preferences",
        "user_consents",
        "orders",
        "order_lines",
    } <= tables.keys()
    assert {"customer_carts", "carts"} <= tables.keys()
    assert tables["accounts"][0]["email"] == ada.email
    assert tables["user_addresses"][0]["place"]["street"] == "Platz der Republik 1"
    assert tables["orders"][0]["address"]["recipient"] == "Ada Lovelace"
    assert tables["orders"][0]["cancelled_because"] == " ".join(WHY.split())
    told = mall.read(f"/orders/{order}/timeline", ada.headers)["items"]
    assert [one["detail"] for one in told] == [one["detail"] for one in tables["order_timeline"]]
    assert told[-1]["detail"] == " ".join(WHY.split())
    assert {one["reason"] for one in tables["fraud_cases"]} == {None, "her sister did it"}
    assert {one["type"] for one in events["user"]} >= {"user.Named", "user.ConsentGiven"}
    assert {one["id"] for one in events["order"]} == {order}
    assert "sealed:" not in str(found)
    counted = {
        "vouchers": 1,
        "voucher_uses": 2,
        "wallets": 1,
        "top_ups": 1,
        "payment_methods": 1,
        "fraud_cases": 2,
        "clickhouse.fraud_said": 3,
    }
    assert {name: len(tables.get(name, [])) for name in counted} == counted

    # No event of any domain names her, or is of hers, that she does not get: what she did to others' things is theirs.
    shown = {(one["id"], one["version"]) for domain in events.values() for one in domain}
    for domain in domains():
        for row in stored(mall.settings.postgres, domain):
            event = wire.recorded(domain, row).event
            mine = {str(event.id), *map(str, vars(event).values())} & {str(ada.id), order}
            if mine and event.type != "voucher.Reserved":
                assert (str(event.id), event.version) in shown, event
    stranger = mall.http.get(f"/users/{ada.id}/export", headers=people.join().headers)
    assert stranger.status_code == 404


def everything(mall: Market) -> str:
    """Every value of every table, and of Redis, as one text."""
    found = []
    with psycopg.connect(mall.settings.postgres) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            rows = connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))).fetchall()
            found += [row[0] for row in rows]
            if table.endswith(("_events", "_snapshots")):
                states = connection.execute(sql.SQL("SELECT state FROM {}").format(sql.Identifier(table))).fetchall()
                found += [bytes(row[0]).decode("latin-1") for row in states]
    with redis_client.Redis.from_url(mall.settings.redis) as client:
        for key in client.scan_iter(count=1_000):
            kind = client.type(key)
            found.append(key.decode("latin-1"))
            if kind == b"hash":
                found += [value.decode("latin-1") for value in client.hgetall(key).values()]
            elif kind == b"string":
                found.append((client.get(key) or b"").decode("latin-1"))
    return "\n".join(found)


def test_of_an_erased_person_nothing_can_be_read_and_the_sums_stay(mall: Market, people: People, ada: Person) -> None:
    order = lived(mall, ada)
    mall.live.catch_up()
    before = mall.read(f"/orders/{order}", mall.of("admin"))
    secrets = ("Ada Lovelace", "Platz der Republik", "+4930901820", "Ada's own", ada.email, "mother")
    assert mall.read(f"/users/{ada.id}", ada.headers)["name"] == "Ada Lovelace"
    asked = mall.post(f"/users/{ada.id}/erase", CONFIRM, ada.headers)
    put(mall, f"/users/{ada.id}/name", {"name": "Ada"}, ada.headers, 409)
    reacted(people, ada.id, ErasureRequested)
    mall.live.catch_up()

    # Nobody signs in, and the address is free.
    people.login(ada.email, status=401)
    people.post("/auth/refresh", 401, refresh_token=ada.tokens["refresh_token"])
    again = people.join(ada.email)
    assert again.id != ada.id

    # Whatever is sealed anywhere for her cannot be opened, and nothing is in the clear.
    text = everything(mall)
    hers = {one for one in SEALED.findall(text) if str(ada.id) in one}
    assert len(hers) >= 10

    async def opened() -> set[str]:
        async with people.pool() as pool:
            vault = Vault(pool, read_master_key(people.settings.master_key))
            return {await vault.open(one) for one in hers}

    assert asyncio.run(opened()) == {""}
    assert not any(secret in text for secret in secrets)
    with psycopg.connect(mall.settings.postgres) as connection:
        assert connection.execute("SELECT 1 FROM secrets WHERE subject = %s", (ada.id,)).fetchone() is None

    # The order keeps its sums, and nothing personal can be written for her any more.
    after = mall.read(f"/orders/{order}", mall.of("admin"))
    kept = {
        name: value
        for name, value in after.items()
        if name not in ("address", "cancelled_because", "version", "changed_at")
    }
    assert kept == {name: before[name] for name in kept}
    assert set(after["address"].values()) <= {"", "DE", None}
    assert (before["cancelled_because"], after["cancelled_because"]) == (" ".join(WHY.split()), "")
    line = {"sku": "MUG", "product": str(uuid4()), "title": "Mug", "quantity": 1, "unit_price": 1}
    more = {"customer": str(ada.id), "currency": "EUR", "lines": [line], "address": BERLIN}
    refused = mall.http.post("/orders", json=more, headers=mall.of("service"))
    assert refused.status_code == 409 and "was erased" in refused.text
    shown = mall.read(f"/users/{ada.id}", mall.of("admin"), after=asked["position"])
    assert (shown["status"], shown["name"]) == ("erased", None)

    # Everything replays: each of her events still makes its changes.
    for domain in ("user", "auth", "order"):
        rows = [row for row in stored(people.settings.postgres, domain) if row.originator_id in (ada.id, UUID(order))]
        assert rows and all(changes(wire.recorded(domain, row)) is not None for row in rows)


def test_who_was_erased_stays_so_when_an_old_copy_of_the_keys_and_secrets_is_put_back(
    mall: Market, people: People, ada: Person
) -> None:
    sealed, tables = people.account(ada.email).email, ("vault_keys", "secrets")
    with mall.database() as connection:
        for table in tables:
            connection.execute(f"CREATE TABLE {table}_copy AS TABLE {table}".encode())
    bob = people.join()  # newer than the copy: he stays as he is
    mall.post(f"/users/{ada.id}/erase", CONFIRM, ada.headers)
    reacted(people, ada.id, ErasureRequested)
    with mall.database() as connection:
        for table in tables:
            key = {"vault_keys": "subject", "secrets": "id"}[table]
            connection.execute(f"DELETE FROM {table} WHERE subject = %s".encode(), (ada.id,))
            connection.execute(
                f"INSERT INTO {table} SELECT * FROM {table}_copy ON CONFLICT ({key}) DO NOTHING".encode()
            )
            connection.execute(f"DROP TABLE {table}_copy".encode())

    async def again() -> tuple[str, int, int, str]:
        async with people.pool() as pool:
            vault = Vault(pool, read_master_key(people.settings.master_key))
            read = await vault.open(sealed)
            numbers = [await streams.people.stay_erased(people.settings) for _ in range(2)]
            return read, *numbers, await vault.open(sealed)  # type: ignore[return-value]

    read, first, second, after = asyncio.run(again())
    assert (read, after) == (ada.email, "")
    assert first >= 3 and second == 0  # her key, password and session
    with mall.database() as connection:
        assert connection.execute("SELECT 1 FROM secrets WHERE subject = %s", (ada.id,)).fetchone() is None
    people.login(bob.email)


def test_who_was_erased_is_looked_up_without_reading_everybodys_events(mall: Market, people: People) -> None:
    for _ in range(2):
        asyncio.run(streams.people.migrate(people.settings))
    with mall.database() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")  # as a planner that knows many events would have it
        plan = str(connection.execute(sql.SQL("EXPLAIN {}").format(streams.people.WHO)).fetchall())
    assert "user_events_erased" in plan


def test_erasing_is_meant(mall: Market, ada: Person) -> None:
    assert mall.http.post(f"/users/{ada.id}/erase", json={"confirm": "yes"}, headers=ada.headers).status_code == 422
