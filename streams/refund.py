"""Refund: the order sets aside what goes back, somebody decides, and each part of the money goes back to where it came from.

The order comes first, so that no two refunds have the same piece or cent; a refund that is turned down frees what it had. From the
decision on it is only repeated: a bank that refuses, a payment that is not ours, a voucher that has ended do not hurt, because the
customer's wallet and store credit make up for them. But where the payment is ours and has less than the order believes, its part is
withheld: it was never paid, or is back already, and somebody has to look.
"""

from __future__ import annotations

from datetime import timedelta

from aggregates.inventory import Stock, stock_id
from aggregates.kernel import Money, NotFound, Refused, clock
from aggregates.order import Order, RefundBegun
from aggregates.payment import NOT_COVERED, Payment, Refunded, RefundFailed
from aggregates.refund import DECIDE, DECISION, SET_ASIDE, TO_CARD, TO_VOUCHERS, Approved, Refund, Rejected, Requested
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet, wallet_id
from streams.kernel import Effect, Saga, Step, Tell, Wait, ensure, open_as, tell


def allotted(r: Refund, e: RefundBegun) -> Tell | None:
    """What the order has set aside, for the refund to know."""
    if r.amount or r.decision:
        return None
    return tell(r.id, Refund.allot, e.currency, e.lines, e.shipping, e.amount, e.tenders, e.altogether)


def money(r: Refund, amount: int) -> Money:
    return Money(amount, r.currency)


def to_card(r: Refund) -> Effect:
    assert r.card is not None
    return tell(r.card.source, Payment.give_back, r.id, money(r, r.card.amount))


def not_covered(r: Refund, e: Refunded | RefundFailed) -> Tell | None:
    """That the payment has less than the order believes, which is no bank's word: the wallet doesn't make up for it."""
    if r.withheld or not isinstance(e, RefundFailed) or e.code != NOT_COVERED:
        return None
    return tell(r.id, Refund.withhold, e.reason)


def to_vouchers(r: Refund) -> list[Tell]:
    now = clock.now()
    return [tell(one.source, Voucher.refund, r.id, money(r, one.amount), r.customer, now) for one in r.vouchers]


def put_back(r: Refund) -> list[Tell]:
    return [
        tell(stock_id(one.sku, one.location), Stock.receive, count, f"refund {r.id}", r.id) for one, count in r.pieces
    ]


A_MINUTE = timedelta(minutes=1)

refund = Saga(
    Refund,
    starts=Requested,
    pivot=DECIDE,
    steps=[
        Step(
            SET_ASIDE,
            within=timedelta(minutes=10),
            until=RefundBegun,
            match=lambda e: e.refund,
            do=lambda r: tell(r.order, Order.begin_refund, r.id, r.asked, r.customer, r.asked_at, r.window, r.shipping),
            undo=lambda r: tell(r.order, Order.drop_refund, r.id),
            learn=allotted,
        ),
        Step(
            DECIDE,
            within=DECISION + timedelta(days=1),  # it lapses before
            until=Approved,
            unless=Rejected,
            match=lambda e: e.id,
            do=lambda r: Wait(r.id),
        ),
        Step(
            TO_CARD,
            within=timedelta(hours=1),
            when=lambda r: r.card is not None,
            until=Refunded,
            unless=RefundFailed,
            match=lambda e: e.refund,
            do=to_card,
            learn=not_covered,
            unhurt=(RefundFailed, NotFound),
        ),
        Step(
            "have a wallet",
            within=A_MINUTE,
            when=lambda r: r.to_wallet > 0,
            do=lambda r: ensure(wallet_id(r.customer, r.currency), Wallet.open, r.customer, r.currency),
        ),
        Step(
            "give back to the wallet",
            within=A_MINUTE,
            when=lambda r: r.to_wallet > 0,
            do=lambda r: tell(wallet_id(r.customer, r.currency), Wallet.deposit, money(r, r.to_wallet), "refund", r.id),
        ),
        Step(
            TO_VOUCHERS,
            within=A_MINUTE,
            when=lambda r: bool(r.vouchers),
            do=to_vouchers,
            unhurt=(Refused, NotFound),
        ),
        Step(
            "issue store credit",
            within=A_MINUTE,
            when=lambda r: r.to_credit > 0,
            do=lambda r: open_as(r.credit, Voucher.credit, money(r, r.to_credit), r.customer, None, clock.now()),
        ),
        Step("settle it on the order", within=A_MINUTE, do=lambda r: tell(r.order, Order.settle_refund, r.id)),
        Step("put the pieces back", within=A_MINUTE, when=lambda r: bool(r.pieces), do=put_back),
    ],
)
