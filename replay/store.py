"""`titan replay store DOMAIN… | --all [--into DSN] [--keys FILE]`: event stores rebuilt from their topics alone, into an empty database.

Events, ids, versions and times are the same to the byte, and so is the log's order. What the topic says between the lines is
derived again: unique keys, timers, the ids of commands that had events, and the relay's position, so that it goes on where it was.

What no topic can say: events that Kafka had not acknowledged when the database was lost; what a command asked, so a repeated one
is known by its id alone; commands without events and those of sagas, which the aggregates themselves take once; and that a timer
was fired to no effect, so it is fired again, and its aggregate finds again that there is nothing to do. Where sagas, reactors and
fraud rules go on is taken from Kafka's groups (`replay/followers.py`). Snapshots are made
again as they are needed. Processes that keep aggregates in memory have to be started anew on the rebuilt store. The keys of personal
data and other secrets are in no topic on purpose: they come from a copy (`replay/keys.py`), and without one what they sealed stays
sealed.

One transaction holds all of it: whatever ends it early leaves the target as it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import psycopg
from psycopg import sql

from aggregates.kernel.migrate import migrate, names
from aggregates.kernel.recorder import RECOVERED
from aggregates.kernel.wire import COLUMNS
from infra.settings import Settings, settings
from replay import domains, rows
from replay.claims import Derived
from replay.failures import line
from replay.followers import resume
from replay.keys import put_back
from replay.log import ReplayError, Span, ids_of, spans
from replay.packing import Job, packed
from replay.progress import Progress, tell
from schemas.external import Ids
from streams.kernel.migrate import RELAY, make

SPOOL_BYTES = 16 * 1024 * 1024  # kept in memory; beyond it in a file
SHOWN_MAX = 10  # gaps that are named
Connection = psycopg.Connection[Any]

COMMANDS = """
INSERT INTO {commands} (command_id, fingerprint, originator_id, originator_version, notification_id, recorded_at)
SELECT DISTINCT ON (causation_id) causation_id, {recovered}, originator_id, version,
       max(last) OVER (PARTITION BY causation_id), max(at) OVER (PARTITION BY causation_id)
FROM (
    SELECT causation_id, originator_id, max(originator_version) AS version, min(notification_id) AS first,
           max(notification_id) AS last, max(occurred_at) AS at
    FROM {events} WHERE causation_id IS NOT NULL AND actor NOT LIKE 'saga:%' AND actor NOT LIKE 'reactor.%'
    GROUP BY causation_id, originator_id
) AS told ORDER BY causation_id, first
"""
GAPS = """
SELECT before + 1, notification_id - 1 FROM (
    SELECT notification_id, lag(notification_id, 1, 0::bigint) OVER (ORDER BY notification_id) AS before FROM {events}
) AS log WHERE notification_id > before + 1 ORDER BY 1
"""
BROKEN = """
SELECT count(*) FROM (SELECT FROM {events} GROUP BY originator_id HAVING count(*) <> max(originator_version)) AS broken
"""


@dataclass
class Restored:
    """What became of a domain. `gaps`: first and last missing id of each; `broken`: aggregates that lack an event; `followers`:
    the sagas and reactors that go on with its events where they were."""

    domain: str
    events: int = 0
    head: int = 0
    duplicates: int = 0
    foreign: int = 0
    unreadable: int = 0
    claims: int = 0
    timers: int = 0
    commands: int = 0
    broken: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    followers: list[str] = field(default_factory=list)


def restore(
    of: Settings,
    wanted: Collection[str],
    into: str,
    accept_gaps: bool = False,
    as_json: bool = False,
    keys: Path | None = None,
) -> list[Restored]:
    """Rebuild the stores of these domains in the database `into`, and put the copy `keys` back there. Raises ReplayError; the target
    is as it was then."""
    ids = ids_of(of)
    common = any(domain not in of.postgres_domains for domain in wanted)  # it is, or will be, the common database
    if keys and not common:
        raise ReplayError("keys and secrets are in the common database: give --keys with a domain that is there")
    found = spans(of, wanted, partial=accept_gaps)
    try:
        migrate(into, list(wanted))
        with closing(psycopg.connect(into, autocommit=True, connect_timeout=5)) as connection, connection.transaction():
            connection.execute("SET LOCAL synchronous_commit = on")
            connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
            connection.execute("SET LOCAL work_mem = '64MB'")
            make(connection, RELAY)
            for domain in wanted:
                _empty(connection, domain)
            put = put_back(connection, keys) if keys else {}
            done = []
            with Progress(f"store {', '.join(wanted)}", found, as_json) as progress:
                for domain in wanted:
                    its = [span for span in found if span.domain == domain]
                    done.append(_Restoring(of, connection, domain, ids, progress).run(its, accept_gaps))
            if common:
                resumed = resume(of, connection, {one.domain: one.head for one in done})
                for one in done:
                    one.followers = resumed[one.domain]
        if keys:
            _tell_keys(keys, put, as_json)
        return done
    except psycopg.Error as error:
        raise ReplayError(f"the target database: {line(error)}") from error


def _tell_keys(file: Path, put: dict[str, int], as_json: bool) -> None:
    if as_json:
        tell({"keys": put["vault_keys"], "secrets": put["secrets"], "file": str(file)})
    else:
        print(f"{file}: {put['vault_keys']:,} keys and {put['secrets']:,} secrets are back")


def _empty(connection: Connection, domain: str) -> None:
    """Have the domain's tables to ourselves. Raises ReplayError unless nothing is in them."""
    tables = [names(domain)[table] for table in ("events", "snapshots", "commands", "claims", "timers")]
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(sql.SQL(", ").join(tables)))
    head = connection.execute("SELECT last FROM log_heads WHERE domain = %s FOR UPDATE", [domain]).fetchone()
    filled = [t for t in tables if connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(t)).fetchone()]
    if filled or (head and head[0]):
        raise ReplayError(f"the target has a store of {domain} already: give an empty database, nothing was changed")


class _Restoring:
    """One domain on its way into the target's transaction."""

    def __init__(self, of: Settings, connection: Connection, domain: str, ids: Ids | None, progress: Progress) -> None:
        self._of, self._connection, self._ids, self._progress = of, connection, ids, progress
        self._names = names(domain)
        self._domain, self._done = domain, Restored(domain)
        self._late: IO[bytes] = SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115, it is gone with the process at the latest
        self._derived = Derived(domain)

    def run(self, wanted: Sequence[Span], accept_gaps: bool) -> Restored:
        done, indexes = self._done, self._without_indexes()
        self._execute("TRUNCATE {events}")  # what is copied in the transaction of a TRUNCATE can be frozen
        self._copy(wanted)
        self._indexed(indexes)
        self._take_late()
        row = self._execute("SELECT count(*), coalesce(max(notification_id), 0) FROM {events}").fetchone()
        assert row is not None
        done.events, done.head = row
        if done.events < done.head:
            done.gaps = self._execute(GAPS).fetchall()
            done.broken = self._count(BROKEN)
            if not accept_gaps:
                raise ReplayError(
                    f"{self._of.topic(self._domain)} lacks {done.head - done.events:,} of {done.head:,} events, "
                    f"notification ids {told(done.gaps)}: --accept-gaps takes it as it is, nothing was changed"
                )
        self._execute("UPDATE log_heads SET last = %s WHERE domain = {domain}", [done.head])
        self._connection.execute(
            "INSERT INTO relay_positions (domain, position) VALUES (%s, %s)"
            " ON CONFLICT (domain) DO UPDATE SET position = EXCLUDED.position",
            [self._domain, done.head],
        )
        done.commands = self._execute(COMMANDS, recovered=sql.Literal(RECOVERED)).rowcount
        done.claims, done.timers = self._derived.store(self._connection)
        self._execute(
            "ANALYZE {events} (notification_id, originator_id, originator_version), {commands}, {claims}, {timers}"
        )
        return done

    def _copy(self, wanted: Sequence[Span]) -> None:
        """Every record whose id is above all before it in its partition; duplicates, and what is out of order, come later."""
        done = self._done
        statement = sql.SQL(f"COPY {{events}} ({COLUMNS}) FROM STDIN (FORMAT BINARY, FREEZE)").format(**self._names)
        self._late.write(rows.BEGIN)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(rows.BEGIN)
            with closing(packed(Job(self._of, self._domain, list(wanted), self._ids))) as batches:
                for one in batches:
                    copy.write(one.rows)
                    self._late.write(one.late)
                    self._derived.add(one.claimed, one.timed)
                    done.duplicates += one.duplicates
                    done.foreign += one.foreign
                    done.unreadable += one.unreadable
                    self._progress.moved(one.records, one.positions)
            copy.write(rows.END)
        self._late.write(rows.END)

    def _take_late(self) -> None:
        """Records that came after a higher id of their partition: mostly duplicates, which a relay makes when it starts anew."""
        if not self._done.duplicates:
            return
        self._execute("CREATE TEMPORARY TABLE late (LIKE {events}) ON COMMIT DROP")
        self._late.seek(0)
        with self._connection.cursor() as cursor:
            with cursor.copy(f"COPY late ({COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy:
                while data := self._late.read(1024 * 1024):
                    copy.write(data)
        taken = self._execute(
            f"INSERT INTO {{events}} ({COLUMNS}) SELECT DISTINCT ON (notification_id) {COLUMNS} FROM late"
            " ORDER BY notification_id ON CONFLICT (notification_id) DO NOTHING"
        ).rowcount
        self._done.duplicates -= taken
        differ = self._execute(
            "SELECT l.notification_id FROM late l JOIN {events} e USING (notification_id) WHERE e IS DISTINCT FROM l LIMIT 1"
        ).fetchone()
        if differ:
            raise ReplayError(
                f"{self._of.topic(self._domain)} has two different events under the notification id {differ[0]}: "
                "find out which is right, nothing was changed"
            )
        self._connection.execute("DROP TABLE late")

    def _without_indexes(self) -> list[sql.Composed]:
        """Take the indexes off, and answer with the statements that put them on again."""
        found = self._connection.execute(
            "SELECT c.relname::text, pg_get_indexdef(c.oid), k.conname::text, pg_get_constraintdef(k.oid)"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_constraint k ON k.conindid = c.oid"
            " WHERE i.indrelid = to_regclass(%s)",
            [self._names["events"].as_string()],
        ).fetchall()
        again: list[sql.Composed] = []
        for index, definition, constraint, its in found:
            if constraint is None:
                self._execute("DROP INDEX {index}", index=sql.Identifier(index))
                again.append(sql.Composed([sql.SQL(definition)]))
            else:
                name = sql.Identifier(constraint)
                self._execute("ALTER TABLE {events} DROP CONSTRAINT {name}", name=name)
                add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} ").format(self._names["events"], name)
                again.append(add + sql.SQL(its))
        return again

    def _indexed(self, statements: Sequence[sql.Composed]) -> None:
        try:
            for statement in statements:
                self._connection.execute(statement)
        except psycopg.errors.UniqueViolation as error:
            raise ReplayError(
                f"{self._of.topic(self._domain)} contradicts itself: {error.diag.message_detail}: nothing was changed"
            ) from error

    def _execute(self, query: str, parameters: Sequence[Any] = (), **more: sql.Composable) -> psycopg.Cursor[Any]:
        return self._connection.execute(sql.SQL(query).format(**self._names, **more), parameters or None)

    def _count(self, query: str) -> int:
        row = self._execute(query).fetchone()
        assert row is not None
        return int(row[0])


def _home(of: Settings, wanted: Collection[str]) -> str:
    """The database of these domains. Raises ReplayError when they are in several."""
    [dsn, *others] = {of.dsn(domain) for domain in wanted}
    if others:
        raise ReplayError("these domains are in several databases: give the command once for each, with its --into")
    return dsn


def told(gaps: Sequence[tuple[int, int]]) -> str:
    """Gaps in words: `7, 12–15 and 3 more`."""
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in gaps[:SHOWN_MAX]]
    more = f" and {len(gaps) - SHOWN_MAX} more" if len(gaps) > SHOWN_MAX else ""
    return ", ".join(shown) + more


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="titan replay store", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("domain", nargs="*")
    parser.add_argument("--all", action="store_true", help="every domain")
    parser.add_argument(
        "--into",
        metavar="DSN",
        help="the database, whose tables of these domains are empty; without it the one that the domains are to be in",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="a copy of the keys of personal data and of secrets, to be put back there, too: see `titan replay keys`",
    )
    parser.add_argument("--accept-gaps", action="store_true", help="take a topic that has lost events as it is")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    wanted, of = domains.chosen(given.domain, given.all), settings()
    for one in restore(of, wanted, given.into or _home(of, wanted), given.accept_gaps, given.json, given.keys):
        if given.json:
            tell({"store": one.domain, **vars(one)})
            continue
        print(
            f"{one.domain}: {one.events:,} events, {one.claims:,} unique keys, {one.timers:,} timers, {one.commands:,} commands;"
            f" {one.duplicates:,} duplicates were dropped"
            + (f"; ids {told(one.gaps)} are missing, {one.broken:,} aggregates lack an event" if one.gaps else "")
            + (f"; {one.unreadable:,} events can't be read by this code" if one.unreadable else "")
            + (f"; {one.foreign:,} records are not ours" if one.foreign else "")
            + (f"; {', '.join(one.followers)} go on with them where they were" if one.followers else "")
        )
    return 0
