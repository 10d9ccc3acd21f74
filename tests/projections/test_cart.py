"""The read models of carts, in Redis and Postgres: live, replayed and folded are one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.cart import KEPT, Cart
from aggregates.kernel import Event, Refused
from projections.cart import carts, customer_carts
from projections.kernel.clauses import PROJECTIONS
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
WHATS = [
    "add",
    "add",
    "add",
    "change",
    "remove",
    "reprice",
    "merge",
    "lock",
    "unlock",
    "check out",
    "abandon",
    "expire",
]
COMMANDS = st.lists(
    st.tuples(st.sampled_from(WHATS), st.integers(0, 2), st.sampled_from(["mug", "pot"]), st.integers(0, 5)),
    max_size=50,
)


def happened(commands: list[tuple[str, int, str, int]]) -> tuple[list[Cart], list[Event]]:
    """Two customers' carts and a guest's after commands, as far as the rules accept them, and all that happened."""
    kept = [Cart.take(UUID(int=1), "EUR", NOW), Cart.take(UUID(int=2), "EUR", NOW), Cart.take(None, "EUR", NOW, "5e")]
    events: list[Event] = [event for cart in kept for event in cart.collect_events()]
    for what, which, sku, some in commands:
        cart, guest, checkout = kept[which], kept[2], UUID(int=some)
        with suppress(Refused):
            match what:
                case "add":
                    cart.add(sku, UUID(int=9), f"A {sku}", some, 500 + some, NOW)
                case "change":
                    cart.change(sku, some, NOW)
                case "remove":
                    cart.remove(sku, NOW)
                case "reprice":
                    cart.reprice(sku, 600 + some, NOW)
                case "merge" if which != 2:
                    guest.give_up(cart.id, guest.contents)
                    cart.merge(guest.id, "EUR", [], NOW)
                case "lock":
                    cart.lock(checkout, cart.contents)
                case "unlock":
                    cart.unlock(checkout, NOW)
                case "check out":
                    cart.check_out(checkout)
                case "abandon":
                    cart.abandon(cart.touched_at)
                case "expire" if some == 5:
                    cart.expire(cart.touched_at + KEPT)
        for one in kept:
            events += one.collect_events()
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.cart"]], sinks=("postgres", "redis"))
    yield made
    made.close()


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[tuple[str, int, str, int]], seed: int) -> None:
    kept, events = happened(commands)
    rows = rows_of(events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = [rows_in(live.settings, table) for table in (carts, customer_carts)]
    live.wipe()
    live.feed(rows)
    assert [rows_in(live.settings, table) for table in (carts, customer_carts)] == shown
    for cart in kept:
        row, listed = shown[0][cart.id,], shown[1][cart.id,]
        for one in (row, listed):
            assert (one["status"], one["abandoned"], one["version"]) == (cart.status, cart.abandoned, cart.version)
            assert (one["owner"], one["currency"]) == (cart.owner, cart.currency)
        assert row["quantities"] == {sku: line.quantity for sku, line in cart.lines.items()}
        assert row["prices"] == {sku: line.unit_price for sku, line in cart.lines.items()}
        assert row["titles"] == {sku: line.title for sku, line in cart.lines.items()}
        assert row["products"] == {sku: line.product for sku, line in cart.lines.items()}
        assert (row["contents"], row["touched_at"]) == (cart.contents, cart.touched_at)
