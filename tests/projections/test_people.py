"""The read models of accounts and of people: live, replayed and folded are one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import cast
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.auth import Account
from aggregates.auth.keyring import KEPT, Keyring
from aggregates.kernel import Event, Invalid, Refused, Sealed
from aggregates.user import Place, User
from projections.auth import accounts, sessions, signing_keys
from projections.kernel import Table
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.tables import AnyTable
from projections.user import user_addresses, user_consents, user_preferences, users
from tests.kernel.topic import Live, Rows, rows_in, rows_of, settings_of

NOW = datetime(2026, 11, 30, tzinfo=UTC)
ACCOUNT_WHATS = [
    "verify",
    "verify",
    "sign in",
    "sign in",
    "sign in",
    "sign out",
    "everywhere",
    "reused",
    "password",
    "role",
]
ACCOUNT_WHATS += ["factor", "no factor", "lock", "link", "close", "rotate", "revoke"]
USER_WHATS = ["name", "phone", "no phone", "address", "address", "no address", "default", "preference", "no preference"]
USER_WHATS += ["agree", "withdraw", "erase", "erased"]


def commands(whats: Sequence[str]) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """What, of whom, and which."""
    return st.lists(st.tuples(st.sampled_from(whats), st.integers(0, 1), st.integers(0, 2)), min_size=20, max_size=60)


def text(whose: UUID, words: str) -> Sealed:
    return Sealed(f"sealed:1:{whose}:{words}")


@pytest.fixture
def of(postgres: str, redis: str, tmp_path: Path) -> Iterator[Callable[[str], Live]]:
    made = []

    def live(domain: str) -> Live:
        made.append(Live(settings_of(postgres, redis, tmp_path), [PROJECTIONS[f"projections.{domain}"]], ("postgres",)))
        return made[-1]

    yield live
    for one in made:
        one.close()


def shown_alike(live: Live, events: Sequence[Event], seed: int) -> dict[AnyTable, Rows]:
    """What each table holds after the events, in whichever order they come, at once or bit by bit."""
    tables, rows = cast("list[Table]", live.projections[0].tables), rows_of(events)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown: dict[AnyTable, Rows] = {table: rows_in(live.settings, table) for table in tables}
    live.wipe()
    live.feed(rows)
    assert {table: rows_in(live.settings, table) for table in tables} == shown
    return shown


@given(said=commands(ACCOUNT_WHATS), seed=st.integers(0, 2**16))
@hypothesis(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_accounts_live_are_replayed_are_folded(
    of: Callable[[str], Live], said: list[tuple[str, int, int]], seed: int
) -> None:
    kept = [Account.register(text(UUID(int=n), "QQ=="), f"d{n}", UUID(int=0), UUID(int=n), NOW) for n in range(2)]
    ring, now = Keyring(UUID(int=0), NOW), NOW
    events = [event for one in (*kept, ring) for event in one.collect_events()]
    for what, which, number in said:
        one, id, session = kept[which], UUID(int=number), UUID(int=100 * which + number)
        now += KEPT / 3
        calls: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
            "verify": (one.verify, (UUID(int=0), UUID(int=which), NOW)),
            "sign in": (one.sign_in, (session, "password_and_code", NOW)),
            "sign out": (one.sign_out, (session,)),
            "reused": (one.reused, (session,)),
            "everywhere": (one.sign_out_everywhere, ()),
            "password": (one.change_password, (one.credential, id)),
            "role": (one.give_role, (("customer", "seller")[number % 2],)),
            "factor": (one.enable_second_factor, (id, id)),
            "no factor": (one.disable_second_factor, ()),
            "lock": (one.lock, (now, NOW)),
            "link": (one.link, (f"p{number}", f"s{session}")),
            "close": (one.close, ()) if number == 0 else (one.sign_out_everywhere, ()),
            "rotate": (ring.rotate, (UUID(int=ring.version), now, now)),
            "revoke": (ring.revoke, (id, now)),
        }
        call, arguments = calls[what]
        try:
            call(*arguments)
        except (Refused, Invalid):
            continue
        events += [event for each in (*kept, ring) for event in each.collect_events()]
    shown = shown_alike(of("auth"), events, seed)
    for one in kept:
        row = shown[accounts][one.id,]
        assert (row["version"], row["role"], row["verified"]) == (one.version, one.role, one.verified)
        assert (row["second_factor"], row["locked_until"]) == (one.factor is not None, one.locked_until)
        assert (row["closed_at"] is not None, row["email"] == "") == (one.closed, one.closed)
        over = row["signed_out_at"]
        theirs = [its for its in shown[sessions].values() if its["account"] == one.id]
        assert one.sessions.keys() == {
            its["session"] for its in theirs if its["ended_at"] is None and its["began_at"] > over
        }
    keys = {kid: row["active_from"] for (kid,), row in shown[signing_keys].items() if row["retired_at"] is None}
    assert keys == ring.keys


@given(said=commands(USER_WHATS), seed=st.integers(0, 2**16))
@hypothesis(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_people_live_are_replayed_are_folded(
    of: Callable[[str], Live], said: list[tuple[str, int, int]], seed: int
) -> None:
    kept = [User(), User()]
    events = [event for one in kept for event in one.collect_events()]
    consents: list[tuple[UUID, int]] = []
    for what, which, number in said:
        one, id = kept[which], UUID(int=number)
        words = text(one.id, f"{number}Q==")
        calls: dict[str, tuple[Callable[..., None], tuple[object, ...]]] = {
            "name": (one.rename, (words,)),
            "phone": (one.give_phone, (words, "DE")),
            "no phone": (one.remove_phone, ()),
            "address": (one.save_address, (id, Place(words, None, words, None, words, None, words, "DE"))),
            "no address": (one.remove_address, (id,)),
            "default": (one.choose_default, ("billing", id)),
            "preference": (one.set_preference, (f"p{number}", words)),
            "no preference": (one.remove_preference, (f"p{number}",)),
            "agree": (one.consent, ("analytics", str(number))),
            "withdraw": (one.withdraw, ("analytics",)),
            "erase": (one.ask_erasure, ()) if number == 0 else (one.remove_phone, ()),
            "erased": (one.erased, ()),
        }
        call, arguments = calls[what]
        try:
            call(*arguments)
        except (Refused, Invalid):
            continue
        new = one.collect_events()
        consents += [(one.id, event.version) for event in new if event.type.startswith("user.Consent")]
        events += new
    shown = shown_alike(of("user"), events, seed)
    assert shown[user_consents].keys() == set(consents)
    for one in kept:
        row = shown[users][one.id,]
        assert (row["version"], row["status"], row["name"], row["phone"]) == (
            one.version,
            one.status,
            one.name,
            one.phone,
        )
        if one.status != "erased":  # what was sealed with the key that is gone may lie there still
            assert {address for user, address in shown[user_addresses] if user == one.id} == one.addresses.keys()
            assert {name for user, name in shown[user_preferences] if user == one.id} == one.preferences.keys()
            chosen = {purpose: row[purpose] for purpose in ("shipping", "billing") if row[purpose] in one.addresses}
            assert chosen == one.defaults
