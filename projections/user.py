"""People as they see themselves: profile, addresses, preferences, and what they have agreed to, with its history."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.kernel import Event
from aggregates.user import (
    AddressRemoved,
    AddressSaved,
    Consent,
    ConsentGiven,
    ConsentWithdrawn,
    DefaultChosen,
    Erased,
    ErasureRequested,
    Joined,
    Named,
    PhoneGiven,
    PhoneRemoved,
    Place,
    PreferenceRemoved,
    PreferenceSet,
    Status,
)
from projections.kernel import Change, Table, project
from schemas import Sealed

users = Table(
    "users",
    key="id",
    id=UUID,
    name=Sealed | None,
    phone=Sealed | None,
    phone_country=str | None,
    shipping=UUID | None,  # the default address of each purpose; one that was removed since is none
    billing=UUID | None,
    status=Status,
    joined_at=datetime,
    changed_at=datetime,
    version=int,
    person="id",
    indexes=[("joined_at",)],
)
user_addresses = Table(
    "user_addresses", key=("user", "address"), user=UUID, address=UUID, place=Place, changed_at=datetime, person="user"
)
user_preferences = Table(
    "user_preferences", key=("user", "name"), user=UUID, name=str, value=Sealed, changed_at=datetime, person="user"
)
user_consents = Table(
    "user_consents",
    key=("user", "version"),
    user=UUID,
    version=int,
    consent=Consent,
    what=Literal["given", "withdrawn"],
    text=str | None,  # the version of the text that was agreed to
    at=datetime,
    person="user",
)


@project
def joined(e: Joined) -> list[Change]:
    return _now(e, status="active", joined_at=e.at)


@project
def named(e: Named) -> list[Change]:
    return _now(e, name=e.name)


@project
def phone_given(e: PhoneGiven) -> list[Change]:
    return _now(e, phone=e.phone, phone_country=e.country)


@project
def phone_removed(e: PhoneRemoved) -> list[Change]:
    return _now(e, phone=None, phone_country=None)


@project
def address_saved(e: AddressSaved) -> list[Change]:
    return [user_addresses.put((e.id, e.address), place=e.place, changed_at=e.at), *_now(e)]


@project
def address_removed(e: AddressRemoved) -> list[Change]:
    return [user_addresses.drop((e.id, e.address)), *_now(e)]


@project
def default_chosen(e: DefaultChosen) -> list[Change]:
    return _now(e, **{e.purpose: e.address})


@project
def preference_set(e: PreferenceSet) -> list[Change]:
    return [user_preferences.put((e.id, e.name), value=e.value, changed_at=e.at), *_now(e)]


@project
def preference_removed(e: PreferenceRemoved) -> list[Change]:
    return [user_preferences.drop((e.id, e.name)), *_now(e)]


@project
def consent_given(e: ConsentGiven) -> list[Change]:
    return [
        user_consents.put((e.id, e.version), consent=e.consent, what="given", text=e.text, at=e.at),
        *_now(e),
    ]


@project
def consent_withdrawn(e: ConsentWithdrawn) -> list[Change]:
    return [user_consents.put((e.id, e.version), consent=e.consent, what="withdrawn", at=e.at), *_now(e)]


@project
def erasure_requested(e: ErasureRequested) -> list[Change]:
    return _now(e, status="erasing")


@project
def erased(e: Erased) -> list[Change]:
    return _now(e, status="erased", name=None, phone=None, phone_country=None, shipping=None, billing=None)


def _now(e: Event, **columns: Any) -> list[Change]:
    return [users.put(e.id, changed_at=e.at, version=e.version, **columns)]
