"""What a purchase is paid with: vouchers first, then a wallet, then a card. Money goes back the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from aggregates.kernel.errors import require
from aggregates.kernel.money import Tender, TenderKind

TENDERS_MAX, VOUCHERS_MAX = 12, 10
BACK: dict[TenderKind, int] = {"card": 0, "wallet": 1, "voucher": 2}
"""Prepaid value is spent first and given back last, so that real money goes back to the card as long as there is any."""


def shared(total: int, offers: Sequence[Tender], payment: UUID) -> tuple[Tender, ...]:
    """Who pays how much of a total, in the order of use: vouchers as they come, the wallet, and a card what is left.

    None pays more than it offers; what pays nothing is left out. `payment`: the card's. Raises `Refused`.
    """
    vouchers = [one for one in offers if one.kind == "voucher"]
    wallets = [one for one in offers if one.kind == "wallet"]
    require(len(vouchers) <= VOUCHERS_MAX, f"at most {VOUCHERS_MAX} vouchers pay for a purchase")
    require(len({one.source for one in vouchers}) == len(vouchers), "a voucher is named twice")
    require(len(wallets) <= 1, "one wallet pays for a purchase")
    tenders, left = [], total
    for one in (*vouchers, *wallets):
        if paid := min(one.amount, left):
            tenders.append(Tender(one.kind, one.source, paid))
            left -= paid
    return (*tenders, Tender("card", payment, left)) if left else tuple(tenders)


def tendered(tenders: Sequence[Tender], payment: UUID | None, amount: int) -> tuple[Tender, ...]:
    """The parts of an amount; without any it was all paid by card. Raises `Refused` for parts that do not come to it."""
    parts = tuple(tenders) or stated((), payment, amount)
    require(len(parts) <= TENDERS_MAX, f"a purchase is paid in at most {TENDERS_MAX} parts")
    require(all(part.amount > 0 for part in parts), "each part of what is paid is at least 1")
    require(len({part.source for part in parts}) == len(parts), "each part of what is paid has a source of its own")
    came = sum(part.amount for part in parts)
    require(came == amount, f"the parts come to {came}, not {amount}")
    cards = [part.source for part in parts if part.kind == "card"]
    require(
        cards == ([payment] if payment else []),
        "the card's part is the payment's, and there is one if there is a payment",
    )
    return parts


def stated(tenders: tuple[Tender, ...], payment: UUID | None, amount: int) -> tuple[Tender, ...]:
    """The parts that an event tells of; one that is older than they are was all paid by card."""
    return tenders or ((Tender("card", payment, amount),) if payment and amount else ())


def back(left: Sequence[Tender], amount: int) -> tuple[Tender, ...]:
    """Of what is left of each part, what goes back for an amount, in this order. It is at most all that is left."""
    assert amount <= sum(part.amount for part in left), (amount, left)
    given = []
    for part in sorted(left, key=lambda part: BACK[part.kind]):
        if units := min(part.amount, amount):
            given.append(Tender(part.kind, part.source, units))
            amount -= units
    return tuple(given)
