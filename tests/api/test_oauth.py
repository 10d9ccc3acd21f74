"""OAuth 2 and OpenID Connect, by clients that others wrote: Authlib's, requests-oauth2client, requests-oauthlib. And what must not work."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from attrs import evolve
from authlib.integrations.httpx_client import OAuth2Client, OAuthError
from authlib.integrations.starlette_client import OAuth, StarletteOAuth2App
from joserfc.errors import BadSignatureError, InvalidClaimError, MissingClaimError
from requests_oauth2client import (
    BearerToken,
    ExpiredIdToken,
    IdToken,
    InvalidGrant,
    InvalidIdToken,
    MismatchingIdTokenAudience,
    MismatchingIdTokenIssuer,
    MismatchingIdTokenNonce,
)
from requests_oauth2client import OAuth2Client as RelyingParty
from requests_oauthlib import OAuth2Session
from starlette.requests import Request

from api.auth.server import ID_TOKEN_S
from tests.api.conftest import Market
from tests.kernel.people import PASSWORD, People, Person

BACK = "https://watch.example.com/back"
VERIFIER = "a" * 50
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
SCOPES = ["openid", "email", "carts:read", "carts:write"]


@dataclass
class Browser:
    """What a person's browser does at the page: shows it, sends it back, follows nothing."""

    http: httpx.Client
    person: Person
    seen: str = ""

    def allow(self, url: str, status: int = 302, **typed: str) -> httpx.Response:
        shown = self.http.get(url)
        assert shown.status_code == 200, shown.text
        self.seen = shown.text
        form = {
            unescape(name): unescape(value)
            for name, value in re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', shown.text)
        }
        form |= {"email": self.person.email, "password": PASSWORD, "code": "", "answer": "yes", **typed}
        sent = self.http.post("/oauth/authorize", data=form)
        assert sent.status_code == status, sent.text
        return sent


@pytest.fixture(scope="module")
def people(mall: Market) -> People:
    made = People(mall.http, mall.settings)
    made.forget_tries()  # other files of this process's were here before
    return made


@pytest.fixture(scope="module")
def ada(people: People) -> Person:
    return people.join()


@pytest.fixture(scope="module")
def app(mall: Market) -> dict[str, str]:
    """A confidential client for people."""
    return registered(mall)


def registered(mall: Market, **changed: Any) -> dict[str, str]:
    body = {
        "name": "Price <watch>", "redirect_uris": [BACK], "grants": ["authorization_code", "refresh_token"], "scopes": SCOPES,
        **changed,
    }  # fmt: skip
    found: dict[str, str] = mall.post("/clients", body, mall.of("admin"), 201)
    return found


def basic(client: dict[str, str]) -> tuple[str, str]:
    return client["client_id"], client["client_secret"]


def asking(app: dict[str, str], **changed: str) -> str:
    wanted = {
        "response_type": "code", "client_id": app["client_id"], "redirect_uri": BACK, "scope": "openid carts:read",
        "state": "xyz", "code_challenge": CHALLENGE, "code_challenge_method": "S256", **changed,
    }  # fmt: skip
    return str(httpx.URL("/oauth/authorize", params={name: value for name, value in wanted.items() if value}))


def code_of(answer: httpx.Response) -> str:
    [code] = parse_qs(urlsplit(answer.headers["location"]).query)["code"]
    return code


def exchanged(mall: Market, app: dict[str, str], issued: str, /, **changed: str) -> httpx.Response:
    body = {
        "grant_type": "authorization_code", "code": issued, "redirect_uri": BACK, "code_verifier": VERIFIER, "client_id": app["client_id"],
        **({"client_secret": app["client_secret"]} if app["client_secret"] else {}), **changed,
    }  # fmt: skip
    return mall.http.post("/oauth/token", data=body)


def browsing(session: dict[str, Any], query: str = "") -> Request:
    """A browser's request to an application that signs people in with Authlib: with its session, and at that address."""
    return Request({"type": "http", "method": "GET", "headers": [], "query_string": query.encode(), "session": session})


def test_authlibs_relying_party_signs_somebody_in(mall: Market, ada: Person, app: dict[str, str]) -> None:
    """From the address of the discovery document alone, as a shop of somebody else's would; and its checks of the id_token bite."""
    issuer = mall.settings.issuer

    def relying(client_id: str) -> StarletteOAuth2App:
        parties = OAuth()
        parties.register(
            "titan", client_id=client_id, client_secret=app["client_secret"],
            server_metadata_url=f"{issuer}/.well-known/openid-configuration",
            client_kwargs={"scope": "openid email carts:write", "code_challenge_method": "S256"},
        )  # fmt: skip
        return parties.titan

    async def signed_in() -> None:
        party, session = relying(app["client_id"]), dict[str, Any]()
        sent = await party.authorize_redirect(browsing(session), BACK)
        asked = parse_qs(urlsplit(sent.headers["location"]).query)
        assert asked["code_challenge_method"] == ["S256"]
        browser = Browser(mall.http, ada)
        back = urlsplit(browser.allow(sent.headers["location"]).headers["location"])
        assert "Price &lt;watch&gt;" in browser.seen and "carts:write" in browser.seen
        tokens = await party.authorize_access_token(browsing(session, back.query))
        claims, [nonce] = tokens["userinfo"], asked["nonce"]
        assert (claims["iss"], claims["aud"], claims["sub"]) == (issuer, app["client_id"], str(ada.id))
        assert (claims["nonce"], claims["email"], claims["email_verified"]) == (nonce, ada.email, True)
        assert (await party.userinfo(token=tokens))["sub"] == str(ada.id)

        head, body, signature = tokens["id_token"].split(".")
        with pytest.raises(InvalidClaimError, match="nonce"):
            await party.parse_id_token(tokens, "another")
        with pytest.raises(InvalidClaimError, match="at_hash"):
            await party.parse_id_token({**tokens, "access_token": ada.tokens["access_token"]}, nonce)
        with pytest.raises(InvalidClaimError, match="iss"):
            await party.parse_id_token(tokens, nonce, {"iss": {"value": "https://evil.example.com"}})
        with pytest.raises(MissingClaimError, match="azp"):  # what there must be when the audience is another client
            await relying(str(uuid4())).parse_id_token(tokens, nonce)
        with pytest.raises(BadSignatureError):
            await party.parse_id_token({**tokens, "id_token": f"{head}.{body}.{signature[::-1]}"}, nonce)

    asyncio.run(signed_in())


def test_a_relying_party_that_shares_no_code_with_us_signs_somebody_in(
    mall: Market, ada: Person, app: dict[str, str]
) -> None:
    """`requests-oauth2client`: neither its protocol nor its JOSE is what the server is made of."""

    def relying(**changed: Any) -> RelyingParty:
        return RelyingParty.from_discovery_endpoint(
            issuer=mall.settings.issuer, redirect_uri=BACK, id_token_signed_response_alg="ES256", testing=True,
            **{"client_id": app["client_id"], "client_secret": app["client_secret"], **changed},
        )  # fmt: skip

    party = relying()
    asked = party.authorization_request(scope="openid email")
    assert asked.code_challenge_method == "S256" and asked.nonce
    back = asked.validate_callback(Browser(mall.http, ada).allow(asked.uri).headers["location"])
    tokens = party.authorization_code(back)  # validates the id_token
    assert isinstance(tokens.id_token, IdToken)
    told = tokens.id_token
    assert (told.subject, told.audiences, told.claims["email"]) == (str(ada.id), [app["client_id"]], ada.email)
    assert party.userinfo(tokens)["sub"] == told.subject

    with pytest.raises(MismatchingIdTokenNonce):
        tokens.validate_id_token(party, evolve(back, nonce="another"))
    with pytest.raises(MismatchingIdTokenIssuer):
        tokens.validate_id_token(party, evolve(back, issuer="https://evil.example.com"))
    with pytest.raises(MismatchingIdTokenAudience):
        tokens.validate_id_token(relying(client_id=str(uuid4())), back)
    with pytest.raises(InvalidIdToken, match="at_hash"):
        BearerToken(ada.tokens["access_token"], id_token=told).validate_id_token(party, back)
    with pytest.raises(ExpiredIdToken):
        tokens.validate_id_token(
            party, back, exp_leeway=ID_TOKEN_S + 1
        )  # it is how long before the end it counts as expired

    again = party.refresh_token(tokens)
    renewed = again.validate_id_token(party, evolve(back, nonce=None)).id_token
    assert isinstance(renewed, IdToken)
    assert renewed.claims.keys() == told.claims.keys() - {"nonce", "auth_time"} and renewed.subject == told.subject
    assert party.introspect_token(again)["active"] is True
    assert party.revoke_refresh_token(again) is True
    assert party.introspect_token(again) == {"active": False}
    with pytest.raises(InvalidGrant):
        party.refresh_token(again)


def test_authlibs_client_holds_and_gives_back_what_somebody_let_it_have(
    mall: Market, ada: Person, app: dict[str, str]
) -> None:
    issuer = mall.settings.issuer
    found = httpx.get(f"{issuer}/.well-known/oauth-authorization-server").json()
    with OAuth2Client(
        app["client_id"], app["client_secret"], redirect_uri=BACK, scope="carts:write", code_challenge_method="S256"
    ) as client:  # fmt: skip
        url, state = client.create_authorization_url(found["authorization_endpoint"], code_verifier=VERIFIER)
        back = Browser(mall.http, ada).allow(url)
        tokens = client.fetch_token(
            found["token_endpoint"],
            authorization_response=back.headers["location"],
            state=state,
            code_verifier=VERIFIER,
        )
        assert client.post(f"{issuer}/carts", json={"currency": "EUR"}).status_code == 201
        assert client.get(f"{issuer}/orders").status_code == 403  # not what was asked for
        told = client.introspect_token(found["introspection_endpoint"], token=tokens["access_token"]).json()
        assert (told["active"], told["sub"], told["client_id"]) == (True, str(ada.id), app["client_id"])
        again = client.refresh_token(found["token_endpoint"])
        assert again["refresh_token"] != tokens["refresh_token"] and "id_token" not in again
        assert client.revoke_token(found["revocation_endpoint"], token=again["refresh_token"]).status_code == 200
        told = client.introspect_token(found["introspection_endpoint"], token=again["access_token"]).json()
        assert told == {"active": False}
        with pytest.raises(OAuthError, match="invalid_grant"):
            client.refresh_token(found["token_endpoint"], refresh_token=again["refresh_token"])


def test_another_client_of_oauth_works_too(
    mall: Market, ada: Person, app: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    with OAuth2Session(app["client_id"], redirect_uri=BACK, scope=["carts:read"], pkce="S256") as client:
        url, _ = client.authorization_url("/oauth/authorize")
        back = Browser(mall.http, ada).allow(url)
        base = str(mall.http.base_url).rstrip("/")
        tokens = client.fetch_token(
            f"{base}/oauth/token", authorization_response=back.headers["location"], client_secret=app["client_secret"]
        )
        assert tokens["scope"] == ["carts:read"] and "id_token" not in tokens
        assert client.get(f"{base}/carts").status_code == 200


def test_a_client_acts_for_itself_with_what_it_may(mall: Market) -> None:
    machine = registered(
        mall, redirect_uris=[], grants=["client_credentials"], scopes=["products:sell", "stocks:read"], role="service"
    )
    with OAuth2Client(machine["client_id"], machine["client_secret"], base_url=mall.http.base_url) as client:
        token = client.fetch_token("/oauth/token", grant_type="client_credentials")
        assert token["scope"] == "products:sell stocks:read" and "refresh_token" not in token
        assert client.post("/products", json={"title": "Mug"}).status_code == 201
        assert client.post("/stocks", json={"sku": "MUG"}).status_code == 403
        narrow = client.fetch_token("/oauth/token", grant_type="client_credentials", scope="stocks:read")
        assert narrow["scope"] == "stocks:read"
        assert client.post("/products", json={"title": "Mug"}).status_code == 403
        kept = client.revoke_token("/oauth/revoke", token=narrow["access_token"])  # it would be good still
        assert (kept.status_code, kept.json()["error"]) == (400, "unsupported_token_type")
        assert client.get("/stocks").status_code == 200
    before = mall.http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=basic(machine))
    assert before.status_code == 200
    mall.post(f"/clients/{machine['client_id']}/disable", None, mall.of("admin"))
    after = mall.http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=basic(machine))
    assert (after.status_code, after.json()["error"]) == (401, "invalid_client")


def test_a_replaced_secret_is_worth_nothing(mall: Market) -> None:
    old = registered(mall, redirect_uris=[], grants=["client_credentials"], scopes=["stocks:read"], role="service")
    new = mall.post(f"/clients/{old['client_id']}/secret", None, mall.of("admin"))
    tries = [
        mall.http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=basic(one)) for one in (old, new)
    ]
    assert [one.status_code for one in tries] == [401, 200]


def test_a_replayed_code_ends_what_it_began(mall: Market, ada: Person, app: dict[str, str]) -> None:
    code = code_of(Browser(mall.http, ada).allow(asking(app)))
    first = exchanged(mall, app, code)
    assert first.status_code == 200, first.text
    again = exchanged(mall, app, code)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    body = {"grant_type": "refresh_token", "refresh_token": first.json()["refresh_token"], **app}
    assert mall.http.post("/oauth/token", data=body).json()["error"] == "invalid_grant"


@pytest.mark.parametrize("wrong", ["verifier", "no verifier", "redirect", "another client", "made up"])
def test_a_stolen_code_is_worth_nothing(mall: Market, ada: Person, app: dict[str, str], wrong: str) -> None:
    code = code_of(Browser(mall.http, ada).allow(asking(app)))
    if wrong == "another client":
        answer = exchanged(mall, registered(mall), code)
    else:
        changed = {
            "verifier": {"code_verifier": "b" * 50}, "no verifier": {"code_verifier": ""},
            "redirect": {"redirect_uri": "https://watch.example.com/other"}, "made up": {"code": code[:-2] + "AA"},
        }[wrong]  # fmt: skip
        answer = exchanged(mall, app, code, **changed)
    assert answer.status_code == 400 and answer.json()["error"] in ("invalid_grant", "invalid_request")


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example.com/back", "https://watch.example.com/back/../evil", "https://watch.example.com/back?x=1",
        "https://watch.example.com.evil.example.com/back", "https://watch.example.com@evil.example.com/back",
        "http://watch.example.com/back", "//evil.example.com", "javascript:alert(1)", "",
    ],
)  # fmt: skip
def test_nobody_is_sent_anywhere_else(mall: Market, app: dict[str, str], uri: str) -> None:
    """No open redirect: not for a good request, and not for a bad one."""
    for changed in ({}, {"response_type": "token"}, {"scope": "\x7f"}, {"code_challenge": ""}):
        answer = mall.http.get(asking(app, redirect_uri=uri, **changed))
        assert answer.status_code == 400, answer.headers
        assert "location" not in answer.headers


@pytest.mark.parametrize("strange", ["\x83", "ü", '"', "\\", "\U0001f600"])
def test_characters_that_no_parameter_has_are_an_error_and_no_accident(
    mall: Market, app: dict[str, str], strange: str
) -> None:
    for name in (
        "response_type",
        "client_id",
        "redirect_uri",
        "scope",
        "code_challenge",
        "code_challenge_method",
        "prompt",
    ):
        answer = mall.http.get(asking(app, **{name: strange}))
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    for name in (
        "grant_type",
        "client_id",
        "client_secret",
        "code",
        "scope",
        "refresh_token",
        "code_verifier",
        "redirect_uri",
    ):
        answer = mall.http.post("/oauth/token", data={"grant_type": "authorization_code", **app, name: strange})
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_what_is_wrong_is_told_to_a_client_that_is_known(mall: Market, app: dict[str, str]) -> None:
    for changed, error in (
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"prompt": "none"}, "login_required"),
    ):
        answer = mall.http.get(asking(app, **changed))
        assert answer.status_code == 302, answer.text
        told = parse_qs(urlsplit(answer.headers["location"]).query)
        assert answer.headers["location"].startswith(BACK + "?")
        assert (told["error"], told["state"]) == ([error], ["xyz"])
    assert mall.http.get(asking({"client_id": str(uuid4())})).status_code == 400


def test_the_page_asks_again_and_takes_no_for_an_answer(mall: Market, ada: Person, app: dict[str, str]) -> None:
    browser = Browser(mall.http, ada)
    again = browser.allow(asking(app, state='"><script>'), 401, password="wrong")
    assert "is wrong" in again.text and "<script>" not in again.text
    assert "frame-ancestors 'none'" in again.headers["content-security-policy"]
    denied = browser.allow(asking(app), answer="no")
    assert parse_qs(urlsplit(denied.headers["location"]).query)["error"] == ["access_denied"]


def test_a_public_client_has_pkce_alone_and_takes_any_port_of_the_own_machine(mall: Market, ada: Person) -> None:
    phone = registered(mall, public=True, redirect_uris=["http://127.0.0.1/back"])
    assert phone["client_secret"] is None
    port = "http://127.0.0.1:51234/back"
    code = code_of(Browser(mall.http, ada).allow(asking(phone, redirect_uri=port)))
    tokens = exchanged(mall, phone, code, redirect_uri=port)
    assert tokens.status_code == 200, tokens.text
    assert mall.http.get(asking(phone, redirect_uri="http://127.0.0.1:51234/other")).status_code == 400
    assert mall.http.get(asking(phone, redirect_uri="http://127.0.0.1@evil.example.com/back")).status_code == 400
    body = {"grant_type": "refresh_token", "refresh_token": tokens.json()["refresh_token"]}
    stolen = mall.http.post("/oauth/token", data=body | {"client_id": registered(mall, public=True)["client_id"]})
    assert stolen.json()["error"] == "invalid_grant"
    assert mall.http.post("/auth/refresh", json={"refresh_token": body["refresh_token"]}).status_code == 401
    good = mall.http.post("/oauth/token", data=body | {"client_id": phone["client_id"]})
    assert good.status_code == 200, good.text


def test_a_refresh_narrows_and_never_widens(mall: Market, ada: Person, app: dict[str, str]) -> None:
    code = code_of(Browser(mall.http, ada).allow(asking(app, scope="carts:read carts:write")))
    tokens = exchanged(mall, app, code).json()
    body = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"], **app}
    wider = mall.http.post("/oauth/token", data=body | {"scope": "carts:read openid"})
    assert wider.json()["error"] == "invalid_scope"
    narrow = mall.http.post("/oauth/token", data=body | {"scope": "carts:read"}).json()
    headers = {"Authorization": f"Bearer {narrow['access_token']}"}
    assert mall.http.get("/carts", headers=headers).status_code == 200
    assert mall.http.post("/carts", json={"currency": "EUR"}, headers=headers).status_code == 403


def test_an_id_token_is_no_access_token(mall: Market, ada: Person, app: dict[str, str]) -> None:
    code = code_of(Browser(mall.http, ada).allow(asking(app)))
    tokens = exchanged(mall, app, code).json()
    answer = mall.http.get("/carts", headers={"Authorization": f"Bearer {tokens['id_token']}"})
    assert answer.status_code == 401


def test_tokens_of_others_are_not_introspected(mall: Market, ada: Person, app: dict[str, str]) -> None:
    other = registered(mall)
    for token in (ada.tokens["access_token"], ada.tokens["refresh_token"]):
        told = mall.http.post("/oauth/introspect", data={"token": token}, auth=basic(other))
        assert told.json() == {"active": False}
    nobody = mall.http.post("/oauth/introspect", data={"token": ada.tokens["access_token"]})
    assert nobody.status_code in (400, 401)
    code = code_of(Browser(mall.http, ada).allow(asking(app)))
    tokens = exchanged(mall, app, code).json()
    theirs = mall.http.post("/oauth/revoke", data={"token": tokens["refresh_token"]}, auth=basic(other))
    assert theirs.status_code == 400
    told = mall.http.post("/oauth/introspect", data={"token": tokens["refresh_token"]}, auth=basic(app))
    assert told.json()["active"] is True


@pytest.mark.parametrize(
    "changed",
    [
        {"redirect_uris": ["http://watch.example.com/back"]}, {"redirect_uris": ["https://x.example.com/#here"]},
        {"redirect_uris": ["javascript:alert(1)"]}, {"redirect_uris": ["https://a@x.example.com/"]}, {"redirect_uris": []},
        {"grants": ["client_credentials"], "redirect_uris": []}, {"role": "admin"}, {"scopes": ["carts"]}, {"grants": ["password"]},
        {"grants": ["client_credentials"], "redirect_uris": [], "role": "service", "public": True},
    ],
)  # fmt: skip
def test_a_client_that_would_be_unsafe_is_not_registered(mall: Market, changed: dict[str, Any]) -> None:
    body = {
        "name": "x", "redirect_uris": [BACK], "grants": ["authorization_code"], "scopes": ["openid"], **changed,
    }  # fmt: skip
    assert mall.http.post("/clients", json=body, headers=mall.of("admin")).status_code in (409, 422)
    assert mall.http.post("/clients", json=body, headers=mall.of("service")).status_code == 403
