"""The event store: aggregates loaded from their events, and the door to commands. Async; one a process."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from aggregates.kernel import snapshot, wire
from aggregates.kernel.committer import Committer
from aggregates.kernel.errors import NotFound, Unavailable
from aggregates.kernel.event import Aggregate, Event
from aggregates.kernel.migrate import names
from aggregates.kernel.recorder import CommandRow, Connection
from aggregates.kernel.wire import COLUMNS, Recorded, Row

if TYPE_CHECKING:
    from aggregates.kernel.commands import Commands, Origin

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Aggregate)
POOL_WAIT_S = 2.0
RECENT_MAX = 2_000  # aggregates of a database kept in a process between two commands
PAGE_EVENTS = 1_000
AWAY = (psycopg.OperationalError, PoolTimeout, OSError)


@dataclass(slots=True)
class Loaded:
    """An aggregate as read, and the notification id of its newest event."""

    aggregate: Aggregate | None
    position: int


class Database:
    """One Postgres that holds the tables of some domains: its pool for reads, its committer for writes."""

    def __init__(self, dsn: str, readers: int) -> None:
        self.committer = Committer(dsn)
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            dsn,
            connection_class=psycopg.AsyncConnection[TupleRow],
            min_size=1,
            max_size=readers,
            timeout=POOL_WAIT_S,
            open=False,
            kwargs={"autocommit": True, "prepare_threshold": 2, "connect_timeout": 2},
        )
        self._waiting: dict[tuple[type[Aggregate], bool], dict[UUID, asyncio.Future[Loaded]]] = {}
        self._loading: set[asyncio.Task[None]] = set()
        self._recent: OrderedDict[tuple[type[Aggregate], UUID], Loaded] = OrderedDict()

    async def __aenter__(self) -> Database:
        await self._pool.open(wait=False)
        await self.committer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.committer.__aexit__(*error)
        await self._pool.close()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection in autocommit. Raises `Unavailable` when the database is away."""
        try:
            async with self._pool.connection() as connection:
                yield connection
        except AWAY as error:
            raise Unavailable("the event store does not answer") from error

    def keep(self, aggregate: Aggregate, position: int) -> None:
        """Hand back a committed aggregate that nobody holds any more, for the next command on it."""
        self._recent[type(aggregate), aggregate.id] = Loaded(aggregate, position)
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    def take(self, cls: type[Aggregate], id: UUID) -> Loaded | None:
        """What was handed back, if it is here still. It may be out of date; whoever takes it has it alone."""
        return self._recent.pop((cls, id), None)

    async def load(self, cls: type[Aggregate], id: UUID, *, to_change: bool = False) -> Loaded:
        """The newest state. Loads asked for in the same turn of the event loop share one round trip.

        `to_change`: the caller alone changes the object; otherwise it may be shared by readers and is not to be changed.
        """
        key = cls, to_change
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = {}
            asyncio.get_running_loop().call_soon(self._start, key)
        if id not in waiting:
            waiting[id] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(waiting[id])

    def _start(self, key: tuple[type[Aggregate], bool]) -> None:
        waiting = self._waiting.pop(key)
        task = asyncio.ensure_future(self._load_many(*key, waiting))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load_many(
        self, cls: type[Aggregate], to_change: bool, waiting: Mapping[UUID, asyncio.Future[Loaded]]
    ) -> None:
        recent: dict[UUID, Loaded] = {}
        if to_change:  # taken out: whoever changes it has it alone
            recent = {id: kept for id in waiting if (kept := self.take(cls, id)) is not None}
        try:
            found = await self._read(cls, list(waiting), recent)
        except BaseException as error:
            for future in waiting.values():
                if not future.done():
                    future.set_exception(error)
            return
        for id, future in waiting.items():
            if not future.done():
                loaded = found[id]
                if isinstance(loaded, Exception):
                    future.set_exception(loaded)
                else:
                    future.set_result(loaded)

    async def _read(
        self, cls: type[Aggregate], ids: Sequence[UUID], recent: dict[UUID, Loaded]
    ) -> dict[UUID, Loaded | Exception]:
        """States from the events that are stored: after what is kept here, else after a snapshot, else from the first."""
        table = names(cls.domain)
        unknown = [id for id in ids if id not in recent]
        async with self.reading() as connection:
            if cls.snapshot_every and unknown:
                cursor = await connection.execute(
                    sql.SQL(
                        "SELECT originator_id, originator_version, state FROM {snapshots}"
                        " WHERE originator_id = ANY(%b) AND fingerprint = %s"
                    ).format(**table),
                    (unknown, snapshot.fingerprint(cls)),
                    binary=True,
                )
                for id, version, state in await cursor.fetchall():
                    recent[id] = Loaded(snapshot.restore(cls, id, version, state), 0)
            cursor = await connection.execute(
                sql.SQL(
                    "SELECT e.originator_id, e.originator_version, e.state, e.occurred_at, e.notification_id"
                    " FROM unnest(%b::uuid[], %b::int[]) AS q(id, version)"
                    " JOIN {events} e ON e.originator_id = q.id AND e.originator_version > q.version"
                    " ORDER BY e.originator_id, e.originator_version"
                ).format(**table),
                (list(ids), [_known(recent.get(id)) for id in ids]),
                binary=True,
            )
            rows = await cursor.fetchall()
        by_id: dict[UUID, list[tuple[Any, ...]]] = {id: [] for id in ids}
        for row in rows:
            by_id[row[0]].append(row)
        made: dict[UUID, Loaded | Exception] = {}
        for id, events in by_id.items():
            try:
                made[id] = _fold(cls, id, recent.get(id), events)
            except Exception as error:  # one unreadable history must not fail the others of its round trip
                made[id] = error
        return made

    async def save_snapshot(self, cls: type[Aggregate], id: UUID, version: int, state: bytes) -> None:
        """Keep a snapshot, unless a newer one of the same code is there."""
        async with self.reading() as connection:
            await connection.execute(
                sql.SQL(
                    "INSERT INTO {snapshots} AS old (originator_id, originator_version, fingerprint, state) VALUES (%s, %s, %s, %b)"
                    " ON CONFLICT (originator_id) DO UPDATE SET originator_version = EXCLUDED.originator_version,"
                    " fingerprint = EXCLUDED.fingerprint, state = EXCLUDED.state"
                    " WHERE old.fingerprint <> EXCLUDED.fingerprint OR old.originator_version < EXCLUDED.originator_version"
                ).format(**names(cls.domain)),
                (id, version, snapshot.fingerprint(cls), state),
            )


def _known(kept: Loaded | None) -> int:
    """Events above this version are read. Of a snapshot its own last event too, for that event's position."""
    if kept is None or kept.aggregate is None:
        return 0
    return kept.aggregate.version if kept.position else kept.aggregate.version - 1


def _fold(cls: type[Aggregate], id: UUID, kept: Loaded | None, rows: Sequence[tuple[Any, ...]]) -> Loaded:
    aggregate, position = (kept.aggregate, kept.position) if kept else (None, 0)
    version = aggregate.version if aggregate else 0
    for _, number, state, at, notification_id in rows:
        position = notification_id
        if number > version:
            aggregate = cast(Aggregate, wire.decode(cls.domain, id, number, at, state).mutate(aggregate))
    if not isinstance(aggregate, cls):
        aggregate = None  # nothing there, or the id is that of another kind of aggregate of the domain
    return Loaded(aggregate, position)


class Store:
    """All domains' event stores. `async with Store.open(dsn) as store:`"""

    def __init__(self, default: Database, domains: Mapping[str, Database]) -> None:
        self._default, self._domains = default, domains
        from aggregates.kernel.commands import Executor

        self._executor = Executor(self)

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, domains: Mapping[str, str] | None = None, readers: int = 4) -> AsyncIterator[Store]:
        """Connect. `domains` names databases of their own; `readers` bounds the connections for reads a database."""
        async with AsyncExitStack() as stack:
            made: dict[str, Database] = {}
            for one in {dsn, *(domains or {}).values()}:
                made[one] = await stack.enter_async_context(Database(one, readers))
            store = cls(made[dsn], {domain: made[one] for domain, one in (domains or {}).items()})
            try:
                yield store
            finally:
                await store._executor.close()

    def database(self, domain: str) -> Database:
        """Where a domain's tables are."""
        return self._domains.get(domain, self._default)

    def commands(self, origin: Origin) -> Commands:
        """The door for commands of one origin (a request, a saga's step, a timer)."""
        from aggregates.kernel.commands import Commands

        return Commands(self._executor, origin)

    async def load(self, cls: type[A], id: UUID, *, version: int | None = None, at: datetime | None = None) -> A:
        """The aggregate: now, at a version, or at a time (events up to and at it). Raises `NotFound`, `Unavailable`."""
        if version is None and at is None:
            found = (await self.database(cls.domain).load(cls, id)).aggregate
        else:
            found = None
            for number, one in enumerate(await self.history(cls, id, version=version, at=at), start=1):
                if one.event.version != number:
                    break  # two writers' clocks differ: what stands above the gap had not happened yet
                found = one.event.mutate(found)
        if not isinstance(found, cls):
            raise NotFound(f"there is no {cls.__name__.lower()} {id}" + (" then" if version is not None or at else ""))
        return found

    async def history(
        self,
        cls: type[Aggregate],
        id: UUID,
        *,
        after: int = 0,
        version: int | None = None,
        at: datetime | None = None,
        limit: int | None = None,
    ) -> list[Recorded[Event]]:
        """The aggregate's events in order, above version `after`, up to a version and a time, `limit` at the most."""
        query = sql.SQL(
            f"SELECT {COLUMNS} FROM {{events}} WHERE originator_id = %s AND originator_version > %s"
            " AND originator_version <= coalesce(%s::int, 2147483647)"
            " AND occurred_at <= coalesce(%s::timestamptz, 'infinity') ORDER BY originator_version LIMIT %s"
        ).format(**names(cls.domain))
        async with self.database(cls.domain).reading() as connection:
            cursor = await connection.execute(query, (id, after, version, at and wire.utc(at), limit), binary=True)
            rows = await cursor.fetchall()
        return [wire.recorded(cls.domain, Row(*row)) for row in rows]

    async def histories(self, domain: str, ids: Collection[UUID]) -> AsyncIterator[Recorded[Event]]:
        """All events of a domain's aggregates with these ids, aggregate by aggregate, each in order; a page is held at a time."""
        query = sql.SQL(
            f"SELECT {COLUMNS} FROM {{events}} WHERE originator_id = ANY(%s) AND (originator_id, originator_version) > (%s, %s)"
            " ORDER BY originator_id, originator_version LIMIT %s"
        ).format(**names(domain))
        last = UUID(int=0), 0
        while True:
            async with self.database(domain).reading() as connection:
                cursor = await connection.execute(query, (list(ids), *last, PAGE_EVENTS), binary=True)
                rows = [Row(*row) for row in await cursor.fetchall()]
            for row in rows:
                yield wire.recorded(domain, row)
            if len(rows) < PAGE_EVENTS:
                return
            last = rows[-1].originator_id, rows[-1].originator_version

    async def answer(self, domain: str, command_id: UUID) -> CommandRow | None:
        """What a command that was stored before answered, else None."""
        query = sql.SQL(
            "SELECT command_id, fingerprint, originator_id, originator_version, notification_id FROM {commands} WHERE command_id = %s"
        ).format(**names(domain))
        async with self.database(domain).reading() as connection:
            row = await (await connection.execute(query, (command_id,), binary=True)).fetchone()
        return None if row is None else CommandRow(*row)

    async def owner(self, domain: str, scope: str, key: str) -> UUID | None:
        """The aggregate that holds a unique key now, else None."""
        query = sql.SQL("SELECT owner FROM {claims} WHERE (scope, key) = (%s, %s)").format(**names(domain))
        async with self.database(domain).reading() as connection:
            row = await (await connection.execute(query, (scope, key))).fetchone()
        return None if row is None else cast(UUID, row[0])

    async def snapshot(self, aggregate: Aggregate) -> None:
        """Keep a snapshot of a just loaded or committed aggregate. A failure is logged: the events stand."""
        try:
            state = snapshot.dump(aggregate)
            await self.database(aggregate.domain).save_snapshot(type(aggregate), aggregate.id, aggregate.version, state)
        except (TypeError, Unavailable, psycopg.Error):
            log.exception("no snapshot of %s %s", aggregate.aggregate_name, aggregate.id)
