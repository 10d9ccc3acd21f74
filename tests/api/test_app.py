"""The app of all services: each module is in it, no two routes collide, and each says all that it can answer."""

from __future__ import annotations

import pkgutil
from typing import Any

import api
from api.app import OURS, app

PROBLEMS = "#/components/responses/"


def operations() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, item in app.openapi()["paths"].items()
        for method, operation in item.items()
    ]


def test_every_service_is_behind_the_one_port() -> None:
    tags = {tag for _, operation in operations() for tag in operation.get("tags", ())}
    services = [module.name for module in pkgutil.iter_modules(api.__path__) if module.name not in OURS]
    assert services
    assert len(tags) >= len(services)


def test_every_route_is_described_with_an_example() -> None:
    for name, operation in operations():
        assert operation.get("summary"), name
        good = [one for status, one in operation["responses"].items() if status.startswith("2")]
        assert good, name
        for content in (content for one in good for content in one.get("content", {}).values()):
            if content.get("schema"):
                assert "example" in content or "examples" in content, name
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert body is None or "example" in body, name


def test_every_named_problem_is_described() -> None:
    described = app.openapi()["components"]["responses"]
    for name, operation in operations():
        for status, response in operation["responses"].items():
            if reference := response.get("$ref"):
                assert reference.removeprefix(PROBLEMS) in described, (name, status)


# Without a key, and why that is safe.
REPEATABLE = {
    "POST /vouchers/check": "it looks, and changes nothing",
    "POST /auth/totp": "an offer counts for nothing before it is confirmed",
    "POST /auth/totp/confirm": "a code is good once; the answer is shown once and kept nowhere",
    "POST /auth/totp/recovery": "a code is good once; the answer is shown once and kept nowhere",
    "POST /oauth/userinfo": "it looks, and changes nothing",
    "POST /auth/keys/rotate": "one key more does no harm",
    "POST /auth/keys/{kid}/revoke": "a key is revoked once",
}


def test_what_changes_something_can_be_repeated_safely() -> None:
    """Each command of ours takes an Idempotency-Key."""
    for name, operation in operations():
        if name not in REPEATABLE and name.startswith(("POST ", "PUT ", "DELETE ")) and "security" in operation:
            headers = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "header"}
            assert "Idempotency-Key" in headers, name


def test_a_parameter_is_there_or_not_and_never_null() -> None:
    for name, operation in operations():
        for parameter in operation.get("parameters", ()):
            assert {"type": "null"} not in parameter["schema"].get("anyOf", ()), (name, parameter["name"])


def test_a_map_whose_keys_have_a_pattern_has_no_others() -> None:
    shipping = app.openapi()["components"]["schemas"]["Parcel"]["properties"]["parts"]
    assert shipping["patternProperties"]
    assert shipping["additionalProperties"] is False


def test_errors_of_the_registry_are_not_taken_for_ours() -> None:
    models = app.openapi()["components"]["schemas"]
    assert "correlation" in models["Problem"]["properties"]
    assert models["ErrorMessage"]["properties"].keys() == {"error_code", "message"}
