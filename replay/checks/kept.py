"""What an event store keeps beside its events, compared with what these come to: unique keys, timers, and snapshots.

Events, keys and timers change in one commit, so in one transaction's view of the store they agree, however much is written. A
snapshot comes after its events; it has to be the fold of them up to its version. What the events say is what today's code makes of
them, as in a store that was rebuilt from its topic.

What events can't tell is no difference:

    A timer that was due and is gone, and whose command is not among those that were given. It was fired and its command refused,
    or failed by a bug at first and was given later, or else it was lost: their number is noted. What is due within `CLOCKS_S` counts
    as due, since the clock of who fires is another machine's.
    When, and how often, a timer is fired that has failed by a bug: only what it gives is compared.
    A snapshot that is not there, or is other code's: it is made anew at its time, and nobody reads another code's.

Processes that keep aggregates in memory go on with what they once took from a wrong snapshot: start them anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import sql

from aggregates.kernel import snapshot, wire
from aggregates.kernel.event import AGGREGATES, Aggregate
from aggregates.kernel.migrate import names
from infra.settings import Settings
from replay.checks import Checked, Difference
from replay.claims import HELD, LAST, Derived, Notes
from replay.log import ReplayError
from replay.progress import Progress

CLOCKS_S = 60  # as far as the clocks of two machines may be apart
FOUND_MAX = 10_000  # differences of a kind that are named, and mended, in one go
PAGE = 100  # snapshots
READ_AT_ONCE = 2_000  # events

EVENTS = """
SELECT notification_id, event_type, originator_id, originator_version, occurred_at, state FROM {events}
WHERE notification_id > %s AND event_type <> ALL(%s)
"""
TOTAL = """
SELECT (SELECT count(*) FROM {events} WHERE event_type <> ALL(%s))
    + (SELECT coalesce(sum(originator_version), 0) FROM {snapshots} WHERE fingerprint = ANY(%s))
"""
CLAIMS = f"""
SELECT count(*) OVER (), scope, key, h.owner, t.owner, t.id FROM {{claims}} h FULL JOIN ({HELD}) AS t USING (scope, key)
WHERE h.owner IS DISTINCT FROM t.owner ORDER BY scope, key LIMIT %s
"""
TWICE = """
SELECT scope, key, array_agg(owner ORDER BY id), max(id) FROM (
    SELECT DISTINCT ON (scope, key, owner) * FROM claimed ORDER BY scope, key, owner, id DESC, no DESC
) AS last WHERE takes GROUP BY scope, key HAVING count(*) > 1 ORDER BY scope, key LIMIT %s
"""
DUE = "t.due <= now() + make_interval(secs => %(clocks)s)"
GIVEN = "EXISTS (SELECT FROM {commands} c WHERE c.command_id = t.command)"
OTHER = "(r.call, r.args) IS DISTINCT FROM (t.call, t.args) OR (r.attempts = 0 AND r.due <> t.due)"
TIMERS = f"""
SELECT count(*) OVER (), originator_id, key, r.due::text, r.call, r.args, t.due::text, t.call, t.args, t.id
FROM {{timers}} r FULL JOIN ({LAST}) AS t USING (originator_id, key)
WHERE CASE WHEN r.due IS NULL THEN t.due IS NOT NULL AND NOT {DUE} AND NOT {GIVEN} WHEN t.due IS NULL THEN true ELSE {OTHER} END
ORDER BY originator_id, key LIMIT %(limit)s
"""
UNTOLD = f"""
SELECT count(*) FROM ({LAST}) AS t WHERE {DUE} AND NOT {GIVEN}
    AND NOT EXISTS (SELECT FROM {{timers}} r WHERE (r.originator_id, r.key) = (t.originator_id, t.key))
"""
SNAPSHOTS = """
SELECT originator_id, originator_version, fingerprint, state FROM {snapshots}
WHERE fingerprint = ANY(%s) AND originator_id > %s AND (%s::uuid[] IS NULL OR originator_id = ANY(%s::uuid[])) ORDER BY originator_id LIMIT %s
"""
HISTORIES = """
SELECT e.originator_id, e.originator_version, e.occurred_at, e.state FROM unnest(%s::uuid[], %s::int[]) AS s(id, version)
JOIN {events} e ON e.originator_id = s.id AND e.originator_version <= s.version ORDER BY 1, 2
"""
MEND_CLAIMS = f"""
WITH wrong AS (SELECT * FROM unnest(%s::text[], %s::text[]) AS w(scope, key)),
     held AS MATERIALIZED (SELECT scope, key, owner FROM ({HELD}) AS t JOIN wrong USING (scope, key)),
     gone AS (DELETE FROM {{claims}} h USING wrong w WHERE (h.scope, h.key) = (w.scope, w.key)
              AND NOT EXISTS (SELECT FROM held t WHERE (t.scope, t.key) = (w.scope, w.key)))
INSERT INTO {{claims}} (scope, key, owner) SELECT scope, key, owner FROM held ON CONFLICT (scope, key) DO UPDATE SET owner = EXCLUDED.owner
"""
MEND_TIMERS = f"""
WITH wrong AS (SELECT * FROM unnest(%s::uuid[], %s::text[]) AS w(originator_id, key)),
     last AS MATERIALIZED (SELECT t.* FROM ({LAST}) AS t JOIN wrong USING (originator_id, key) WHERE t.due IS NOT NULL AND NOT {GIVEN}),
     gone AS (DELETE FROM {{timers}} r USING wrong w WHERE (r.originator_id, r.key) = (w.originator_id, w.key)
              AND NOT EXISTS (SELECT FROM last t WHERE (t.originator_id, t.key) = (w.originator_id, w.key)))
INSERT INTO {{timers}} AS r (originator_id, key, due, call, args) SELECT originator_id, key, due, call, args FROM last
ON CONFLICT (originator_id, key) DO UPDATE SET due = EXCLUDED.due, call = EXCLUDED.call, args = EXCLUDED.args, attempts = 0, error = NULL
WHERE (r.call, r.args) IS DISTINCT FROM (EXCLUDED.call, EXCLUDED.args) OR (r.attempts = 0 AND r.due <> EXCLUDED.due)
"""
MEND_SNAPSHOT = (
    "DELETE FROM {snapshots} WHERE (originator_id, originator_version, fingerprint, state) = (%s, %s, %s, %s)"
)


class Kept(NamedTuple):
    """A row of snapshots."""

    id: UUID
    version: int
    fingerprint: str
    state: bytes


class KeptCheck:
    """`compare`, and `repair` what it found; both raise psycopg.Error and ReplayError. `close` it in the end.

    What events claim and time stands in tables of the session: another look adds only the events that came since.
    """

    def __init__(self, of: Settings, domain: str, as_json: bool = False) -> None:
        self._domain, self._as_json, self._names = domain, as_json, names(domain)
        self.what = f"keys, timers and snapshots {domain}"
        options = "-c timezone=UTC -c work_mem=64MB -c lock_timeout=30s"
        self._connection = psycopg.connect(of.dsn(domain), autocommit=True, connect_timeout=5, options=options)
        self._seen = self._unreadable = 0
        self._claims: list[tuple[str, str]] = []
        self._timers: list[tuple[UUID, str]] = []
        self._snapshots: dict[UUID, Kept] | None = None
        self._prints = sorted({snapshot.fingerprint(cls) for cls in AGGREGATES.values() if cls.domain == domain})
        self._plain = [type.decode() for type in Notes(domain).plain]
        self._progress: Progress | None = None

    def close(self) -> None:
        self._connection.close()

    def compare(self) -> Checked:
        checked = Checked(self.what)
        with ExitStack() as stack:
            stack.enter_context(self._connection.transaction())
            self._execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            if self._snapshots is None and (total := self._count(TOTAL, [self._plain, self._prints])):
                self._progress = stack.enter_context(Progress(f"kept {self._domain}", [], self._as_json, total))
            self._read()
            if self._unreadable:
                note = f"{self._unreadable:,} events can't be read by this code, so what they say is not known"
                return Checked(self.what, note=note, compared=False)
            checked.rows = self._count("SELECT (SELECT count(*) FROM {claims}) + (SELECT count(*) FROM {timers})")
            untold = self._count(UNTOLD, {"clocks": CLOCKS_S})
            for found in (self._wrong_claims(checked), self._wrong_timers(checked), self._wrong_snapshots(checked)):
                checked.differences += found
        self._progress = None
        checked.note = (
            f"{untold:,} timers that were due are gone, and no command of theirs is known: refused, put off or lost"
            * bool(untold)
        )
        return checked

    def repair(self) -> None:
        """Make the keys, timers and snapshots that differed what events say. No command is committed meanwhile."""
        with self._connection.transaction():
            self._execute("SELECT FROM log_heads WHERE domain = {domain} FOR UPDATE")
            self._read()
            if self._claims:
                self._execute(MEND_CLAIMS, [list(column) for column in zip(*self._claims, strict=True)])
            if self._timers:
                self._execute(MEND_TIMERS, [list(column) for column in zip(*self._timers, strict=True)])
            for one in (self._snapshots or {}).values():
                self._execute(MEND_SNAPSHOT, one)  # and not one that took its place meanwhile

    def _read(self) -> None:
        """Note what the events say that came since the last time."""
        head = self._count("SELECT last FROM log_heads WHERE domain = {domain}")
        notes, derived = Notes(self._domain), Derived(self._domain)
        with self._connection.cursor("noted", binary=True) as cursor:
            cursor.execute(sql.SQL(EVENTS).format(**self._names), [self._seen, self._plain])
            while some := cursor.fetchmany(READ_AT_ONCE):
                for id, type, *event in some:
                    try:
                        notes.note(id, type.encode(), *event)
                    except Exception:  # whatever a body may hold
                        self._unreadable += 1
                derived.add(*notes.taken()[1:])
                self._moved(len(some))
        derived.fill(self._connection)
        self._seen = head

    def _wrong_claims(self, checked: Checked) -> Iterator[Difference]:
        found = self._execute(CLAIMS, [FOUND_MAX]).fetchall()
        checked.count += found[0][0] if found else 0
        self._claims = [(scope, key) for _, scope, key, *_ in found]
        for _, scope, key, owner, true, id in found:
            why = (
                f"is free, but events give it to {true}" if owner is None
                else f"is held by {owner}, but no event gives it to anybody" if true is None
                else f"is held by {owner}, but events give it to {true}"
            )  # fmt: skip
            yield self._difference(f"unique key {scope} {key}", why, id)
        for scope, key, owners, id in self._execute(TWICE, [FOUND_MAX]).fetchall():
            checked.count += 1
            why = f"is taken by the events of {', '.join(map(str, owners))}, and freed by none of them"
            made = self._difference(f"unique key {scope} {key} of several", why, id)
            made.refused = "only a command can say who gives it back"
            yield made

    def _wrong_timers(self, checked: Checked) -> Iterator[Difference]:
        found = self._execute(TIMERS, {"clocks": CLOCKS_S, "limit": FOUND_MAX}).fetchall()
        checked.count += found[0][0] if found else 0
        self._timers = [(aggregate, key) for _, aggregate, key, *_ in found]
        for _, aggregate, key, due, call, args, true_due, true_call, true_args, id in found:
            its, true = _timer(due, call, args), _timer(true_due, true_call, true_args)
            why = (
                f"is missing, but events set it to {true}" if due is None
                else f"is {its}, but {'no event has set it' if id is None else 'events have ended it'}" if true_due is None
                else f"is {its}, but events set it to {true}"
            )  # fmt: skip
            yield self._difference(f"timer {key} of {aggregate}", why, id)

    def _wrong_snapshots(self, checked: Checked) -> Iterator[Difference]:
        """After the first look only those that differed then."""
        only = None if self._snapshots is None else list(self._snapshots)
        self._snapshots = {}
        last = UUID(int=0)
        while page := self._execute(SNAPSHOTS, [self._prints, last, only, only, PAGE]).fetchall():
            last = page[-1][0]
            its = {one.id: one for one in (Kept(*row) for row in page)}
            checked.rows += len(its)
            for one, folded in self._folded(its):
                if why := _differs(one, folded):
                    self._snapshots[one.id] = one
                    checked.count += 1
                    yield self._difference(f"snapshot of {one.id} at version {one.version}", why, None)

    def _folded(self, its: dict[UUID, Kept]) -> Iterator[tuple[Kept, Aggregate | None]]:
        """Snapshots, each with what its events come to. One whose events can't be folded is not among them: nothing is known of it."""
        left = dict(its)
        with self._connection.cursor("histories", binary=True) as cursor:
            cursor.itersize = READ_AT_ONCE
            which = [list(its), [one.version for one in its.values()]]
            cursor.execute(sql.SQL(HISTORIES).format(**self._names), which)
            for id, events in groupby(cursor, key=lambda row: row[0]):
                try:
                    folded: Any = None
                    for _, version, at, state in events:
                        folded = wire.decode(self._domain, id, version, at, state).mutate(folded)
                        self._moved(1)
                except Exception:
                    del left[id]
                    continue
                yield left.pop(id), folded
        for one in left.values():
            yield one, None

    def _moved(self, events: int) -> None:
        if self._progress is not None:
            self._progress.moved(events, {})

    def _difference(self, key: str, why: str, id: int | None) -> Difference:
        why += f" (notification {id})" if id else ""
        return Difference(self.what, key, why, self._domain, notification_id=id or 0)

    def _count(self, query: str, values: Any = None) -> int:
        row = self._execute(query, values).fetchone()
        if row is None:
            raise ReplayError(f"there is no event store of {self._domain} in its database")
        return int(row[0])

    def _execute(self, query: str, values: Sequence[Any] | dict[str, Any] | None = None) -> psycopg.Cursor[Any]:
        return self._connection.execute(sql.SQL(query).format(**self._names), values)


def _differs(one: Kept, folded: Aggregate | None) -> str:
    """How a snapshot is not what its events come to; "" when it is, or when nobody would read it."""
    if folded is None:
        return "its aggregate has no event"
    if snapshot.fingerprint(type(folded)) != one.fingerprint:
        return ""
    if folded.version != one.version:
        return f"its aggregate has only {folded.version} events"
    try:
        told, true = snapshot.attributes(one.state), snapshot.attributes(snapshot.dump(folded))
    except (ValueError, TypeError, KeyError):
        return "can't be read"
    return "; ".join(
        f"{name} is {json.dumps(told.get(name)):.200}, but its events come to {json.dumps(true.get(name)):.200}"
        for name in sorted(told.keys() | true.keys())
        if told.get(name) != true.get(name)
    )


def _timer(due: str | None, call: str, args: Any) -> str:
    return f"{call}({', '.join(map(json.dumps, args or ()))}) at {due}"
