"""Rules on a real database, their topics in memory, and hosts that come and go; and what has to come out, said in the plainest way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import Event, wire
from aggregates.kernel.partition import partition_of
from aggregates.kernel.wire import Row
from infra.settings import Settings
from projections.kernel.migrate import migrate as migrate_parking
from projections.kernel.parking import Limits, PostgresParking
from projections.kernel.runner import Delivery
from streams.kernel.lanes import Where
from streams.kernel.migrate import PROCESSORS, RULES, make
from streams.kernel.rules import Hit, Rule, Window, rule
from streams.kernel.rules.host import RuleHost, Verdict
from streams.kernel.rules.timeline import Entry
from tests.kernel.carts import Topic
from tests.kernel.connections import connected
from tests.kernel.login import LoggedIn
from tests.kernel.swipe import Swiped

T = TypeVar("T")
NOON = datetime(2031, 1, 1, 12, tzinfo=UTC)
ACCOUNTS = [UUID(int=n) for n in range(1, 3)]
Standing = dict[UUID, Hit]
"""What stands of a rule: its hits by event."""


@rule(version=1, window_s=20, key=lambda e: e.account, events_max=4)
def fickle(e: Swiped | LoggedIn, window: Window[Swiped | LoggedIn]) -> Hit | None:
    """Tells its whole window, and has a hit or none by anything that changes in it."""
    amounts = [one.amount for one in window]
    if len(amounts) < 2 or sum(amounts) % 3 == 1:
        return None
    return Hit(e.account, 1 + sum(amounts) % 100, " ".join(map(str, amounts)))


class Topics(Topic):
    """The records of several domains."""

    def __init__(self, domains: Iterable[str], partitions: int) -> None:
        super().__init__("", 0)
        self.partitions = partitions
        self.records = {(domain, number): [] for domain in domains for number in range(partitions)}
        self._last: dict[str, int] = {}

    def add(self, kind: type[Event], account: UUID, amount: int, seconds: float, id: UUID | None = None) -> Delivery:
        """An event so many seconds after noon, as the next of its domain, in the partition of an aggregate of its own."""
        values: dict[str, Any] = {"account": account, "amount": amount}
        at = NOON + timedelta(seconds=seconds)
        event = kind(originator_id=id or uuid4(), originator_version=1, timestamp=at, **values)
        position = self._last[kind.domain] = self._last.get(kind.domain, 0) + 1
        row = Row(position, event.id, 1, kind.type, wire.encode(event), uuid4(), at, "test", None, "user:test")
        return self.put(row)

    def put(self, row: Row) -> Delivery:
        key = str(row.originator_id).encode()
        where = row.event_type.partition(".")[0], partition_of(key, self.partitions)
        made = Delivery(*where, len(self.records[where]), key, row.state, wire.headers(row))
        self.records[where].append(made)
        return made


def expected(of: Rule[Any], records: Iterable[Delivery]) -> Standing:
    """What has to stand, after the definition: each event judged by those of its key up to it that are in its window."""
    entries = []
    for one in (delivery.recorded() for delivery in records):
        if one.event.type in {kind.type for kind in of.kinds}:
            entries.append(Entry(one.event.at, one.event.domain, one.position, one.event_id, one.event, True))
    found: Standing = {}
    for judged in entries:
        window = sorted(
            (other for other in entries
             if of.key(other.event) == of.key(judged.event)
             and other[:3] <= judged[:3] and other.at > judged.at - of.window),
            key=lambda entry: entry[:3],
        )[-of.events_max :]  # fmt: skip
        if hit := of.judge(judged.event, Window([one.event for one in window], judged.at)):
            found[judged.event_id] = hit
    return found


class Court:
    """One rule, its hosts, and what they told: `told` has the last word on each event, `words` how many there were."""

    def __init__(
        self, dsn: str, pool: AsyncConnectionPool[AsyncConnection[TupleRow]], of: Rule[Any], topics: Topics
    ) -> None:
        self.dsn, self.pool, self.rule, self.topics = dsn, pool, of, topics
        self.told: dict[UUID, tuple[int, Hit | None]] = {}
        self.words = 0
        self.now = NOON + timedelta(days=30)
        self.limits = Limits()
        self._made: list[Callable[[], None]] = []

    def host(self, **given: Any) -> RuleHost:
        parking = PostgresParking(self.dsn, self.limits)
        made = RuleHost(self.rule, self.pool, parking, self.topics, self.hear, clock=lambda: self.now, **given)
        self._made += [made.close, parking.close]
        return made

    async def hear(self, verdict: Verdict) -> None:
        """As titan.fraud does: each revision once, the last one stands."""
        before = self.told.get(verdict.event_id, (0, None))[0]
        if verdict.revision > before:
            self.words += 1
            self.told[verdict.event_id] = verdict.revision, verdict.hit

    def close(self) -> None:
        """Every host is gone."""
        for close in self._made:
            close()
        self._made.clear()

    @property
    def standing(self) -> Standing:
        return {event: hit for event, (_, hit) in self.told.items() if hit is not None}

    async def all(self, host: RuleHost | None = None) -> RuleHost:
        """One host reads all there is, and tells it."""
        host = host or self.host()
        starts = await host.assign(dict.fromkeys((w for w in self.topics.records if w[0] in host.topics), 0))
        for where, start in starts.items():
            await host.handle(self.topics.records[where][start:])
        while await host.tell():
            pass
        return host

    def count(self, query: str) -> int:
        with connected(self.dsn) as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])


def prepare(dsn: str) -> None:
    """The tables of a rule, empty."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        make(connection, PROCESSORS)
        make(connection, RULES)
        migrate_parking(Settings(postgres=dsn), ["postgres"], [])
        for table in (
            "rule_starts",
            "rule_horizons",
            "rule_events",
            "rule_verdicts",
            "processor_positions",
            "parked",
            "parked_sequences",
        ):
            connection.execute(f"TRUNCATE {table}".encode())


def in_court(dsn: str, story: Callable[[Court], Awaitable[T]], of: Rule[Any] = fickle, partitions: int = 2) -> T:
    """Run a story to its end."""
    prepare(dsn)

    async def main() -> T:
        async with AsyncConnectionPool[AsyncConnection[TupleRow]](dsn, min_size=1, max_size=6, open=False) as pool:
            court = Court(dsn, pool, of, Topics(of.domains, partitions))
            try:
                return await story(court)
            finally:
                court.close()

    return asyncio.run(main())


def lanes_of(topics: Topics) -> list[Where]:
    return sorted(topics.records)


def split(lanes: Sequence[Where], first: int) -> tuple[list[Where], list[Where]]:
    """A share for each of two hosts."""
    return [w for i, w in enumerate(lanes) if first >> i & 1], [w for i, w in enumerate(lanes) if not first >> i & 1]
