"""How far each checkout is, and why it failed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.checkout import (
    Finished,
    Started,
    StepBegun,
    StepDone,
    StepFailed,
    StepOverdue,
    StepRefused,
    StepRetried,
    StepUndone,
    payment_of,
)
from aggregates.kernel import Event
from aggregates.kernel.money import Tender
from aggregates.kernel.tender import stated
from projections.kernel import Change, Table, ignore, project

checkouts = Table(
    "checkouts",
    key="id",
    id=UUID,
    version=int,
    customer=UUID,
    cart=UUID,
    payment=UUID | None,  # none: no card pays
    currency=str,
    total=int,
    tenders=list[Tender],  # what it is paid with, in the order of use
    status=Literal["running", "completed", "failed"],
    step=str,
    trouble=str,  # the last attempt's, while it is repeated
    why=str,  # it failed
    started_at=datetime,
    changed_at=datetime,
    person="customer",
    indexes=[("customer", "started_at"), ("status", "started_at")],
)

ignore(StepRetried)


@project
def started(e: Started) -> list[Change]:
    tenders = list(stated(e.tenders, payment_of(e.id), e.total))
    return _is(
        e,
        customer=e.customer,
        cart=e.cart,
        payment=next((one.source for one in tenders if one.kind == "card"), None),
        currency=e.currency,
        total=e.total,
        tenders=tenders,
        status="running",
        started_at=e.at,
    )


@project
def begun(e: StepBegun) -> list[Change]:
    return _is(e, step=e.step, trouble="")


@project
def went_on(e: StepDone | StepUndone) -> list[Change]:
    return _is(e, trouble="")


@project
def refused(e: StepRefused) -> list[Change]:
    return _is(e, why=e.why, trouble="")


@project
def overdue(e: StepOverdue) -> list[Change]:
    return _is(e, why=f"{e.step}: no answer in time", trouble="")


@project
def failed(e: StepFailed) -> list[Change]:
    return _is(e, trouble=e.why)


@project
def finished(e: Finished) -> list[Change]:
    return _is(e, status="completed" if e.ending == "done" else "failed", why=e.why)


def _is(e: Event, **columns: Any) -> list[Change]:
    return [checkouts.put(e.id, version=e.version, changed_at=e.at, **columns)]
