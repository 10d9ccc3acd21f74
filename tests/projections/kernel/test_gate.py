"""The gate on a real Redis: it counts what the events say and what is on its way to them, and never more than it knows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
import redis as redis_client
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aggregates.kernel import Refused, Unavailable
from projections.kernel import Change, gate
from projections.kernel.gate import Answer, Gate, GateTable
from projections.kernel.redis_sink import RedisSink
from projections.kernel.runner import START, Batch, Delivery, Move
from projections.kernel.tables import AnyTable

T = TypeVar("T")
A, B = uuid4(), uuid4()
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
slots = GateTable("slots", key="id", id=UUID)


def gated(url: str, work: Callable[[Gate], Awaitable[T]]) -> T:
    async def main() -> T:
        async with Redis.from_url(url) as client:
            return await work(Gate(client, "slots", "test"))

    return asyncio.run(main())


def fold(url: str, *changes: Change) -> None:
    """What the projection does with events: changes in one Lua call."""
    with closing(RedisSink(url, "test")) as sink:
        fold_by(sink, *changes)


def fold_by(sink: RedisSink, *changes: Change, to: AnyTable = slots) -> None:
    delivery = Delivery("slot", 0, 0, b"", b"", [])
    sink.apply(Batch({to: [(delivery, change) for change in changes]}, [Move(to, "slot", 0, START, START)]))


@pytest.fixture
def url(redis: str) -> str:
    """A Redis in which ten pieces of A and two of B are there."""
    fold(redis, slots.put(A, on_hand=10, reserved=0), slots.put(B, on_hand=2, reserved=0))
    return redis


def ask(url: str, cause: UUID, amounts: Mapping[UUID, int]) -> Answer:
    return gated(url, lambda gate: gate.ask(cause, amounts))


@pytest.fixture(autouse=True)
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second probe comes and no doubt ends within a test, however slow the machine."""
    monkeypatch.setattr(gate, "PROBE_S", 60.0)
    monkeypatch.setattr(gate, "DOUBT_S", 60.0)


def test_a_row_that_redis_does_not_know_is_left_to_the_store(url: str) -> None:
    assert ask(url, uuid4(), {A: 1, uuid4(): 1}) == Answer("unknown")
    assert ask(url, uuid4(), {A: 10}) == Answer("open")  # nothing was kept for the one before


def test_the_last_piece_passes_and_no_more(url: str) -> None:
    assert [ask(url, uuid4(), {B: 1}).verdict for _ in range(2)] == ["open", "open"]
    assert ask(url, uuid4(), {B: 1}) == Answer("probe", str(B), 0)
    assert ask(url, uuid4(), {B: 1}) == Answer("full", str(B), 0)


def test_several_rows_pass_together_or_not_at_all(url: str) -> None:
    gated(url, lambda gate: gate.ask(uuid4(), {A: 1, B: 3}))
    assert ask(url, uuid4(), {A: 10, B: 2}).verdict == "open"


def test_what_is_asked_again_for_a_cause_replaces_what_was_asked(url: str) -> None:
    cause = uuid4()
    assert [ask(url, cause, {A: n}).verdict for n in (10, 10, 4)] == ["open", "open", "open"]
    assert ask(url, uuid4(), {A: 6}).verdict == "open"


def test_what_is_held_already_passes_and_is_counted_once(url: str) -> None:
    cause = uuid4()
    ask(url, cause, {A: 10})
    fold(url, *slots.hold(A, cause, 10))
    assert ask(url, cause, {A: 10}).verdict == "open"
    fold(url, *slots.freed(A, cause, 10, LONG_AGO))
    assert ask(url, uuid4(), {A: 10}).verdict == "open"


def test_what_is_sold_is_gone(url: str) -> None:
    cause = uuid4()
    ask(url, cause, {A: 4})
    fold(url, *slots.hold(A, cause, 4))
    fold(url, *slots.sold(A, cause, 4, LONG_AGO))
    assert ask(url, uuid4(), {A: 7}).verdict == "probe"
    assert ask(url, uuid4(), {A: 6}).verdict == "open"


def test_a_cause_that_ended_lately_is_the_stores_to_answer(url: str) -> None:
    lately, formerly = uuid4(), uuid4()
    now = datetime.now(UTC)
    for cause, ended in ((lately, now), (formerly, now - timedelta(seconds=gate.ENDED_KEPT_S))):
        fold(url, *slots.hold(A, cause, 5))
        fold(url, *slots.sold(A, cause, 5, ended))
    assert ask(url, lately, {A: 5}).verdict == "unknown"
    assert ask(url, formerly, {A: 5}).verdict == "probe"


def test_a_cause_whose_process_died_ends_by_itself(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "PENDING_S", 0.1)
    assert ask(url, uuid4(), {A: 10}).verdict == "open"
    monkeypatch.setattr(gate, "PENDING_S", 60.0)
    give_up = time.monotonic() + 10
    while ask(url, uuid4(), {A: 10}).verdict != "open":
        assert time.monotonic() < give_up
    assert ask(url, uuid4(), {A: 1}).verdict in ("full", "probe")


def test_a_stale_fold_does_not_keep_pieces_from_being_sold(url: str) -> None:
    async def work(gate: Gate) -> None:
        verdicts = [(await gate.ask(uuid4(), {B: 3})).verdict for _ in range(3)]
        assert verdicts == ["probe", "full", "full"]
        async with gate.passing(uuid4(), {A: 11}):  # the probe of A
            pass  # and the store accepted it
        assert (await gate.ask(uuid4(), {B: 3})).verdict == "unknown"
        assert (await gate.ask(uuid4(), {B: 1})).verdict == "open"

    gated(url, work)


def test_what_the_store_refuses_is_given_back_and_what_it_may_have_stored_is_kept(url: str) -> None:
    async def work(gate: Gate) -> None:
        with pytest.raises(Refused, match="the store says no"):
            async with gate.passing(uuid4(), {A: 10}):
                raise Refused("the store says no")
        cause = uuid4()
        assert (await gate.ask(cause, {A: 10})).verdict == "open"
        with pytest.raises(Unavailable):
            async with gate.passing(cause, {A: 10}):
                raise Unavailable("stored or not?")
        assert (await gate.ask(uuid4(), {A: 1})).verdict == "probe"
        with pytest.raises(Refused, match="1 of MUG is more than the 0 left"):
            async with gate.passing(uuid4(), {A: 1}, {A: "MUG"}):
                raise AssertionError("it was let through")

    gated(url, work)


def test_without_redis_the_store_decides() -> None:
    async def work() -> None:
        async with Redis(host="127.0.0.1", port=9, retry=Retry(NoBackoff(), 0)) as client:
            gate = Gate(client, "slots", "test")
            async with gate.passing(uuid4(), {A: 1}):
                pass
            assert await gate.ask(uuid4(), {A: 1}) == Answer("unknown")
            await gate.cancel(uuid4(), [A])
            await gate.doubt()

    asyncio.run(work())


def test_a_redis_without_its_scripts_gets_them_again(url: str) -> None:
    async def work(gate: Gate) -> None:
        assert (await gate.ask(uuid4(), {A: 1})).verdict == "open"
        with redis_client.Redis.from_url(url) as client:
            client.script_flush()
        assert (await gate.ask(uuid4(), {A: 1})).verdict == "open"

    gated(url, work)


def test_what_the_gate_keeps_is_what_was_let_through(redis: str) -> None:
    """Any order of asking, storing, refusing and ending: free is on hand less reserved less on its way."""
    client, sink, loop = redis_client.Redis.from_url(redis), RedisSink(redis, "test"), asyncio.Runner()
    gate = Gate(Redis.from_url(redis, single_connection_client=True), "slots", "test")

    class Machine(RuleBasedStateMachine):
        causes = st.sampled_from([UUID(int=n) for n in range(1, 5)])

        def __init__(self) -> None:
            super().__init__()
            client.flushdb()
            fold_by(sink, slots.put(A, on_hand=10, reserved=0))
            self.on_hand = 10
            self.pending: dict[UUID, int] = {}
            self.held: dict[UUID, int] = {}

        @rule(cause=causes, amount=st.integers(1, 7))
        def ask(self, cause: UUID, amount: int) -> None:
            free = self.on_hand - sum(self.held.values()) - sum(self.pending.values()) + self.pending.get(cause, 0)
            verdict = loop.run(gate.ask(cause, {A: amount})).verdict
            if cause in self.held:
                assert verdict == "open"
            elif amount > free:
                assert verdict in ("full", "probe")
            else:
                assert verdict == "open"
                self.pending[cause] = amount

        @rule(cause=causes)
        def stored(self, cause: UUID) -> None:
            if cause in self.pending and cause not in self.held:
                self.held[cause] = self.pending.pop(cause)
                fold_by(sink, *slots.hold(A, cause, self.held[cause]))

        @rule(cause=causes)
        def refused(self, cause: UUID) -> None:
            self.pending.pop(cause, None)
            loop.run(gate.cancel(cause, [A]))

        @rule(cause=causes, sold=st.booleans())
        def ended(self, cause: UUID, sold: bool) -> None:
            amount = self.held.pop(cause, 0)
            self.on_hand -= amount * sold
            fold_by(sink, *(slots.sold if sold and amount else slots.freed)(A, cause, amount, LONG_AGO))
            self.pending.pop(cause, None)  # an end settles what was still on its way: it will find it closed

        @invariant()
        def every_piece_is_accounted_for(self) -> None:
            row: dict[str, Any] = slots.row(A, client.hgetall(slots.row_key("test", A))) or {}
            assert (row["on_hand"], row["reserved"]) == (self.on_hand, sum(self.held.values()))
            assert row["holds"] == {str(cause): amount for cause, amount in self.held.items()}
            entries = client.hgetall(f"{slots.tag('test')}!pending:{A}")
            kept = {str(cause, "utf-8"): int(amount) for cause, amount in entries.items()}  # type: ignore[arg-type]
            assert kept.pop("", 0) == sum(kept.values())
            assert kept == {str(cause): amount for cause, amount in self.pending.items()}

    try:
        run_state_machine_as_test(Machine)
    finally:
        loop.run(gate._client.aclose())
        loop.close()
        sink.close()
        client.close()
