"""All that is known of a person, for the person; and its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any, Literal
from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from aggregates.kernel import domains
from aggregates.user import User
from api.kernel import Body, Commands, Receipt
from api.kernel.host import Host
from api.kernel.reads import fact, rendered
from api.kernel.route import Route
from api.kernel.stores import Store, TheHost
from api.user.own import Owner, Reader, known
from projections.kernel import ClickTable, RedisTable, Table
from projections.kernel.clauses import projections
from projections.kernel.tables import AnyTable

PAGE_ROWS = 500

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
    """Every row of every read model that is the person's or part of something of theirs, and all events of all that.

    What somebody else has said in it, in a voucher that was theirs before, say, is blank.
    """
    await known(store, by, id)
    tables, things = await _rows(host, id)
    events: dict[str, list[dict[str, Any]]] = {}
    for domain in domains():
        found = [{"id": one.event.id, **fact(domain, one)} async for one in store.histories(domain, {id, *things})]
        if found:
            events[domain] = found
    return await rendered(host, {"person": id, "tables": tables, "events": events}, only=id)


@router.post("/{id}/erase", summary="Have everything personal erased, for good")
async def erase(id: UUID, body: Confirming, by: Owner, commands: Commands) -> Receipt:
    """The account is closed and the person's key destroyed: within a minute nobody can read what was sealed with it, in no topic, table
    or copy. What the law wants kept (orders, payments and their sums) stays, without saying whose it was."""
    return await commands.tell(id, User.ask_erasure)


async def _rows(host: Host, person: UUID) -> tuple[dict[str, list[dict[str, Any]]], set[UUID]]:
    """Rows by table, found by the columns that the tables declare, and the ids of all things that are the person's."""
    tables = [table for projection in projections() for table in projection.tables]
    found: dict[str, dict[Any, dict[str, Any]]] = defaultdict(dict)  # by key: a row may be found by two columns
    things: set[UUID] = set()

    def keep(table: AnyTable, rows: Collection[dict[str, Any]]) -> set[UUID]:
        name = f"{table.sink}.{table.name}" if isinstance(table, ClickTable) else table.name
        mine = found[name]
        for row in rows:
            mine[tuple(row[part] for part in table.key) or len(mine)] = row
        return {row["id"] for row in rows if table.key == ("id",)} - things

    new: set[UUID] = set()
    for table in tables:
        for column in table.person:
            new |= keep(table, await _naming(host, table, column, {person}))
    while new:  # a part may have parts of its own
        asked, new = new, set()
        things |= asked
        for table in tables:
            for column in table.part_of:
                new |= keep(table, await _naming(host, table, column, asked))
    for table in tables:
        if isinstance(table, RedisTable) and (table.person or table.part_of):
            keep(table, (await table.get_many(host.redis, things, host.settings.namespace)).values())
    return {name: list(rows.values()) for name, rows in found.items() if rows}, things


async def _naming(host: Host, table: AnyTable, column: str, ids: set[UUID]) -> list[dict[str, Any]]:
    """The rows in which a column is one of these ids. Redis can't be asked so: its rows are read by the things' own ids."""
    if isinstance(table, Table):
        rows, after = [], None
        while True:
            page = await table.page(host.views, where={column: ids}, after=after, limit=PAGE_ROWS)
            rows += page.rows
            after = page.after
            if after is None:
                return rows
    if isinstance(table, ClickTable):
        client = await host.clickhouse()
        query = f"SELECT {', '.join(table.columns)} FROM {table.name} FINAL WHERE {column} IN {{ids:Array(UUID)}}"
        answer = await client.query(query, parameters={"ids": list(ids)}, tz_mode="aware")
        return list(answer.named_results())
    return []
