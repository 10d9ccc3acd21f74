"""A list of stolen cards is tried out: one account makes many small payments, or many that are declined, within minutes."""

from __future__ import annotations

from aggregates.payment import Declined, Requested
from streams.kernel.rules import Hit, Window, rule

# Of the real shop's 1,150 orders 50 come to at most 3.00, and no account ever placed more than 4 in ten minutes, of any size.
SMALL_MINOR_UNITS = 300
TRIES_MAX = 5


@rule(version=1, window_s=600, key=lambda e: e.customer)
def card_testing(e: Requested | Declined, window: Window[Requested | Declined]) -> Hit | None:
    if not is_try(e):
        return None
    tries = window.where(is_try)
    payments = tries.distinct(lambda one: one.id)
    if len(payments) <= TRIES_MAX or e.customer is None:
        return None
    cards = len(window.of(Requested).distinct(lambda one: one.method))
    declined = len(window.of(Declined))
    return Hit(
        subject=e.customer,
        score=min(100, 10 * len(payments)),
        why=f"{len(payments)} payments within 10 minutes of at most {SMALL_MINOR_UNITS} minor units or declined ({declined}), "
        f"with {cards} different cards",
    )


def is_try(e: Requested | Declined) -> bool:
    return isinstance(e, Declined) or e.amount.amount <= SMALL_MINOR_UNITS
