"""What accounts are made of: roles, sessions, and the limits of both."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple
from uuid import UUID

Role = Literal["customer", "seller", "admin", "analyst", "service"]
Method = Literal["password", "password_and_code", "password_and_recovery_code", "external"]
Letter = Literal["verification", "notice", "reset", "device_reset"]
"""What a mail is for. `notice`: an address that has an account was registered again; `device_reset`: a known device asked for it."""

SESSIONS_MAX = 20
"""Of one account at a time: the oldest ends when one more begins."""
SESSION_KEPT = timedelta(days=30)
VERIFY_WITHIN = timedelta(hours=24)
RESET_WITHIN = timedelta(hours=1)
MAILS_MAX: dict[Letter, tuple[int, timedelta]] = {
    "verification": (5, VERIFY_WITHIN),
    "notice": (3, timedelta(days=1)),
    "reset": (5, RESET_WITHIN),
    "device_reset": (3, RESET_WITHIN),
}
"""So many mails of each kind go to one address in that time, whoever asks for them: nobody's mailbox is flooded.

Nor can anybody be kept out by using them up, from however many networks. A kind takes nothing from another one. Where `reset` is at its
limit, a mail lies in the owner's mailbox that can be answered still, for these two times are the same and it does not matter who asked;
once one is answered, the count begins anew. Where `verification` is, the mails that came say that a reset is asked for as well."""


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in that is kept alive by refresh tokens. `client`: the OAuth client that it is for, None for our own.
    `scope`: what its tokens may do, separated by spaces; None for all that the role may."""

    method: Method
    client: UUID | None
    scope: str | None
    began_at: datetime
    expires_at: datetime


class Asked(NamedTuple):
    """A mail that was asked for."""

    letter: Letter
    at: datetime


@dataclass(frozen=True, slots=True)
class Pending:
    """A mail to be answered; `credential`: the password that its answer brings into force, None for a reset."""

    credential: UUID | None
    expires_at: datetime
