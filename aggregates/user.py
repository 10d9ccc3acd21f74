"""User: a person's profile, addresses, preferences and consents. What is personal is sealed with the person's own key.

A user's id is the account's (`aggregates.auth`): the subject of all that is sealed. Destroying that key erases the person.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from aggregates.kernel import Aggregate, Created, Event, Invalid, Sealed, event, require

Purpose = Literal["shipping", "billing"]
Consent = Literal["marketing_email", "marketing_sms", "personalisation", "analytics", "third_parties"]
Status = Literal["active", "erasing", "erased"]

ADDRESSES_MAX = 20
PREFERENCES_MAX = 50
LABEL_CHARS_MAX, TEXT_CHARS_MAX = 60, 60
PREFERENCE = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True, slots=True)
class Place:
    """An address in its country's own format. Only `country` (ISO 3166-1 alpha-2) is readable."""

    recipient: Sealed
    company: Sealed | None
    street: Sealed
    district: Sealed | None
    city: Sealed | None
    region: Sealed | None
    postcode: Sealed | None
    country: str


# What can happen. `apply` only records: it never refuses, so old events always load.
class Joined(Created):
    """A person is known here."""


class Named(Event):
    name: Sealed

    def apply(self, user: User) -> None:
        user.name = self.name


class PhoneGiven(Event):
    phone: Sealed  # E.164
    country: str

    def apply(self, user: User) -> None:
        user.phone = self.phone


class PhoneRemoved(Event):
    def apply(self, user: User) -> None:
        user.phone = None


class AddressSaved(Event):
    """An address is there, or has changed."""

    address: UUID
    place: Place

    def apply(self, user: User) -> None:
        user.addresses[self.address] = self.place


class AddressRemoved(Event):
    address: UUID

    def apply(self, user: User) -> None:
        del user.addresses[self.address]
        user.defaults = {purpose: one for purpose, one in user.defaults.items() if one != self.address}


class DefaultChosen(Event):
    purpose: Purpose
    address: UUID

    def apply(self, user: User) -> None:
        user.defaults[self.purpose] = self.address


class PreferenceSet(Event):
    name: str
    value: Sealed

    def apply(self, user: User) -> None:
        user.preferences[self.name] = self.value


class PreferenceRemoved(Event):
    name: str

    def apply(self, user: User) -> None:
        del user.preferences[self.name]


class ConsentGiven(Event):
    """`text` is the version of what the person has read and agreed to."""

    consent: Consent
    text: str

    def apply(self, user: User) -> None:
        user.consents[self.consent] = self.text


class ConsentWithdrawn(Event):
    consent: Consent

    def apply(self, user: User) -> None:
        user.consents.pop(self.consent, None)


class ErasureRequested(Event):
    """All that is known of the person is to go: nothing is written any more, and the key will be destroyed."""

    def apply(self, user: User) -> None:
        user.status = "erasing"


class Erased(Event):
    """The key is destroyed: nobody can read what was sealed, here or in any copy."""

    def apply(self, user: User) -> None:
        user.status = "erased"
        user.name = user.phone = None
        user.addresses, user.defaults, user.preferences, user.consents = {}, {}, {}, {}


# What is allowed.
class User(Aggregate):
    """`defaults`: an address a purpose. `consents`: what is agreed to now, by the version of its text."""

    @event(Joined)
    def __init__(self) -> None:
        self.name: Sealed | None = None
        self.phone: Sealed | None = None
        self.addresses: dict[UUID, Place] = {}
        self.defaults: dict[Purpose, UUID] = {}
        self.preferences: dict[str, Sealed] = {}
        self.consents: dict[Consent, str] = {}
        self.status: Status = "active"

    def rename(self, name: Sealed) -> None:
        self._active()
        self.trigger_event(Named, name=name)

    def give_phone(self, phone: Sealed, country: str) -> None:
        self._active()
        self.trigger_event(PhoneGiven, phone=phone, country=country)

    def remove_phone(self) -> None:
        self._active()
        if self.phone is not None:
            self.trigger_event(PhoneRemoved)

    def save_address(self, address: UUID, place: Place) -> None:
        """Add an address, or change it. The first one is the default of every purpose."""
        self._active()
        require(address in self.addresses or len(self.addresses) < ADDRESSES_MAX, f"{ADDRESSES_MAX} addresses at most")
        first = not self.addresses
        self.trigger_event(AddressSaved, address=address, place=place)
        for purpose in ("shipping", "billing") if first else ():
            self.trigger_event(DefaultChosen, purpose=purpose, address=address)

    def remove_address(self, address: UUID) -> None:
        self._active()
        if address in self.addresses:
            self.trigger_event(AddressRemoved, address=address)

    def choose_default(self, purpose: Purpose, address: UUID) -> None:
        self._active()
        require(address in self.addresses, "there is no such address")
        if self.defaults.get(purpose) != address:
            self.trigger_event(DefaultChosen, purpose=purpose, address=address)

    def set_preference(self, name: str, value: Sealed) -> None:
        self._active()
        if not PREFERENCE.fullmatch(name):
            raise Invalid("a preference is named by lower-case letters, digits and _, 40 at most")
        require(
            name in self.preferences or len(self.preferences) < PREFERENCES_MAX,
            f"{PREFERENCES_MAX} preferences at most",
        )
        self.trigger_event(PreferenceSet, name=name, value=value)

    def remove_preference(self, name: str) -> None:
        self._active()
        if name in self.preferences:
            self.trigger_event(PreferenceRemoved, name=name)

    def consent(self, to: Consent, text: str) -> None:
        """Agree to a version of a text. To another version is another consent."""
        self._active()
        require(0 < len(text) <= TEXT_CHARS_MAX, "a consent names the version of the text that was read")
        if self.consents.get(to) != text:
            self.trigger_event(ConsentGiven, consent=to, text=text)

    def withdraw(self, consent: Consent) -> None:
        self._active()
        if consent in self.consents:
            self.trigger_event(ConsentWithdrawn, consent=consent)

    def ask_erasure(self) -> None:
        """Everything goes. It cannot be taken back."""
        if self.status == "active":
            self.trigger_event(ErasureRequested)

    def erased(self) -> None:
        """The key is destroyed."""
        if self.status == "erased":
            return
        require(self.status == "erasing", "nobody has asked for it")
        self.trigger_event(Erased)

    def _active(self) -> None:
        require(
            self.status == "active",
            "this person is being erased" if self.status == "erasing" else "this person was erased",
        )

    def check(self) -> None:
        assert len(self.addresses) <= ADDRESSES_MAX and len(self.preferences) <= PREFERENCES_MAX
        assert set(self.defaults.values()) <= self.addresses.keys()


def sealed_in(place: Place) -> Iterable[Sealed]:
    """The sealed texts of an address."""
    found = (place.recipient, place.company, place.street, place.district, place.city, place.region, place.postcode)
    return [one for one in found if one is not None]
