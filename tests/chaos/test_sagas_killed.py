"""Checkouts, refunds and top-ups whose process is killed with -9 at each of their steps: every effect is had once, and all stores agree."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.refund import TO_VOUCHERS
from infra.children import tie
from infra.settings import ROOT
from infra.shop import ended, lines_of, load
from infra.shopper import Api
from streams.checkout import checkout
from streams.refund import refund
from streams.wallet import top_up
from tests.chaos import Chaos
from tests.kernel.platform import READY_S_MAX, Platform
from tests.kernel.servers import Stack, fresh_settings

pytestmark = pytest.mark.slow

STEPS = list(checkout.steps)
DONE = [
    *((step, "asked") for step in STEPS),
    *(
        (step, "recorded")
        for step in ("hold in the wallet", "authorise the payment", "take the money", "clear the cart")
    ),
    ("take the money", "asking"),
]
UNDONE = [
    (step, "undone") for step in ("hold in the wallet", "reserve the vouchers", "reserve the stock", "lock the cart")
]
# The bank says yes, and does not pay out: the last step that can be undone has been done.
UNDONE_LATE = [(step, "undone") for step in ("place the order", "authorise the payment")]
# The bank takes nothing back and the voucher has ended, so that there is every step; what is refused never gets as far as `asked`.
REFUNDED = [
    *((step, "asking" if step == TO_VOUCHERS else "asked") for step in refund.steps),
    ("give back to the wallet", "recorded"),
]
TOPPED_UP = [*((step, "asked") for step in top_up.steps), ("take the money", "recorded")]
NOT_TOPPED_UP = [("authorise the payment", "undone")]
VOUCHER, WALLET = 100, 150  # pence that they pay; the card pays more


@pytest.fixture(scope="module")
def platform(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("crashes")
    with fresh_settings(stack, folder) as settings:
        with Platform(settings, TITAN_REFUND_AUTO_MAX=str(10**9)) as made:
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


@dataclass
class Shopper:
    """Somebody with a voucher and a wallet, of which a checkout under way needs all."""

    id: UUID
    voucher: str
    wallet: str
    receipt: dict[str, Any]

    async def left(self, api: Api) -> tuple[int, int]:
        """What can be spent of both."""
        rows = [
            await api.get(f"/{path}", self.id, "service")
            for path in (f"vouchers/{self.voucher}", f"wallets/{self.wallet}")
        ]
        balances = [row.document["balance"] for row in rows]
        return balances[0], balances[1]


async def keep(api: Api, owner: UUID, card: str) -> str:
    """The id of a card that somebody keeps."""
    saved = str(uuid4())
    card_of = {"gateway": "test", "token": card, "brand": "visa", "last_four": "4242", "expires": "2099-12"}
    assert (await api.ask("PUT", f"/payments/methods/{saved}", owner, "customer", document=card_of)).ok
    return saved


async def buy(api: Api, skus: Sequence[str], card: str, saved: bool = False) -> Shopper:
    """A cart with one piece of each, and its checkout under way. `saved`: the card is one that the shopper keeps."""
    shopper = uuid4()

    async def posted(path: str, document: dict[str, Any], role: str = "customer") -> dict[str, Any]:
        answer = await api.post(path, document, shopper, role, key=uuid4().hex)
        assert answer.ok, answer
        found: dict[str, Any] = answer.document
        return found

    pounds = {"currency": "GBP"}
    gift = await posted("/vouchers", {**pounds, "amount": VOUCHER}, "service")
    wallet = (await posted("/wallets", pounds))["id"]
    await posted(f"/wallets/{wallet}/credits", {**pounds, "amount": WALLET}, "service")
    cart = (await api.post("/carts", {"currency": "GBP"}, shopper)).document
    for sku in skus:
        cart = (await api.post(f"/carts/{cart['id']}/lines", {"sku": sku, "quantity": 1}, shopper)).document
    address = {"recipient": "A", "street": "1", "city": "B", "postcode": "C", "country": "GB"}
    way = {"saved": await keep(api, shopper, card)} if saved else {"method": card}
    buying = {"cart": cart["id"], "contents": cart["version"], "address": address, **way}
    receipt = await posted("/checkouts", {**buying, "vouchers": [gift["code"]], "wallet": True})
    return Shopper(shopper, gift["id"], wallet, receipt)


def test_killed_at_any_step_a_checkout_has_each_effect_once(platform: Platform, stack: Stack, lives: Lives) -> None:
    skus = sorted({line.stock_code for line in lines_of(invoices=4) if line.stock_code[:5].isdigit()})[:2]

    shoppers: dict[tuple[str, str], Shopper] = {}

    async def one(api: Api, step: str, moment: str, card: str) -> tuple[str, str]:
        lives.begin(step, moment)
        shopper = shoppers[step, moment] = await buy(api, skus, card, saved=moment != "undone")
        assert await lives.ended() == -signal.SIGKILL
        next = lives.begin()
        try:
            return await ended(api, shopper.id, shopper.receipt)
        finally:
            os.kill(next, signal.SIGKILL)
            await lives.ended()

    async def each(kills: Sequence[tuple[str, str]], card: str) -> dict[tuple[str, str], tuple[str, str]]:
        async with Api(platform.settings) as api:
            return {(step, moment): await one(api, step, moment, card) for step, moment in kills}

    async def left(kills: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        async with Api(platform.settings) as api:
            return [await shoppers[kill].left(api) for kill in kills]

    async def ends(kills: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """How each order and its payment are."""
        told = []
        async with Api(platform.settings) as api:
            for one in map(shoppers.__getitem__, kills):
                checkout = (await api.get(f"/checkouts/{one.receipt['id']}", one.id)).document
                order = await api.get(f"/orders/{checkout['id']}", one.id)
                payment = await api.get(f"/payments/{checkout['payment']}", one.id)
                told.append((order.document["status"], payment.document["authorisation"]))
        return told

    assert asyncio.run(each(DONE, "tok_visa")) == dict.fromkeys(DONE, ("completed", ""))
    assert asyncio.run(each(UNDONE, "tok_declined")) == dict.fromkeys(UNDONE, ("failed", "The bank does not say why."))
    unpaid = dict.fromkeys(UNDONE_LATE, ("failed", "The bank does not pay out."))
    assert asyncio.run(each(UNDONE_LATE, "tok_captureFails")) == unpaid
    platform.start("sagas")  # for what the last one has left to do
    with closing(Chaos(stack, platform)) as chaos:
        assert chaos.look() == []
    platform.kill("sagas")
    assert asyncio.run(left(DONE)) == [(0, 0)] * len(DONE)
    assert asyncio.run(left(UNDONE + UNDONE_LATE)) == [(VOUCHER, WALLET)] * len(UNDONE + UNDONE_LATE)
    assert asyncio.run(ends(UNDONE_LATE)) == [("cancelled", "voided")] * len(UNDONE_LATE)


def test_killed_at_any_step_a_refund_gives_each_part_back_once(platform: Platform, stack: Stack, lives: Lives) -> None:
    skus = sorted({line.stock_code for line in lines_of(invoices=4) if line.stock_code[:5].isdigit()})[:2]

    async def bought(api: Api) -> Shopper:
        """Paid in three parts, by a card whose bank takes nothing back and a voucher that was lost since."""
        shopper = await buy(api, skus, "tok_refundFails")
        assert await ended(api, shopper.id, shopper.receipt) == ("completed", "")
        assert (await api.post(f"/vouchers/{shopper.voucher}/void", {"reason": "lost"}, shopper.id, "service")).ok
        return shopper

    async def one(api: Api, shopper: Shopper, step: str, moment: str) -> dict[str, Any]:
        lives.begin(step, moment)
        order = shopper.receipt["id"]
        asked = await api.post("/refunds", {"order": order, "reason": "broken"}, shopper.id, key=order)
        assert asked.ok, asked
        assert await lives.ended() == -signal.SIGKILL
        next = lives.begin()
        try:
            async with asyncio.timeout(READY_S_MAX):
                while True:
                    found = (await api.get(f"/refunds/{asked.document['id']}", shopper.id)).document
                    if found["ended_at"]:
                        return {name: found[name] for name in ("status", "card_refused", "voucher_refused")}
                    await asyncio.sleep(0.05)
        finally:
            os.kill(next, signal.SIGKILL)
            await lives.ended()

    async def each() -> None:
        async with Api(platform.settings) as api:
            first = lives.begin()
            shoppers = await asyncio.gather(*(bought(api) for _ in REFUNDED))
            totals = [(await api.get(f"/orders/{one.receipt['id']}", one.id)).document["total"] for one in shoppers]
            os.kill(first, signal.SIGKILL)
            await lives.ended()
            told = {kill: await one(api, shopper, *kill) for shopper, kill in zip(shoppers, REFUNDED, strict=True)}
            said = {
                "status": "completed",
                "card_refused": "The account is closed.",
                "voucher_refused": "the voucher is void",
            }
            assert told == dict.fromkeys(REFUNDED, said)
            for shopper, total in zip(shoppers, totals, strict=True):
                assert await shopper.left(api) == (0, total - VOUCHER)
                rows = (await api.get("/vouchers", shopper.id)).document["items"]
                assert [row["balance"] for row in rows if row["kind"] == "credit"] == [VOUCHER]

    asyncio.run(each())
    platform.start("sagas")
    with closing(Chaos(stack, platform)) as chaos:
        assert chaos.look() == []
    platform.kill("sagas")


def test_killed_at_any_step_a_top_up_brings_its_money_in_once(platform: Platform, stack: Stack, lives: Lives) -> None:
    wallets: dict[UUID, str] = {}

    async def one(api: Api, step: str, moment: str, card: str) -> tuple[str, str]:
        lives.begin(step, moment)
        owner = uuid4()
        path = wallets[owner] = f"/wallets/{(await api.post('/wallets', {'currency': 'GBP'}, owner)).document['id']}"
        way = {"saved": await keep(api, owner, card)} if card == "tok_visa" else {"method": card}
        topping = {"amount": 500, "currency": "GBP", **way}
        asked = await api.post(f"{path}/topups", topping, owner, key=uuid4().hex)
        assert asked.ok, asked
        assert await lives.ended() == -signal.SIGKILL
        next = lives.begin()
        try:
            async with asyncio.timeout(READY_S_MAX):
                while True:
                    for found in (await api.get(f"{path}/topups", owner)).document["items"]:
                        if found["status"] != "running":
                            return found["status"], found["why"]
                    await asyncio.sleep(0.05)
        finally:
            os.kill(next, signal.SIGKILL)
            await lives.ended()

    async def each() -> None:
        async with Api(platform.settings) as api:
            done = {kill: await one(api, *kill, "tok_visa") for kill in TOPPED_UP}
            assert done == dict.fromkeys(TOPPED_UP, ("done", ""))
            failed = {kill: await one(api, *kill, "tok_captureFails") for kill in NOT_TOPPED_UP}
            assert [status for status, _ in failed.values()] == ["failed"]

    async def balances() -> list[int]:
        async with Api(platform.settings) as api:
            return [(await api.get(path, owner)).document["balance"] for owner, path in wallets.items()]

    asyncio.run(each())
    platform.start("sagas")
    with closing(Chaos(stack, platform)) as chaos:
        assert chaos.look() == []
    platform.kill("sagas")
    assert asyncio.run(balances()) == [500] * len(TOPPED_UP) + [0] * len(NOT_TOPPED_UP)
