"""Vouchers over HTTP: shops issue gift cards and store credit, customers look at, claim and pass them on, checkouts spend them.

A code is shown once, in the answer to whoever issues it. Whoever tries codes out is slowed down, and is told the same of one
that does not exist, is void, is expired or is somebody else's.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import Path
from pydantic import BaseModel, Field

from aggregates.kernel import Money, NotFound, clock
from aggregates.kernel.clock import new_id
from aggregates.kernel.code import CODE_CHARS_MAX, hint_of, new_code, read_code
from aggregates.voucher import Voucher
from api.kernel import (
    Amount,
    Body,
    Caller,
    Commands,
    Currency,
    Keyed,
    Moment,
    Receipt,
    Store,
    Vault,
    app_of,
    caller,
    service,
)
from api.kernel.host import Host
from api.kernel.positions import passed, row_made
from api.kernel.reads import After, Cursor, Limit, paged
from api.kernel.reason import Reason, sealed
from api.kernel.stores import Codes, TheCodes, TheHost
from api.kernel.types import ONE_LINE
from projections.voucher import Use, voucher_uses, vouchers

BATCH_MAX = 500  # vouchers of one request
TTL_S, TTL_S_MAX = 900, 7 * 86_400
UNUSABLE = "no voucher of yours has this code: look for a typing error"

router = service(
    "vouchers", Voucher, vouchers, owner="holder", filters=("status", "kind", "batch", "currency"), order="-issued_at"
)
Reader = Annotated[Caller, caller("vouchers:read")]
Holder = Annotated[Caller, caller("vouchers:write")]
Till = Annotated[Caller, caller("vouchers:settle")]
ReservationId = Annotated[UUID, Path(description="The cause: an order's id, say.")]


class Sum(Body):
    amount: Amount
    currency: Currency

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)


class Card(Sum):
    """A gift card."""

    expires_at: Annotated[Moment | None, Field(description="Null: never.")] = None


class Cards(Card):
    count: Annotated[int, Field(ge=1, le=BATCH_MAX, description="How many of them.", examples=[3])]


class Credit(Card):
    """Store credit of one person."""

    holder: UUID


class Coded(Body):
    code: Annotated[
        str,
        Field(
            min_length=1,
            max_length=CODE_CHARS_MAX,
            pattern=ONE_LINE,
            description="As it is typed: case, dashes and spaces do not matter.",
            examples=["7K3M9-Q2XB0-4F6HT-8JZ5W-C1VNP"],
        ),
    ]


class Redemption(Coded, Sum):
    redemption: Annotated[UUID, Field(description="Your own id of it: the same again is the same redemption.")]
    customer: Annotated[UUID, Field(description="Who spends it.")]


class Reserving(Sum):
    reservation: Annotated[UUID, Field(description="The cause, an order's id, say: the same again is the same one.")]
    customer: Annotated[UUID, Field(description="Who spends it.")]
    ttl_s: Annotated[int, Field(ge=1, le=TTL_S_MAX, description="Seconds until it lapses.")] = TTL_S


class Giving(Body):
    to: Annotated[UUID, Field(description="The person who gets it.")]


class Voiding(Body):
    reason: Reason


class Issued(BaseModel):
    """`code` is shown here and nowhere else. Null: the request was sent again, and its first answer had it."""

    id: UUID
    version: int = Field(examples=[1])
    position: str = Field(examples=["voucher:7"])
    code: str | None = Field(examples=["7K3M9-Q2XB0-4F6HT-8JZ5W-C1VNP"])


class Batch(BaseModel):
    batch: UUID
    items: list[Issued]


class Worth(BaseModel):
    """What the caller could spend of a voucher."""

    id: UUID
    balance: int = Field(description="Minor units.", examples=[2500])
    currency: str = Field(examples=["EUR"])
    expires_at: datetime | None


class Spent(BaseModel):
    """A part that was reserved, and what became of it."""

    reservation: UUID
    amount: int = Field(examples=[1999])
    status: Use
    expires_at: datetime | None
    at: datetime


class Uses(BaseModel):
    items: list[Spent]
    next: str | None = Field(examples=[None])


@router.get("/{id}/uses", summary="What was reserved and spent of a voucher")
async def uses(
    id: UUID, by: Reader, host: TheHost, cursor: Cursor = None, limit: Limit = 20, after: After = None
) -> Uses:
    if after:
        await passed(host, voucher_uses, after)
    row = await row_made(host, vouchers, "voucher", id)
    if row is None or not (row["holder"] == by.id or by.may("vouchers:any")):
        raise NotFound(f"there is no voucher {id}")
    page = await paged(host, voucher_uses, where={"voucher": id}, order="", after=cursor, limit=limit)
    return Uses(items=[Spent(**{n: one[n] for n in Spent.model_fields}) for one in page.rows], next=page.after)


@router.post("", status_code=201, summary="Issue a gift card")
async def issue(body: Card, by: Till, commands: Commands, codes: TheCodes) -> Issued:
    return await _issued(body, commands, codes)


@router.post("/batches", status_code=201, summary="Issue many gift cards at once")
async def issue_batch(body: Cards, by: Till, commands: Commands, codes: TheCodes) -> Batch:
    batch, commands = commands.reference, commands.quietly()
    made = await asyncio.gather(*(_issued(body, commands, codes, batch) for _ in range(body.count)))
    return Batch(batch=batch, items=list(made))


@router.post("/credits", status_code=201, summary="Give a person store credit")
async def credit(body: Credit, by: Till, commands: Keyed) -> Receipt:
    return await commands.open(Voucher.credit, body.money, body.holder, body.expires_at, clock.now())


@router.post("/check", summary="What a code is worth to the caller", responses={404: {}})
async def check(body: Coded, by: Reader, host: TheHost, codes: TheCodes) -> Worth:
    voucher = await _usable(host, by, codes, body.code)
    return Worth(id=voucher.id, balance=voucher.balance, currency=voucher.currency, expires_at=voucher.expires_at)


@router.post("/claim", summary="Make a gift card one's own by its code", responses={404: {}})
async def claim(body: Coded, by: Holder, host: TheHost, commands: Commands, codes: TheCodes) -> Receipt:
    voucher = await _usable(host, by, codes, body.code)
    try:
        return await commands.openly().tell(voucher.id, Voucher.claim, by.id, clock.now())
    except NotFound:  # it was claimed or ended a moment ago
        raise NotFound(UNUSABLE) from None


@router.post("/redeem", summary="Spend a part of a voucher by its code", responses={404: {}})
async def redeem(body: Redemption, by: Till, host: TheHost, commands: Commands, codes: TheCodes) -> Receipt:
    id = await _found(host, codes, body.code)
    return await commands.tell(id, Voucher.redeem, body.redemption, body.money, body.customer, clock.now())


@router.post("/{id}/transfer", summary="Give a voucher to another person")
async def transfer(id: UUID, body: Giving, by: Holder, commands: Commands) -> Receipt:
    return await commands.tell(id, Voucher.transfer, body.to)


@router.post("/{id}/void", summary="Take a voucher out of use")
async def void(id: UUID, body: Voiding, by: Till, commands: Commands, store: Store, vault: Vault) -> Receipt:
    about = (await store.load(Voucher, id)).holder or by.id
    return await commands.tell(id, Voucher.void, await sealed(vault, about, body.reason))


@router.post("/{id}/reservations", summary="Set a part aside for an order")
async def reserve(id: UUID, body: Reserving, by: Till, commands: Commands) -> Receipt:
    now = clock.now()
    until = now + timedelta(seconds=body.ttl_s)
    return await commands.tell(id, Voucher.reserve, body.reservation, body.money, body.customer, until, now)


@router.post("/{id}/reservations/{reservation}/confirm", summary="What was reserved is spent")
async def confirm(id: UUID, reservation: ReservationId, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Voucher.confirm, reservation)


@router.post("/{id}/reservations/{reservation}/release", summary="What was reserved is free again")
async def release(id: UUID, reservation: ReservationId, by: Till, commands: Commands) -> Receipt:
    return await commands.tell(id, Voucher.release, reservation)


async def _issued(body: Card, commands: Commands, codes: Codes, batch: UUID | None = None) -> Issued:
    id, code = new_id(), new_code()
    plain = read_code(code)
    made = await commands.open_as(
        id,
        Voucher.gift,
        body.money,
        codes.hashed("vouchers", plain),
        hint_of(plain),
        body.expires_at,
        clock.now(),
        batch,
    )
    return Issued(id=made.id, version=made.version, position=made.position, code=code if made.id == id else None)


async def _found(host: Host, codes: Codes, typed: str) -> UUID:
    """The voucher of a code. Raises `NotFound`, and 429 for whoever tries too many."""
    hashed = await codes.tried("vouchers", typed)
    id = await host.store.owner("voucher", "code", hashed) if hashed else None
    if id is None:
        raise NotFound(UNUSABLE)
    return id


async def _usable(host: Host, by: Caller, codes: Codes, typed: str) -> Voucher:
    """The voucher of a code that the caller could spend; of every other code the answer is the same."""
    voucher = await host.store.load(Voucher, await _found(host, codes, typed))
    if not voucher.usable(by.id, clock.now()):
        raise NotFound(UNUSABLE)
    return voucher


app = app_of(router)
