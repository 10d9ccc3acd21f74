"""Whether a platform is at rest: nothing is on its way to a topic, a read model, a saga or a reactor, and no timer is due soon."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection

import psycopg
from psycopg import sql

from aggregates.kernel import domains
from aggregates.kernel.migrate import names
from infra.settings import Settings
from infra.topics import Log, Topics
from projections.kernel.clauses import Projection
from projections.kernel.runner import Down, Sink
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from streams.sagas import discover, followings

SOON_S = (
    10.0  # a timer that is due within so long is waited for: a payment's or a saga's next try, not the end of a cart
)
PAUSE_S = 0.05


class Rest:
    """Looks again and again until it is so."""

    def __init__(self, of: Settings, topics: Topics, views: Collection[Projection]) -> None:
        self.of, self.topics, self.views = of, topics, views
        self._sinks: dict[str, Sink] = {}
        self._followers = followings(*discover())

    def close(self) -> None:
        for sink in self._sinks.values():
            sink.close()

    def wait(self, seconds: float) -> tuple[dict[str, int], list[str]]:
        """The last notification id of each domain, and what has not arrived within so many seconds."""
        give_up = time.monotonic() + seconds
        while True:
            heads = self.heads()
            at_end = self.topics.read_on(1.0)
            behind = self._topics_behind(heads) or self._views_behind(heads) or self._others_behind(heads)
            if at_end and not behind and heads == self.heads():
                return heads, []
            if time.monotonic() > give_up:
                return heads, behind or ["the event store is still written to"]
            time.sleep(PAUSE_S)

    def heads(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for dsn in {self.of.postgres, *self.of.postgres_domains.values()}:
            with psycopg.connect(dsn) as connection:
                found.update(connection.execute("SELECT domain, last FROM log_heads").fetchall())
        return {domain: found[domain] for domain in domains() if domain in found}

    def _newest(self, domain: str) -> dict[int, int]:
        return (self.topics.logs.get(domain) or Log()).newest

    def _topics_behind(self, heads: dict[str, int]) -> list[str]:
        return [
            f"topic {domain}: {missing} events are not there"
            for domain, head in heads.items()
            if (missing := head - len((self.topics.logs.get(domain) or Log()).ids)) > 0
        ]

    def _views_behind(self, heads: dict[str, int]) -> list[str]:
        behind = []
        for one in self.views:
            by_sink: dict[str, list[AnyTable]] = defaultdict(list)
            for table in one.tables:
                by_sink[table.sink].append(table)
            for name, tables in by_sink.items():
                for domain in sorted(set(heads) if one.everything else one.domains & heads.keys()):
                    behind += self._view_behind(name, tables, domain)
        return behind

    def _view_behind(self, name: str, tables: list[AnyTable], domain: str) -> list[str]:
        newest = self._newest(domain)
        if not newest:
            return []
        if name not in self._sinks:
            self._sinks[name] = sink_of(name, self.of)
        try:
            at = self._sinks[name].positions(tables, domain, newest.keys())
        except Down as error:
            return [f"{name} does not answer: {error}"]
        return [
            f"{name} {table.name}: {domain} partition {partition} is at {at[table, partition].notification_id}, not {id}"
            for table in tables
            for partition, id in newest.items()
            if at[table, partition].notification_id < id
        ]

    def _others_behind(self, heads: dict[str, int]) -> list[str]:
        """Sagas and reactors that have not dealt with all there is, and timers."""
        behind = []
        with psycopg.connect(self.of.postgres) as connection:
            marks = connection.execute("SELECT follower, domain, notification_id FROM follower_watermarks").fetchall()
            rows = connection.execute(
                "SELECT follower, domain, partition, notification_id FROM follower_positions"
            ).fetchall()
        watermarks = {(follower, domain): id for follower, domain, id in marks}
        at = {(follower, domain, partition): id for follower, domain, partition, id in rows}
        for follower in self._followers:
            for domain in follower.wanted:
                mark = watermarks.get((follower.name, domain), 0)
                behind += [
                    f"{follower.name}: {domain} partition {partition} is at {reached}, not {id}"
                    for partition, id in self._newest(domain).items()
                    if (reached := max(mark, at.get((follower.name, domain, partition), 0))) < id
                ]
        for domain in heads:
            query = sql.SQL("SELECT count(*) FROM {timers} WHERE due < now() + make_interval(secs => %s)")
            with psycopg.connect(self.of.dsn(domain)) as connection:
                row = connection.execute(query.format(**names(domain)), [SOON_S]).fetchone()
            if row and row[0]:
                behind.append(f"{row[0]} timers of {domain} are due within {SOON_S:.0f} s")
        return behind
