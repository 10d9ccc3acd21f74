"""One account, or several to one address, order faster than people do: a stolen card is emptied before it is blocked."""

from __future__ import annotations

from aggregates.order import Placed
from streams.kernel.rules import Hit, Secret, Window, rule

# In a year of the real shop no account of 727 placed more than 4 orders within an hour, and the busiest 8 in a day.
BY_ACCOUNT_MAX = 5
# The data has no addresses. An office shares one: several may order at lunch, each of them once or twice.
TO_ADDRESS_MAX = 8


@rule(version=1, window_s=3600, key=lambda e: e.customer)
def order_velocity(e: Placed, window: Window[Placed]) -> Hit | None:
    if len(window) <= BY_ACCOUNT_MAX:
        return None
    return Hit(
        subject=e.customer,
        score=min(100, 8 * len(window)),
        why=f"{len(window)} orders of one account within an hour, over {worth(window)}",
    )


@rule(version=1, window_s=3600, key=lambda e: Secret((e.address.postcode, e.address.street, e.address.country)))
def address_velocity(e: Placed, window: Window[Placed]) -> Hit | None:
    if len(window) <= TO_ADDRESS_MAX:
        return None
    accounts = len(window.distinct(lambda one: one.customer))
    return Hit(
        subject=e.customer,
        score=min(100, 5 * len(window) + 5 * accounts),
        why=f"{len(window)} orders of {accounts} accounts to one address within an hour, over {worth(window)}",
    )


def worth(window: Window[Placed]) -> str:
    """The totals by currency, in minor units."""
    sums = {code: window.where(lambda one: one.currency == code).sum(lambda one: one.total)  # noqa: B023
            for code in sorted({one.currency for one in window})}  # fmt: skip
    return " + ".join(f"{amount} {code}" for code, amount in sums.items())
