"""Carts as shoppers see them, in Redis, and for each customer the list of own carts."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from aggregates.cart import (
    Abandoned,
    Added,
    Changed,
    CheckedOut,
    Expired,
    GivenUp,
    Locked,
    Merged,
    Opened,
    Removed,
    Repriced,
    Returned,
    Status,
    Unlocked,
)
from aggregates.kernel import Event
from projections.kernel import Change, RedisTable, Table, project

carts = RedisTable(
    "carts",
    key="id",
    id=UUID,
    version=int,
    contents=int,
    owner=UUID | None,
    secret=str,
    currency=str,
    status=Status,
    abandoned=bool,
    products=dict[str, UUID],  # this map and the next three by SKU
    titles=dict[str, str],
    quantities=dict[str, int],
    prices=dict[str, int],
    touched_at=datetime,
    person="owner",
)
customer_carts = Table(
    "customer_carts",
    key="id",
    id=UUID,
    version=int,
    owner=UUID | None,
    currency=str,
    status=Status,
    abandoned=bool,
    opened_at=datetime,
    changed_at=datetime,
    person="owner",
    indexes=[("owner", "opened_at")],
)

MAPS = ("products", "titles", "quantities", "prices")


@project
def opened(e: Opened) -> list[Change]:
    listed = customer_carts.put(e.id, owner=e.owner, currency=e.currency, opened_at=e.at)
    made = carts.put(e.id, contents=1, owner=e.owner, secret=e.secret, currency=e.currency, touched_at=e.at)
    return [made, listed, *_is(e, status="open", abandoned=False)]


@project
def added(e: Added) -> list[Change]:
    return [
        carts.set_item(e.id, "products", e.sku, e.product),
        carts.set_item(e.id, "titles", e.sku, e.title),
        carts.add_item(e.id, "quantities", e.sku, e.quantity),
        carts.set_item(e.id, "prices", e.sku, e.unit_price),
        *_touched(e),
    ]


@project
def changed(e: Changed) -> list[Change]:
    return [carts.set_item(e.id, "quantities", e.sku, e.quantity), *_touched(e)]


@project
def removed(e: Removed) -> list[Change]:
    return [*(carts.drop_item(e.id, map, e.sku) for map in MAPS), *_touched(e)]


@project
def repriced(e: Repriced) -> list[Change]:
    return [carts.set_item(e.id, "prices", e.sku, e.unit_price), *_touched(e)]


@project
def merged(e: Merged) -> list[Change]:
    made = []
    for line in e.lines:
        made += [
            carts.set_item(e.id, "products", line.sku, line.product),
            carts.set_item(e.id, "titles", line.sku, line.title),
            carts.set_item(e.id, "quantities", line.sku, line.quantity),
            carts.set_item(e.id, "prices", line.sku, line.unit_price),
        ]
    return [*made, *_touched(e)]


@project
def locked(e: Locked) -> list[Change]:
    return _is(e, status="locked")


@project
def unlocked(e: Unlocked) -> list[Change]:
    return _is(e, status="open") if e.reopened else _is(e)


@project
def abandoned(e: Abandoned) -> list[Change]:
    return _is(e, abandoned=True)


@project
def returned(e: Returned) -> list[Change]:
    return _is(e, abandoned=False)


@project
def given_up(e: GivenUp) -> list[Change]:
    return _over(e, "given up")


@project
def checked_out(e: CheckedOut) -> list[Change]:
    return _over(e, "checked out")


@project
def expired(e: Expired) -> list[Change]:
    return _over(e, "expired")


def _is(e: Event, **columns: Any) -> list[Change]:
    """The cart's state after an event, in both tables."""
    return [
        carts.put(e.id, version=e.version, **columns),
        customer_carts.put(e.id, version=e.version, changed_at=e.at, **columns),
    ]


def _touched(e: Added | Changed | Removed | Repriced | Merged) -> list[Change]:
    return [carts.put(e.id, contents=e.version, touched_at=e.at), *_is(e)]


def _over(e: Event, status: Status) -> list[Change]:
    emptied: dict[str, Any] = {map: {} for map in MAPS}
    return [carts.put(e.id, **emptied), *_is(e, status=status, abandoned=False)]
