"""A rule over the live stream: its windows and verdicts in Postgres by key, changed with the positions, and told to titan.fraud.

A batch's keys are locked in 64 slices in one order before their events are read, so that hosts of other partitions with events of the
same keys take turns, each on what the one before has committed. A verdict that changed waits in `rule_verdicts` until titan.fraud
has it, under a command id of its own revision: told again, by whomever, it is stored once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID
from zlib import crc32

import psycopg
from prometheus_client import Counter, Gauge

from aggregates.kernel import Event, KernelError, Recorded, wire
from aggregates.kernel.clock import wall
from aggregates.kernel.event import EPOCH
from infra.logs import bound
from projections.kernel.parking import TooManyParked
from projections.kernel.runner import Delivery, Parking
from streams.kernel.lanes import PARKED, Connection, Lane, Log, Partitioned, Pool, Where
from streams.kernel.rules.rule import Hit, Rule
from streams.kernel.rules.secret import MakeKeys, NoKey, Secret, no_key
from streams.kernel.rules.timeline import Entry, Timeline

log = logging.getLogger(__name__)

SLICES = 64  # of a rule's keys: so many locks a batch at the most
TELL_MAX = 200  # verdicts told at once
LOOK_S = 5.0  # between two looks for verdicts that somebody else left
FORGET_S = 60.0  # between two looks for what no window needs any more

RAISED = Counter("rule_verdicts_told_total", "Hits that titan.fraud was told of", ["rule", "verdict"])
SUSPENDED = Gauge("rule_suspended", "1 for a rule that fails too often and judges nothing any more: alarm", ["rule"])

# Of each key what the windows of its new events, and those that look back on these, may reach.
NEIGHBOURS = """
SELECT w.key, e.at, e.domain, e.position, e.event_id, e.id, e.version, e.judged, e.state
FROM unnest(%(keys)s::text[], %(firsts)s::timestamptz[], %(lasts)s::timestamptz[]) AS w(key, first, last), LATERAL (
    (SELECT * FROM rule_events WHERE (rule, key) = (%(rule)s, w.key) AND at > w.first - %(window)s AND at < w.first
     ORDER BY at DESC, domain DESC, position DESC LIMIT %(most)s)
    UNION ALL (SELECT * FROM rule_events WHERE (rule, key) = (%(rule)s, w.key) AND at BETWEEN w.first AND w.last)
    UNION ALL
    (SELECT * FROM rule_events WHERE (rule, key) = (%(rule)s, w.key) AND at > w.last AND at < w.last + %(window)s
     ORDER BY at, domain, position LIMIT %(most)s)) AS e
"""
KEEP = """
INSERT INTO rule_events (rule, key, at, domain, position, event_id, id, version, judged, state)
SELECT %s, * FROM unnest(%s::text[], %s::timestamptz[], %s::text[], %s::bigint[], %s::uuid[], %s::uuid[], %s::int[], %s::bool[], %s::bytea[])
ON CONFLICT DO NOTHING
"""
HITS = """
INSERT INTO rule_verdicts AS old (rule, domain, position, event_id, event_type, id, key, at, hit, revision, told)
SELECT %s, v.*, 1, 0 FROM unnest(%s::text[], %s::bigint[], %s::uuid[], %s::text[], %s::uuid[], %s::text[], %s::timestamptz[], %s::text[]::jsonb[])
     AS v(domain, position, event_id, event_type, id, key, at, hit)
ON CONFLICT (rule, domain, position) DO UPDATE SET hit = EXCLUDED.hit, revision = old.revision + 1
WHERE old.hit IS DISTINCT FROM EXCLUDED.hit
"""
GONE = """
UPDATE rule_verdicts SET hit = NULL, revision = revision + 1
WHERE rule = %s AND hit IS NOT NULL AND (domain, position) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))
"""


class Verdict(NamedTuple):
    """What a rule says of one event, which has that `position` in its domain's log, as of its last `revision`: a hit, or that there is
    none any more."""

    rule: str
    version: int
    position: int
    event_id: UUID
    event_type: str
    id: UUID
    key: str
    at: datetime
    hit: Hit | None
    revision: int


Tell = Callable[[Verdict], Awaitable[None]]


class News(NamedTuple):
    """An event to take over: its place, the record that it came by, and its body as it is kept."""

    entry: Entry
    delivery: Delivery
    state: bytes


class TooLate(Exception):
    """An event came after its window was forgotten."""


class RuleHost(Partitioned):
    """Runs one rule. `tell` brings a verdict to titan.fraud, once under its rule, event and revision; it raises what a command does.
    `blind` makes keys of personal data."""

    def __init__(
        self,
        rule: Rule[Any],
        pool: Pool,
        parking: Parking,
        records: Log,
        tell: Tell,
        *,
        blind: MakeKeys = no_key,
        clock: Callable[[], datetime] = wall,
        decode: Callable[[Delivery], Recorded[Event]] = Delivery.recorded,
    ) -> None:
        super().__init__(f"rule.{rule.id}", f"rule.{rule.id}", rule.kinds, pool, parking, records, decode)
        self.rule, self._tell, self._blind, self._clock = rule, tell, blind, clock
        self._starts: dict[str, int] = {}
        self._news = asyncio.Event()
        SUSPENDED.labels(rule.id).set(0)

    # Events.

    async def assign(self, first: Mapping[Where, int]) -> dict[Where, int]:
        """As `Partitioned`; a rule that is suspended takes over nothing."""
        return {} if self.suspended else await super().assign(first)

    async def handle(self, batch: Sequence[Delivery]) -> None:
        """As `Partitioned`; but a rule that fails too often is suspended, and others go on."""
        if self.suspended:
            return
        try:
            await super().handle(batch)
        except (TooManyParked, NoKey) as error:
            self.suspended = str(error)
            SUSPENDED.labels(self.rule.id).set(1)
            log.critical("ALARM: rule %s is suspended, until it is started anew: %s", self.rule.id, error)
            self.release()

    async def retry(self, where: Where, key: bytes) -> tuple[int, str]:
        """As `Partitioned`. Whatever hosts the rule tells its verdicts."""
        self._starts = await self._read_starts()
        return await super().retry(where, key)

    async def _assigned(self, found: Mapping[Where, Lane]) -> None:
        self._starts = await self._patiently(self._read_starts)
        await super()._assigned(found)
        self._news.set()

    async def _read_starts(self) -> dict[str, int]:
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(
                "INSERT INTO rule_horizons VALUES (%s, %s) ON CONFLICT DO NOTHING", (self.rule.id, EPOCH)
            )
            cursor = await connection.execute(
                "SELECT domain, notification_id FROM rule_starts WHERE rule = %s", (self.rule.id,)
            )
            return {str(domain): int(id) for domain, id in await cursor.fetchall()}

    async def _change(self, connection: Connection, wanted: Sequence[Delivery]) -> Callable[[], None]:
        for delivery, error in await self._judge(connection, wanted):
            with bound(delivery.correlation):
                log.error("ALARM: rule %s: %s:%d is parked", self.rule.id, delivery.topic, delivery.notification_id)
            PARKED.labels(self.name).inc()
            await self._park(lambda: self._parking.park(self.parked_as, delivery, error))  # noqa: B023
        return self._news.set

    async def _take_again(self, connection: Connection, where: Where, lane: Lane, events: Sequence[Delivery]) -> None:
        for _, error in await self._judge(connection, events):
            raise error

    async def _judge(self, connection: Connection, wanted: Sequence[Delivery]) -> list[tuple[Delivery, Exception]]:
        """Put events in their windows, and set the verdicts that follow; answers with those that failed, and why."""
        new, failed = await self._by_key(wanted)
        if not new:
            return failed
        await self._lock(connection, new)
        horizon = await self._horizon(connection)
        for key, its in list(new.items()):
            late = [one for one in its if one.entry.at < horizon]
            failed += [(one.delivery, self._too_late(one.entry.at, horizon)) for one in late]
            new[key] = [one for one in its if one.entry.at >= horizon]
            if not new[key]:
                del new[key]
        lines = await self._neighbours(connection, new)
        await self._keep(connection, new)
        hits, gone = list[tuple[str, Entry, Hit]](), list[Entry]()
        for key, its in new.items():
            line, affected = lines[key], dict[tuple[datetime, str, int], Delivery]()
            for entry, delivery, _ in its:
                affected |= {line.entries[i][:3]: delivery for i in line.add(entry)}
            affected |= {entry[:3]: delivery for entry, delivery, _ in its}  # its own failure parks an event itself
            for index, entry in enumerate(line.entries):
                if entry[:3] not in affected or not entry.judged:
                    continue
                hit = None
                try:
                    hit = line.judge(index)
                except Exception as error:
                    failed.append((affected[entry[:3]], error))
                if hit is None:
                    gone.append(entry)
                else:
                    hits.append((key, entry, hit))
        await self._settle(connection, hits, gone)
        return list({id(delivery): (delivery, error) for delivery, error in failed}.values())

    async def _by_key(
        self, wanted: Sequence[Delivery]
    ) -> tuple[dict[str, list[News]], list[tuple[Delivery, Exception]]]:
        """The events that the rule has a use for, and those of which it could not say so."""
        failed: list[tuple[Delivery, Exception]] = []
        found: list[tuple[str | Secret | None, News]] = []
        for delivery in wanted:
            try:
                one = self._decode(delivery)
                judged = one.position > self._starts.get(delivery.topic, 0)
                entry = Entry(one.event.at, one.event.domain, one.position, one.event_id, one.event, judged)
                found.append((self.rule.key(one.event), News(entry, delivery, wire.encode(one.event))))
            except Exception as error:
                failed.append((delivery, error))
        secrets = [key for key, _ in found if isinstance(key, Secret)]
        keys = iter(await self._blind(secrets) if secrets else ())
        new: dict[str, list[News]] = {}
        for key, news in found:
            if name := next(keys) if isinstance(key, Secret) else key:
                new.setdefault(name, []).append(news)
        return new, failed

    def _too_late(self, at: datetime, horizon: datetime) -> TooLate:
        return TooLate(
            f"it is of {at}, and what was before {horizon} is forgotten: see `titan replay rule {self.rule.name}`"
        )

    async def _lock(self, connection: Connection, keys: Collection[str]) -> None:
        slices = sorted({crc32(key.encode()) % SLICES for key in keys})
        await connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext(%s), slice) FROM unnest(%s::int[]) AS slice", (self.name, slices)
        )

    async def _horizon(self, connection: Connection) -> datetime:
        """No event before it can be judged. It does not move before the end of the transaction."""
        cursor = await connection.execute("SELECT before FROM rule_horizons WHERE rule = %s FOR SHARE", (self.rule.id,))
        [before] = await cursor.fetchone() or [EPOCH]
        return before

    async def _neighbours(self, connection: Connection, new: Mapping[str, Sequence[News]]) -> dict[str, Timeline]:
        cursor = await connection.execute(
            NEIGHBOURS,
            {
                "rule": self.rule.id, "window": self.rule.window, "most": self.rule.events_max,
                "keys": list(new),
                "firsts": [min(one.entry.at for one in its) for its in new.values()],
                "lasts": [max(one.entry.at for one in its) for its in new.values()],
            },
        )  # fmt: skip
        found: dict[str, list[Entry]] = {key: [] for key in new}
        for key, at, domain, position, event_id, id, version, judged, state in await cursor.fetchall():
            event = wire.decode(domain, id, version, at, state)
            found[key].append(Entry(at, domain, position, event_id, event, judged))
        return {key: Timeline(self.rule, its) for key, its in found.items()}

    async def _keep(self, connection: Connection, new: Mapping[str, Sequence[News]]) -> None:
        rows = [
            (key, e.at, e.domain, e.position, e.event_id, e.event.id, e.event.version, e.judged, state)
            for key, its in new.items()
            for e, _, state in its
        ]
        if rows:
            await connection.execute(KEEP, (self.rule.id, *map(list, zip(*rows, strict=True))))

    async def _settle(
        self, connection: Connection, hits: Sequence[tuple[str, Entry, Hit]], gone: Sequence[Entry]
    ) -> None:
        if hits:
            rows = [
                (one.domain, one.position, one.event_id, one.event.type, one.event.id, key, one.at, as_json(hit))
                for key, one, hit in hits
            ]
            await connection.execute(HITS, (self.rule.id, *map(list, zip(*rows, strict=True))))
        if gone:
            await connection.execute(GONE, (self.rule.id, [one.domain for one in gone], [one.position for one in gone]))

    # Verdicts.

    async def run(self) -> None:
        """Tell what is new, and forget what is old, for ever."""
        forgotten = time.monotonic()
        while True:
            self._news.clear()
            try:
                while await self.tell():
                    pass
                if time.monotonic() - forgotten > FORGET_S:
                    forgotten = time.monotonic()
                    await self.forget()
            except psycopg.OperationalError as error:
                log.warning("%s: verdicts wait for the database: %s", self.name, str(error).strip())
                await asyncio.sleep(1)
            await self._nudge()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), LOOK_S)

    async def tell(self) -> bool:
        """Tell titan.fraud of verdicts that it has not heard of; whether there are more that can be told now."""
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                """SELECT domain, position, event_id, event_type, id, key, at, hit, revision FROM rule_verdicts
                WHERE rule = %s AND told < revision ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED""",
                (self.rule.id, TELL_MAX),
            )
            rows = await cursor.fetchall()
            told = await asyncio.gather(*(self._told(row[1:]) for row in rows))
            done = [row for row, ok in zip(rows, told, strict=True) if ok]
            if done:
                await connection.execute(
                    """UPDATE rule_verdicts v SET told = t.revision
                    FROM unnest(%s::text[], %s::bigint[], %s::int[]) AS t(domain, position, revision)
                    WHERE v.rule = %s AND (v.domain, v.position) = (t.domain, t.position)""",
                    ([row[0] for row in done], [row[1] for row in done], [row[8] for row in done], self.rule.id),
                )
        return bool(done) and len(rows) == TELL_MAX

    async def _told(self, row: Sequence[Any]) -> bool:
        position, event_id, event_type, id, key, at, document, revision = row
        hit = document and Hit(UUID(document["subject"]), document["score"], document["why"])
        verdict = Verdict(self.rule.name, self.rule.version, position, event_id, event_type, id, key, at, hit, revision)
        try:
            await self._tell(verdict)
        except KernelError as error:
            log.warning("rule %s: the verdict on %s is told later: %s", self.rule.id, event_id, error)
            return False
        except Exception:
            log.exception("ALARM: rule %s: the verdict on %s can't be told; it is tried again", self.rule.id, event_id)
            return False
        RAISED.labels(self.rule.id, "hit" if hit else "withdrawn").inc()
        return True

    async def forget(self) -> int:
        """Drop events that no window needs any more, as the slowest partition and the clock have it; how many."""
        rule = self.rule
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(
                "SELECT min(watermark) FROM processor_positions WHERE processor = %s", (self.name,)
            )
            [mark] = await cursor.fetchone() or [None]
            if mark is None or mark == EPOCH:
                return 0
            before = min(mark, self._clock()) - rule.late
            await connection.execute(
                "UPDATE rule_horizons SET before = %s WHERE rule = %s AND before < %s", (before, rule.id, before)
            )
            await connection.execute(
                "DELETE FROM rule_verdicts WHERE rule = %s AND at < %s AND told = revision", (rule.id, before)
            )
            cursor = await connection.execute(
                "DELETE FROM rule_events WHERE rule = %s AND at < %s", (rule.id, before - rule.window)
            )
            return cursor.rowcount


def as_json(hit: Hit) -> str:
    """As `rule_verdicts` has it."""
    return json.dumps(asdict(hit), default=str)
