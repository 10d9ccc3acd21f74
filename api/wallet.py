"""Wallets over HTTP. Owners top up, pay each other and withdraw; shops and machines hold money for orders and settle it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import Invalid, Money, NotFound, clock
from aggregates.kernel.token import TOKEN
from aggregates.wallet import TopUp, Wallet, payment_of
from api.kernel import (
    Amount,
    Body,
    Caller,
    Commands,
    Country,
    Currency,
    Keyed,
    Problem,
    Receipt,
    Store,
    Vault,
    app_of,
    caller,
    rendered,
    service,
)
from api.kernel.address import Defaults
from api.kernel.host import Host
from api.kernel.positions import passed, row_made
from api.kernel.reads import After, Cursor, Limit, paged
from api.kernel.reason import Reason, sealed
from api.kernel.stores import TheHost
from api.kernel.ways import Ways
from projections.kernel import Table
from projections.payment import methods, preferences
from projections.user import user_addresses, users
from projections.wallet import Movement, escrows, top_ups, wallet_entries, wallets

TTL_S, TTL_S_MAX = 7 * 86_400, 90 * 86_400
WAYS, DEFAULTS = Ways(methods, preferences), Defaults(users, user_addresses)
router = service("wallets", Wallet, wallets, filters=("currency",), order="-opened_at")
Reader = Annotated[Caller, caller("wallets:read")]
Owner = Annotated[Caller, caller("wallets:write")]
Till = Annotated[Caller, caller("wallets:settle")]
EscrowId = Annotated[UUID, Path(description="The escrow: the order's id, say.")]


class Opening(Body):
    currency: Currency
    owner: Annotated[UUID | None, Field(description="Whose it is; only machines open others'.")] = None


class Sum(Body):
    """So much of a currency, which has to be the wallet's."""

    amount: Amount
    currency: Currency

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)


class Part(Body):
    """Of what is in an escrow."""

    part: Annotated[Sum | None, Field(description="So much of it; without it all that is left.")] = None

    @property
    def money(self) -> Money | None:
        return self.part.money if self.part else None


class Transfer(Sum):
    to: Annotated[UUID, Field(description="The other wallet.")]


class ToppingUp(Sum):
    method: Annotated[
        str | None,
        Field(
            pattern=f"^{TOKEN.pattern}$",
            max_length=100,
            description="A gateway's token, never a card's number; the owner's preferred saved way to pay, if neither this nor `saved`"
            " is named.",
            examples=["tok_visa"],
        ),
    ] = None
    saved: Annotated[
        UUID | None,
        Field(
            description="One of the owner's ways to pay (`/payments/methods`), instead of a token. Its gateway alone knows it, so no other"
            " one is asked.",
            examples=[None],
        ),
    ] = None
    country: Annotated[
        Country | None,
        Field(description="The owner's, for rules of routing; of the default billing address, if left out."),
    ] = None


class Withdrawal(Sum):
    topup: Annotated[UUID, Field(description="The top-up whose card or account gets the money.")]


class Credit(Sum):
    source: Annotated[Literal["credit", "refund"], Field(description="Why the shop gives it.")] = "credit"


class Holding(Sum):
    escrow: Annotated[UUID, Field(description="The cause, an order's id, say: the same again is the same escrow.")]
    ttl_s: Annotated[int, Field(ge=1, le=TTL_S_MAX, description="Seconds until it expires.")] = TTL_S


class Capture(Part):
    payee: Annotated[UUID, Field(description="The wallet that gets the money.")]


class Giving(Sum):
    payee: Annotated[UUID, Field(description="The wallet that gives captured money back.")]


class Dispute(Body):
    reason: Reason


class Entry(BaseModel):
    """A movement. `amount`: by which the balance changed; `balance`: after it; `other`: the wallet or payment opposite."""

    version: int = Field(examples=[2])
    at: datetime
    what: Movement
    amount: int = Field(examples=[-1999])
    balance: int = Field(examples=[8001])
    reference: UUID
    other: UUID | None


class Statement(BaseModel):
    """Newest first. `next` is the cursor of what came before; null at the end."""

    items: list[Entry]
    next: str | None = Field(examples=[None])


class Escrow(BaseModel):
    escrow: UUID
    amount: int = Field(description="Held in all.", examples=[1999])
    left: int = Field(description="Held still.", examples=[1999])
    captured: int = Field(examples=[0])
    refunded: int = Field(examples=[0])
    status: Literal["held", "frozen", "released", "captured", "spent", "expired"]
    reason: str | None = Field(examples=[None])
    expires_at: datetime | None
    held_at: datetime | None
    ended_at: datetime | None


class Escrows(BaseModel):
    items: list[Escrow]
    next: str | None = Field(examples=[None])


class ToppedUp(BaseModel):
    """`payment` says what the bank says, and where the owner may have to confirm."""

    id: UUID
    payment: UUID
    amount: int = Field(examples=[5000])
    currency: str = Field(examples=["EUR"])
    status: Literal["running", "done", "failed"]
    why: str = Field(examples=[""])
    started_at: datetime
    changed_at: datetime


class TopUps(BaseModel):
    items: list[ToppedUp]
    next: str | None = Field(examples=[None])


@router.get("/{id}/statement", summary="Each movement, with the balance after it")
async def statement(
    id: UUID, by: Reader, host: TheHost, cursor: Cursor = None, limit: Limit = 20, after: After = None
) -> Statement:
    rows, further = await _listed(host, by, id, wallet_entries, "-version", cursor, limit, after)
    return Statement(items=[Entry(**_of(Entry, row)) for row in rows], next=further)


@router.get("/{id}/escrows", summary="What is and was held for orders", response_model=Escrows)
async def escrows_of(
    id: UUID, by: Reader, host: TheHost, cursor: Cursor = None, limit: Limit = 20, after: After = None
) -> Response:
    rows, further = await _listed(host, by, id, escrows, "", cursor, limit, after)
    return await rendered(host, {"items": [_of(Escrow, row) for row in rows], "next": further})


@router.get("/{id}/topups", summary="A wallet's top-ups and what came of them")
async def top_ups_of(
    id: UUID, by: Reader, host: TheHost, cursor: Cursor = None, limit: Limit = 20, after: After = None
) -> TopUps:
    rows, further = await _listed(host, by, id, top_ups, "-started_at", cursor, limit, after)
    return TopUps(items=[ToppedUp(**_of(ToppedUp, row)) for row in rows], next=further)


@router.post("", status_code=201, summary="Open a wallet in a currency")
async def open_wallet(body: Opening, by: Owner, commands: Commands) -> Receipt:
    owner = body.owner or by.id
    if owner != by.id and not by.may("wallets:any"):
        raise Problem("forbidden", "this needs wallets:any")
    return await commands.open(Wallet.open, owner, body.currency)


@router.post("/{id}/topups", status_code=201, summary="Bring in money of a card or an account")
async def top_up(id: UUID, body: ToppingUp, by: Owner, commands: Keyed, store: Store, host: TheHost) -> Receipt:
    wallet = await store.load(Wallet, id)  # neither its owner nor its currency ever changes
    if wallet.owner != by.id and not by.may("wallets:any"):
        raise NotFound(f"there is no wallet {id}")
    wallet.units(body.money)  # raises for another currency
    way = await WAYS.chosen(host, wallet.owner, body.method, body.saved)
    if way is None:
        raise Invalid("name a method, or prefer a saved one")
    country = body.country or await DEFAULTS.billing_country(host, wallet.owner)
    return await commands.open(TopUp.start, id, wallet.owner, body.money, way, country)


@router.post("/{id}/withdrawals", summary="Have money given back to the card or account of a top-up")
async def withdraw(id: UUID, body: Withdrawal, by: Owner, commands: Keyed) -> Receipt:
    asked = (commands.reference, body.money, payment_of(body.topup))
    return await commands.tell_all([(id, Wallet.withdraw, asked), (body.topup, TopUp.returns_to, (id,))])


@router.post("/{id}/transfers", summary="Give money to another wallet")
async def transfer(id: UUID, body: Transfer, by: Owner, commands: Keyed) -> Receipt:
    return await commands.tell_with(id, body.to, Wallet.transfer, commands.reference, body.money)


@router.post("/{id}/credits", summary="Give an owner what the shop owes")
async def credit(id: UUID, body: Credit, by: Till, commands: Keyed) -> Receipt:
    return await commands.tell(id, Wallet.deposit, body.money, body.source, commands.reference)


@router.post("/{id}/escrows", summary="Hold money for an order")
async def hold(id: UUID, body: Holding, by: Till, commands: Commands) -> Receipt:
    until = clock.now() + timedelta(seconds=body.ttl_s)
    return await commands.tell(id, Wallet.hold, body.escrow, body.money, until)


@router.post("/{id}/escrows/{escrow}/release", summary="Give held money back to its owner, all or a part")
async def release(id: UUID, escrow: EscrowId, body: Part, by: Till, commands: Keyed) -> Receipt:
    return await commands.tell(id, Wallet.release, escrow, body.money)


@router.post("/{id}/escrows/{escrow}/capture", summary="Give held money to a payee, all or a part")
async def capture(id: UUID, escrow: EscrowId, body: Capture, by: Till, commands: Keyed) -> Receipt:
    return await commands.tell_with(id, body.payee, Wallet.capture, escrow, body.money)


@router.post("/{id}/escrows/{escrow}/refund", summary="Have a payee give captured money back")
async def refund(id: UUID, escrow: EscrowId, body: Giving, by: Till, commands: Keyed) -> Receipt:
    return await commands.tell_with(id, body.payee, Wallet.refund, escrow, body.money)


@router.post("/{id}/escrows/{escrow}/freeze", summary="A dispute: held money moves nowhere")
async def freeze(
    id: UUID, escrow: EscrowId, body: Dispute, by: Till, commands: Commands, store: Store, vault: Vault
) -> Receipt:
    owner = (await store.load(Wallet, id)).owner
    return await commands.tell(id, Wallet.freeze, escrow, await sealed(vault, owner, body.reason))


@router.post("/{id}/escrows/{escrow}/unfreeze", summary="The dispute is settled")
async def unfreeze(id: UUID, escrow: EscrowId, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Wallet.unfreeze, escrow, clock.now())


async def _listed(
    host: Host, by: Caller, id: UUID, table: Table, order: str, cursor: str | None, limit: int, after: str | None
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of what belongs to a wallet of the caller's, and the cursor of the next. Raises `NotFound` for others' wallets."""
    if after:
        await passed(host, table, after)
    row = await row_made(host, wallets, "wallet", id)
    if row is None or not (row["owner"] == by.id or by.may("wallets:any")):
        raise NotFound(f"there is no wallet {id}")
    page = await paged(host, table, where={"wallet": id}, order=order, after=cursor, limit=limit)
    return page.rows, page.after


def _of(model: type[BaseModel], row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in model.model_fields}


app = app_of(router)
