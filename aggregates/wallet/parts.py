"""What wallets are made of: the accounts of their ledger, and money held for an order."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

AVAILABLE = "available"
PEERS = "other wallets"  # outside of this one: over all wallets of a currency this account sums to zero

Source = Literal["topup", "credit", "refund"]
Ending = Literal["released", "captured", "spent", "expired"]


def escrowed(escrow: UUID) -> str:
    """The account of money that is held for an order."""
    return f"in escrow {escrow}"


def leaving(withdrawal: UUID) -> str:
    """The account of money on its way out."""
    return f"in withdrawal {withdrawal}"


@dataclass
class Escrow:
    """`amount` was held; `captured` by payee's wallet, less what was refunded; `frozen`: while a dispute lasts.

    Without `expires_at` it stays until it is settled: whoever holds so must not forget it. A saga does not.
    """

    amount: int
    expires_at: datetime | None
    captured: dict[UUID, int] = field(default_factory=dict)
    frozen: bool = False
    ending: Ending | None = None
    ended_at: datetime | None = None
