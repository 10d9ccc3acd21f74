"""The shop's own read models in Redis and ClickHouse: rebuilt, live and folded in plain Python, they are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
import redis as redis_client

from aggregates.kernel import wire
from aggregates.kernel.wire import Row
from infra.folding import Folding
from infra.settings import Settings
from projections.kernel.clauses import Projection, projections
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.redis import RedisTable
from projections.kernel.runner import Fenced, Runner
from projections.kernel.tables import AnyTable
from replay.shadow import shadow_of, shadows_of
from tests.golden import load
from tests.kernel.servers import Stack, fresh_settings
from tests.kernel.topic import Live, deliveries

DOMAINS = ("cart", "inventory", "order", "product")
COPIES = 12  # of each golden history, under ids of their own
BATCH = 50


class Shop:
    """Histories with every event of these domains, live in all three stores, and folded beside them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.of: list[Projection] = [one for one in projections() if one.everything or one.domains & set(DOMAINS)]
        self.live = Live(settings, self.of, ("postgres", "redis", "clickhouse"))
        self.folding = Folding(settings, self.of)
        self.logs: dict[str, list[Row]] = {domain: [] for domain in DOMAINS}
        for _ in range(COPIES):
            self.happen()

    def happen(self) -> None:
        """Each golden history once more."""
        for domain, log in self.logs.items():
            start = len(log)
            for history in load(domain):
                id = uuid4()
                for recorded in history.read():
                    e, n = recorded.event, len(log) + 1
                    row = Row(n, id, e.version, e.type, wire.encode(e), uuid4(), e.at, "test", None, "user:test")
                    log.append(row)
                    self.folding._fold(domain, wire.recorded(domain, row))
            self.feed(log[start:])

    def feed(self, rows: Sequence[Row]) -> None:
        """To the live tables, as their workers do it."""
        for runner in self.live.runners:
            made = deliveries(rows, self.settings.partitions)
            try:
                runner.handle(made)
            except Fenced:
                self.live.assign(runner)
                runner.handle(made)

    def tables(self, sink: str) -> list[AnyTable]:
        return [table for one in self.of for table in one.tables if table.sink == sink]

    def rebuild(self, sink: str) -> None:
        """All tables of a sink at once: loaded in batches, switched together."""
        pairs = {table: shadow_of(table) for table in self.tables(sink)}
        with closing(shadows_of(sink, self.settings)) as shadows, closing(shadows.loader()) as loader:
            for shadow in pairs.values():
                shadows.make(shadow)
            runner = Runner(loader, self.of, DOMAINS, targets=pairs)
            runner.assign([(domain, n) for domain in runner.topics for n in range(self.settings.partitions)])
            for log in self.logs.values():
                for at in range(0, len(log), BATCH):
                    runner.handle(deliveries(log[at : at + BATCH], self.settings.partitions))
                loader.checkpoint()
            for shadow in pairs.values():
                shadows.finish(shadow)
            shadows.switch(pairs, lambda reach: None)

    def damage(self, sink: str) -> None:
        if sink == "clickhouse":
            with closing(ClickHouseSink(self.settings.clickhouse)) as click:
                for table in self.tables(sink):
                    click.command(f"DELETE FROM {table.name} WHERE log_id % 3 = 0")
            return
        with redis_client.Redis.from_url(self.settings.redis) as client:
            for table in self.tables(sink):
                assert isinstance(table, RedisTable)
                client.unlink(
                    table.row_key(
                        self.settings.namespace, table.key_of(next(table.suffixes(client, self.settings.namespace)))
                    )
                )


@pytest.fixture(scope="module")
def shop(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder: Path = tmp_path_factory.mktemp("shop")
    with fresh_settings(stack, folder) as settings:
        made = Shop(settings)
        yield made
        made.live.close()


@pytest.mark.parametrize("sink", ["clickhouse", "redis"])
def test_rebuilt_live_and_folded_are_the_same(shop: Shop, sink: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.clickhouse.spans", lambda settings, domains: [])  # no topic here: all is loaded
    assert list(shop.folding.differences()) == []
    assert all(shop.folding.rows[table] for table in shop.tables(sink))
    shop.damage(sink)
    damaged = {one.split(" ")[1] for one in shop.folding.differences()}
    assert damaged == {table.name for table in shop.tables(sink)}
    shop.rebuild(sink)
    assert list(shop.folding.differences()) == []
    shop.happen()
    assert list(shop.folding.differences()) == []
