"""The money of the whole platform, kept a second time: who paid for what, what came back, and whether it all is somewhere.

Every order that was paid names its tenders; each must be found where it was taken from (a card's capture, a wallet's spending, a
voucher's redemption), and nothing may have been taken besides. What goes back goes back once, to the unit, wherever it goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid5

from aggregates.checkout import Checkout
from aggregates.kernel import Aggregate, Event
from aggregates.kernel.process import Ending
from aggregates.order import Order
from aggregates.payment import Captured, Payment, Refunded
from aggregates.refund import Refund
from aggregates.voucher import Issued, Redeemed, Voucher
from aggregates.voucher import Refunded as PutBack
from aggregates.wallet import PEERS, Deposited, Spent, Wallet, Withdrawn
from streams.cancellation import instead_of_card, refund_of

A = TypeVar("A", bound=Aggregate)
FOLDED: tuple[type[Aggregate], ...] = (Checkout, Order, Payment, Refund, Voucher, Wallet)
"""Whose states are looked at."""


class Difference(NamedTuple):
    """What was found under `what` and `key`, and what it should be."""

    what: str
    key: Any
    told: int
    true: int


class Books:
    """`see` every event of the store, in order; then ask for the `differences`. `states`: the aggregates by class and id."""

    def __init__(self, states: Mapping[type[Aggregate], Mapping[UUID, Any]]) -> None:
        self.states = states
        self.taken = Counter[tuple[str, UUID, UUID]]()  # (kind, source, order) → minor units
        self.returned = Counter[UUID]()  # refund → by cards
        self.given = Counter[UUID]()  # refund → into wallets and vouchers
        self.credits: dict[UUID, int] = {}
        self.topped_up, self.withdrawn = Counter[UUID](), Counter[UUID]()

    def see(self, event: Event) -> None:
        match event:
            case Captured():
                self.taken["card", event.id, event.order] += event.amount.amount
            case Spent():
                self.taken["wallet", event.id, event.order] += event.amount
            case Redeemed():
                self.taken["voucher", event.id, event.reservation] += event.amount
            case Refunded():
                self.returned[event.refund] += event.amount.amount
            case PutBack():
                self.given[event.refund] += event.amount
            case Deposited(source="refund"):
                self.given[event.reference] += event.amount
            case Deposited(source="topup"):
                self.topped_up[event.reference] += event.amount
            case Withdrawn():
                self.withdrawn[event.withdrawal] += event.amount
            case Issued(kind="credit"):
                self.credits[event.id] = event.value.amount

    def _all(self, cls: type[A]) -> list[A]:
        """The aggregates of a class; there may be others of its domain."""
        return [one for one in self.states[cls].values() if isinstance(one, cls)]

    def kept(self, gateway: str) -> Counter[str]:
        """What cards brought in at a gateway and did not get back, by currency."""
        found = Counter[str]()
        for payment in self._all(Payment):
            if payment.gateway == gateway:
                found[payment.amount.currency] += payment.taken - payment.returned
        return found

    def differences(self) -> Iterator[Difference]:
        yield from self._paid()
        yield from self._came_back()
        yield from self._at_rest()
        between = Counter[str]()
        for wallet in self._all(Wallet):
            between[wallet.currency] += wallet.ledger[PEERS]
        yield from compared("money made between wallets in", between, Counter())

    def _paid(self) -> Iterator[Difference]:
        """Each tender of an order, or top-up, was taken, and nothing else was."""
        due = Counter[tuple[str, UUID, UUID]]()
        for order in self._all(Order):
            for one in order.tenders if order.paid else ():
                due[one.kind, one.source, order.id] += one.amount
        orders = self.states[Checkout].keys() | self.states[Order].keys()
        taken = Counter[tuple[str, UUID, UUID]]()
        for (kind, source, id), amount in self.taken.items():
            if kind == "card" and id in self.topped_up:
                taken["top-up", source, id] = amount
                due["top-up", source, id] = self.topped_up[id]
            elif kind != "voucher" or id in orders:  # a shop's till redeems vouchers for what it knows itself
                taken[kind, source, id] = amount
        yield from compared("money taken", taken, due)

    def _came_back(self) -> Iterator[Difference]:
        """Orders that were cancelled after they were paid, refunds and withdrawals have brought their money back; nothing else has."""
        due = self.withdrawn.copy()
        found = self.returned.copy()
        for order in self._all(Order):
            if order.paid and order.status == "cancelled":
                refund = refund_of(order.id)
                due[refund] += order.total - sum(order.refunded.values())  # all of it was refunded, or nothing
                found[refund] += self.given[refund] + self.given[instead_of_card(refund)]
                for one in order.tenders:
                    found[refund] += self.credits.get(uuid5(refund, f"credit for {one.source}"), 0)
            for id, amount in order.refunded.items():
                asked = self.states[Refund].get(id)
                due[id] += amount - (asked.withheld if asked else 0)
                found[id] += self.given[id] + self.credits.get(uuid5(id, "credit"), 0)
        for asked in self._all(Refund):
            if asked.progress.ended and asked.order in self.states[Order]:
                settled = self.states[Order][asked.order].refunded.get(asked.id, 0)
                wanted = asked.amount if asked.progress.ended is Ending.DONE else 0
                yield from compared("settled on the order of refund", {asked.id: settled}, {asked.id: wanted})
        yield from compared("money back", found, due)

    def _at_rest(self) -> Iterator[Difference]:
        """Nothing is set aside for a checkout that has ended."""
        over = {id for id, one in self.states[Checkout].items() if one.progress.ended}
        for voucher in self._all(Voucher):
            for id in voucher.quota.holds.keys() & over:
                yield Difference("still reserved of a voucher for", id, sum(voucher.quota.holds[id].values()), 0)
        for wallet in self._all(Wallet):
            for escrow in wallet.escrows.keys() & over:
                yield Difference(f"still held in wallet {wallet.id} for", escrow, wallet.escrows[escrow].amount, 0)


def compared(what: str, told: Mapping[Any, int], true: Mapping[Any, int]) -> Iterator[Difference]:
    """Where two accounts of the same are not alike; what is in neither is 0."""
    for key in sorted(told.keys() | true.keys(), key=str):
        if told.get(key, 0) != true.get(key, 0):
            yield Difference(what, key, told.get(key, 0), true.get(key, 0))
