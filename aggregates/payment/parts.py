"""What payments are made of: amounts that can be paid, tokens that stand for cards, captures and refunds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from aggregates.kernel import Money, require
from aggregates.kernel.currency import digits
from aggregates.kernel.money import AMOUNT_MAX

METHOD = re.compile(r"[A-Za-z]+_[A-Za-z0-9_-]{1,120}")
CARD_NUMBER = re.compile(r"\d(?:[_-]?\d){11,18}")


Authorisation = Literal["requested", "action_required", "authorised", "declined", "voided"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A capture or a refund, `amount` in minor units."""

    amount: int
    state: Literal["asked", "done", "failed"] = "asked"


def total(operations: Mapping[UUID, Operation], *states: str) -> int:
    """The sum of those in these states, minor units."""
    return sum(one.amount for one in operations.values() if one.state in states)


def payable(amount: Money) -> None:
    """Raises `Refused` or `Invalid` for what nobody can pay."""
    digits(amount.currency)
    require(0 < amount.amount <= AMOUNT_MAX, f"an amount is between 1 and {AMOUNT_MAX} minor units")


def is_token(text: str) -> bool:
    """Whether it is written like a gateway's token, `tok_visa`, and is not a card number with something before it."""
    return METHOD.fullmatch(text) is not None and not has_card_number(text)


def has_card_number(text: str) -> bool:
    """Whether 12 to 19 digits in it pass the check (Luhn) that every card number passes."""
    for found in CARD_NUMBER.findall(text):
        figures = [int(figure) for figure in found if figure.isdigit()][::-1]
        doubled = [sum(divmod(2 * figure, 10)) for figure in figures[1::2]]
        if (sum(figures[::2]) + sum(doubled)) % 10 == 0:
            return True
    return False
