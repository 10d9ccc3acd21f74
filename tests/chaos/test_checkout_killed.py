"""A checkout whose process is killed with -9 at each of its steps: every effect is had once, and all stores agree."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

import pytest

from infra.children import tie
from infra.settings import ROOT
from infra.shop import ended, lines_of, load
from infra.shopper import Api
from streams.checkout import checkout
from tests.chaos import Chaos
from tests.kernel.platform import READY_S_MAX, Platform
from tests.kernel.servers import Stack, fresh_settings

pytestmark = pytest.mark.slow

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


class Lives:
    """The sagas' processes, one after another; see tests/chaos/crashing.py."""

    def __init__(self, forker: subprocess.Popen[str]) -> None:
        self.forker = forker

    def begin(self, step: str = "", moment: str = "") -> int:
        """The process id of one that dies there, or never."""
        assert self.forker.stdin is not None and self.forker.stdout is not None
        self.forker.stdin.write(f"{step}\t{moment}\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())

    async def ended(self) -> int:
        """Its exit code, once it has died."""
        assert self.forker.stdout is not None
        return int(await asyncio.wait_for(asyncio.to_thread(self.forker.stdout.readline), READY_S_MAX))


@pytest.fixture
def lives(platform: Platform) -> Iterator[Lives]:
    with (platform.settings.data / "log" / "crashing.log").open("ab") as log:
        forker = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.crashing"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, preexec_fn=tie(),
            env={**os.environ, **platform.env, "TITAN_INSTANCE": "sagas"},
        )  # fmt: skip
    with forker:
        yield Lives(forker)
        forker.kill()  # and what it has forked with it


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


def test_killed_at_any_step_a_checkout_has_each_effect_once(platform: Platform, stack: Stack, lives: Lives) -> None:
    skus = sorted({line.stock_code for line in lines_of(invoices=4) if line.stock_code[:5].isdigit()})[:2]

    async def one(api: Api, step: str, moment: str) -> tuple[str, str]:
        lives.begin(step, moment)
        shopper, receipt = await buy(api, skus)
        assert await lives.ended() == -signal.SIGKILL
        next = lives.begin()
        try:
            return await ended(api, shopper, receipt)
        finally:
            os.kill(next, signal.SIGKILL)
            await lives.ended()

    async def each() -> dict[tuple[str, str], tuple[str, str]]:
        async with Api(platform.settings) as api:
            return {(step, moment): await one(api, step, moment) for step, moment in KILLS}

    assert asyncio.run(each()) == dict.fromkeys(KILLS, ("completed", ""))
    platform.start("sagas")  # for what the last one has left to do
    with closing(Chaos(stack, platform)) as chaos:
        assert chaos.look() == []
