"""Products over HTTP. Anybody reads what is published; a seller prepares, prices and publishes the own ones."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from aggregates.kernel import Money, NotFound
from aggregates.kernel.currency import decimal
from aggregates.product import (
    ATTRIBUTES_MAX,
    DESCRIPTION_CHARS_MAX,
    MEDIA_MAX,
    NAME_CHARS_MAX,
    OPTIONS_MAX,
    TITLE_CHARS_MAX,
    URL_CHARS_MAX,
    VALUE_CHARS_MAX,
    VALUES_MAX,
    VARIANTS_MAX,
    Kind,
    Listing,
    Medium,
    Option,
    Product,
)
from api.kernel import (
    Amount,
    Body,
    Caller,
    Commands,
    Currency,
    Receipt,
    Sku,
    Views,
    anyone,
    app_of,
    caller,
    service,
)
from api.kernel.positions import passed
from api.kernel.reads import After
from api.kernel.stores import TheHost
from api.kernel.types import ONE_LINE, PROSE
from projections.product import catalogue, products, variants

PRICES_MAX = 50  # currencies of one variant
SKUS_MAX = 100  # of one question
# What `Product.arrange` takes, for machines: a host name, maybe a port, no spaces.
PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
URL = rf"^https://[A-Za-z0-9.-]+(:({PORT}))?([/?#][^\s\x00-\x20]*)?$"
router = service(
    "products",
    Product,
    products,
    owner="seller",
    public={"status": "published"},
    filters=("seller", "status"),
    order="-created_at",
)
Seller = Annotated[Caller, caller("products:sell")]
Anyone = Annotated[Caller | None, anyone()]

Title = Annotated[
    str,
    Field(max_length=TITLE_CHARS_MAX, pattern=ONE_LINE, description="One line, in any script.", examples=["Red mug"]),
]
Description = Annotated[
    str, Field(max_length=DESCRIPTION_CHARS_MAX, pattern=PROSE, examples=["Stoneware.\nHolds 0.3 l."])
]
Label = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX, pattern=ONE_LINE, examples=["Colour"])]
Value = Annotated[str, Field(min_length=1, max_length=VALUE_CHARS_MAX, pattern=ONE_LINE, examples=["stoneware"])]
Attributes = Annotated[dict[Label, Value], Field(max_length=ATTRIBUTES_MAX, examples=[{"Material": "stoneware"}])]
Chosen = Annotated[
    dict[Label, Label],
    Field(max_length=OPTIONS_MAX, description="One value of each option.", examples=[{"Colour": "red"}]),
]


class Picture(Body):
    kind: Kind = "image"
    url: Annotated[str, Field(max_length=URL_CHARS_MAX, pattern=URL, examples=["https://img.example.com/mug.jpg"])]
    alt: Annotated[
        str, Field(max_length=VALUE_CHARS_MAX, pattern=PROSE, description="What it shows.", examples=["A red mug"])
    ] = ""


class Choice(Body):
    name: Label
    values: Annotated[list[Label], Field(min_length=1, max_length=VALUES_MAX, examples=[["red", "blue"]])]


class PriceTag(Body):
    amount: Amount
    currency: Currency


Prices = Annotated[list[PriceTag], Field(max_length=PRICES_MAX, description="One a currency.")]


class Item(Body):
    sku: Sku
    options: Chosen = {}
    prices: Prices = []


class Drafting(Body):
    title: Title = ""
    description: Description = ""
    attributes: Attributes = {}
    media: Annotated[list[Picture], Field(max_length=MEDIA_MAX)] = []
    options: Annotated[list[Choice], Field(max_length=OPTIONS_MAX)] = []
    variants: Annotated[list[Item], Field(max_length=VARIANTS_MAX)] = []
    publish: Annotated[bool, Field(description="Put it on sale at once.")] = False


class Titling(Body):
    title: Annotated[Title, Field(min_length=1)]


class Describing(Body):
    description: Description


class Specifying(Body):
    attributes: Attributes


class Arranging(Body):
    media: Annotated[list[Picture], Field(max_length=MEDIA_MAX, description="All, in the order of showing.")]


class Offering(Body):
    options: Annotated[list[Choice], Field(max_length=OPTIONS_MAX, description="All, in the order of showing.")]


class Pricing(Body):
    prices: Prices


class Shown(BaseModel):
    """`decimal` is the amount as people write it."""

    amount: int
    currency: str
    decimal: str = Field(examples=["19.99"])


class OnSale(BaseModel):
    """A variant that can be bought."""

    sku: str
    product: UUID
    seller: UUID
    title: str
    options: dict[str, str]
    prices: list[Shown]


class OnSaleList(BaseModel):
    items: list[OnSale]


class VariantRow(BaseModel):
    """`offer`: draft, listed, withdrawn or archived."""

    sku: str
    options: dict[str, str]
    prices: list[Shown]
    offer: str


class Variants(BaseModel):
    items: list[VariantRow]


@router.get("/offers", summary="What can be bought of these SKUs, and at what price")
async def offers(
    host: TheHost,
    sku: Annotated[
        list[Sku], Query(min_length=1, max_length=SKUS_MAX, description="SKUs; those not on sale are left out.")
    ],
    after: After = None,
) -> OnSaleList:
    if after:
        await passed(host, catalogue, after)
    rows = await catalogue.get_many(host.redis, dict.fromkeys(sku), host.settings.namespace)
    on_sale = [row for row in rows.values() if row["status"] == "published"]
    return OnSaleList(
        items=[OnSale(**{**row, "prices": [_shown(c, a) for c, a in row["prices"].items()]}) for row in on_sale]
    )


@router.get("/{id}/variants", summary="A product's variants; the seller sees those not on sale too")
async def variants_of(id: UUID, by: Anyone, host: TheHost, views: Views, after: After = None) -> Variants:
    if after:
        await passed(host, variants, after)
        await passed(host, products, after)
    product = await products.get(views, id)
    owner = by is not None and product is not None and (by.id == product["seller"] or by.may("products:any"))
    if product is None or not (owner or product["status"] == "published"):
        raise NotFound(f"there is no product {id}")
    where = {"product": id} if owner else {"product": id, "offer": "listed"}
    page = await variants.page(views, where=where, limit=VARIANTS_MAX)
    return Variants(
        items=[
            VariantRow(**{**row, "prices": [_shown(one["currency"], one["amount"]) for one in row["prices"]]})
            for row in page.rows
        ]
    )


@router.post("", status_code=201, summary="Draft a product, or publish it complete")
async def draft(body: Drafting, by: Seller, commands: Commands) -> Receipt:
    return await commands.open(
        Product.complete,
        seller=by.id,
        title=body.title,
        description=body.description,
        attributes=body.attributes,
        media=[_medium(one) for one in body.media],
        options=[_option(one) for one in body.options],
        variants=[Listing(one.sku, one.options, _money(one.prices)) for one in body.variants],
        publish=body.publish,
    )


@router.put("/{id}/title", summary="Give it a title")
async def retitle(id: UUID, body: Titling, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.retitle, body.title)


@router.put("/{id}/description", summary="Describe it")
async def describe(id: UUID, body: Describing, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.describe, body.description)


@router.put("/{id}/attributes", summary="Replace its attributes")
async def specify(id: UUID, body: Specifying, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.specify, body.attributes)


@router.put("/{id}/media", summary="Replace its media, in the order of showing")
async def arrange(id: UUID, body: Arranging, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.arrange, [_medium(one) for one in body.media])


@router.put("/{id}/options", summary="Replace what buyers choose among")
async def offer(id: UUID, body: Offering, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.offer, [_option(one) for one in body.options])


@router.post("/{id}/variants", status_code=201, summary="Add a variant, with its prices or without")
async def add_variant(id: UUID, body: Item, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.add_variant, body.sku, body.options, _money(body.prices))


@router.delete("/{id}/variants/{sku}", summary="Remove a variant that never was on sale; its SKU is free")
async def remove_variant(id: UUID, sku: Sku, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.remove_variant, sku)


@router.put("/{id}/variants/{sku}/prices", summary="Replace a variant's prices")
async def price(id: UUID, sku: Sku, body: Pricing, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.price, sku, _money(body.prices))


@router.post("/{id}/publish", summary="Put what has a price on sale")
async def publish(id: UUID, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.publish)


@router.post("/{id}/variants/{sku}/withdraw", summary="Take a variant off sale")
async def withdraw(id: UUID, sku: Sku, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.withdraw, sku)


@router.post("/{id}/variants/{sku}/relist", summary="Put a withdrawn variant on sale again")
async def relist(id: UUID, sku: Sku, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.relist, sku)


@router.post("/{id}/archive", summary="End a product for good")
async def archive(id: UUID, by: Seller, commands: Commands) -> Receipt:
    return await commands.tell(id, Product.archive)


def _medium(one: Picture) -> Medium:
    return Medium(one.kind, one.url, one.alt)


def _option(one: Choice) -> Option:
    return Option(one.name, tuple(one.values))


def _money(prices: list[PriceTag]) -> tuple[Money, ...]:
    return tuple(Money(one.amount, one.currency) for one in prices)


def _shown(currency: str, amount: int) -> Shown:
    return Shown(amount=amount, currency=currency, decimal=decimal(amount, currency))


app = app_of(router)
