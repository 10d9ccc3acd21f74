"""What payments are made of: amounts that can be paid, captures and refunds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

State = Literal["asked", "done", "failed", "reversed"]
Authorisation = Literal["requested", "action_required", "authorised", "declined", "voided"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A capture or a refund, `amount` in minor units. `reversed`: it failed once it was accepted, whether or not we knew it done."""

    amount: int
    state: State = "asked"


def total(operations: Mapping[UUID, Operation], *states: str) -> int:
    """The sum of those in these states, minor units."""
    return sum(one.amount for one in operations.values() if one.state in states)
