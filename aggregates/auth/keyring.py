"""Keyring: which keys our tokens are signed with, and from when. The keys themselves are elsewhere, sealed."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid5

from aggregates.kernel import Aggregate, Created, Event, event, require

KEYRING = uuid5(UUID(int=0), "titan keyring")
"""There is one."""
KEYS_MAX = 20
KEPT = timedelta(days=1)
"""A replaced key verifies for so long: longer than any token that it signed lives."""


class KeyringOpened(Created):
    kid: UUID
    active_from: datetime


class KeyRotated(Event):
    """From `active_from` on tokens are signed with this key."""

    kid: UUID
    active_from: datetime

    def apply(self, keyring: Keyring) -> None:
        keyring.keys[self.kid] = self.active_from


class KeyRetired(Event):
    """No token that it signed is alive any more, or none is to be."""

    kid: UUID

    def apply(self, keyring: Keyring) -> None:
        del keyring.keys[self.kid]
        keyring.retired = [*keyring.retired, self.kid][-KEYS_MAX:]


class Keyring(Aggregate):
    """`keys`: from when each is used, in the order in which they were added. `retired`: the last ones."""

    @event(KeyringOpened)
    def __init__(self, kid: UUID, active_from: datetime) -> None:
        self.keys: dict[UUID, datetime] = {kid: active_from}
        self.retired: list[UUID] = []

    def current(self, now: datetime) -> UUID:
        """The key to sign with."""
        started = [kid for kid, active_from in self.keys.items() if active_from <= now]
        return started[-1] if started else next(iter(self.keys))

    def rotate(self, kid: UUID, active_from: datetime, now: datetime, newest: UUID | None = None) -> None:
        """Add a key, and retire those replaced for long. `newest`: do nothing if another was added meanwhile."""
        if kid in self.keys or (newest is not None and next(reversed(self.keys)) != newest):
            return
        for old in self._replaced(now - KEPT):
            self.trigger_event(KeyRetired, kid=old)
        require(len(self.keys) < KEYS_MAX, f"there are {KEYS_MAX} keys already: the oldest is kept for a day more")
        self.trigger_event(KeyRotated, kid=kid, active_from=active_from)

    def revoke(self, kid: UUID, now: datetime) -> None:
        """What the key has signed is worth nothing from now on."""
        if kid in self.keys:
            self.may_revoke(kid, now)
            self.trigger_event(KeyRetired, kid=kid)

    def may_revoke(self, kid: UUID, now: datetime) -> None:
        """Raises `Refused` for the only key that could sign now."""
        require(
            any(one != kid and start <= now for one, start in self.keys.items()),
            "no other key can sign now: rotate, and wait until the new one does",
        )

    def _replaced(self, before: datetime) -> list[UUID]:
        """Keys whose successor was in use by then."""
        kids, starts = list(self.keys), list(self.keys.values())
        return [kid for kid, successor in zip(kids, starts[1:], strict=False) if successor <= before]

    def check(self) -> None:
        assert self.keys
