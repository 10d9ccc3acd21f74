"""Checkouts over HTTP: a customer buys an own cart. The answer comes at once; `GET /checkouts/{id}` tells how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from aggregates.checkout import Checkout
from aggregates.kernel import Invalid, KernelError, NotFound, Refused, clock, require
from aggregates.kernel.clock import new_id
from aggregates.kernel.code import CODE_CHARS_MAX
from aggregates.kernel.money import Line, Tender
from aggregates.kernel.tender import VOUCHERS_MAX
from aggregates.kernel.token import TOKEN
from api.kernel import Amount, Body, Caller, Commands, Receipt, Redis, Vault, app_of, caller, service
from api.kernel.address import Defaults, Destination, sealed
from api.kernel.host import Host
from api.kernel.positions import caught_up, row_of
from api.kernel.stores import Codes, TheCodes, TheHost
from api.kernel.types import ONE_LINE
from api.kernel.ways import Ways
from projections.cart import carts
from projections.checkout import checkouts
from projections.inventory import shelf_of, shelves
from projections.kernel.gate import Gate
from projections.payment import methods, preferences
from projections.product import catalogue
from projections.user import user_addresses, users
from projections.voucher import vouchers
from projections.wallet import wallet_of, wallets

Shipping = Literal["standard", "express"]

# What this shop takes for a parcel, in minor units without tax. A currency that is not here can't be shipped in yet.
SHIPPING: dict[str, dict[Shipping, int]] = {
    "EUR": {"standard": 490, "express": 1290},
    "GBP": {"standard": 395, "express": 995},
    "JPY": {"standard": 800, "express": 1900},
    "USD": {"standard": 590, "express": 1490},
}
# Standard rates of value added tax by country, in basis points; other countries' customers import without it.
TAX_BP = {
    "AT": 2000, "BE": 2100, "DE": 1900, "DK": 2500, "ES": 2100, "FI": 2550, "FR": 2000, "GB": 2000, "IE": 2300, "IT": 2200,
    "NL": 2100, "PL": 2300, "PT": 2300, "SE": 2500,
}  # fmt: skip

router = service("checkouts", Checkout, checkouts, filters=("status",), order="-started_at")
Customer = Annotated[Caller, caller("checkouts:write")]
WAYS, DEFAULTS = Ways(methods, preferences), Defaults(users, user_addresses)


VoucherCode = Annotated[
    str,
    Field(
        min_length=1,
        max_length=CODE_CHARS_MAX,
        pattern=ONE_LINE,
        description="A gift card's code, or the id of a voucher of one's own.",
        examples=["7K3M9-Q2XB0-4F6HT-8JZ5W-C1VNP"],
    ),
]


class Buying(Body):
    cart: UUID
    contents: Annotated[
        int, Field(ge=1, le=2**31 - 1, description="`contents` of the cart that was seen", examples=[4])
    ]
    vouchers: Annotated[
        list[VoucherCode],
        Field(max_length=VOUCHERS_MAX, description="Vouchers that pay first, in this order.", examples=[[]]),
    ] = []
    wallet: Annotated[
        bool | Amount,
        Field(
            description="Whether the own wallet in the cart's currency pays what vouchers leave; a number: so much at the most.",
            examples=[False],
        ),
    ] = False
    method: Annotated[
        str | None,
        Field(
            pattern=f"^{TOKEN.pattern}$",
            max_length=100,
            description="A gateway's token for a card, which pays the rest if there is any; the preferred saved way to pay, if neither"
            " this nor `saved` is named.",
            examples=["tok_visa"],
        ),
    ] = None
    saved: Annotated[
        UUID | None,
        Field(
            description="One of the own ways to pay (`/payments/methods`), instead of a token. Its gateway alone knows it, so no other"
            " one is asked: while it is away the checkout waits, and fails after a quarter of an hour.",
            examples=[None],
        ),
    ] = None
    address: Annotated[
        Destination | None,
        Field(
            description="Where it goes; to the own default shipping address, if left out.",
            examples=[
                {
                    "recipient": "Ada Lovelace",
                    "street": "Milk Street 1",
                    "city": "Berlin",
                    "postcode": "10115",
                    "country": "DE",
                }
            ],
        ),
    ] = None
    shipping: Shipping = "standard"


@router.post("", status_code=201, summary="Buy a cart", responses={404: {}})
async def buy(
    body: Buying, by: Customer, commands: Commands, redis: Redis, vault: Vault, host: TheHost, codes: TheCodes
) -> Receipt:
    """`{"cart": …, "contents": …}` is enough for who has a preferred way to pay and a default address: what they are now is what counts,
    whatever becomes of them later."""
    namespace = host.settings.namespace
    await caught_up(host, carts, "cart", body.cart)
    cart = await carts.get(redis, body.cart, namespace)
    if cart is not None and cart["owner"] is None:
        raise Refused("this is a guest's cart: log in and merge it into one of your own first")
    if cart is None or cart["owner"] != by.id:
        raise Refused("there is no such cart of yours")
    if cart["status"] != "open":
        raise Refused(
            "the cart is being checked out" if cart["status"] == "locked" else f"the cart is {cart['status']}"
        )
    if cart["contents"] != body.contents:
        raise Refused(f"the cart has changed: it is at contents {cart['contents']}, not {body.contents}")
    if cart["currency"] not in SHIPPING:
        raise Refused(f"nothing can be shipped for {cart['currency']} yet")
    quantities: dict[str, int] = cart["quantities"]
    if not quantities:
        raise Refused("the cart is empty")
    offers = await catalogue.get_many(redis, quantities, namespace)
    if body.address is not None:
        address = await sealed(vault, by.id, body.address)
    elif (own := await DEFAULTS.address(host, vault, by.id)) is not None:
        address = own
    else:
        raise Invalid("you keep no default shipping address: name an address")
    tax_bp = TAX_BP.get(address.country, 0)
    lines = []
    for sku, quantity in quantities.items():
        offer = offers.get(sku)
        if offer is None or offer["status"] != "published" or cart["currency"] not in offer["prices"]:
            raise Refused(f"{sku} is not for sale any more: take it out of the cart")
        price = offer["prices"][cart["currency"]]
        if price != cart["prices"][sku]:
            raise Refused(f"the price of {sku} is {price} now, not {cart['prices'][sku]}: accept it in the cart first")
        lines.append(Line(sku, offer["product"], offer["title"], quantity, price, 0, tax_bp, 0, "main"))
    funds = [await _voucher(host, by, codes, one, cart["currency"]) for one in body.vouchers]
    if body.wallet is not False:
        funds.append(await _wallet(host, by, cart["currency"], None if body.wallet is True else body.wallet))
    way = await WAYS.chosen(host, by.id, body.method, body.saved)
    # The saga reserves under the checkout's id: what the gate keeps for that id until then becomes the reservation.
    id, gate, names = new_id(), Gate(redis, shelves.name, namespace), {shelf_of(sku): sku for sku in quantities}
    amounts = {row: quantities[sku] for row, sku in names.items()}
    await _pass(host, gate, id, amounts, names)
    try:
        receipt = await commands.open_as(
            id,
            Checkout.start,
            customer=by.id,
            cart=body.cart,
            contents=body.contents,
            currency=cart["currency"],
            lines=lines,
            address=address,
            way=way,
            shipping=SHIPPING[cart["currency"]][body.shipping],
            shipping_tax_bp=tax_bp,
            offers=funds,
        )
    except KernelError:
        await gate.cancel(id, amounts)
        raise
    if receipt.id != id:  # sent again: it has the first one's answer, and that one has its pieces
        await gate.cancel(id, amounts)
    return receipt


async def _voucher(host: Host, by: Caller, codes: Codes, named: str, currency: str) -> Tender:
    """What a voucher could pay. Of a code that is not there, ended or is somebody else's the answer is the same, as at `/vouchers`."""
    try:
        id: UUID | None = UUID(named)
        held = True
    except ValueError:
        hashed = await codes.tried("vouchers", named)
        id, held = await host.store.owner("voucher", "code", hashed) if hashed else None, False
    row = None
    if id is not None and await caught_up(host, vouchers, "voucher", id):
        row = await row_of(host, vouchers, id)
    if (
        row is None
        or row["status"] != "active"
        or (row["expires_at"] is not None and row["expires_at"] <= clock.now())
        or (row["holder"] is None and held)
        or row["holder"] not in (None, by.id)
    ):
        raise NotFound("no voucher of yours has this code: look for a typing error")
    require(row["currency"] == currency, f"the voucher …{row['hint']} is in {row['currency']}, not {currency}")
    require(row["balance"] > 0, f"nothing is left of the voucher …{row['hint']}")
    return Tender("voucher", row["id"], row["balance"])


async def _wallet(host: Host, by: Caller, currency: str, most: int | None) -> Tender:
    """What the customer's wallet could pay."""
    id = wallet_of(by.id, currency)
    require(await caught_up(host, wallets, "wallet", id), f"you have no wallet in {currency}")
    row = await row_of(host, wallets, id)
    balance: int = row["balance"] if row else 0
    return Tender("wallet", id, balance if most is None else min(balance, most))


async def _pass(host: Host, gate: Gate, id: UUID, amounts: Mapping[UUID, int], names: Mapping[UUID, str]) -> None:
    """Have pieces kept for a checkout until its saga reserves them. Raises `Refused` when they are not there.

    A fold that lags does not decide: what the gate turns away is asked again when it has seen all that is stored. Where it
    still says `unknown` (Redis is being filled) the saga finds out.
    """
    answer = await gate.ask(id, amounts)
    if answer.verdict == "open":
        return
    for row in amounts:
        require(await caught_up(host, shelves, "inventory", row), f"{names[row]} is not in stock")
    answer = await gate.ask(id, amounts)
    if answer.verdict in ("full", "probe"):
        row = UUID(answer.short)
        raise Refused(f"{amounts[row]} of {names[row]} is more than the {max(answer.free, 0)} left")


app = app_of(router)
