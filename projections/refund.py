"""Refunds: what was asked back, what was decided, and where the money went; for customers, by order, and as the staff's queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.kernel import Event
from aggregates.kernel.money import Tender
from aggregates.kernel.refunding import Return, Returned
from aggregates.refund import (
    SET_ASIDE,
    TO_CARD,
    TO_VOUCHERS,
    Allotted,
    Approved,
    CardReversed,
    Destination,
    Finished,
    Rejected,
    Requested,
    StepBegun,
    StepDone,
    StepFailed,
    StepOverdue,
    StepRefused,
    StepRetried,
    StepUndone,
    Withheld,
)
from projections.kernel import Change, Table, ignore, project

# requested: its order has not answered; pending: somebody has to decide; approved: the money is on its way; refused: by the order.
Status = Literal["requested", "pending", "approved", "completed", "rejected", "withdrawn", "lapsed", "refused"]

# Amounts are minor units of the order's currency.
refunds = Table(
    "refunds",
    key="id",
    id=UUID,
    order=UUID,
    customer=UUID,
    status=Status,
    reason=str,  # sealed, as `why` is where somebody typed it
    asked=list[Return],
    destination=Destination,
    restock=bool,
    currency=str,
    amount=int,
    shipping=int,
    lines=list[Returned],
    tenders=list[Tender],
    decided_by=UUID | None,
    why=str,  # it was not given back
    card_refused=str,  # why its part went to the wallet, or is withheld
    withheld=int,  # what the card's payment has not, though the order believes it: nobody got it
    attention=bool,  # somebody has to look at what is withheld
    voucher_refused=str,  # why its part is store credit
    step=str,
    trouble=str,  # the last attempt's, while it is repeated
    requested_at=datetime,
    decide_by=datetime,
    decided_at=datetime | None,
    ended_at=datetime | None,
    changed_at=datetime,
    version=int,
    person="customer",
    indexes=[
        ("customer", "requested_at"),
        ("order", "requested_at"),
        ("status", "requested_at"),
        ("requested_at",),
        ("attention", "requested_at"),
    ],
)

ignore(StepRetried)


@project
def requested(e: Requested) -> list[Change]:
    return _is(
        e,
        order=e.order,
        customer=e.customer,
        status="requested",
        reason=e.because or e.reason,
        asked=list(e.asked),
        destination=e.destination,
        restock=e.restock,
        requested_at=e.at,
        decide_by=e.decide_by,
    )


@project
def allotted(e: Allotted) -> list[Change]:
    return _is(
        e,
        status="pending",
        currency=e.currency,
        amount=e.amount,
        shipping=e.shipping,
        lines=list(e.lines),
        tenders=list(e.tenders),
    )


@project
def approved(e: Approved) -> list[Change]:
    return _is(e, status="approved", restock=e.restock, decided_by=e.by, decided_at=e.at)


@project
def rejected(e: Rejected) -> list[Change]:
    return _is(e, status=e.how, why=e.because or e.reason, decided_by=e.by, decided_at=e.at)


@project
def withheld(e: Withheld) -> list[Change]:
    return _is(e, withheld=e.amount, attention=True, card_refused=e.reason)


@project
def card_reversed(e: CardReversed) -> list[Change]:
    return _is(e, card_refused=e.reason)


@project
def begun(e: StepBegun) -> list[Change]:
    return _is(e, step=e.step, trouble="")


@project
def went_on(e: StepDone | StepUndone) -> list[Change]:
    return _is(e, trouble="")


@project
def step_refused(e: StepRefused) -> list[Change]:
    """The order's refusal ends it; a decision against it has been told already; a card's or a voucher's does not hurt."""
    said: dict[str, dict[str, Any]] = {
        SET_ASIDE: {"status": "refused", "why": e.why},
        TO_CARD: {"card_refused": e.why},
        TO_VOUCHERS: {"voucher_refused": e.why},
    }
    return _is(e, trouble="", **said.get(e.step, {}))


@project
def overdue(e: StepOverdue) -> list[Change]:
    late = f"{e.step}: no answer in time"
    if e.step == SET_ASIDE:
        return _is(e, status="refused", why=late, trouble="")
    return _is(e, trouble=late)


@project
def failed(e: StepFailed) -> list[Change]:
    return _is(e, trouble=e.why)


@project
def finished(e: Finished) -> list[Change]:
    """Somebody's own words against it stand in the decision alone: the saga knows only that there was one."""
    ended: dict[str, Any] = {"status": "completed"} if e.ending == "done" else {"why": e.why}
    return _is(e, ended_at=e.at, trouble="", **({} if e.why == Rejected.type else ended))


def _is(e: Event, **columns: Any) -> list[Change]:
    return [refunds.put(e.id, version=e.version, changed_at=e.at, **columns)]
