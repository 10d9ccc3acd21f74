"""Checkouts over HTTP: a customer buys an own cart. The answer comes at once; `GET /checkouts/{id}` tells how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from aggregates.checkout import Checkout
from aggregates.kernel import KernelError, Refused, clock, require
from aggregates.kernel.clock import new_id
from aggregates.kernel.money import Line
from aggregates.kernel.token import TOKEN
from api.kernel import Body, Caller, Commands, Receipt, Redis, Vault, app_of, caller, service
from api.kernel.address import Destination, sealed
from api.kernel.host import Host
from api.kernel.positions import caught_up
from api.kernel.stores import TheHost
from projections.cart import carts
from projections.checkout import checkouts
from projections.inventory import shelf_of, shelves
from projections.kernel.gate import Gate
from projections.product import catalogue

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


class Buying(Body):
    cart: UUID
    contents: Annotated[
        int, Field(ge=1, le=2**31 - 1, description="`contents` of the cart that was seen", examples=[4])
    ]
    method: Annotated[
        str,
        Field(
            pattern=f"^{TOKEN.pattern}$",
            max_length=100,
            description="a gateway's token for a card",
            examples=["tok_visa"],
        ),
    ]
    address: Destination
    shipping: Shipping = "standard"


@router.post("", status_code=201, summary="Buy a cart")
async def buy(body: Buying, by: Customer, commands: Commands, redis: Redis, vault: Vault, host: TheHost) -> Receipt:
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
    tax_bp = TAX_BP.get(body.address.country, 0)
    lines = []
    for sku, quantity in quantities.items():
        offer = offers.get(sku)
        if offer is None or offer["status"] != "published" or cart["currency"] not in offer["prices"]:
            raise Refused(f"{sku} is not for sale any more: take it out of the cart")
        price = offer["prices"][cart["currency"]]
        if price != cart["prices"][sku]:
            raise Refused(f"the price of {sku} is {price} now, not {cart['prices'][sku]}: accept it in the cart first")
        lines.append(Line(sku, offer["product"], offer["title"], quantity, price, 0, tax_bp, 0, "main"))
    address = await sealed(vault, by.id, body.address)
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
            method=body.method,
            now=clock.now(),
            shipping=SHIPPING[cart["currency"]][body.shipping],
            shipping_tax_bp=tax_bp,
        )
    except KernelError:
        await gate.cancel(id, amounts)
        raise
    if receipt.id != id:  # sent again: it has the first one's answer, and that one has its pieces
        await gate.cancel(id, amounts)
    return receipt


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
