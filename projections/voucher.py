"""Vouchers and what is left of them, and each part that was reserved or spent. Nothing of a code but its hint."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.kernel import Event
from aggregates.voucher import (
    Expired,
    Issued,
    Kind,
    Lapsed,
    Redeemed,
    Refunded,
    Released,
    Reserved,
    Status,
    Transferred,
    Voided,
)
from projections.kernel import Change, Table, project

Use = Literal["reserved", "redeemed", "released", "lapsed", "refunded"]

# Amounts are minor units of the voucher's currency.
vouchers = Table(
    "vouchers",
    key="id",
    id=UUID,
    kind=Kind,
    holder=UUID | None,
    batch=UUID | None,
    hint=str,
    currency=str,
    value=int,
    balance=int,
    reserved=int,
    redeemed=int,
    status=Status,
    reason=str | None,  # it is void
    expires_at=datetime | None,
    issued_at=datetime,
    changed_at=datetime,
    version=int,
    person="holder",
    indexes=[("holder", "issued_at"), ("batch", "issued_at"), ("issued_at",)],
)
voucher_uses = Table(
    "voucher_uses",
    key=("voucher", "reservation"),
    voucher=UUID,
    reservation=UUID,
    amount=int,
    status=Use,
    expires_at=datetime | None,
    at=datetime,
    part_of=("voucher", "reservation"),
)


@project
def issued(e: Issued) -> list[Change]:
    return _now(
        e,
        kind=e.kind,
        holder=e.holder,
        batch=e.batch,
        hint=e.hint,
        currency=e.value.currency,
        value=e.value.amount,
        balance=e.value.amount,
        status="active",
        expires_at=e.expires_at,
        issued_at=e.at,
    )


@project
def reserved(e: Reserved) -> list[Change]:
    use = _use(e, "reserved", amount=e.amount, expires_at=e.expires_at)
    return [vouchers.add(e.id, reserved=e.amount), use, *_now(e, balance=e.balance)]


@project
def redeemed(e: Redeemed) -> list[Change]:
    moved = vouchers.add(e.id, reserved=-e.amount, redeemed=e.amount)
    return [moved, _use(e, "redeemed"), *_now(e, balance=e.balance)]


@project
def freed(e: Released | Lapsed) -> list[Change]:
    status: Use = "released" if isinstance(e, Released) else "lapsed"
    return [vouchers.add(e.id, reserved=-e.amount), _use(e, status), *_now(e, balance=e.balance)]


@project
def refunded(e: Refunded) -> list[Change]:
    """A use of its own, under the refund's id."""
    use = voucher_uses.put((e.id, e.refund), status="refunded", amount=e.amount, at=e.at)
    return [vouchers.add(e.id, redeemed=-e.amount), use, *_now(e, balance=e.balance)]


@project
def transferred(e: Transferred) -> list[Change]:
    return _now(e, holder=e.holder)


@project
def voided(e: Voided) -> list[Change]:
    return _now(e, status="void", reason=e.because or e.reason, balance=0)


@project
def expired(e: Expired) -> list[Change]:
    return _now(e, status="expired", balance=0)


def _now(e: Event, **columns: Any) -> list[Change]:
    return [vouchers.put(e.id, changed_at=e.at, version=e.version, **columns)]


def _use(e: Reserved | Redeemed | Released | Lapsed, status: Use, **columns: Any) -> Change:
    return voucher_uses.put((e.id, e.reservation), status=status, at=e.at, **columns)
