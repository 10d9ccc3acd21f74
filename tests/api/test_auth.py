"""Accounts over HTTP: what signs in and what does not, and that nothing tells who has an account."""

from __future__ import annotations

import asyncio
import base64
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pyotp
import pytest
from joserfc import jws, jwt
from joserfc.jwk import ECKey, KeySet

from aggregates.auth import KEYRING, Account, Keyring
from aggregates.kernel import Store, clock
from api.auth.passwords import hashed
from api.auth.sessions import AGAIN_S
from api.auth.signing import PUBLISHED_AHEAD, SIGNERS
from api.kernel.secrets import Secrets
from infra.token import token
from tests.api.conftest import Market
from tests.kernel.people import PASSWORD, People, Person
from tests.kernel.topic import stored

OTHER = "another horse entirely"


@pytest.fixture(scope="module")
def people(mall: Market) -> People:
    return People(mall.http, mall.settings)


@pytest.fixture(autouse=True)
def forgotten(people: People) -> None:
    """One network asks for everybody here, and other files of this process's were here before."""
    people.forget_tries()


@pytest.fixture
def ada(people: People) -> Person:
    return people.join()


def test_an_account_begins_with_an_answered_mail(people: People) -> None:
    email = people.register()
    people.login(email, status=401)  # not yet
    token = people.mail("verify", email)
    people.post("/auth/verify", 409, token=token, password=OTHER)
    proven = people.post("/auth/verify", 200, token=token, password=PASSWORD)
    assert people.post("/auth/verify", 409, token=token, password=PASSWORD)["detail"].startswith(
        "this mail was answered"
    )
    tokens = people.login(email.upper())
    assert tokens["token_type"] == "Bearer"
    me = people.http.get("/accounts", headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert proven["id"] == str(people.account(email).id)
    assert me.status_code == 200, me.text


def test_mails_are_answered_on_the_page_that_they_lead_to(people: People) -> None:
    email = people.register()

    def answered(purpose: str, password: str) -> httpx.Response:
        token = people.mail(purpose, email)
        shown = people.http.get(f"/auth/mail/{purpose}", params={"token": token})
        assert shown.status_code == 200 and "frame-ancestors 'none'" in shown.headers["content-security-policy"]
        [hidden] = re.findall(r'name="token" value="([^"]+)"', shown.text)
        return people.http.post(f"/auth/mail/{purpose}", data={"token": hidden, "password": password})

    wrong = answered("verify", OTHER)
    assert wrong.status_code == 409 and "not the password" in wrong.text
    assert answered("verify", "short").status_code == 409
    assert answered("verify", PASSWORD).status_code == 200
    people.login(email)
    people.post("/auth/forgot", 202, email=email)
    assert answered("reset", OTHER).status_code == 200
    people.login(email, OTHER)


def test_nobody_prepares_an_account_for_somebody_else_to_confirm(people: People) -> None:
    """The victim answers the attacker's mail, or the attacker hopes that they take over the victim's registration."""
    email = people.register(password="the attacker's own")
    planted = people.mail("verify", email)
    people.register(email)
    people.post("/auth/verify", 409, token=planted, password=PASSWORD)  # not what was chosen with that mail
    people.post("/auth/verify", 200, token=people.mail("verify", email), password=PASSWORD)
    people.login(email, "the attacker's own", status=401)
    people.login(email)
    people.post("/auth/verify", 409, token=planted, password="the attacker's own")


def test_registering_a_taken_address_changes_nothing(people: People, ada: Person) -> None:
    before = people.account(ada.email)
    assert people.post("/auth/register", 202, email=ada.email, password=OTHER) == people.post(
        "/auth/register", 202, email=f"{uuid4().hex}@example.com", password=OTHER
    )
    after = people.account(ada.email)
    assert (after.credential, after.sessions, after.pending) == (before.credential, before.sessions, {})
    assert len(after.mails) == len(before.mails) + 1  # its owner is told
    people.login(ada.email)


def test_a_token_is_the_platforms_own_and_everybody_can_check_it(people: People, ada: Person) -> None:
    keys = KeySet.import_key_set(people.http.get("/.well-known/jwks.json").json())
    found = jwt.decode(ada.tokens["access_token"], keys, algorithms=["ES256"])
    assert found.header["typ"] == "at+jwt"
    claims = found.claims
    assert (claims["iss"], claims["aud"], claims["sub"]) == (people.settings.issuer, "titan-api", str(ada.id))
    assert claims["role"] == "customer" and claims["exp"] - claims["iat"] == 600
    jwt.decode(
        token(people.settings, "customer", ada.id), keys, algorithms=["ES256"]
    )  # `titan token`'s key is among them


def test_one_sees_the_own_account_alone(people: People, ada: Person, mall: Market) -> None:
    bob = people.join()
    listed = mall.read("/accounts", ada.headers)["items"]
    assert [(one["id"], one["email"], one["role"]) for one in listed] == [(str(ada.id), ada.email, "customer")]
    assert people.http.get(f"/accounts/{bob.id}", headers=ada.headers).status_code == 404
    assert people.http.get(f"/accounts/{bob.id}/sessions", headers=ada.headers).status_code == 404
    assert people.http.post(f"/accounts/{bob.id}/role", json={"role": "admin"}, headers=ada.headers).status_code == 403
    types = [one["type"] for one in mall.read(f"/accounts/{ada.id}/events", ada.headers)["items"]]
    assert types == [
        "auth.Registered", "auth.VerificationRequested", "auth.AddressVerified", "auth.PasswordChanged", "auth.SignedIn",
    ]  # fmt: skip


def test_nobody_makes_themselves_an_admin(people: People) -> None:
    answer = people.http.post("/auth/register", json={"email": "a@example.com", "password": PASSWORD, "role": "admin"})
    assert answer.status_code == 422


def test_a_refresh_token_is_good_once(people: People, ada: Person) -> None:
    first = ada.tokens["refresh_token"]
    second = people.post("/auth/refresh", 200, refresh_token=first)
    assert people.post("/auth/refresh", 200, refresh_token=first)["refresh_token"] == second["refresh_token"]  # an echo
    third = people.post("/auth/refresh", 200, refresh_token=second["refresh_token"])
    people.post("/auth/refresh", 401, refresh_token=first)  # two behind: copied
    people.post("/auth/refresh", 401, refresh_token=third["refresh_token"])
    assert people.account(ada.email).sessions == {}


def test_the_last_refresh_token_is_an_echo_only_for_a_moment(people: People, ada: Person) -> None:
    first = ada.tokens["refresh_token"]
    second = people.post("/auth/refresh", 200, refresh_token=first)
    session = next(iter(people.account(ada.email).sessions))
    with psycopg.connect(people.settings.postgres) as connection:  # time passes
        later = "UPDATE secrets SET used_at = used_at - make_interval(secs => %s) WHERE id = %s"
        assert connection.execute(later, (AGAIN_S, session)).rowcount == 1
    people.post("/auth/refresh", 401, refresh_token=first)
    people.post("/auth/refresh", 401, refresh_token=second["refresh_token"])


@pytest.mark.parametrize("change", ["number", "digest", "session", "shape", "longer"])
def test_a_refresh_token_cannot_be_made_up(people: People, ada: Person, change: str) -> None:
    account, session, number, digest = ada.tokens["refresh_token"].split(".")
    made = {
        "number": f"{account}.{session}.{int(number) + 1}.{digest}",
        "digest": f"{account}.{session}.{number}.{digest[::-1]}",
        "session": f"{account}.{uuid4().hex}.{number}.{digest}",
        "shape": "x",
        "longer": f"{account}.{session}.{number}0000000000000.{digest}",
    }[change]
    people.post("/auth/refresh", 401, refresh_token=made)
    assert people.account(ada.email).sessions  # and ends nobody's session


def test_signing_out_ends_one_session_or_all(people: People, ada: Person, mall: Market) -> None:
    phone, laptop = people.login(ada.email), people.login(ada.email)
    people.post("/auth/logout", 200, refresh_token=phone["refresh_token"])
    people.post("/auth/refresh", 401, refresh_token=phone["refresh_token"])
    laptop = people.post("/auth/refresh", 200, refresh_token=laptop["refresh_token"])
    mine = {"Authorization": f"Bearer {laptop['access_token']}"}
    position = people.post("/auth/logout-everywhere", 200, headers=mine)["position"]
    for one in (laptop, ada.tokens):
        people.post("/auth/refresh", 401, refresh_token=one["refresh_token"])
    assert mall.read(f"/accounts/{ada.id}/sessions", mine, after=position)["items"] == []


def test_sessions_are_listed_and_ended_one_by_one(people: People, ada: Person, mall: Market) -> None:
    people.login(ada.email)
    found = mall.read(f"/accounts/{ada.id}/sessions", ada.headers)["items"]
    while len(found) < 2:
        found = mall.read(f"/accounts/{ada.id}/sessions", ada.headers)["items"]
    done = people.post(f"/accounts/{ada.id}/sessions/{found[0]['session']}/end", 200, headers=ada.headers)
    left = mall.read(f"/accounts/{ada.id}/sessions", ada.headers, after=done["position"])["items"]
    assert [one["session"] for one in left] == [found[1]["session"]]


def test_a_changed_password_ends_every_session(people: People, ada: Person) -> None:
    people.post("/auth/password", 409, headers=ada.headers, old=OTHER, new="a third horse, then")
    people.post("/auth/password", 200, headers=ada.headers, old=PASSWORD, new=OTHER)
    people.post("/auth/refresh", 401, refresh_token=ada.tokens["refresh_token"])
    people.login(ada.email, status=401)
    people.login(ada.email, OTHER)
    with psycopg.connect(people.settings.postgres) as connection:
        row = connection.execute(
            "SELECT count(*) FROM secrets WHERE subject = %s AND kind = 'password'", (ada.id,)
        ).fetchone()
        assert row == (1,)


def test_a_forgotten_password_is_chosen_anew_by_mail(people: People, ada: Person) -> None:
    known = people.post("/auth/forgot", 202, email=ada.email)
    assert known == people.post("/auth/forgot", 202, email=f"{uuid4().hex}@example.com")
    token = people.mail("reset", ada.email)
    people.post("/auth/verify", 409, token=token, password=OTHER)  # another mail's
    people.post("/auth/reset", 200, token=token, password=OTHER)
    people.post("/auth/reset", 409, token=token, password="a third horse, then")
    people.post("/auth/refresh", 401, refresh_token=ada.tokens["refresh_token"])
    people.login(ada.email, status=401)
    people.login(ada.email, OTHER)


def letters(people: People, email: str) -> Counter[str]:
    """How many mails of each kind were asked for."""
    return Counter(asked.letter for asked in people.account(email).mails.values())


def elsewhere(number: int) -> dict[str, str]:
    """Headers of a request from another network (this one's address is trusted as a proxy's)."""
    return {"X-Forwarded-For": f"203.0.113.{number}"}


def test_nobody_is_silenced_by_who_asks_for_mails_to_them(
    people: People, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one network three of a kind are taken, whether or not there is an account; of many, as many as an hour has."""
    monkeypatch.setattr("api.auth.fields.FLOOR_S", 0.0)
    for email in (ada.email, f"{uuid4().hex}@example.com"):
        for path, more in (("/auth/register", {"password": OTHER}), ("/auth/forgot", {})):
            statuses = [
                people.http.post(path, json={"email": email, **more}, headers=elsewhere(1)).status_code
                for _ in range(4)
            ]
            assert statuses == [202] * 3 + [429]
    for network in (2, 2, 3):  # the last one is answered as all are, and one too many
        people.post("/auth/forgot", 202, elsewhere(network), email=ada.email)
    assert letters(people, ada.email) == {"verification": 1, "notice": 3, "reset": 5}
    planted = list(people.account(ada.email).pending)[-1]  # asked for by somebody else, and mailed to her
    people.post("/auth/forgot", 202, elsewhere(1), email=ada.email, device=ada.tokens["device"])
    assert letters(people, ada.email)["device_reset"] == 1
    bobs = people.login(people.join().email)["device"]
    people.post("/auth/forgot", 429, elsewhere(1), email=ada.email, device=bobs)

    async def proof(secrets: Secrets) -> str:
        return secrets.proof("reset", ada.id, planted)

    people.post("/auth/reset", 200, token=people.secrets(proof), password=OTHER)
    people.login(ada.email, OTHER)


def test_who_registers_somebody_elses_address_keeps_nobody_out(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.auth.fields.FLOOR_S", 0.0)
    email = f"{uuid4().hex}@example.com"
    for network in (1, 1, 1, 2, 2, 3):
        people.post("/auth/register", 202, elsewhere(network), email=email, password=OTHER)
    people.register(email)  # its mail does not come: those before it say what to do
    assert letters(people, email) == {"verification": 5}
    people.post("/auth/forgot", 202, email=email)
    people.post("/auth/reset", 200, token=people.mail("reset", email), password=PASSWORD)
    people.login(email)
    people.login(email, OTHER, status=401)


def test_a_role_is_given_by_admins_and_ends_sessions(people: People, ada: Person, mall: Market) -> None:
    services = people.http.post(f"/accounts/{ada.id}/role", json={"role": "seller"}, headers=mall.of("service"))
    assert services.status_code == 403
    people.post(f"/accounts/{ada.id}/role", 200, headers=mall.of("admin"), role="seller")
    people.post("/auth/refresh", 401, refresh_token=ada.tokens["refresh_token"])
    tokens = people.login(ada.email)
    seller = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert people.http.post("/products", json={"title": "Mug"}, headers=ada.headers).status_code == 403
    assert people.http.post("/products", json={"title": "Mug"}, headers=seller).status_code == 201


def test_guessing_stops_where_it_comes_from_and_the_owner_gets_in(people: People, ada: Person) -> None:
    """The same answers for an address without an account; a known device is counted by itself."""
    device = ada.tokens["device"]
    for email in (ada.email, f"{uuid4().hex}@example.com"):
        tries = [
            people.http.post("/auth/login", json={"email": email, "password": OTHER}).status_code for _ in range(12)
        ]
        assert tries == [401] * 10 + [429] * 2
    answer = people.http.post("/auth/login", json={"email": ada.email, "password": PASSWORD})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 600
    people.login(ada.email, device=device)
    people.login(ada.email, status=429, device=people.login(people.join().email)["device"])  # somebody else's device


def test_guessing_from_everywhere_leaves_the_owners_devices_and_the_mail(people: People, ada: Person) -> None:
    people.forget_tries()
    with psycopg.connect(people.settings.postgres) as connection:  # as if 48 had come from other networks
        key = sha256(f"auth.address\n{people.account(ada.email).digest}".encode()).digest()[:16]
        connection.execute("INSERT INTO attempts VALUES (%s, 48, now() + interval '1 hour')", (key,))
    for _ in range(2):
        people.login(ada.email, OTHER, status=401)
    people.login(ada.email, status=429)
    people.login(ada.email, device=ada.tokens["device"])
    people.post("/auth/forgot", 202, email=ada.email)
    proven = people.post("/auth/reset", 200, token=people.mail("reset", ada.email), password=OTHER)
    people.login(ada.email, OTHER, status=429)
    people.login(ada.email, OTHER, device=proven["device"])
    assert locks(people, ada) == 1


def test_who_guesses_in_the_same_network_locks_no_known_device_out(
    people: People, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    people.forget_tries()
    monkeypatch.setenv("TITAN_AUTH_NETWORK_TRIES", "3")
    for _ in range(3):
        people.login(f"{uuid4().hex}@example.com", status=401)
    people.login(ada.email, status=429)
    people.login(ada.email, device=ada.tokens["device"])


def test_how_long_a_login_takes_does_not_tell_who_has_an_account(people: People, ada: Person) -> None:
    """Medians of alternating tries. Without the dummy hash an unknown address is answered some 25 ms sooner."""

    def took(email: str) -> float:
        people.forget_tries()
        began = time.perf_counter()
        people.login(email, OTHER, status=401)
        return time.perf_counter() - began

    pairs = [(took(ada.email), took(f"{uuid4().hex}@example.com")) for _ in range(15)]
    known, unknown = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert abs(known - unknown) < 0.4 * min(known, unknown), (known, unknown)


def two(people: People, ada: Person) -> tuple[pyotp.TOTP, list[str]]:
    """A second factor set up; the authenticator is a step ahead, so that its next code is a fresh one."""
    offer = people.post("/auth/totp", 200, headers=ada.headers)
    made = pyotp.TOTP(offer["secret"])
    assert pyotp.parse_uri(offer["uri"]).secret == offer["secret"]
    before = made.at(time.time() - 30)
    codes = people.post("/auth/totp/confirm", 200, headers=ada.headers, factor=offer["factor"], code=before)
    return made, codes["recovery_codes"]


def test_a_second_factor_is_asked_for_and_each_code_is_good_once(people: People, ada: Person) -> None:
    totp, recovery = two(people, ada)
    missing = people.login(ada.email, status=401)
    assert missing["type"] == "urn:titan:problem:second-factor"
    people.login(ada.email, OTHER, status=401, code=totp.now())
    code = totp.now()
    people.login(ada.email, code=code)
    people.login(ada.email, status=401, code=code)  # seen over a shoulder
    people.login(ada.email, code=recovery[0])
    people.login(ada.email, status=401, code=recovery[0])
    people.login(ada.email, code=recovery[1].upper().replace("-", ""))
    with psycopg.connect(people.settings.postgres) as connection:
        rows = connection.execute("SELECT sealed FROM secrets WHERE subject = %s", (ada.id,)).fetchall()
    assert not any(totp.secret.encode() in bytes(row[0]) for row in rows)


def test_who_guesses_codes_from_anywhere_locks_nobody_out(
    people: People, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has a few guesses a day, from however many networks."""
    monkeypatch.setenv("TITAN_AUTH_CODE_DAY_TRIES", "7")
    totp, recovery = two(people, ada)

    def guess(network: int, code: str = "x", **more: str) -> int:
        body = {"email": ada.email, "password": PASSWORD, "code": code if code != "x" else wrong(totp), **more}
        return people.http.post("/auth/login", json=body, headers=elsewhere(network)).status_code

    assert [guess(1) for _ in range(6)] == [401] * 5 + [429]
    assert [guess(2) for _ in range(3)] == [401, 401, 429]  # the sixth was turned away: it took nothing from others
    assert guess(3, totp.now()) == 429
    assert guess(3, recovery[0]) == 200
    assert guess(1, totp.now(), device=ada.tokens["device"]) == 200
    renew = people.http.post("/auth/totp/recovery", json={"code": totp.at(time.time() + 30)}, headers=ada.headers)
    assert renew.status_code == 200
    assert [guess(4, device=ada.tokens["device"]) for _ in range(6)] == [401] * 5 + [429]
    assert locks(people, ada) == 1


def wrong(totp: pyotp.TOTP) -> str:
    """A code that is not one at this time."""
    good = {totp.at(time.time() + 30 * step) for step in range(-3, 4)}
    return next(code for code in ("000000", "111111", "222222", "333333") if code not in good)


def locks(people: People, who: Person) -> int:
    rows = stored(people.settings.postgres, "auth")
    return sum(row.event_type == "auth.Locked" and row.originator_id == who.id for row in rows)


def test_a_second_factor_is_disabled_by_who_has_it(people: People, ada: Person) -> None:
    _, recovery = two(people, ada)
    people.post("/auth/totp", 409, headers=ada.headers)
    people.post("/auth/totp/disable", 409, headers=ada.headers, code="000000")
    renewed = people.post("/auth/totp/recovery", 200, headers=ada.headers, code=recovery[0])["recovery_codes"]
    people.post("/auth/totp/disable", 409, headers=ada.headers, code=recovery[1])
    people.post("/auth/totp/disable", 200, headers=ada.headers, code=renewed[0])
    people.login(ada.email)


def test_another_persons_offer_confirms_nothing(people: People, ada: Person) -> None:
    offer = people.post("/auth/totp", 200, headers=people.join().headers)
    code = pyotp.TOTP(offer["secret"]).now()
    people.post("/auth/totp/confirm", 409, headers=ada.headers, factor=offer["factor"], code=code)


def test_keys_rotate_without_anybody_noticing_and_a_revoked_one_is_worth_nothing(
    mall: Market, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, admin = people.join(), mall.of("admin")
    published = {key["kid"] for key in people.http.get("/.well-known/jwks.json").json()["keys"]}
    old = kid_of(people.login(ada.email))
    people.post("/auth/keys/rotate", 200, headers=admin)
    assert published < {key["kid"] for key in people.http.get("/.well-known/jwks.json").json()["keys"]}
    assert kid_of(people.login(ada.email)) == old  # the new one is not in use before everybody has it
    refused = people.post(f"/auth/keys/{old}/revoke", 409, headers=admin)
    assert "no other key can sign now" in refused["detail"]
    monkeypatch.setattr("api.auth.signing.LOOK_S", 0.0)
    later = clock.now() + PUBLISHED_AHEAD
    before = clock.set_clock(lambda: later)
    try:
        tokens = people.login(ada.email)
        assert kid_of(tokens) != old
        assert mall.http.get("/accounts", headers=ada.headers).status_code == 200  # signed by the old one
        people.post(f"/auth/keys/{old}/revoke", 200, headers=admin)
    finally:
        clock.set_clock(before)
    monkeypatch.setattr("api.kernel.auth.KEYS_LOOK_S", 0.0)
    made_up = {"Authorization": f"Bearer {of_no_key()}"}  # has the table looked at now, and not within a minute
    assert mall.http.get("/accounts", headers=made_up).status_code == 401
    assert mall.http.get("/accounts", headers=ada.headers).status_code == 401
    fresh = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert mall.http.get("/accounts", headers=fresh).status_code == 200


def kids(people: People) -> set[str]:
    with psycopg.connect(people.settings.postgres) as connection:
        return {kid for (kid,) in connection.execute("SELECT kid FROM published_keys")}


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes look at the keyring, and at the table of published keys, whenever they need them; all keys there are can sign."""
    monkeypatch.setattr("api.auth.signing.LOOK_S", 0.0)
    monkeypatch.setattr("api.kernel.auth.KEYS_LOOK_S", 0.0)
    later = clock.now() + 2 * PUBLISHED_AHEAD
    before = clock.set_clock(lambda: later)
    yield
    clock.set_clock(before)


@pytest.mark.usefixtures("looking")
def test_keys_are_published_again_when_their_table_is_lost_or_an_old_copy(
    mall: Market, people: People, ada: Person
) -> None:
    people.post("/auth/keys/rotate", 200, headers=mall.of("admin"))
    before = kids(people)
    with psycopg.connect(people.settings.postgres) as connection:
        connection.execute("DELETE FROM published_keys")
    made_up = {"Authorization": f"Bearer {of_no_key()}"}
    assert mall.http.get("/accounts", headers=made_up).status_code == 401  # has the table looked at
    assert mall.http.get("/accounts", headers=ada.headers).status_code == 401
    tokens = people.login(ada.email)
    for one in (tokens, ada.tokens):
        by = {"Authorization": f"Bearer {one['access_token']}"}
        assert mall.http.get("/accounts", headers=by).status_code == 200
    assert kids(people) == before
    assert {key["kid"] for key in people.http.get("/.well-known/jwks.json").json()["keys"]} > before

    # The copy knows a key that was revoked after it was made.
    newest = str(list(keyring(people))[-1])
    with psycopg.connect(people.settings.postgres) as connection:
        connection.execute("CREATE TEMPORARY TABLE copy AS TABLE published_keys")
        connection.commit()
        people.post(f"/auth/keys/{newest}/revoke", 200, headers=mall.of("admin"))
        assert kids(people) == before - {newest}
        connection.execute("INSERT INTO published_keys SELECT * FROM copy ON CONFLICT DO NOTHING")
    assert kids(people) == before
    people.login(ada.email)
    assert kids(people) == before - {newest}


@pytest.mark.usefixtures("looking")
def test_another_key_signs_when_the_copy_of_the_secrets_is_older_than_the_one_in_use(
    mall: Market, people: People, ada: Person
) -> None:
    lost = kid_of(ada.tokens)
    with psycopg.connect(people.settings.postgres) as connection:
        assert connection.execute("DELETE FROM secrets WHERE id = %s", (lost,)).rowcount == 1
    for signer in SIGNERS.values():
        signer._key = None  # as a process that starts
    tokens = people.login(ada.email)
    assert kid_of(tokens) != lost
    for one in (tokens, ada.tokens):  # what the old one has signed is good for the rest of its time
        by = {"Authorization": f"Bearer {one['access_token']}"}
        assert mall.http.get("/accounts", headers=by).status_code == 200
    assert kid_of(people.login(ada.email)) == kid_of(tokens)


def of_no_key() -> str:
    key = ECKey.generate_key("P-256")
    return str(jwt.encode({"alg": "ES256", "kid": str(uuid4()), "typ": "at+jwt"}, {"sub": "x"}, key))


def kid_of(tokens: dict[str, Any]) -> str:
    return str(jws.extract_compact(tokens["access_token"].encode()).headers()["kid"])


def keyring(people: People) -> dict[UUID, object]:
    async def load() -> dict[UUID, object]:
        async with Store.open(people.settings.postgres) as store:
            return dict((await store.load(Keyring, KEYRING)).keys)

    return asyncio.run(load())


def test_no_secret_is_in_an_event(people: People, ada: Person) -> None:
    people.post("/auth/refresh", 200, refresh_token=ada.tokens["refresh_token"])
    bodies = b"".join(row.state for row in stored(people.settings.postgres, "auth"))
    assert ada.email.encode() not in bodies
    assert PASSWORD.encode() not in bodies and b"$argon2" not in bodies
    for secret in (ada.tokens["refresh_token"], ada.tokens["access_token"], ada.tokens["device"]):
        assert secret.rpartition(".")[2].encode() not in bodies


def test_what_dies_between_a_secret_and_its_event_opens_no_door(people: People, ada: Person) -> None:
    """Each of them is kept before the event that would make it count, which never comes."""

    async def kept(secrets: Secrets) -> tuple[UUID, str]:
        hash = await hashed(OTHER)
        await secrets.keep(ada.id, "password", hash)
        session = await secrets.keep(ada.id, "session", b"")
        digest = secrets.digest("refresh", ada.id.bytes, session.bytes, (1).to_bytes(8, "big"))
        return session, base64.urlsafe_b64encode(digest).decode().rstrip("=")

    session, digest = people.secrets(kept)
    people.login(ada.email, OTHER, status=401)
    people.post("/auth/refresh", 401, refresh_token=f"{ada.id.hex}.{session.hex}.1.{digest}")
    people.login(ada.email)


def test_many_registrations_of_one_address_at_once_are_one_account(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_AUTH_SAME_MAIL_TRIES", "5")
    email = f"{uuid4().hex}@example.com"

    async def all_at_once() -> list[int]:
        async with httpx.AsyncClient(base_url=str(people.http.base_url), timeout=20) as http:
            body = {"email": email, "password": PASSWORD}
            return [
                r.status_code for r in await asyncio.gather(*(http.post("/auth/register", json=body) for _ in range(5)))
            ]

    assert asyncio.run(all_at_once()) == [202] * 5
    account: Account = people.account(email)
    assert len(account.pending) == 5
    people.post("/auth/verify", 200, token=people.mail("verify", email), password=PASSWORD)
    people.login(email)
