"""The rules of a person's profile."""

from __future__ import annotations

from uuid import UUID, uuid4

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import Sealed
from aggregates.user import (
    ADDRESSES_MAX,
    PREFERENCES_MAX,
    TEXT_CHARS_MAX,
    AddressRemoved,
    AddressSaved,
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
    User,
)
from tests.kernel import Fact, accepted, fact, given

ADA = uuid4()
TEXT = Sealed(f"sealed:1:{ADA}:QQ==")
PLACE = Place(TEXT, None, TEXT, None, TEXT, None, TEXT, "DE")
HOME, WORK = uuid4(), uuid4()
JOINED = fact(Joined)
FIRST = (
    fact(AddressSaved, address=HOME, place=PLACE),
    fact(DefaultChosen, purpose="shipping", address=HOME),
    fact(DefaultChosen, purpose="billing", address=HOME),
)


def saved(address: UUID = WORK) -> Fact:
    return fact(AddressSaved, address=address, place=PLACE)


def test_a_person_says_who_they_are() -> None:
    past = given(User, JOINED)
    past.when(User.rename, TEXT).then(fact(Named, name=TEXT))
    past.when(User.give_phone, TEXT, "DE").then(fact(PhoneGiven, phone=TEXT, country="DE"))
    past.when(User.remove_phone).nothing()
    with_phone = given(User, JOINED, fact(PhoneGiven, phone=TEXT, country="DE"))
    with_phone.when(User.remove_phone).then(fact(PhoneRemoved))


def test_the_first_address_is_the_default_of_everything() -> None:
    given(User, JOINED).when(User.save_address, HOME, PLACE).then(*FIRST)
    given(User, JOINED, *FIRST).when(User.save_address, WORK, PLACE).then(saved())
    given(User, JOINED, *FIRST).when(User.save_address, HOME, PLACE).then(saved(HOME))


def test_a_default_is_one_of_the_addresses() -> None:
    past = given(User, JOINED, *FIRST, saved())
    past.when(User.choose_default, "billing", WORK).then(fact(DefaultChosen, purpose="billing", address=WORK))
    past.when(User.choose_default, "billing", HOME).nothing()
    past.when(User.choose_default, "billing", uuid4()).refused("no such address")
    removed = given(User, JOINED, *FIRST, saved(), fact(AddressRemoved, address=HOME))
    assert removed.state.defaults == {}
    past.when(User.remove_address, HOME).then(fact(AddressRemoved, address=HOME))
    past.when(User.remove_address, uuid4()).nothing()


def test_addresses_have_a_limit() -> None:
    many = [saved(uuid4()) for _ in range(ADDRESSES_MAX - 1)]
    given(User, JOINED, *many).when(User.save_address, WORK, PLACE).then(saved())
    full = given(User, JOINED, *many, saved(HOME))
    full.when(User.save_address, WORK, PLACE).refused(f"{ADDRESSES_MAX} addresses at most")
    full.when(User.save_address, HOME, PLACE).then(saved(HOME))


def test_preferences_are_set_and_removed_up_to_a_limit() -> None:
    units = fact(PreferenceSet, name="units", value=TEXT)
    given(User, JOINED).when(User.set_preference, "units", TEXT).then(units)
    given(User, JOINED).when(User.set_preference, "Units", TEXT).refused("lower-case letters")
    given(User, JOINED).when(User.set_preference, "u" * 41, TEXT).refused("lower-case letters")
    given(User, JOINED).when(User.remove_preference, "units").nothing()
    given(User, JOINED, units).when(User.remove_preference, "units").then(fact(PreferenceRemoved, name="units"))
    many = [fact(PreferenceSet, name=f"p{n}", value=TEXT) for n in range(PREFERENCES_MAX - 1)]
    given(User, JOINED, *many).when(User.set_preference, "units", TEXT).then(units)
    full = given(User, JOINED, *many, units)
    full.when(User.set_preference, "more", TEXT).refused("preferences at most")
    full.when(User.set_preference, "units", TEXT).then(units)


def test_a_consent_is_to_a_version_of_a_text() -> None:
    agreed = fact(ConsentGiven, consent="marketing_email", text="1")
    given(User, JOINED).when(User.consent, "marketing_email", "1").then(agreed)
    given(User, JOINED).when(User.consent, "marketing_email", "").refused("names the version")
    longest = "x" * TEXT_CHARS_MAX
    given(User, JOINED).when(User.consent, "analytics", longest).then(
        fact(ConsentGiven, consent="analytics", text=longest)
    )
    given(User, JOINED).when(User.consent, "analytics", longest + "x").refused("names the version")
    past = given(User, JOINED, agreed)
    past.when(User.consent, "marketing_email", "1").nothing()
    past.when(User.consent, "marketing_email", "2").then(fact(ConsentGiven, consent="marketing_email", text="2"))
    past.when(User.withdraw, "marketing_email").then(fact(ConsentWithdrawn, consent="marketing_email"))
    past.when(User.withdraw, "analytics").nothing()


def test_who_is_being_erased_changes_nothing_any_more() -> None:
    past = given(User, JOINED, *FIRST)
    past.when(User.erased).refused("nobody has asked for it")
    past.when(User.ask_erasure).then(fact(ErasureRequested))
    asked = given(User, JOINED, *FIRST, fact(ErasureRequested))
    asked.when(User.ask_erasure).nothing()
    asked.when(User.erased).then(fact(Erased))
    done = given(User, JOINED, *FIRST, fact(ErasureRequested), fact(Erased))
    done.when(User.erased).nothing()
    done.when(User.ask_erasure).nothing()
    assert done.state.addresses == {} and done.state.defaults == {}
    for one, why in ((asked, "is being erased"), (done, "was erased")):
        one.when(User.rename, TEXT).refused(why)
        one.when(User.give_phone, TEXT, "DE").refused(why)
        one.when(User.remove_phone).refused(why)
        one.when(User.save_address, WORK, PLACE).refused(why)
        one.when(User.remove_address, HOME).refused(why)
        one.when(User.choose_default, "billing", HOME).refused(why)
        one.when(User.set_preference, "units", TEXT).refused(why)
        one.when(User.remove_preference, "units").refused(why)
        one.when(User.consent, "analytics", "1").refused(why)
        one.when(User.withdraw, "analytics").refused(why)


class Machine(RuleBasedStateMachine):
    """Any commands in any order: consents are what was last said, and nothing changes once erasing was asked for."""

    addresses = st.sampled_from([HOME, WORK, ADA])

    def __init__(self) -> None:
        super().__init__()
        self.user, self.over = User(), False
        self.consents: dict[str, str] = {}
        self.kept: set[UUID] = set()

    @rule(address=addresses)
    def save(self, address: UUID) -> None:
        if accepted(self.user.save_address, address, PLACE):
            self.kept.add(address)

    @rule(address=addresses)
    def remove(self, address: UUID) -> None:
        if accepted(self.user.remove_address, address):
            self.kept.discard(address)

    @rule(address=addresses)
    def choose(self, address: UUID) -> None:
        assert accepted(self.user.choose_default, "shipping", address) == (address in self.kept and not self.over)

    @rule(text=st.sampled_from(["1", "2"]))
    def agree(self, text: str) -> None:
        if accepted(self.user.consent, "analytics", text):
            self.consents["analytics"] = text

    @rule()
    def withdraw(self) -> None:
        if accepted(self.user.withdraw, "analytics"):
            self.consents.clear()

    @rule(dice=st.integers(0, 9))
    def erase(self, dice: int) -> None:
        if dice == 0:
            self.user.ask_erasure()
            self.over = True

    @invariant()
    def it_is_what_was_said(self) -> None:
        self.user.check()
        assert self.user.consents == self.consents
        assert self.user.addresses.keys() == self.kept


TestUser = Machine.TestCase
