"""Read models in Postgres are rebuilt while the live worker writes and others read: nothing lost, doubled, or seen half-built."""

from __future__ import annotations

import random
from uuid import uuid4

import psycopg

from infra.settings import Settings
from replay import projection
from tests.projections.kernel.live import make_topic, publish, until, workers
from tests.projections.kernel.purse import Filled, Log, Noted, Opened
from tests.projections.kernel.stores import PURSES, store

POSITIONS = "SELECT projection, topic, partition, notification_id FROM projection_positions ORDER BY 1, 2, 3"


def traffic(log: Log, events: int, purses: int = 50) -> None:
    dice = random.Random(len(log.rows))
    known = {row.originator_id for row in log.rows}
    for _ in range(events):
        number = dice.randrange(purses)
        if log.purse(number) not in known:
            known.add(log.purse(number))
            log.add(number, Opened, owner=uuid4(), currency="EUR")
        elif dice.random() < 0.1:
            log.add(number, Noted, note="n", text=f"Größe {dice.randrange(9)}")
        else:
            log.add(number, Filled, amount=dice.randrange(1, 400))


def rebuild(settings: Settings, *argv: str) -> int:
    return projection.main([*argv, "--sink", "postgres"], [PURSES], settings)


def contents(settings: Settings) -> list[list[tuple[object, ...]]]:
    """Everything in both tables, and their positions in live lanes."""
    with psycopg.connect(settings.postgres) as connection:
        return [
            connection.execute(query.encode()).fetchall()
            for query in (
                "SELECT id, owner, currency, balance, fills, opened_at, tags, note FROM purses ORDER BY id",
                "SELECT currency, filled, fills FROM totals",
                POSITIONS.replace("ORDER", "WHERE strpos(topic, '!') = 0 ORDER"),
            )
        ]


def test_a_rebuilt_table_is_what_it_was_and_the_worker_goes_on(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 1_500)
    publish(settings, log.rows)
    with store("postgres", settings) as to, workers(settings, 1, "postgres") as (worker,):
        until(lambda: to.holds() == to.should_hold(log), [worker])
        before = contents(settings)
        with psycopg.connect(settings.postgres, autocommit=True) as connection:  # so that it is seen to be made anew
            connection.execute("DELETE FROM purses WHERE balance > 1000")
            connection.execute("UPDATE totals SET fills = 0")
        assert rebuild(settings, "purse") == 0
        assert contents(settings) == before
        start = len(log.rows)
        traffic(log, 500)
        publish(settings, log.rows[start - 50 :])
        until(lambda: to.holds() == to.should_hold(log), [worker])
        assert worker.stop() == 0
    with psycopg.connect(settings.postgres) as connection:
        assert (
            connection.execute(
                "SELECT relname FROM pg_class WHERE relname LIKE '%\\_\\_%' AND relkind = 'r'"
            ).fetchall()
            == []
        )
        assert connection.execute("SELECT count(*) FROM replay_runs").fetchone() == (0,)
