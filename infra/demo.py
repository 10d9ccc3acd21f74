"""`titan demo`: shoppers live over HTTP, then a check from the outside that all stores agree. Exits non-zero if not.

They browse, fill carts, change their minds; they pay with cards (some of which they keep), vouchers, wallets or several of them; some give up, some cards
are declined or want a confirmation, some cancel or want a refund, some save in a wallet, give friends money and take the rest back.
The first ones do each of it once, the others what their dice say. What each was told by the API is compared with what it shows afterwards,
and what nobody managed to do is a difference too.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4, uuid5

import httpx
from rich.console import Console
from rich.table import Table

from infra.audit import audit
from infra.errors import StackError
from infra.purses import LITTLE, MONEY_S_MAX, SOME, WAYS, Purses, done
from infra.settings import settings
from infra.shop import MERCHANT, ended
from infra.shopper import Api
from streams.gateways.settings import GatewaySettings

CARDS = {
    "tok_visa": 60,
    "tok_mastercard": 15,
    "tok_declined": 8,
    "tok_insufficientFunds": 4,
    "tok_requiresAction": 6,
    "tok_timeoutCharged": 2,
    "tok_timeoutNotCharged": 2,
    "tok_webhookTwice": 3,
}
"""Test cards and how often each is used, in shares."""
THEN = {"give up": 15, "cancel": 10, "ask for a refund": 11, "keep it": 64}
"""What shoppers do with a cart, or with what they have bought, in shares."""
GUEST, SAVE, KEEP = 0.25, 0.25, 0.3


class Plan(NamedTuple):
    """What a shopper is up to. `some`: pence in every part of the purse but the one that pays the rest; `saved`: the card is one that is kept."""

    way: tuple[str, ...] = ("card",)
    card: str = "tok_visa"
    saved: bool = False
    then: str = "keep it"
    some: int = LITTLE


FIRST = (
    Plan(),
    Plan(("wallet",)),
    Plan(("voucher",)),
    Plan(("wallet", "card")),
    Plan(("voucher", "card")),
    Plan(("voucher", "wallet")),
    Plan(saved=True),
    Plan(("voucher", "wallet", "card"), then="ask for a refund"),
    Plan(then="cancel"),
    Plan(card="tok_declined"),
    Plan(then="give up"),
)
"""The first shoppers' plans: each thing once that has to happen."""
SAVED = "saved card"
PAGES_MAX, FILLS_MAX = 5, 5
ACTION_S_MAX = 60.0
MAIL_S_MAX = 60.0
TOKEN = re.compile(r"^[A-Za-z0-9_-]{86}$", re.MULTILINE)


def planned(dice: random.Random) -> Plan:
    """Anything."""
    [way] = dice.choices(list(WAYS), list(WAYS.values()))
    [card] = dice.choices(list(CARDS), list(CARDS.values()))
    [then] = dice.choices(list(THEN), list(THEN.values()))
    return Plan(way, card, dice.random() < KEEP, then, dice.randint(LITTLE, SOME))


@dataclass
class Told:
    """What the API told one shopper: the order and what it should be like now."""

    shopper: UUID
    ending: Literal["gave up", "refused", "declined", "failed", "bought", "cancelled", "refunded"]
    order: UUID | None = None
    total: int = 0
    refunded: int = 0
    paid_by: str = ""
    why: str = ""


@dataclass
class Demo:
    """A number of shoppers, some at once. `seed` makes their choices repeatable, not their timing."""

    api: Api
    seed: int
    offers: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.purses = Purses(self.api)

    async def run(self, shoppers: int, at_once: int, first: Sequence[Plan] = ()) -> None:
        """So many visits; those of the first ones go as planned."""
        await self._window()
        if not self.api.settings.mail:  # a mail server's mails are not ours to read
            await self._member()
        queue = iter(range(shoppers))

        async def worker() -> None:
            for number in queue:
                dice = random.Random(f"{self.seed}/{number}")
                plan = first[number] if number < len(first) else planned(dice)
                self.told.append(await self._shop(dice, plan))
                if dice.random() < SAVE:
                    await self.purses.save(dice, uuid4())

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())

    def missed(self) -> list[str]:
        """What nobody did, of all that the first plans are there for."""
        ways = {" and ".join(plan.way) for plan in FIRST} | {SAVED}
        missed = [f"paid by {way}" for way in sorted(ways - {told.paid_by for told in self.told})]
        endings = ("cancelled", "refunded", "declined", "gave up")
        return missed + [ending for ending in endings if not any(told.ending == ending for told in self.told)]

    async def _window(self) -> None:
        """What is for sale, as anybody sees it."""
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            query: dict[str, Any] = {"limit": 100} | ({"cursor": cursor} if cursor else {})
            page = done(await self.api.get("/products", status="published", **query), "the list of products")
            for product in page["items"]:
                shown = done(await self.api.get(f"/products/{product['id']}/variants"), "a product's variants")
                self.offers += [one["sku"] for one in shown["items"] if one.get("offer", "listed") == "listed"]
                if len(self.offers) >= 200:
                    return
            cursor = page["next"]
            if cursor is None:
                break
        if not self.offers:
            raise StackError("nothing is for sale: run titan up and let the sample shop load")

    async def _member(self) -> None:
        """Somebody gets an account by answering the mail, signs in, and signs out."""
        me = {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex}
        done(await self.api.post("/auth/register", me), "a registration")
        answer = {"token": await self._mail(me["email"]), "password": me["password"]}
        # Mails and refresh tokens count once. Asked again since the API died over its answer, they have: signing in is the proof.
        done(await self.api.post("/auth/verify", answer), "the answer to a mail", spent=409)
        while True:
            tokens = done(await self.api.post("/auth/login", me), "signing in")
            more = done(
                await self.api.post("/auth/refresh", {"refresh_token": tokens["refresh_token"]}),
                "more tokens",
                spent=401,
            )
            if more is not None:
                token = {"refresh_token": more["refresh_token"]}
                done(await self.api.post("/auth/logout", token), "signing out", spent=401)
                return

    async def _mail(self, address: str) -> str:
        """The token of the mail to an address, once it is there."""
        give_up, folder = time.monotonic() + MAIL_S_MAX, self.api.settings.data / "mail"
        while time.monotonic() < give_up:
            for file in folder.glob("*.eml"):
                text = file.read_text()
                if f"To: {address}" in text and (found := TOKEN.search(text)):
                    return found[0]
            await asyncio.sleep(0.1)
        raise StackError(f"no mail came to {address}: see the log of sagas")

    async def _shop(self, dice: random.Random, plan: Plan) -> Told:
        """One visit."""
        shopper = uuid4()
        for _ in range(FILLS_MAX):  # what was for sale may be sold out
            cart, contents = await self._fill(dice, shopper)
            if contents:
                break
        if plan.then == "give up" or not contents:
            return Told(shopper, "gave up")
        purse = await self.purses.fill(plan.way, plan.some, shopper)
        way = await self._keep(shopper, plan.card) if purse.card and plan.saved else {"method": plan.card}
        bought = await self.api.post(
            "/checkouts",
            {
                "cart": cart,
                "contents": contents,
                **purse.paying(way),
                "shipping": dice.choice(["standard", "express"]),
                "address": {
                    "recipient": "Ada Lovelace",
                    "street": f"{dice.randint(1, 999)} St James's Square",
                    "city": "London",
                    "postcode": "SW1Y 4JH",
                    "country": dice.choice(["GB", "DE", "FR", "US"]),
                },
            },
            shopper,
            key=f"demo/{shopper}/checkout",
        )
        if not bought.ok:
            return Told(shopper, "refused", why=bought.why)
        confirming = None
        if plan.card == "tok_requiresAction" and purse.card:
            confirming = asyncio.create_task(self._confirm(shopper, bought.document["id"], dice.random() < 0.7))
        status, why = await ended(self.api, shopper, bought.document)
        if confirming:
            confirming.cancel()
        if status != "completed":
            return Told(shopper, await self._failed(shopper, bought.document["id"]), why=why)
        order = UUID(bought.document["id"])
        shown = await self._paid(shopper, order)
        paid_by = " and ".join(one["kind"] for one in shown["tenders"])
        if paid_by == "card" and "saved" in way:
            paid_by = SAVED
        told = Told(shopper, "bought", order, shown["total"], paid_by=paid_by)
        purse.order = order
        if plan.then == "cancel":
            reason = {"reason": "changed my mind"}
            done(await self.api.post(f"/orders/{order}/cancel", reason, shopper, key=f"demo/{order}"), "a cancellation")
            told.ending, purse.order = "cancelled", None
        elif plan.then == "ask for a refund":
            told.refunded = await self._refund(dice, shopper, shown)
            told.ending = "refunded" if told.refunded else "bought"
        return told

    async def _paid(self, shopper: UUID, order: UUID) -> dict[str, Any]:
        """The order of a checkout that is completed, once it shows what it was paid with: the one's read model may be ahead of the other's."""
        give_up = time.monotonic() + ACTION_S_MAX
        while not ((found := await self.api.get(f"/orders/{order}", shopper)).ok and found.document["tenders"]):
            if time.monotonic() > give_up:
                raise StackError(f"the checkout {order} is completed, and its order does not show it: {found.why}")
            await asyncio.sleep(0.05)
        paid: dict[str, Any] = found.document
        return paid

    async def _failed(self, shopper: UUID, checkout: str) -> Literal["declined", "failed"]:
        """Whether it was the bank that said no to a checkout."""
        payment = done(await self.api.get(f"/checkouts/{checkout}", shopper), "a checkout")["payment"]
        told = await self.api.get(f"/payments/{payment}/events", shopper)  # none where no card was asked
        declined = told.ok and any(one["type"] == "payment.Declined" for one in told.document["items"])
        return "declined" if declined else "failed"

    async def _keep(self, shopper: UUID, card: str) -> dict[str, str]:
        """The shopper saves the card, and pays with what is saved; with its token where no test gateway knows it."""
        gateways = GatewaySettings.of(self.api.settings)
        name = next((name for name in gateways.test_gateways if gateways.gateways[name].knows(card)), "test")
        kept = {"gateway": name, "token": card, "brand": "visa", "last_four": "4242", "expires": "2099-12"}
        saved = str(uuid5(shopper, "card"))
        saving = await self.api.ask("PUT", f"/payments/methods/{saved}", shopper, "customer", document=kept)
        return {"saved": saved} if saving.ok else {"method": card}

    async def _refund(self, dice: random.Random, shopper: UUID, order: dict[str, Any]) -> int:
        """The shopper sends a piece of each of some lines back, and staff agree. What came of it, in pence."""
        lines = dice.sample(order["lines"], dice.randint(1, len(order["lines"])))
        asked = {
            "order": order["id"],
            "lines": [{"sku": one["sku"], "quantity": 1} for one in lines],
            "destination": dice.choice(["original", "wallet"]),
            "reason": "it does not fit",
        }
        made = done(await self.api.post("/refunds", asked, shopper, key=f"demo/{shopper}/refund"), "a refund")
        path, give_up, approved = f"/refunds/{made['id']}", time.monotonic() + MONEY_S_MAX, False
        while time.monotonic() < give_up:
            found = done(await self.api.get(path, shopper), "a refund")
            if found["ended_at"]:
                return int(found["amount"]) if found["status"] == "completed" else 0
            if found["status"] == "pending" and not approved:
                agreed = await self.api.post(f"{path}/approve", {}, MERCHANT, "service", key=f"demo/{shopper}/approved")
                approved = bool(done(agreed, "approving a refund"))
            await asyncio.sleep(0.05)
        raise StackError(f"{path} does not come to an end: {found}")

    async def _fill(self, dice: random.Random, shopper: UUID) -> tuple[str, int]:
        """A cart with some things in it, a guest's at first now and then. Returns it and its `contents`; 0 when it is empty."""
        opened = await self.api.post("/carts", {"currency": "GBP"}, shopper, key=f"demo/{shopper}/cart")
        cart = done(opened, "a cart")["id"]
        last = 1
        put: list[str] = []
        for sku in dice.sample(self.offers, min(len(self.offers), dice.randint(1, 4))):
            line = {"sku": sku, "quantity": dice.randint(1, 3)}
            added = await self.api.post(f"/carts/{cart}/lines", line, shopper, key=f"demo/{shopper}/{sku}")
            if added.ok:
                last, put = added.document["version"], [*put, sku]
        if len(put) > 1 and dice.random() < 0.3:
            gone = await self.api.ask("DELETE", f"/carts/{cart}/lines/{put[0]}", shopper, "customer")
            last = done(gone, "taking a line out")["version"]
        if put and dice.random() < 0.3:
            counted = {"quantity": dice.randint(4, 6)}
            path = f"/carts/{cart}/lines/{put[-1]}"
            last = done(await self.api.ask("PUT", path, shopper, "customer", document=counted), "a new quantity")[
                "version"
            ]
        if dice.random() < GUEST:
            last = await self._merge(dice, shopper, cart) or last
        return cart, last if put else 0

    async def _merge(self, dice: random.Random, shopper: UUID, cart: str) -> int | None:
        """The shopper had filled another cart before logging in."""
        token = uuid4().hex
        opened = done(await self.api.post("/carts", {"currency": "GBP", "guest_token": token}), "a guest's cart")
        line = {"sku": dice.choice(self.offers), "quantity": 1}
        added = await self.api.post(f"/carts/{opened['id']}/lines", line, headers={"Cart-Token": token})
        if not added.ok:
            return None
        merged = await self.api.post(f"/carts/{cart}/merge", {"guest": opened["id"], "guest_token": token}, shopper)
        return int(done(merged, "merging a guest's cart")["version"])

    async def _confirm(self, shopper: UUID, checkout: str, yes: bool) -> None:
        """Answer the bank's question once there is one."""
        give_up = time.monotonic() + ACTION_S_MAX
        payment = done(await self.api.get(f"/checkouts/{checkout}", shopper), "a checkout")["payment"]
        if payment is None:
            return  # the rest of the purse was enough
        while time.monotonic() < give_up:
            found = await self.api.get(f"/payments/{payment}", shopper)
            if found.ok and found.document.get("url"):
                with suppress(httpx.TransportError):  # the bank is away: its page is loaded again
                    async with httpx.AsyncClient(timeout=30) as bank:
                        await bank.post(found.document["url"], params={"answer": "yes" if yes else "no"})
                    return
            await asyncio.sleep(0.1)

    async def check(self) -> list[str]:
        """Whether the API shows each shopper what it told them."""
        wrong = await self.purses.check()
        for told in self.told:
            if told.order is None:
                listed = done(await self.api.get("/orders", told.shopper), "a customer's orders")["items"]
                wrong += [
                    f"shopper {told.shopper} {told.ending}, but has order {one['id']} {one['status']}"
                    for one in listed
                    if one["status"] != "cancelled"
                ]
                continue
            order = done(await self.api.get(f"/orders/{told.order}", told.shopper), "an order")
            if order["refunded"] != told.refunded:
                wrong.append(f"order {told.order} has {order['refunded']} refunded, not {told.refunded}")
            whole = told.refunded == told.total
            expected = "cancelled" if told.ending == "cancelled" or whole else "paid"
            if order["status"] != expected or order["total"] != told.total:
                wrong.append(
                    f"order {told.order} is {order['status']} over {order['total']}, not {expected} over {told.total}"
                )
        return wrong


async def _run(given: argparse.Namespace) -> int:
    console = Console(highlight=False)
    began = time.monotonic()
    async with Api(settings()) as api:
        console.print(
            f"{given.shoppers} shoppers, {given.at_once} at once, seed {given.seed}, at {urlsplit(api.url).netloc}"
        )
        demo = Demo(api, given.seed)
        await demo.run(given.shoppers, given.at_once, FIRST)
        shopped = time.monotonic() - began
        console.print("they have left; looking whether all stores agree …")
        differences = await asyncio.to_thread(audit, settings())
        differences += await demo.check()
        differences += [f"not one shopper {what}" for what in demo.missed()]
    table = Table("shoppers who", "", title=f"{given.shoppers} shoppers in {shopped:.1f} s")
    for ending, count in Counter(told.ending for told in demo.told).most_common():
        table.add_row(ending, str(count))
    for kinds, count in Counter(told.paid_by for told in demo.told if told.paid_by).most_common():
        table.add_row(f"paid by {kinds}", str(count))
    if demo.purses.wallets:
        table.add_row("or friends who save in a wallet", str(len(demo.purses.wallets)))
    console.print(table)
    for why, count in Counter(told.why for told in demo.told if told.why).most_common():
        console.print(f"  {count} × {why}")
    for difference in differences:
        console.print(f"[bold]differs:[/bold] {difference}", markup=True)
    if not differences:
        console.print(
            "everything that has to happen did: each way to pay, a refund, a cancellation, a declined card;\n"
            "stock, money, vouchers, wallets, refunds, orders, topics, Postgres, Redis, ClickHouse and the gateway agree"
        )
    return 1 if differences else 0


def main(argv: list[str]) -> int:
    options = argparse.ArgumentParser(prog="titan demo", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--shoppers", type=int, default=60, help=f"60; at least {len(FIRST)}, who do each thing once")
    options.add_argument("--at-once", type=int, default=8)
    options.add_argument("--seed", type=int, default=None)
    given = options.parse_args(argv)
    if given.shoppers < len(FIRST):
        options.error(f"--shoppers is at least {len(FIRST)}: one for each thing that has to happen")
    given.seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    failed = ""
    try:
        return asyncio.run(_run(given))
    except* StackError as group:
        failed = str(group.exceptions[0])
    print(f"error: {failed}", file=sys.stderr)
    return 1
