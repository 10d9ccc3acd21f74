"""The read models of wallets: live, replayed and folded are one, and statements run."""

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

from aggregates.kernel import Event, Invalid, Money, Refused
from aggregates.kernel.token import Way
from aggregates.wallet import TopUp, Wallet
from aggregates.wallet.parts import escrowed
from projections.kernel.clauses import PROJECTIONS
from projections.wallet import escrows, top_ups, wallet_entries, wallets
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

NOW, SOON = datetime(2026, 11, 25, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
WHATS = [
    "deposit",
    "deposit",
    "transfer",
    "hold",
    "hold",
    "release",
    "capture",
    "capture",
    "refund",
    "spend",
    "spend",
    "expire",
    "freeze",
    "thaw",
]
WHATS += ["withdraw", "withdrawn", "failed", "taken back"]
COMMANDS = st.lists(
    st.tuples(st.sampled_from(WHATS), st.integers(0, 2), st.integers(0, 2), st.integers(1, 60)), max_size=60
)
TABLES = (wallets, wallet_entries, escrows, top_ups)


def happened(commands: Sequence[tuple[str, int, int, int]]) -> tuple[list[Wallet], list[Event]]:
    """Wallets after commands, as far as the rules accept them, and everything that happened, in order."""
    kept = [Wallet.open(UUID(int=n), "EUR") for n in range(3)]
    started = TopUp.start(kept[0].id, UUID(int=0), Money(5, "EUR"), Way("tok_visa"))
    events = [event for one in (*kept, started) for event in one.collect_events()]
    for what, which, number, some in commands:
        one, other, id, amount = kept[which], kept[number], UUID(int=number), Money(some, "EUR")
        part = amount if some % 2 else None
        calls: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
            "deposit": (one.deposit, (amount, "credit", id)),
            "transfer": (one.transfer, (other, id, amount)),
            "hold": (one.hold, (id, amount, SOON)),
            "release": (one.release, (id, part)),
            "capture": (one.capture, (other, id, part)),
            "refund": (one.refund, (other, id, amount)),
            "spend": (one.spend, (id, id, Money(one.ledger[escrowed(id)], "EUR"))),
            "expire": (one.expire, (str(id),)),
            "freeze": (one.freeze, (id, "not as described")),
            "thaw": (one.unfreeze, (id, NOW)),
            "withdraw": (one.withdraw, (id, amount, id)),
            "withdrawn": (one.withdrawn, (id,)),
            "failed": (one.withdrawal_failed, (id, "closed")),
            "taken back": (one.take_back, (id, id, amount)),
        }
        call, arguments = calls[what]
        try:
            call(*arguments)
        except (Refused, Invalid):
            continue
        events += [event for each in kept for event in each.collect_events()]
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.wallet"]], sinks=("postgres",))
    yield made
    made.close()


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[tuple[str, int, int, int]], seed: int) -> None:
    kept, events = happened(commands)
    rows = rows_of(events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = [rows_in(live.settings, table) for table in TABLES]
    live.wipe()
    live.feed(rows)
    assert [rows_in(live.settings, table) for table in TABLES] == shown
    for wallet in kept:
        row = shown[0][wallet.id,]
        assert (row["owner"], row["currency"], row["version"]) == (wallet.owner, "EUR", wallet.version)
        assert (row["balance"], row["held"]) == (wallet.balance, wallet.held)
        assert row["withdrawing"] == sum(wallet.withdrawals.values())
        running = 0
        for _, line in sorted(item for item in shown[1].items() if item[0][0] == wallet.id):
            running += line["amount"]
            assert line["balance"] == running
        assert running == wallet.balance
        for id, escrow in {**wallet.escrows, **wallet.closed}.items():
            held = shown[2][wallet.id, id]
            assert held["status"] == (escrow.ending or ("frozen" if escrow.frozen else "held"))
            assert (held["amount"], held["ended_at"]) == (escrow.amount, escrow.ended_at)
            assert held["captured"] - held["refunded"] == sum(escrow.captured.values())


def test_a_top_up_is_running_from_its_start(live: Live) -> None:
    kept, events = happened([])
    live.feed(rows_of(events))
    [row] = rows_in(live.settings, top_ups).values()
    assert (row["wallet"], row["amount"], row["currency"], row["status"]) == (kept[0].id, 5, "EUR", "running")
