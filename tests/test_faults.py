"""Faults by seed, from the command to every view; and rows that commit late. Each failure names its seed:

TITAN_FAULTS_SEED=7 python -m pytest tests/test_faults.py -k seed
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from aggregates.kernel import Origin, Store, clock
from aggregates.kernel.migrate import migrate as migrate_events
from aggregates.kernel.wire import Row
from infra.settings import Settings
from streams.relay import Relay
from tests.kernel import topic
from tests.kernel.connections import connected
from tests.kernel.eventlog import make_topics, published, stored
from tests.kernel.judge import judge_topic
from tests.kernel.letters import DOMAIN, Letter
from tests.kernel.pipeline import heads, relayed, relaying, store_rows
from tests.kernel.platform import wait_for
from tests.kernel.servers import Kafka
from tests.kernel.sim import Sim

SEEDS = [int(one) for one in os.environ.get("TITAN_FAULTS_SEED", "0 1 2 3").split()]
TURNS = 150


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_goes_wrong_by_seed_the_history_holds(settings: Settings, seed: int) -> None:
    async def main() -> None:
        async with Sim.open(settings, seed) as sim:
            await sim.run(TURNS)
            await sim.calm()
            told = {
                outcome: sum(c.outcome == outcome for c in sim.history.commands) for outcome in ("ok", "no", "unknown")
            }
            assert sim.judge() == [], f"seed {seed}: {told}"
            assert min(told.values()) > 0, f"seed {seed} tries nothing: {told}"
            assert next(sim.faults) > TURNS / 10

    asyncio.run(main())


class Forgetful(Relay):
    """It publishes, and by seed the acknowledgement is lost: its session breaks before the position is stored."""

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(settings.postgres, settings.kafka, settings.topic_prefix, settings.namespace)
        self.dice, self.lost = random.Random(f"relay {seed}"), 0

    def _collect(self, connection: psycopg.Connection[Any], seconds: float) -> None:
        if any(line.windows for line in self._lines.values()) and self.dice.random() < 0.15:
            self.lost += 1
            self._producer.flush(5)  # Kafka has it all
            raise psycopg.OperationalError("acknowledged, and the session is gone")
        super()._collect(connection, seconds)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_relay_whose_acknowledgements_are_lost_repeats_and_leaves_nothing_out(
    postgres: str, kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("streams.relay.RETRY_S", (0.01, 0.05))
    settings = Settings(postgres=postgres, kafka=kafka.bootstrap, topic_prefix=kafka.prefix, data=tmp_path)
    migrate_events(postgres, [DOMAIN])
    make_topics(kafka.bootstrap, [settings.topic(DOMAIN)])
    relay, dice = Forgetful(settings, seed), random.Random(seed)
    ids = [uuid4() for _ in range(20)]
    versions = dict.fromkeys(ids, 0)
    with relaying(settings, relay), psycopg.connect(postgres, autocommit=True) as connection:
        commits = 0
        while commits < 60 or relay.lost < 3:
            commits += 1
            assert commits < 1_000, f"seed {seed} loses nothing"
            chosen = dice.sample(ids, dice.randrange(1, 10))
            for id in chosen:
                versions[id] += 1
            store_rows(postgres, DOMAIN, [_row(id, versions[id]) for id in chosen])
        wait_for(lambda: relayed(settings, DOMAIN), f"seed {seed}: all is published")
        rows = stored(connection, DOMAIN)
    partitions = published(kafka.bootstrap, settings.topic(DOMAIN))
    assert list(judge_topic(rows, partitions)) == [], f"seed {seed}"
    assert sum(map(len, partitions)) > len(rows), f"seed {seed} repeats nothing"


def _row(id: UUID, version: int) -> Row:
    return Row(0, id, version, "letter.Returned", b"x", uuid4(), clock.now(), "test", None, "user:test")


LATE_LOCK = 4964
LATE = """
CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.actor = 'late' THEN PERFORM pg_advisory_xact_lock({lock}); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER late BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION late()
"""


@contextmanager
def held_up(postgres: str, table: str) -> Iterator[None]:
    """Whatever `late` inserts into the table meanwhile has its id, and commits only afterwards."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(LATE.format(lock=LATE_LOCK, table=table).encode())
        connection.execute("SELECT pg_advisory_lock(%s)", [LATE_LOCK])
        yield
        connection.execute("SELECT pg_advisory_unlock(%s)", [LATE_LOCK])


def waiting(postgres: str, kind: str) -> int:
    """How many sessions of this database wait for a lock of a kind."""
    with connected(postgres) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND wait_event = ANY(%s)",
            [["advisory"] if kind == "advisory" else ["transactionid", "tuple"]],
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_late_commit_is_skipped_by_a_reader_of_a_plain_sequence(postgres: str) -> None:
    """The control: this is what would happen to a log whose ids come from a sequence."""
    with psycopg.connect(postgres, autocommit=True) as reader:
        reader.execute("CREATE TABLE plain (id bigserial PRIMARY KEY, actor text)")
        with ThreadPoolExecutor(1) as other, held_up(postgres, "plain"):
            inserting = other.submit(_insert, postgres, "late")
            wait_for(lambda: waiting(postgres, "advisory"), "the late one has its id")
            _insert(postgres, "early")
            seen = reader.execute("SELECT max(id) FROM plain").fetchone()
        inserting.result()
        assert reader.execute("SELECT count(*) FROM plain WHERE id < %s", seen).fetchone() == (
            1,
        )  # and nobody reads it


def _insert(postgres: str, actor: str) -> None:
    with psycopg.connect(postgres) as connection:
        connection.execute("INSERT INTO plain (actor) VALUES (%s)", [actor])


def test_no_reader_skips_a_row_that_commits_late(postgres: str, kafka: Kafka, tmp_path: Path) -> None:
    """Two processes: the first one's commit hangs with its ids taken, the second one's has to wait for it, and so do all readers."""
    settings = Settings(postgres=postgres, kafka=kafka.bootstrap, topic_prefix=kafka.prefix, data=tmp_path)
    migrate_events(postgres, [DOMAIN])
    make_topics(kafka.bootstrap, [settings.topic(DOMAIN)])
    tail: list[int] = []

    def read_on() -> int:
        """A reader that goes on from the last id that it saw."""
        tail.extend(row.notification_id for row in topic.stored(postgres, DOMAIN, tail[-1] if tail else 0))
        return len(tail)

    async def main() -> None:
        async with Store.open(postgres) as late, Store.open(postgres) as other:
            me = other.commands(Origin("user:test"))
            letter = await me.open(Letter, uuid4(), 1, False)
            await asyncio.to_thread(wait_for, lambda: relayed(settings, DOMAIN), "the first one is published")
            read_on()
            with held_up(postgres, "letter_events"):
                hanging = asyncio.ensure_future(late.commands(Origin("late")).open(Letter, uuid4(), 2, False))
                await asyncio.to_thread(wait_for, lambda: waiting(postgres, "advisory"), "the late one has its ids")
                behind = [asyncio.ensure_future(me.tell(letter.id, Letter.frank, n, "EUR")) for n in range(1, 4)]
                await asyncio.to_thread(wait_for, lambda: waiting(postgres, "row"), "the others wait for it")
                assert read_on() == 1 and heads(postgres)[DOMAIN] == 1
                assert relayed(settings, DOMAIN)
                assert not hanging.done() and not any(one.done() for one in behind)
            await asyncio.gather(hanging, *behind)
            await asyncio.to_thread(wait_for, lambda: relayed(settings, DOMAIN), "all is published")

    with relaying(settings):
        asyncio.run(main())
    assert read_on() == 5 and tail == [1, 2, 3, 4, 5]
    with psycopg.connect(postgres) as connection:
        rows = stored(connection, DOMAIN)
    assert [row.actor for row in rows] == ["user:test", "late", "user:test", "user:test", "user:test"]
    assert list(judge_topic(rows, published(kafka.bootstrap, settings.topic(DOMAIN)))) == []
