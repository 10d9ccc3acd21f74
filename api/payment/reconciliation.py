"""Reconciliations over HTTP: each day of each gateway, and what its settlement report and we do not agree in."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from aggregates.kernel import NotFound
from aggregates.payment import Reconciliation
from api.kernel import Caller, caller, service
from api.kernel.positions import row_made
from api.kernel.reads import Cursor, Limit, paged
from api.kernel.stores import TheHost
from projections.payment import differences, reconciliations

router = service(
    "reconciliations",
    Reconciliation,
    reconciliations,
    owner=None,
    reads="reconciliations:any",
    everything="reconciliations:any",
    filters=("gateway", "day", "status"),
    order="-day",
)
Accountant = Annotated[Caller, caller("reconciliations:any")]


class Found(BaseModel):
    """`payment`: null when the report's row is of none of ours. `ours` and `theirs`: what each says, empty when it says nothing."""

    kind: Literal["missing_here", "missing_there", "amount", "currency", "fee", "duplicate", "late"]
    payment: UUID | None
    operation: UUID | None
    row: str = Field(examples=["set_0191d1f0"])
    ours: str = Field(examples=["capture of 1999 EUR, fee 53, 2026-11-24 10:30 UTC"])
    theirs: str = Field(examples=["capture of 2000 EUR, fee 53, 2026-11-24 10:30 UTC"])
    found_at: datetime


class Differences(BaseModel):
    """Of the last comparison. `next` is the cursor of the next page; null at the end."""

    items: list[Found]
    next: str | None = Field(examples=[None])


@router.get("/{id}/differences", summary="What a settlement report and we do not agree in")
async def found(id: UUID, by: Accountant, host: TheHost, cursor: Cursor = None, limit: Limit = 20) -> Differences:
    day = await row_made(host, reconciliations, "payment", id)
    if day is None:
        raise NotFound(f"there is no reconciliation {id}")
    where = {"reconciliation": id, "run": day["run"]}
    page = await paged(host, differences, where=where, order="version", after=cursor, limit=limit)
    names = Found.model_fields
    return Differences(items=[Found(**{name: row[name] for name in names}) for row in page.rows], next=page.after)
