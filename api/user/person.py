"""All that is known of a person, for the person; and its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import domains
from aggregates.kernel.event import AGGREGATES
from aggregates.user import User
from api.kernel import Body, Commands, Receipt
from api.kernel.host import Host
from api.kernel.reads import fact, rendered
from api.kernel.route import Route
from api.kernel.stores import Store, TheHost
from api.user.own import Owner, Reader, known
from projections.kernel import RedisTable, Table
from projections.kernel.clauses import projections

PERSON = ("owner", "customer", "account", "user")  # columns that name a person
PAGE_ROWS = 500
EVENTS_MAX = 10_000  # of one thing

router = APIRouter(prefix="/users", tags=["users"], route_class=Route)


class Export(BaseModel):
    """Rows by read model, and what happened by domain, with personal data in the clear."""

    person: UUID
    tables: dict[str, list[dict[str, Any]]] = Field(examples=[{"users": [{"name": "Ada Lovelace"}]}])
    events: dict[str, list[dict[str, Any]]] = Field(examples=[{"user": [{"type": "user.Joined"}]}])


class Confirming(Body):
    confirm: Literal["erase everything"]


@router.get("/{id}/export", summary="All that is known of a person", response_model=Export)
async def export(id: UUID, by: Reader, store: Store, host: TheHost) -> Response:
    """Every row of every read model that is the person's or belongs to something of theirs, and the events of all that."""
    await known(store, by, id)
    tables, things = await _rows(host, id)
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for domain, own in things.items():
        cls = next(one for one in AGGREGATES.values() if one.domain == domain)
        for one in sorted(own):
            found = await store.history(cls, one, limit=EVENTS_MAX)
            events[domain] += [{"id": one, **fact(domain, happened)} for happened in found]
    return await rendered(host, {"person": id, "tables": tables, "events": dict(events)})


@router.post("/{id}/erase", summary="Have everything personal erased, for good")
async def erase(id: UUID, body: Confirming, by: Owner, commands: Commands) -> Receipt:
    """The account is closed and the person's key destroyed: within a minute nobody can read what was sealed with it, in no topic, table
    or copy. What the law wants kept (orders, payments and their sums) stays, without saying whose it was."""
    return await commands.tell(id, User.ask_erasure)


async def _rows(host: Host, person: UUID) -> tuple[dict[str, list[dict[str, Any]]], dict[str, set[UUID]]]:
    """Rows by table, and the ids of the person's things by domain."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    things: dict[str, set[UUID]] = defaultdict(set)
    for domain, table in _tables(Table):
        mine = [name for name in PERSON if name in table.columns and table.columns[name].kind is UUID]
        if table.key == ("id",) and domain in ("auth", "user"):
            mine = ["id"]
        for name in mine[:1]:
            rows[table.name] = await _all(host, table, {name: person})
            if table.key == ("id",) and domain in domains():
                things[domain] |= {row["id"] for row in rows[table.name]}
    for _, table in _tables(Table):
        inner = [name for name, column in table.columns.items() if name in things and column.kind is UUID]
        if table.name not in rows and inner and inner[0] in table.key:
            rows[table.name] = await _all(host, table, {inner[0]: things[inner[0]]})
    for domain, table in _tables(RedisTable):
        if table.key == ("id",) and things.get(domain):
            found = await table.get_many(host.redis, list(things[domain]), host.settings.namespace)
            rows[table.name] += [row for row in found.values() if row is not None]
    return {name: found for name, found in rows.items() if found}, things


def _tables(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    for projection in projections():
        for table in projection.tables:
            if isinstance(table, kind):
                yield projection.name, table


async def _all(host: Host, table: Table, where: dict[str, Any]) -> list[dict[str, Any]]:
    found, after = [], None
    while True:
        page = await table.page(host.views, where=where, after=after, limit=PAGE_ROWS)
        found += page.rows
        after = page.after
        if after is None:
            return found
