"""The toy's service, written as a domain's is."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Depends, Query
from pydantic import BaseModel

from api.kernel import Amount, Body, Caller, Commands, Currency, Name, Receipt, Text, Vault, anyone, caller, service
from tests.api.kernel.purse import Purse
from tests.api.kernel.purse_view import purses

router = service("purses", Purse, purses, filters=("currency",))
Owner = Annotated[Caller, caller("purses:write")]
Machine = Annotated[Caller, caller("purses:settle")]
Anyone = Annotated[Caller | None, anyone()]


class Open(Body):
    currency: Currency
    holder: Name
    note: Text | None = None


class Move(Body):
    amount: Amount


class Greeting(BaseModel):
    hello: str


@router.post("", status_code=201, summary="Open a purse")
async def open_purse(body: Open, by: Owner, commands: Commands, vault: Vault) -> Receipt:
    return await commands.open(Purse, owner=by.id, currency=body.currency, holder=await vault.seal(by.id, body.holder))


@router.post("/{id}/fill", summary="Put money in")
async def fill(id: UUID, body: Move, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, Purse.fill, body.amount)


@router.post("/{id}/spend", summary="Take money out")
async def spend(id: UUID, body: Move, by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(id, Purse.spend, body.amount)


@router.post("/{id}/refill", summary="Put one in, twice")
async def refill(id: UUID, by: Machine, commands: Commands) -> Receipt:
    await commands.tell(id, Purse.fill, 1)
    return await commands.tell(id, Purse.fill, 1)


@router.get("/hello/there", summary="Who are you?")
async def hello(by: Anyone) -> Greeting:
    return Greeting(hello=by.role if by else "nobody")


async def doubled(n: Annotated[int, Query(ge=0, le=10)] = 1) -> int:
    return 2 * n


@router.post("/hello/echo", summary="A dependency that FastAPI solves", status_code=202, include_in_schema=False)
async def echo(body: Open, by: Owner, twice: Annotated[int, Depends(doubled)]) -> Greeting:
    return Greeting(hello=f"{body.holder} {twice} {by.role}")


@router.get("/hello/bug", summary="A bug", include_in_schema=False)
async def bug() -> Greeting:
    raise KeyError("nobody saw this coming")
