"""Carts over HTTP, for customers and for guests. Reads come from Redis, with today's prices and stock beside those seen."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Concatenate, Literal, ParamSpec
from uuid import UUID

from fastapi import APIRouter, Header
from pydantic import BaseModel, Field

from aggregates.cart import Cart, Status
from aggregates.kernel import NotFound, Refused, clock
from aggregates.kernel.money import QUANTITY_MAX
from api.kernel import Body, Caller, Commands, Currency, Receipt, Redis, Sku, Store, anyone, app_of, caller
from api.kernel.positions import passed, row_made
from api.kernel.reads import After, Cursor, Limit, paged
from api.kernel.route import Route
from api.kernel.stores import TheHost
from projections.cart import carts, customer_carts
from projections.inventory import shelf_of, shelves
from projections.kernel.redis import Asked, get_together
from projections.product import catalogue

P = ParamSpec("P")
TOKEN_CHARS = (32, 128)

router = APIRouter(prefix="/carts", tags=["carts"], route_class=Route)
Looker = Annotated[Caller | None, anyone("carts:read")]
Shopper = Annotated[Caller | None, anyone("carts:write")]
Reader = Annotated[Caller, caller("carts:read")]
Customer = Annotated[Caller, caller("carts:write")]
Token = Annotated[
    str | None,
    Header(
        alias="Cart-Token",
        min_length=TOKEN_CHARS[0],
        max_length=TOKEN_CHARS[1],
        pattern="^[!-~]+$",
        description="A guest's proof that the cart is theirs: the token it was opened with.",
    ),
]
Pieces = Annotated[int, Field(ge=1, le=QUANTITY_MAX, description="pieces", examples=[2])]


class Opening(Body):
    currency: Currency
    guest_token: Annotated[
        str | None,
        Field(
            min_length=TOKEN_CHARS[0],
            max_length=TOKEN_CHARS[1],
            pattern="^[!-~]+$",
            description="Guests only: an unguessable token of your own making. Only its hash is kept.",
            examples=["6f1d0c52e2a94f0b8a3f1c7d9e4b2a60"],
        ),
    ] = None


class Adding(Body):
    sku: Sku
    quantity: Pieces


class Counting(Body):
    quantity: Annotated[int, Field(ge=0, le=QUANTITY_MAX, description="pieces; 0 removes the line", examples=[1])]


class Merging(Body):
    guest: UUID
    guest_token: Annotated[
        str,
        Field(
            min_length=TOKEN_CHARS[0],
            max_length=TOKEN_CHARS[1],
            pattern="^[!-~]+$",
            examples=["6f1d0c52e2a94f0b8a3f1c7d9e4b2a60"],
        ),
    ]


class CartLine(BaseModel):
    """`unit_price` is what was shown when it was put in, `price_now` what is valid now; minor units, without tax."""

    sku: str
    product: UUID
    title: str
    quantity: int
    unit_price: int
    price_now: int | None
    available: int | None = Field(description="pieces in stock; null when that is not known at this moment")
    problem: Literal["price changed", "not for sale", "too few in stock"] | None


class CartView(BaseModel):
    """`subtotal` is at the prices of now, of the lines that can be bought."""

    id: UUID
    version: int
    contents: int = Field(description="The version at which the lines last changed; a checkout names it.")
    owner: UUID | None
    currency: str
    status: Status
    abandoned: bool
    lines: list[CartLine]
    subtotal: int


class ListedCart(BaseModel):
    id: UUID
    version: int
    currency: str
    status: Status
    abandoned: bool


class CartList(BaseModel):
    items: list[ListedCart]
    next: str | None = Field(examples=[None])


def hashed(token: str) -> str:
    """What is stored of a guest's token. It is unguessable itself, so a plain hash says nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def theirs(owner: UUID | None, secret: str, by: Caller | None, token: str | None) -> bool:
    """Whether a cart is the caller's, or the guest's who has its token."""
    if owner is None:
        return token is not None and hmac.compare_digest(hashed(token), secret)
    return by is not None and (owner == by.id or by.may("carts:any"))


def own(
    method: Callable[Concatenate[Cart, P], None], by: Caller | None, token: str | None
) -> Callable[Concatenate[Cart, P], None]:
    """The command, refusing somebody else's cart as if it weren't there."""

    @wraps(method)
    def guarded(cart: Cart, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not theirs(cart.owner, cart.secret, by, token):
            raise NotFound(f"there is no cart {cart.id}")
        method(cart, *args, **kwargs)

    return guarded


@router.get("", summary="Own carts, newest first")
async def mine(by: Reader, host: TheHost, cursor: Cursor = None, limit: Limit = 20, after: After = None) -> CartList:
    if after:
        await passed(host, customer_carts, after)
    page = await paged(host, customer_carts, where={"owner": by.id}, order="-opened_at", after=cursor, limit=limit)
    return CartList(
        items=[ListedCart(**{n: row[n] for n in ListedCart.model_fields}) for row in page.rows], next=page.after
    )


@router.get("/{id}", summary="One cart, with today's prices and stock")
async def one(id: UUID, by: Looker, redis: Redis, host: TheHost, token: Token = None, after: After = None) -> CartView:
    if after:
        await passed(host, carts, after)
    namespace = host.settings.namespace
    row = await row_made(host, carts, "cart", id)
    if row is None or not theirs(row["owner"], row["secret"], by, token):
        raise NotFound(f"there is no cart {id}")
    skus, price = list(row["quantities"]), f"prices:{row['currency']}"
    shelf = Asked(shelves, [shelf_of(sku) for sku in skus], ("on_hand", "reserved"))  # not all that is on hold there
    offers, stocks = await get_together(redis, namespace, Asked(catalogue, skus, ("status", price)), shelf)
    prices = {sku: offer[price] for sku, offer in offers.items() if offer["status"] == "published"}
    lines = [_line(row, sku, prices.get(sku), stocks.get(shelf_of(sku))) for sku in skus]
    subtotal = sum(line.quantity * line.price_now for line in lines if line.price_now is not None)
    kept = {name: row[name] for name in ("id", "version", "contents", "owner", "currency", "status", "abandoned")}
    return CartView(**kept, lines=lines, subtotal=subtotal)


def _line(cart: dict[str, Any], sku: str, price: int | None, shelf: dict[str, Any] | None) -> CartLine:
    quantity, seen = cart["quantities"][sku], cart["prices"][sku]
    available = max(shelf["on_hand"] - shelf["reserved"], 0) if shelf else None
    problem: Literal["price changed", "not for sale", "too few in stock"] | None = None
    if price is None:
        problem = "not for sale"
    elif available is not None and available < quantity:
        problem = "too few in stock"
    elif price != seen:
        problem = "price changed"
    return CartLine(
        sku=sku,
        product=cart["products"][sku],
        title=cart["titles"][sku],
        quantity=quantity,
        unit_price=seen,
        price_now=price,
        available=available,
        problem=problem,
    )


@router.post("", status_code=201, summary="Take a cart")
async def take(body: Opening, by: Shopper, commands: Commands) -> Receipt:
    if (by is None) != (body.guest_token is not None):
        raise Refused("a guest opens a cart with a guest_token, a customer with a bearer token")
    return await commands.open(
        Cart.take,
        by.id if by else None,
        body.currency,
        clock.now(),
        hashed(body.guest_token) if body.guest_token else "",
    )


@router.post("/{id}/lines", summary="Put something in")
async def add(
    id: UUID,
    body: Adding,
    by: Shopper,
    commands: Commands,
    redis: Redis,
    store: Store,
    host: TheHost,
    token: Token = None,
) -> Receipt:
    with commands.expecting(Cart, id) as here:
        asked = [Asked(catalogue, [body.sku])]
        if here is None:
            asked.append(Asked(carts, [id], ("owner", "secret", "currency")))
        offers, *made = await get_together(redis, host.settings.namespace, *asked)
        if here is not None:
            row = vars(here)  # none of the three ever changes
        else:
            row = made[0].get(id) or vars(await store.load(Cart, id))  # it was made a moment ago
        if not theirs(row["owner"], row["secret"], by, token):
            raise NotFound(f"there is no cart {id}")
        offer = offers.get(body.sku)
        if offer is None or offer["status"] != "published":
            raise Refused(f"{body.sku} is not for sale")
        currency = row["currency"]
        if currency not in offer["prices"]:
            raise Refused(f"{body.sku} has no price in this cart's currency")
        return await commands.tell(
            id,
            own(Cart.add, by, token),
            body.sku,
            offer["product"],
            offer["title"],
            body.quantity,
            offer["prices"][currency],
            clock.now(),
        )


@router.put("/{id}/lines/{sku}", summary="Set how many pieces of a line")
async def change(id: UUID, sku: Sku, body: Counting, by: Shopper, commands: Commands, token: Token = None) -> Receipt:
    return await commands.tell(id, own(Cart.change, by, token), sku, body.quantity, clock.now())


@router.delete("/{id}/lines/{sku}", summary="Take a line out")
async def remove(id: UUID, sku: Sku, by: Shopper, commands: Commands, token: Token = None) -> Receipt:
    return await commands.tell(id, own(Cart.remove, by, token), sku, clock.now())


@router.post("/{id}/lines/{sku}/accept-price", summary="Go on with today's price of a line")
async def accept_price(
    id: UUID, sku: Sku, by: Shopper, commands: Commands, redis: Redis, store: Store, host: TheHost, token: Token = None
) -> Receipt:
    offer = await catalogue.get(redis, sku, host.settings.namespace)
    cart = await store.load(Cart, id)
    price = offer["prices"].get(cart.currency) if offer and offer["status"] == "published" else None
    if price is None or not theirs(cart.owner, cart.secret, by, token):
        raise NotFound(f"there is no price of {sku} in cart {id}")
    return await commands.tell(id, own(Cart.reprice, by, token), sku, price, clock.now())


@router.post("/{id}/merge", summary="Take over a guest's cart at login")
async def merge(id: UUID, body: Merging, by: Customer, commands: Commands, store: Store) -> Receipt:
    guest = await store.load(Cart, body.guest)
    if not theirs(guest.owner, guest.secret, None, body.guest_token):
        raise NotFound(f"there is no guest's cart {body.guest}")
    lines = list(guest.lines.values())
    return await commands.tell_all(
        [
            (id, own(Cart.merge, by, None), (guest.id, guest.currency, lines, clock.now())),
            (guest.id, own(Cart.give_up, None, body.guest_token), (id, guest.contents)),
        ]
    )


app = app_of(router)
