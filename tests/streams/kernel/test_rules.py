"""Rules: what stands in the end is a function of the log alone, live and in a back-test, whatever came in which order and who died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregates.kernel import Conflict
from projections.kernel.parking import Limits
from projections.kernel.runner import Delivery
from replay.backtest import BackTest
from streams.kernel.rules import Hit, Secret, Window, rule
from streams.kernel.rules.host import RuleHost, TooLate, Verdict
from streams.kernel.rules.secret import Blind
from tests.kernel.carts import cut_off
from tests.kernel.login import LoggedIn
from tests.kernel.ruling import ACCOUNTS, NOON, Court, Standing, Topics, expected, fickle, in_court, lanes_of, split
from tests.kernel.swipe import Swiped

ADA, BOB = ACCOUNTS
happenings = st.lists(
    st.tuples(
        st.sampled_from([Swiped, LoggedIn]),
        st.sampled_from(ACCOUNTS),
        st.integers(0, 9),
        st.sampled_from([0, 1, 5, 19.999999, 20, 21, 40, 60]),  # ties, and a window's both edges
        st.integers(1, 3).map(lambda n: UUID(int=n)),
    ),
    max_size=14,
)


def topics_of(
    happened: Sequence[tuple[type[Swiped | LoggedIn], UUID, int, float, UUID]], partitions: int = 2
) -> Topics:
    topics = Topics(fickle.domains, partitions)
    for kind, account, amount, seconds, id in happened:
        topics.add(kind, account, amount, seconds, id)
    return topics


def everything(topics: Topics) -> list[Delivery]:
    return [one for lane in topics.records.values() for one in lane]


async def backtested(records: Sequence[Delivery], *batches: int) -> Standing:
    """What a back-test of the records in this order says."""
    test, left = BackTest(fickle), list(records)
    for size in batches:
        await test.take(left[:size])
        del left[:size]
    await test.take(left)
    return {one.event_id: one.hit for one in test.hits}


@given(happenings, st.randoms(use_true_random=False), st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_back_test_is_a_function_of_the_log_whatever_the_order(
    happened: list[tuple[type[Swiped | LoggedIn], UUID, int, float, UUID]], dice: Random, batches: list[int]
) -> None:
    records = everything(topics_of(happened))
    should = expected(fickle, records)
    dice.shuffle(records)
    assert asyncio.run(backtested(records, *batches)) == should


@given(
    happenings, st.integers(0, 10**6)
)  # a seed: kills depend on the machine's pace, and must not draw from Hypothesis
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_stands_what_the_back_test_says_whatever_happens_on_the_way(
    postgres: str, happened: list[tuple[type[Swiped | LoggedIn], UUID, int, float, UUID]], seed: int
) -> None:
    """Two hosts share partitions that move, are killed at any wait, get batches of any size and records again."""

    async def story(court: Court) -> None:
        dice, court.topics = Random(seed), topics_of(happened)
        lanes = lanes_of(court.topics)
        hosts = [court.host(), court.host()]

        async def rebalance() -> None:
            for host, share in zip(hosts, split(lanes, dice.randrange(1 << len(lanes))), strict=True):
                host.release()
                at.update(await host.assign(dict.fromkeys(share, 0)))

        async def turn(host: RuleHost) -> None:
            for where in dice.sample(sorted(host.lanes), len(host.lanes)):
                start = max(0, at[where] - dice.randrange(2))  # some come again
                batch = court.topics.records[where][start : at[where] + dice.randrange(4)]
                work = host.handle(batch) if dice.random() < 0.8 else host.tell()
                killed = await cut_off(work, dice, patience=6 if dice.random() < 0.3 else 10_000)
                if not killed and where in host.lanes:
                    at[where] = host.lanes[where].next
            if dice.random() < 0.3:
                await host.forget()

        at: dict[tuple[str, int], int] = {}
        await rebalance()
        for _ in range(dice.randrange(6)):
            await asyncio.gather(*map(turn, hosts))
            if dice.random() < 0.4:
                hosts[dice.randrange(2)] = court.host()  # the old one is gone with what it had not stored
                await rebalance()
        await court.all()
        assert court.standing == expected(fickle, everything(court.topics))
        assert court.standing == await backtested(everything(court.topics))
        stored = court.count("SELECT count(*) FROM rule_verdicts WHERE hit IS NOT NULL")
        assert stored == len(court.standing)
        assert court.count("SELECT count(*) FROM parked") == 0

    in_court(postgres, story)


def test_each_verdict_is_told_once_and_a_late_event_changes_just_what_it_is_in_the_window_of(postgres: str) -> None:
    async def story(court: Court) -> None:
        for amount, seconds in ((1, 0), (1, 1), (1, 30)):
            court.topics.add(Swiped, ADA, amount, seconds)
        second = court.topics.add(Swiped, ADA, 0, 40)
        await court.all()
        assert {event: revision for event, (revision, _) in court.told.items()} == {_first_two(court)[1]: 1}
        words = court.words
        late = court.topics.add(LoggedIn, ADA, 1, 29)  # 29 s: in the windows of 30 s and 40 s alone
        await court.all()
        assert court.standing == expected(fickle, everything(court.topics))
        assert {late.recorded().event_id, second.recorded().event_id} & court.standing.keys()
        assert court.words > words
        words = court.words
        for _ in range(3):
            await court.all()
        assert court.words == words

    def _first_two(court: Court) -> list[UUID]:
        ordered = sorted(everything(court.topics), key=lambda one: one.event().at)
        return [one.recorded().event_id for one in ordered[:2]]

    in_court(postgres, story)


def test_a_verdict_that_could_not_be_told_is_told_later(postgres: str) -> None:
    async def story(court: Court) -> None:
        for seconds in (0, 1):
            court.topics.add(Swiped, ADA, 1, seconds)
        hear, tried = court.hear, list[Verdict]()

        async def deaf(verdict: Verdict) -> None:
            tried.append(verdict)
            raise Conflict("not now")

        host = court.host()
        host._tell = deaf
        await court.all(host)
        assert len(tried) == 1 and court.standing == {}
        host._tell = hear
        await host.tell()
        assert court.standing == expected(fickle, everything(court.topics)) != {}

    in_court(postgres, story)


def test_a_rule_that_is_new_has_windows_of_what_was_before_it_and_hits_of_what_comes(postgres: str) -> None:
    async def story(court: Court) -> None:
        records = [court.topics.add(Swiped, ADA, 1, seconds) for seconds in range(4)]
        async with court.pool.connection() as connection:
            await connection.execute("INSERT INTO rule_starts VALUES (%s, 'swipe', 3)", (fickle.id,))
        await court.all()
        last = records[-1].recorded().event_id
        assert court.standing == {last: Hit(ADA, 5, "1 1 1 1")} or court.standing == {}
        assert court.standing.keys() <= {last}
        assert court.standing == {k: v for k, v in expected(fickle, records).items() if k == last}

    in_court(postgres, story)


def test_what_no_window_needs_is_forgotten_and_an_event_that_comes_later_still_is_parked(
    postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    day = 86_400.0

    async def story(court: Court) -> None:
        old = court.topics.add(Swiped, ADA, 1, 0)
        for where in lanes_of(court.topics):  # each partition's time moves on
            while not any(one.event().at > NOON + timedelta(days=7) for one in court.topics.records[where]):
                court.topics.add(Swiped if where[0] == "swipe" else LoggedIn, BOB, 1, 8 * day)
        host = await court.all()
        assert await host.forget() == 1
        assert court.count("SELECT count(*) FROM rule_events WHERE at < '2031-01-02'") == 0
        court.topics.add(LoggedIn, ADA, 5, 0, old.event().id)
        in_time = court.topics.add(LoggedIn, ADA, 5, day)  # a week late less a day: exactly what may still come
        host = await court.all()
        assert court.count("SELECT count(*) FROM parked WHERE processor = 'rule.fickle@1'") == 1
        assert "ALARM: rule fickle@1: login:" in caplog.text and TooLate.__name__ in caplog.text
        assert court.count(f"SELECT count(*) FROM rule_events WHERE event_id = '{in_time.recorded().event_id}'") == 1

    in_court(postgres, story)


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_too_late_is_parked_live_and_left_out_by_a_back_test(postgres: str, seed: int) -> None:
    """Of events up to a fortnight late, some twice in the log, both take the same."""
    half_day, dice = 43_200.0, Random(seed)

    async def story(court: Court) -> None:
        for number in range(80):
            day = number // 2 - (dice.randrange(28) if dice.random() < 0.3 else 0)
            kind, account = dice.choice([Swiped, LoggedIn]), dice.choice(ACCOUNTS)
            made = court.topics.add(kind, account, dice.randrange(10), day * half_day + dice.randrange(25))
            if dice.random() < 0.2:
                lane = court.topics.records[made.topic, made.partition]
                one = dice.choice(lane)
                lane.append(Delivery(one.topic, one.partition, len(lane), one.key, one.value, one.headers))
        lanes, host = lanes_of(court.topics), court.host()
        test = BackTest(fickle, lanes=lanes, clock=lambda: court.now)
        at = await host.assign(dict.fromkeys(lanes, 0))
        while left := [one for one in lanes if at[one] < len(court.topics.records[one])]:
            where = min(left, key=lambda one: (at[one], dice.random()))
            batch = court.topics.records[where][at[where] : at[where] + dice.randrange(1, 4)]
            at[where] += len(batch)
            await host.handle(batch)
            await host.forget()
            await test.take(batch)
            if dice.random() < 0.5:
                test.forget()
        while await host.tell():
            pass
        assert test.late == court.count("SELECT count(*) FROM parked") > 0
        assert {one.event_id: one.hit for one in test.hits} == court.standing != {}
        assert test.judged == 80 - test.late

    in_court(postgres, story, partitions=1)


@rule(version=1, window_s=20, key=lambda e: e.account)
def touchy(e: Swiped, window: Window[Swiped]) -> Hit | None:
    if BROKEN and any(one.amount == 13 for one in window):
        raise ArithmeticError("thirteen")
    return Hit(e.account, 1, f"{len(window)} swipes") if len(window) > 1 else None


BROKEN = True


@pytest.mark.parametrize("way", ["restart", "retry"])
def test_an_event_that_a_rule_fails_for_is_parked_until_the_rule_is_mended(
    postgres: str, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def story(court: Court) -> None:
        for account, amount, seconds in (
            (ADA, 1, 0),
            (ADA, 13, 1),
            (BOB, 1, 1),
            (BOB, 1, 2),
            (ADA, 1, 60),
            (ADA, 1, 61),
        ):
            court.topics.add(Swiped, account, amount, seconds)
        await court.all()
        assert [hit.subject for hit in court.standing.values()] == [BOB, ADA]  # the others flow
        assert court.count("SELECT count(*) FROM parked WHERE processor = 'rule.touchy@1'") == 1
        live = await court.all()
        assert court.count("SELECT count(*) FROM parked") == 1
        monkeypatch.setattr("tests.streams.kernel.test_rules.BROKEN", False)
        if way == "retry":
            assert await court.host().retry(("swipe", 0), court.topics.records["swipe", 0][1].key) == (1, "")
            while await live.tell():
                pass
        else:
            await court.all()
        assert court.count("SELECT count(*) FROM parked") == 0
        assert court.count("SELECT count(*) FROM parked_sequences") == 0
        assert court.standing == expected(touchy, everything(court.topics))
        assert len(court.standing) == 3

    in_court(postgres, story, touchy, partitions=1)


def test_a_rule_that_fails_too_often_is_suspended_and_begins_where_it_was(
    postgres: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(court: Court) -> None:
        court.limits = Limits(sequences_min=3)
        for seconds in range(5):
            court.topics.add(Swiped, ADA, 13, seconds)
        host = await court.all()
        assert "thirteen" in host.suspended
        assert "ALARM: rule touchy@1 is suspended" in caplog.text
        assert host.lanes == {}
        await host.handle(court.topics.records["swipe", 0])  # nothing, and no error that would end the process
        assert court.count("SELECT max(notification_id) FROM processor_positions") == 0
        monkeypatch.setattr("tests.streams.kernel.test_rules.BROKEN", False)
        await court.all()
        assert court.standing == expected(touchy, everything(court.topics)) != {}

    in_court(postgres, story, touchy, partitions=1)


@rule(version=1, window_s=20, key=lambda e: Secret((f"sealed {e.account}", "GB")))
def housemates(e: Swiped, window: Window[Swiped]) -> Hit | None:
    return Hit(e.account, 1, f"{len(window)}") if len(window) > 1 else None


def test_keys_of_personal_data_are_opened_digested_and_gone_with_the_person(postgres: str) -> None:
    opened = {f"sealed {ADA}": "12, St. James's Sq.", f"sealed {BOB}": "12 St James’s SQ"}

    async def open_all(lists: list[list[str]]) -> list[list[str]]:
        return [[opened.get(text, "") if text.startswith("sealed") else text for text in one] for one in lists]

    async def story(court: Court) -> None:
        for account, seconds in ((ADA, 0), (BOB, 1), (UUID(int=9), 2), (UUID(int=9), 3)):  # the last one was erased
            court.topics.add(Swiped, account, 1, seconds)
        await court.all(court.host(blind=Blind(open_all, b"key")))
        assert court.standing == {court.topics.records["swipe", 0][1].recorded().event_id: Hit(BOB, 1, "2")}
        async with court.pool.connection() as connection:
            keys = {key for (key,) in await (await connection.execute("SELECT key FROM rule_events")).fetchall()}
        assert len(keys) == 1 and len(keys.pop()) == 64
        without = await court.all(court.host())
        assert not without.suspended  # nothing new came
        court.topics.add(Swiped, ADA, 1, 4)
        assert "master key" in (await court.all(court.host())).suspended

    in_court(postgres, story, housemates, partitions=1)


# The words.


def swipes(*seconds: float) -> Window[Swiped]:
    topics = Topics(["swipe"], 1)
    events = [topics.add(Swiped, ADA, n, at).event() for n, at in enumerate(seconds, start=1)]
    return Window([one for one in events if isinstance(one, Swiped)], events[-1].at)


def test_windows_within_a_window() -> None:
    window = swipes(-3600, -61, -60, -59.5, 0, 0)
    amount = lambda e: e.amount  # noqa: E731
    assert [e.amount for e in window.sliding(60)] == [4, 5, 6]
    assert [e.amount for e in window.tumbling(60)] == [5, 6]  # noon, sharp
    assert [e.amount for e in window.tumbling(86_400)] == [1, 2, 3, 4, 5, 6]
    assert [e.amount for e in swipes(-1, 59, 59.5).tumbling(60)] == [2, 3]
    assert window.sum(amount) == 21
    assert window.where(lambda e: e.amount % 2).distinct(amount) == {1, 3, 5}
    assert len(window.of(Swiped)) == 6 and len(window.of(LoggedIn)) == 0
    assert isinstance(window[:-1], Window) and window[-1].amount == 6 and window[:-1].sum(amount) == 15


def test_over_gives_the_hits_of_some_events() -> None:
    assert touchy.over(swipes(0, 19.999999)) == [Hit(ADA, 1, "2 swipes")]
    assert touchy.over(swipes(0, 20)) == []


@pytest.mark.parametrize(
    "wrong", [{"score": 0}, {"score": 101}, {"score": 1.5}, {"why": ""}, {"why": "x" * 501}, {"subject": "somebody"}]
)
def test_what_is_no_hit(wrong: dict[str, object]) -> None:
    fine: dict[str, object] = {"subject": ADA, "score": 100, "why": "x" * 500}
    Hit(**fine)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        Hit(**(fine | wrong))  # type: ignore[arg-type]


def test_what_is_no_rule() -> None:
    def some(e: Swiped, window: Window[Swiped]) -> Hit | None:
        return None

    def wild(e: int, window: Window[Swiped]) -> Hit | None:
        return None

    for wrong in ({"version": 0}, {"window_s": 0}, {"window_s": 1e12}, {"events_max": 0}, {"late_s": -1}):
        with pytest.raises(TypeError, match="rule some"):
            rule(**({"version": 1, "window_s": 1, "key": lambda e: None} | wrong))(some)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="first parameter is an event"):
        rule(version=1, window_s=1, key=lambda e: None)(wild)
    for key in ("", "x" * 201, "\0", 5):
        with pytest.raises(ValueError, match="a key is"):
            rule(version=1, window_s=1, key=lambda e: key)(some).key(swipes(0)[0])  # type: ignore[arg-type, return-value]
    rule(version=1, window_s=1, key=lambda e: "x" * 200)(some).key(swipes(0)[0])


def test_an_answer_that_is_no_hit_is_the_rules_failure(postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    def sloppy(e: Swiped, window: Window[Swiped]) -> Hit | None:
        return True  # type: ignore[return-value]

    async def story(court: Court) -> None:
        court.topics.add(Swiped, ADA, 1, 0)
        with caplog.at_level(logging.ERROR):
            await court.all()
        assert "not with a Hit or None" in caplog.text

    in_court(postgres, story, rule(version=1, window_s=1, key=lambda e: e.account)(sloppy))
