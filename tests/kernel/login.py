"""A second toy domain for rules: somebody logs in to an account, or fails to."""

from __future__ import annotations

from uuid import UUID

import schemas
from aggregates.kernel import Event

DOMAIN = "login"
UUID_ = {"type": "string", "logicalType": "uuid"}
FIELDS = [{"name": "account", "type": UUID_}, {"name": "amount", "type": "long", "doc": "of wrong passwords before"}]

schemas.define(DOMAIN, [{"type": "record", "name": "LoggedIn", "namespace": "titan.login", "fields": FIELDS}])


class LoggedIn(Event):
    account: UUID
    amount: int
