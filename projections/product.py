"""Products and their variants as sellers and buyers see them, and the catalogue that carts and checkouts price from.

A SKU that never was on sale can move to another product, so `variants` has rows by product and SKU; the catalogue has
only SKUs that are or were on sale, which stay with their product for ever.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from aggregates.kernel import Money
from aggregates.product import (
    Archived,
    Arranged,
    Described,
    Drafted,
    Medium,
    Option,
    OptionsOffered,
    Priced,
    Published,
    Relisted,
    Specified,
    Status,
    Titled,
    VariantAdded,
    VariantRemoved,
    Withdrawn,
)
from projections.kernel import Change, RedisTable, Table, project

products = Table(
    "products",
    key="id",
    id=UUID,
    version=int,
    seller=UUID,
    title=str,
    description=str,
    status=Status,
    attributes=dict[str, str],
    options=list[Option],
    media=list[Medium],
    created_at=datetime,
    updated_at=datetime,
    indexes=[("status", "created_at"), ("seller", "created_at")],
)
variants = Table(
    "variants",
    key=("product", "sku"),
    product=UUID,
    sku=str,
    options=dict[str, str],
    prices=list[Money],
    offer=str,  # draft, listed, withdrawn, archived
    indexes=[("sku",)],
)
catalogue = RedisTable(
    "catalogue",
    key="sku",
    sku=str,
    product=UUID,
    seller=UUID,
    title=str,
    options=dict[str, str],
    status=str,  # published, withdrawn, archived: only what is published can be sold
    prices=dict[str, int],  # minor units by currency
)


@project
def drafted(e: Drafted) -> list[Change]:
    made = products.put(
        e.id, version=e.version, seller=e.seller, title=e.title, status="draft", created_at=e.at, updated_at=e.at
    )
    return [made]


@project
def titled(e: Titled) -> list[Change]:
    shown = [catalogue.put(sku, title=e.title) for sku in e.skus]
    return [products.put(e.id, version=e.version, title=e.title, updated_at=e.at), *shown]


@project
def described(e: Described) -> list[Change]:
    return [products.put(e.id, version=e.version, description=e.description, updated_at=e.at)]


@project
def specified(e: Specified) -> list[Change]:
    return [products.put(e.id, version=e.version, attributes=e.attributes, updated_at=e.at)]


@project
def arranged(e: Arranged) -> list[Change]:
    return [products.put(e.id, version=e.version, media=e.media, updated_at=e.at)]


@project
def options_offered(e: OptionsOffered) -> list[Change]:
    return [products.put(e.id, version=e.version, options=e.options, updated_at=e.at)]


@project
def variant_added(e: VariantAdded) -> list[Change]:
    return [_touched(e), variants.put((e.id, e.sku), options=e.options, prices=[], offer="draft")]


@project
def variant_removed(e: VariantRemoved) -> list[Change]:
    return [_touched(e), variants.drop((e.id, e.sku))]


@project
def priced(e: Priced) -> list[Change]:
    shown = [catalogue.put(e.sku, prices=_by_currency(e.prices))] if e.listed else []
    return [_touched(e), variants.put((e.id, e.sku), prices=e.prices), *shown]


@project
def published(e: Published) -> list[Change]:
    made = [products.put(e.id, version=e.version, status="published", updated_at=e.at)]
    for one in e.listings:
        prices = _by_currency(one.prices)
        made.append(variants.put((e.id, one.sku), offer="listed"))
        made.append(
            catalogue.put(
                one.sku,
                product=e.id,
                seller=e.seller,
                title=e.title,
                options=one.options,
                status="published",
                prices=prices,
            )
        )
    return made


@project
def withdrawn(e: Withdrawn) -> list[Change]:
    return [_touched(e), variants.put((e.id, e.sku), offer="withdrawn"), catalogue.put(e.sku, status="withdrawn")]


@project
def relisted(e: Relisted) -> list[Change]:
    return [_touched(e), variants.put((e.id, e.sku), offer="listed"), catalogue.put(e.sku, status="published")]


@project
def archived(e: Archived) -> list[Change]:
    made = [products.put(e.id, version=e.version, status="archived", updated_at=e.at)]
    for sku in e.skus:
        made += [variants.put((e.id, sku), offer="archived"), catalogue.put(sku, status="archived")]
    return made


def _touched(e: VariantAdded | VariantRemoved | Priced | Withdrawn | Relisted) -> Change:
    return products.put(e.id, version=e.version, updated_at=e.at)


def _by_currency(prices: tuple[Money, ...]) -> dict[str, int]:
    return {price.currency: price.amount for price in prices}
