"""Unique keys and timers of a domain, derived again from its events: what is left of all that they took, freed, set and ended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

import schemas
from aggregates.kernel import wire
from aggregates.kernel.commands import TimerRef, timer_row
from aggregates.kernel.event import EPOCH, EVENTS, RENAMED, Event, Take
from aggregates.kernel.migrate import names
from projections.kernel.runner import defaulted
from replay import rows
from schemas.values import uuid_of

SPOOL_BYTES = 16 * 1024 * 1024  # kept in memory; beyond it in a file

TABLES = """
CREATE TEMPORARY TABLE IF NOT EXISTS claimed (id bigint, no int, scope text, key text, owner uuid, takes boolean);
CREATE TEMPORARY TABLE IF NOT EXISTS timed (
    id bigint, no int, originator_id uuid, key text, due timestamptz, call text, args jsonb, command uuid
)
"""
# Whoever took a key last holds it, unless that one has freed it since.
HELD = """
SELECT scope, key, owner, id FROM (
    SELECT DISTINCT ON (scope, key) * FROM claimed WHERE takes ORDER BY scope, key, id DESC, no DESC
) AS t WHERE NOT EXISTS (
    SELECT FROM claimed f WHERE NOT f.takes AND (f.scope, f.key, f.owner) = (t.scope, t.key, t.owner) AND (f.id, f.no) > (t.id, t.no)
)
"""
LAST = "SELECT DISTINCT ON (originator_id, key) * FROM timed ORDER BY originator_id, key, id DESC, no DESC"
"""The last word on each timer: with `due` it was set, without it was ended."""

CLAIMS = f"INSERT INTO {{claims}} (scope, key, owner) SELECT scope, key, owner FROM ({HELD}) AS held"
# One whose command has been given was fired.
TIMERS = f"""
INSERT INTO {{timers}} (originator_id, key, due, call, args) SELECT originator_id, key, due, call, args FROM ({LAST}) AS t
WHERE due IS NOT NULL AND NOT EXISTS (SELECT FROM {{commands}} c WHERE c.command_id = t.command)
"""


class Notes:
    """What events claim and time, as lines of COPY's text format: `take` each event of a type that is not in `plain`."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self.plain: set[bytes] = set()
        """Types of events that neither claim nor time anything."""
        for kind, cls in EVENTS.items():
            if cls.domain == domain and cls.claims is Event.claims and cls.timers is Event.timers:
                self.plain |= {
                    name.encode() for name in (kind, *(old for old, today in RENAMED.items() if today == kind))
                }
        self._asked: dict[bytes, tuple[type[Event], int]] = {}
        self._unreadable = 0
        self._claimed: list[bytes] = []
        self._timed: list[bytes] = []

    def taken(self) -> tuple[int, bytes, bytes]:
        """How many could not be read, claims and timers since it was asked last."""
        made = self._unreadable, b"".join(self._claimed), b"".join(self._timed)
        self._unreadable, self._claimed, self._timed = 0, [], []
        return made

    def take(self, id: int, type: bytes, key: bytes, value: bytes, headers: Iterable[tuple[str, bytes]]) -> None:
        """Note down what an event claims and times. One that today's code can't read is only counted."""
        found = dict(headers)
        try:
            at = EPOCH + int(found["occurred-at"]) * wire.MICROSECOND
            self.note(id, type, uuid_of(int(key.replace(b"-", b""), 16)), int(found["version"]), at, value)
        except Exception:  # whatever a body may hold, a store without its event is worse
            self._unreadable += 1

    def note(self, id: int, type: bytes, aggregate: UUID, version: int, at: datetime, value: bytes) -> None:
        """The same of an event as its store has it. Raises what reading it does."""
        event = self._event(type, aggregate, version, at, value)
        claims, timers = list(event.claims()), list(event.timers())
        for no, claim in enumerate(claims):
            takes = isinstance(claim, Take)
            scope, name, yes = rows.escaped(claim.scope), rows.escaped(claim.key), "t" if takes else "f"
            self._claimed.append(f"{id}\t{no}\t{scope}\t{name}\t{aggregate}\t{yes}\n".encode())
        for no, timer in enumerate(timers):
            one = timer_row(event.id, timer)
            command = one.due and TimerRef(event.id, one.key, one.due).command(self._domain)
            args = json.dumps(list(one.args))
            self._timed.append(
                rows.line((id, no, event.id, one.key, one.due and one.due.isoformat(), one.call, args, command))
            )

    def _event(self, kind: bytes, id: UUID, version: int, at: datetime, value: bytes) -> Event:
        """The event; after the first of its type only those of its leading fields are read that the first was asked for."""
        if (asked := self._asked.get(kind)) is not None:
            cls, count = asked
            head = schemas.leading(self._domain, cls.binding.name, value, count)
            if head is not None:
                event = wire.undecoded(cls, id, version, at, value)
                event.__dict__.update(head)
                return event
        event = wire.decode(self._domain, id, version, at, value)
        if asked is None and event.type.encode() == kind and not defaulted(event.__class__):
            names, watched = list(event.__dict__), Watched(event)
            list(event.__class__.claims(watched)), list(event.__class__.timers(watched))  # type: ignore[arg-type]
            self._asked[kind] = (
                event.__class__,
                1 + max((names.index(one) for one in watched.seen if one in names), default=-1),
            )
        return event


class Watched:
    """Answers as the event does, and knows for which of its attributes it was asked."""

    def __init__(self, event: Event) -> None:
        self._event, self.seen = event, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.seen.add(name)
        return getattr(self._event, name)


class Derived:
    """A domain's claims and timers: `add` lines of `Notes`, in any order, then `store` or `fill`."""

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self._spools = {table: SpooledTemporaryFile(SPOOL_BYTES) for table in ("claimed", "timed")}  # noqa: SIM115, `fill` closes them

    def add(self, claimed: bytes, timed: bytes) -> None:
        self._spools["claimed"].write(claimed)
        self._spools["timed"].write(timed)

    def fill(self, connection: psycopg.Connection[Any]) -> None:
        """Put them into the session's tables `claimed` and `timed`, beside what these have."""
        connection.execute(TABLES)
        for table, spool in self._spools.items():
            if spool.tell():
                spool.seek(0)
                with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
                    while data := spool.read(1024 * 1024):
                        copy.write(data)
                connection.execute(f"ANALYZE {table}".encode())
            spool.close()

    def store(self, connection: psycopg.Connection[Any]) -> tuple[int, int]:
        """Fill the tables of claims and timers; answers with how many there are. The table of commands is filled before."""
        self.fill(connection)
        its = names(self._domain)
        claims, timers = (connection.execute(sql.SQL(one).format(**its)).rowcount for one in (CLAIMS, TIMERS))
        connection.execute("DROP TABLE claimed, timed")
        return claims, timers
