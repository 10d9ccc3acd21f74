"""The payment reactor on a real store, against the test gateway in a process of its own. Time is moved, never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.kernel import Money, wire
from aggregates.payment import Authorised, Captured, Declined, Payment, Refunded, Unresolved
from streams.gateways.settings import GatewaySettings
from tests.kernel.gateway import client, gateway_process, gateway_settings, running_gateway
from tests.kernel.paying import EUR, Desk, at_desk, held_by_gateway
from tests.kernel.topic import stored


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewaySettings]:
    settings = gateway_settings(tmp_path_factory.mktemp("gateway"))
    with running_gateway(settings):
        yield settings


@pytest.fixture
def run(postgres: str, settings: GatewaySettings) -> Callable[[Callable[[Desk], Awaitable[None]]], None]:
    def run(what: Callable[[Desk], Awaitable[None]]) -> None:
        async def main() -> None:
            async with at_desk(postgres, settings) as desk:
                await what(desk)

        asyncio.run(main())

    return run


Run = Callable[[Callable[[Desk], Awaitable[None]]], None]


def test_a_payment_from_request_to_refund(run: Run) -> None:
    async def whole(desk: Desk) -> None:
        id = await desk.pay("tok_visa")
        await desk.react()
        assert (await desk.payment(id)).authorisation == "authorised"
        for capture, amount in ((uuid4(), 600), (uuid4(), 300)):
            await desk.commands.tell(id, Payment.capture, capture, Money(amount, EUR))
        await desk.react()
        await desk.commands.tell(id, Payment.refund, uuid4(), Money(500, EUR))
        await desk.commands.tell(id, Payment.void)
        await desk.react()
        payment = await desk.payment(id)
        assert (payment.taken, payment.returned, payment.held, payment.authorisation) == (900, 500, 0, "voided")
        theirs = held_by_gateway(desk.settings, id)
        assert (theirs["captured"], theirs["refunded"], theirs["status"]) == (900, 500, "voided")
        before = await desk.kinds(id)
        desk.seen = 0
        await desk.react()  # delivered again, all of it
        assert await desk.kinds(id) == before

    run(whole)


def test_a_decline_ends_it(run: Run) -> None:
    async def decline(desk: Desk) -> None:
        id = await desk.pay("tok_insufficientFunds")
        await desk.react()
        last = (await desk.history(id))[-1]
        assert isinstance(last, Declined) and last.code == "insufficient_funds"

    run(decline)


@pytest.mark.parametrize("token", ["tok_timeoutCharged", "tok_timeoutNotCharged", "tok_unavailable"])
def test_an_unknown_authorisation_is_resolved_by_asking(run: Run, token: str) -> None:
    async def unknown(desk: Desk) -> None:
        id = await desk.pay(token)
        await desk.react()
        assert await desk.kinds(id) == ["Requested", "Routed", "Unresolved"]
        assert held_by_gateway(desk.settings, id).get("status") == (
            "authorised" if token == "tok_timeoutCharged" else None
        )
        await desk.move(timedelta(seconds=1))
        assert await desk.kinds(id) == ["Requested", "Routed", "Unresolved", "Asked", "Authorised"]
        await desk.move(timedelta(days=1))
        assert len(await desk.history(id)) == 5

    run(unknown)


@pytest.mark.parametrize("token", ["tok_timeoutCapture", "tok_captureFailsOnce"])
def test_an_unknown_capture_is_taken_once(run: Run, token: str) -> None:
    async def unknown(desk: Desk) -> None:
        id, capture = await desk.pay(token), uuid4()
        await desk.react()
        await desk.commands.tell(id, Payment.capture, capture, Money(400, EUR))
        await desk.react()
        assert (await desk.payment(id)).waiting == {capture: 1}
        await desk.move(timedelta(seconds=1))
        payment = await desk.payment(id)
        assert (payment.taken, payment.waiting) == (400, {})
        assert held_by_gateway(desk.settings, id)["captured"] == 400

    run(unknown)


def test_unknown_voids_and_refunds_are_resolved_too(run: Run) -> None:
    async def unknown(desk: Desk) -> None:
        voided, refunded, failing = await desk.pay("tok_timeoutVoid"), await desk.pay("tok_timeoutRefund"), uuid4()
        twice = await desk.pay("tok_refundFailsOnce")
        await desk.react()
        await desk.commands.tell(voided, Payment.void)
        for id in (refunded, twice):
            await desk.commands.tell(id, Payment.capture, uuid4(), Money(1000, EUR))
        await desk.react()
        for id in (refunded, twice):
            await desk.commands.tell(id, Payment.refund, failing, Money(100, EUR))
        await desk.react()
        await desk.move(timedelta(seconds=1))
        assert (await desk.payment(voided)).authorisation == "voided"
        for id in (refunded, twice):
            payment = await desk.payment(id)
            assert (payment.returned, payment.waiting) == (100, {})
            assert held_by_gateway(desk.settings, id)["refunded"] == 100

    run(unknown)


@pytest.mark.parametrize("token", ["tok_timeoutCharged", "tok_timeoutNotCharged", "tok_visa"])
def test_given_up_while_unknown_nothing_stays_held(run: Run, token: str) -> None:
    async def give_up(desk: Desk) -> None:
        id = await desk.pay(token)
        if token != "tok_visa":  # else it is given up before the reactor has come to it
            await desk.react()
        await desk.commands.tell(id, Payment.void)
        await desk.react()
        await desk.move(timedelta(seconds=1))
        payment = await desk.payment(id)
        assert (payment.authorisation, payment.waiting) == ("voided", {})
        asked = token != "tok_visa"  # else no gateway ever is
        assert held_by_gateway(desk.settings, id).get("status") == ("voided" if asked else None)
        assert "Authorised" not in await desk.kinds(id)

    run(give_up)


def test_an_authorisation_runs_out_by_itself(run: Run) -> None:
    async def run_out(desk: Desk) -> None:
        taken, left, action = (
            await desk.pay("tok_visa"),
            await desk.pay("tok_visa"),
            await desk.pay("tok_requiresAction"),
        )
        await desk.react()
        await desk.commands.tell(taken, Payment.capture, uuid4(), Money(1000, EUR))
        await desk.react()
        await desk.move(timedelta(hours=1))
        assert (await desk.payment(action)).authorisation == "voided"  # nobody confirmed it
        assert (await desk.payment(left)).authorisation == "authorised"
        await desk.move(timedelta(days=7))
        assert (await desk.kinds(left))[-2:] == ["VoidRequested", "Voided"]
        assert (await desk.kinds(taken))[-1] == "Captured"
        assert held_by_gateway(desk.settings, left)["status"] == "voided"

    run(run_out)


def test_a_gateway_that_is_away_is_asked_until_it_is_back(postgres: str, tmp_path: Any) -> None:
    settings = gateway_settings(tmp_path)

    async def away(desk: Desk) -> None:
        id = await desk.pay("tok_visa")
        await desk.react()
        for tries in range(1, 4):
            payment = await desk.payment(id)
            assert payment.waiting == {id: tries}
            await desk.move(timedelta(minutes=15))
        last = (await desk.history(id))[-1]
        assert isinstance(last, Unresolved) and "not reached" in last.reason
        child = gateway_process(settings)
        child.start()
        try:
            await asyncio.to_thread(child.wait_ready)
            await desk.move(timedelta(minutes=15))
            assert (await desk.payment(id)).authorisation == "authorised"
        finally:
            await asyncio.to_thread(child.stop)

    async def main() -> None:
        async with at_desk(postgres, settings) as desk:
            await away(desk)

    asyncio.run(main())


@pytest.mark.parametrize("what", ["authorise", "capture", "refund"])
def test_a_process_that_dies_between_the_gateway_and_the_outcome_charges_once(run: Run, what: str) -> None:
    """The answer is on its way when the process ends; another one takes the event up."""
    token = {"authorise": "tok_timeoutCharged", "capture": "tok_timeoutCapture", "refund": "tok_timeoutRefund"}[what]

    async def killed(desk: Desk) -> tuple[UUID, int] | None:
        """The payment and the event that it died over; None when the gateway's time was over just before."""
        id = await desk.pay(token)
        if what != "authorise":
            await desk.react()
            await desk.commands.tell(id, Payment.capture, uuid4(), Money(700, EUR))
        if what == "refund":
            await desk.react()
            await desk.commands.tell(id, Payment.refund, uuid4(), Money(300, EUR))
        intent = desk.seen
        at_work = asyncio.create_task(desk.react())
        done = {"authorise": ("status", "authorised"), "capture": ("captured", 700), "refund": ("refunded", 300)}[what]
        while (await asyncio.to_thread(held_by_gateway, desk.settings, id)).get(done[0]) != done[1]:
            assert not at_work.done()
        at_work.cancel()
        try:
            await at_work
        except asyncio.CancelledError:
            return id, intent
        return None

    async def die(desk: Desk) -> None:
        died = None
        for _ in range(5):
            died = died or await killed(desk)
        assert died is not None
        id, intent = died
        assert not {"Authorised", "Captured", "Refunded"} & {*(await desk.kinds(id))[-1:]}

        desk.seen = intent
        desk.later += timedelta(minutes=1)
        await desk.react()
        payment = await desk.payment(id)
        assert not payment.waiting
        theirs = held_by_gateway(desk.settings, id)
        assert (payment.taken, payment.returned) == (theirs["captured"], theirs["refunded"])
        assert (theirs["captured"], theirs["refunded"]) == {
            "authorise": (0, 0),
            "capture": (700, 0),
            "refund": (700, 300),
        }[what]
        outcomes = [
            type(event) for event in await desk.history(id) if isinstance(event, Authorised | Captured | Refunded)
        ]
        assert len(outcomes) == len(set(outcomes))

    run(die)


def test_two_processes_at_the_same_event_charge_once(run: Run) -> None:
    async def race(desk: Desk) -> None:
        ids = [await desk.pay("tok_visa") for _ in range(20)]
        rows = [wire.recorded("payment", row) for row in stored(desk.dsn, "payment")]
        await asyncio.gather(*(desk.handle(row) for row in rows for _ in range(3)))
        for id in ids:
            assert await desk.kinds(id) == ["Requested", "Routed", "Authorised"]

    run(race)


def test_what_a_gateway_says_against_itself_stops_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def contradict(desk: Desk) -> None:
        id, capture = await desk.pay("tok_visa"), uuid4()
        await desk.react()
        await desk.commands.tell(id, Payment.capture, capture, Money(400, EUR))
        with client(desk.settings) as shop:  # somebody captures at the gateway, behind our back
            shop.put(f"/payments/{id}/captures/{uuid4()}", json={"amount": 100})
        await desk.react()
        assert isinstance((await desk.history(id))[-1], Unresolved)
        assert "was not asked for" in caplog.text

    run(contradict)
