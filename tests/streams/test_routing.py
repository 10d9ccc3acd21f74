"""Which gateway a payment goes to, and when one is left alone: rules and circuits, without any server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given as for_all
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import ValidationError

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.circuit import Circuit, Guarded, State
from streams.gateways.interface import Fact, Unknown, Unreached
from streams.gateways.routing import Rule, Terms, rank
from streams.gateways.settings import GatewaySettings

EUR_10 = Money(1000, "EUR")
ONE = Terms(takes=("tok_", "pm_"), fee_bp=140, fee_fixed={"EUR": 25})
TWO = Terms(takes=("tok_",), fee_bp=290)
EUROPE = Terms(currencies=frozenset({"EUR", "GBP"}), countries=frozenset({"DE", "FR"}), fee_bp=100)
LARGE = Terms(amounts={"EUR": (5_000, 100_000)}, fee_bp=50)
ALL = {"one": ONE, "two": TWO, "europe": EUROPE, "large": LARGE}


def order(amount: Money = EUR_10, country: str | None = None, method: str = "tok_visa", **given: Any) -> list[str]:
    gateways, rules = given.get("gateways", ALL), [Rule(**one) for one in given.get("rules", ())]
    return list(rank(gateways, rules, amount, country, method).gateways)


def test_without_rules_the_cheapest_that_takes_it_is_first() -> None:
    assert order() == ["two", "one"]  # 29 and 39 cents
    assert order(Money(10_000, "EUR")) == ["large", "one", "two"]  # 50, 165 and 290
    assert order(country="DE") == ["europe", "two", "one"]
    assert order(Money(1000, "USD"), "DE") == ["large", "one", "two"]  # the bounds are in euro: no bound for dollars
    assert order(method="pm_1", gateways={"one": ONE, "two": TWO}) == ["one"]
    assert order(method="adyen_1", gateways={"one": ONE, "two": TWO}) == []


def test_bounds_are_reached_exactly() -> None:
    for amount, fits in ((4_999, False), (5_000, True), (100_000, True), (100_001, False)):
        assert LARGE.takes_it(Money(amount, "EUR"), None, "tok_visa") is fits
        rule = Rule(currencies=frozenset({"EUR"}), least=5_000, most=100_000, gateways=("one",))
        assert rule.fits(Money(amount, "EUR"), None) is fits
    assert [Terms(fee_bp=50).cost(Money(amount, "EUR")) for amount in (99, 100, 299, 300)] == [0, 1, 1, 2]


def test_the_first_rule_that_fits_says_which_and_in_which_order() -> None:
    rules: list[dict[str, Any]] = [
        {"currencies": ["EUR"], "countries": ["DE"], "gateways": ["one", "europe"]},
        {"currencies": ["EUR"], "least": 5_000, "gateways": ["large"]},
        {"currencies": ["EUR"], "gateways": ["one", "two"], "by": "cost"},
    ]
    assert order(country="DE", rules=rules) == ["one", "europe"]
    assert order(country="FR", rules=rules) == order(country=None, rules=rules) == ["two", "one"]
    assert order(Money(5_000, "EUR"), rules=rules) == ["large"]
    assert order(Money(4_999, "EUR"), rules=rules) == ["one", "two"]  # 95 and 145
    assert order(Money(1000, "GBP"), "DE", rules=rules) == []
    why = rank(ALL, [Rule(**one) for one in rules], EUR_10, "FR", "tok_visa").why
    assert why == "rule 3, by cost two 29 one 39"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"gateways": {"Test": {}}}, "one lower-case word"),
        ({"gateways": {"one": {"set": {"stripe": 1}}}}, "no setting stripe"),
        ({"gateways": {"one": {"currencies": ["EURO"]}}}, "EURO"),
        ({"gateways": {"one": {"countries": ["de"]}}}, "'de' is no"),
        ({"gateways": {"one": {"limit": 3}}}, "limit"),
        ({"routes": [{"gateways": ["other"]}]}, "rule 1 names gateways that there are not: other"),
        ({"routes": [{"gateways": ["test"], "least": 1}]}, "least and most need currencies"),
        ({"routes": [{"gateways": []}]}, "at least 1"),
    ],
)
def test_rules_that_make_no_sense_are_refused_at_the_start(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        GatewaySettings(**given)


def test_several_gateways_may_have_one_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "TITAN_GATEWAYS", '{"test": {}, "backup": {"adapter": "test", "set": {"test_gateway": "http://127.0.0.1:9"}}}'
    )
    settings = GatewaySettings(test_gateway="http://127.0.0.1:8")
    urls = [settings.at(name).test_gateway_url for name in ("test", "backup")]
    assert urls == ["http://127.0.0.1:8", "http://127.0.0.1:9"]
    assert settings.at("backup").webhook_url.endswith("/payments/webhooks/backup")


@for_all(
    st.sampled_from(["EUR", "USD", "JPY"]), st.integers(1, 200_000), st.sampled_from(["DE", "US", None]), st.booleans()
)
@hypothesis(deadline=None)
def test_only_gateways_that_take_it_are_asked(currency: str, amount: int, country: str | None, ruled: bool) -> None:
    rules = [Rule(gateways=("large", "europe", "one"))] if ruled else []
    names = rank(ALL, rules, Money(amount, currency), country, "tok_visa").gateways
    assert len(set(names)) == len(names)
    assert all(ALL[name].takes_it(Money(amount, currency), country, "tok_visa") for name in names)
    costs = [ALL[name].cost(Money(amount, currency)) for name in names]
    assert ruled or costs == sorted(costs)


class Line:
    """A gateway's connection: requests answer when told to."""

    def __init__(self) -> None:
        self.now, self.turned = datetime(2026, 11, 1, tzinfo=UTC), list[State]()
        self.circuit = Circuit("one", lambda: self.now, changed=lambda name, state: self.turned.append(state))

    @property
    def state(self) -> str:
        return self.circuit.state

    async def request(self, fails: bool, proves: bool = True) -> str:
        async def answer() -> str:
            if fails:
                raise Unknown("no answer")
            return "yes"

        try:
            return await self.circuit.call(answer, proves)
        except Unreached:
            return "not sent"
        except Unknown:
            return "no answer"


def on_a_line(what: Callable[[Line], Awaitable[None]]) -> None:
    asyncio.run(what(Line()))  # type: ignore[arg-type]


def test_a_circuit_opens_after_failures_in_a_row_and_closes_after_a_probe() -> None:
    async def main(line: Line) -> None:
        for fails in (True, True, True, True, False, True, True, True, True):
            assert await line.request(fails) == ("no answer" if fails else "yes")
        assert line.state == "closed"
        await line.request(True)
        assert (line.state, await line.request(False)) == ("open", "not sent")
        line.now += timedelta(seconds=10) - timedelta(microseconds=1)
        assert await line.request(False) == "not sent"
        line.now += timedelta(microseconds=1)
        assert await line.request(True) == "no answer"  # the probe: from now twice as long
        line.now += timedelta(seconds=19)
        assert await line.request(False) == "not sent"
        line.now += timedelta(seconds=1)
        assert await line.request(False, proves=False) == "yes" and line.state == "half open"
        assert await line.request(False) == "yes" and line.state == "closed"
        assert line.turned == ["open", "open", "closed"]
        for _ in range(5):
            await line.request(True)
        for _ in range(12):
            line.now += timedelta(minutes=2)
            assert await line.request(True) == "no answer"  # never longer than that

    on_a_line(main)


def test_a_probe_that_works_forgets_how_long_the_pauses_were() -> None:
    async def main(line: Line) -> None:
        for _ in range(5):
            await line.request(True)
        for pause in (10, 20, 40):
            line.now += timedelta(seconds=pause)
            assert await line.request(True) == "no answer"
        line.now += timedelta(seconds=80)
        assert await line.request(False) == "yes"
        for _ in range(5):
            assert await line.request(True) == "no answer"  # nor are failures counted from before
        line.now += timedelta(seconds=10)
        assert line.state == "half open"

    on_a_line(main)


def test_a_clock_that_is_set_back_keeps_no_circuit_open() -> None:
    async def main(line: Line) -> None:
        for _ in range(5):
            await line.request(True)
        line.now -= timedelta(hours=1)
        assert await line.request(False) == "yes" and line.state == "closed"

    on_a_line(main)


def test_a_look_up_that_works_does_not_hide_payments_that_do_not() -> None:
    async def main(line: Line) -> None:
        for _ in range(5):
            await line.request(True)
            await line.request(False, proves=False)
        assert line.state == "open"

    on_a_line(main)


class Deaf:
    """A gateway that says what it knows, and takes nothing."""

    notice = close = attach = detach = None

    async def lookup(self, payment: Payment) -> list[Fact]:
        return []

    async def authorise(self, payment: Payment) -> list[Fact]:
        raise Unknown("no answer")


def test_a_gateway_that_is_asked_what_it_knows_between_is_left_alone_all_the_same() -> None:
    async def main(line: Line) -> None:
        gateway, payment = Guarded(Deaf(), line.circuit), Payment(uuid4(), uuid4(), EUR_10, "pm_1")  # type: ignore[arg-type]
        for _ in range(5):
            with pytest.raises(Unknown):
                await gateway.authorise(payment)
            assert line.state == "open" or not await gateway.lookup(payment)
        assert line.state == "open"
        line.now += timedelta(seconds=10)
        assert not await gateway.lookup(payment) and line.state == "half open"

    on_a_line(main)


def test_one_probe_at_a_time_and_one_that_is_cancelled_lets_the_next_one_go() -> None:
    async def main(line: Line) -> None:
        for _ in range(5):
            await line.request(True)
        line.now += timedelta(seconds=10)
        stuck = asyncio.create_task(line.circuit.call(asyncio.Event().wait))
        await asyncio.sleep(0)
        assert await asyncio.gather(*(line.request(False) for _ in range(20))) == ["not sent"] * 20
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        answers = await asyncio.gather(*(line.request(False) for _ in range(3)))
        assert answers[0] == "yes" and line.state == "closed"

    on_a_line(main)


def test_what_began_before_the_circuit_changed_counts_for_nothing() -> None:
    async def main(line: Line) -> None:
        late = asyncio.Event()

        async def slow(fails: bool) -> None:
            await late.wait()
            if fails:
                raise Unknown("no answer")

        requests = [asyncio.create_task(line.circuit.call(lambda one=fails: slow(one))) for fails in (True, False)]  # type: ignore[misc]
        await asyncio.sleep(0)
        for _ in range(5):
            await line.request(True)
        late.set()
        await asyncio.gather(*requests, return_exceptions=True)
        assert line.state == "open"  # an old success does not close it
        line.now += timedelta(seconds=10)
        assert line.state == "half open"  # and an old failure does not prolong it

    on_a_line(main)


class Breaking(RuleBasedStateMachine):
    """Requests that overlap in any way, against what a circuit promises."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.loop = Line(), asyncio.new_event_loop()
        self.flying: list[tuple[asyncio.Task[None], asyncio.Future[bool], bool]] = []

    @rule()
    def send(self) -> None:
        answer: asyncio.Future[bool] = self.loop.create_future()

        async def request() -> None:
            if not await answer:
                raise Unknown("no answer")

        before, passes = self.line.state, self.line.circuit.passes
        task = self.loop.create_task(self.line.circuit.call(request))
        self.loop.run_until_complete(asyncio.sleep(0))
        assert task.done() is not passes
        if task.done():
            assert isinstance(task.exception(), Unreached)
        else:
            self.flying.append((task, answer, before == "half open"))

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 9), works=st.booleans(), cancelled=st.integers(0, 5))
    def answers(self, which: int, works: bool, cancelled: int) -> None:
        task, answer, _ = self.flying.pop(which % len(self.flying))
        task.cancel() if cancelled == 0 else answer.set_result(works)
        self.loop.run_until_complete(asyncio.gather(task, return_exceptions=True))

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        self.line.now += timedelta(seconds=seconds)

    @invariant()
    def at_most_one_probe(self) -> None:
        assert sum(probe for *_, probe in self.flying) <= 1
        if self.line.state == "closed":
            assert self.line.circuit.passes

    def teardown(self) -> None:
        for task, *_ in self.flying:
            task.cancel()
            self.loop.run_until_complete(asyncio.wait([task]))
        self.line.now += timedelta(minutes=3)
        assert self.line.circuit.passes, "it is never shut for good"
        self.loop.close()


TestBreaking = Breaking.TestCase


def test_a_payment_pinned_to_a_gateway_keeps_its_country() -> None:
    payment = Payment(uuid4(), uuid4(), EUR_10, "pm_1", "one", "DE")
    assert (payment.pinned, payment.gateway, payment.country) == (True, "one", "DE")
