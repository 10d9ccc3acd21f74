"""OWASP's API top ten over every route that OpenAPI knows: a new route without a rule fails here.

API1 object level, API2 authentication (also tests/api/kernel/test_auth.py and test_auth.py), API3 mass assignment and what is shown,
API4 limits (also test_limits.py), API5 function level, API7 and API10 redirects (test_oauth.py), API8 headers, API9 the inventory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.kernel import domains
from infra.token import token
from tests.api.conftest import Market
from tests.kernel.people import People, Person
from tests.kernel.topic import stored

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


WORDS = {"provider", "purpose", "name", "consent", "gateway"}  # parts of paths that name nothing of anybody's


@dataclass
class Thing:
    """Something of somebody's: what its routes' paths name, its owner and their headers, the position at which its list has it."""

    parts: dict[str, str]
    by: UUID
    owner: dict[str, str]
    position: str


@pytest.fixture(scope="module")
def ada(mall: Market) -> Person:
    people = People(mall.http, mall.settings)
    people.forget_tries()  # other files of this process's were here before
    return people.join()


@pytest.fixture(scope="module")
def things(mall: Market, ada: Person) -> dict[str, Thing]:
    """One of each kind, by the first words of its routes' paths: Ada's, or a seller's."""
    seller_id, admin_id = uuid4(), uuid4()
    till, admin, seller, me = mall.of("service"), mall.of("admin", admin_id), mall.of("seller", seller_id), ada.headers
    ids = {me["Authorization"]: ada.id, seller["Authorization"]: seller_id, admin["Authorization"]: admin_id}
    where = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}
    line = {"sku": "MUG", "product": str(uuid4()), "title": "Mug", "quantity": 2, "unit_price": 1999}
    order = {"customer": str(ada.id), "currency": "EUR", "lines": [line], "address": where}
    money = {"customer": str(ada.id), "order": str(uuid4()), "amount": 3998, "currency": "EUR", "method": "tok_visa"}
    sku, draft = (f"THING-{uuid4().hex[:8]}" for _ in range(2))
    [stock] = mall.on_sale(seller, sku, pieces=5)
    received = mall.post(f"/stocks/{stock}/receive", {"quantity": 1, "reference": "note"}, seller)
    opened = mall.post("/carts", {"currency": "EUR"}, me, 201)["id"]
    put_in = mall.post(f"/carts/{opened}/lines", {"sku": sku, "quantity": 1}, me)
    cart = mall.read(f"/carts/{opened}", me, after=put_in["position"])
    buy = {"cart": cart["id"], "contents": cart["contents"], "method": "tok_visa", "address": where}
    card = {"gateway": "test", "token": "tok_visa", "brand": "visa", "last_four": "4242", "expires": "2031-09"}
    client = {
        "name": "x",
        "redirect_uris": ["https://x.example.com/"],
        "grants": ["authorization_code"],
        "scopes": ["openid"],
    }
    method, address = str(uuid4()), str(uuid4())

    def put(path: str, body: Any) -> str:
        answer = mall.http.put(path, json=body, headers={**me, "Idempotency-Key": uuid4().hex})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["position"])

    def thing(parts: dict[str, str], owner: dict[str, str], position: str = "") -> Thing:
        return Thing(parts, ids[owner["Authorization"]], owner, position)

    def made(path: str, body: Any, by: dict[str, str], owner: dict[str, str], **parts: str) -> Thing:
        done = mall.post(path, body, by, 201)
        return thing({"id": done.get("id") or done["client_id"], **parts}, owner, done.get("position", ""))

    orders = made("/orders", order, till, me)
    users = made("/users", None, me, me, address=address)
    users.position = put(f"/users/{ada.id}/addresses/{address}", where)
    session = str(UUID(ada.tokens["refresh_token"].split(".")[1]))
    return {
        "products": made("/products", {"title": "x", "variants": [{"sku": draft}]}, seller, seller, sku=draft),
        "stocks": thing({"id": stock}, seller, received["position"]),
        "carts": thing({"id": cart["id"], "sku": sku}, me, put_in["position"]),
        "orders": orders,
        "refunds": made("/refunds", {"order": orders.parts["id"], "reason": "broken"}, me, me),
        "payments": made("/payments", money, till, me),
        "payments/methods": thing({"method": method}, me, put(f"/payments/methods/{method}", card)),
        "checkouts": made("/checkouts", buy, me, me),
        "wallets": made("/wallets", {"currency": "EUR"}, me, me),
        "vouchers": made("/vouchers/credits", {"holder": str(ada.id), "amount": 5, "currency": "EUR"}, till, me),
        "accounts": thing({"id": str(ada.id), "session": session}, me),
        "users": users,
        "clients": made("/clients", client, admin, admin),
    }  # fmt: skip


def kind_of(path: str, things: dict[str, Thing]) -> Thing | None:
    """What a path is about."""
    words = path.strip("/").split("/")
    return things.get("/".join(words[:2]), things.get(words[0]))


def named(path: str) -> set[str]:
    """The objects that a path names."""
    return {part.strip("{}") for part in path.split("/") if part.startswith("{")} - WORDS


def filled(path: str, operation: dict[str, Any], parts: dict[str, str]) -> str:
    examples = {one["name"]: str(one["example"]) for one in operation.get("parameters", ()) if one["in"] == "path"}
    return path.format(**{**examples, **parts})


def body_of(operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    return None if content is None else content.get("example")


OWN_IDS = {"put /payments/methods/{method}": "saves a way to pay of one's own, under an id that one chooses"}


def of_ada(mall: Market, things: dict[str, Thing]) -> set[tuple[str, UUID, int]]:
    """Every event of what is in `things`; ways to pay are kept under their owner's id."""
    ids = {UUID(part) for one in things.values() for name, part in one.parts.items() if name != "sku"}
    dsn = mall.settings.postgres
    return {
        (domain, row.originator_id, row.originator_version)
        for domain in domains()
        for row in stored(dsn, domain)
        if row.originator_id in ids
    }


def test_anothers_things_are_not_there(mall: Market, operations: list[Operation], things: dict[str, Thing]) -> None:
    """Object level: to another customer and another seller, each with a body that is good, what somebody has is 404 and stays as it is."""
    before = of_ada(mall, things)
    assert len({(domain, id) for domain, id, _ in before}) == len(things)
    for method, path, operation in operations:
        scope, thing = scope_of(operation), kind_of(path, things)
        if scope is None or not named(path):
            continue
        known = thing is not None and named(path) <= thing.parts.keys()
        url = filled(path, operation, thing.parts if thing else {})
        for role in ("customer", "seller"):
            keyed = {**mall.of(role), "Idempotency-Key": uuid4().hex}
            answer = mall.http.request(method, url, headers=keyed, json=body_of(operation))
            if scope and role not in MAY[scope.partition(":")[2]]:
                assert answer.status_code == 403, (method, url, role, answer.text)
                continue
            assert known, f"{method} {path} is open to a {role}: have {named(path)} of somebody else's in `things`"
            own = f"{method} {path}" in OWN_IDS
            assert answer.status_code == (200 if own else 404), (method, url, role, answer.status_code, answer.text)
    assert of_ada(mall, things) == before


def test_what_is_part_of_anothers_is_not_reached_through_ones_own(
    mall: Market, operations: list[Operation], things: dict[str, Thing]
) -> None:
    before = of_ada(mall, things)
    bob = People(mall.http, mall.settings).join()
    mall.post("/users", None, bob.headers, 201)
    tried = 0
    for method, path, operation in operations:
        if scope_of(operation) and path.startswith(("/accounts/{id}/", "/users/{id}/")) and len(named(path)) > 1:
            thing = kind_of(path, things)
            assert thing is not None
            url = filled(path, operation, {**thing.parts, "id": str(bob.id)})
            keyed = {**bob.headers, "Idempotency-Key": uuid4().hex}
            answer = mall.http.request(method, url, headers=keyed, json=body_of(operation))
            assert answer.status_code in (200, 404, 409), (method, url, answer.text)
            tried += 1
    assert tried >= 3 and of_ada(mall, things) == before


def test_lists_show_only_the_own(
    mall: Market, operations: list[Operation], things: dict[str, Thing], ada: Person
) -> None:
    """To their owner, and to nobody who has another's id to ask with."""
    strangers = {role: mall.of(role) for role in ("customer", "seller")}
    shown = set()
    for method, path, operation in operations:
        scope = scope_of(operation)
        if method != "get" or scope is None or "{" in path or path == "/oauth/userinfo":
            continue
        asked_for = {one["name"]: one for one in operation.get("parameters", ()) if one["in"] == "query"}
        fixed = {name: one["example"] for name, one in asked_for.items() if one.get("required")}
        owners = [name for name, one in asked_for.items() if one["schema"].get("format") == "uuid"]
        thing = things.get(path.strip("/"))
        if thing is not None:
            after = {"after": thing.position} if "after" in asked_for and thing.position else {}
            whose = {name: str(thing.by) for name in owners if name in ("seller", "owner", "customer")}
            answer = mall.http.get(path, params={**fixed, **whose, **after}, headers=thing.owner)
            assert next(iter(thing.parts.values())) in answer.text, (path, answer.text)
            shown.add(path)
        secrets = [part for one in things.values() for name, part in one.parts.items() if name != "sku"]
        for role, headers in strangers.items():
            if scope and role not in MAY[scope.partition(":")[2]]:
                continue  # 403, see above
            for name in ["", *owners]:
                wanted = {**fixed, **({name: str(thing.by if thing else ada.id)} if name else {})}
                answer = mall.http.get(path, params=wanted, headers=headers)
                assert answer.status_code in (200, 403), (path, wanted, answer.text)
                assert not [one for one in secrets if one in answer.text], (path, wanted)
    assert shown == {f"/{plural}" for plural in things}


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


def test_what_is_personal_is_not_kept_on_the_way(mall: Market, things: dict[str, Thing]) -> None:
    for plural, thing in things.items():
        answer = mall.http.get(
            f"/{plural}/{thing.parts['id']}" if "id" in thing.parts else f"/{plural}", headers=mall.of("admin")
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["cache-control"] == "no-store"
