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
from aggregates.payment import METHODS_MAX, MethodPreferred, MethodRemoved, Methods, MethodSaved, MethodsKept
from tests.kernel import accepted, fact, given

ONE, TWO = uuid4(), uuid4()
DIGITS = Sealed("sealed:1:somebody:digits")
CARD = "4242424242424242"


def of(token: str = "pm_1", expires: str = "2031-09") -> tuple[Any, ...]:
    return "stripe", token, "visa", DIGITS, expires


def saved(method: UUID, token: str = "pm_1", expires: str = "2031-09") -> Any:
    fields = dict(zip(("gateway", "token", "brand", "last_four", "expires"), of(token, expires), strict=True))
    return fact(MethodSaved, method=method, **fields)


KEPT, FIRST = fact(MethodsKept), (saved(ONE), fact(MethodPreferred, method=ONE))
BEGUN = (KEPT, *FIRST)


def test_the_first_one_is_preferred_until_another_one_is() -> None:
    given(Methods).opening(Methods.begin, ONE, *of()).then(*BEGUN)
    given(Methods, *BEGUN).when(Methods.save, TWO, *of("pm_2")).then(saved(TWO, "pm_2"))
    two = given(Methods, *BEGUN, saved(TWO, "pm_2"))
    two.when(Methods.prefer, TWO).then(fact(MethodPreferred, method=TWO))
    two.when(Methods.prefer, ONE).nothing()
    two.when(Methods.remove, ONE).then(fact(MethodRemoved, method=ONE))
    gone = given(Methods, *BEGUN, saved(TWO, "pm_2"), fact(MethodRemoved, method=ONE))
    assert gone.state.preferred is None
    gone.when(Methods.remove, ONE).nothing()
    gone.when(Methods.save, ONE, *of()).then(*FIRST)
    with pytest.raises(NotFound, match="no payment method"):
        gone.state.found(ONE)
    with pytest.raises(NotFound):
        gone.state.prefer(ONE)


def test_a_token_is_kept_once_and_can_be_renewed() -> None:
    begun = given(Methods, *BEGUN)
    begun.when(Methods.save, ONE, *of()).nothing()
    begun.when(Methods.save, ONE, *of(expires="2035-01")).then(saved(ONE, expires="2035-01"))
    begun.when(Methods.save, TWO, *of()).refused("saved already")
    begun.when(Methods.save, TWO, "adyen", *of()[1:]).then(
        fact(MethodSaved, method=TWO, gateway="adyen", token="pm_1", brand="visa", last_four=DIGITS, expires="2031-09")
    )
    wrong: Any = "diner"
    begun.when(Methods.save, TWO, "stripe", "pm_2", wrong, DIGITS, "2031-09").refused("no such brand")


def test_no_customer_keeps_more_than_the_limit() -> None:
    methods = Methods()
    for n in range(METHODS_MAX):
        methods.save(UUID(int=n), *of(f"pm_{n}"))
    with pytest.raises(Refused, match=f"at most {METHODS_MAX}"):
        methods.save(UUID(int=99), *of("pm_99"))
    methods.save(UUID(int=0), *of("pm_0", "2040-12"))


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
        given(Methods, *BEGUN, fact(MethodRemoved, method=ONE)).state.use(ONE, "stripe", "pm_1", now)


@pytest.mark.parametrize(
    "token", [f"pm_{CARD}", "pm_4242-4242-4242-4242", "pm_378282246310005", "tok_4242_4242_4242_4242"]
)
def test_a_card_number_is_not_kept(token: str) -> None:
    given(Methods).opening(Methods.begin, ONE, *of(token)).refused("a card number is no token")
    given(Methods, *BEGUN).when(Methods.save, TWO, *of(token)).refused("a card number is no token")


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
    """Any commands in any order, against a dictionary."""

    ids = st.integers(0, 3).map(lambda n: UUID(int=n))

    def __init__(self) -> None:
        super().__init__()
        self.methods, self.kept = Methods(), dict[UUID, tuple[str, str]]()
        self.preferred: UUID | None = None

    @rule(id=ids, token=st.integers(0, 4), expires=st.sampled_from(["2030-01", "2031-01"]))
    def save(self, id: UUID, token: int, expires: str) -> None:
        others = {one for other, (one, _) in self.kept.items() if other != id}
        expected = f"pm_{token}" not in others
        assert accepted(self.methods.save, id, *of(f"pm_{token}", expires)) is expected
        if expected and self.kept.get(id) != (f"pm_{token}", expires):
            self.kept[id] = (f"pm_{token}", expires)
            self.preferred = id if self.preferred is None else self.preferred

    @rule(id=ids)
    def remove(self, id: UUID) -> None:
        assert accepted(self.methods.remove, id)
        self.kept.pop(id, None)
        self.preferred = None if self.preferred == id else self.preferred

    @rule(id=ids)
    def prefer(self, id: UUID) -> None:
        if id in self.kept:
            assert accepted(self.methods.prefer, id)
            self.preferred = id

    @invariant()
    def as_the_dictionary(self) -> None:
        assert {id: (one.token, one.expires) for id, one in self.methods.kept.items()} == self.kept
        assert self.methods.preferred == self.preferred


TestKeeping = Keeping.TestCase
