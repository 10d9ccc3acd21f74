"""Signing in with somebody else's account. The somebody else is a platform of ours with a database of its own."""

from __future__ import annotations

import base64
import hmac
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

import api.auth
from aggregates.kernel.migrate import migrate as migrate_events
from api.auth import external
from api.kernel import app_of
from api.kernel.migrate import migrate as migrate_api
from infra.settings import Provider, Settings
from infra.token import make_keys, token
from tests.api.kernel.conftest import listening, serving
from tests.api.test_oauth import Browser
from tests.kernel.oidc_provider import OidcProvider, rsa
from tests.kernel.people import People, Person
from tests.kernel.servers import Stack, database
from tests.kernel.topic import settings_of

BACK = "https://shop.example.com/back"


class Both(NamedTuple):
    """People at the provider, and at the shop that lets them in; `large` is a provider with RSA keys, of which `key` signs."""

    there: People
    here: People
    large: OidcProvider
    key: RSAKey


@contextmanager
def served(settings: Settings, at: socket.socket | None = None) -> Iterator[httpx.Client]:
    """The service auth on empty stores."""
    make_keys(settings)
    migrate_api(settings)
    migrate_events(settings.postgres, ["auth"])
    with serving(app_of(api.auth.router, settings=settings), at) as url, httpx.Client(base_url=url, timeout=20) as http:
        yield http


@pytest.fixture(scope="module")
def both(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    with (
        database(stack) as theirs,
        database(stack) as ours,
        listening() as (at, url),
        listening() as (other, large_url),
    ):
        provider = settings_of(theirs, stack["redis"], folder("there")).model_copy(update={"public_url": url})
        with served(provider, at) as there:
            admin = {"Authorization": f"Bearer {token(provider, 'admin', UUID(int=1))}"}
            body = {
                "name": "Shop",
                "redirect_uris": [BACK],
                "grants": ["authorization_code"],
                "scopes": ["openid", "email"],
            }
            client = there.post("/clients", json=body, headers=admin).json()
            partner = Provider(
                issuer=url, client_id=client["client_id"], client_secret=client["client_secret"], redirect_uri=BACK
            )
            shop = settings_of(ours, stack["redis"], folder("here")).model_copy(
                update={
                    "oidc_providers": {
                        "partner": partner,
                        "large": partner.model_copy(update={"issuer": large_url}),
                        "away": partner.model_copy(update={"issuer": "http://127.0.0.1:9"}),
                    }
                }
            )
            key = rsa("one")
            large = OidcProvider(large_url, partner.client_secret, [key.as_dict(private=False)])
            with serving(large.app(), other), served(shop) as here:
                yield Both(People(there, provider), People(here, shop), large, key)


def went(both: Both, person: Person) -> dict[str, Any]:
    """Somebody goes to the provider and comes back: what the shop's page then has."""
    begun = both.here.post("/auth/external/partner/begin", 200)
    back = Browser(both.there.http, person).allow(begun["url"].removeprefix(str(both.there.http.base_url).rstrip("/")))
    found = parse_qs(urlsplit(back.headers["location"]).query)
    return {"state": found["state"][0], "code": found["code"][0], "ticket": begun["ticket"]}


def finish(both: Both, status: int, returned: dict[str, Any]) -> dict[str, Any]:
    return both.here.post("/auth/external/partner/finish", status, **returned)


def test_an_account_elsewhere_signs_in_here(both: Both) -> None:
    ada = both.there.join()
    tokens = finish(both, 200, went(both, ada))
    account = both.here.account(ada.email)
    assert account.verified and account.credential is None and account.id != ada.id
    assert both.here.post("/auth/refresh", 200, refresh_token=tokens["refresh_token"])
    finish(both, 200, went(both, ada))  # the same account
    assert len(both.here.account(ada.email).sessions) == 2
    both.here.login(ada.email, status=401)  # there is no password here


def test_an_address_that_has_an_account_is_not_taken_over(both: Both) -> None:
    id, email = both.here.verified()
    ada = both.there.join(email)
    refused = finish(both, 409, went(both, ada))
    assert "link the two" in refused["detail"]
    tokens = both.here.login(email)
    mine = {"Authorization": f"Bearer {tokens['access_token']}"}
    both.here.post("/auth/external/partner/link", 200, headers=mine, **went(both, ada))
    finish(both, 200, went(both, ada))
    assert both.here.account(email).id == id
    both.here.post("/auth/external/partner/unlink", 200, headers=mine)
    finish(both, 409, went(both, ada))


def test_who_waits_with_a_password_of_theirs_waits_in_vain(both: Both) -> None:
    ada = both.there.join()
    both.here.register(ada.email, "the squatter's own")
    planted = both.here.mail("verify", ada.email)
    finish(both, 200, went(both, ada))
    both.here.post("/auth/verify", 409, token=planted, password="the squatter's own")
    both.here.login(ada.email, "the squatter's own", status=401)


@pytest.mark.parametrize("wrong", ["ticket", "state", "code", "again", "another's ticket"])
def test_nobody_is_signed_in_as_somebody_else(both: Both, wrong: str) -> None:
    ada = both.there.join()
    returned, other = went(both, ada), both.here.post("/auth/external/partner/begin", 200)
    if wrong == "again":
        finish(both, 200, returned)
    changed = {
        "ticket": {"ticket": returned["ticket"][:-2] + "AA"}, "state": {"state": str(ada.id)}, "code": {"code": "made up"},
        "again": {}, "another's ticket": {"ticket": other["ticket"]},
    }[wrong]  # fmt: skip
    finish(both, 401, {**returned, **changed})


def test_a_provider_that_is_away_or_not_there_is_said_so(both: Both) -> None:
    assert both.here.http.get("/auth/external").json() == {"items": ["away", "large", "partner"]}
    both.here.post("/auth/external/away/begin", 503)
    both.here.post("/auth/external/nobody/begin", 404)


def said(both: Both, sign: Callable[[dict[str, Any]], str], **changed: Any) -> httpx.Response:
    """Somebody comes back from the large provider, which says of them what it should, but for what is `changed` (None: left out)."""
    begun = both.here.post("/auth/external/large/begin", 200)
    asked = {name: value for name, [value] in parse_qs(urlsplit(begun["url"]).query).items()}
    now = int(time.time())
    claims = {
        "iss": both.large.issuer, "aud": asked["client_id"], "sub": uuid4().hex, "iat": now, "exp": now + 300, "nonce": asked["nonce"],
        "email": f"{uuid4().hex}@example.com", "email_verified": True, **changed,
    }  # fmt: skip
    claims = {name: value for name, value in claims.items() if value is not None}
    both.large.codes["code"] = sign(claims), asked["code_challenge"]
    return both.here.http.post(
        "/auth/external/large/finish", json={"state": asked["state"], "code": "code", "ticket": begun["ticket"]}
    )


def signed(key: RSAKey | ECKey, alg: str = "RS256", **header: Any) -> Callable[[dict[str, Any]], str]:
    registry = JWSRegistry(algorithms=[alg], strict_check_header=False)
    return lambda claims: jwt.encode({"alg": alg, **header}, claims, key, registry=registry)


@pytest.fixture
def large(both: Both, monkeypatch: pytest.MonkeyPatch) -> OidcProvider:
    """The provider as it was, whatever a test did to it before; and nobody remembers its keys."""
    monkeypatch.setattr("api.auth.external._known", {})
    both.here.forget_tries()
    both.large.published = [both.key.as_dict(private=False)]
    both.large.methods = ["client_secret_basic", "client_secret_post"]
    both.large.looked = 0
    return both.large


def test_a_provider_that_signs_with_rsa_lets_people_in(both: Both, large: OidcProvider) -> None:
    """With what Google's, Microsoft's and Apple's have beside: keys of kinds not known here, headers of their own, a text for true."""
    bare = RSAKey.generate_key(2048, {"kid": "two"}, private=True)
    large.published += [
        {"kty": "AKP", "alg": "ML-DSA-65", "pub": "AA", "kid": "later"},
        {"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA", "kid": "never"},
        bare.as_dict(private=False) | {"x5t": "AA", "x5c": ["MIIC"], "issuer": large.issuer},
    ]
    assert said(both, signed(both.key, kid="one")).status_code == 200
    assert said(both, signed(both.key, kid="one", x5t="AA", rh="0.A")).status_code == 200
    assert said(both, signed(both.key, kid="one"), email_verified="true").status_code == 200
    assert said(both, signed(bare, "PS256", kid="two"), aud=[audience(both)]).status_code == 200
    several = [audience(both), "another"]
    assert said(both, signed(both.key, kid="one"), aud=several, azp=audience(both)).status_code == 200
    assert large.looked == 1
    large.methods = ["client_secret_post"]
    assert said(both, signed(both.key, kid="one")).status_code == 401  # until the document is looked up again
    external._known.clear()
    assert said(both, signed(both.key, kid="one")).status_code == 200


def audience(both: Both) -> str:
    return both.here.settings.oidc_providers["large"].client_id


def test_a_provider_may_rotate_its_keys(both: Both, large: OidcProvider) -> None:
    assert said(both, signed(both.key, kid="one")).status_code == 200
    new = rsa("two")
    large.published.append(new.as_dict(private=False))
    assert said(both, signed(new, kid="two")).status_code == 200
    assert said(both, signed(both.key, kid="one")).status_code == 200  # both are published
    assert large.looked == 2
    same = rsa("two")  # another key under the same name
    large.published = [same.as_dict(private=False)]
    assert said(both, signed(same, kid="two")).status_code == 200
    assert said(both, signed(both.key, kid="one")).status_code == 401  # gone
    assert said(both, signed(new, kid="two")).status_code == 401


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def unsigned(claims: dict[str, Any], alg: str) -> str:
    """A token whose signature is empty still."""
    return "".join(encoded(json.dumps(one).encode()) + "." for one in ({"alg": alg, "kid": "one"}, claims))


STRANGE = rsa("one")


def public(both: Both) -> dict[str, bytes]:
    """What of a public key somebody could take for a secret that both sides know."""
    return {
        "pem": both.key.as_pem(private=False),
        "der": both.key.as_der(private=False),
        "json": json.dumps(both.key.as_dict(private=False)).encode(),
        "client secret": both.large.secret.encode(),
    }


@pytest.mark.parametrize("secret", ["pem", "der", "json", "client secret"])
def test_a_public_key_is_no_secret_to_sign_with(both: Both, large: OidcProvider, secret: str) -> None:
    """Algorithm confusion: what everybody can read signs nothing, whatever the header says of it."""
    for alg, hash in (("HS256", "sha256"), ("HS512", "sha512")):

        def sign(claims: dict[str, Any], alg: str = alg, hash: str = hash) -> str:  # by hand: joserfc would refuse
            begun = unsigned(claims, alg).encode()
            return begun.decode() + encoded(hmac.digest(public(both)[secret], begun.removesuffix(b"."), hash))

        assert said(both, sign).status_code == 401


FORGED: dict[str, Callable[[dict[str, Any]], str]] = {
    "unknown kid": signed(STRANGE, kid="unknown"),
    "known kid": signed(STRANGE, kid="one"),
    "no kid": signed(STRANGE),
    "own key in the header": signed(STRANGE, kid="one", jwk=STRANGE.as_dict(private=False)),
    "key elsewhere": signed(STRANGE, kid="one", jku="https://evil.example.com/keys"),
    "another kind of key": signed(ECKey.generate_key("P-256"), "ES256", kid="one"),
    "none": lambda claims: unsigned(claims, "none"),
    "None": lambda claims: unsigned(claims, "None"),
    "no signature": lambda claims: signed(STRANGE, kid="one")(claims).rpartition(".")[0] + ".",
    "no token": lambda claims: "",
}


@pytest.mark.parametrize("forged", FORGED)
def test_nobody_else_speaks_for_a_provider(both: Both, large: OidcProvider, forged: str) -> None:
    assert said(both, FORGED[forged]).status_code == 401
    assert large.looked <= 2


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": "another"}, {"aud": ["another"]}, {"aud": None}, {"aud": []}, {"iss": "https://evil.example.com"}, {"iss": None},
        {"nonce": "another"}, {"nonce": None}, {"exp": 1_500_000_000}, {"exp": None}, {"exp": "later"}, {"nbf": 4_000_000_000}, {"sub": None}, {"sub": ""},
        {"azp": "another"},
    ],
)  # fmt: skip
def test_what_a_provider_said_of_another_sign_in_is_worth_nothing(
    both: Both, large: OidcProvider, changed: dict[str, Any]
) -> None:
    assert said(both, signed(both.key, kid="one"), **changed).status_code == 401
    assert large.looked == 1  # its keys are not to blame


def test_an_audience_of_several_names_who_it_was_made_for(both: Both, large: OidcProvider) -> None:
    several = [audience(both), "another"]
    assert said(both, signed(both.key, kid="one"), aud=several).status_code == 401
    assert said(both, signed(both.key, kid="one"), aud=several, azp="another").status_code == 401


def test_an_address_that_the_provider_does_not_vouch_for_makes_no_account(both: Both, large: OidcProvider) -> None:
    for vouched in (False, "false", None, 1):
        assert said(both, signed(both.key, kid="one"), email_verified=vouched).status_code == 409
