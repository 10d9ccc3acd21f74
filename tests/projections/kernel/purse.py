"""A toy domain and its read models in all three stores: purses with a balance, notes in them, and totals that all purses share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any
from uuid import UUID, uuid5

import schemas
from aggregates.kernel import Aggregate, Created, Event, Recorded, event
from aggregates.kernel.event import EPOCH
from aggregates.kernel.wire import Row, headers, recorded
from projections.kernel import Change, ClickTable, RedisTable, Table, ignore, project
from projections.kernel.runner import Delivery

DOMAIN = "pouch"  # not the `purse` of tests/api: one process may import both
SPACE = UUID(int=7)
POISON = -666  # `projected` raises at this amount until it is mended
HELD_UP = -667  # a projection waits at this amount while the file TITAN_TEST_HELD_UP is there
TOO_MUCH = 2**62  # twice this is more than a bigint holds


def _record(name: str, /, **fields: object) -> dict[str, object]:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}


schemas.define(
    DOMAIN,
    [
        _record("Opened", owner={"type": "string", "logicalType": "uuid"}, currency="string"),
        _record("Filled", amount="long"),
        _record("Noted", note="string", text="string"),
        _record("Torn", note="string"),
        _record("Closed"),
        _record("Blessed"),
    ],
)


class Opened(Created):
    owner: UUID
    currency: str


class Filled(Event):
    amount: int


class Noted(Event):
    note: str
    text: str


class Torn(Event):
    note: str


class Closed(Event):
    pass


class Blessed(Event):
    pass


class Purse(Aggregate):
    @event(Opened)
    def __init__(self, owner: UUID, currency: str) -> None:
        self.owner, self.currency = owner, currency


class mended:
    """Whether the bug behind POISON is mended."""

    now = False


purses = Table(
    "purses", key="id", id=UUID, owner=UUID, currency=str, balance=int, fills=int, opened_at=datetime, tags=list[str],
    note=str | None, indexes=[("owner", "opened_at"), "USING gin (tags)"],
)  # fmt: skip
totals = Table("totals", key="currency", currency=str, filled=int, fills=int)
pockets = RedisTable(
    "pockets", key="id", id=UUID, owner=UUID, balance=int, closed=bool, notes=dict[str, str], counts=dict[str, int],
    lua={"ring": "redis.call('HINCRBY', tag .. '#bells', (...), 1)"},
)  # fmt: skip
fills = ClickTable(
    "fills", order_by=("at",), purse=UUID, at=datetime, amount=int, actor=str,
    views={"filled": "SELECT purse, sum(amount) AS amount FROM fills FINAL GROUP BY purse"},
)  # fmt: skip


@project
def opened(e: Opened) -> list[Change]:
    return [
        purses.put(e.id, owner=e.owner, currency=e.currency, opened_at=e.at, tags=["new"]),
        pockets.put(e.id, owner=e.owner, closed=False),
    ]


def held_up(e: Filled) -> None:
    while e.amount == HELD_UP and os.path.exists(os.environ.get("TITAN_TEST_HELD_UP", "")):
        time.sleep(0.02)


@project
def filled(e: Filled) -> list[Change]:
    if e.amount == POISON and not mended.now:
        raise ArithmeticError("poison")
    held_up(e)
    return [
        purses.add(e.id, balance=e.amount, fills=1),
        totals.add("EUR", filled=e.amount % 1000, fills=1),
        pockets.add(e.id, balance=e.amount),
        pockets.add_item(e.id, "counts", "fills", 1),
    ]


@project
def recorded_fill(r: Recorded[Filled]) -> list[Change]:
    held_up(r.event)
    return [fills.row(purse=r.event.id, at=r.event.at, amount=r.event.amount, actor=r.actor)]


@project
def noted(e: Noted | Torn) -> list[Change]:
    if isinstance(e, Noted):
        return [
            purses.put(e.id, note=e.text, tags=["noted", e.note]),
            pockets.set_item(e.id, "notes", e.note, e.text),
            pockets.call(e.id, "ring", e.note),
        ]
    return [purses.put(e.id, note=None), pockets.drop_item(e.id, "notes", e.note)]


@project
def closed(e: Closed) -> list[Change]:
    return [purses.drop(e.id), pockets.drop(e.id)]


ignore(Blessed)


class Log:
    """A topic of purse events as it would lie in Kafka: ids without gaps over partitions by purse."""

    def __init__(self, partitions: int = 2) -> None:
        self.partitions, self.rows, self.versions = partitions, list[Row](), dict[UUID, int]()
        self._read: list[tuple[Row, Recorded[Event]]] = []

    def purse(self, number: int) -> UUID:
        return uuid5(SPACE, str(number))

    def add(self, number: int, event: type[Event], /, **fields: Any) -> Row:
        id = self.purse(number)
        self.versions[id] = self.versions.get(id, 0) + 1
        position = len(self.rows) + 1
        row = Row(
            position, id, self.versions[id], event.type, event.binding.encode(fields), uuid5(SPACE, f"event {position}"),
            EPOCH + timedelta(days=20_000, seconds=position), "test", None, f"user:{number}",
        )  # fmt: skip
        self.rows.append(row)
        return row

    def partition(self, row: Row) -> int:
        return row.originator_id.int % self.partitions

    def deliveries(self, rows: Iterable[Row] | None = None) -> list[Delivery]:
        """In order; offsets count within each partition."""
        offsets = [0] * self.partitions
        made = []
        for row in self.rows:
            partition = self.partition(row)
            made.append(
                Delivery(
                    DOMAIN, partition, offsets[partition], str(row.originator_id).encode(), row.state, headers(row)
                )
            )
            offsets[partition] += 1
        if rows is None:
            return made
        wanted = {row.notification_id for row in rows}
        return [delivery for delivery in made if delivery.notification_id in wanted]

    def events(self) -> Sequence[Recorded[Event]]:
        """Each row is read once: tests ask again and again until a store holds what it should."""
        self._read = [
            read if read and read[0] is row else (row, recorded(DOMAIN, row))
            for row, read in zip_longest(self.rows, self._read[: len(self.rows)])
        ]
        return [event for _, event in self._read]


def expected(log: Log, without: Iterable[int] = ()) -> dict[UUID, tuple[int, int, str | None]]:
    """(balance, fills, note) by open purse, from the events alone, in plain Python; without those of some purses."""
    rows: dict[UUID, tuple[int, int, str | None]] = {}
    skipped = {log.purse(number) for number in without}
    for one in log.events():
        it = one.event
        if it.id in skipped:
            continue
        balance, count, note = rows.get(it.id, (0, 0, None))
        if isinstance(it, Filled):
            balance, count = balance + it.amount, count + 1
        elif isinstance(it, Noted):
            note = it.text
        elif isinstance(it, Torn):
            note = None
        elif isinstance(it, Closed):
            rows.pop(it.id, None)
            continue
        elif isinstance(it, Blessed):
            continue
        rows[it.id] = (balance, count, note)
    return rows
