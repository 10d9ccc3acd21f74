"""What the demo's shoppers have beside a card: wallets that they fill from one and vouchers that they are given.

They pay with them, save in them and give friends money; what should be left at the end is compared with what the API shows.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from infra.errors import StackError
from infra.shopper import Answer, Api

SAVING_CARDS = ("tok_visa", "tok_mastercard", "tok_webhookTwice", "tok_declined")
WAYS = {
    ("card",): 50,
    ("voucher", "card"): 12,
    ("wallet", "card"): 12,
    ("voucher", "wallet", "card"): 12,
    ("voucher", "wallet"): 6,
    ("voucher",): 6,
    ("wallet",): 6,
}
"""What people pay with and how often, in shares. The last of them pays what the others leave."""
LITTLE, SOME, ALL = 100, 2_000, 100_000  # pence in a purse: less than any purchase, less than most, and more than any
MONEY_S_MAX = 120.0  # for a top-up, a withdrawal or a refund to end


@dataclass
class Purse:
    """A shopper's, before the purchase: pence in each part; `order`: what came of it, if it was bought and not cancelled."""

    shopper: UUID
    card: bool = True
    voucher: str | None = None
    code: str = ""
    given: int = 0
    wallet: str | None = None
    saved: int = 0
    order: UUID | None = None

    def paying(self, card: dict[str, str]) -> dict[str, Any]:
        """What goes into POST /checkouts. `card`: what says by which one."""
        paying: dict[str, Any] = {"vouchers": [self.code] if self.voucher else [], "wallet": self.wallet is not None}
        return paying | (card if self.card else {})


@dataclass
class Purses:
    """`wallets`: what each should have that nobody shops with, (owner, wallet) → pence."""

    api: Api
    purses: list[Purse] = field(default_factory=list)
    wallets: dict[tuple[UUID, str], int] = field(default_factory=dict)

    async def fill(self, way: Sequence[str], some: int, shopper: UUID) -> Purse:
        """A purse for one purchase that is paid so. `some`: pence in all parts of it but the last one, which has more than enough."""
        purse = Purse(shopper, card="card" in way)
        pounds = {"currency": "GBP"}
        if "voucher" in way:
            purse.given = some if way[-1] != "voucher" else ALL
            # Without a key: an answer that is lost takes its code along, and another voucher does no harm.
            issued = {**pounds, "amount": purse.given}
            gift = done(await self.api.post("/vouchers", issued, shopper, "service"), "a voucher")
            purse.voucher, purse.code = gift["id"], gift["code"]
        if "wallet" in way:
            wallet = (await self._post("/wallets", pounds, shopper, shopper))["id"]
            saved = some if way[-1] != "wallet" else ALL
            if await self._top_up(wallet, saved, "tok_visa", shopper) is not None:
                purse.wallet, purse.saved = wallet, saved
        self.purses.append(purse)
        return purse

    async def save(self, dice: random.Random, shopper: UUID) -> None:
        """Fill a wallet from a card, give a part to a friend and take a part back to the card."""
        friend, amount = uuid4(), dice.randint(1_000, 10_000)
        given, back = dice.randint(1, amount // 2), dice.randint(1, amount // 2)
        pounds = {"currency": "GBP"}
        mine, theirs = [(await self._post("/wallets", pounds, one, shopper))["id"] for one in (shopper, friend)]
        path = f"/wallets/{mine}"
        top_up = await self._top_up(mine, amount, dice.choice(SAVING_CARDS), shopper)
        if top_up is None:
            self.wallets |= {(shopper, mine): 0, (friend, theirs): 0}
            return
        await self._post(f"{path}/transfers", {**pounds, "amount": given, "to": theirs}, shopper, shopper)
        await self._post(f"{path}/withdrawals", {**pounds, "amount": back, "topup": top_up}, shopper, shopper)
        await self._until(
            f"{path}/statement",
            shopper,  # a read model whose server has just crashed may lack its last lines for a moment
            lambda lines: lines["items"] and lines["items"][0]["what"] == "withdrawn",
        )
        self.wallets |= {(shopper, mine): amount - given - back, (friend, theirs): given}

    async def check(self) -> list[str]:
        """What is in purses that should not be, or is not. Money that is on its way back is waited for."""
        expected = {(owner, f"/wallets/{id}"): pence for (owner, id), pence in self.wallets.items()}
        for purse in self.purses:
            left = await self._left(purse)
            expected |= {(purse.shopper, path): pence for path, pence in left.items()}
        wrong = []
        for (owner, path), pence in expected.items():
            try:
                await self._until(path, owner, lambda row: row["balance"] == pence, "service")  # noqa: B023
            except StackError as error:
                wrong.append(f"{path} should have {pence}: {error}")
        return wrong

    async def _left(self, purse: Purse) -> dict[str, int]:
        """What should be in a purse's voucher and wallet: what was there, without what was paid, with what came back."""
        voucher, wallet = f"/vouchers/{purse.voucher}", f"/wallets/{purse.wallet}"
        left = ({voucher: purse.given} if purse.voucher else {}) | ({wallet: purse.saved} if purse.wallet else {})
        if purse.order is None or not left:
            return left
        shown = done(await self.api.get(f"/orders/{purse.order}", purse.shopper), "an order")
        where = {"voucher": voucher, "wallet": wallet}
        for one in shown["tenders"]:
            if one["kind"] != "card":
                left[where[one["kind"]]] -= one["amount"]
        listed = done(await self.api.get("/refunds", purse.shopper, order=str(purse.order)), "an order's refunds")
        for refund in listed["items"]:
            for one in refund["tenders"] if refund["status"] == "completed" else ():
                instead = one["kind"] == "card" and (refund["destination"] == "wallet" or refund["card_refused"])
                kind = "wallet" if instead else one["kind"]
                if kind in where and where[kind] in left:
                    left[where[kind]] += one["amount"]
        return left

    async def _top_up(self, wallet: str, amount: int, card: str, by: UUID) -> str | None:
        """Money of a card for a wallet. The top-up once it is there, None when the card was declined."""
        asked = {"currency": "GBP", "amount": amount, "method": card}
        made = await self._post(f"/wallets/{wallet}/topups", asked, by, by)
        found = await self._until(
            f"/wallets/{wallet}/topups", by, lambda found: found["items"] and found["items"][0]["status"] != "running"
        )
        return str(made["id"]) if found["items"][0]["status"] == "done" else None

    async def _post(self, path: str, document: dict[str, Any], by: UUID, whose: UUID) -> Any:
        return done(await self.api.post(path, document, by, key=f"demo/{whose}/{by}{path}"), path)

    async def _until(self, path: str, by: UUID, ended: Callable[[Any], bool], role: str = "customer") -> Any:
        give_up = time.monotonic() + MONEY_S_MAX
        while not ended(found := done(await self.api.get(path, by, role), path)):
            if time.monotonic() > give_up:
                raise StackError(f"{path} does not come to an end: {found}")
            await asyncio.sleep(0.1)
        return found


def done(answer: Answer, what: str, spent: int | None = None) -> Any:
    """The document of an answer that has to be good. Raises StackError.

    `spent`: the status of something that counts once when it has counted already; None is answered then.
    """
    if answer.status == spent:
        return None
    if not answer.ok:
        raise StackError(f"{what}: {answer.status} {answer.why}")
    return answer.document
