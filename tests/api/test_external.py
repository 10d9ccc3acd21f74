"""Signing in with somebody else's account. The somebody else is a platform of ours with a database of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import httpx
import pytest

import api.auth
from aggregates.kernel.migrate import migrate as migrate_events
from api.kernel import app_of
from api.kernel.migrate import migrate as migrate_api
from infra.settings import Provider, Settings
from infra.token import make_keys, token
from tests.api.kernel.conftest import listening, serving
from tests.api.test_oauth import Browser
from tests.kernel.people import People, Person
from tests.kernel.servers import Stack, database
from tests.kernel.topic import settings_of

BACK = "https://shop.example.com/back"


class Both(NamedTuple):
    """People at the provider, and at the shop that lets them in."""

    there: People
    here: People


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

    with database(stack) as theirs, database(stack) as ours, listening() as (at, url):
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
                        "away": partner.model_copy(update={"issuer": "http://127.0.0.1:9"}),
                    }
                }
            )
            with served(shop) as here:
                yield Both(People(there, provider), People(here, shop))


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
    assert both.here.http.get("/auth/external").json() == {"items": ["away", "partner"]}
    both.here.post("/auth/external/away/begin", 503)
    both.here.post("/auth/external/nobody/begin", 404)
