"""The ways to pay that a customer keeps: tokens, one of them preferred, and never a card number."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given as for_all
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import NotFound, Refused, Sealed
from aggregates.kernel.token import masked, payment_token, require_usable
from aggregates.payment import (
    ALL,
    METHODS_MAX,
    AttachDeclined,
    AttachRequested,
    Detached,
    MethodPreferred,
    MethodRemoved,
    Methods,
    MethodSaved,
    MethodsForgotten,
    MethodsKept,
)
from aggregates.payment.methods import ASKED_MAX
from tests.kernel import accepted, fact, given

ONE, TWO = uuid4(), uuid4()
DIGITS = Sealed("sealed:1:somebody:digits")
CARD = "4242424242424242"


def of(token: str = "pm_1", expires: str = "2031-09") -> tuple[Any, ...]:
    return "stripe", token, "visa", DIGITS, expires


def asked(method: UUID, expires: str = "2031-09") -> Any:
    return fact(AttachRequested, method=method, gateway="stripe", brand="visa", last_four=DIGITS, expires=expires)


def saved(method: UUID, token: str = "pm_1", expires: str = "2031-09") -> Any:
    fields = dict(zip(("gateway", "token", "brand", "last_four", "expires"), of(token, expires), strict=True))
    return fact(MethodSaved, method=method, **fields)


def removed(method: UUID, token: str = "pm_1") -> Any:
    return fact(MethodRemoved, method=method, gateway="stripe", token=token)


def preferred(method: UUID) -> Any:
    return fact(MethodPreferred, method=method)


def detached(token: str) -> Any:
    return fact(Detached, gateway="stripe", token=token)


KEPT = fact(MethodsKept)
BEGUN = (KEPT, asked(ONE), saved(ONE), preferred(ONE))
TWICE = (*BEGUN, asked(TWO), saved(TWO, "pm_2"))


def save(methods: Methods, id: UUID, *given: Any) -> None:
    """As the API does, for a gateway that answers with the token that it was given."""
    methods.ask(id, *given)
    methods.attached(id, *given[:2])


def test_what_a_gateway_has_attached_is_saved_and_the_first_one_preferred() -> None:
    given(Methods, KEPT).when(Methods.ask, ONE, *of()).then(asked(ONE))
    begun = given(Methods, KEPT, asked(ONE))
    begun.when(Methods.ask, ONE, *of()).nothing()
    begun.when(Methods.attached, ONE, "stripe", "pm_1").then(saved(ONE), preferred(ONE))
    begun.when(Methods.attached, ONE, "stripe", "pm_9").then(
        saved(ONE, "pm_9"), preferred(ONE)
    )  # its own, for a form's details
    begun.when(Methods.attached, ONE, "stripe", f"pm_{CARD}").refused("a card number is no token")
    for method, gateway in ((TWO, "stripe"), (ONE, "adyen")):
        with pytest.raises(NotFound, match="was not asked"):
            begun.state.attached(method, gateway, "pm_1")
    given(Methods, *BEGUN, asked(TWO)).when(Methods.attached, TWO, "stripe", "pm_2").then(saved(TWO, "pm_2"))
    two = given(Methods, *TWICE)
    two.when(Methods.prefer, TWO).then(preferred(TWO))
    two.when(Methods.prefer, ONE).nothing()
    two.when(Methods.attached, TWO, "stripe", "pm_2").nothing()


def test_what_a_gateway_declines_is_not_saved() -> None:
    no = fact(AttachDeclined, method=ONE, gateway="stripe", code="card_declined", reason="no")
    begun = given(Methods, KEPT, asked(ONE))
    begun.when(Methods.declined, ONE, "stripe", "card_declined", "no").then(no)
    begun.when(Methods.declined, ONE, "adyen", "card_declined", "no").nothing()
    over = given(Methods, KEPT, asked(ONE), no)
    over.when(Methods.declined, ONE, "stripe", "card_declined", "no").nothing()
    over.when(Methods.ask, ONE, *of()).then(asked(ONE))


def test_what_is_removed_its_gateway_has_to_forget_before_it_is_saved_anew() -> None:
    two = given(Methods, *TWICE)
    two.when(Methods.remove, ONE).then(removed(ONE))
    gone = given(Methods, *TWICE, removed(ONE))
    assert (gone.state.preferred, gone.state.leaving) == (None, {("stripe", "pm_1")})
    gone.when(Methods.remove, ONE).nothing()
    gone.when(Methods.ask, ONE, *of()).refused("save it again in a moment")
    given(Methods, *TWICE, removed(ONE), asked(ONE)).when(Methods.attached, ONE, "stripe", "pm_1").refused(
        "in a moment"
    )
    gone.when(Methods.detached, "stripe", "pm_1").then(detached("pm_1"))
    gone.when(Methods.detached, "stripe", "pm_2").nothing()
    over = given(Methods, *TWICE, removed(ONE), detached("pm_1"))
    over.when(Methods.detached, "stripe", "pm_1").nothing()
    over.when(Methods.ask, ONE, *of()).then(asked(ONE))
    with pytest.raises(NotFound, match="no payment method"):
        gone.state.found(ONE)
    with pytest.raises(NotFound):
        gone.state.prefer(ONE)


def test_one_that_was_removed_before_gateways_were_told_leaves_nothing_behind() -> None:
    old = given(Methods, KEPT, saved(ONE), fact(MethodRemoved, method=ONE, gateway="", token=""))
    assert (old.state.leaving, old.state.gateways) == (set(), {"stripe"})


def test_another_one_under_the_same_id_replaces_it_and_stays_preferred() -> None:
    given(Methods, *BEGUN).when(Methods.ask, ONE, *of("pm_2")).then(asked(ONE))
    again = given(Methods, *BEGUN, asked(ONE))
    again.when(Methods.attached, ONE, "stripe", "pm_2").then(removed(ONE), saved(ONE, "pm_2"), preferred(ONE))
    again.when(Methods.attached, ONE, "stripe", "pm_1").then(saved(ONE))
    given(Methods, *TWICE, asked(TWO)).when(Methods.attached, TWO, "stripe", "pm_3").then(
        removed(TWO, "pm_2"), saved(TWO, "pm_3")
    )


def test_who_is_erased_keeps_nothing_here_or_at_a_gateway() -> None:
    forgotten = fact(MethodsForgotten)
    given(Methods, *TWICE).when(Methods.forget).then(removed(ONE), removed(TWO, "pm_2"), forgotten)
    gone = given(Methods, KEPT, asked(ONE), forgotten)
    assert gone.state.leaving == {("stripe", ALL)}
    gone.when(Methods.forget).nothing()
    gone.when(Methods.ask, TWO, *of()).refused("was erased")
    gone.when(Methods.attached, ONE, "stripe", "pm_1").then(forgotten)  # the gateway was slow: it forgets that one, too
    gone.when(Methods.detached, "stripe", ALL).then(detached(ALL))


def test_a_token_is_kept_once_and_can_be_renewed() -> None:
    begun = given(Methods, *BEGUN)
    begun.when(Methods.ask, ONE, *of()).nothing()
    begun.when(Methods.ask, ONE, *of(expires="2035-01")).then(asked(ONE, "2035-01"))
    begun.when(Methods.ask, TWO, *of()).refused("saved already")
    given(Methods, *BEGUN, asked(TWO)).when(Methods.attached, TWO, "stripe", "pm_1").refused("saved already")
    later = given(Methods, *BEGUN, asked(ONE, "2035-01"))
    later.when(Methods.ask, ONE, *of()).then(asked(ONE))  # back to what it is: what was begun is not what is meant
    later.when(Methods.attached, ONE, "stripe", "pm_1").then(saved(ONE, expires="2035-01"))
    wrong: Any = "diner"
    begun.when(Methods.ask, TWO, "stripe", "pm_2", wrong, DIGITS, "2031-09").refused("no such brand")


def test_no_customer_keeps_more_than_the_limit() -> None:
    methods = Methods()
    for n in range(METHODS_MAX - 1):
        save(methods, UUID(int=n), *of(f"pm_{n}"))
    for n in (97, 98):
        methods.ask(UUID(int=n), *of(f"pm_{n}"))
    methods.attached(UUID(int=97), "stripe", "pm_97")
    with pytest.raises(Refused, match=f"at most {METHODS_MAX}"):
        methods.attached(UUID(int=98), "stripe", "pm_98")
    with pytest.raises(Refused, match=f"at most {METHODS_MAX}"):
        methods.ask(UUID(int=99), *of("pm_99"))
    save(methods, UUID(int=0), *of("pm_0", "2040-12"))


def test_of_attachments_without_an_end_the_last_ones_are_remembered() -> None:
    methods = Methods()
    for n in range(ASKED_MAX + 1):
        methods.ask(UUID(int=n), *of(f"pm_{n}"))
    methods.check()
    assert UUID(int=0) not in methods.asked and UUID(int=ASKED_MAX) in methods.asked


def test_one_can_be_used_through_its_last_month() -> None:
    require_usable("2031-09", datetime(2031, 9, 30, 23, 59, tzinfo=UTC))
    with pytest.raises(Refused, match="expired"):
        require_usable("2031-09", datetime(2031, 10, 1, tzinfo=UTC))


def test_one_that_is_not_what_was_chosen_pays_nothing() -> None:
    kept, now = given(Methods, *BEGUN), datetime(2031, 9, 1, tzinfo=UTC)
    kept.when(Methods.use, ONE, "stripe", "pm_1", now).nothing()
    kept.when(Methods.use, ONE, "stripe", "pm_1", now + timedelta(days=31)).refused("expired")
    for other in (("adyen", "pm_1"), ("stripe", "pm_2")):
        kept.when(Methods.use, ONE, *other, now).refused("was changed meanwhile")
    with pytest.raises(NotFound, match=f"no payment method {ONE}"):
        given(Methods, *BEGUN, removed(ONE)).state.use(ONE, "stripe", "pm_1", now)


@pytest.mark.parametrize(
    "token", [f"pm_{CARD}", "pm_4242-4242-4242-4242", "pm_378282246310005", "tok_4242_4242_4242_4242"]
)
def test_a_card_number_is_not_kept(token: str) -> None:
    given(Methods, *BEGUN).when(Methods.ask, TWO, *of(token)).refused("a card number is no token")
    given(Methods, KEPT, asked(ONE)).when(Methods.attached, ONE, "stripe", token).refused("a card number is no token")


@for_all(st.integers(10**11, 10**18 - 1), st.sampled_from(["", " ", "-", "_", "."]), st.data())
@hypothesis(deadline=None)
def test_every_number_that_passes_the_check_is_struck_out(body: int, between: str, data: st.DataObject) -> None:
    digits = [int(one) for one in str(body)]
    odd = [sum(divmod(2 * one, 10)) for one in digits[::-1][::2]]
    number = str(body) + str(-(sum(odd) + sum(digits[::-1][1::2])) % 10)
    cuts = data.draw(st.lists(st.integers(1, len(number) - 1), unique=True, max_size=4))
    written = "".join(between * (n in cuts) + one for n, one in enumerate(number))
    assert masked(f"/a/{written}?") == "/a/[card number]?"
    other = written[:-1] + str((int(written[-1]) + 1) % 10)
    assert masked(f"/a/{other}?") == f"/a/{other}?"
    if between in ("", "-", "_"):
        with pytest.raises(Refused) as no:
            payment_token(f"tok_{written}")
        assert written not in str(no.value)


class Keeping(RuleBasedStateMachine):
    """Any commands in any order, and a gateway that answers when it likes, against a dictionary."""

    ids = st.integers(0, 3).map(lambda n: UUID(int=n))

    def __init__(self) -> None:
        super().__init__()
        self.methods, self.kept = Methods(), dict[UUID, tuple[str, str]]()
        self.begun = dict[UUID, str]()
        self.leaving = set[str]()
        self.preferred: UUID | None = None

    @rule(id=ids, token=st.integers(0, 4), expires=st.sampled_from(["2030-01", "2031-01"]))
    def ask(self, id: UUID, token: int, expires: str) -> None:
        others = {one for other, (one, _) in self.kept.items() if other != id}
        expected = f"pm_{token}" not in others | self.leaving
        assert accepted(self.methods.ask, id, *of(f"pm_{token}", expires)) is expected
        if expected and (id in self.begun or self.kept.get(id) != (f"pm_{token}", expires)):
            self.begun[id] = expires

    @rule(id=ids, token=st.integers(0, 4))
    def attached(self, id: UUID, token: int) -> None:
        name = f"pm_{token}"
        before = self.kept.get(id, ("", ""))[0]
        if id not in self.begun:
            if before != name:
                with pytest.raises(NotFound):
                    self.methods.attached(id, "stripe", name)
            return
        others = {one for other, (one, _) in self.kept.items() if other != id}
        expected = name not in others | self.leaving
        assert accepted(self.methods.attached, id, "stripe", name) is expected
        if expected:
            if before and before != name:
                self.leaving.add(before)
            self.kept[id] = (name, self.begun.pop(id))
            self.preferred = id if self.preferred is None else self.preferred

    @rule(id=ids)
    def remove(self, id: UUID) -> None:
        assert accepted(self.methods.remove, id)
        if id in self.kept:
            self.leaving.add(self.kept.pop(id)[0])
        self.preferred = None if self.preferred == id else self.preferred

    @rule(token=st.integers(0, 4))
    def detached(self, token: int) -> None:
        assert accepted(self.methods.detached, "stripe", f"pm_{token}")
        self.leaving.discard(f"pm_{token}")

    @rule(id=ids)
    def prefer(self, id: UUID) -> None:
        if id in self.kept:
            assert accepted(self.methods.prefer, id)
            self.preferred = id

    @invariant()
    def as_the_dictionary(self) -> None:
        self.methods.check()
        assert {id: (one.token, one.expires) for id, one in self.methods.kept.items()} == self.kept
        assert self.methods.preferred == self.preferred
        assert self.methods.leaving == {("stripe", one) for one in self.leaving}


TestKeeping = Keeping.TestCase
