"""What an owner may spend, each movement with the balance after it, and what is held, topped up and withdrawn."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.kernel import Event
from aggregates.wallet import (
    Captured,
    Deposited,
    Expired,
    Frozen,
    Held,
    Opened,
    Received,
    Refunded,
    Released,
    Sent,
    Spent,
    TopUpReversed,
    Unfrozen,
    WithdrawalFailed,
    WithdrawalRequested,
    Withdrawn,
    payment_of,
    wallet_id,
)
from aggregates.wallet.topup import (
    Finished,
    Started,
    StepBegun,
    StepDone,
    StepFailed,
    StepOverdue,
    StepRefused,
    StepRetried,
    StepUndone,
)
from projections.kernel import Change, Table, ignore, project

Movement = Literal[
    "topup", "topup reversed", "credit", "refund", "sent", "received", "withdrawing", "withdrawn", "withdrawal failed", "held", "released",
    "captured", "spent", "expired",
]  # fmt: skip

# Amounts are minor units of the wallet's currency.
wallets = Table(
    "wallets",
    key="id",
    id=UUID,
    owner=UUID,
    currency=str,
    balance=int,  # can be spent
    held=int,  # for orders
    withdrawing=int,
    opened_at=datetime,
    changed_at=datetime,
    version=int,
    person="owner",
    indexes=[("owner", "opened_at"), ("opened_at",)],
)
wallet_entries = Table(
    "wallet_entries",
    key=("wallet", "version"),
    wallet=UUID,
    version=int,
    at=datetime,
    what=Movement,
    amount=int,  # by which the balance changed
    balance=int,  # after it
    reference=UUID,  # of the transfer, escrow, withdrawal or top-up
    other=UUID | None,  # the wallet, or the payment, on the other side
    part_of="wallet",
)
escrows = Table(
    "escrows",
    key=("wallet", "escrow"),
    wallet=UUID,
    escrow=UUID,
    amount=int,  # held in all
    left=int,  # held still
    captured=int,
    refunded=int,
    status=Literal["held", "frozen", "released", "captured", "spent", "expired"],
    reason=str | None,  # of a dispute
    expires_at=datetime | None,  # not by itself
    held_at=datetime,
    ended_at=datetime | None,
    part_of="wallet",
)
top_ups = Table(
    "top_ups",
    key="id",
    id=UUID,
    wallet=UUID,
    payment=UUID,
    amount=int,
    currency=str,
    status=Literal["running", "done", "failed"],
    why=str,  # it failed
    started_at=datetime,
    changed_at=datetime,
    part_of="wallet",
    indexes=[("wallet", "started_at")],
)

ignore(StepBegun, StepDone, StepUndone, StepFailed, StepRetried)


def wallet_of(owner: UUID, currency: str) -> UUID:
    """The row of `wallets` of an owner's wallet in a currency."""
    return wallet_id(owner, currency)


@project
def opened(e: Opened) -> list[Change]:
    return [_now(e, owner=e.owner, currency=e.currency, opened_at=e.at)]


@project
def deposited(e: Deposited) -> list[Change]:
    return _moved(e, e.source, e.amount, e.reference, payment_of(e.reference) if e.source == "topup" else None)


@project
def top_up_reversed(e: TopUpReversed) -> list[Change]:
    return _moved(e, "topup reversed", -e.amount, e.topup, payment_of(e.topup))


@project
def sent(e: Sent) -> list[Change]:
    return _moved(e, "sent", -e.amount, e.transfer, e.recipient)


@project
def received(e: Received) -> list[Change]:
    return _moved(e, "received", e.amount, e.transfer, e.sender)


@project
def withdrawal_requested(e: WithdrawalRequested) -> list[Change]:
    out = wallets.add(e.id, withdrawing=e.amount)
    return [out, *_moved(e, "withdrawing", -e.amount, e.withdrawal, e.payment)]


@project
def withdrawn(e: Withdrawn) -> list[Change]:
    return [wallets.add(e.id, withdrawing=-e.amount), *_moved(e, "withdrawn", 0, e.withdrawal)]


@project
def withdrawal_failed(e: WithdrawalFailed) -> list[Change]:
    return [wallets.add(e.id, withdrawing=-e.amount), *_moved(e, "withdrawal failed", e.amount, e.withdrawal)]


@project
def held(e: Held) -> list[Change]:
    row = _escrow(e, amount=e.amount, left=e.amount, status="held", expires_at=e.expires_at, held_at=e.at)
    return [wallets.add(e.id, held=e.amount), row, *_moved(e, "held", -e.amount, e.escrow)]


@project
def released(e: Released) -> list[Change]:
    return [*_left(e, "released"), *(_moved(e, "released", e.amount, e.escrow) if e.amount else [_now(e)])]


@project
def captured(e: Captured) -> list[Change]:
    more = escrows.add((e.id, e.escrow), captured=e.amount)
    return [*_left(e, "captured"), more, *_moved(e, "captured", 0, e.escrow, e.payee)]


@project
def spent(e: Spent) -> list[Change]:
    return [*_left(e, "spent"), *_moved(e, "spent", 0, e.escrow)]


@project
def expired(e: Expired) -> list[Change]:
    return [*_left(e, "expired"), *_moved(e, "expired", e.amount, e.escrow)]


@project
def refunded(e: Refunded) -> list[Change]:
    return [escrows.add((e.id, e.escrow), refunded=e.amount), *_moved(e, "refund", e.amount, e.escrow, e.payee)]


@project
def frozen(e: Frozen) -> list[Change]:
    return [_escrow(e, status="frozen", reason=e.because or e.reason), _now(e)]


@project
def unfrozen(e: Unfrozen) -> list[Change]:
    return [_escrow(e, status="held", expires_at=e.expires_at), _now(e)]


@project
def started(e: Started) -> list[Change]:
    return [
        top_ups.put(
            e.id,
            wallet=e.wallet,
            payment=payment_of(e.id),
            amount=e.amount.amount,
            currency=e.amount.currency,
            status="running",
            started_at=e.at,
            changed_at=e.at,
        )
    ]


@project
def turned_back(e: StepRefused | StepOverdue) -> list[Change]:
    why = e.why if isinstance(e, StepRefused) else f"{e.step}: no answer in time"
    return [top_ups.put(e.id, why=why, changed_at=e.at)]


@project
def finished(e: Finished) -> list[Change]:
    done = e.ending == "done"
    return [top_ups.put(e.id, status="done" if done else "failed", why=e.why, changed_at=e.at)]


Entry = (
    Deposited | TopUpReversed | Sent | Received | WithdrawalRequested | Withdrawn | WithdrawalFailed | Held | Released | Captured
    | Spent | Expired | Refunded
)  # fmt: skip


def _now(e: Event, **columns: Any) -> Change:
    return wallets.put(e.id, changed_at=e.at, version=e.version, **columns)


def _moved(e: Entry, what: Movement, amount: int, reference: UUID, other: UUID | None = None) -> list[Change]:
    """The wallet's row, and a line of its statement."""
    line = wallet_entries.put(
        (e.id, e.version), at=e.at, what=what, amount=amount, balance=e.balance, reference=reference, other=other
    )
    return [_now(e, balance=e.balance), line]


def _escrow(e: Held | Released | Captured | Spent | Expired | Frozen | Unfrozen, **columns: Any) -> Change:
    return escrows.put((e.id, e.escrow), **columns)


def _left(e: Released | Captured | Spent | Expired, ending: str) -> list[Change]:
    """What is held is less, and the escrow at its end when nothing is."""
    end = {} if e.left else {"status": ending, "ended_at": e.at}
    return [wallets.add(e.id, held=-e.amount), _escrow(e, left=e.left, **end)]
