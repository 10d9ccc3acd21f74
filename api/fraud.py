"""Fraud cases over HTTP: rules raise them from the streams; here analysts read them, and say what they are."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from aggregates.fraud import Case
from api.kernel import Body, Caller, Commands, Receipt, Store, Vault, app_of, caller, service
from api.kernel.reason import Reason, person_of, sealed
from api.kernel.stores import TheHost
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
        Reason,
        Field(
            description="For colleagues; sealed for whom the case is about.",
            examples=["the bank reports the cards as stolen"],
        ),
    ]


@router.post("/{id}/confirm", summary="Say that a case is fraud")
async def confirm(
    id: UUID, body: Review, by: Analyst, commands: Commands, store: Store, host: TheHost, vault: Vault
) -> Receipt:
    about = await person_of(host, (await store.load(Case, id)).subject)
    return await commands.tell(id, Case.confirm, await sealed(vault, about, body.reason))


@router.post("/{id}/dismiss", summary="Say that a case is no fraud")
async def dismiss(
    id: UUID, body: Review, by: Analyst, commands: Commands, store: Store, host: TheHost, vault: Vault
) -> Receipt:
    about = await person_of(host, (await store.load(Case, id)).subject)
    return await commands.tell(id, Case.dismiss, await sealed(vault, about, body.reason))


app = app_of(router)
