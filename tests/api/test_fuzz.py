"""A generic fuzzer that believes the whole API's OpenAPI finds nothing else than it says: as admin, and as a customer and as nobody, who
send again what it drew, for what it costs is drawing.

TITAN_FUZZ_EXAMPLES (default 2) is how many drawn cases an operation gets: some hundred make a long run that looks deeper, and leaves
nothing of the coverage phase out.
TITAN_FUZZ_SEED (default 1) draws others. TITAN_FUZZ_PATHS, a regular expression, narrows it to some paths.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest

from tests.api.kernel.test_openapi import CONFIG, hooked
from tests.kernel.people import People
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Stack, fresh_settings

pytestmark = pytest.mark.slow

EXAMPLES_SHORT = 2
EXAMPLES = int(os.environ.get("TITAN_FUZZ_EXAMPLES", EXAMPLES_SHORT))
SEED = os.environ.get("TITAN_FUZZ_SEED", "1")
PATHS = os.environ.get("TITAN_FUZZ_PATHS", "")
SECONDS_MAX = 600 + 30 * EXAMPLES
CUSTOMER = UUID(int=7)

# The Schema Registry's protocol, which is not ours to change, answers 422 to what JSON Schema can't tell from a good request:
# a text that is no Avro schema, or one that a read-only registry does not have.
REGISTRY = """
[[operations]]
include-path-regex = "^/(subjects|compatibility)/"
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422"]
"""
# OAuth's errors are 400 whatever is wrong (RFC 6749), for a form that is good but for an unknown client or a used code, too.
OAUTH = """
[[operations]]
include-path-regex = "^/oauth/"
checks.positive_data_acceptance.expected-statuses = ["2xx", "302", "400", "401", "403", "404", "409"]
"""
# What these leave out is the person's own, where there is any: JSON Schema can't tell.
OWN = """
[[operations]]
include-path-regex = "^/(checkouts|wallets/[^/]+/topups)$"
checks.positive_data_acceptance.expected-statuses = ["2xx", "401", "403", "404", "409", "422"]
"""


@pytest.fixture(scope="module")
def platform(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Every process but Faust's, without rate limits."""
    limits = {f"TITAN_API_{name}_{what}" for name in ("CALLER", "IP") for what in ("PER_S", "BURST")}
    limits |= {f"TITAN_API_{name}_TRIES" for name in ("CODE", "CODE_IP")}
    tries = ("PLACE", "ADDRESS", "NETWORK", "CODE", "CODE_DAY", "MAIL", "SAME_MAIL")
    limits |= {f"TITAN_AUTH_{name}_TRIES" for name in tries}
    of = dict.fromkeys(limits, "1000000")
    with fresh_settings(stack, tmp_path_factory.mktemp("fuzz")) as settings, Platform(settings, **of) as made:
        made.start("relay", "worker", "sagas", "gateway", "api")
        yield made


@pytest.fixture(scope="module")
def known(platform: Platform) -> dict[str, list[str]]:
    """Ids of things that are there, by the first word of their path or the field that names them."""
    seller, me, till = (platform.client(role, CUSTOMER) for role in ("seller", "customer", "service"))
    last = ""

    def post(by: httpx.Client, path: str, **body: Any) -> str:
        nonlocal last
        after = {"after": last} if path.startswith("/carts/") else {}
        key = {"Idempotency-Key": uuid4().hex}
        answer = by.post(path, json=body, params=after, headers=key)

        def settled() -> bool:
            nonlocal answer
            if answer.status_code == 503:  # a view is behind
                answer = by.post(path, json=body, params=after, headers=key)
            return answer.status_code != 503

        wait_for(settled, f"{path} takes what it is sent")
        assert answer.is_success, answer.text
        last = answer.json()["position"]
        return str(answer.json()["id"])

    def offered(sku: str) -> bool:
        shown = me.get("/products/offers", params={"sku": sku, "after": last})
        return shown.is_success and bool(shown.json()["items"])

    products, stocks = [], []
    for sku in ("MUG", "TEE"):
        variant = {"sku": sku, "prices": [{"amount": 1999, "currency": "EUR"}]}
        products.append(post(seller, "/products", title=sku, variants=[variant], publish=True))
        wait_for(partial(offered, sku), f"{sku} is offered")  # the worker may have just begun
        stocks.append(post(seller, "/stocks", sku=sku))
        post(seller, f"/stocks/{stocks[-1]}/receive", quantity=1_000, reference="delivery note")
    products.append(post(seller, "/products", variants=[{"sku": "CAP"}]))
    carts = [post(me, "/carts", currency="EUR") for _ in range(4)]
    for cart in carts[:3]:
        post(me, f"/carts/{cart}/lines", sku="MUG", quantity=2)
    with httpx.Client(base_url=platform.url) as guest:
        carts.append(post(guest, "/carts", currency="EUR", guest_token=uuid4().hex))
    where = {"recipient": "Ada", "street": "Milk Street 1", "city": "Berlin", "postcode": "10115", "country": "DE"}
    line = {"sku": "MUG", "product": products[0], "title": "Mug", "quantity": 2, "unit_price": 1999}
    order = {"customer": str(CUSTOMER), "currency": "EUR", "lines": [line], "address": where}
    orders = [post(till, "/orders", **order) for _ in range(4)]
    for paid in orders[1:3]:
        post(till, f"/orders/{paid}/pay", payment=str(uuid4()), amount=3998)
    post(till, f"/orders/{orders[2]}/ship", shipment=str(uuid4()), carrier="DHL")
    money = {"customer": str(CUSTOMER), "amount": 3998, "currency": "EUR", "method": "tok_visa"}
    payments = [post(till, "/payments", order=id, **money) for id in orders]
    checkouts = [post(me, "/checkouts", cart=carts[0], contents=2, method="tok_visa", address=where)]
    wallets = [
        post(me, "/wallets", currency="EUR"),
        post(platform.client("customer", uuid4()), "/wallets", currency="EUR"),
    ]
    for wallet in wallets:
        post(till, f"/wallets/{wallet}/credits", amount=10**9, currency="EUR")
    escrows = [str(uuid4()) for _ in range(3)]
    for escrow in escrows:
        post(till, f"/wallets/{wallets[0]}/escrows", escrow=escrow, amount=10_000, currency="EUR")
    topup = post(me, f"/wallets/{wallets[0]}/topups", amount=5_000, currency="EUR", method="tok_visa")
    card = till.post("/vouchers", json={"amount": 10**9, "currency": "EUR"}).json()
    vouchers = [card["id"], post(till, "/vouchers/credits", holder=str(CUSTOMER), amount=10**9, currency="EUR")]
    post(
        till,
        f"/vouchers/{vouchers[1]}/reservations",
        reservation=escrows[0],
        customer=str(CUSTOMER),
        amount=5,
        currency="EUR",
    )
    accounts = [str(People(me, platform.settings).verified()[0]) for _ in range(2)]
    users = [post(me, "/users")]
    refunds = [post(by, "/refunds", order=orders[2], reason="broken") for by in (me, till)]
    return {
        "wallets": wallets, "payee": wallets, "to": [*wallets, str(CUSTOMER)], "escrow": escrows, "topup": [topup],
        "vouchers": vouchers, "reservation": escrows, "code": [card["code"]], "currency": ["EUR"],
        "products": products, "stocks": stocks, "carts": carts, "orders": orders, "payments": payments,
        "checkouts": checkouts, "refunds": refunds, "accounts": accounts, "users": users, "cart": carts, "order": orders, "customer": [str(CUSTOMER)], "sku": ["MUG", "TEE", "CAP"],
    }  # fmt: skip


NO_TOKENS = (None, "", "no.token.ofours", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.")
PUBLIC = "^/(subjects|schemas|compatibility|config|mode|health|metrics)"  # no token changes anything there


class Fuzzed(NamedTuple):
    """What a run of the fuzzer as admin said, its configuration, and the file of what it sent."""

    ran: subprocess.CompletedProcess[str]
    config: Path
    sent: Path


@pytest.fixture(scope="module")
def fuzzed(platform: Platform, known: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Fuzzed:
    folder = tmp_path_factory.mktemp("fuzzed")
    (config := folder / "schemathesis.toml").write_text(CONFIG + REGISTRY + OAUTH + OWN)
    (ids := folder / "known.json").write_text(json.dumps(known))
    hooks = hooked(known=ids, sent=folder / "sent", whole=EXAMPLES > EXAMPLES_SHORT)
    ran = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{platform.url}/openapi.json",
            *(["--include-path-regex", PATHS] if PATHS else []),
            "-H", f"Authorization: Bearer {platform.token('admin', CUSTOMER)}",
            "--checks", "all", "--mode", "all", "--max-examples", str(EXAMPLES), "--seed", SEED,
        ],
        cwd=folder, env=hooks, capture_output=True, text=True, timeout=SECONDS_MAX,
    )  # fmt: skip
    return Fuzzed(ran, config, folder / "sent")


def test_a_fuzzer_finds_nothing_that_is_not_written(fuzzed: Fuzzed) -> None:
    assert fuzzed.ran.returncode == 0, fuzzed.ran.stdout[-8000:] + fuzzed.ran.stderr[-2000:]


@pytest.mark.parametrize("role", ["customer", "nobody"])
def test_nor_is_there_any_when_others_send_the_same(role: str, platform: Platform, fuzzed: Fuzzed) -> None:
    import requests
    import schemathesis
    from schemathesis.core.failures import Failure, FailureGroup

    from tests.api.kernel.fuzzing import sent_again

    schema = schemathesis.openapi.from_url(
        f"{platform.url}/openapi.json", config=schemathesis.Config.from_path(fuzzed.config)
    )
    tokens = NO_TOKENS if role == "nobody" else [platform.token(role, CUSTOMER)]
    trusted = None if role == "nobody" else {"Authorization": f"Bearer {tokens[0]}"}
    failures, tried = [], set()
    with requests.Session() as session:
        for case in sent_again(schema, fuzzed.sent, tokens):
            if re.match(PUBLIC, case.path):
                continue
            tried.add(case.operation.label)
            try:
                case.call_and_validate(session=session, headers=trusted)
            except (Failure, FailureGroup) as failure:
                told = "\n".join(map(str, getattr(failure, "exceptions", [failure])))
                failures.append(f"{told}\n{case.as_curl_command(headers=trusted)}")
    assert not failures, f"{len(failures)}\n" + "\n\n".join(failures[:5])
    operations = {found.ok().label for found in schema.get_all_operations()}
    assert tried == {
        label for label in operations if not re.match(PUBLIC, label.split()[1]) and re.search(PATHS, label.split()[1])
    }
