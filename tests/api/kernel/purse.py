"""A toy domain of the API kernel's tests: a purse with a balance, a name that is personal data, and a limit."""

from __future__ import annotations

from uuid import UUID

import schemas
from aggregates.kernel import Aggregate, Created, Event, Sealed, event, require

DOMAIN = "purse"
UUID_TEXT = {"type": "string", "logicalType": "uuid"}


def _record(name: str, /, **fields: object) -> dict[str, object]:
    made = [{"name": n, "type": t, **({"pii": True} if n == "holder" else {})} for n, t in fields.items()]
    return {"type": "record", "name": name, "namespace": "titan.purse", "fields": made}


schemas.define(
    DOMAIN,
    [
        _record("Opened", owner=UUID_TEXT, currency="string", holder="string"),
        _record("Filled", amount="long"),
        _record("Spent", amount="long"),
    ],
)


class Opened(Created):
    owner: UUID
    currency: str
    holder: Sealed


class Filled(Event):
    amount: int

    def apply(self, purse: Purse) -> None:
        purse.balance += self.amount


class Spent(Event):
    amount: int

    def apply(self, purse: Purse) -> None:
        purse.balance -= self.amount


class Purse(Aggregate):
    @event(Opened)
    def __init__(self, owner: UUID, currency: str, holder: Sealed) -> None:
        self.owner, self.currency, self.holder, self.balance = owner, currency, holder, 0

    def fill(self, amount: int) -> None:
        self.trigger_event(Filled, amount=amount)

    def spend(self, amount: int) -> None:
        require(amount <= self.balance, f"{amount} is more than the balance of {self.balance}")
        self.trigger_event(Spent, amount=amount)
