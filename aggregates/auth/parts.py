"""What accounts are made of: roles, sessions, and the limits of both."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

Role = Literal["customer", "seller", "admin", "analyst", "service"]
Method = Literal["password", "password_and_code", "password_and_recovery_code", "external"]

SESSIONS_MAX = 20
"""Of one account at a time: the oldest ends when one more begins."""
PENDING_MAX = 5
"""Registrations of one address that wait for their mail to be answered."""
SESSION_KEPT = timedelta(days=30)
VERIFY_WITHIN = timedelta(hours=24)
RESET_WITHIN = timedelta(hours=1)
MAILS_MAX, MAILS_WITHIN = 5, timedelta(hours=1)
"""So many mails go to one address in that time, whoever asks for them: nobody's mailbox is flooded."""


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in that is kept alive by refresh tokens. `client`: the OAuth client that it is for, None for our own.
    `scope`: what its tokens may do, separated by spaces; None for all that the role may."""

    method: Method
    client: UUID | None
    scope: str | None
    began_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Pending:
    """A mail to be answered; `credential`: the password that its answer brings into force, None for a reset."""

    credential: UUID | None
    expires_at: datetime
