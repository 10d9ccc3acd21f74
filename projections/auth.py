"""Accounts as their owners and administrators see them, their sessions, and the keys that tokens are signed with."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from aggregates.auth import (
    AddressVerified,
    ClientDisabled,
    ClientRegistered,
    ClientSecretChanged,
    Closed,
    CodeReplayed,
    ExternalLinked,
    ExternalUnlinked,
    Grant,
    KeyRetired,
    KeyringOpened,
    KeyRotated,
    Locked,
    Mailed,
    Method,
    PasswordChanged,
    RecoveryCodesRenewed,
    RecoveryCodeUsed,
    RefreshReused,
    Registered,
    RegistrationRepeated,
    ResetRequested,
    Role,
    RoleGiven,
    SecondFactorDisabled,
    SecondFactorEnabled,
    SignedIn,
    SignedOut,
    SignedOutEverywhere,
    VerificationRequested,
)
from aggregates.kernel import Event
from projections.kernel import Change, Table, project
from schemas import Sealed

accounts = Table(
    "accounts",
    key="id",
    id=UUID,
    email=Sealed,
    role=Role,
    verified=bool,
    second_factor=bool,
    signed_in_at=datetime | None,  # last
    signed_out_at=datetime,  # sessions that began before are over
    locked_until=datetime | None,  # for devices that have never signed in
    registered_at=datetime,
    closed_at=datetime | None,
    changed_at=datetime,
    version=int,
    person="id",
    indexes=[("registered_at",)],
)
sessions = Table(
    "sessions",
    key="session",
    session=UUID,
    account=UUID,
    method=Method,
    client=UUID | None,
    scope=str | None,
    began_at=datetime,
    expires_at=datetime,
    ended_at=datetime | None,
    person="account",
    indexes=[("account", "began_at")],
)
clients = Table(
    "clients",
    key="id",
    id=UUID,
    owner=UUID,
    name=str,
    redirect_uris=list[str],
    grants=list[Grant],
    scopes=list[str],
    role=Role | None,
    confidential=bool,
    disabled=bool,
    registered_at=datetime,
    version=int,
    person="owner",
    indexes=[("registered_at",)],
)
signing_keys = Table("signing_keys", key="kid", kid=UUID, active_from=datetime, retired_at=datetime | None)


@project
def registered(e: Registered) -> list[Change]:
    return _now(e, email=e.email, role=e.role, registered_at=e.at, signed_out_at=e.at)


@project
def mail_asked_for(e: VerificationRequested | RegistrationRepeated | ResetRequested | Mailed) -> list[Change]:
    return _now(e)


@project
def address_verified(e: AddressVerified) -> list[Change]:
    return _now(e, verified=True)


@project
def password_changed(e: PasswordChanged) -> list[Change]:
    return _now(e)


@project
def signed_in(e: SignedIn) -> list[Change]:
    begun = sessions.put(
        e.session,
        account=e.id,
        method=e.method,
        client=e.client,
        scope=e.scope,
        began_at=e.at,
        expires_at=e.expires_at,
    )
    return [begun, *_now(e, signed_in_at=e.at)]


@project
def session_over(e: SignedOut | RefreshReused | CodeReplayed) -> list[Change]:
    return [sessions.put(e.session, ended_at=e.at), *_now(e)]


@project
def signed_out_everywhere(e: SignedOutEverywhere) -> list[Change]:
    return _now(e, signed_out_at=e.at)


@project
def second_factor_enabled(e: SecondFactorEnabled) -> list[Change]:
    return _now(e, second_factor=True)


@project
def second_factor_disabled(e: SecondFactorDisabled) -> list[Change]:
    return _now(e, second_factor=False)


@project
def recovery_codes(e: RecoveryCodesRenewed | RecoveryCodeUsed) -> list[Change]:
    return _now(e)


@project
def locked(e: Locked) -> list[Change]:
    return _now(e, locked_until=e.until)


@project
def role_given(e: RoleGiven) -> list[Change]:
    return _now(e, role=e.role)


@project
def external_linked(e: ExternalLinked | ExternalUnlinked) -> list[Change]:
    return _now(e)


@project
def closed(e: Closed) -> list[Change]:
    return _now(e, email="", verified=False, second_factor=False, signed_out_at=e.at, closed_at=e.at)


@project
def client_registered(e: ClientRegistered) -> list[Change]:
    return [
        clients.put(
            e.id,
            owner=e.owner,
            name=e.name,
            redirect_uris=list(e.redirect_uris),
            grants=list(e.grants),
            scopes=list(e.scopes),
            role=e.role,
            confidential=e.secret is not None,
            registered_at=e.at,
            version=e.version,
        )
    ]


@project
def client_secret_changed(e: ClientSecretChanged) -> list[Change]:
    return [clients.put(e.id, version=e.version)]


@project
def client_disabled(e: ClientDisabled) -> list[Change]:
    return [clients.put(e.id, disabled=True, version=e.version)]


@project
def key_added(e: KeyringOpened | KeyRotated) -> list[Change]:
    return [signing_keys.put(e.kid, active_from=e.active_from)]


@project
def key_retired(e: KeyRetired) -> list[Change]:
    return [signing_keys.put(e.kid, retired_at=e.at)]


def _now(e: Event, **columns: Any) -> list[Change]:
    return [accounts.put(e.id, changed_at=e.at, version=e.version, **columns)]
