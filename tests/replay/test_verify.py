"""Stores, topics and read models compared while everything goes on: what is damaged by hand is found, named and mended, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis as redis_client

from aggregates.kernel import Origin, Refused, Store, wire
from aggregates.kernel.partition import partition_of
from infra.settings import Settings
from projections.kernel.clickhouse import client_of
from replay.checks import Checked, Difference, model
from replay.checks import postgres as bucketed
from replay.checks.kept import KeptCheck
from replay.checks.log import LogCheck
from replay.log import ReplayError
from replay.runs import Runs
from replay.verify import verify
from streams.kernel.timers import Timers
from tests.kernel import tally
from tests.kernel.connections import connected
from tests.kernel.eventlog import published
from tests.kernel.pipeline import relayed, relaying
from tests.kernel.platform import wait_for
from tests.kernel.servers import Stack, fresh_settings
from tests.projections.kernel.purse import DOMAIN, pockets
from tests.projections.kernel.stores import PURSES
from tests.replay.past import HOUR, NOON, TALLIES, dump, past
from tests.replay.purses import SINKS, Purses

TABLES = {"postgres": 2, "redis": 1, "clickhouse": 1}
MODULE = "tests.projections.kernel.purse"
KEPT = "keys, timers and snapshots {}"


@pytest.fixture(scope="module")
def made(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Purses]:
    """Live purses, with some of the topic's records twice."""
    with fresh_settings(stack, tmp_path_factory.mktemp("purses")) as settings:
        them = Purses(settings)
        with them.live():
            rows = them.happen(300)
            them.arrived()
            them.publish(rows[-20:])
            them.happen(100)
            them.arrived()
            yield them


@pytest.fixture
def live(made: Purses) -> Purses:
    """At rest, and whole."""
    made.arrived()
    return made


def check(of: Settings, repair: bool = False, *sinks: str) -> dict[str, Checked]:
    return {one.what: one for one in verify(of, [DOMAIN], {PURSES: MODULE}, repair, sinks=sinks or SINKS)}


def wrong(of: Settings, *sinks: str, repair: bool = False) -> list[Difference]:
    """What differs, after making sure that all was compared."""
    found = check(of, repair, *sinks)
    assert len(found) == 2 + sum(TABLES.get(sink, 0) for sink in sinks or SINKS), found
    assert all(one.rows for what, one in found.items() if what != KEPT.format(DOMAIN)), found
    return [difference for one in found.values() for difference in one.differences]


@contextmanager
def happening(purses: Purses) -> Iterator[list[int]]:
    """Commands go on in the meantime; gives their number."""
    done, times = threading.Event(), [0]

    def go_on() -> None:
        while not done.wait(0.01):
            purses.happen(5)
            times[0] += 5

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield times
    finally:
        done.set()
        thread.join()


def in_postgres(of: Settings, *statements: str) -> None:
    with psycopg.connect(of.postgres) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def one(of: Settings, query: str) -> Any:
    with connected(of.postgres) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def last_record(of: Settings, purse: UUID) -> tuple[int, int]:
    """Where the topic has the last event of a purse that is no duplicate."""
    found = [
        (row.notification_id, partition, -offset)
        for partition, rows in enumerate(published(of.kafka, of.topic(DOMAIN)))
        for offset, row in enumerate(rows)
        if row.originator_id == purse
    ]
    _, partition, offset = max(found)
    return partition, -offset


def test_all_agree_at_rest(live: Purses, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrong(live.settings) == []
    capsys.readouterr()
    assert LogCheck(live.settings, DOMAIN, as_json=True).compare().agrees
    [told] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (
        told["events"] == told["of"] == sum(told["positions"].values()) + len(live.log.rows)
    )  # of the topic, and of the store


def test_all_agree_under_load(live: Purses) -> None:
    with happening(live) as times:
        for _ in range(2):
            assert wrong(live.settings) == []
    assert times[0] > 100


POSITIONS = "SELECT array_agg(ROW(p.topic, p.partition, p.notification_id)::text ORDER BY 1) FROM projection_positions p WHERE topic = 'pouch'"
OURS = "projection NOT LIKE '%\\_\\_verify'"


def test_damaged_rows_in_postgres_are_named_and_mended(live: Purses) -> None:
    of = live.settings
    a, b, c = one(of, "SELECT array_agg(id) FROM (SELECT id FROM purses ORDER BY id LIMIT 3) AS three")
    before = one(of, f"{POSITIONS} AND {OURS}")
    in_postgres(
        of,
        f"UPDATE purses SET balance = balance + 1 WHERE id = '{a}'",
        f"UPDATE purses SET tags = '[\"gone\"]' WHERE id = '{b}'",
        f"DELETE FROM purses WHERE id = '{c}'",
    )
    found = {difference.key: difference for difference in wrong(of, "postgres")}
    assert found.keys() == {f"id={id}" for id in (a, b, c)}
    for id in (a, b, c):
        its = found[f"id={id}"]
        assert (its.what, its.domain, (its.partition, its.offset)) == ("postgres purses", DOMAIN, last_record(of, id))
    assert re.fullmatch(r"balance is \d+, but its events come to \d+", found[f"id={a}"].why)
    assert found[f"id={b}"].why.startswith("tags is ['gone'], but")
    assert found[f"id={c}"].why == "is missing"
    assert all(difference.repaired for difference in wrong(of, "postgres", repair=True))
    assert wrong(of, "postgres") == []
    assert before == one(of, f"{POSITIONS} AND {OURS}")


def test_damaged_rows_in_redis_are_named_and_mended(live: Purses) -> None:
    of = live.settings
    with redis_client.Redis.from_url(of.redis) as client:
        all_ = sorted(pockets.suffixes(client, of.namespace))
        a, b, c, d = [one for one in all_ if client.hexists(row_of(client, of, one), "counts:fills")][:4]
        client.hincrby(row_of(client, of, a), "balance", 5)
        client.hset(row_of(client, of, b), "nonsense", "x")
        client.hdel(row_of(client, of, c), "counts:fills")
        client.delete(row_of(client, of, d))
    found = {difference.key: difference for difference in wrong(of, "redis")}
    assert found.keys() == {f"id={suffix}" for suffix in (a, b, c, d)}
    for suffix in (a, b, c, d):
        its = found[f"id={suffix}"]
        where = last_record(of, UUID(suffix))
        assert (its.what, its.domain, (its.partition, its.offset)) == ("redis pockets", DOMAIN, where)
    assert re.fullmatch(r"balance is \d+, but its events come to \d+", found[f"id={a}"].why)
    assert found[f"id={b}"].why == "nonsense is x, but its events come to None"
    assert re.fullmatch(r"counts:fills is None, but its events come to \d+", found[f"id={c}"].why)
    assert found[f"id={d}"].why == "is missing"
    assert all(difference.repaired for difference in wrong(of, "redis", repair=True))
    assert wrong(of, "redis") == []


def row_of(client: Any, of: Settings, suffix: str) -> str:
    build = client.hget(pockets.positions_key(of.namespace), "build")
    return f"{build.decode() if build else pockets.tag(of.namespace)}:{suffix}"


def test_rows_in_redis_are_mended_under_load(live: Purses) -> None:
    of, stray = live.settings, uuid4()
    with happening(live), redis_client.Redis.from_url(of.redis) as client:
        suffixes = sorted(pockets.suffixes(client, of.namespace))[:5]
        client.hset(row_of(client, of, str(stray)), "balance", 1)
        for suffix in suffixes:
            client.hincrby(row_of(client, of, suffix), "balance", 1)
        found = wrong(of, "redis", repair=True)
        gone = {
            str(live.log.purse(number)) for number in live.closed
        }  # a purse that was closed meanwhile has no row to differ
        keys = {one.key for one in found}
        assert keys <= {f"id={suffix}" for suffix in (str(stray), *suffixes)}
        assert keys >= {f"id={suffix}" for suffix in {str(stray), *suffixes} - gone}
        assert all(one.repaired for one in found)
        assert wrong(of, "redis") == []
    live.arrived()
    live.judge()


def test_damaged_rows_in_clickhouse_are_named_and_mended_under_load(live: Purses) -> None:
    of = live.settings
    with closing(client_of(of.clickhouse)) as client:
        places = client.query(
            "SELECT log_id, log_partition, log_offset FROM fills FINAL ORDER BY log_id LIMIT 3 OFFSET 40"
        ).result_rows
        a, b, c = (id for id, _, _ in places)
        client.command(f"ALTER TABLE fills UPDATE amount = amount + 1 WHERE log_id = {a} SETTINGS mutations_sync = 2")
        client.command(f"DELETE FROM fills WHERE log_id = {b}")
        client.command(
            f"INSERT INTO fills SELECT * REPLACE (log_row + 1 AS log_row) FROM fills FINAL WHERE log_id = {c}"
        )
    with happening(live):
        found = wrong(of, "clickhouse")
        assert [(its.notification_id, its.partition, its.offset) for its in found] == [tuple(place) for place in places]
        assert re.fullmatch(r"amount is \d+, but its event says \d+", found[0].why)
        assert [its.why for its in found[1:]] == ["is missing", "should not be there"]
        assert all(its.repaired for its in wrong(of, "clickhouse", repair=True))
        assert wrong(of, "clickhouse") == []
    live.arrived()
    live.judge()


def test_a_row_that_is_nobodys_and_a_total_of_all_are_mended_under_load(live: Purses) -> None:
    of, stray = live.settings, uuid4()
    with happening(live):
        in_postgres(of, f"INSERT INTO purses (id) VALUES ('{stray}')", "UPDATE totals SET filled = filled - 7")
        found = {found.key: found for found in wrong(of, "postgres", repair=True)}
        assert found.keys() == {f"id={stray}", "currency=EUR"}
        assert found[f"id={stray}"].why == "should not be there"
        assert all(one.repaired for one in found.values())
        assert wrong(of, "postgres") == []
    live.arrived()
    live.judge()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            "UPDATE pouch_events SET actor = 'user:mallory' WHERE notification_id = 77",
            "actor is user:mallory in the store and user:",
        ),
        (
            "UPDATE pouch_events SET state = state || '\\x00' WHERE notification_id = 77",
            "state is .* bytes .* in the store and",
        ),
        ("DELETE FROM pouch_events WHERE notification_id = 77", "is in the topic and not in the store"),
    ],
)
def test_a_damaged_event_in_the_store_is_named_and_taken_from_the_topic(live: Purses, damage: str, why: str) -> None:
    of = live.settings
    before = one(of, "SELECT e::text FROM pouch_events e WHERE notification_id = 77")
    in_postgres(of, damage)
    [found] = wrong(of, "nowhere")
    assert (found.what, found.notification_id, found.domain) == (f"event store and topic {DOMAIN}", 77, DOMAIN)
    assert found.partition is not None and found.offset is not None
    record = published(of.kafka, of.topic(DOMAIN))[found.partition][found.offset]
    assert record.notification_id == 77
    assert f"pouch.{record.event_type.partition('.')[2]} 77 of {record.originator_id}" in found.key
    assert re.search(why, found.why), found.why
    [found] = wrong(of, "nowhere", repair=True)
    assert found.repaired
    assert before == one(of, "SELECT e::text FROM pouch_events e WHERE notification_id = 77")
    assert wrong(of, "nowhere") == []


def test_what_would_be_a_guess_is_refused(live: Purses) -> None:
    of = live.settings
    stranger = uuid4()
    id = one(of, "SELECT originator_id FROM pouch_events WHERE notification_id = 90")
    in_postgres(of, f"UPDATE pouch_events SET originator_id = '{stranger}' WHERE notification_id = 90")
    [found] = wrong(of, "nowhere", repair=True)
    assert (found.repaired, found.refused) == (False, "store and topic tell of different aggregates under this id")
    in_postgres(of, f"UPDATE pouch_events SET originator_id = '{id}' WHERE notification_id = 90")
    assert wrong(of, "nowhere") == []


def test_a_topic_that_goes_on_where_its_store_ends_is_told(settings: Settings) -> None:
    purses = Purses(settings)
    rows = purses.happen(20)
    with relaying(settings):
        wait_for(lambda: relayed(settings, DOMAIN), "the log is in the topic")
    purses.publish([rows[-1]._replace(notification_id=21, originator_version=99)])
    [found] = check(settings, True, "nowhere")[f"event store and topic {DOMAIN}"].differences
    assert (found.notification_id, found.repaired) == (21, False)
    assert "titan replay store" in found.refused


def test_events_that_the_topic_lacks_are_named_and_it_is_written_anew(
    stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with fresh_settings(stack, tmp_path_factory.mktemp("lacking")) as of:
        purses = Purses(of)
        with purses.live():
            purses.happen(60)
            purses.arrived()
        lost = purses.happen(3)
        purses.publish(purses.happen(60))
        in_postgres(
            of, "UPDATE relay_positions SET position = position + 63"
        )  # as if Kafka had acknowledged all and lost three
        with purses.live():
            wait_for(lambda: relayed(of, DOMAIN), "the rest is in the topic")
            wait_for(
                lambda: (
                    one(of, f"SELECT max(notification_id) FROM projection_positions WHERE topic = '{DOMAIN}'") == 123
                ),
                "seen",
            )
            found = check(of, False, "clickhouse")[f"event store and topic {DOMAIN}"].differences
            assert [one.notification_id for one in found] == [row.notification_id for row in lost]
            for difference, row in zip(found, lost, strict=True):
                partition = partition_of(str(row.originator_id).encode(), of.partitions)
                assert difference.partition == partition
                records = published(of.kafka, of.topic(DOMAIN))[partition]
                assert difference.offset is not None
                assert all(r.notification_id < row.notification_id for r in records[: difference.offset])
                assert all(r.notification_id > row.notification_id for r in records[difference.offset :])
            # Read models had passed the events: what they lack is found once the topic has them, and mended in the same run.
            repaired = check(of, repair=True)
            assert all(one.agrees for one in repaired.values()), repaired
            assert repaired[f"event store and topic {DOMAIN}"].count == 3
            assert not [one for checked in check(of).values() for one in checked.differences]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE purses SET balance = balance + 1",
        "DELETE FROM purses WHERE id IN (SELECT id FROM purses ORDER BY id LIMIT (SELECT count(*) / 2 FROM purses))",
    ],
)
def test_a_table_that_differs_all_over_is_repaired_part_by_part(
    live: Purses, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """How many rows a part has is chance, and a table that gets its rows back grows: neither is a reason to stop."""
    of = live.settings
    monkeypatch.setattr(bucketed, "BUCKETS_MAX", 1)
    monkeypatch.setattr(bucketed, "BUCKET_ROWS", 3)
    in_postgres(of, damage)
    found = wrong(of, "postgres", repair=True)
    assert found and all(one.repaired for one in found)
    assert wrong(of, "postgres") == []


def test_what_waits_in_the_dead_letter_queue_is_left_out_and_the_rest_compared(live: Purses) -> None:
    of = live.settings
    last = {row.originator_id: row for row in live.log.rows}
    poison = next(row for row in last.values() if row.event_type == f"{DOMAIN}.Filled")
    amount = wire.recorded(DOMAIN, poison).event.amount  # type: ignore[attr-defined]
    key, partition = str(poison.originator_id), partition_of(str(poison.originator_id).encode(), of.partitions)
    parked = f"VALUES ('postgres.purse', '{DOMAIN}', {partition}, {poison.notification_id}, 0, '{key}', '', 'poison', '', '[]')"
    mine = f"UPDATE purses SET balance = balance %s {amount}, fills = fills %s 1 WHERE id = '{key}'"
    all_of_them = f"UPDATE totals SET filled = filled %s {amount % 1000}, fills = fills %s 1"
    in_postgres(of, f"INSERT INTO parked {parked}", mine.replace("%s", "-"), all_of_them.replace("%s", "-"))
    found = check(of, False, "postgres")
    assert all(one.agrees for one in found.values()), found
    assert f"without 1 events that wait in the dead-letter queue, of {DOMAIN} {key}" in found["postgres purses"].note
    in_postgres(of, "UPDATE purses SET balance = balance + 1")  # also of who has parked events
    mended = check(of, True, "postgres")["postgres purses"]
    assert mended.agrees and f"id={key}" in {one.key for one in mended.differences}
    in_postgres(of, "DELETE FROM parked")
    assert {one.key for one in wrong(of, "postgres")} == {f"id={key}", "currency=EUR"}
    in_postgres(of, mine.replace("%s", "+"), all_of_them.replace("%s", "+"))
    assert wrong(of, "postgres") == []


def test_a_read_model_that_does_not_come_on_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "STILL_S", 0.5)
    purses = Purses(settings)
    purses.happen(30)
    with relaying(settings):
        wait_for(lambda: relayed(settings, DOMAIN), "the log is in the topic")
    found = [one for checked in check(settings, False, "postgres").values() for one in checked.differences]
    assert [(one.what, one.key, one.why) for one in found] == [
        (f"postgres {name}", "position", "is 30 events behind and does not come on: is its worker running?")
        for name in ("purses", "totals")
    ]


def test_one_at_a_time(live: Purses) -> None:
    of = live.settings
    with Runs(of.postgres) as runs, runs.locked(["postgres.purses__verify"]):
        with pytest.raises(ReplayError, match="another replay is at work on postgres.purses__verify"):
            check(of, False, "postgres")


@pytest.fixture(scope="module")
def tallies(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Names were taken and freed, timers set, replaced and fired, and there is a snapshot."""
    with past(stack, tmp_path_factory.mktemp("past")) as made:
        yield made.settings


def kept(of: Settings, repair: bool = False) -> Checked:
    """The store of tallies."""
    log, found = verify(of, [tally.DOMAIN], {}, repair, sinks=())
    assert (log.what, found.what) == (f"event store and topic {tally.DOMAIN}", KEPT.format(tally.DOMAIN))
    assert found.compared
    return found


CLAIMS, TIMERS = "SELECT c::text FROM tally_claims c ORDER BY 1", "SELECT t::text FROM tally_timers t ORDER BY 1"
NEVER = "'2030-01-01 12:00:00+00'"


def test_damaged_keys_timers_and_snapshots_are_named_and_mended(tallies: Settings) -> None:
    of, stray = tallies, uuid4()
    a, b, c, *_, d, e, f = TALLIES
    before = dump(of.postgres, CLAIMS), dump(of.postgres, TIMERS)
    assert kept(of).agrees and kept(of).rows == len(before[0]) + len(before[1]) + 1
    in_postgres(
        of,
        "DELETE FROM tally_claims WHERE key = 'mine'",
        f"UPDATE tally_claims SET owner = '{stray}' WHERE key = 'free'",
        f"INSERT INTO tally_claims VALUES ('name', 'a:b', '{c}')",
        f"DELETE FROM tally_timers WHERE originator_id = '{d}'",
        f"UPDATE tally_timers SET due = {NEVER} WHERE originator_id = '{e}'",
        f"UPDATE tally_timers SET call = 'Tally.add', args = '[1]', attempts = 1 WHERE originator_id = '{f}'",
        f"INSERT INTO tally_timers VALUES ('{a}', 'end', {NEVER}, 'Tally.end', '[]')",  # it was fired
        f"UPDATE tally_snapshots SET state = replace(encode(state, 'escape'), '[\"count\",', '[\"count\",1')::bytea WHERE originator_id = '{b}'",
        f"INSERT INTO tally_snapshots SELECT '{c}', 7, fingerprint, state FROM tally_snapshots",
        f"INSERT INTO tally_snapshots SELECT '{stray}', 1, fingerprint, state FROM tally_snapshots WHERE originator_id = '{b}'",
        f"INSERT INTO tally_snapshots SELECT '{a}', 1, fingerprint, 'broken' FROM tally_snapshots WHERE originator_id = '{b}'",
        f"INSERT INTO tally_snapshots VALUES ('{d}', 1, 'of other code', '')",
    )
    wrong = {one.key: one for one in kept(of).differences}
    last = r" \(notification \d+\)"
    expected = {
        "unique key name mine": rf"is free, but events give it to {a}{last}",
        "unique key name free": rf"is held by {stray}, but events give it to {c}{last}",
        "unique key name a:b": rf"is held by {c}, but no event gives it to anybody",
        f"timer end of {d}": rf"is missing, but events set it to Tally.end\(\) at 2030-01-01 14:00:00\+00{last}",
        f"timer end of {e}": rf"is Tally.end\(\) at 2030-01-01 12:.*, but events set it to Tally.end\(\) at 2030-01-01 15:.*{last}",
        f"timer end of {f}": rf"is Tally.add\(1\) at .*, but events set it to Tally.end\(\) at 2030-01-01 16:.*{last}",
        f"timer end of {a}": rf"is Tally.end\(\) at .*, but events have ended it{last}",
        f"snapshot of {b} at version 50": r"count is 1(\d\d), but its events come to \1",
        f"snapshot of {c} at version 7": r"its aggregate has only \d events",
        f"snapshot of {stray} at version 1": r"its aggregate has no event",
        f"snapshot of {a} at version 1": r"can't be read",
    }
    assert wrong.keys() == expected.keys()
    for key, why in expected.items():
        assert re.fullmatch(why, wrong[key].why), (key, wrong[key].why)
    mended = kept(of, repair=True)
    assert mended.agrees and {one.key for one in mended.differences} == wrong.keys()
    assert (dump(of.postgres, CLAIMS), dump(of.postgres, TIMERS)) == before
    assert dump(of.postgres, "SELECT fingerprint FROM tally_snapshots") == [("of other code",)]
    assert kept(of).agrees


def test_what_events_do_not_tell_of_timers_is_no_difference(tallies: Settings) -> None:
    of, late, past_due = tallies, TALLIES[-2], TALLIES[1]
    due = one(of, f"SELECT due::text FROM tally_timers WHERE originator_id = '{late}'")
    put_off = f"UPDATE tally_timers SET due = '{{}}', attempts = {{}} WHERE originator_id = '{late}'"
    in_postgres(of, put_off.format("infinity", 16))  # its command has failed too often
    assert kept(of).agrees
    in_postgres(of, put_off.format(due, 0))
    asyncio.run(tell(of, past_due, tally.Tally.schedule, datetime.now(UTC) - HOUR))
    assert kept(of).agrees and not kept(of).note
    in_postgres(of, f"DELETE FROM tally_timers WHERE originator_id = '{past_due}'")  # as when its command is refused
    found = kept(of, repair=True)
    assert (
        found.agrees
        and found.note == "1 timers that were due are gone, and no command of theirs is known: refused, put off or lost"
    )
    asyncio.run(tell(of, past_due, tally.Tally.schedule, NOON))
    assert not kept(of).note


def test_a_key_that_two_have_taken_is_for_people(tallies: Settings) -> None:
    of, (one, _, three, *_) = tallies, TALLIES
    in_postgres(of, "DELETE FROM tally_claims WHERE key = 'free'")
    asyncio.run(tell(of, one, tally.Tally.rename, "free"))  # which is the other's
    [found] = kept(of, repair=True).differences
    assert (found.key, found.repaired) == ("unique key name free of several", False)
    assert found.why.startswith(f"is taken by the events of {three}, {one}, and freed by none of them")
    assert found.refused == "only a command can say who gives it back"
    asyncio.run(tell(of, three, tally.Tally.rename, "its own"))
    assert kept(of).agrees


def test_nothing_is_mended_by_events_that_differ_from_the_topics(tallies: Settings) -> None:
    of, stray = tallies, uuid4()
    with relaying(of):
        wait_for(lambda: relayed(of, tally.DOMAIN), "the log is in the topic")
    held = dump(of.postgres, CLAIMS)
    last = one(of, "SELECT max(notification_id) FROM tally_events WHERE event_type = 'tally.Named'")
    owner = one(of, f"SELECT originator_id FROM tally_events WHERE notification_id = {last}")
    other = "UPDATE tally_events SET originator_id = '{}' WHERE notification_id = {}"
    in_postgres(of, other.format(stray, last))
    found = kept(of, repair=True)
    assert found.note == "by the store's own events, which differ from the topic's"
    assert found.differences and {its.refused for its in found.differences} == {"its events are mended first"}
    assert dump(of.postgres, CLAIMS) == held
    in_postgres(of, other.format(owner, last))
    assert kept(of).agrees and not kept(of).note


async def tell(of: Settings, id: UUID, method: Callable[..., None], *args: object) -> None:
    async with Store.open(of.postgres) as store:
        await store.commands(Origin("user:test")).tell(id, method, *args)


@contextmanager
def counting(of: Settings) -> Iterator[list[int]]:
    """Names change hands, timers are set, replaced and fired, snapshots are made; gives the number of rounds."""
    done, rounds, dice = threading.Event(), [0], Random(1)

    async def go_on() -> None:
        async with Store.open(of.postgres) as store:
            timers, commands = Timers(store, [tally.DOMAIN]), store.commands(Origin("user:test"))
            for id in TALLIES[:2]:
                await commands.open_as(UUID(int=id.int + 100), tally.Tally, 10**9)

            async def live(id: UUID) -> None:
                await commands.tell(id, tally.Tally.add, 1)
                await commands.tell(id, tally.Tally.schedule, datetime.now(UTC) + dice.choice((HOUR, -HOUR)))
                with suppress(Refused):
                    await commands.tell(id, tally.Tally.rename, f"n{dice.randrange(3)}")

            while not done.is_set():
                await asyncio.gather(*(live(UUID(int=id.int + 100)) for id in TALLIES[:2]), timers.fire_due())
                rounds[0] += 1

    thread = threading.Thread(target=asyncio.run, args=(go_on(),))
    thread.start()
    try:
        yield rounds
    finally:
        done.set()
        thread.join()


def test_keys_timers_and_snapshots_agree_under_load_and_only_what_is_wrong_is_mended(tallies: Settings) -> None:
    of = tallies
    with counting(of) as rounds, closing(KeptCheck(of, tally.DOMAIN, as_json=True)) as again:
        while rounds[0] < 40:
            with closing(KeptCheck(of, tally.DOMAIN, as_json=True)) as check:
                for found in (check.compare(), again.compare()):
                    assert found.agrees, found.differences
        quiet, late = TALLIES[2], TALLIES[-1]
        in_postgres(
            of,
            f"DELETE FROM tally_claims WHERE owner = '{quiet}'",
            f"DELETE FROM tally_timers WHERE originator_id = '{late}'",
        )
        found, since = again.compare(), rounds[0]
        assert [its.key.partition(" name")[0] for its in found.differences] == ["unique key", f"timer end of {late}"]
        wait_for(lambda: rounds[0] > since, "it goes on")
        again.repair()
        assert again.compare().agrees
    assert one(of, "SELECT count(*) FROM tally_snapshots WHERE originator_version > 50") > 0
    assert kept(of).agrees
