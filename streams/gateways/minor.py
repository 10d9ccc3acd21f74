"""Minor units as the vendors count them, where they differ from ISO 4217's, which are ours.

Stripe (docs.stripe.com/currencies): ISK and UGX have no decimals and are written with two, which must be zeros; MGA has none, though
ISO 4217 has two; amounts with three decimals end in a zero. Adyen (docs.adyen.com/development-resources/currency-codes): CLP and
ISK have two decimals, CVE and IDR none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aggregates.kernel import Money
from aggregates.kernel.currency import digits


@dataclass(frozen=True)
class MinorUnits:
    """`decimals`: a vendor's, by currency, where they are others than ours. `step`: the vendor's amounts are multiples of it."""

    decimals: Mapping[str, int]
    step: Mapping[str, int]

    def theirs(self, amount: Money) -> int:
        """Our amount in the vendor's units. Raises `ValueError` for one that the vendor can't take; `str` is a sentence."""
        more, fewer = self._factors(amount.currency)
        value, rest = divmod(amount.amount * more, fewer)
        if rest or value % self.step.get(amount.currency, 1):
            raise ValueError(f"{amount.amount} {amount.currency} is finer than the gateway's amounts")
        return value

    def ours(self, value: int, currency: str) -> Money:
        """The vendor's amount in our units. Raises `ValueError` for one that we can't write."""
        more, fewer = self._factors(currency)
        amount, rest = divmod(value * fewer, more)
        if rest:
            raise ValueError(f"{value} of the gateway's {currency} is finer than ours")
        return Money(amount, currency)

    def nearest(self, value: int, currency: str) -> int:
        """A vendor's fee in our units, rounded half up: it may be finer than they are."""
        more, fewer = self._factors(currency)
        return (2 * value * fewer + more) // (2 * more)

    def _factors(self, currency: str) -> tuple[int, int]:
        """What ours is multiplied by, and then divided by."""
        ours = digits(currency)
        theirs = self.decimals.get(currency, ours)
        return int(10 ** max(theirs - ours, 0)), int(10 ** max(ours - theirs, 0))


STRIPE = MinorUnits(
    {"ISK": 2, "UGX": 2, "MGA": 0},
    dict.fromkeys(["BHD", "JOD", "KWD", "OMR", "TND"], 10),
)
ADYEN = MinorUnits({"CLP": 2, "CVE": 0, "IDR": 0, "ISK": 2}, {})
