"""Stock by location for sellers, reservations for whoever has to explain them, and the fold that the gate counts by."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from aggregates.inventory import (
    MAIN,
    Adjusted,
    Committed,
    Expired,
    Opened,
    Received,
    Released,
    Reserved,
    stock_id,
)
from projections.kernel import Change, Table, project
from projections.kernel.gate import GateTable

stocks = Table(
    "stocks",
    key="id",
    id=UUID,
    version=int,
    sku=str,
    location=str,
    seller=UUID | None,
    on_hand=int,
    reserved=int,
    available=int,
    updated_at=datetime,
    indexes=[("sku", "location"), ("seller", "sku")],
)
reservations = Table(
    "reservations",
    key=("reservation", "stock"),
    reservation=UUID,
    stock=UUID,
    quantity=int,
    status=str,  # held, committed, released, expired
    expires_at=datetime | None,  # not by itself
    ended_at=datetime,
    part_of="reservation",
    indexes=[("stock", "status")],
)
shelves = GateTable("shelves", key="id", id=UUID)


def shelf_of(sku: str, location: str = MAIN) -> UUID:
    """The row of `shelves` (and of `stocks`) of a SKU at a location."""
    return stock_id(sku, location)


@project
def opened(e: Opened) -> list[Change]:
    made = stocks.put(e.id, version=e.version, sku=e.sku, location=e.location, seller=e.seller, updated_at=e.at)
    return [made, shelves.put(e.id, on_hand=0, reserved=0)]


@project
def received(e: Received) -> list[Change]:
    return [*_counted(e, on_hand=e.quantity, available=e.quantity), shelves.add(e.id, on_hand=e.quantity)]


@project
def adjusted(e: Adjusted) -> list[Change]:
    return [*_counted(e, on_hand=e.delta, available=e.delta), shelves.add(e.id, on_hand=e.delta)]


@project
def reserved(e: Reserved) -> list[Change]:
    held = reservations.put(
        (e.reservation, e.id), quantity=e.quantity, status="held", expires_at=e.expires_at, ended_at=None
    )
    counted = _counted(e, reserved=e.quantity, available=-e.quantity)
    return [*counted, held, *shelves.hold(e.id, e.reservation, e.quantity)]


@project
def committed(e: Committed) -> list[Change]:
    ended = reservations.put((e.reservation, e.id), status="committed", ended_at=e.at)
    return [
        *_counted(e, on_hand=-e.quantity, reserved=-e.quantity),
        ended,
        *shelves.sold(e.id, e.reservation, e.quantity, e.at),
    ]


@project
def freed(e: Released | Expired) -> list[Change]:
    status = "released" if isinstance(e, Released) else "expired"
    ended = reservations.put((e.reservation, e.id), status=status, ended_at=e.at)
    counted = _counted(e, reserved=-e.quantity, available=e.quantity)
    return [*counted, ended, *shelves.freed(e.id, e.reservation, e.quantity, e.at)]


def _counted(e: Received | Adjusted | Reserved | Committed | Released | Expired, **by: int) -> list[Change]:
    return [stocks.put(e.id, version=e.version, updated_at=e.at), stocks.add(e.id, **by)]
