"""Topics written with the ids of a registry of the company's own: projected, rebuilt, verified, restored and written anew."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from aggregates.kernel.migrate import migrate
from infra.kafka.topics import create
from infra.settings import Settings
from projections.kernel.clauses import projections
from projections.kernel.migrate import migrate as migrate_views
from projections.kernel.parking import PostgresParking
from projections.kernel.runner import Delivery
from replay import domains, packing, projection
from replay.log import ReplayError, ids_of, messages, spans
from replay.rows import record
from replay.rule import chosen, run
from replay.store import restore
from replay.topic import rewrite
from replay.verify import verify
from streams.kernel import dlq
from tests.bench.corpus import rows
from tests.kernel.pipeline import following, projected, relayed, relaying, store_rows
from tests.kernel.platform import wait_for
from tests.kernel.registry import company, served
from tests.kernel.servers import Stack, database
from tests.replay.past import dump

EVENTS = 600
LOG = "SELECT * FROM order_events ORDER BY notification_id"
SUMMARY = "SELECT * FROM order_summary ORDER BY id"


def written(of: Settings) -> list[Delivery]:
    """The records as they lie in the topic."""
    found = []
    for batch in messages(of, spans(of, ["order"])):
        for message in batch:
            key, value, headers = record(message)
            partition, offset = cast(int, message.partition()), cast(int, message.offset())
            found.append(Delivery("order", partition, offset, key, value, list(headers)))
    return found


def test_whatever_reads_a_topic_knows_its_ids(
    settings: Settings, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains.chosen(["order"], False)
    [order] = [one for one in projections() if one.name == "order"]
    views = order.only([table for table in order.tables if table.sink == "postgres"])
    known = {views: order.module}
    with served(company()) as url:
        of = settings.model_copy(update={"schema_registry_url": url})
        migrate(of.postgres, ["order"])
        create(of, ["order"])
        migrate_views(of, ["postgres"], [views])
        store_rows(of.postgres, "order", list(rows(EVENTS)))
        with relaying(of), following(of, [views], ["order"], ["postgres"]):
            wait_for(lambda: relayed(of, "order"), "the log is in the topic")
            wait_for(lambda: projected(of, [views], "order", of.partitions), "read models have seen it")
        live = dump(of.postgres, SUMMARY)
        assert live and dump(of.postgres, "SELECT count(*) FROM parked") == [(0,)]
        assert projection.main(["order_summary", "--sink", "postgres", "--workers", "2"], [order], of) == 0
        assert dump(of.postgres, SUMMARY) == live
        test = asyncio.run(run(of, chosen("order_velocity", None), spans(of, ["order"])))
        assert test.judged > 0 and test.errors == {}
        monkeypatch.setattr(packing, "INLINE_MAX", 0)
        with database(stack) as dsn:
            restore(of, ["order"], dsn)
            assert dump(dsn, LOG) == dump(of.postgres, LOG)
        rewrite(of, "order", force=True)
        topic = written(of)
        assert len(topic) == EVENTS and min(int.from_bytes(one.value[1:5]) for one in topic) >= 1000
        found = list(verify(of, ["order"], known, sinks=["postgres"]))
        kept = [one for one in found if one.what == "keys, timers and snapshots order"]  # rows alone were stored
        assert len(found) > 2 and [one.document() for one in found if not one.agrees and one not in kept] == []
        parking = PostgresParking(of.postgres)
        parking.park("postgres.order", topic[0], ValueError("a bug of old"))
        parking.close()
        [waiting] = dlq.parked(of)
        assert dlq.retry(of, waiting, [order]) == (1, "")


def test_a_registry_that_is_away_is_one_line(settings: Settings) -> None:
    of = settings.model_copy(update={"schema_registry_url": "http://127.0.0.1:9"})
    with pytest.raises(ReplayError, match=r"^the schema registry at 127\.0\.0\.1 cannot be used"):
        ids_of(of)
