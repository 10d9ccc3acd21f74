"""Who is let in: every token that must not be."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.jwk import ECKey

from api.kernel.auth import ROLES, Bearer, Caller, Keys
from api.kernel.problems import Problem
from infra.token import token
from tests.api.kernel.conftest import Shop


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {"iss": "titan", "aud": "titan-api", "sub": str(uuid4()), "role": "customer", "iat": now, "exp": now + 600}
    return {name: value for name, value in {**made, **changed}.items() if value is not None}


def key_of(shop: Shop) -> ECKey:
    return ECKey.import_key(json.loads(shop.settings.jwt_private_key.read_text()))


def signed(shop: Shop, header: dict[str, Any] | None = None, **changed: Any) -> str:
    key = key_of(shop)
    return str(jwt.encode({"alg": "ES256", "kid": key.kid, **(header or {})}, claims(**changed), key))


def raw_signed(shop: Shop, header: Any, payload: Any) -> str:
    """A good signature over what no library would sign."""
    head = f"{part(header)}.{part(payload)}"
    private = key_of(shop).private_key
    assert private is not None
    r, s = decode_dss_signature(private.sign(head.encode(), ECDSA(SHA256())))
    return f"{head}.{base64.urlsafe_b64encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big')).rstrip(b'=').decode()}"


def unsigned(shop: Shop) -> str:
    return f"{part({'alg': 'none', 'kid': key_of(shop).kid})}.{part(claims())}."


def hmac_under_the_public_key(shop: Shop) -> str:
    """The classic confusion: the public key, which everybody has, taken as the secret of an HMAC."""
    head = f"{part({'alg': 'HS256', 'kid': key_of(shop).kid})}.{part(claims())}"
    digest = hmac.new(key_of(shop).as_pem(private=False), head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def of_a_foreign_key(shop: Shop) -> str:
    key = ECKey.generate_key("P-256")
    return str(jwt.encode({"alg": "ES256", "kid": key_of(shop).kid}, claims(), key))


def of_its_own_key(shop: Shop) -> str:
    """A token that brings the key it is to be checked with."""
    key = ECKey.generate_key("P-256")
    return str(jwt.encode({"alg": "ES256", "kid": "mine", "jwk": key.as_dict(private=False)}, claims(), key))


def without_key_id(shop: Shop) -> str:
    return str(jwt.encode({"alg": "ES256"}, claims(), key_of(shop)))


def tampered(shop: Shop) -> str:
    head, _, signature = signed(shop).split(".")
    return f"{head}.{part(claims(role='admin'))}.{signature}"


BAD: dict[str, Callable[[Shop], str]] = {
    "alg none": unsigned,
    "HS256 under the public key": hmac_under_the_public_key,
    "foreign key under our kid": of_a_foreign_key,
    "its own key in the header": of_its_own_key,
    "no kid": without_key_id,
    "unknown kid": lambda shop: signed(shop, {"kid": "other"}),
    "kid is a number": lambda shop: raw_signed(shop, {"alg": "ES256", "kid": 1}, claims()),
    "expired": lambda shop: signed(shop, exp=int(time.time()) - 60),
    "not yet": lambda shop: signed(shop, nbf=int(time.time()) + 60),
    "issued in the future": lambda shop: signed(shop, iat=int(time.time()) + 600),
    "another audience": lambda shop: signed(shop, aud="titan-admin"),
    "another issuer": lambda shop: signed(shop, iss="evil"),
    "no expiry": lambda shop: signed(shop, exp=None),
    "no audience": lambda shop: signed(shop, aud=None),
    "no issuer": lambda shop: signed(shop, iss=None),
    "no role": lambda shop: signed(shop, role=None),
    "unknown role": lambda shop: signed(shop, role="root"),
    "role is a list": lambda shop: signed(shop, role=["admin"]),
    "subject is no UUID": lambda shop: signed(shop, sub="1 OR 1=1"),
    "subject is a number": lambda shop: signed(shop, sub=7),
    "expiry is text": lambda shop: signed(shop, exp="never"),
    "expiry is huge": lambda shop: signed(shop, exp=10**400),
    "scope is a list": lambda shop: signed(shop, scope=["purses:write"]),
    "critical header": lambda shop: raw_signed(
        shop, {"alg": "ES256", "kid": key_of(shop).kid, "crit": ["exp2"], "exp2": 1}, claims()
    ),
    "header is a list": lambda shop: raw_signed(shop, ["ES256"], claims()),
    "tampered": tampered,
    "claims are a list": lambda shop: raw_signed(shop, {"alg": "ES256", "kid": key_of(shop).kid}, [1]),
    "not a token": lambda shop: "abc",
    "dots": lambda shop: "..",
    "deep": lambda shop: base64.urlsafe_b64encode(b"[" * 3000).decode() + ".e30.AAAA",
    "not base64": lambda shop: "%%%.%%%.%%%",
    "long": lambda shop: signed(shop, note="x" * 5000),
}


@pytest.mark.parametrize("made", BAD.values(), ids=BAD)
def test_a_bad_token_is_refused(shop: Shop, made: Callable[[Shop], str]) -> None:
    answer = shop.http.get("/purses", headers={"Authorization": f"Bearer {made(shop)}"})
    assert answer.status_code == 401, answer.text
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:titan:problem:unauthenticated"


def test_a_good_token_is_let_in_also_the_second_time_from_the_cache(shop: Shop) -> None:
    header = {"Authorization": f"Bearer {signed(shop)}"}
    assert [shop.http.get("/purses", headers=header).status_code for _ in range(2)] == [200, 200]
    assert shop.http.get("/purses", headers={"authorization": header["Authorization"].replace("Bearer", "bearer")})


@pytest.mark.parametrize("value", ["", "Bearer", "Basic dTpw", "Token abc", "Bearer\tabc", "bearer\xa0x"])
def test_other_schemes_are_no_token(shop: Shop, value: str) -> None:
    answer = shop.http.get("/purses", headers=[(b"Authorization", value.encode("latin-1"))])
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_no_token_is_asked_for_before_anything_else_is_said(shop: Shop) -> None:
    answer = shop.http.post("/purses", content=b"{", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 401
    assert "error" not in answer.headers["www-authenticate"]


def test_a_role_without_the_right_is_forbidden(shop: Shop) -> None:
    me = shop.of("analyst")
    assert shop.http.post("/purses", json={"currency": "EUR", "holder": "A"}, headers=me).status_code == 403
    refill = f"/purses/{uuid4()}/refill"
    assert shop.http.post(refill, headers=shop.of("customer")).status_code == 403
    assert shop.http.post(refill, headers=shop.of("service")).status_code == 404


def test_a_token_can_be_narrower_than_its_role(shop: Shop) -> None:
    narrow = {"Authorization": f"Bearer {token(shop.settings, 'admin', uuid4(), ('purses:read',))}"}
    assert shop.http.get("/purses", headers=narrow).status_code == 200
    assert shop.http.post("/purses", json={"currency": "EUR", "holder": "A"}, headers=narrow).status_code == 403


def test_anyone_may_come_without_a_token_but_not_with_a_bad_one(shop: Shop) -> None:
    assert shop.http.get("/purses/hello/there").json() == {"hello": "nobody"}
    assert shop.http.get("/purses/hello/there", headers=shop.of("seller")).json() == {"hello": "seller"}
    assert shop.http.get("/purses/hello/there", headers={"Authorization": "Bearer x"}).status_code == 401


def test_keys_are_rotated_by_replacing_the_file(shop: Shop, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (ECKey.generate_key("P-256", {"kid": kid}) for kid in ("old", "new"))
    file = tmp_path / "jwks.json"
    keys = Keys(file, "titan", "titan-api")
    monkeypatch.setattr("api.kernel.auth.KEYS_LOOK_S", 0.0)

    def publish(mtime: int, *public: ECKey) -> None:
        file.write_text(json.dumps({"keys": [key.as_dict(private=False) for key in public]}))
        os.utime(file, (mtime, mtime))

    def of(key: ECKey) -> bytes:
        return str(jwt.encode({"alg": "ES256", "kid": key.kid}, claims(), key)).encode()

    refused(keys, of(old))  # no file yet
    publish(1, old)
    first = of(old)
    assert keys.caller(first).role == "customer"
    refused(keys, of(new))
    publish(2, old, new)
    assert keys.caller(of(new)).role == "customer"
    publish(3, new)
    refused(keys, of(ECKey.generate_key("P-256", {"kid": "third"})))  # looks, and finds the old key gone
    refused(keys, first)


def refused(keys: Keys, given: bytes) -> None:
    with pytest.raises(Problem) as told:
        keys.caller(given)
    assert told.value.status == 401


def test_a_scope_names_a_verb_that_some_role_has() -> None:
    with pytest.raises(TypeError, match="purses:destroy"):
        Bearer("purses:destroy")
    assert all(Caller(uuid4(), role).may("x:read") for role in ROLES)
    assert not Caller(uuid4(), "customer").may("x:any")
    assert not Caller(uuid4(), "admin", frozenset({"x:read"})).may("y:read")
