"""Fraud cases over HTTP: rules raise them from the streams; here analysts read them, and say what they are."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from aggregates.fraud import REASON_CHARS_MAX, Case
from api.kernel import Body, Caller, Commands, Receipt, app_of, caller, service
from api.kernel.types import ONE_LINE
from projections.fraud import cases

router = service(
    "fraud",
    Case,
    cases,
    owner=None,
    reads="fraud:analyse",
    everything="fraud:analyse",
    filters=("rule", "verdict", "stands", "subject", "cause_of"),
    order="-raised_at",
)
Analyst = Annotated[Caller, caller("fraud:analyse")]


class Review(Body):
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=REASON_CHARS_MAX,
            pattern=ONE_LINE,
            description="For colleagues; no personal data.",
            examples=["the bank reports the cards as stolen"],
        ),
    ]


@router.post("/{id}/confirm", summary="Say that a case is fraud")
async def confirm(id: UUID, body: Review, by: Analyst, commands: Commands) -> Receipt:
    return await commands.tell(id, Case.confirm, body.reason)


@router.post("/{id}/dismiss", summary="Say that a case is no fraud")
async def dismiss(id: UUID, body: Review, by: Analyst, commands: Commands) -> Receipt:
    return await commands.tell(id, Case.dismiss, body.reason)


app = app_of(router)
