"""Payments over several gateways, each a process of its own: whatever fails and whoever dies, one of them holds the money."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

import streams.payment
from aggregates.kernel import Money, wire
from aggregates.payment import Declined, Left, Payment, Routed
from infra.children import tie
from infra.servers import free_port
from infra.settings import ROOT
from streams.gateways.routing import Rule, Terms
from streams.gateways.settings import GatewaySettings
from streams.kernel.migrate import CIRCUITS, make
from tests.kernel.connections import connected
from tests.kernel.gateway import gateway_process, gateway_settings, running_gateway
from tests.kernel.paying import REACTORS, Desk, at_desk, held_by_gateway
from tests.kernel.topic import stored

RULES = (  # a currency for each story
    Rule(currencies=frozenset({"EUR"}), gateways=("one", "two")),
    Rule(currencies=frozenset({"USD"}), gateways=("away", "one", "two")),
    Rule(currencies=frozenset({"GBP"}), gateways=("away",)),
    Rule(currencies=frozenset({"JPY"}), gateways=("euro",)),
)


def several(folder: Path, routes: tuple[Rule, ...] = RULES) -> GatewaySettings:
    """Settings of three gateways, of which one is not there, and of one that takes only euros."""
    terms = {
        name: Terms(adapter="test", set={"test_gateway": f"http://127.0.0.1:{free_port()}"})
        for name in ("one", "two", "away")
    }
    terms["euro"] = Terms(adapter="test", currencies=frozenset({"EUR"}))
    return gateway_settings(folder, gateways=terms, routes=routes, gateway_timeout_s=0.3)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySettings]:
    made = several(tmp_path_factory.mktemp("gateways"))
    with ExitStack() as stack:
        for name in ("one", "two"):
            stack.enter_context(running_gateway(made.at(name)))
        yield made


def at_work(dsn: str, settings: GatewaySettings, what: Callable[[Desk], Awaitable[None]]) -> None:
    async def main() -> None:
        async with at_desk(dsn, settings) as desk:
            await what(desk)

    asyncio.run(main())


def statuses(settings: GatewaySettings, id: UUID, *names: str) -> list[str | None]:
    return [held_by_gateway(settings.at(name), id).get("status") for name in names]


def test_a_payment_goes_by_the_rules_and_on_when_nobody_is_there(postgres: str, settings: GatewaySettings) -> None:
    async def main(desk: Desk) -> None:
        id = await desk.pay("tok_visa", currency="USD")
        await desk.react()
        assert await desk.kinds(id) == ["Requested", "Routed", "Left", "Routed", "Authorised", "Unresolved"]
        first, second = (one for one in await desk.history(id) if isinstance(one, Routed))
        assert (first.gateway, second.gateway, second.reason) == ("away", "one", "rule 2; left away")
        assert statuses(settings, id, "one", "two") == ["authorised", None]
        capture, refund = uuid4(), uuid4()
        await desk.commands.tell(id, Payment.capture, capture, Money(700, "USD"))
        await desk.react()
        await desk.commands.tell(id, Payment.refund, refund, Money(300, "USD"))
        await desk.commands.tell(id, Payment.void)
        await desk.react()  # all that follows goes to the one that authorised
        theirs = held_by_gateway(settings.at("one"), id)
        assert (theirs["captured"], theirs["refunded"], theirs["status"]) == (700, 300, "voided")
        payment = await desk.payment(id)
        assert (payment.taken, payment.returned, payment.authorisation, payment.left) == (700, 300, "voided", ("away",))

    at_work(postgres, settings, main)


def test_no_gateway_takes_it_and_it_is_declined(postgres: str, settings: GatewaySettings) -> None:
    async def main(desk: Desk) -> None:
        for currency, why in (("JPY", "rule 4"), ("CHF", "no rule fits")):
            id = await desk.pay("tok_visa", currency=currency)
            await desk.react()
            last = (await desk.history(id))[-1]
            assert isinstance(last, Declined) and last.code == "no_gateway" and why in last.reason

    at_work(postgres, settings, main)


def test_a_gateway_that_never_answers_is_asked_first_what_it_knows(postgres: str, settings: GatewaySettings) -> None:
    async def main(desk: Desk) -> None:
        charged, dropped = await desk.pay("tok_timeoutCharged"), await desk.pay("tok_timeoutNotCharged")
        await desk.react()
        for id in (charged, dropped):
            assert await desk.kinds(id) == ["Requested", "Routed", "Unresolved"]
        await desk.move(timedelta(seconds=1))
        assert await desk.kinds(charged) == ["Requested", "Routed", "Unresolved", "Asked", "Authorised"]
        assert statuses(settings, charged, "one", "two") == ["authorised", None]
        assert (await desk.kinds(dropped))[3:7] == ["Asked", "Leaving", "Left", "Routed"]
        assert statuses(settings, dropped, "one", "two") == ["voided", None]  # and the second one drops it, too
        await desk.move(timedelta(seconds=1))
        assert statuses(settings, dropped, "one", "two") == ["voided", "authorised"]
        assert (await desk.payment(dropped)).gateway == "two"

    at_work(postgres, settings, main)


def test_an_ambiguous_gateway_that_is_gone_is_waited_for(postgres: str, tmp_path: Path) -> None:
    """It may have charged: no other one is asked, however long it takes."""
    settings = several(tmp_path)
    first, second = gateway_process(settings.at("one")), gateway_process(settings.at("two"))

    async def main(desk: Desk) -> None:
        id = await desk.pay("tok_timeoutCharged")
        await desk.react()
        await asyncio.to_thread(first.stop)
        for _ in range(8):
            await desk.move(timedelta(minutes=15))
        assert {*(await desk.kinds(id))[2:]} == {"Unresolved", "Asked"}
        assert statuses(settings, id, "two") == [None]
        first.start()
        await asyncio.to_thread(first.wait_ready)
        await desk.move(timedelta(minutes=15))
        assert (await desk.payment(id)).gateway == "one"
        assert statuses(settings, id, "one", "two") == ["authorised", None]

    first.start()
    second.start()
    try:
        first.wait_ready()
        second.wait_ready()
        at_work(postgres, settings, main)
    finally:
        first.stop()
        second.stop()


def test_one_that_was_left_closes_our_reference_once_it_is_there(postgres: str, tmp_path: Path) -> None:
    settings = several(tmp_path)

    async def main(desk: Desk) -> None:
        id = await desk.pay("tok_visa", currency="USD")
        await desk.react()
        assert (await desk.payment(id)).closing.keys() == {Payment.close_id_of(id, "away")}
        with running_gateway(settings.at("away")) as away:
            await desk.move(timedelta(minutes=15))
            assert (await desk.kinds(id))[-1] == "Closed"
            assert not (await desk.payment(id)).waiting
            late = away.put(f"/payments/{id}", json={"amount": 1000, "currency": "USD", "token": "tok_visa"})
            assert late.json()["status"] == "voided"  # a request that comes late is not carried out
            assert statuses(settings, id, "one") == ["authorised"]

    with running_gateway(settings.at("one")):
        at_work(postgres, settings, main)


def told(dsn: str) -> list[tuple[Any, ...]]:
    with connected(dsn) as connection:
        return connection.execute("SELECT gateway, closed FROM gateway_circuits").fetchall()


def test_one_that_does_not_answer_is_left_alone_for_a_while(postgres: str, settings: GatewaySettings) -> None:
    with psycopg.connect(postgres) as connection:
        make(connection, CIRCUITS)
        gone = "INSERT INTO gateway_circuits VALUES ('away', 'of a process that is no more', false, now() - interval '2 days')"
        connection.execute(gone)

    async def main(desk: Desk) -> None:
        for _ in range(5):
            await desk.pay("tok_visa", currency="GBP")
        await desk.react()
        assert streams.payment.circuit("away").state == "open"
        id = await desk.pay("tok_visa", currency="USD")
        await desk.react()
        assert await desk.kinds(id) == ["Requested", "Routed", "Authorised"]
        routed = (await desk.history(id))[1]
        assert isinstance(routed, Routed) and routed.reason == "rule 2; away is away"
        assert streams.payment.CIRCUIT.labels("away")._value.get() == 1
        await asyncio.gather(*streams.payment.TELLING)
        [(gateway, closed)] = told(postgres)
        assert (gateway, closed) == ("away", False)
        only = await desk.pay("tok_visa", currency="GBP")
        await desk.react()
        assert await desk.kinds(only) == [
            "Requested",
            "Unresolved",
        ]  # nobody in charge, nobody asked; asked again later
        await desk.move(timedelta(minutes=15))
        assert (await desk.kinds(only))[2] == "Asked"

    at_work(postgres, settings, main)


def test_a_pinned_payment_never_goes_elsewhere(postgres: str, settings: GatewaySettings) -> None:
    async def both(desk: Desk) -> None:
        ids = [await desk.pay("tok_visa", gateway=name) for name in ("away", "two")]
        await desk.react()
        await desk.move(timedelta(minutes=15))
        assert {*await desk.kinds(ids[0])} == {"Requested", "Unresolved", "Asked"}
        assert await desk.kinds(ids[1]) == ["Requested", "Authorised"]

    at_work(postgres, settings, both)


def test_two_processes_choose_one_gateway(postgres: str, settings: GatewaySettings) -> None:
    async def main(desk: Desk) -> None:
        ids = [await desk.pay("tok_visa", currency=currency) for currency in ("USD", "EUR") * 5]
        for _ in range(2):
            rows = [wire.recorded("payment", row) for row in stored(desk.dsn, "payment")]
            handled = [row for row in rows if type(row.event) in REACTORS]
            await asyncio.gather(*(desk.handle(row) for row in handled for _ in range(3)))
        await desk.react()
        for id in ids:
            assert statuses(settings, id, "one", "two") == ["authorised", None]
            assert len([one for one in await desk.history(id) if isinstance(one, Left)]) <= 1

    at_work(postgres, settings.model_copy(update={"gateway_timeout_s": 10.0}), main)  # it answers, asked by all at once


class Lives:
    """Processes of the reactor, one after another; see tests/chaos/paying.py."""

    def __init__(self, forker: subprocess.Popen[str], dsn: str, settings: GatewaySettings) -> None:
        self.forker, self.dsn = forker, dsn
        self.settings = settings.model_dump(mode="json", exclude_unset=True)

    def live(self, at: int, desk: Desk) -> int:
        """The exit code of one that dies before that effect."""
        assert self.forker.stdin is not None and self.forker.stdout is not None
        told = {"dsn": self.dsn, "settings": self.settings, "at": at, "seen": desk.seen}
        told["later_s"] = desk.later.total_seconds()
        self.forker.stdin.write(json.dumps(told) + "\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())


@pytest.fixture
def lives(postgres: str, settings: GatewaySettings) -> Iterator[Lives]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.paying"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=tie(),
    ) as forker:  # fmt: skip
        yield Lives(forker, postgres, settings)
        forker.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("token", "currency"), [("tok_visa", "USD"), ("tok_timeoutNotCharged", "EUR")])
def test_killed_between_any_two_of_its_effects_one_gateway_holds_the_money(
    postgres: str, settings: GatewaySettings, lives: Lives, token: str, currency: str
) -> None:
    """A gateway that may have been asked by the process that died, and is not there, is waited for; then it comes back."""
    every = ("one", "two", "away")

    def judge(payment: Payment, held: dict[str, str | None]) -> None:
        assert payment.authorisation == "authorised"
        assert held.pop(payment.gateway) == "authorised"
        assert {*held.values()} <= {None, "voided"}

    async def main(desk: Desk) -> None:
        ids, waiting = [], []
        for at in range(1, 100):
            before = desk.seen
            ids.append(id := await desk.pay(token, currency=currency))
            code = await asyncio.to_thread(lives.live, at, desk)
            if code != 0:
                assert code == -signal.SIGKILL
                desk.later += timedelta(minutes=1)  # another one takes over, and gets again what was not done with
                desk.seen = before
                await desk.react()
            for _ in range(3):
                await desk.move(timedelta(minutes=1))
            payment = await desk.payment(id)
            if payment.gateway == "away":
                assert statuses(settings, id, "one", "two") == [None, None]
                waiting.append(id)
            else:
                judge(payment, dict(zip(every, statuses(settings, id, "one", "two"), strict=False)))
            if code == 0:
                assert at > 4, "it has come through the whole story"
                break
        else:
            raise AssertionError("it dies for ever")
        assert len(waiting) == (2 if currency == "USD" else 0), "died when it had chosen, before it asked or knew"
        if currency != "USD":
            return
        with running_gateway(settings.at("away")):
            for _ in range(30):
                await desk.move(timedelta(minutes=15))
                if not any([(await desk.payment(id)).waiting for id in ids]):
                    break
            for id in ids:
                payment = await desk.payment(id)
                judge(payment, dict(zip(every, statuses(settings, id, *every), strict=True)))
                assert (await desk.kinds(id)).count("Authorised") == 1

    at_work(postgres, settings, main)
