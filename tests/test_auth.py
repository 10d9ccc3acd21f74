"""The rules of accounts and of the keyring."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aggregates.auth import (
    MAILS_MAX,
    RESET_WITHIN,
    SESSION_KEPT,
    SESSIONS_MAX,
    VERIFY_WITHIN,
    Account,
    AddressVerified,
    Client,
    ClientDisabled,
    ClientRegistered,
    ClientSecretChanged,
    Closed,
    CodeReplayed,
    ExternalLinked,
    ExternalUnlinked,
    KeyRetired,
    Keyring,
    KeyringOpened,
    KeyRotated,
    Letter,
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
from aggregates.auth.client import URIS_MAX
from aggregates.auth.keyring import KEPT, KEYS_MAX
from aggregates.kernel import Free, Sealed, Take, clock
from tests.kernel import Fact, Given, Outcome, accepted, fact, given

NOW = clock.now() + timedelta(minutes=1)
LATER = NOW + timedelta(days=1)
EMAIL, DIGEST = Sealed(f"sealed:1:{UUID(int=0)}:QQ=="), "d1"
SCOPES = ["orders:read", "openid"]
HASH, OTHER, MAIL, SESSION, CLIENT = (uuid4() for _ in range(5))
REGISTERED = fact(Registered, email=EMAIL, digest=DIGEST, role="customer")
ASKED = fact(VerificationRequested, intent=MAIL, credential=HASH, expires_at=LATER)
VERIFIED = (
    REGISTERED,
    ASKED,
    fact(AddressVerified, intent=MAIL),
    fact(PasswordChanged, credential=HASH, cause="verified"),
)


def signed_in(session: UUID = SESSION, expires_at: datetime = NOW + SESSION_KEPT) -> Fact:
    return fact(SignedIn, session=session, method="password", client=None, scope=None, expires_at=expires_at)


def test_an_address_has_one_account() -> None:
    expected = fact(VerificationRequested, intent=MAIL, credential=HASH, expires_at=NOW + VERIFY_WITHIN)
    given(Account).opening(Account.register, EMAIL, DIGEST, MAIL, HASH, NOW).then(REGISTERED, expected)
    made = Account.register(EMAIL, DIGEST, MAIL, HASH, NOW).collect_events()[0]
    assert list(made.claims()) == [Take("email", DIGEST)]


def test_a_password_counts_once_its_own_mail_is_answered() -> None:
    past = given(Account, REGISTERED, ASKED)
    past.when(Account.verify, MAIL, HASH, NOW).then(*VERIFIED[2:])
    past.when(Account.verify, MAIL, OTHER, NOW).refused("not chosen with that mail")
    past.when(Account.verify, uuid4(), HASH, NOW).refused("answered already, or is too old")
    past.when(Account.verify, MAIL, HASH, LATER).refused("answered already, or is too old")
    past.when(Account.verify, MAIL, HASH, LATER - timedelta(microseconds=1)).then(*VERIFIED[2:])
    past.when(Account.sign_in, SESSION, "password", NOW, HASH).refused("not verified yet")
    given(Account, *VERIFIED).when(Account.verify, MAIL, HASH, NOW).nothing()


def test_of_several_registrations_the_one_whose_mail_is_answered_counts() -> None:
    other = fact(VerificationRequested, intent=uuid4(), credential=OTHER, expires_at=LATER)
    verified = given(Account, REGISTERED, ASKED, other).when(Account.verify, MAIL, HASH, NOW)
    verified.then(*VERIFIED[2:])
    given(Account, *VERIFIED[:2], other, *VERIFIED[2:]).when(
        Account.verify, other.fields["intent"], OTHER, NOW
    ).refused("answered already")


def test_registering_again_writes_to_the_owner_and_changes_nothing() -> None:
    again = uuid4()
    given(Account, *VERIFIED).when(Account.register_again, again, OTHER, NOW).then(
        fact(RegistrationRepeated, intent=again)
    )


def asked_for(letter: Letter, intent: UUID, now: datetime = NOW) -> Fact:
    """What an account records when such a mail is asked for."""
    match letter:
        case "verification":
            return fact(VerificationRequested, intent=intent, credential=HASH, expires_at=now + VERIFY_WITHIN)
        case "notice":
            return fact(RegistrationRepeated, intent=intent)
        case _:
            device = letter == "device_reset"
            return fact(ResetRequested, intent=intent, expires_at=now + RESET_WITHIN, device=device)


def ask(past: Given[Account], letter: Letter, now: datetime) -> Outcome:
    if letter in ("verification", "notice"):
        return past.when(Account.register_again, OTHER, HASH, now)
    return past.when(Account.ask_reset, OTHER, now, letter == "device_reset")


def at_limit(letter: Letter) -> list[Fact]:
    """As many mails of that kind as may go out."""
    return [asked_for(letter, uuid4()) for _ in range(MAILS_MAX[letter][0])]


@pytest.mark.parametrize("letter", MAILS_MAX)
def test_nobodys_mailbox_is_flooded_and_no_kind_of_mail_takes_anything_from_another(letter: Letter) -> None:
    begun = VERIFIED if letter == "notice" else (REGISTERED,)
    past, within = given(Account, *begun, *at_limit(letter)), MAILS_MAX[letter][1]
    last, first = past.state.modified_on, next(one.at for one in past.state.mails.values() if one.letter == letter)
    ask(past, letter, last).nothing()
    ask(past, letter, first + within - timedelta(microseconds=1)).nothing()
    ask(past, letter, first + within).then(asked_for(letter, OTHER, first + within))
    fewer = given(Account, *begun, *at_limit(letter)[1:])
    ask(fewer, letter, last).then(asked_for(letter, OTHER, last))
    others: list[Letter] = ["reset", "device_reset", "notice" if letter == "notice" else "verification"]
    for other in others:
        if other != letter:
            ask(past, other, last).then(asked_for(other, OTHER, last))


@pytest.mark.parametrize("verified", [True, False])
def test_where_resets_are_used_up_each_of_their_mails_can_be_answered_still(verified: bool) -> None:
    """Whoever has asked, and whatever else was asked for meanwhile; and then they are counted anew."""
    resets = at_limit("reset")
    others = at_limit("notice" if verified else "verification") + at_limit("device_reset")
    begun = [*(VERIFIED if verified else [REGISTERED]), *resets, *others]
    past = given(Account, *begun)
    now = past.state.modified_on
    ask(past, "reset", now).nothing()
    for one in resets:
        intent = one.fields["intent"]
        answered = [] if verified else [fact(AddressVerified, intent=intent)]
        answered.append(fact(PasswordChanged, credential=OTHER, cause="reset"))
        past.when(Account.reset, intent, OTHER, now).then(*answered)
    after = given(Account, *begun, *answered)
    ask(after, "reset", after.state.modified_on).then(asked_for("reset", OTHER, after.state.modified_on))


def test_who_was_kept_from_registering_gets_in_by_a_reset() -> None:
    """Others have registered the address, with passwords of theirs: these are worth nothing afterwards."""
    planted = [asked_for("verification", uuid4()) for _ in range(MAILS_MAX["verification"][0])]
    past = given(Account, REGISTERED, *planted, asked_for("reset", MAIL))
    past.when(Account.reset, MAIL, OTHER, NOW).then(
        fact(AddressVerified, intent=MAIL), fact(PasswordChanged, credential=OTHER, cause="reset")
    )
    done = given(Account, REGISTERED, *planted, asked_for("reset", MAIL), *VERIFIED[2:])
    done.when(Account.verify, planted[-1].fields["intent"], OTHER, NOW).refused("answered already")


def test_a_reset_ends_all_sessions_and_needs_its_own_mail() -> None:
    asked = fact(ResetRequested, intent=CLIENT, expires_at=LATER, device=False)
    past = given(Account, *VERIFIED, signed_in(), asked)
    changed, everywhere = (
        fact(PasswordChanged, credential=OTHER, cause="reset"),
        fact(SignedOutEverywhere, cause="password"),
    )
    past.when(Account.reset, CLIENT, OTHER, NOW).then(changed, everywhere)
    past.when(Account.reset, CLIENT, OTHER, LATER).refused("too old")
    past.when(Account.verify, CLIENT, OTHER, NOW).refused("not chosen with that mail")
    given(Account, REGISTERED, ASKED).when(Account.reset, MAIL, OTHER, NOW).refused("not one of a reset")
    done = given(Account, *VERIFIED, asked, changed)
    done.when(Account.reset, CLIENT, OTHER, NOW).nothing()
    done.when(Account.reset, CLIENT, uuid4(), NOW).refused("answered already")


def test_the_password_that_was_checked_must_be_in_force_still() -> None:
    past = given(Account, *VERIFIED, signed_in())
    past.when(Account.sign_in, OTHER, "password", NOW, OTHER).refused("changed meanwhile")
    past.when(Account.change_password, OTHER, CLIENT).refused("changed meanwhile")
    past.when(Account.change_password, HASH, OTHER).then(
        fact(PasswordChanged, credential=OTHER, cause="changed"), fact(SignedOutEverywhere, cause="password")
    )


def test_a_session_lives_until_it_expires_or_is_ended() -> None:
    past = given(Account, *VERIFIED)
    past.when(Account.sign_in, SESSION, "password", NOW, HASH).then(signed_in())
    alive = given(Account, *VERIFIED, signed_in())
    assert alive.state.alive(SESSION, NOW + SESSION_KEPT - timedelta(microseconds=1))
    assert alive.state.alive(SESSION, NOW + SESSION_KEPT) is None
    alive.when(Account.sign_out, SESSION).then(fact(SignedOut, session=SESSION))
    alive.when(Account.sign_out, OTHER).nothing()
    alive.when(Account.reused, SESSION).then(fact(RefreshReused, session=SESSION))
    for over in (fact(SignedOut, session=SESSION), fact(RefreshReused, session=SESSION)):
        ended = given(Account, *VERIFIED, signed_in(), over)
        assert ended.state.alive(SESSION, NOW) is None
        ended.when(Account.reused, SESSION).nothing()
        ended.when(Account.sign_out_everywhere).nothing()


def test_the_oldest_of_too_many_sessions_ends() -> None:
    sessions = [uuid4() for _ in range(SESSIONS_MAX)]
    past = given(Account, *VERIFIED, *map(signed_in, sessions))
    past.when(Account.sign_in, SESSION, "password", NOW, HASH).then(fact(SignedOut, session=sessions[0]), signed_in())
    fewer = given(Account, *VERIFIED, *map(signed_in, sessions[1:]))
    fewer.when(Account.sign_in, SESSION, "password", NOW, HASH).then(signed_in())


def test_a_role_is_given_once_and_ends_sessions() -> None:
    past = given(Account, *VERIFIED, signed_in())
    past.when(Account.give_role, "seller").then(fact(RoleGiven, role="seller"), fact(SignedOutEverywhere, cause="role"))
    past.when(Account.give_role, "customer").nothing()


def test_a_password_alone_is_not_enough_with_a_second_factor() -> None:
    enabled = fact(SecondFactorEnabled, factor=MAIL, recovery=OTHER)
    past = given(Account, *VERIFIED)
    past.when(Account.enable_second_factor, MAIL, OTHER).then(enabled)
    given(Account, REGISTERED, ASKED).when(Account.enable_second_factor, MAIL, OTHER).refused("not verified yet")
    past.when(Account.renew_recovery_codes, OTHER).refused("no second factor")
    two = given(Account, *VERIFIED, enabled)
    two.when(Account.sign_in, SESSION, "password", NOW, HASH).refused("a second factor is needed")
    coded = fact(
        SignedIn, session=SESSION, method="password_and_code", client=None, scope=None, expires_at=NOW + SESSION_KEPT
    )
    two.when(Account.sign_in, SESSION, "password_and_code", NOW, HASH).then(coded)
    two.when(Account.enable_second_factor, MAIL, OTHER).nothing()
    two.when(Account.enable_second_factor, CLIENT, OTHER).refused("disable it first")
    two.when(Account.recovery_code_used, OTHER).then(fact(RecoveryCodeUsed, recovery=OTHER))
    two.when(Account.recovery_code_used, CLIENT).refused("were replaced")
    two.when(Account.renew_recovery_codes, CLIENT).then(fact(RecoveryCodesRenewed, recovery=CLIENT))
    two.when(Account.renew_recovery_codes, OTHER).nothing()
    two.when(Account.disable_second_factor).then(fact(SecondFactorDisabled))
    past.when(Account.disable_second_factor).nothing()


def test_a_lock_is_told_once_while_it_holds() -> None:
    until = NOW + timedelta(hours=1)
    past = given(Account, *VERIFIED, fact(Locked, until=until))
    past.when(Account.lock, until + timedelta(hours=1), NOW).nothing()
    past.when(Account.lock, until + timedelta(hours=1), until).then(fact(Locked, until=until + timedelta(hours=1)))


def test_a_mail_is_taken_once_and_only_one_that_was_asked_for() -> None:
    past = given(Account, REGISTERED, ASKED)
    past.when(Account.mail_taken, MAIL).then(fact(Mailed, intent=MAIL))
    past.when(Account.mail_taken, OTHER).nothing()
    given(Account, REGISTERED, ASKED, fact(Mailed, intent=MAIL)).when(Account.mail_taken, MAIL).nothing()


KEY, NEXT, THIRD = (uuid4() for _ in range(3))
OPENED = fact(KeyringOpened, kid=KEY, active_from=NOW)
ROTATED = fact(KeyRotated, kid=NEXT, active_from=NOW + timedelta(minutes=5))


def test_a_key_signs_from_its_time_on_and_verifies_until_its_tokens_are_dead() -> None:
    past = given(Keyring, OPENED, ROTATED)
    assert past.state.current(NOW + timedelta(minutes=5)) == NEXT
    assert past.state.current(NOW + timedelta(minutes=5) - timedelta(microseconds=1)) == KEY
    dead = NOW + timedelta(minutes=5) + KEPT
    third = fact(KeyRotated, kid=THIRD, active_from=dead)
    past.when(Keyring.rotate, THIRD, dead, dead).then(fact(KeyRetired, kid=KEY), third)
    past.when(Keyring.rotate, THIRD, dead, dead - timedelta(microseconds=1)).then(third)


def test_of_two_who_rotate_at_once_one_does() -> None:
    past = given(Keyring, OPENED, ROTATED)
    past.when(Keyring.rotate, THIRD, LATER, NOW, KEY).nothing()
    past.when(Keyring.rotate, NEXT, LATER, NOW).nothing()
    past.when(Keyring.rotate, THIRD, LATER, NOW, NEXT).then(fact(KeyRotated, kid=THIRD, active_from=LATER))


def test_the_only_key_that_can_sign_is_not_revoked() -> None:
    past = given(Keyring, OPENED, ROTATED)
    past.when(Keyring.revoke, KEY, NOW).refused("no other key can sign now")
    past.when(Keyring.revoke, KEY, NOW + timedelta(minutes=5)).then(fact(KeyRetired, kid=KEY))
    past.when(Keyring.revoke, NEXT, NOW).then(fact(KeyRetired, kid=NEXT))
    past.when(Keyring.revoke, THIRD, NOW).nothing()


def test_keys_have_a_limit() -> None:
    many = [fact(KeyRotated, kid=uuid4(), active_from=NOW) for _ in range(KEYS_MAX - 1)]
    given(Keyring, OPENED, *many).when(Keyring.rotate, THIRD, NOW, NOW).refused(f"{KEYS_MAX} keys already")
    given(Keyring, OPENED, *many[1:]).when(Keyring.rotate, THIRD, NOW, NOW).then(
        fact(KeyRotated, kid=THIRD, active_from=NOW)
    )


BACK = "https://watch.example.com/back"
OWNER = uuid4()


def client(**changed: Any) -> Fact:
    made: dict[str, Any] = {
        "owner": OWNER, "name": "Watch", "redirect_uris": (BACK,), "grants": ("authorization_code", "refresh_token"),
        "scopes": ("openid", "orders:read"), "role": None, "secret": HASH, **changed,
    }  # fmt: skip
    return fact(ClientRegistered, **made)


def registering(**changed: Any) -> Outcome:
    return given(Client).opening(Client.register, *client(**changed).fields.values())


def test_a_client_is_registered_with_what_it_needs_and_no_more() -> None:
    registering(name="  Watch ").then(client())
    registering(secret=None).then(client(secret=None))
    machine = {"redirect_uris": (), "grants": ("client_credentials",), "role": "service", "scopes": ("orders:any",)}
    registering(**machine).then(client(**machine))
    registering(**{**machine, "role": None}).refused("has a role")
    registering(**{**machine, "secret": None}).refused("has a secret")
    registering(role="admin").refused("has a role, and nobody else")
    registering(redirect_uris=()).refused("has redirect URIs")
    registering(grants=("refresh_token",), redirect_uris=()).refused("come with codes")
    registering(grants=()).refused("one grant at the least")
    registering(scopes=("orders",)).refused("a scope is <resource>:<verb>")
    registering(redirect_uris=tuple(f"{BACK}{n}" for n in range(URIS_MAX))).then(
        client(redirect_uris=tuple(f"{BACK}{n}" for n in range(URIS_MAX)))
    )
    registering(redirect_uris=tuple(f"{BACK}{n}" for n in range(URIS_MAX + 1))).refused("too many redirect URIs")


@pytest.mark.parametrize(
    "uri",
    [
        "http://watch.example.com/", "https:///x", "https://a@b.example.com/", "https://x.example.com/#f", "javascript:alert(1)",
        "https://x.example.com/\\y", "https://x.example.com/*", "https://x.example.com:99999/", "//x.example.com", "https://ü.example.com/",
        "https://x.example.com/" + "x" * 500, "http://127.0.0.1@evil.example.com/", "data:text/html,x", "https://x.example.com/ y",
    ],
)  # fmt: skip
def test_codes_are_sent_nowhere_unsafe(uri: str) -> None:
    registering(redirect_uris=(uri,)).refused("a redirect URI is https")


def test_a_redirect_is_exactly_the_registered_one_but_for_the_own_machines_port() -> None:
    home = given(Client, client(redirect_uris=(BACK, "http://127.0.0.1/back", "http://localhost:7/back"))).state
    for uri in (BACK, "http://127.0.0.1/back", "http://127.0.0.1:8123/back", "http://localhost:7/back"):
        assert home.redirects_to(uri), uri
    for uri in (
        f"{BACK}/", f"{BACK}?x", "https://watch.example.com:443/back", "http://watch.example.com/back", "http://127.0.0.1:8123/other",
        "http://127.0.0.1:8123/back?x", "https://127.0.0.1:8123/back", "http://a@127.0.0.1:8123/back", "http://[::1]:8123/back",
        "http://127.0.0.1.evil.example.com/back", "http://localhost:8/back", "http://[", "",
    ):  # fmt: skip
        assert not home.redirects_to(uri), uri


def test_a_clients_secret_is_replaced_and_a_disabled_one_gets_none() -> None:
    past = given(Client, client())
    past.when(Client.change_secret, OTHER).then(fact(ClientSecretChanged, secret=OTHER))
    past.when(Client.change_secret, HASH).nothing()
    given(Client, client(secret=None)).when(Client.change_secret, OTHER).refused("public client has no secret")
    past.when(Client.disable).then(fact(ClientDisabled))
    off = given(Client, client(), fact(ClientDisabled))
    off.when(Client.disable).nothing()
    off.when(Client.change_secret, OTHER).refused("is disabled")
    assert off.state.narrowed(None) == "openid orders:read"
    assert off.state.narrowed("orders:read orders:write") == "orders:read"


def test_a_replayed_code_ends_its_session() -> None:
    past = given(Account, *VERIFIED, signed_in())
    past.when(Account.replayed, SESSION).then(fact(CodeReplayed, session=SESSION))
    past.when(Account.replayed, OTHER).nothing()
    given(Account, *VERIFIED, signed_in(), fact(CodeReplayed, session=SESSION)).when(
        Account.replayed, SESSION
    ).nothing()


LINKED = fact(ExternalLinked, provider="partner", subject="s1")


def test_a_provider_vouches_for_an_address_that_nobody_has_verified() -> None:
    joined = [REGISTERED, fact(AddressVerified, intent=MAIL), LINKED]
    given(Account).opening(Account.join_external, EMAIL, DIGEST, MAIL, "partner", "s1").then(*joined)
    given(Account, REGISTERED, ASKED).when(Account.vouched, OTHER, "partner", "s1").then(
        fact(AddressVerified, intent=OTHER), LINKED
    )
    given(Account, *VERIFIED).when(Account.vouched, OTHER, "partner", "s1").refused("has an account")
    squatted = given(Account, REGISTERED, ASKED, fact(AddressVerified, intent=OTHER), LINKED)
    squatted.when(Account.verify, MAIL, HASH, NOW).refused("answered already")
    without = given(Account, *joined)
    without.when(Account.unlink, "partner").refused("choose a password first")
    without.when(Account.sign_in, SESSION, "external", NOW).then(
        fact(SignedIn, session=SESSION, method="external", client=None, scope=None, expires_at=NOW + SESSION_KEPT)
    )


def test_accounts_of_providers_are_linked_and_unlinked() -> None:
    past = given(Account, *VERIFIED)
    past.when(Account.link, "partner", "s1").then(LINKED)
    past.when(Account.unlink, "partner").nothing()
    given(Account, REGISTERED, ASKED).when(Account.link, "partner", "s1").refused("not verified yet")
    linked = given(Account, *VERIFIED, LINKED)
    linked.when(Account.link, "partner", "s1").nothing()
    linked.when(Account.link, "partner", "s2").refused("unlink it first")
    gone = fact(ExternalUnlinked, provider="partner", subject="s1")
    linked.when(Account.unlink, "partner").then(gone)
    linked.when(Account.close).then(gone, fact(Closed, digest=DIGEST))
    account = Account.join_external(EMAIL, DIGEST, MAIL, "partner", "s1")
    account.link("other", "s2")
    account.unlink("partner")
    claims = [list(e.claims()) for e in account.collect_events()]
    assert claims[2:] == [[Take("external", "s1")], [Take("external", "s2")], [Free("external", "s1")]]


def test_a_closed_account_gives_its_address_back_and_lets_nobody_in() -> None:
    past = given(Account, *VERIFIED, signed_in())
    closed = fact(Closed, digest=DIGEST)
    past.when(Account.close).then(closed)
    over = given(Account, *VERIFIED, signed_in(), closed)
    over.when(Account.close).nothing()
    over.when(Account.sign_in, OTHER, "password", NOW).refused("not verified")
    over.when(Account.register_again, OTHER, HASH, LATER).nothing()
    over.when(Account.ask_reset, OTHER, LATER).nothing()
    over.when(Account.enable_second_factor, OTHER, HASH).refused("not verified")
    assert over.state.alive(SESSION, NOW) is None
    account = Account.register(EMAIL, DIGEST, MAIL, HASH, NOW)
    account.close()
    assert list(account.collect_events()[-1].claims()) == [Free("email", DIGEST)]


class Machine(RuleBasedStateMachine):
    """Any commands in any order: who is signed in has verified the address, and no session outlives what ends all."""

    ids = st.sampled_from([UUID(int=n) for n in range(4)])
    providers = st.sampled_from(["one", "two"])

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 1, tzinfo=UTC)
        self.account = Account.register(EMAIL, DIGEST, UUID(int=0), UUID(int=0), self.now)
        self.alive: set[UUID] = set()
        self.factor: tuple[UUID, UUID] | None = None
        self.linked: dict[str, str] = {}
        self.closed = False

    @rule(intent=ids, credential=ids)
    def verify(self, intent: UUID, credential: UUID) -> None:
        accepted(self.account.verify, intent, credential, self.now)

    @rule(intent=ids, credential=ids)
    def register_again(self, intent: UUID, credential: UUID) -> None:
        accepted(self.account.register_again, intent, credential, self.now)

    @rule(intent=ids, device=st.booleans())
    def ask_reset(self, intent: UUID, device: bool) -> None:
        accepted(self.account.ask_reset, intent, self.now, device)

    @rule(intent=ids, credential=ids)
    def reset(self, intent: UUID, credential: UUID) -> None:
        before = self.account.credential
        if accepted(self.account.reset, intent, credential, self.now) and self.account.credential != before:
            self.alive.clear()

    @rule(old=ids, new=ids)
    def change_password(self, old: UUID, new: UUID) -> None:
        before = self.account.credential
        if accepted(self.account.change_password, old, new) and self.account.credential != before:
            self.alive.clear()

    @rule(session=ids, credential=ids, code=st.booleans())
    def sign_in(self, session: UUID, credential: UUID, code: bool) -> None:
        method: Method = "password_and_code" if code else "password"
        done = accepted(self.account.sign_in, session, method, self.now, credential)
        right = self.account.verified and credential == self.account.credential and (code or self.factor is None)
        assert done == (right or session in self.alive)
        if done:
            self.alive.add(session)

    @rule(session=ids, why=st.sampled_from(["sign_out", "reused", "replayed"]))
    def end(self, session: UUID, why: str) -> None:
        assert accepted(getattr(self.account, why), session)
        self.alive.discard(session)

    @rule()
    def sign_out_everywhere(self) -> None:
        assert accepted(self.account.sign_out_everywhere)
        self.alive.clear()

    @rule(factor=ids, recovery=ids)
    def enable_second_factor(self, factor: UUID, recovery: UUID) -> None:
        known = self.factor is not None and self.factor[0] == factor
        free = self.account.verified and self.factor is None
        assert accepted(self.account.enable_second_factor, factor, recovery) == (known or free)
        if free:
            self.factor = factor, recovery

    @rule(recovery=ids)
    def use_a_recovery_code(self, recovery: UUID) -> None:
        valid = self.factor is not None and self.factor[1] == recovery
        assert accepted(self.account.recovery_code_used, recovery) == valid

    @rule(recovery=ids)
    def renew_recovery_codes(self, recovery: UUID) -> None:
        assert accepted(self.account.renew_recovery_codes, recovery) == (self.factor is not None)
        if self.factor is not None:
            self.factor = self.factor[0], recovery

    @rule()
    def disable_second_factor(self) -> None:
        assert accepted(self.account.disable_second_factor)
        self.factor = None

    @rule(role=st.sampled_from(["customer", "seller", "admin"]))
    def give_role(self, role: Role) -> None:
        if self.account.role != role:
            self.alive.clear()
        assert accepted(self.account.give_role, role)
        assert self.account.role == role

    @rule(provider=providers, subject=st.sampled_from(["s", "t"]), new=st.booleans(), intent=ids)
    def link(self, provider: str, subject: str, new: bool, intent: UUID) -> None:
        if new:
            free = not self.account.verified and not self.closed
            done = accepted(self.account.vouched, intent, provider, subject)
        else:
            free = self.account.verified and provider not in self.linked
            done = accepted(self.account.link, provider, subject)
        assert done == (free or (not new and self.linked.get(provider) == subject))
        if free:
            self.linked[provider] = subject

    @rule(provider=providers)
    def unlink(self, provider: str) -> None:
        last = self.linked.keys() == {provider} and self.account.credential is None
        assert accepted(self.account.unlink, provider) != last
        if not last:
            self.linked.pop(provider, None)

    @rule(minutes=st.integers(1, 40))
    def lock(self, minutes: int) -> None:
        locked = self.account.locked_until
        assert accepted(self.account.lock, self.now + timedelta(minutes=minutes), self.now)
        kept = locked is not None and locked > self.now
        assert self.account.locked_until == (locked if kept else self.now + timedelta(minutes=minutes))

    @rule(dice=st.integers(0, 9))
    def close(self, dice: int) -> None:
        if dice == 0:
            assert accepted(self.account.close)
            self.closed, self.factor = True, None
            self.alive.clear()
            self.linked.clear()

    @rule(minutes=st.integers(1, 40))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @invariant()
    def it_is_what_was_said(self) -> None:
        self.account.check()
        assert self.account.sessions.keys() == self.alive
        assert self.account.externals == self.linked
        assert (self.account.factor, self.account.recovery) == (self.factor or (None, None))
        assert self.account.closed == self.closed and not (self.closed and self.account.verified)


TestAccount = Machine.TestCase


class OneClient(RuleBasedStateMachine):
    """A client: its secret is the newest, until it is disabled, and what it may have is part of what was registered."""

    secrets = st.sampled_from([UUID(int=n) for n in range(1, 4)])

    @initialize(secret=st.none() | secrets)
    def register(self, secret: UUID | None) -> None:
        self.client = Client.register(UUID(int=9), "c", ["https://c/x"], ["authorization_code"], SCOPES, None, secret)
        self.secret, self.disabled = secret, False

    @rule(secret=secrets)
    def change_secret(self, secret: UUID) -> None:
        may = secret == self.secret or (self.secret is not None and not self.disabled)
        assert accepted(self.client.change_secret, secret) == may
        if may:
            self.secret = secret

    @rule(dice=st.integers(0, 3))
    def disable(self, dice: int) -> None:
        if dice == 0:
            assert accepted(self.client.disable)
            self.disabled = True

    @rule(wanted=st.none() | st.lists(st.sampled_from([*SCOPES, "wallets:write", "email"])))
    def narrow(self, wanted: list[str] | None) -> None:
        had = self.client.narrowed(None if wanted is None else " ".join(wanted)).split()
        assert had == [scope for scope in (SCOPES if wanted is None else wanted) if scope in SCOPES]

    @invariant()
    def it_is_what_was_said(self) -> None:
        if hasattr(self, "client"):
            self.client.check()
            assert (self.client.secret, self.client.disabled) == (self.secret, self.disabled)


TestClient = OneClient.TestCase


class Keys(RuleBasedStateMachine):
    """The keyring: there is always a key to sign with, and each verifies for KEPT after it last signed, unless revoked."""

    kids = st.integers(1, 30).map(lambda n: UUID(int=n))

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 11, 1, tzinfo=UTC)
        self.keyring = Keyring(UUID(int=0), self.now)
        self.ever, self.revoked = {UUID(int=0)}, set[UUID]()
        self.signed: dict[UUID, datetime] = {}  # when each key last signed

    @rule(kid=kids, minutes=st.integers(0, 60), newest=st.booleans())
    def rotate(self, kid: UUID, minutes: int, newest: bool) -> None:
        if kid in self.ever:
            return  # each is made anew
        full = len(self.keyring.keys) == KEYS_MAX
        start = self.now + timedelta(minutes=minutes)
        last = next(reversed(self.keyring.keys)) if newest else None
        done = accepted(self.keyring.rotate, kid, start, self.now, last)
        assert done or full
        if done:
            self.ever.add(kid)

    @rule(kid=kids)
    def somebody_else_was_faster(self, kid: UUID) -> None:
        before = dict(self.keyring.keys)
        assert accepted(self.keyring.rotate, kid, self.now, self.now, UUID(int=99))
        assert self.keyring.keys == before

    @rule(kid=kids)
    def revoke(self, kid: UUID) -> None:
        others = [one for one, start in self.keyring.keys.items() if one != kid and start <= self.now]
        there = kid in self.keyring.keys
        assert accepted(self.keyring.revoke, kid, self.now) == (not there or bool(others))
        if there and others:
            self.revoked.add(kid)

    @rule(hours=st.integers(1, 40))
    def wait(self, hours: int) -> None:
        for _ in range(hours):
            self.now += timedelta(hours=1)
            self.sign()

    @invariant()
    def sign(self) -> None:
        self.signed[self.keyring.current(self.now)] = self.now

    @invariant()
    def every_token_that_is_alive_can_be_verified(self) -> None:
        self.keyring.check()
        for kid, at in self.signed.items():
            if kid not in self.revoked and self.now < at + KEPT:
                assert kid in self.keyring.keys


TestKeyring = Keys.TestCase
