"""Ledger: double entry in one unit, be it cents of a currency, coins or pieces of a SKU.

Every movement names the account that it leaves and the one that it enters, the outside world included, so all accounts sum
to zero by construction: nothing is made and nothing is lost, it is only elsewhere. What came from outside stands there as a
negative amount; one's own accounts never go below zero.
`may_move` decides for an aggregate's commands; `move` records, in its events' `apply`, and never refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aggregates.kernel.errors import require

OUTSIDE = "outside"
ACCOUNT_MAX = 10**15  # units in an account of one's own: below JSON's exact 2**53


@dataclass
class Ledger:
    """`balances` by account, those at zero left out; `outside` are the accounts that may be below zero."""

    unit: str
    outside: tuple[str, ...] = (OUTSIDE,)
    balances: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, account: str) -> int:
        """What is in an account; 0 for one that nothing was ever moved to."""
        return self.balances.get(account, 0)

    def may_move(self, amount: int, source: str, target: str) -> None:
        """Raises `Refused` for what is not there to be moved, or has no room where it goes."""
        assert source != target, source
        require(amount > 0, f"at least 1 is moved, not {amount}")
        require(source in self.outside or amount <= self[source], f"{amount} is more than the {self[source]} {source}")
        room = ACCOUNT_MAX - self[target]
        require(
            target in self.outside or amount <= room, f"{amount} is more than the {room} that still fit in {target}"
        )

    def move(self, amount: int, source: str, target: str) -> None:
        """Record a movement."""
        for account, by in ((source, -amount), (target, amount)):
            self.balances[account] = self[account] + by
            if not self.balances[account]:
                del self.balances[account]

    def check(self) -> None:
        """Assert that all accounts sum to zero, and that none of one's own is below it."""
        assert sum(self.balances.values()) == 0, self.balances
        assert all(amount > 0 for account, amount in self.balances.items() if account not in self.outside), (
            self.balances
        )
