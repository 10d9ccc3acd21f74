"""The read models of vouchers: live, replayed and folded are one."""

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

from aggregates.kernel import Event, Money, NotFound, Refused
from aggregates.voucher import VALUE, Voucher
from projections.kernel.clauses import PROJECTIONS
from projections.voucher import voucher_uses, vouchers
from tests.kernel import SAID
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

NOW, SOON = datetime(2026, 11, 25, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
WHATS = ["reserve", "reserve", "redeem", "confirm", "release", "lapse", "claim", "transfer", "void", "expire", "refund"]
COMMANDS = st.lists(
    st.tuples(st.sampled_from(WHATS), st.integers(0, 2), st.integers(0, 4), st.integers(1, 40)), max_size=50
)
ADA, BOB = UUID(int=7), UUID(int=8)


def happened(commands: Sequence[tuple[str, int, int, int]]) -> tuple[list[Voucher], list[Event]]:
    """Vouchers after commands, as far as the rules accept them, and everything that happened, in order."""
    kept = [Voucher.gift(Money(100, "EUR"), str(n), "61VV", SOON, NOW) for n in range(2)]
    kept.append(Voucher.credit(Money(100, "EUR"), ADA, None, NOW))
    events = [event for one in kept for event in one.collect_events()]
    for what, which, number, some in commands:
        one, id, amount, who = kept[which], UUID(int=number), Money(some, "EUR"), ADA if some % 3 else BOB
        calls: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
            "reserve": (one.reserve, (id, amount, who, SOON, NOW)),
            "redeem": (one.redeem, (id, amount, who, NOW)),
            "confirm": (one.confirm, (id,)),
            "release": (one.release, (id,)),
            "lapse": (one.lapse, (str(id),)),
            "claim": (one.claim, (who, NOW)),
            "transfer": (one.transfer, (who,)),
            "void": (one.void, (SAID,)),
            "expire": (one.expire, ()),
            "refund": (one.refund, (UUID(int=number + 10), Money(some, "EUR"), who, NOW)),
        }
        call, arguments = calls[what]
        try:
            call(*arguments)
        except (Refused, NotFound):
            continue
        events += one.collect_events()
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS["projections.voucher"]], sinks=("postgres",))
    yield made
    made.close()


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[tuple[str, int, int, int]], seed: int) -> None:
    kept, events = happened(commands)
    rows = rows_of(events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = rows_in(live.settings, vouchers), rows_in(live.settings, voucher_uses)
    live.wipe()
    live.feed(rows)
    assert (rows_in(live.settings, vouchers), rows_in(live.settings, voucher_uses)) == shown
    for voucher in kept:
        row, quota = shown[0][voucher.id,], voucher.quota
        assert (row["kind"], row["holder"], row["status"]) == (voucher.kind, voucher.holder, voucher.status)
        assert (row["value"], row["balance"], row["version"]) == (100, voucher.balance, voucher.version)
        assert (row["reserved"], row["redeemed"]) == (quota.reserved.get(VALUE, 0), quota.used.get(VALUE, 0))
        uses = {key[1]: one for key, one in shown[1].items() if key[0] == voucher.id}
        assert {id for id, one in uses.items() if one["status"] == "reserved"} == set(quota.holds)
        endings = {"confirmed": "redeemed", "released": "released", "expired": "lapsed"}
        assert {id: endings[one.ending] for id, one in quota.closed.items()} == {
            id: one["status"] for id, one in uses.items() if one["status"] not in ("reserved", "refunded")
        }
        assert voucher.refunds == {id: one["amount"] for id, one in uses.items() if one["status"] == "refunded"}
