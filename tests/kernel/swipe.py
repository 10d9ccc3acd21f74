"""A toy domain for rules: cards are swiped at tills, each swipe with an account and an amount."""

from __future__ import annotations

from uuid import UUID

import schemas
from aggregates.kernel import Event

DOMAIN = "swipe"
UUID_ = {"type": "string", "logicalType": "uuid"}
FIELDS = [{"name": "account", "type": UUID_}, {"name": "amount", "type": "long"}]

schemas.define(DOMAIN, [{"type": "record", "name": "Swiped", "namespace": "titan.swipe", "fields": FIELDS}])


class Swiped(Event):
    account: UUID
    amount: int
