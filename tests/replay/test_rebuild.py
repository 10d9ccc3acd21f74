"""Read models in Postgres are rebuilt while the live worker writes and others read: nothing lost, doubled, or seen half-built."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as count_up
from typing import Any
from uuid import uuid4

import psutil
import psycopg
import pytest

from infra.settings import ROOT, Settings
from projections.kernel.runner import Fenced, Runner
from projections.kernel.tables import AnyTable
from replay import projection
from replay.build import build
from replay.loading import Job, load
from replay.log import ReplayError, read, spans
from replay.postgres import PostgresLoader, PostgresShadows
from replay.runs import Runs, full
from replay.shadow import shadow_of
from streams.kernel import dlq
from tests.kernel.connections import connected
from tests.kernel.platform import variables
from tests.projections.kernel.live import count, make_topic, publish, until, workers
from tests.projections.kernel.purse import DOMAIN, POISON, Filled, Log, Noted, Opened, mended, purses, totals
from tests.projections.kernel.stores import PURSES, Store, store

LIVE = """SELECT projection, topic, partition, notification_id FROM projection_positions
WHERE strpos(topic, '!') = 0 AND projection IN ('purses', 'totals') ORDER BY 1, 2, 3"""
SHADOWS: dict[AnyTable, AnyTable] = {purses: shadow_of(purses), totals: shadow_of(totals)}


def traffic(log: Log, events: int, kinds: int = 50) -> None:
    dice = random.Random(len(log.rows))
    known = {row.originator_id for row in log.rows}
    for _ in range(events):
        number = dice.randrange(kinds)
        if log.purse(number) not in known:
            known.add(log.purse(number))
            log.add(number, Opened, owner=uuid4(), currency="EUR")
        elif dice.random() < 0.1:
            log.add(number, Noted, note="n", text=f"Größe {dice.randrange(9)}")
        else:
            log.add(number, Filled, amount=dice.randrange(1, 400))


def filled(log: Log) -> int:
    return sum(isinstance(one.event, Filled) for one in log.events())


def rebuild(settings: Settings, *argv: str) -> int:
    return projection.main([*argv, "--sink", "postgres"], [PURSES], settings)


def ask(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    with connected(settings.postgres) as connection:
        return connection.execute(query.encode()).fetchall()


def contents(settings: Settings) -> list[list[tuple[Any, ...]]]:
    """Everything in both tables, and their positions in live lanes."""
    return [
        ask(settings, query)
        for query in (
            "SELECT id, owner, currency, balance, fills, opened_at, tags, note FROM purses ORDER BY id",
            "SELECT currency, filled, fills FROM totals",
            LIVE,
        )
    ]


def leftovers(settings: Settings) -> list[tuple[Any, ...]]:
    return ask(
        settings,
        "SELECT relname::text FROM pg_class WHERE relname LIKE '%\\_\\_%' AND relkind = 'r' UNION ALL SELECT shadow FROM replay_runs",
    )


def spoil(settings: Settings) -> None:
    """Damage the live tables, so that it is seen when they are made anew."""
    with psycopg.connect(settings.postgres) as connection:
        connection.execute("DELETE FROM purses WHERE balance > 1000")
        connection.execute("UPDATE totals SET fills = 0")


def live(to: Store, settings: Settings) -> Runner:
    """A worker's runner that has taken all that the topic holds."""
    runner = to.runner(Log(partitions=4))
    for batch in read(settings, spans(settings, [DOMAIN])):
        runner.handle(batch)
    return runner


@contextmanager
def seen(settings: Settings) -> Iterator[list[str]]:
    """Queries all the time; what was wrong with an answer: an error, or sums that went backwards."""
    wrong: list[str] = []
    over = threading.Event()

    def look() -> None:
        before = (0, 0, 0)
        with psycopg.connect(settings.postgres, autocommit=True) as connection:
            while not over.is_set():
                try:
                    row = connection.execute(
                        "SELECT (SELECT sum(fills) FROM purses), (SELECT fills FROM totals), (SELECT count(*) FROM purses)"
                    ).fetchone()
                except psycopg.Error as error:
                    wrong.append(str(error))
                    return
                assert row is not None
                now = (int(row[0] or 0), int(row[1] or 0), int(row[2]))
                if any(b < a for a, b in zip(before, now, strict=True)):
                    wrong.append(f"{before} → {now}")
                before = now

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_under_load_and_while_others_read(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 1_000)
    publish(settings, log.rows)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            start = len(log.rows)
            traffic(log, 40)
            publish(settings, log.rows[max(0, start - 5) :])  # the relay repeats itself

    with store("postgres", settings) as to, workers(settings, 1, "postgres") as (worker,):
        until(lambda: count(settings, "SELECT count(*) FROM purses") == 50, [worker])
        writing = threading.Thread(target=write)
        writing.start()
        try:
            with seen(settings) as wrong:
                for _ in range(2):
                    assert rebuild(settings, "purse") == 0
        finally:
            stop.set()
            writing.join()
        assert wrong == []
        until(lambda: to.holds() == to.should_hold(log), [worker])
        assert count(settings, "SELECT fills FROM totals") == filled(log)
        assert "projected again" not in worker.log
        assert worker.log.count("another runner moved the positions") <= 4  # once a table and switch
        assert worker.stop() == 0
    assert leftovers(settings) == []


def test_what_is_rebuilt_is_what_was_and_damage_is_gone(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 600)
    publish(settings, log.rows)
    with store("postgres", settings) as to:
        live(to, settings)
        indexes = "SELECT obj_description(indexrelid) FROM pg_index WHERE indrelid = 'purses'::regclass ORDER BY 1"
        before, indexed = contents(settings), ask(settings, indexes)
        spoil(settings)
        assert contents(settings)[:2] != before[:2]
        assert rebuild(settings, "purses", "totals", "--workers", "2") == 0
        assert contents(settings) == before
        assert ask(settings, indexes) == indexed


def crashing(monkeypatch: pytest.MonkeyPatch, dice: random.Random) -> None:
    """Make a loader's checkpoints fail at random, before the transaction or after it."""
    whole, turns = PostgresLoader._write, count_up()

    def write(self: PostgresLoader) -> None:
        before, after = dice.random() < 0.3, dice.random() < 0.3 or next(turns) == 0
        if before:
            raise KeyboardInterrupt
        whole(self)
        if after:
            raise KeyboardInterrupt

    monkeypatch.setattr(PostgresLoader, "_write", write)


@pytest.mark.parametrize("seed", range(3))
def test_a_load_that_dies_at_any_checkpoint_goes_on_from_its_last(
    settings: Settings, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_topic(settings)
    log, dice = Log(), random.Random(seed)
    traffic(log, 5_000, 300)
    publish(settings, log.rows)
    shadows = PostgresShadows(settings)
    for shadow in SHADOWS.values():
        shadows.make(shadow)
    targets = {(table.sink, table.name): shadow.name for table, shadow in SHADOWS.items()}
    job = Job(settings, (PURSES.module,), targets, spans(settings, [DOMAIN]), rows_max=dice.randrange(1, 200))
    monkeypatch.setattr("replay.loading.BATCH_MAX", dice.randrange(50, 900))
    crashing(monkeypatch, dice)
    read = [0]
    lives = 0
    while True:
        lives += 1
        try:
            load(job, lambda events, positions: read.append(events))
            break
        except KeyboardInterrupt:
            continue
    assert lives > 1
    for shadow in SHADOWS.values():
        shadows.finish(shadow)
    shadows.close()
    rows = ask(settings, "SELECT id, balance, fills, note FROM purses__rebuild")
    with store("postgres", settings) as to:
        assert {id: tuple(row) for id, *row in rows} == to.should_hold(log)
    assert count(settings, "SELECT fills FROM totals__rebuild") == filled(log)


@contextmanager
def held_behind_its_first_checkpoint(settings: Settings) -> Iterator[None]:
    """A loader that has written waits with its next checkpoint until the end of this."""
    PostgresShadows(settings).names()  # makes the table of positions
    with psycopg.connect(settings.postgres, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(511)")
        connection.execute(
            """CREATE FUNCTION wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM pg_advisory_xact_lock_shared(511); RETURN NEW; END $$;
            CREATE TRIGGER held BEFORE UPDATE ON replay_positions FOR EACH ROW WHEN (OLD."offset" > 0)
            EXECUTE FUNCTION wait_for_the_test()"""
        )
        try:
            yield
        finally:
            connection.execute("SELECT pg_advisory_unlock(511)")
            connection.execute("DROP FUNCTION wait_for_the_test CASCADE")


def test_killed_with_9_it_goes_on_and_its_workers_are_gone_too(settings: Settings) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 12_000, 2_000)
    publish(settings, log.rows)
    command = [sys.executable, "-m", "tests.replay.purse_replay", "purse", "--sink", "postgres", "--json"]
    command += ["--workers", "2", "--rows-max", "150"]
    env = {**os.environ, **variables(settings), "TITAN_DATA": str(settings.data)}
    with store("postgres", settings) as to:
        with held_behind_its_first_checkpoint(settings):
            first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE)
            until(lambda: count(settings, 'SELECT count(*) FROM replay_positions WHERE "offset" > 0') > 0)
            children = psutil.Process(first.pid).children(recursive=True)
            assert children
            first.kill()
            first.wait()
            assert first.stdout is not None
            first.stdout.close()
            psutil.wait_procs(children, timeout=60)
        assert not [child for child in children if child.is_running()]
        assert ask(settings, "SELECT count(*) FROM purses") == [(0,)]  # live, and untouched
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["events"] < len(log.rows)  # the rest had been done before
        assert to.holds() == to.should_hold(log)
        assert count(settings, "SELECT fills FROM totals") == filled(log)
    assert leftovers(settings) == []


def test_what_waited_in_the_dead_letter_queue_is_not_applied_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 300, 10)
    log.add(1, Filled, amount=POISON)
    traffic(log, 200, 10)
    publish(settings, log.rows)
    with store("postgres", settings) as to:
        live(to, settings)
        waiting = count(settings, "SELECT count(*) FROM parked")
        assert waiting > 1
        with pytest.raises(ReplayError, match=r"postgres.purse can't take pouch.Filled at pouch \[\d\] offset \d+"):
            rebuild(settings, "totals")
        assert to.holds() != to.should_hold(log)
        monkeypatch.setattr(mended, "now", True)
        assert rebuild(settings, "totals") == 0  # one table of two: the other still has to get what waits
        assert count(settings, "SELECT fills FROM totals") == filled(log)
        assert to.holds() != to.should_hold(log)
        assert count(settings, "SELECT count(*) FROM parked") == waiting
        [sequence] = {(row.processor, row.topic, row.key): row for row in dlq.parked(settings)}.values()
        assert dlq.retry(settings, sequence, [PURSES]) == (waiting, "")
        assert count(settings, "SELECT fills FROM totals") == filled(log)
        assert to.holds() == to.should_hold(log)
        assert rebuild(settings, "purse") == 0
        assert to.holds() == to.should_hold(log)


def test_only_one_at_a_time_and_what_is_abandoned_is_found(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 200)
    publish(settings, log.rows)
    with store("postgres", settings) as to, Runs(settings.postgres) as other:
        with other.locked([full(SHADOWS[purses])]):
            with pytest.raises(ReplayError, match="another replay is at work on postgres.purses__rebuild"):
                rebuild(settings, "purse")
        shadows = PostgresShadows(settings)
        shadows.make(SHADOWS[purses])
        shadows.close()
        other.begin(purses, SHADOWS[purses], "what was made by other code")
        with psycopg.connect(settings.postgres) as connection:
            connection.execute("INSERT INTO purses__rebuild (id) VALUES (%s)", [uuid4()])
        capsys.readouterr()
        assert rebuild(settings, "purses", "--dry-run", "--json") == 0
        would = json.loads(capsys.readouterr().out)
        assert would["would_build"] == {"postgres.purses": "purses__rebuild"}
        assert would["events"] == len(log.rows) and would["events_done"] == 0 and would["events_per_s"] > 0
        assert would["begun"] == []  # what is there is of no use
        assert to.holds() == {}  # it only said so
        assert ask(settings, "SELECT relname::text FROM pg_class WHERE relname LIKE '%sample'") == []
        assert rebuild(settings, "purses") == 0  # made anew, without the stray row
        assert to.holds() == to.should_hold(log)
        shadows.make(SHADOWS[totals])
        other.begin(totals, SHADOWS[totals], "nobody comes back to it")
        with other.locked([full(SHADOWS[totals])]):
            projection.main(["--clean", "--sink", "postgres"], [PURSES], settings)
            assert leftovers(settings) != []
        capsys.readouterr()
        projection.main(["--clean", "--sink", "postgres", "--dry-run"], [PURSES], settings)
        assert capsys.readouterr().out == "would remove: postgres.totals__rebuild\n"
        assert leftovers(settings) != []
        projection.main(["--clean", "--sink", "postgres"], [PURSES], settings)
    assert leftovers(settings) == []


def test_locks_that_are_lost_with_their_session_are_noticed_and_hide_nothing(settings: Settings) -> None:
    lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'titan replay' AND datname = current_database()"

    def work() -> None:
        with Runs(settings.postgres) as runs, runs.locked([full(SHADOWS[purses])]):
            assert ask(settings, lost) == [(True,)]
            with pytest.raises(
                ReplayError, match="Postgres, which has the register of rebuilds: .*terminating"
            ) as told:
                runs.hold()
            assert "\n" not in str(told.value)
            raise KeyError("what went wrong before")

    with pytest.raises(KeyError, match="what went wrong before"):
        work()


@pytest.mark.parametrize("step", ["make", "finish", "switch"])
def test_killed_right_before_or_after_a_step(settings: Settings, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 200)
    publish(settings, log.rows)
    whole = getattr(PostgresShadows, step)
    with store("postgres", settings) as to:
        live(to, settings)
        for before in (True, False):

            def killed(*arguments: Any, before: bool = before) -> None:
                if not before:
                    whole(*arguments)
                raise KeyboardInterrupt

            with monkeypatch.context() as patched:
                patched.setattr(PostgresShadows, step, killed)
                with pytest.raises(KeyboardInterrupt):
                    rebuild(settings, "purse")
            assert count(settings, "SELECT fills FROM totals") == filled(log)
            assert rebuild(settings, "purse") == 0
            assert count(settings, "SELECT fills FROM totals") == filled(log)
            assert to.holds() == to.should_hold(log)
    assert leftovers(settings) == []


def test_a_shadow_that_a_crash_of_the_server_emptied_before_it_was_finished_is_filled_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 200)
    publish(settings, log.rows)

    def made() -> None:
        with Runs(settings.postgres) as runs:
            build(settings, runs, {PURSES: PURSES.module}, SHADOWS, spans(settings, [DOMAIN]), until="a moment")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    unlogged = "TRUNCATE purses__rebuild, totals__rebuild, replay_positions"
    for of, step, lost in ((PostgresShadows, "finish", unlogged), (Runs, "begin", "")):
        with monkeypatch.context() as patched:
            patched.setattr(of, step, killed)
            with pytest.raises(KeyboardInterrupt):
                made()
        with psycopg.connect(settings.postgres) as connection:
            connection.execute(lost.encode())
        made()
        assert count(settings, "SELECT fills FROM totals__rebuild") == filled(log)
        with psycopg.connect(settings.postgres) as connection:  # and its run is known still
            connection.execute("DROP TABLE purses__rebuild, totals__rebuild")


def test_a_reader_that_holds_the_table_delays_the_switch_and_nothing_else(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_topic(settings)
    log = Log()
    traffic(log, 300)
    publish(settings, log.rows)
    monkeypatch.setattr("replay.postgres.SWITCH_TRIES", 2)
    monkeypatch.setattr("replay.postgres.LOCK_MS", 100)
    with store("postgres", settings) as to:
        live(to, settings)
        spoil(settings)
        spoilt = contents(settings)
        with psycopg.connect(settings.postgres) as reader:
            reader.execute("SELECT count(*) FROM purses")  # and its transaction goes on
            with pytest.raises(ReplayError, match="purses can't be switched: some transaction has a lock"):
                rebuild(settings, "purses")
            assert contents(settings) == spoilt
        with psycopg.connect(
            settings.postgres
        ) as connection:  # as a switch that was killed behind its commit leaves it
            connection.execute("CREATE TABLE purses__old (id int)")
        traffic(log, 50)
        publish(settings, log.rows[-50:])
        assert rebuild(settings, "purses") == 0  # all that is left to do is to catch up and switch
        assert to.holds() == to.should_hold(log)
    assert leftovers(settings) == []


def test_a_worker_that_comes_back_from_an_older_replay_is_fenced(settings: Settings) -> None:
    make_topic(settings)
    log = Log(partitions=1)
    traffic(log, 50)
    shadows = PostgresShadows(settings)
    shadows.make(SHADOWS[totals])
    runners = []
    for _ in range(2):
        loader = shadows.loader()
        runner = Runner(loader, [PURSES], [DOMAIN], targets={totals: SHADOWS[totals]})
        runner.assign([(DOMAIN, 0)])
        runner.handle(log.deliveries())
        runners.append((runner, loader))
    runners[0][1].checkpoint()
    with pytest.raises(Fenced):
        runners[1][1].checkpoint()
    assert count(settings, "SELECT fills FROM totals__rebuild") == filled(log)
    for _, loader in runners:
        loader.close()
    shadows.close()
