"""Accounts: who may sign in, by what, with which role; the keys that tokens are signed with (`keyring`),
and the programs that people let act for them (`client`).

An account's id is the person's id everywhere: the `sub` of tokens, the owner of carts and orders, the subject of sealed data.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from aggregates.auth.client import Client, ClientDisabled, ClientRegistered, ClientSecretChanged, Grant
from aggregates.auth.events import (
    AddressVerified,
    Closed,
    CodeReplayed,
    ExternalLinked,
    ExternalUnlinked,
    Locked,
    Mailed,
    PasswordChanged,
    RecoveryCodesRenewed,
    RecoveryCodeUsed,
    RefreshReused,
    Registered,
    RegistrationRepeated,
    ResetRequested,
    RoleGiven,
    SecondFactorDisabled,
    SecondFactorEnabled,
    SignedIn,
    SignedOut,
    SignedOutEverywhere,
    VerificationRequested,
)
from aggregates.auth.keyring import KEYRING, KeyRetired, Keyring, KeyringOpened, KeyRotated
from aggregates.auth.parts import (
    MAILS_MAX,
    RESET_WITHIN,
    SESSION_KEPT,
    SESSIONS_MAX,
    VERIFY_WITHIN,
    Asked,
    Letter,
    Method,
    Pending,
    Role,
    Session,
)
from aggregates.kernel import Aggregate, Sealed, event, require

__all__ = [
    "Account", "AddressVerified", "Client", "ClientDisabled", "ClientRegistered", "ClientSecretChanged", "Closed",
    "CodeReplayed", "ExternalLinked", "ExternalUnlinked", "Grant", "KEYRING", "KeyRetired", "KeyRotated", "Keyring",
    "KeyringOpened", "Letter", "Locked", "MAILS_MAX", "Mailed", "Method", "PasswordChanged",
    "Pending", "RESET_WITHIN", "RecoveryCodeUsed", "RecoveryCodesRenewed", "RefreshReused", "Registered",
    "RegistrationRepeated", "ResetRequested", "Role", "RoleGiven", "SESSIONS_MAX", "SESSION_KEPT",
    "SecondFactorDisabled", "SecondFactorEnabled", "Session", "SignedIn", "SignedOut", "SignedOutEverywhere",
    "VERIFY_WITHIN", "VerificationRequested",
]  # fmt: skip


class Account(Aggregate):
    """`credential` names the password in force, None before the address is verified."""

    @event(Registered)
    def __init__(self, email: Sealed, digest: str, role: Role) -> None:
        self.email, self.digest, self.role = email, digest, role
        self.verified = False
        self.credential: UUID | None = None
        self.pending: dict[UUID, Pending] = {}
        self.sessions: dict[UUID, Session] = {}
        self.mails: dict[UUID, Asked] = {}
        self.mailed: set[UUID] = set()
        self.answered_at: datetime | None = None
        self.locked_until: datetime | None = None
        self.factor: UUID | None = None
        self.recovery: UUID | None = None
        self.closed = False
        self.externals: dict[str, str] = {}

    @classmethod
    def register(cls, email: Sealed, digest: str, intent: UUID, credential: UUID, now: datetime) -> Account:
        """A new account, a customer's. The password counts once the mail is answered, by somebody who knows it."""
        account = cls(email=email, digest=digest, role="customer")
        account.register_again(intent, credential, now)
        return account

    @classmethod
    def join_external(cls, email: Sealed, digest: str, intent: UUID, provider: str, subject: str) -> Account:
        """A new account for whom a provider vouches: without a password, until one is chosen by mail."""
        account = cls(email=email, digest=digest, role="customer")
        account.vouched(intent, provider, subject)
        return account

    def vouched(self, intent: UUID, provider: str, subject: str) -> None:
        """A provider says whose the address is: as good as an answered mail. Nobody who knew the address before gets in by it."""
        require(not self.verified, "this address has an account: sign in with its password, and link the two")
        require(not self.closed, "the account is closed")
        self.trigger_event(AddressVerified, intent=intent)
        self.trigger_event(ExternalLinked, provider=provider, subject=subject)

    def register_again(self, intent: UUID, credential: UUID, now: datetime) -> None:
        """Somebody registers with this address. Its owner decides, by answering a mail or not; nobody else learns of it."""
        if self.closed:
            return
        if self.verified:
            if self._may_mail("notice", intent, now):
                self.trigger_event(RegistrationRepeated, intent=intent)
        elif self._may_mail("verification", intent, now):
            expires_at = now + VERIFY_WITHIN
            self.trigger_event(VerificationRequested, intent=intent, credential=credential, expires_at=expires_at)

    def verify(self, intent: UUID, credential: UUID, now: datetime) -> None:
        """The mail was answered by somebody who knows the password that was chosen with it."""
        if self.credential == credential:
            return  # asked again
        waiting = self._waiting(intent, now)
        require(waiting.credential == credential, "this password was not chosen with that mail")
        self.trigger_event(AddressVerified, intent=intent)
        self.trigger_event(PasswordChanged, credential=credential, cause="verified")

    def ask_reset(self, intent: UUID, now: datetime, device: bool = False) -> None:
        """Somebody has forgotten the password, or says so. `device`: on a device that has signed in before.

        Of an address that is not verified yet as well: its owner may not get the mail of a registration, when others have registered
        it too often.
        """
        if not self.closed and self._may_mail("device_reset" if device else "reset", intent, now):
            self.trigger_event(ResetRequested, intent=intent, expires_at=now + RESET_WITHIN, device=device)

    def reset(self, intent: UUID, credential: UUID, now: datetime) -> None:
        """The mail of a reset was answered: the new password counts, the address is verified, and every session is over."""
        if self.credential == credential:
            return
        require(self._waiting(intent, now).credential is None, "this mail is not one of a reset")
        if not self.verified:
            self.trigger_event(AddressVerified, intent=intent)
        self.trigger_event(PasswordChanged, credential=credential, cause="reset")
        self._everywhere("password")

    def change_password(self, old: UUID, new: UUID) -> None:
        """`old` is what was checked: it must be in force still. Every session is over."""
        if self.credential == new:
            return
        require(self.credential == old, "the password was changed meanwhile")
        self.trigger_event(PasswordChanged, credential=new, cause="changed")
        self._everywhere("password")

    def sign_in(
        self,
        session: UUID,
        method: Method,
        now: datetime,
        credential: UUID | None = None,
        client: UUID | None = None,
        scope: str | None = None,
    ) -> None:
        """Begin a session. `credential`: the password that was checked, which must be in force still."""
        if session in self.sessions:
            return
        require(self.verified, "the address is not verified yet")
        require(credential is None or self.credential == credential, "the password was changed meanwhile")
        require(self.factor is None or method != "password", "a second factor is needed")
        alive = [id for id in self.sessions if self.alive(id, now)]
        for oldest in alive[: len(alive) + 1 - SESSIONS_MAX]:
            self.trigger_event(SignedOut, session=oldest)
        expires_at = now + SESSION_KEPT
        self.trigger_event(SignedIn, session=session, method=method, client=client, scope=scope, expires_at=expires_at)

    def alive(self, session: UUID, now: datetime) -> Session | None:
        """The session, if its refresh tokens are good."""
        found = self.sessions.get(session)
        return found if found is not None and now < found.expires_at else None

    def sign_out(self, session: UUID) -> None:
        if session in self.sessions:
            self.trigger_event(SignedOut, session=session)

    def sign_out_everywhere(self) -> None:
        self._everywhere("asked")

    def reused(self, session: UUID) -> None:
        """A refresh token of that session came that had been replaced."""
        if session in self.sessions:
            self.trigger_event(RefreshReused, session=session)

    def enable_second_factor(self, factor: UUID, recovery: UUID) -> None:
        """A code of the factor was shown: it works. Sessions that began without it go on."""
        if self.factor == factor:
            return
        require(self.verified, "the address is not verified yet")
        require(self.factor is None, "there is a second factor: disable it first")
        self.trigger_event(SecondFactorEnabled, factor=factor, recovery=recovery)

    def disable_second_factor(self) -> None:
        if self.factor is not None:
            self.trigger_event(SecondFactorDisabled)

    def renew_recovery_codes(self, recovery: UUID) -> None:
        require(self.factor is not None, "there is no second factor")
        if self.recovery != recovery:
            self.trigger_event(RecoveryCodesRenewed, recovery=recovery)

    def recovery_code_used(self, recovery: UUID) -> None:
        """One of the batch's codes is spent."""
        require(self.recovery == recovery, "these recovery codes were replaced")
        self.trigger_event(RecoveryCodeUsed, recovery=recovery)

    def replayed(self, session: UUID) -> None:
        """The code that this session began with came a second time."""
        if session in self.sessions:
            self.trigger_event(CodeReplayed, session=session)

    def lock(self, until: datetime, now: datetime) -> None:
        """Note that guessing is under way. One event a lock."""
        if self.locked_until is None or self.locked_until <= now:
            self.trigger_event(Locked, until=until)

    def give_role(self, role: Role) -> None:
        """Sessions end, so that no token of the old role is made any more."""
        if role != self.role:
            self.trigger_event(RoleGiven, role=role)
            self._everywhere("role")

    def link(self, provider: str, subject: str) -> None:
        """Let a provider's account sign in here. `subject`: the digest of who it is there."""
        if self.externals.get(provider) == subject:
            return
        require(self.verified, "the address is not verified yet")
        require(provider not in self.externals, "another account of theirs is linked: unlink it first")
        self.trigger_event(ExternalLinked, provider=provider, subject=subject)

    def unlink(self, provider: str) -> None:
        if provider in self.externals:
            require(self.credential is not None or len(self.externals) > 1, "choose a password first, by mail")
            self.trigger_event(ExternalUnlinked, provider=provider, subject=self.externals[provider])

    def close(self) -> None:
        """Nobody signs in here any more, and its address is free."""
        if not self.closed:
            for provider, subject in list(self.externals.items()):
                self.trigger_event(ExternalUnlinked, provider=provider, subject=subject)
            self.trigger_event(Closed, digest=self.digest)

    def mail_taken(self, intent: UUID) -> None:
        if intent in self.mails and intent not in self.mailed:
            self.trigger_event(Mailed, intent=intent)

    def _waiting(self, intent: UUID, now: datetime) -> Pending:
        found = self.pending.get(intent)
        require(
            found is not None and now < found.expires_at,
            "this mail was answered already, or is too old: ask for another",
        )
        assert found is not None
        return found

    def _may_mail(self, letter: Letter, intent: UUID, now: datetime) -> bool:
        many, within = MAILS_MAX[letter]
        since = now - within if self.answered_at is None else max(now - within, self.answered_at)
        recent = sum(asked.letter == letter and asked.at > since for asked in self.mails.values())
        return intent not in self.mails and recent < many

    def mail(self, intent: UUID, letter: Letter, at: datetime) -> None:
        """For `apply`: a mail is to go out; the newest of each kind are remembered."""
        mails = {**self.mails, intent: Asked(letter, at)}
        kept = [id for id, asked in mails.items() if asked.letter == letter][-MAILS_MAX[letter][0] :]
        self.mails = {id: asked for id, asked in mails.items() if asked.letter != letter or id in kept}
        self.mailed &= self.mails.keys()

    def wait(self, intent: UUID, pending: Pending) -> None:
        """For `apply`: an answer is expected. None is dropped that is good still: its kind would be at its limit."""
        self.pending = {id: one for id, one in self.pending.items() if id in self.mails} | {intent: pending}

    def answered(self, at: datetime) -> None:
        """For `apply`: the owner was here. Nothing is expected any more, and mails are counted anew."""
        self.pending, self.answered_at = {}, at

    def _everywhere(self, cause: str) -> None:
        if self.sessions:
            self.trigger_event(SignedOutEverywhere, cause=cause)

    def check(self) -> None:
        assert len(self.sessions) <= SESSIONS_MAX and self.pending.keys() <= self.mails.keys()
        assert self.verified or not self.sessions
        assert self.verified == (self.credential is not None or bool(self.externals))
        assert (self.factor is None) == (self.recovery is None)
