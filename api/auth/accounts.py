"""Accounts: what they are and have been, their sessions, their roles."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field

from aggregates.auth import SESSIONS_MAX, Account, Method, Role
from aggregates.kernel import NotFound, clock
from api.kernel import Body, Caller, Commands, Receipt, caller, service
from api.kernel.positions import passed, row_made
from api.kernel.reads import After
from api.kernel.stores import TheHost
from projections.auth import accounts, sessions

router = service("accounts", Account, accounts, owner="id", order="-registered_at")
Reader = Annotated[Caller, caller("accounts:read")]
Owner = Annotated[Caller, caller("accounts:write")]
Governor = Annotated[Caller, caller("accounts:govern")]


class SessionView(BaseModel):
    session: UUID
    method: Method
    client: UUID | None = Field(description="The OAuth client that it is for.", examples=[None])
    scope: str | None = Field(examples=[None])
    began_at: datetime
    expires_at: datetime


class SessionList(BaseModel):
    items: list[SessionView]


class Giving(Body):
    role: Role


@router.get("/{id}/sessions", summary="An account's sessions that are not over")
async def sessions_of(id: UUID, by: Reader, host: TheHost, after: After = None) -> SessionList:
    if after:
        await passed(host, sessions, after)
    row = await row_made(host, accounts, "auth", id)
    if row is None or not (row["id"] == by.id or by.may("accounts:any")):
        raise NotFound(f"there is no account {id}")
    now = clock.now()
    where = {"account": id, "ended_at": None, "began_at >": row["signed_out_at"], "expires_at >": now}
    page = await sessions.page(host.views, where=where, order="-began_at", limit=2 * SESSIONS_MAX)
    return SessionList(items=[SessionView(**{n: one[n] for n in SessionView.model_fields}) for one in page.rows])


@router.post("/{id}/sessions/{session}/end", summary="End one session")
async def end(id: UUID, session: UUID, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, Account.sign_out, session)


@router.post("/{id}/role", summary="Say what an account may do")
async def give_role(id: UUID, body: Giving, by: Governor, commands: Commands) -> Receipt:
    """Its sessions end, so that no token of the old role is made any more."""
    return await commands.tell(id, Account.give_role, body.role)
