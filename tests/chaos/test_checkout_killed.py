"""A checkout whose process is killed with -9 at each of its steps: every effect is had once, and all stores agree."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from infra.children import Child
from infra.settings import ROOT
from infra.shop import ended, lines_of, load
from infra.shopper import Api
from streams.checkout import checkout
from tests.chaos import Chaos
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Stack, fresh_settings

STEPS = list(checkout.steps)
KILLS = [(step, moment) for step in STEPS for moment in ("asked", "recorded")] + [("take the money", "asking")]


@pytest.fixture(scope="module")
def platform(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("crashes")
    with fresh_settings(stack, folder) as settings:
        with Platform(settings) as made:
            made.start("relay", "worker", "sagas", "gateway", "api")
            asyncio.run(load(made.settings, lines_of(invoices=4), lambda line: None))
            made.kill("sagas")
            yield made


def crashing(platform: Platform, step: str, moment: str) -> Child:
    argv = [sys.executable, "-m", "tests.chaos.crashing", "--step", step, "--moment", moment]
    return Child(
        "crashing",
        argv,
        log=platform.settings.data / "log" / "crashing.log",
        env={**platform.env, "TITAN_INSTANCE": "sagas"},
        cwd=ROOT,
    )


def ended_by_kill(child: Child) -> bool:
    """Whether it has died, of SIGKILL as it should."""
    assert child.process is not None
    code = child.process.poll()
    assert code in (None, -signal.SIGKILL), f"it ended with {code}: {child.last_words()}"
    return code is not None


async def buy(api: Api, skus: Sequence[str]) -> tuple[UUID, dict[str, Any]]:
    """A cart with one piece of each, and its checkout under way."""
    shopper = uuid4()
    cart = (await api.post("/carts", {"currency": "GBP"}, shopper)).document
    for sku in skus:
        cart = (await api.post(f"/carts/{cart['id']}/lines", {"sku": sku, "quantity": 1}, shopper)).document
    address = {"recipient": "A", "street": "1", "city": "B", "postcode": "C", "country": "GB"}
    buying = {"cart": cart["id"], "contents": cart["version"], "method": "tok_visa", "address": address}
    answer = await api.post("/checkouts", buying, shopper)
    assert answer.ok, answer
    return shopper, answer.document


def test_killed_at_any_step_a_checkout_has_each_effect_once(platform: Platform, stack: Stack) -> None:
    skus = sorted({line.stock_code for line in lines_of(invoices=4) if line.stock_code[:5].isdigit()})[:2]

    async def one(api: Api, step: str, moment: str) -> tuple[str, str]:
        child = crashing(platform, step, moment)
        child.start()
        shopper, receipt = await buy(api, skus)
        await asyncio.to_thread(wait_for, partial(ended_by_kill, child), f"it dies with {step!r} {moment}")
        child.stop()
        platform.start("sagas")
        try:
            return await ended(api, shopper, receipt)
        finally:
            platform.kill("sagas")

    async def each() -> dict[tuple[str, str], tuple[str, str]]:
        async with Api(platform.settings) as api:
            return {(step, moment): await one(api, step, moment) for step, moment in KILLS}

    assert asyncio.run(each()) == dict.fromkeys(KILLS, ("completed", ""))
    platform.start("sagas")  # for what the last one has left to do
    assert Chaos(stack, platform).audit() == []
