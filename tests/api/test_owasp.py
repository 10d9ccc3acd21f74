"""OWASP's API top ten over every route that OpenAPI knows: a new route without a rule fails here.

API1 object level, API2 authentication (also tests/api/kernel/test_auth.py and test_auth.py), API3 mass assignment and what is shown,
API4 limits (also test_limits.py), API5 function level, API7 and API10 redirects (test_oauth.py), API8 headers, API9 the inventory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from infra.token import token
from tests.api.conftest import Market
from tests.kernel.people import People

Operation = tuple[str, str, dict[str, Any]]  # method, path, what OpenAPI says of it

# Who may do what, as it is meant, beside how it is done.
MAY = {
    "read": {"customer", "seller", "analyst", "service", "admin"},
    "write": {"customer", "seller", "service", "admin"},
    "sell": {"seller", "service", "admin"},
    "settle": {"service", "admin"},
    "analyse": {"analyst", "admin"},
    "any": {"service", "admin"},
    "govern": {"admin"},
}
ROLES = {"customer", "seller", "analyst", "service", "admin"}

# Needs no token, and why. A path ends in * for all below it.
PUBLIC = {
    "/health*": "asked by orchestrators",
    "/metrics": "asked by Prometheus, on the inner network",
    "/subjects*": "the schema registry, read-only",
    "/schemas*": "the schema registry, read-only",
    "/compatibility*": "the schema registry, read-only",
    "/config*": "the schema registry, read-only",
    "/mode*": "the schema registry, read-only",
    "/.well-known/*": "where everything is, and public keys",
    "/auth/register": "everybody may",
    "/auth/verify": "proven by a mail",
    "/auth/forgot": "everybody may",
    "/auth/reset": "proven by a mail",
    "/auth/login": "proven by a password",
    "/auth/refresh": "proven by a refresh token",
    "/auth/logout": "proven by a refresh token",
    "/auth/mail/{purpose}": "proven by a mail",
    "/auth/external": "the names of providers",
    "/auth/external/{provider}/begin": "everybody may",
    "/auth/external/{provider}/finish": "proven by the provider, and a ticket",
    "/oauth/authorize": "proven by a password",
    "/oauth/token": "proven by the client's secret, a code, a refresh token",
    "/oauth/revoke": "proven by the client's secret and the token",
    "/oauth/introspect": "proven by the client's secret",
    "/products/offers": "what is for sale is for everybody",
    "/stocks/availability": "what is in stock is for everybody",
    "/payments/webhooks/{gateway}": "proven by the gateway's signature",
    "/payments/methods/{customer}/{method}/return": "the same, of a card that is to be saved, for that customer alone",
    "/payments/{id}/return": "what the bank said is proven by the gateway; nothing is told of the payment",
}
# The token is optional: others' things are told apart by what they are.
ANYONE = {
    "/products*": "published products are for everybody",
    "/carts*": "a guest's cart is proven by its Cart-Token",
}
ANY_SCOPE = {"/oauth/userinfo": "needs openid, which is no resource's"}


def listed(path: str, table: dict[str, str]) -> bool:
    return any(path == one or (one.endswith("*") and path.startswith(one[:-1])) for one in table)


@pytest.fixture(scope="module")
def operations(mall: Market) -> list[Operation]:
    document = mall.http.get("/openapi.json").json()
    return [(method, path, one) for path, item in document["paths"].items() for method, one in item.items()]


def scope_of(operation: dict[str, Any]) -> str | None:
    """The scope that OpenAPI says is needed; None for an operation without a token, "" for any token."""
    for one in operation.get("security", ()):
        if "bearer" in one:
            return one["bearer"][0] if one["bearer"] else ""
    return None


def asked(mall: Market, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> int:
    """The status of an operation on nothing in particular."""
    filled = path
    for name in {part.strip("{}") for part in path.split("/") if part.startswith("{")}:
        filled = filled.replace(f"{{{name}}}", str(uuid4()))
    return mall.http.request(method, filled, headers=headers, **more).status_code


def test_every_route_has_a_rule(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        scope, optional = scope_of(operation), {} in operation.get("security", ())
        where = f"{method} {path}"
        if scope is None:
            assert listed(path, PUBLIC), f"{where} asks for no token: give it a caller, or say here why not"
        elif optional:
            assert listed(path, ANYONE), f"{where} lets anyone in: say here why"
        elif not scope:
            assert path in ANY_SCOPE, f"{where} is content with any token: say here why"
        else:
            assert scope.partition(":")[2] in MAY, f"{where} needs {scope}, which is no right that is known here"


def test_nobody_gets_in_without_a_token_or_with_a_worthless_one(mall: Market, operations: list[Operation]) -> None:
    for method, path, operation in operations:
        if scope_of(operation) is None:
            continue
        if {} not in operation["security"]:
            assert asked(mall, method, path) == 401, (method, path)
        forged = {"Authorization": f"Bearer {token(mall.settings, 'admin', uuid4())[:-4]}AAAA"}
        assert asked(mall, method, path, forged) == 401, (method, path)


def test_each_role_may_what_it_is_meant_to(mall: Market, operations: list[Operation]) -> None:
    """Function level: too little is 403 before anything else is looked at; enough is never 403."""
    tokens = {role: mall.of(role) for role in ROLES}
    for method, path, operation in operations:
        scope = scope_of(operation)
        if not scope:
            continue
        for role, headers in tokens.items():
            forbidden = role not in MAY[scope.partition(":")[2]]
            assert (asked(mall, method, path, headers) == 403) == forbidden, (method, path, role, scope)


def test_a_token_may_no_more_than_its_scopes(mall: Market, operations: list[Operation]) -> None:
    narrow = {"Authorization": f"Bearer {token(mall.settings, 'admin', uuid4(), ('nothing:read',))}"}
    for method, path, operation in operations:
        if scope_of(operation):
            assert asked(mall, method, path, narrow) == 403, (method, path)


# Whose things a route is about: a maker of one for Ada by the first word of its path, or why there is none.
NOT_PERSONAL = {
    "products": "the catalogue: written with `sell`, read by everybody",
    "stocks": "the shop's own",
    "fraud": "the shop's own",
    "reconciliations": "the shop's own",
    "subjects": "schemas", "schemas": "schemas", "config": "schemas", "mode": "schemas", "compatibility": "schemas",
}  # fmt: skip


@pytest.fixture(scope="module")
def things(mall: Market) -> dict[str, str]:
    """One thing of Ada's of each kind."""
    ada, till = uuid4(), mall.of("service")
    where = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}
    line = {"sku": "MUG", "product": str(uuid4()), "title": "Mug", "quantity": 2, "unit_price": 1999}
    me = mall.of("customer", ada)
    order = {"customer": str(ada), "currency": "EUR", "lines": [line], "address": where}
    money = {"customer": str(ada), "order": str(uuid4()), "amount": 3998, "currency": "EUR", "method": "tok_visa"}
    sku = f"THING-{uuid4().hex[:8]}"
    mall.on_sale(mall.of("seller"), sku, pieces=5)
    cart = mall.cart(me, **{sku: 1})
    buy = {"cart": cart["id"], "contents": cart["contents"], "method": "tok_visa", "address": where}
    ordered = mall.post("/orders", order, till, 201)["id"]
    refund = {"order": ordered, "reason": "broken"}
    people = People(mall.http, mall.settings)
    people.forget_tries()  # other files of this process's were here before
    person = people.join()
    client = {
        "name": "x",
        "redirect_uris": ["https://x.example.com/"],
        "grants": ["authorization_code"],
        "scopes": ["openid"],
    }
    return {
        "carts": cart["id"],
        "orders": ordered,
        "refunds": mall.post("/refunds", refund, me, 201)["id"],
        "payments": mall.post("/payments", money, till, 201)["id"],
        "checkouts": mall.post("/checkouts", buy, me, 201)["id"],
        "wallets": mall.post("/wallets", {"currency": "EUR"}, me, 201)["id"],
        "vouchers": mall.post("/vouchers/credits", {"holder": str(ada), "amount": 5, "currency": "EUR"}, till, 201)[
            "id"
        ],
        "accounts": str(person.id),
        "users": mall.post("/users", None, person.headers, 201)["id"],
        "clients": mall.post("/clients", client, mall.of("admin"), 201)["client_id"],
    }


def personal(operations: list[Operation]) -> Iterator[Operation]:
    for method, path, operation in operations:
        if "{id}" in path and path.split("/")[1] not in NOT_PERSONAL:
            yield method, path, operation


def body_of(operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    return None if content is None else content.get("example")


def test_anothers_things_are_not_there(mall: Market, operations: list[Operation], things: dict[str, str]) -> None:
    """Object level: whatever is asked of Ada's things by Bob, or by a seller, is 403 or 404, with a body that is good."""
    strangers = [mall.of("customer"), mall.of("seller")]
    for method, path, operation in personal(operations):
        plural = path.split("/")[1]
        assert plural in things, (
            f"{path}: make one of Ada's {plural} in `things`, or say in NOT_PERSONAL whose they are"
        )
        filled = path.replace("{id}", things[plural])
        for one in operation.get("parameters", ()):
            if one["in"] == "path":
                filled = filled.replace(f"{{{one['name']}}}", str(one["example"]))
        for headers in strangers:
            keyed = {**headers, "Idempotency-Key": uuid4().hex}
            answer = mall.http.request(method, filled, headers=keyed, json=body_of(operation))
            assert answer.status_code in (403, 404), (method, filled, answer.status_code, answer.text)


def test_lists_show_only_the_own(mall: Market, operations: list[Operation], things: dict[str, str]) -> None:
    bob = mall.of("customer")
    for method, path, operation in operations:
        plural = path.split("/")[1]
        if method == "get" and path == f"/{plural}" and plural in things and scope_of(operation):
            listed_ids = [one["id"] for one in mall.read(path, bob)["items"]]
            assert things[plural] not in listed_ids, path


def closed(schema: dict[str, Any], schemas: dict[str, Any], seen: set[str]) -> Iterator[str]:
    """Objects in a body that take fields which nobody declared."""
    if (name := schema.get("$ref", "").rpartition("/")[2]) and name not in seen:
        seen.add(name)
        found = schemas[name]
        if found.get("type") == "object" and found.get("additionalProperties") is not False:
            yield name
        yield from closed(found, schemas, seen)
    for inner in [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), schema.get("items")]:
        if inner:
            yield from closed(inner, schemas, seen)


def test_no_body_takes_a_field_that_is_not_declared(mall: Market, operations: list[Operation]) -> None:
    """Mass assignment: `role`, `owner`, `price` and whatever else comes along is refused, not taken."""
    schemas = mall.http.get("/openapi.json").json()["components"]["schemas"]
    for method, path, operation in operations:
        if listed(path, PUBLIC) and not path.startswith("/auth"):
            continue
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert not list(closed(content["schema"], schemas, set())), (method, path)
    answer = mall.http.post(
        "/carts", json={"currency": "EUR", "owner": str(uuid4()), "status": "checked out"}, headers=mall.of("customer")
    )
    assert answer.status_code == 422


def test_errors_say_nothing_of_how_it_is_made(mall: Market) -> None:
    for path in ("/orders/1", "/orders?cursor=x", "/accounts/%00", "/nowhere", "/auth/login"):
        answer = mall.http.get(path, headers=mall.of("admin"))
        assert answer.status_code < 500
        assert "Traceback" not in answer.text and "psycopg" not in answer.text
        assert answer.headers["content-type"] == "application/problem+json"


def test_what_is_personal_is_not_kept_on_the_way(mall: Market, things: dict[str, str]) -> None:
    for plural, id in things.items():
        answer = mall.http.get(f"/{plural}/{id}", headers=mall.of("admin"))
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
