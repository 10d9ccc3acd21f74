"""A cancelled order that was paid: each part of its money goes back to where it came from, and its pieces to the shelf, once each.

Where a part can't go back to (the bank refuses, the payment is not ours, the voucher has ended), it becomes money in the
customer's wallet, or store credit of the customer's.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from uuid import UUID, uuid5

from aggregates.inventory import Stock, stock_id
from aggregates.kernel import Commands, Conflict, Money, NotFound, Recorded, Refused, clock
from aggregates.order import Cancelled
from aggregates.payment import NOT_COVERED, Payment, RefundFailed
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet, wallet_id
from streams.kernel import reacts

log = logging.getLogger(__name__)


def refund_of(order: UUID) -> UUID:
    """The one refund of a cancelled order: the reference of all that goes back."""
    return uuid5(order, "cancellation")


def instead_of_card(refund: UUID) -> UUID:
    """What the customer's wallet gets for what the card can't take back."""
    return uuid5(refund, "instead of the card")


def credit_of(refund: UUID, voucher: UUID) -> UUID:
    """The store credit that stands for a voucher which can't take its part back."""
    return uuid5(refund, f"credit for {voucher}")


@reacts
async def give_back(r: Recorded[Cancelled], commands: Commands) -> None:
    """All commands have ids of the order's own, so whatever is repeated, each has its effect once."""
    e = r.event
    refund = refund_of(e.id)
    for part in e.parts:
        money = Money(part.amount, e.currency)
        match part.kind:
            case "card":
                try:
                    await commands.under(command=uuid5(refund, "money")).tell(
                        part.source, Payment.give_back, refund, money
                    )
                except NotFound:  # it was paid elsewhere
                    await to_wallet(commands, e.customer, money, refund)
            case "wallet":
                own = commands.under(command=uuid5(refund, "wallet"))
                await own.tell(part.source, Wallet.deposit, money, "refund", refund)
            case "voucher":
                await to_voucher(commands, part.source, e.customer, money, refund)
    if e.lines:
        calls = [
            (stock_id(one.sku, one.location), Stock.receive, (one.quantity, f"cancelled order {e.id}", refund))
            for one in e.lines
        ]
        await commands.under(command=uuid5(refund, "stock")).tell_all(calls)


@reacts
async def card_refused(r: Recorded[RefundFailed], commands: Commands) -> None:
    """The bank does not take the money of a cancelled order back: the customer's wallet does. What the payment never had, or has given
    back already, nobody gets."""
    e = r.event
    if e.refund == refund_of(e.order) and e.code == NOT_COVERED:
        log.error("ALARM: cancelled order %s, payment %s: %s; somebody has to look at it", e.order, e.id, e.reason)
    elif e.refund == refund_of(e.order):
        payment = await commands.load(Payment, e.id)
        await to_wallet(commands, payment.customer, e.amount, e.refund)


async def to_wallet(commands: Commands, customer: UUID, money: Money, refund: UUID) -> None:
    """What can't go back to a card is the customer's all the same: in a wallet, opened if need be."""
    wallet = wallet_id(customer, money.currency)
    opening = commands.under(command=uuid5(refund, "open the wallet"))
    with suppress(Conflict):  # there is one
        await opening.open_as(wallet, Wallet.open, customer, money.currency)
    instead = instead_of_card(refund)  # the wallet may get a part of its own, too
    await commands.under(command=instead).tell(wallet, Wallet.deposit, money, "refund", instead)


async def to_voucher(commands: Commands, voucher: UUID, customer: UUID, money: Money, refund: UUID) -> None:
    """Prepaid value goes back to its voucher; where that has ended, or is another person's now, it is store credit."""
    credit = credit_of(refund, voucher)
    try:
        await commands.load(Voucher, credit)
        return
    except NotFound:
        pass
    try:
        own = commands.under(command=uuid5(refund, str(voucher)))
        await own.tell(voucher, Voucher.refund, refund, money, customer, clock.now())
    except (Refused, NotFound):
        await commands.under(command=credit).open_as(credit, Voucher.credit, money, customer, None, clock.now())
