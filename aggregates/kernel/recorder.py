"""SQL of the event store: one statement appends the events of many commands, or says which of them cannot be.

Notification ids come from `log_heads`, whose row is locked for the length of the commit. So ids have no gaps, and no
reader ever sees a higher one before a lower one, without table locks and without waiting for time to pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from aggregates.kernel import pipeline
from aggregates.kernel.event import Free, Take
from aggregates.kernel.migrate import names
from aggregates.kernel.pipeline import Statement
from aggregates.kernel.wire import COLUMNS, Row
from schemas.values import value

Connection = psycopg.AsyncConnection[TupleRow]
CHANNEL = "titan_events"


@value
class TimerRow:
    """A timer to set, or with `due` None to end. With `only_due` it ends only if it is due at that time still."""

    originator_id: UUID
    key: str
    due: datetime | None = None
    call: str = ""
    args: Sequence[str | int | bool | None] = ()
    only_due: datetime | None = None


RECOVERED = b"recovered"
"""The fingerprint of a command in a store that was rebuilt from its topic: that it was given is known, what it asked is not."""


@value
class CommandRow:
    """What makes a command happen once: its id, what was asked, and the answer's parts."""

    command_id: UUID
    fingerprint: bytes
    originator_id: UUID
    originator_version: int
    notification_id: int
    """The answer's position when the command has no events; otherwise its last event's, filled at commit."""

    def may_be(self, fingerprint: bytes) -> bool:
        """Whether a request that comes under this id can be the one that was stored."""
        return self.fingerprint in (fingerprint, RECOVERED)


@dataclass(slots=True)
class Append:
    """All that one command writes, in one domain, all or nothing.

    `rows` have notification id 0: it is given at the commit. `streams` holds (aggregate, version of its first event here),
    `decided_on` every aggregate whose state the command rests on.
    """

    domain: str
    rows: list[Row]
    streams: list[tuple[UUID, int]]
    decided_on: set[UUID] = field(default_factory=set)
    claims: list[tuple[UUID, Take | Free]] = field(default_factory=list)
    timers: list[TimerRow] = field(default_factory=list)
    command: CommandRow | None = None

    def position_of(self, id: UUID, last: int) -> int:
        """Where the last event of an aggregate in here stands, the very last one being at `last`; 0 if it has none in here."""
        return next((last - back for back, row in enumerate(reversed(self.rows)) if row.originator_id == id), 0)


Problem = tuple[Literal["stream", "command", "claim"], str]


@dataclass(slots=True)
class Outcome:
    """What became of one `Append`: the notification id of its last event, or the problem that kept it out."""

    position: int = 0
    problem: Problem | None = None


LOCK = Statement.of(
    "append_lock", "SELECT FROM log_heads WHERE domain = ANY(%(domains)::text[]) ORDER BY domain FOR UPDATE"
)


@cache
def _statement(domain: str, events: bool, commands: bool, claims: bool, timers: bool) -> Statement:
    bad = [
        "SELECT 'stream' AS kind, s.no FROM unnest(%(s_id)::uuid[], %(s_version)::int[]) WITH ORDINALITY AS s(id, version, no)"
        " WHERE EXISTS (SELECT FROM {events} e WHERE e.originator_id = s.id AND e.originator_version = s.version)"
    ]
    writes = [
        "head AS (UPDATE log_heads SET last = last + %(n)::bigint WHERE domain = {domain} AND NOT EXISTS (SELECT FROM bad)"
        " RETURNING last - %(n)::bigint AS last)",
        f"appended AS (INSERT INTO {{events}} ({COLUMNS}) SELECT head.last + e.no, e.id, e.version, e.type, e.state, e.event_id,"
        " e.at, e.correlation, e.causation, e.actor FROM head, unnest(%(id)::uuid[], %(version)::int[], %(type)::text[],"
        " %(state)::bytea[], %(event_id)::uuid[], %(at)::timestamptz[], %(correlation)::text[], %(causation)::uuid[],"
        " %(actor)::text[]) WITH ORDINALITY AS e(id, version, type, state, event_id, at, correlation, causation, actor, no))",
    ]
    if commands:
        bad.append(
            "SELECT 'command', c.no FROM unnest(%(c_id)::uuid[]) WITH ORDINALITY AS c(id, no)"
            " WHERE EXISTS (SELECT FROM {commands} d WHERE d.command_id = c.id)"
        )
        writes.append(
            "asked AS (INSERT INTO {commands} (command_id, fingerprint, originator_id, originator_version, notification_id)"
            " SELECT c.id, c.fingerprint, c.originator, c.version, CASE WHEN c.last > 0 THEN head.last + c.last ELSE c.position END"
            " FROM head, unnest(%(c_id)::uuid[], %(c_fingerprint)::bytea[], %(c_originator)::uuid[], %(c_version)::int[],"
            " %(c_last)::bigint[], %(c_position)::bigint[]) AS c(id, fingerprint, originator, version, last, position))"
        )
    if claims:
        bad.append(
            "SELECT 'claim', t.no FROM unnest(%(t_scope)::text[], %(t_key)::text[], %(t_owner)::uuid[])"
            " WITH ORDINALITY AS t(scope, key, owner, no)"
            " WHERE EXISTS (SELECT FROM {claims} h WHERE (h.scope, h.key) = (t.scope, t.key) AND h.owner <> t.owner)"
        )
        writes.append(
            "taken AS (INSERT INTO {claims} (scope, key, owner) SELECT t.scope, t.key, t.owner FROM head,"
            " unnest(%(t_scope)::text[], %(t_key)::text[], %(t_owner)::uuid[]) AS t(scope, key, owner)"
            " ON CONFLICT (scope, key) DO NOTHING)"
        )
        writes.append(
            "freed AS (DELETE FROM {claims} h USING head, unnest(%(f_scope)::text[], %(f_key)::text[], %(f_owner)::uuid[])"
            " AS f(scope, key, owner) WHERE (h.scope, h.key, h.owner) = (f.scope, f.key, f.owner))"
        )
    if timers:
        writes.append(
            "started AS (INSERT INTO {timers} AS old (originator_id, key, due, call, args) SELECT w.id, w.key, w.due, w.call, w.args FROM head,"
            " unnest(%(w_id)::uuid[], %(w_key)::text[], %(w_due)::timestamptz[], %(w_call)::text[], %(w_args)::jsonb[])"
            " AS w(id, key, due, call, args) ON CONFLICT (originator_id, key) DO UPDATE"
            " SET due = EXCLUDED.due, call = EXCLUDED.call, args = EXCLUDED.args, attempts = 0, error = NULL)"
        )
        writes.append(
            "ended AS (DELETE FROM {timers} old USING head, unnest(%(x_id)::uuid[], %(x_key)::text[], %(x_due)::timestamptz[])"
            " AS x(id, key, due) WHERE old.originator_id = x.id AND old.key = x.key AND (x.due IS NULL OR old.due = x.due))"
        )
    done = "head"
    if events:
        writes.append(f"told AS MATERIALIZED (SELECT last, pg_notify('{CHANNEL}', {{domain}}) FROM head)")
        done = "told"
    template = (
        f"WITH bad AS MATERIALIZED ({' UNION ALL '.join(bad)}), {', '.join(writes)}"
        f" SELECT kind, no FROM bad UNION ALL SELECT 'head', last FROM {done}"
    )
    kinds = "".join(letter for letter, wanted in zip("ecut", (events, commands, claims, timers), strict=True) if wanted)
    return Statement.of(f"append_{domain}_{kinds}", sql.SQL(template).format(**names(domain)).as_string())


def _parameters(batch: Sequence[Append]) -> dict[str, Any]:
    rows = [row for one in batch for row in one.rows]
    made: dict[str, Any] = {
        "n": len(rows),
        "s_id": [id for one in batch for id, _ in one.streams],
        "s_version": [version for one in batch for _, version in one.streams],
        "id": [row.originator_id for row in rows],
        "version": [row.originator_version for row in rows],
        "type": [row.event_type for row in rows],
        "state": [row.state for row in rows],
        "event_id": [row.event_id for row in rows],
        "at": [row.occurred_at for row in rows],
        "correlation": [row.correlation_id for row in rows],
        "causation": [row.causation_id for row in rows],
        "actor": [row.actor for row in rows],
    }
    last, lasts = 0, []
    for one in batch:
        last += len(one.rows)
        lasts.append(last if one.rows else 0)
    asked = [(one.command, last) for one, last in zip(batch, lasts, strict=True) if one.command]
    if asked:
        made |= {
            "c_id": [c.command_id for c, _ in asked],
            "c_fingerprint": [c.fingerprint for c, _ in asked],
            "c_originator": [c.originator_id for c, _ in asked],
            "c_version": [c.originator_version for c, _ in asked],
            "c_last": [last for _, last in asked],
            "c_position": [c.notification_id for c, _ in asked],
        }
    claims = [claim for one in batch for claim in one.claims]
    if claims:
        taken = [(c.scope, c.key, owner) for owner, c in claims if isinstance(c, Take)]
        freed = [(c.scope, c.key, owner) for owner, c in claims if isinstance(c, Free)]
        made |= dict(zip(("t_scope", "t_key", "t_owner"), _columns(taken, 3), strict=True))
        made |= dict(zip(("f_scope", "f_key", "f_owner"), _columns(freed, 3), strict=True))
    timers: dict[tuple[UUID, str], TimerRow] = {}
    for t in (t for one in batch for t in one.timers):
        before = timers.get((t.originator_id, t.key))
        # The last word wins, unless it is about a time that was replaced.
        if before is None or t.only_due in (None, before.due):
            timers[t.originator_id, t.key] = t
    if timers:
        started = [(t.originator_id, t.key, t.due, t.call, json.dumps(list(t.args))) for t in timers.values() if t.due]
        ended = [(t.originator_id, t.key, t.only_due) for t in timers.values() if t.due is None]
        made |= dict(zip(("w_id", "w_key", "w_due", "w_call", "w_args"), _columns(started, 5), strict=True))
        made |= dict(zip(("x_id", "x_key", "x_due"), _columns(ended, 3), strict=True))
    return made


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


async def append(connection: Connection, batch: Sequence[Append]) -> list[Outcome]:
    """Store what can be stored of a batch, durably, in one transaction and one round trip; say of each what became of it.

    A domain in which anything is in the way stores nothing in this round: its good ones are sent again without the bad.
    `batch` must not hold two commands of one id, nor one claim key twice. Raises `psycopg.OperationalError` when the
    outcome is unknown: sending the same batch again is always safe, since what had been stored is found by event id.
    """
    outcomes = [Outcome() for _ in batch]
    waiting = list(range(len(batch)))
    while waiting:
        waiting = await _round(connection, batch, outcomes, waiting)
    return outcomes


async def _round(
    connection: Connection, batch: Sequence[Append], outcomes: list[Outcome], waiting: Sequence[int]
) -> list[int]:
    by_domain: dict[str, list[int]] = {}
    for number in waiting:
        by_domain.setdefault(batch[number].domain, []).append(number)
    domains = sorted(by_domain)
    # What is sent together is one transaction: without a BEGIN the server commits at its end, or nothing of it.
    # The lock is a statement of its own, so that the next one sees what was committed while it was waited for.
    calls: list[tuple[Statement, dict[str, Any]]] = [(LOCK, {"domains": domains})]
    for domain in domains:
        parameters = _parameters([batch[number] for number in by_domain[domain]])
        wanted = (bool(parameters["n"]), *(key in parameters for key in ("c_id", "t_scope", "w_id")))
        calls.append((_statement(domain, *wanted), parameters))
    _, *results = await pipeline.run(connection, calls)
    again: list[int] = []
    for domain, result in zip(domains, results, strict=True):
        numbers = by_domain[domain]
        found = _found(result)
        if found and found[0][0] == "head":
            last = found[0][1]
            for number in numbers:
                last += len(batch[number].rows)
                outcomes[number].position = last if batch[number].rows else 0
        else:
            assert found, f"log_heads has no row for {domain}: run the migration"
            again += await _sort_out(connection, domain, batch, outcomes, numbers, found)
    return again


def _found(result: PGresult) -> list[tuple[str, int]]:
    """(kind, number) of each row."""
    rows = [(result.get_value(row, 0), result.get_value(row, 1)) for row in range(result.ntuples)]
    return [(kind.decode(), int.from_bytes(number, "big")) for kind, number in rows if kind and number]


async def _sort_out(
    connection: Connection,
    domain: str,
    batch: Sequence[Append],
    outcomes: list[Outcome],
    numbers: Sequence[int],
    found: Sequence[tuple[str, int]],
) -> list[int]:
    """Give each command that is in the way its problem, or its success if it was stored before. Returns the others."""
    kinds: dict[str, list[tuple[int, str]]] = {"stream": [], "command": [], "claim": []}
    for number in numbers:
        one = batch[number]
        kinds["stream"] += [(number, f"{id} at version {version}") for id, version in one.streams]
        kinds["command"] += [(number, str(one.command.command_id))] if one.command else []
        kinds["claim"] += [(number, f"{c.scope} {c.key}") for _, c in one.claims if isinstance(c, Take)]
    bad: dict[int, Problem] = {}
    for kind, no in found:
        number, what = kinds[kind][no - 1]
        if number not in bad or kind == "command":  # a command asked again also meets its own events: the id says more
            bad[number] = (kind, what)  # type: ignore[assignment]
    for number, problem in bad.items():
        one = batch[number]
        position = await _stored_before(connection, domain, one)
        if position is not None:
            outcomes[number].position = position
        else:
            outcomes[number].problem = problem
    good: list[int] = []
    failed = {id for number in bad if outcomes[number].problem for id, _ in batch[number].streams}
    for number in numbers:
        if number in bad:
            continue
        if batch[number].decided_on & failed:  # by events that were not stored
            failed |= {id for id, _ in batch[number].streams}
            outcomes[number].problem = ("stream", "an earlier command of the batch")
        else:
            good.append(number)
    return good


async def _stored_before(connection: Connection, domain: str, one: Append) -> int | None:
    """The position of this very command if a commit whose answer was lost had stored it, else None."""
    if not one.rows:
        return None
    row = one.rows[-1]
    query = sql.SQL(
        "SELECT notification_id FROM {events} WHERE originator_id = %s AND originator_version = %s AND event_id = %s"
    )
    cursor = await connection.execute(
        query.format(**names(domain)), (row.originator_id, row.originator_version, row.event_id)
    )
    stored = await cursor.fetchone()
    return None if stored is None else int(stored[0])
