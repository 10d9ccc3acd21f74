"""The reads that every service has: `GET /wallets`, `/wallets/{id}` (now, at a version, at a time), `/wallets/{id}/events`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any, cast
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Path, Query, Security
from pydantic import BaseModel, Field, create_model
from starlette.responses import Response

from aggregates.kernel import Aggregate, Event, Invalid, NotFound, Recorded
from aggregates.kernel.event import ENVELOPE
from api.kernel.auth import Bearer, Caller
from api.kernel.commands import OWNED, Owned
from api.kernel.host import Host
from api.kernel.positions import POSITION, passed, row_made
from api.kernel.problems import Problem, retry_after, unauthenticated
from api.kernel.route import Route
from api.kernel.stores import HostPiece
from api.kernel.types import Moment
from projections.kernel.clauses import PROJECTIONS, changes
from projections.kernel.tables import AnyTable, Change, json_bytes

PAGE_ROWS_MAX = 100
EVENTS_MAX = 500
VERSION_MAX = 2**31 - 1
OWNERS = ("owner", "customer")  # columns that say whose a row is, unless `service` is told another

Id = Annotated[UUID, Path(description="The aggregate.", examples=["0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a"])]
After = Annotated[
    str | None,
    Query(
        description="The `position` of a receipt: wait until it can be read here.",
        pattern=POSITION,
        examples=["order:1042"],
    ),
]
Cursor = Annotated[
    str | None, Query(description="`next` of the page before.", max_length=2_000, pattern="^[A-Za-z0-9_-]+$")
]
Limit = Annotated[int, Query(ge=1, le=PAGE_ROWS_MAX, description="Rows of a page.", examples=[20])]


class Fact(BaseModel):
    """Something that happened to an aggregate."""

    version: int = Field(ge=1, examples=[1])
    type: str = Field(examples=["wallet.Deposited"])
    at: datetime
    position: str = Field(pattern=POSITION, examples=["wallet:7"])
    correlation: str = Field(description="The request that caused it.", examples=["0af7651916cd43dd8448eb211c80319c"])
    actor: str = Field(examples=["user:0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a"])
    data: dict[str, Any]


class Facts(BaseModel):
    """Events in order. `next`: send it back as `from` for those that follow; null at the end."""

    items: list[Fact]
    next: int | None = Field(examples=[None])


def service(
    plural: str,
    aggregate: type[Aggregate],
    table: AnyTable,
    *,
    owner: str | None = "",
    public: Mapping[str, Any] | None = None,
    reads: str = "",
    everything: str = "",
    filters: Sequence[str] = (),
    order: str = "",
) -> APIRouter:
    """A router with the reads of one aggregate's read model; its commands are added to it.

    `owner`: the column (and the aggregate's attribute) with the id of whose it is; "" looks for `owner` or `customer`, None
    says that it is nobody's. Another's is a 404 for reads and commands alike. `public`: reads need no token and show the rows
    whose columns have these values; the owner sees the own ones too, in a list that is filtered by the owner. `reads`: the
    scope that reading needs (default `<plural>:read`, which customers have). `everything`: the one that sees and changes all
    (default `<plural>:any`). `filters`: columns that a list may be narrowed by. `order`:
    the list's column, "-created_at" for newest first.
    """
    if len(table.key) != 1 or table.columns[table.key[0]].kind is not UUID:
        raise TypeError(f"{table.name} is not keyed by the aggregate's id")
    if owner == "":
        owner = next((name for name in OWNERS if name in table.columns), None)
    if (
        unknown := {*filters, *(public or ()), *([owner] if owner else ()), *([order.lstrip("-")] if order else ())}
        - table.columns.keys()
    ):
        raise TypeError(f"{table.name} has no column {', '.join(sorted(unknown))}")
    shown = Reads(plural, aggregate, table, owner, public, reads or f"{plural}:read", everything or f"{plural}:any")
    OWNED[aggregate] = Owned(plural, owner, shown.everything)
    router = APIRouter(prefix=f"/{plural}", tags=[plural], route_class=Route)
    row = row_model(aggregate.__name__, table)
    name, singular = plural, aggregate.__name__.lower()
    if hasattr(table, "page"):
        page: Any = create_model(
            f"{aggregate.__name__}Page",
            __doc__=f"{plural.capitalize()}, and the cursor of the next page; null at the end.",
            items=(list[row], ...),  # type: ignore[valid-type]
            next=(str | None, Field(examples=[None])),
        )
        router.get("", summary=f"List {name}", response_model=page, responses={404: {}})(shown.list_of(filters, order))
    router.get("/{id}", summary=f"One {singular}, now or as it was", response_model=row)(shown.one())
    router.get("/{id}/events", summary=f"What happened to one {singular}", response_model=Facts)(shown.events())
    return router


def row_model(name: str, table: AnyTable) -> Any:
    """A table's row for OpenAPI. What has no zero (an id, a time) may be null until it is known."""
    fields: dict[str, Any] = {}
    for column in table.columns.values():
        blank = column.kind in (UUID, datetime, date) and column.name not in table.key
        declared = column.declared | None if column.nullable or blank else column.declared
        fields[column.name] = (declared, ...)
    return create_model(name, **fields)


class Reads:
    """The three read routes of one service."""

    def __init__(
        self,
        plural: str,
        aggregate: type[Aggregate],
        table: AnyTable,
        owner: str | None,
        public: Mapping[str, Any] | None,
        scope: str,
        everything: str,
    ) -> None:
        self.aggregate, self.table, self.owner, self.public, self.everything = (
            aggregate,
            table,
            owner,
            public,
            everything,
        )
        optional = public is not None
        bearer = Bearer(None if optional else scope, optional=optional)
        Bearer(everything)  # is it a scope?
        self.By: Any = Annotated[Caller | None, Security(bearer)]
        self.To: Any = Annotated[Host, Depends(HostPiece())]
        self.singular = aggregate.__name__.lower()

    def list_of(self, filters: Sequence[str], order: str) -> Any:
        async def listed(
            by: Caller | None, host: Host, cursor: str | None, limit: int, after: str | None, **wanted: Any
        ) -> Response:
            if after:
                await passed(host, self.table, after)
            where = {name: value for name, value in wanted.items() if value is not None}
            for name, value in self._visible(
                by, where
            ).items():  # a filter narrows what is visible, and never widens it
                if name in where and not _is(where[name], value):
                    return await rendered(host, {"items": [], "next": None})
                where.setdefault(name, value)
            page = await paged(host, self.table, where=where, order=order, after=cursor, limit=limit)
            return await rendered(host, {"items": page.rows, "next": page.after})

        chosen = {name: Annotated[self.table.columns[name].declared | None, Query()] for name in filters}
        return _signed(
            listed, defaults={"limit": 20}, by=self.By, host=self.To, cursor=Cursor, limit=Limit, after=After, **chosen
        )

    def one(self) -> Any:
        async def one(
            id: UUID, by: Caller | None, host: Host, version: int | None, at: datetime | None, after: str | None
        ) -> Response:
            row = await self._row(host, by, id, after)
            if version is None and at is None:
                return await rendered(host, row, row.get("version"))
            self._all_of(by, row)
            return await self._as_it_was(host, id, version, at)

        Version = Annotated[
            int | None, Query(ge=1, le=VERSION_MAX, description="As it was at this version.", examples=[1])
        ]
        At = Annotated[Moment | None, Query(description="As it was at this time.", examples=["2030-01-01T00:00:00Z"])]
        return _signed(one, id=Id, by=self.By, host=self.To, version=Version, at=At, after=After)

    def events(self) -> Any:
        async def events(
            id: UUID, by: Caller | None, host: Host, from_: int, limit: int, after: str | None
        ) -> Response:
            self._all_of(by, await self._row(host, by, id, after))
            found = await host.store.history(self.aggregate, id, after=from_, limit=limit + 1)
            domain = self.aggregate.domain
            items = [fact(domain, one) for one in found[:limit]]
            return await rendered(host, {"items": items, "next": items[-1]["version"] if len(found) > limit else None})

        From = Annotated[
            int, Query(alias="from", ge=0, le=VERSION_MAX, description="Those after this version.", examples=[0])
        ]
        Most = Annotated[int, Query(ge=1, le=EVENTS_MAX, description="Events of a page.", examples=[100])]
        defaults = {"from_": 0, "limit": 100}
        return _signed(events, defaults=defaults, id=Id, by=self.By, host=self.To, from_=From, limit=Most, after=After)

    def _visible(self, by: Caller | None, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The columns' values that listed rows must have: of what is public, one's own is all there if one asks for it."""
        if by is not None and by.may(self.everything):
            return {}
        mine: dict[str, Any] = {self.owner: by.id} if self.owner is not None and by is not None else {}
        if self.public is not None and not (mine and mine.items() <= wanted.items()):
            return dict(self.public)
        return mine

    def _shows(self, by: Caller | None, row: Mapping[str, Any]) -> bool:
        """Whether this caller may see a row: as anybody may, or as its owner."""
        shown = [self._visible(by, {}), self._visible(by, row)]
        return any(all(_is(row.get(name), value) for name, value in one.items()) for one in shown)

    def _all_of(self, by: Caller | None, row: Mapping[str, Any]) -> None:
        """What is public is so as it is now: its past may hold what was never published."""
        if self.public is None or (by is not None and by.may(self.everything)):
            return
        if by is None:
            raise unauthenticated("the past needs a token", tried=False)
        if self.owner is None or row.get(self.owner) != by.id:
            raise Problem("forbidden", f"this needs {self.everything}")

    async def _row(self, host: Host, by: Caller | None, id: UUID, after: str | None) -> dict[str, Any]:
        if after:
            await passed(host, self.table, after)
        row = await row_made(host, self.table, self.aggregate.domain, id)
        if row is None or not self._shows(by, row):
            raise NotFound(f"there is no {self.singular} {id}")
        return row

    async def _as_it_was(self, host: Host, id: UUID, version: int | None, at: datetime | None) -> Response:
        """The row that the aggregate's own events up to then make."""
        found = await host.store.history(self.aggregate, id, version=version, at=at)
        while found and found[-1].event.version != len(found):
            found.pop()  # two writers' clocks differ: what stands above a gap had not happened yet
        if not found or (version is not None and found[-1].event.version != version and at is None):
            raise NotFound(f"there was no {self.singular} {id} then")
        projection = next((one for one in PROJECTIONS.values() if any(t is self.table for t in one.tables)), None)
        if projection is None:
            raise Invalid(f"{self.table.name} has no history")
        made = row_at(self.table, id, (change for one in found for change in changes(one, [projection])))
        if made is None:
            raise NotFound(f"there was no {self.singular} {id} then")
        return await rendered(host, made, found[-1].event.version)


async def paged(host: Host, table: AnyTable, *, after: str | None, **asked: Any) -> Any:
    """A page of a table in Postgres. Raises `NotFound` for a cursor that is not this list's."""
    try:
        return await cast(Any, table).page(host.views, after=after, **asked)
    except Invalid as error:
        raise NotFound("there is no such page: the cursor is not this list's") from error


def row_at(table: AnyTable, id: UUID, made: Iterable[Change]) -> dict[str, Any] | None:
    """The row that these changes leave, None when they leave none."""
    row: dict[str, Any] | None = None
    for _, op, _, values in (change for change in made if change.table is table and change.key == id):
        if op == "drop":
            row = None
            continue
        if row is None:
            row = {column.name: column.blank for column in table.columns.values()} | table.keys(id)
        if op == "put":
            row.update(values)
        elif op == "add":
            row.update({name: (row[name] or 0) + by for name, by in values.items()})
        elif op in ("set_item", "add_item", "drop_item"):
            items = dict(row[values["map"]])
            before = items.pop(values["item"], 0)
            if op != "drop_item":
                items[values["item"]] = values["value"] + before if op == "add_item" else values["value"]
            row[values["map"]] = items
        else:
            raise Invalid(f"{table.name} keeps no history: the store's own code makes its rows")
    return row


def fact(domain: str, one: Recorded[Event]) -> dict[str, Any]:
    """An event as the API shows it."""
    event = one.event
    return {
        "version": event.version, "type": event.type, "at": event.at, "position": f"{domain}:{one.position}",
        "correlation": one.correlation, "actor": one.actor,
        "data": {name: value for name, value in event.__dict__.items() if name not in ENVELOPE},
    }  # fmt: skip


async def rendered(host: Host, value: Any, version: int | None = None, only: UUID | None = None) -> Response:
    """A 200 with JSON, personal data opened for whoever may see the row. `version` becomes the ETag; `only`: nobody else's data."""
    body = json_bytes(value)
    if b'"sealed:1:' in body:
        if host.vault is None:
            raise Problem(
                "unavailable", "personal data cannot be read: the master key is missing", headers=retry_after(30)
            )
        body = orjson.dumps(await host.vault.open_all(orjson.loads(body), only))
    headers = {"cache-control": "no-store"}
    if version is not None:
        headers["etag"] = f'"{version}"'
    return Response(body, media_type="application/json", headers=headers)


def _is(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, list | tuple | set | frozenset) else found == wanted


def _signed(function: Any, defaults: Mapping[str, Any] | None = None, **parameters: Any) -> Any:
    """The function under a signature that FastAPI reads: optional parameters default to None."""
    needed = {"id", "by", "host"}
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=annotation,
                default=inspect.Parameter.empty if name in needed else (defaults or {}).get(name),
            )
            for name, annotation in parameters.items()
        ],
        return_annotation=Response,
    )
    return function
