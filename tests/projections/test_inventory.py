"""The read models of stock: live, replayed and folded are one; a Redis that is lost is built again, equal to the piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest
import redis as redis_client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.inventory import Stock
from aggregates.kernel import Event, Refused
from infra.settings import Settings
from projections.inventory import reservations, shelves, stocks
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.runner import Fenced
from tests.kernel.topic import Live, deliveries, rows_in, rows_of, settings_of

INVENTORY = [PROJECTIONS["projections.inventory"]]
SOON = datetime(2027, 1, 1, tzinfo=UTC)
CAUSES = [UUID(int=n) for n in range(1, 6)]
Command = tuple[str, int, int, int]  # what, of which stock, for which reservation, how many
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from(["receive", "adjust", "reserve", "reserve", "commit", "release", "expire"]),
        st.integers(0, 2),
        st.integers(0, 4),
        st.integers(-3, 9),
    ),
    max_size=60,
)


def happened(commands: Sequence[Command]) -> tuple[list[Stock], list[Event]]:
    """The stocks after commands, as far as the rules accept them, and everything that happened, in order."""
    kept = [Stock.open(f"SKU-{n}", seller=UUID(int=n) if n else None) for n in range(3)]
    events = [event for stock in kept for event in stock.collect_events()]
    for what, which, cause, number in commands:
        stock, reservation = kept[which], CAUSES[cause]
        calls: dict[str, Callable[[], None]] = {
            "receive": lambda s=stock, n=number: s.receive(n, "note"),  # type: ignore[misc]
            "adjust": lambda s=stock, n=number: s.adjust(n, "count"),  # type: ignore[misc]
            "reserve": lambda s=stock, n=number, r=reservation: s.reserve(r, n, SOON + timedelta(seconds=n)),  # type: ignore[misc]
            "commit": lambda s=stock, r=reservation: s.commit(r),  # type: ignore[misc]
            "release": lambda s=stock, r=reservation: s.release(r),  # type: ignore[misc]
            "expire": lambda s=stock, r=reservation: s.expire(str(r)),  # type: ignore[misc]
        }
        try:
            calls[what]()
        except Refused:
            continue
        events += stock.collect_events()
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), INVENTORY)
    yield made
    made.close()


def agree(settings: Settings, kept: Sequence[Stock], events: Sequence[Event]) -> None:
    """The read models say what the stocks themselves say."""
    last = {event.id: event for event in events}
    assert rows_in(settings, stocks) == {
        (stock.id,): {
            "id": stock.id, "version": stock.version, "sku": stock.sku, "location": "main", "seller": stock.seller,
            "on_hand": stock.on_hand, "reserved": stock.reserved, "available": stock.available, "updated_at": last[stock.id].at,
        }
        for stock in kept
    }  # fmt: skip
    assert rows_in(settings, shelves) == {
        (stock.id,): {
            "id": stock.id, "on_hand": stock.on_hand, "reserved": stock.reserved,
            "holds": {str(cause): held[stock.sku] for cause, held in stock.quota.holds.items()},
        }
        for stock in kept
    }  # fmt: skip
    endings = {"confirmed": "committed", "released": "released", "expired": "expired"}
    states = {(cause, stock.id): "held" for stock in kept for cause in stock.quota.holds}
    states |= {(cause, stock.id): endings[end.ending] for stock in kept for cause, end in stock.quota.closed.items()}
    assert {key: row["status"] for key, row in rows_in(settings, reservations).items()} == states


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[Command], seed: int) -> None:
    kept, events = happened(commands)
    rows, tables = rows_of(events), (stocks, reservations, shelves)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = [rows_in(live.settings, table) for table in tables]
    agree(live.settings, kept, events)
    live.wipe()
    live.feed(rows)
    assert [rows_in(live.settings, table) for table in tables] == shown


@given(commands=COMMANDS.filter(lambda commands: len(commands) > 5), seed=st.integers(0, 2**16))
@hypothesis(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_redis_lost_at_any_moment_is_built_again_to_the_piece(live: Live, commands: list[Command], seed: int) -> None:
    kept, events = happened(commands)
    rows, settings = rows_of(events), live.settings
    lost = Random(seed).randrange(len(rows))
    live.wipe()
    live.feed(rows[:lost])
    with redis_client.Redis.from_url(settings.redis) as client:
        client.flushdb()
    live_redis = next(runner for runner in live.runners if runner.sink.name == "redis")
    for postgres in (runner for runner in live.runners if runner is not live_redis):
        postgres.handle(deliveries(rows[lost:], settings.partitions))
    with suppress(Fenced):  # unless what is left touches only lanes that had not moved
        live_redis.handle(deliveries(rows[lost:], settings.partitions))
    live.assign(live_redis)
    live_redis.handle(deliveries(rows, settings.partitions))
    agree(settings, kept, events)


def test_what_was_on_its_way_is_counted_once_it_has_arrived(live: Live) -> None:
    settings, stock = live.settings, Stock.open("MUG")
    stock.receive(3, "note")
    cause = uuid4()
    stock.reserve(cause, 2, SOON)
    stock.commit(cause)
    rows = rows_of(stock.collect_events())
    live.feed(rows[:2])
    with redis_client.Redis.from_url(settings.redis) as client:
        entries = f"{shelves.tag(settings.namespace)}!pending:{stock.id}"
        client.hset(entries, mapping={str(cause): 2, "": 2, "other": 1})
        client.hincrby(entries, "", 1)
        live.feed(rows[2:3])
        assert client.hgetall(entries) == {b"other": b"1", b"": b"1"}
        live.feed(rows[3:])
        assert client.hgetall(entries) == {b"other": b"1", b"": b"1"}
    assert rows_in(settings, shelves)[stock.id,] == {"id": stock.id, "on_hand": 1, "reserved": 0, "holds": {}}
