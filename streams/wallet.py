"""Real money into wallets and out again: each top-up rests on a captured payment, each withdrawal goes back to one.

A withdrawal is a refund under its own id, so whatever is repeated, the money goes out once; what came of it is told by the
payment's events.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid5

from aggregates.kernel import Commands, Event, Money, NotFound, Recorded, Refused, clock
from aggregates.payment import (
    Authorised,
    Captured,
    CaptureFailed,
    Declined,
    Methods,
    Payment,
    Refunded,
    RefundFailed,
    Voided,
)
from aggregates.wallet import TopUp, Wallet, WithdrawalRequested, wallet_id
from aggregates.wallet.topup import Started
from streams.kernel import NOTHING, Saga, Step, Tell, open_as, reacts, tell


def top_up_of(e: Event) -> UUID:
    """The top-up that a payment's event is for: it stands where an order's payment names the order."""
    order: UUID = e.order  # type: ignore[attr-defined]  # every event of a payment names its order
    return order


def use_saved(t: TopUp) -> Tell:
    assert t.saved is not None
    return tell(t.owner, Methods.use, t.saved, t.gateway, t.method, clock.now())


top_up = Saga(
    TopUp,
    starts=Started,
    pivot="take the money",
    steps=[
        Step(
            "use the saved method",
            within=timedelta(seconds=30),
            when=lambda t: t.saved is not None,
            do=use_saved,
            undo=NOTHING,
        ),
        Step(
            "authorise the payment",
            within=timedelta(minutes=15),  # the customer may have to confirm it at the bank
            until=Authorised,
            unless=(Declined, Voided),
            match=top_up_of,
            do=lambda t: open_as(t.payment, Payment, t.id, t.owner, t.amount, t.method, t.gateway, t.country),
            undo=lambda t: tell(t.payment, Payment.void),
        ),
        Step(
            "take the money",
            within=timedelta(minutes=5),
            until=Captured,
            unless=CaptureFailed,
            match=top_up_of,
            do=lambda t: tell(t.payment, Payment.capture, t.capture, t.amount),
        ),
        Step(
            "credit the wallet",
            within=timedelta(minutes=1),
            do=lambda t: tell(t.wallet, Wallet.deposit, t.amount, "topup", t.id),
        ),
    ],
)


@reacts
async def pay_out(r: Recorded[WithdrawalRequested], commands: Commands) -> None:
    """Have a withdrawal refunded by the payment that it names; where that refuses, the money stays in the wallet."""
    e = r.event
    wallet = await commands.load(Wallet, e.id)
    refund = commands.under(command=uuid5(e.withdrawal, "refund"))
    try:
        await refund.tell(e.payment, Payment.refund, e.withdrawal, Money(e.amount, wallet.currency))
    except Refused as no:
        await commands.tell(e.id, Wallet.withdrawal_failed, e.withdrawal, str(no))


@reacts
async def paid_out(r: Recorded[Refunded | RefundFailed], commands: Commands) -> None:
    """Tell the wallet what came of a withdrawal. Of any other refund it knows nothing, and does nothing."""
    e = r.event
    payment = await commands.load(Payment, e.id)
    wallet = wallet_id(payment.customer, payment.amount.currency)
    try:
        if isinstance(e, Refunded):
            await commands.tell(wallet, Wallet.withdrawn, e.refund)
        else:
            await commands.tell(wallet, Wallet.withdrawal_failed, e.refund, e.reason)
    except NotFound:
        return  # the customer has no wallet, so it is no withdrawal
