"""An event store rebuilt from its topic alone: the same to the byte, and it goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import UUID, uuid4

import psycopg
import pytest

from aggregates.kernel import Origin, Refused, Store
from aggregates.kernel.migrate import migrate
from aggregates.kernel.wire import COLUMNS
from infra.settings import Settings
from replay.log import ReplayError
from replay.store import main, restore
from streams.kernel.timers import Timers
from tests.kernel.eventlog import append, published, stored
from tests.kernel.pipeline import relayed, relaying
from tests.kernel.platform import wait_for
from tests.kernel.servers import Stack, database
from tests.kernel.tally import DOMAIN, Tally
from tests.replay.past import HOUR, NOON, TALLIES, Past, command, dump, past, platform_of, publish

EVENTS = f"SELECT {COLUMNS} FROM tally_events ORDER BY notification_id"
INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'tally_%' ORDER BY 1"
CLAIMS = "SELECT scope, key, owner FROM tally_claims ORDER BY 1, 2"
TIMERS = "SELECT originator_id, key, due, call, args FROM tally_timers ORDER BY 1, 2"
COMMANDS = """
SELECT command_id, originator_id, originator_version, notification_id FROM tally_commands c
WHERE EXISTS (SELECT FROM tally_events e WHERE e.causation_id = c.command_id) ORDER BY 1
"""


@pytest.fixture(scope="module")
def gone(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """What is lost but for its topic, and to compare with."""
    with past(stack, tmp_path_factory.mktemp("past")) as made:
        yield made


@pytest.fixture
def elsewhere(stack: Stack) -> Iterator[str]:
    """A database of its own."""
    with database(stack) as dsn:
        yield dsn


def test_the_store_is_the_same_to_the_byte(gone: Past, postgres: str) -> None:
    [done] = restore(gone.settings, [DOMAIN], postgres)
    assert (done.events, done.head, done.gaps, done.duplicates) == (len(gone.rows), len(gone.rows), [], 0)
    for query in (EVENTS, CLAIMS, TIMERS, COMMANDS, INDEXES, "SELECT domain, last FROM log_heads"):
        assert dump(postgres, query) == dump(gone.settings.postgres, query), query
    assert dump(postgres, "SELECT domain, position FROM relay_positions") == [(DOMAIN, len(gone.rows))]


def test_it_goes_on_as_if_nothing_had_happened(gone: Past, postgres: str) -> None:
    restore(gone.settings, [DOMAIN], postgres)

    async def work() -> None:
        async with Store.open(postgres) as store:
            plain = store.commands(Origin("user:test"))
            assert (await store.load(Tally, TALLIES[1])).count == 60
            with pytest.raises(Refused, match="taken"):
                await plain.tell(TALLIES[1], Tally.rename, "free")
            again = store.commands(Origin("user:test", command=command(0), fingerprint=b"asked"))
            receipt = await again.open_as(uuid4(), Tally, 5)
            assert (receipt.id, receipt.version, receipt.replayed) == (TALLIES[0], 1, True)
            assert await Timers(store, [DOMAIN], lambda: NOON + HOUR).fire_due() == 0
            assert await Timers(store, [DOMAIN], lambda: NOON + 2 * HOUR).fire_due() == 1
            told = await plain.tell(TALLIES[1], Tally.add, 1)
            assert told.position == f"{DOMAIN}:{len(gone.rows) + 2}"

    asyncio.run(work())
    with psycopg.connect(postgres) as connection:
        assert stored(connection, DOMAIN)[: len(gone.rows)] == gone.rows


def test_the_relay_goes_on_and_repeats_nothing(
    stack: Stack, elsewhere: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with past(stack, tmp_path_factory.mktemp("past")) as before:
        restore(before.settings, [DOMAIN], elsewhere)
        moved = before.settings.model_copy(update={"postgres": elsewhere})
        with psycopg.connect(elsewhere, autocommit=True) as connection:
            append(connection, DOMAIN, [uuid4()])
        with relaying(moved):
            wait_for(lambda: relayed(moved, DOMAIN), "the new event is in the topic")
        records = [row for one in published(moved.kafka, moved.topic(DOMAIN)) for row in one]
        assert sorted(row.notification_id for row in records) == list(range(1, len(before.rows) + 2))


@pytest.fixture
def damaged(stack: Stack, gone: Past, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An empty topic, to be filled with what is left of the past."""
    with platform_of(stack, tmp_path_factory.mktemp("damaged")) as settings:
        yield settings


def test_duplicates_and_what_came_out_of_order_are_put_right(damaged: Settings, gone: Past, elsewhere: str) -> None:
    publish(damaged, gone.rows[:40])
    publish(damaged, gone.rows[30:60])
    publish(damaged, reversed(gone.rows[60:]))
    publish(damaged, gone.rows[:10])
    [done] = restore(damaged, [DOMAIN], elsewhere)
    assert done.duplicates == 20
    for query in (EVENTS, CLAIMS, TIMERS, COMMANDS):
        assert dump(elsewhere, query) == dump(gone.settings.postgres, query), query


def test_a_gap_is_named_and_refused_unless_it_is_accepted(damaged: Settings, gone: Past, elsewhere: str) -> None:
    lost = {3, 12, 13, 14}
    publish(damaged, [row for row in gone.rows if row.notification_id not in lost])
    with pytest.raises(
        ReplayError, match=rf"lacks 4 of {len(gone.rows)} events, notification ids 3, 12–14: --accept-gaps"
    ):
        restore(damaged, [DOMAIN], elsewhere)
    assert dump(elsewhere, EVENTS) == []
    assert dump(elsewhere, INDEXES) == dump(gone.settings.postgres, INDEXES)
    [done] = restore(damaged, [DOMAIN], elsewhere, accept_gaps=True)
    assert (done.gaps, done.events, done.head) == ([(3, 3), (12, 14)], len(gone.rows) - 4, len(gone.rows))
    assert done.broken > 0


def test_a_topic_that_contradicts_itself_is_refused(damaged: Settings, gone: Past, elsewhere: str) -> None:
    publish(damaged, gone.rows)
    publish(damaged, [gone.rows[7]._replace(actor="user:mallory")])
    with pytest.raises(ReplayError, match="two different events under the notification id 8"):
        restore(damaged, [DOMAIN], elsewhere)
    assert dump(elsewhere, EVENTS) == []


def test_one_event_under_two_ids_is_refused(damaged: Settings, gone: Past, elsewhere: str) -> None:
    publish(damaged, gone.rows)
    publish(damaged, [gone.rows[7]._replace(notification_id=len(gone.rows) + 1)])
    with pytest.raises(ReplayError, match="contradicts itself"):
        restore(damaged, [DOMAIN], elsewhere)


def test_what_is_not_ours_and_what_cannot_be_read_is_counted(damaged: Settings, gone: Past, elsewhere: str) -> None:
    publish(damaged, gone.rows)
    publish(damaged, [gone.rows[0]._replace(notification_id=0)])
    strange = gone.rows[-1]._replace(
        notification_id=len(gone.rows) + 1,
        originator_id=uuid4(),
        originator_version=1,
        event_type="tally.Sung",
        state=b"\0la",
    )
    publish(damaged, [strange])
    [done] = restore(damaged, [DOMAIN], elsewhere)
    assert (done.foreign, done.unreadable, done.events) == (1, 1, len(gone.rows) + 1)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["nonsense", "--into", "x"], "there is no domain nonsense; one of: .*order"),
        (["--into", "x"], "name domains, or give --all"),
        (["order", "--all", "--into", "x"], "name domains, or give --all"),
    ],
)
def test_domains_that_can_not_be_meant_are_one_line(argv: list[str], why: str) -> None:
    with pytest.raises(ReplayError, match=why) as error:
        main(argv)
    assert "\n" not in str(error.value)


def test_a_target_with_anything_in_it_is_refused(gone: Past, postgres: str) -> None:
    migrate(postgres, [DOMAIN])
    with psycopg.connect(postgres) as connection:
        connection.execute("INSERT INTO tally_claims VALUES ('name', 'x', %s)", [UUID(int=1)])
    with pytest.raises(ReplayError, match="has a store of tally already"):
        restore(gone.settings, [DOMAIN], postgres)
    assert len(dump(postgres, CLAIMS)) == 1


@pytest.mark.parametrize(
    ("into", "kafka", "why"),
    [
        ("postgresql://titan@127.0.0.1:9/titan", None, "the target database: .*refused"),
        ("nonsense", None, "the target database"),
        (None, "127.0.0.1:9", "Kafka at 127.0.0.1:9 does not answer"),
    ],
)
def test_a_server_that_is_not_there_is_one_line(
    gone: Past, postgres: str, into: str | None, kafka: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replay.log.ANSWER_S", 1.0)
    settings = gone.settings.model_copy(update={"kafka": kafka or gone.settings.kafka})
    with pytest.raises(ReplayError, match=why) as error:
        restore(settings, [DOMAIN], into or postgres)
    assert "\n" not in str(error.value)
