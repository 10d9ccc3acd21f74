"""Each server, each process and a replay killed with -9 under load: nothing acknowledged is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.api.test_erasure import erase
from tests.chaos import Chaos, chaos
from tests.chaos.victims import REPLAY, SERVERS, VICTIMS

pytestmark = pytest.mark.slow

PERSONAL = ("recipient", "street", "city", "postcode")
ROUNDS = [
    ("kafka", "relay"),
    ("postgres", "replay"),
    ("worker", "redis", "replay"),
    ("clickhouse", "sagas"),
    ("api", "faust", "gateway"),
]


@pytest.fixture(scope="module")
def made() -> Iterator[Chaos]:
    with chaos() as one:
        yield one


def test_everything_is_killed() -> None:
    assert {victim for victims in ROUNDS for victim in victims} == set(VICTIMS)


@pytest.mark.parametrize("victims", ROUNDS, ids=" and ".join)
def test_killed_under_load_nothing_is_lost_and_nothing_doubled(made: Chaos, victims: tuple[str, ...]) -> None:
    assert made.round(f"test {victims}", victims) == []
    assert made.victims.hit >= {*victims} & {*SERVERS, REPLAY}  # a process may be away since its server is
    told = made.told()
    assert told["ok"] > 10, told


def test_in_the_end_all_rows_of_all_read_models_are_the_fold_of_the_store(made: Chaos) -> None:
    assert made.look() == []
    assert made.verify() == []


def test_an_erased_shopper_stays_erased_when_the_orders_are_rebuilt(made: Chaos) -> None:
    assert made.demo is not None
    bought = next(told for told in made.demo.told if told.order is not None)
    platform = made.platform
    with platform.client("customer", bought.shopper) as http:
        assert http.get(f"/orders/{bought.order}").json()["address"]["recipient"] == "Ada Lovelace"
    assert erase(platform.settings, bought.shopper)
    assert made.rebuild("orders") == []
    platform.kill("api")  # which may remember a key for half a minute
    platform.start("api")
    with platform.client("customer", bought.shopper) as http:
        order, story = (http.get(f"/orders/{bought.order}{more}").json() for more in ("", "/events"))
    assert {name: order["address"][name] for name in PERSONAL} == dict.fromkeys(PERSONAL, "")
    assert story["items"][0]["data"]["address"]["recipient"] == ""
    assert made.look() == []
