"""What a person agrees to, and has agreed to before: each consent with the version of its text and its time."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field

from aggregates.user import TEXT_CHARS_MAX, Consent, User
from api.kernel import Body, Commands, Receipt
from api.kernel.positions import passed
from api.kernel.reads import After, Cursor, Limit, paged
from api.kernel.route import Route
from api.kernel.stores import Store, TheHost
from api.kernel.types import ONE_LINE
from api.user.own import Owner, Reader, known
from projections.user import user_consents

router = APIRouter(prefix="/users", tags=["users"], route_class=Route)


class Agreeing(Body):
    text: Annotated[
        str,
        Field(
            min_length=1,
            max_length=TEXT_CHARS_MAX,
            pattern=ONE_LINE,
            description="The version of the text that was read.",
            examples=["2026-11 en"],
        ),
    ]


class Agreement(BaseModel):
    consent: Consent
    what: Literal["given", "withdrawn"]
    text: str | None = Field(examples=["2026-11 en"])
    at: datetime


class Consents(BaseModel):
    """`given`: what is agreed to now, by the version of its text. `items`: the history, newest first."""

    given: dict[Consent, str] = Field(examples=[{"marketing_email": "2026-11 en"}])
    items: list[Agreement]
    next: str | None = Field(examples=[None])


@router.get("/{id}/consents", summary="What a person agrees to, and did before")
async def consents(
    id: UUID, by: Reader, store: Store, host: TheHost, cursor: Cursor = None, limit: Limit = 20, after: After = None
) -> Consents:
    user = await known(store, by, id)
    if after:
        await passed(host, user_consents, after)
    page = await paged(host, user_consents, where={"user": id}, order="-version", after=cursor, limit=limit)
    items = [Agreement(**{name: row[name] for name in Agreement.model_fields}) for row in page.rows]
    return Consents(given=user.consents, items=items, next=page.after)


@router.put("/{id}/consents/{consent}", summary="Agree to a version of a text")
async def agree(id: UUID, consent: Consent, body: Agreeing, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, User.consent, consent, body.text)


@router.delete("/{id}/consents/{consent}", summary="Not agree any more")
async def withdraw(id: UUID, consent: Consent, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, User.withdraw, consent)
