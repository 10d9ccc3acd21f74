"""What can happen to an account. No event holds a secret: `credential`, `factor` and `session` only name rows that do."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from aggregates.auth.parts import Letter, Method, Pending, Role, Session
from aggregates.kernel import Created, Event, Free, Sealed, Take

if TYPE_CHECKING:
    from aggregates.auth import Account


class Registered(Created):
    email: Sealed
    digest: str  # keyed: only we can tell which address it is of
    role: Role

    def claims(self) -> Iterable[Take | Free]:
        return [Take("email", self.digest)]


class VerificationRequested(Event):
    """A mail is to go out; its answer, with the password, brings `credential` into force."""

    intent: UUID
    credential: UUID
    expires_at: datetime

    def apply(self, account: Account) -> None:
        account.mail(self.intent, "verification", self.at)
        account.wait(self.intent, Pending(self.credential, self.expires_at))


class RegistrationRepeated(Event):
    """Somebody registered with this account's address: its owner is told so by mail."""

    intent: UUID

    def apply(self, account: Account) -> None:
        account.mail(self.intent, "notice", self.at)


class AddressVerified(Event):
    intent: UUID

    def apply(self, account: Account) -> None:
        account.verified = True
        account.answered(self.at)


class ResetRequested(Event):
    """A mail is to go out; whoever answers it may choose a new password."""

    intent: UUID
    expires_at: datetime
    device: bool

    def apply(self, account: Account) -> None:
        letter: Letter = "device_reset" if self.device else "reset"
        account.mail(self.intent, letter, self.at)
        account.wait(self.intent, Pending(None, self.expires_at))


class Mailed(Event):
    """The mail server has taken the mail of an intent."""

    intent: UUID

    def apply(self, account: Account) -> None:
        account.mailed.add(self.intent)


class PasswordChanged(Event):
    credential: UUID
    cause: Literal["verified", "changed", "reset"]

    def apply(self, account: Account) -> None:
        account.credential = self.credential
        account.answered(self.at)


class SignedIn(Event):
    session: UUID
    method: Method
    client: UUID | None
    scope: str | None
    expires_at: datetime

    def apply(self, account: Account) -> None:
        alive = {id: one for id, one in account.sessions.items() if one.expires_at > self.at}
        alive[self.session] = Session(self.method, self.client, self.scope, self.at, self.expires_at)
        account.sessions = alive


class SignedOut(Event):
    session: UUID

    def apply(self, account: Account) -> None:
        account.sessions.pop(self.session, None)


class SignedOutEverywhere(Event):
    cause: Literal["asked", "password", "role"]

    def apply(self, account: Account) -> None:
        account.sessions = {}


class RefreshReused(Event):
    """A refresh token came that had been replaced: somebody else may have it, so its session is over."""

    session: UUID

    def apply(self, account: Account) -> None:
        account.sessions.pop(self.session, None)


class CodeReplayed(Event):
    """An authorisation code came a second time: the session that it began is over."""

    session: UUID

    def apply(self, account: Account) -> None:
        account.sessions.pop(self.session, None)


class SecondFactorEnabled(Event):
    """From now on a code is needed beside the password. `recovery` names the batch of codes for when the device is lost."""

    factor: UUID
    recovery: UUID

    def apply(self, account: Account) -> None:
        account.factor, account.recovery = self.factor, self.recovery


class SecondFactorDisabled(Event):
    def apply(self, account: Account) -> None:
        account.factor = account.recovery = None


class RecoveryCodesRenewed(Event):
    """The codes of the batch before are worth nothing."""

    recovery: UUID

    def apply(self, account: Account) -> None:
        account.recovery = self.recovery


class RecoveryCodeUsed(Event):
    """A device was lost, or its owner's papers were found."""

    recovery: UUID

    def apply(self, account: Account) -> None:
        """Which codes of a batch are left is kept with them."""


class Locked(Event):
    """Too many wrong passwords, or codes: until then only devices that have signed in before may try."""

    until: datetime

    def apply(self, account: Account) -> None:
        account.locked_until = self.until


class RoleGiven(Event):
    role: Role

    def apply(self, account: Account) -> None:
        account.role = self.role


class ExternalLinked(Event):
    """An account of a provider's signs in here. `subject`: keyed digest of who it is there."""

    provider: str
    subject: str

    def apply(self, account: Account) -> None:
        account.externals[self.provider] = self.subject

    def claims(self) -> Iterable[Take | Free]:
        return [Take("external", self.subject)]


class ExternalUnlinked(Event):
    provider: str
    subject: str

    def apply(self, account: Account) -> None:
        del account.externals[self.provider]

    def claims(self) -> Iterable[Take | Free]:
        return [Free("external", self.subject)]


class Closed(Event):
    """The account is no more; its address may have another one."""

    digest: str

    def apply(self, account: Account) -> None:
        account.closed, account.verified = True, False
        account.credential = account.factor = account.recovery = None
        account.pending, account.sessions = {}, {}

    def claims(self) -> Iterable[Take | Free]:
        return [Free("email", self.digest)]
