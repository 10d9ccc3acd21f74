"""An order far above what the account has ever ordered: somebody else has its password, or the card is not its owner's."""

from __future__ import annotations

from statistics import median

from aggregates.order import Placed
from streams.kernel.rules import Hit, Window, rule

# Of the real shop's 47 orders by accounts with 5 before, 4 are above 10 times their median, but 1 of these alone (538.65 where the
# largest had been 137.25) also above twice the largest: shops have a large order now and then, and have it again.
ORDERS_MIN = 5
TIMES_MEDIAN = 10
TIMES_LARGEST = 2
YEAR_S = 365 * 86_400


@rule(version=1, window_s=YEAR_S, key=lambda e: e.customer)
def unusual_amount(e: Placed, window: Window[Placed]) -> Hit | None:
    before = [one.total for one in window[:-1] if one.currency == e.currency]
    if len(before) < ORDERS_MIN:
        return None
    usual, largest = median(before), max(before)
    if e.total <= TIMES_MEDIAN * usual or e.total <= TIMES_LARGEST * largest:
        return None
    times = e.total / max(usual, 1)
    return Hit(
        subject=e.customer,
        score=min(100, 40 + round(times)),
        why=f"an order of {e.total} {e.currency}, {times:.0f} times the median of the {len(before)} orders of the year before "
        f"({usual:.0f}), of which the largest was of {largest}",
    )
