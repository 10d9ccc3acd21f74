"""The event store on a real Postgres: nothing lost, nothing twice, no gaps, whatever is retried or races."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest

from aggregates.kernel import (
    Conflict,
    Invalid,
    NotFound,
    Origin,
    Receipt,
    Refused,
    Reused,
    Store,
    TimerRef,
    Unavailable,
    committer,
    recorder,
)
from aggregates.kernel import store as store_module
from aggregates.kernel.migrate import migrate
from aggregates.kernel.recorder import Append, Connection, Outcome
from aggregates.payment.methods import Methods
from aggregates.user import User
from tests.kernel.tally import Counted, Tally

T = TypeVar("T")
ME = Origin("user:test")


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, ["tally"])
    return postgres


def run(dsn: str, work: Callable[[Store], Awaitable[T]]) -> T:
    async def main() -> T:
        async with Store.open(dsn) as store:
            return await work(store)

    return asyncio.run(main())


def rows(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


async def begun(store: Store, ceiling: int = 10**9) -> UUID:
    return (await store.commands(ME).open(Tally, ceiling)).id


async def outcome_of(call: Awaitable[Receipt]) -> Receipt | Exception:
    try:
        return await call
    except Exception as error:
        return error


def test_a_stored_aggregate_comes_back_now_then_and_at_a_version(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        first = await store.commands(ME).tell(id, Tally.add, 3)
        between = datetime.now(UTC)
        second = await store.commands(ME).tell(id, Tally.add, 4)
        assert (first.version, second.version) == (2, 3)
        assert (first.position, second.position) == ("tally:2", "tally:3")
        assert (await store.load(Tally, id)).count == 7
        assert (await store.load(Tally, id, version=2)).count == 3
        assert (await store.load(Tally, id, at=between)).count == 3
        history = await store.history(Tally, id)
        assert [one.event.type for one in history] == ["tally.Begun", "tally.Counted", "tally.Counted"]
        assert [one.position for one in history] == [1, 2, 3]
        assert {one.actor for one in history} == {"user:test"}
        with pytest.raises(NotFound):
            await store.load(Tally, uuid4())
        with pytest.raises(NotFound):
            await store.load(Tally, id, at=between - timedelta(days=1))

    run(dsn, work)


def test_64_commands_at_once_on_one_aggregate_are_all_stored_in_few_commits(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        receipts = await asyncio.gather(*(store.commands(ME).tell(id, Tally.add, 1) for _ in range(64)))
        assert sorted(one.version for one in receipts) == list(range(2, 66))
        assert (await store.load(Tally, id)).count == 64

    run(dsn, work)
    commits = rows(dsn, "SELECT count(DISTINCT xmin::text) FROM tally_events")[0][0]
    assert isinstance(commits, int) and commits < 16


def test_two_processes_on_one_aggregate_lose_no_command(dsn: str) -> None:
    async def work(store: Store) -> None:
        async with Store.open(dsn) as other:
            id = await begun(store)
            calls = [one.commands(ME).tell(id, Tally.add, 1) for one in (store, other) for _ in range(40)]
            got = await asyncio.gather(*map(outcome_of, calls))
            stored = [one for one in got if isinstance(one, Receipt)]
            assert all(isinstance(one, Receipt | Conflict) for one in got), got
            assert len({one.version for one in stored}) == len(stored)
            assert (await store.load(Tally, id)).count == len(stored)
            assert len(stored) >= 40

    run(dsn, work)


def test_the_ceiling_is_reached_exactly_by_commands_from_two_processes(dsn: str) -> None:
    async def work(store: Store) -> None:
        async with Store.open(dsn) as other:
            id = await begun(store, ceiling=25)
            calls = [one.commands(ME).tell(id, Tally.add, 1) for one in (store, other) for _ in range(30)]
            got = await asyncio.gather(*map(outcome_of, calls))
            assert sum(isinstance(one, Receipt) for one in got) == 25
            assert all(isinstance(one, Receipt | Refused) for one in got), got
            assert (await store.load(Tally, id)).count == 25

    run(dsn, work)


def test_a_command_on_what_this_process_changed_last_reads_nothing_and_still_sees_what_others_did(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decided on the state that was kept, and that must not show: neither in a refusal, nor where nothing is to be done,
    nor in an aggregate that a command only looks at."""
    loads = 0
    load = store_module.Database.load

    async def counted(self: store_module.Database, *args: Any, **kwargs: Any) -> store_module.Loaded:
        nonlocal loads
        loads += 1
        return await load(self, *args, **kwargs)

    monkeypatch.setattr(store_module.Database, "load", counted)

    async def work(store: Store) -> None:
        nonlocal loads
        async with Store.open(dsn) as elsewhere:
            here, there = store.commands(ME), elsewhere.commands(ME)
            id, second = await begun(store, ceiling=5), await begun(store)
            await here.tell(id, Tally.add, 5)
            await here.tell(second, Tally.add, 1)
            loads = 0
            assert (await here.tell(second, Tally.add, 1)).version == 3
            assert loads == 0

            await there.tell(id, Tally.add, -3)
            assert (await here.tell(id, Tally.add, 2)).version == 4  # of what was kept it is too much
            await there.tell(id, Tally.add, -1)
            assert (await here.tell(id, Tally.touch)).version == 5
            await there.tell(id, Tally.add, -1)
            assert (await here.tell_all([(id, Tally.touch, ()), (second, Tally.add, (1,))])).version == 6
            with pytest.raises(Refused):
                await here.tell(id, Tally.add, 4)

            await there.tell(id, Tally.add, 1)
            assert (await here.tell(id, Tally.add, 1)).version == 8  # a conflict, decided again
            assert (await store.load(Tally, id)).count == 4
            loads = 0
            await here.tell(second, Tally.add, 1)  # others are at work on them: it is read first, for a while
            assert loads == 1

    run(dsn, work)


def test_a_refused_command_leaves_its_neighbours_alone(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store, ceiling=10)
        got = await asyncio.gather(*(outcome_of(store.commands(ME).tell(id, Tally.add, by)) for by in (4, 20, 6, 1)))
        assert [type(one) for one in got] == [Receipt, Refused, Receipt, Refused]
        assert (await store.load(Tally, id)).count == 10

    run(dsn, work)


def test_the_same_command_id_is_stored_once_and_answers_the_same(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        asked = Origin("user:test", command=uuid4(), fingerprint=b"a")
        first = await store.commands(asked).tell(id, Tally.add, 5)
        again = await asyncio.gather(*(store.commands(asked).tell(id, Tally.add, 5) for _ in range(5)))
        assert {(one.id, one.version, one.position, one.replayed) for one in again} == {(id, 2, first.position, True)}
        with pytest.raises(Reused):
            await store.commands(Origin("user:test", command=asked.command, fingerprint=b"b")).tell(id, Tally.add, 6)
        assert (await store.load(Tally, id)).count == 5
        created = Origin("user:test", command=uuid4())
        made = await asyncio.gather(*(store.commands(created).open(Tally, 1) for _ in range(5)))
        assert len({one.id for one in made}) == 1
        assert sorted(one.replayed for one in made) == [False, True, True, True, True]

    run(dsn, work)


def test_a_command_that_did_nothing_is_remembered_too(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        asked = Origin("user:test", command=uuid4())
        first = await store.commands(asked).tell(id, Tally.touch)
        assert (first.version, first.position) == (1, "tally:1")
        await store.commands(ME).tell(id, Tally.add, 1)
        again = await store.commands(asked).tell(id, Tally.touch)
        assert (again.version, again.replayed) == (1, True)

    run(dsn, work)


@pytest.mark.parametrize("known", [True, False])
def test_a_command_that_does_nothing_since_another_is_on_its_way_answers_with_that_ones_position(
    dsn: str, known: bool
) -> None:
    """Its version is the other one's, so whoever reads at its position has to find that version."""

    async def work(store: Store) -> None:
        id = await begun(store)
        asked = Origin("user:test", command=uuid4() if known else None)
        added, nothing, later = await asyncio.gather(
            store.commands(ME).tell(id, Tally.add, 3),
            store.commands(asked).tell(id, Tally.touch),
            store.commands(ME).tell(id, Tally.add, 4),  # not what it was decided on, though stored before it is
        )
        assert (nothing.version, nothing.position) == (added.version, added.position) == (2, "tally:2")
        assert (later.version, later.position) == (3, "tally:3")
        if known:
            await store.commands(ME).tell(id, Tally.add, 1)
            again = await store.commands(asked).tell(id, Tally.touch)
            assert (again.version, again.position, again.replayed) == (2, "tally:2", True)

    run(dsn, work)


def test_each_aggregate_of_a_command_on_several_keeps_its_own_position(dsn: str) -> None:
    async def work(store: Store) -> None:
        first, last = [await begun(store) for _ in range(2)]
        both = await store.commands(ME).tell_all([(first, Tally.add, (1,)), (last, Tally.add, (1,))])
        assert both.position == "tally:4"
        touched = await store.commands(ME).tell_all([(first, Tally.touch, ()), (last, Tally.touch, ())])
        assert (touched.id, touched.position) == (first, "tally:3")

    run(dsn, work)


def test_a_repeated_command_that_is_refused_by_its_own_effect_answers_as_before(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store, ceiling=5)
        asked = store.commands(Origin("user:test", command=uuid4()))
        assert not (await asked.tell(id, Tally.add, 5)).replayed
        assert (await asked.tell(id, Tally.add, 5)).replayed

    run(dsn, work)


def test_a_repeated_creation_that_would_be_refused_now_answers_as_before(dsn: str) -> None:
    async def work(store: Store) -> None:
        asked = store.commands(Origin("user:test", command=uuid4()))
        first = await asked.open(Tally.begin, 5, True)
        again = await asked.open(Tally.begin, 5, False)
        assert (again.id, again.replayed) == (first.id, True)
        with pytest.raises(Refused):
            await store.commands(Origin("user:test", command=uuid4())).open(Tally.begin, 5, False)

    run(dsn, work)


def test_a_lost_acknowledgement_is_success_and_stored_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit went through, its answer did not: told apart from a conflict by the events' own ids."""
    real = recorder.append
    lost: list[Sequence[Append]] = []

    async def loses_the_first_answer(connection: Connection, batch: Sequence[Append]) -> list[Outcome]:
        outcomes = await real(connection, batch)
        if batch[0].rows[0].event_type == "tally.Counted" and not lost:
            lost.append(batch)
            raise psycopg.OperationalError("the answer is lost")
        return outcomes

    monkeypatch.setattr(recorder, "append", loses_the_first_answer)

    async def work(store: Store) -> None:
        id = await begun(store)
        receipts = await asyncio.gather(*(store.commands(ME).tell(id, Tally.add, 1) for _ in range(10)))
        assert sorted(one.version for one in receipts) == list(range(2, 12))
        assert (await store.load(Tally, id)).count == 10

    run(dsn, work)
    assert lost


def test_killed_connections_lose_nothing_and_double_nothing(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        killer = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        done = asyncio.Event()

        async def kill() -> int:
            killed = 0
            while not done.is_set():
                cursor = await killer.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'titan-committer'"
                )
                row = await cursor.fetchone()
                killed += row[0] if row else 0
                await asyncio.sleep(0.05)
            return killed

        killing = asyncio.ensure_future(kill())
        got: list[Receipt | Exception] = []
        for _ in range(30):
            got += await asyncio.gather(*(outcome_of(store.commands(ME).tell(id, Tally.add, 1)) for _ in range(8)))
        done.set()
        assert await killing > 0
        await killer.close()
        assert all(isinstance(one, Receipt) for one in got), [one for one in got if isinstance(one, Exception)][:1]
        assert (await store.load(Tally, id)).count == len(got)

    run(dsn, work)


def test_of_two_writers_only_one_takes_a_name_and_freeing_gives_it_back(dsn: str) -> None:
    async def work(store: Store) -> None:
        async with Store.open(dsn) as other:
            ids = [await begun(store) for _ in range(8)]
            calls = [(store, other)[n % 2].commands(ME).tell(id, Tally.rename, "ada") for n, id in enumerate(ids)]
            got = await asyncio.gather(*map(outcome_of, calls))
            winners = [id for id, one in zip(ids, got, strict=True) if isinstance(one, Receipt)]
            assert len(winners) == 1
            assert all(isinstance(one, Receipt | Refused) for one in got), got
            assert await store.owner("tally", "name", "ada") == winners[0]
            await store.commands(ME).tell(winners[0], Tally.rename, "bob")
            await store.commands(ME).tell(next(id for id in ids if id != winners[0]), Tally.rename, "ada")
            assert await store.owner("tally", "name", "bob") == winners[0]

    run(dsn, work)


def test_several_aggregates_change_together_or_not_at_all(dsn: str) -> None:
    async def work(store: Store) -> None:
        a, b = await begun(store, 10), await begun(store, 5)
        with pytest.raises(Refused):
            await store.commands(ME).tell_all([(a, Tally.add, (1,)), (b, Tally.add, (6,))])
        assert ((await store.load(Tally, a)).count, (await store.load(Tally, b)).count) == (0, 0)
        calls = [
            store.commands(ME).tell_all([(a, Tally.add, (1,)), (b, Tally.add, (1,))][:: (1, -1)[n % 2]])
            for n in range(8)
        ]
        got = await asyncio.gather(*map(outcome_of, calls))
        assert sum(isinstance(one, Receipt) for one in got) == 5
        assert ((await store.load(Tally, a)).count, (await store.load(Tally, b)).count) == (5, 5)

    run(dsn, work)


def test_the_log_has_no_gap_and_a_reader_never_sees_a_later_event_first(dsn: str) -> None:
    async def work(store: Store) -> None:
        async with Store.open(dsn) as other:
            ids = [await begun(store) for _ in range(6)]
            seen: list[int] = []
            done = asyncio.Event()

            async def read() -> None:
                connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
                while True:
                    finished = done.is_set()
                    cursor = await connection.execute(
                        "SELECT notification_id FROM tally_events WHERE notification_id > %s ORDER BY 1", (len(seen),)
                    )
                    seen.extend([row[0] for row in await cursor.fetchall()])
                    assert seen == list(range(1, len(seen) + 1))
                    if finished:
                        break
                await connection.close()

            reading = asyncio.ensure_future(read())
            calls = [outcome_of((store, other)[n % 2].commands(ME).tell(ids[n % 6], Tally.add, 1)) for n in range(300)]
            got = await asyncio.gather(*calls)
            done.set()
            await reading
            assert len(seen) == 6 + sum(isinstance(one, Receipt) for one in got)

    run(dsn, work)


def test_an_expected_version_that_is_not_the_present_one_is_a_conflict(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        assert (await store.commands(Origin("user:test", expected=1)).tell(id, Tally.add, 1)).version == 2
        with pytest.raises(Conflict, match="version 2, not 1"):
            await store.commands(Origin("user:test", expected=1)).tell(id, Tally.add, 1)

    run(dsn, work)


def test_a_row_that_the_database_refuses_fails_alone(dsn: str) -> None:
    async def work(store: Store) -> None:
        ids = [await begun(store) for _ in range(3)]
        good = [outcome_of(store.commands(ME).tell(id, Tally.add, 1)) for id in ids]
        bad = outcome_of(store.commands(Origin("user:\0")).tell(ids[1], Tally.add, 1))
        got = await asyncio.gather(good[0], good[1], bad, good[2])
        assert [isinstance(one, Receipt) for one in got] == [True, True, False, True]
        assert (await store.commands(ME).tell(ids[1], Tally.add, 1)).version == 3

    run(dsn, work)


def test_a_field_that_does_not_fit_its_schema_is_invalid_and_stores_nothing(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store, ceiling=10)
        with pytest.raises(Invalid):
            await store.commands(ME).tell(id, Tally.add, -(10**30))
        assert (await store.commands(ME).tell(id, Tally.add, 1)).version == 2

    run(dsn, work)


def test_a_timer_stands_in_the_commit_of_its_event_and_goes_with_the_one_that_ends_it(dsn: str) -> None:
    due = datetime(2030, 1, 1, tzinfo=UTC)

    async def work(store: Store) -> None:
        a, b, c, d = [await begun(store) for _ in range(4)]
        for id in (a, b, c, d):
            await store.commands(ME).tell(id, Tally.schedule, due)
        await store.commands(ME).tell(a, Tally.end)
        await store.commands(ME).tell(b, Tally.schedule, due + timedelta(days=1))
        stale = Origin("timer", command=uuid4(), timer=TimerRef(b, "end", due))
        await store.commands(stale).tell(b, Tally.touch)
        fired = Origin("timer", command=uuid4(), timer=TimerRef(c, "end", due))
        await store.commands(fired).tell(c, Tally.touch)  # nothing happens: the row goes all the same
        late = Origin("timer", command=uuid4(), timer=TimerRef(d, "end", due))
        await asyncio.gather(  # in one commit
            store.commands(ME).tell(d, Tally.schedule, due + timedelta(days=1)),
            store.commands(late).tell(d, Tally.add, 1),
        )

    run(dsn, work)
    assert rows(dsn, "SELECT due, call, args FROM tally_timers") == [(due + timedelta(days=1), "Tally.end", [])] * 2


def test_snapshots_are_taken_and_change_nothing(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        for _ in range(3):
            await asyncio.gather(*(store.commands(ME).tell(id, Tally.add, 1) for _ in range(40)))
        await store.commands(ME).tell(id, Tally.schedule, datetime(2030, 1, 1, tzinfo=UTC))
        assert (await store.load(Tally, id)).__dict__ == (await store.load(Tally, id, version=122)).__dict__

    run(dsn, work)
    assert rows(dsn, "SELECT originator_version FROM tally_snapshots") == [(100,)]


def test_commands_are_told_when_the_database_is_away_and_nothing_is_decided_on_what_may_be_lost(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, away = recorder.append, True

    async def away_at_first(connection: Connection, batch: Sequence[Append]) -> list[Outcome]:
        if away and batch[0].rows[0].event_type == "tally.Counted":
            raise psycopg.OperationalError("away")
        return await real(connection, batch)

    monkeypatch.setattr(recorder, "append", away_at_first)
    patience = committer.WAIT_S

    async def work(store: Store) -> None:
        nonlocal away
        id = await begun(store)
        monkeypatch.setattr(committer, "WAIT_S", 0.3)
        got = await asyncio.gather(*(outcome_of(store.commands(ME).tell(id, Tally.add, 1)) for _ in range(3)))
        assert all(isinstance(one, Unavailable) for one in got)
        monkeypatch.setattr(committer, "WAIT_S", patience)
        away = False
        receipt = await store.commands(ME).tell(id, Tally.add, 10)  # waits for the fate of the three
        state = await store.load(Tally, id)
        assert state.version == receipt.version and state.count == 10 + (receipt.version - 2)

    run(dsn, work)


def test_a_caller_that_goes_away_changes_nothing_for_the_others(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        tasks = [asyncio.ensure_future(store.commands(ME).tell(id, Tally.add, 1)) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, Receipt) for one in got[1::2]), got
        last = await store.commands(ME).tell(id, Tally.add, 1)
        state = await store.load(Tally, id)
        assert state.count == state.version - 1 == last.version - 1

    run(dsn, work)


def test_every_event_says_what_it_was(dsn: str) -> None:
    async def work(store: Store) -> None:
        id = await begun(store)
        origin = Origin("user:test", correlation="trace-1", command=uuid4())
        await store.commands(origin).tell(id, Tally.add, 2)
        last = (await store.history(Tally, id))[-1]
        assert isinstance(last.event, Counted) and last.event.by == 2 and last.event.version == 2
        assert (last.correlation, last.causation) == ("trace-1", origin.command)

    run(dsn, work)


def test_what_has_one_id_in_two_domains_is_two_aggregates(postgres: str) -> None:
    """A person's profile and ways to pay have the person's id, and commands on both may be at work at once."""

    async def work(store: Store) -> None:
        id, method = uuid4(), uuid4()
        await store.commands(ME).open_as(id, User)
        await store.commands(ME).open_as(id, Methods)
        for _ in range(5):
            with store.commands(ME).expecting(Methods, id):
                await asyncio.gather(
                    store.commands(ME).tell(id, User.ask_erasure), store.commands(ME).tell(id, Methods.remove, method)
                )
        assert (await store.load(User, id)).status == "erasing"

    migrate(postgres, ["user", "payment"])
    run(postgres, work)
