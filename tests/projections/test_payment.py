"""The read models of payments: live, replayed and folded are one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.kernel import Event, Money, NotFound, Refused, Sealed
from aggregates.kernel.event import under_id
from aggregates.payment import Methods, Payment
from projections.kernel.clauses import PROJECTIONS
from projections.payment import methods, operations, payments, preferences
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

SOON = datetime(2027, 1, 1, tzinfo=UTC)
WHATS = ["action", "authorised", "authorised", "declined", "capture", "capture", "captured", "captured", "failed"]
WHATS += ["route", "route", "leave", "close", "closed", "away"]
WHATS += ["refund", "refunded", "refused", "void", "voided", "unknown", "ask", "taken back", "bounced"]
COMMANDS = st.lists(
    st.tuples(st.sampled_from(WHATS), st.integers(0, 2), st.integers(0, 2), st.integers(1, 60)), max_size=60
)


def happened(commands: Sequence[tuple[str, int, int, int]]) -> tuple[list[Payment], list[Event]]:
    """Payments after commands, as far as the rules accept them, and everything that happened, in order."""
    kept = [Payment(UUID(int=n), UUID(int=7), Money(100, "EUR"), "tok_visa") for n in range(3)]
    events = [event for payment in kept for event in payment.collect_events()]
    for what, which, number, some in commands:
        payment, capture, refund, amount = kept[which], UUID(int=number), UUID(int=10 + number), Money(some, "EUR")
        taken = Money(payment.captures[capture].amount, "EUR") if capture in payment.captures else amount
        given_back = Money(payment.refunds[refund].amount, "EUR") if refund in payment.refunds else amount
        calls: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
            "route": (payment.route, (f"g{number}", "why")),
            "leave": (payment.leave, (payment.gateway, "not reached")),
            "close": (payment.close, (payment.gateway, "never heard of it")),
            "closed": (payment.closed, (f"g{number}",)),
            "away": (payment.unresolved, (Payment.close_id_of(payment.id, f"g{number}"), 0, "away", SOON)),
            "action": (payment.action_required, ("https://bank.example", SOON)),
            "authorised": (payment.authorised, ("txn", SOON)),
            "declined": (payment.declined, ("no", "No.")),
            "capture": (payment.capture, (capture, amount)),
            "captured": (payment.captured, (capture, taken)),
            "failed": (payment.capture_failed, (capture, taken, "no", "No.")),
            "refund": (payment.refund, (refund, amount)),
            "refunded": (payment.refunded, (refund, given_back)),
            "refused": (payment.refund_failed, (refund, given_back, "no", "No.")),
            "taken back": (payment.capture_reversed, (capture, taken, "no", "No.")),
            "bounced": (payment.refund_reversed, (refund, given_back, "no", "No.")),
            "void": (payment.void, ()),
            "voided": (payment.voided, ("txn",)),
            "unknown": (payment.unresolved, (capture, payment.waiting.get(capture, 0), "no answer", SOON)),
            "ask": (payment.ask, (str(capture), payment.waiting.get(capture, 0))),
        }
        call, arguments = calls[what]
        try:
            call(*arguments)
        except Refused:
            continue
        events += payment.collect_events()
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.payment"]], sinks=("postgres",))
    yield made
    made.close()


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[tuple[str, int, int, int]], seed: int) -> None:
    kept, events = happened(commands)
    rows = rows_of(events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = rows_in(live.settings, payments), rows_in(live.settings, operations)
    live.wipe()
    live.feed(rows)
    assert (rows_in(live.settings, payments), rows_in(live.settings, operations)) == shown
    last = {event.id: event.at for event in events}
    for payment in kept:
        row = shown[0][payment.id,]
        assert (row["order"], row["customer"], row["method"]) == (payment.order, payment.customer, payment.method)
        assert (row["amount"], row["currency"], row["gateway"]) == (100, "EUR", payment.gateway)
        assert (row["authorisation"], row["captured"], row["refunded"]) == (
            payment.authorisation,
            payment.taken,
            payment.returned,
        )
        assert (row["url"] or "", row["expires_at"]) == (payment.url, payment.expires_at)
        assert (row["version"], row["changed_at"]) == (payment.version, last[payment.id])
    assert {key: (row["kind"], row["amount"], row["state"]) for key, row in shown[1].items()} == {
        (payment.id, id): (kind, one.amount, one.state)
        for payment in kept
        for kind, known in (("capture", payment.captures), ("refund", payment.refunds))
        for id, one in known.items()
    }


def kept(commands: Sequence[tuple[str, int, int]]) -> tuple[list[Methods], list[Event]]:
    """What customers have done with their ways to pay."""
    customers = []
    for n in range(2):
        with under_id(UUID(int=n)):
            customers.append(Methods())
    events = [event for one in customers for event in one.collect_events()]
    for what, which, number in commands:
        one, method, token = customers[which], UUID(int=number), f"tok_{number}"
        try:
            if what == "save":
                one.ask(method, "test", token, "visa", Sealed("sealed:1:x:y"), f"203{number}-01")
                one.attached(method, "test", token)
            elif what == "remove":
                one.remove(method)
                one.detached("test", token)
            else:
                one.prefer(method)
        except NotFound:
            continue
        events += one.collect_events()
    return customers, events


@given(
    commands=st.lists(
        st.tuples(st.sampled_from(["save", "save", "remove", "prefer"]), st.integers(0, 1), st.integers(0, 3)),
        max_size=30,
    ),
    seed=st.integers(0, 2**16),
)
@hypothesis(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kept_ways_to_pay_live_is_replayed_is_folded(
    live: Live, commands: list[tuple[str, int, int]], seed: int
) -> None:
    customers, events = kept(commands)
    rows = rows_of(events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = rows_in(live.settings, methods), rows_in(live.settings, preferences)
    live.wipe()
    live.feed(rows)
    assert (rows_in(live.settings, methods), rows_in(live.settings, preferences)) == shown
    assert {(key[0], key[1]): row["expires"] for key, row in shown[0].items()} == {
        (one.id, id): method.expires for one in customers for id, method in one.kept.items()
    }
    for one in customers:
        row = shown[1][one.id,]
        assert row["version"] == one.version
        assert one.preferred is None or row["method"] == one.preferred
