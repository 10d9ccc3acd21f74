"""What every gateway's adapter promises, held against each of them: the test gateway, and the vendors' stand-ins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.kernel import Money, Refused
from aggregates.kernel.token import payment_token
from aggregates.payment import ALL, Operation, Payment
from infra.servers import free_port
from streams.gateways.interface import Declined, Fact, Forged, Gateway, Returning, Unknown, Unreached, open_gateway
from tests.kernel.gateway_sites import Site, site

GATEWAYS = ("test", "stripe", "adyen")
SIGNED = GATEWAYS[1:]  # the test gateway's webhooks have tests of their own


@pytest.fixture(scope="module", params=GATEWAYS)
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(request.param, tmp_path_factory.mktemp(request.param)) as site_of_it:
        yield site_of_it


class Desk:
    """One payment at one gateway; does what the reactor does, and hears what the vendor tells, twice and in any order."""

    def __init__(self, there: Site, gateway: Gateway, card: str, amount: int = 1000) -> None:
        self.there, self.gateway = there, gateway
        self.payment = Payment(uuid4(), uuid4(), Money(amount, "EUR"), there.cards[card])

    async def send(self, intent: UUID) -> None:
        """Carry out an intent. Raises `Unknown`; none of what is said contradicts anything."""
        payment, currency = self.payment, self.payment.amount.currency
        if intent == payment.id:
            facts = await self.gateway.authorise(payment)
        elif intent in payment.captures:
            facts = await self.gateway.capture(payment, intent, Money(payment.captures[intent].amount, currency))
        elif intent in payment.refunds:
            facts = await self.gateway.refund(payment, intent, Money(payment.refunds[intent].amount, currency))
        else:
            facts = await self.gateway.void(payment)
        self.told(facts)
        self.hear()

    async def settle(self, intent: UUID) -> None:
        """As the reactor does for as long as the outcome is not known: look it up, then ask again. Three times at most."""
        for _ in range(3):
            try:
                self.told(await self.gateway.lookup(self.payment))
                if intent in self.payment.waiting:
                    await self.send(intent)
                return
            except Unknown:
                continue
        pytest.fail("the outcome stays unknown")

    async def authorise(self) -> Payment:
        await self.send(self.payment.id)
        return self.payment

    async def capture(self, amount: int) -> UUID:
        self.payment.capture(id := uuid4(), Money(amount, "EUR"))
        await self.send(id)
        return id

    async def refund(self, amount: int) -> UUID:
        self.payment.refund(id := uuid4(), Money(amount, "EUR"))
        await self.send(id)
        return id

    async def void(self) -> None:
        self.payment.void()
        await self.send(self.payment.void_id)

    def told(self, facts: Any) -> None:
        told(self.payment, facts)

    def hear(self) -> None:
        got = self.there.webhooks()
        for headers, body in Random(len(got)).sample(2 * got, 2 * len(got)):
            notice = self.gateway.notice(headers.get, body, datetime.now(UTC))
            if notice is not None and notice.payment == self.payment.id:
                told(self.payment, notice.facts)


def told(payment: Payment, facts: Any) -> None:
    for one in facts:
        one.call(payment, *one.args)
    payment.check()


def names(facts: Any) -> list[str]:
    return [one.call.__name__ for one in facts]


def run(there: Site, what: Callable[[Gateway], Awaitable[None]]) -> None:
    async def main() -> None:
        gateway = open_gateway(there.name, there.settings)
        try:
            await what(gateway)
        finally:
            await gateway.close()

    asyncio.run(main())


def test_the_whole_of_a_payment(there: Site) -> None:
    async def whole(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "good")
        assert (await desk.authorise()).held == 1000 and desk.payment.transaction
        capture = await desk.capture(600)
        refund = await desk.refund(200)
        for intent in (desk.payment.id, capture, refund):  # everything again does nothing
            await desk.send(intent)
        await desk.void()
        for _ in range(2):
            payment = desk.payment
            assert (payment.authorisation, payment.taken, payment.returned, payment.held) == ("voided", 600, 200, 0)
            assert not payment.waiting
            desk.told(await gateway.lookup(payment))
            await desk.send(payment.void_id)

    before = there.totals()
    run(there, whole)
    after = there.totals()
    assert (after[0] - before[0], after[1] - before[1]) == (600, 200)


def test_what_was_done_fails_after_all(there: Site) -> None:
    """Whoever tells it: the webhook, or the gateway when it is asked. An older word that comes again says nothing."""

    async def fails(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "good")
        payment = await desk.authorise()
        capture, refund = await desk.capture(1000), await desk.refund(200)
        assert (payment.taken, payment.returned) == (1000, 200)
        there.reverse(payment.id, refund)
        if there.name != "stripe":  # a card's captures are final there
            there.reverse(payment.id, capture)
        before = payment.version
        desk.hear()
        desk.told(await gateway.lookup(payment))
        events = [type(one).__name__ for one in payment.collect_events()][before:]
        left = 1000 if there.name == "stripe" else 0
        assert (payment.taken, payment.returned, payment.refunds[refund].state) == (left, 0, "reversed")
        assert sorted(events) == ["CaptureReversed"] * (left == 0) + ["RefundReversed"]
        for _ in range(2):
            desk.told(await gateway.refund(payment, refund, Money(200, "EUR")))
            desk.told(await gateway.capture(payment, capture, Money(1000, "EUR")))
        assert not payment.collect_events() and not payment.waiting

    run(there, fails)


def test_several_captures_and_refunds_end_with_the_whole(there: Site) -> None:
    async def many(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "good")
        await desk.authorise()
        for amount in (500, 300, 200):
            await desk.capture(amount)
        for amount in (1, 998, 1):
            await desk.refund(amount)
        payment = desk.payment
        assert (payment.taken, payment.returned, payment.held, payment.waiting) == (1000, 1000, 0, {})
        desk.told(await gateway.lookup(payment))
        assert payment.authorisation == "authorised"

    run(there, many)


def test_what_is_refused_has_code_and_reason(there: Site) -> None:
    async def refused(gateway: Gateway) -> None:
        for card, code in (("declined", "insufficient_funds"), ("unknown", None)):
            desk = Desk(there, gateway, card)
            facts = await gateway.authorise(desk.payment)
            assert names(facts) == ["declined"] and facts[0].args[1]
            assert code is None or facts[0].args[0] == code
            desk.told(facts)
            await desk.authorise()  # and once more, after the vendor's own word
            assert desk.payment.authorisation == "declined"

        desk = Desk(there, gateway, "capture fails")
        await desk.authorise()
        id = await desk.capture(1)
        assert desk.payment.captures[id].state == "failed" and desk.payment.held == 1000

        desk = Desk(there, gateway, "refund fails")
        await desk.authorise()
        await desk.capture(1000)
        id = await desk.refund(1)
        assert desk.payment.refunds[id].state in ("failed", "reversed") and not desk.payment.waiting
        desk.told(await gateway.lookup(desk.payment))

    run(there, refused)


@pytest.mark.parametrize("approved", [True, False])
def test_a_customer_confirms_at_the_bank(there: Site, approved: bool) -> None:
    async def confirm(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "action")
        await desk.authorise()
        assert desk.payment.authorisation == "action_required" and desk.payment.url.startswith("http")
        assert desk.payment.expires_at is not None and desk.payment.expires_at > datetime.now(UTC) + timedelta(
            minutes=1
        )
        back = there.decide(desk.payment.url, approved)
        if isinstance(gateway, Returning):
            desk.told(await gateway.returned(desk.payment, back))
        else:
            desk.told(await gateway.lookup(desk.payment))
        desk.hear()
        assert desk.payment.authorisation == ("authorised" if approved else "declined")

    run(there, confirm)


def test_what_waits_for_a_customer_is_voided(there: Site) -> None:
    async def give_up(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "action")
        await desk.authorise()
        await desk.void()
        assert desk.payment.authorisation == "voided" and not desk.payment.waiting

    run(there, give_up)


@pytest.mark.parametrize("card", ["lost authorise", "dropped authorise", "unavailable"])
def test_an_authorisation_without_an_answer_is_one_in_the_end(there: Site, card: str) -> None:
    async def lose(gateway: Gateway) -> None:
        desk = Desk(there, gateway, card)
        with pytest.raises(Unknown) as unknown:
            await desk.authorise()
        assert not isinstance(unknown.value, Unreached)
        await desk.settle(desk.payment.id)
        assert desk.payment.authorisation == "authorised" and desk.payment.held == 1000

    run(there, lose)


@pytest.mark.parametrize("lost", ["capture", "refund", "void"])
def test_an_operation_without_an_answer_is_one_in_the_end(there: Site, lost: str) -> None:
    async def lose(gateway: Gateway) -> None:
        desk = Desk(there, gateway, f"lost {lost}")
        await desk.authorise()
        if lost != "void":
            intent = uuid4()
            if lost == "refund":
                await desk.capture(1000)
            getattr(desk.payment, lost)(intent, Money(400, "EUR"))
        else:
            desk.payment.void()
            intent = desk.payment.void_id
        with pytest.raises(Unknown):
            await desk.send(intent)
        await desk.settle(intent)
        desk.hear()
        assert not desk.payment.waiting

    before = there.totals()
    run(there, lose)
    after = there.totals()
    expected = {"capture": (400, 0), "refund": (1000, 400), "void": (0, 0)}[lost]
    assert (after[0] - before[0], after[1] - before[1]) == expected


class Wallet:
    """What a customer pays with at one gateway, again and again."""

    def __init__(self, there: Site, gateway: Gateway) -> None:
        self.there, self.gateway, self.ada = there, gateway, uuid4()

    async def attach(self, card: str) -> str:
        """A token; the same one when the same is asked for again."""
        method, form = uuid4(), self.there.form(card)
        token = await self.gateway.attach(self.ada, method, *form)
        assert (
            isinstance(token, str)
            and payment_token(token)
            and await self.gateway.attach(self.ada, method, *form) == token
        )
        return token

    async def pay(self, token: str, by: UUID | None = None) -> str:
        payment = Payment(uuid4(), by or self.ada, Money(1000, "EUR"), token)
        told(payment, await self.gateway.authorise(payment))
        return payment.authorisation


def test_what_is_attached_is_charged_again_and_by_nobody_else_until_it_is_detached(there: Site) -> None:
    async def keep(gateway: Gateway) -> None:
        wallet = Wallet(there, gateway)
        token, other = await wallet.attach("good"), await wallet.attach("other")
        assert there.kept(wallet.ada) == {token, other}
        assert [await wallet.pay(one) for one in (token, token, other)] == ["authorised"] * 3
        strict = there.name != "test"  # whose cards are everybody's
        assert not strict or await wallet.pay(token, by=uuid4()) == "declined"
        await gateway.detach(uuid4(), token)  # is not theirs
        assert there.kept(wallet.ada) == {token, other}
        for _ in range(2):
            await gateway.detach(wallet.ada, token)
            assert there.kept(wallet.ada) == {other}
        assert not strict or await wallet.pay(token) == "declined"
        assert await wallet.pay(other) == "authorised"
        for _ in range(2):
            await gateway.detach(wallet.ada, ALL)
            assert there.kept(wallet.ada) == set()

    run(there, keep)


def test_what_cannot_pay_is_not_attached(there: Site) -> None:
    async def keep(gateway: Gateway) -> None:
        wallet = Wallet(there, gateway)
        with pytest.raises(Declined) as no:
            await gateway.attach(wallet.ada, uuid4(), *there.form("declined"))
        assert no.value.code and no.value.reason
        with pytest.raises(Declined):
            await gateway.attach(wallet.ada, uuid4(), there.cards["unknown"], {})
        assert there.kept(wallet.ada) == set()

    run(there, keep)


def test_attaching_and_detaching_without_an_answer_is_done_once_in_the_end(there: Site) -> None:
    async def lose(gateway: Gateway) -> None:
        wallet, method, form = Wallet(there, gateway), uuid4(), there.form("lost attach")
        with pytest.raises(Unknown):
            await gateway.attach(wallet.ada, method, *form)
        token = await gateway.attach(wallet.ada, method, *form)
        assert there.kept(wallet.ada) == {token}
        other = await wallet.attach("lost detach")
        with pytest.raises(Unknown):
            await gateway.detach(wallet.ada, other)
        await gateway.detach(wallet.ada, other)
        assert there.kept(wallet.ada) == {token}

    run(there, lose)


def test_a_reference_is_closed_before_the_gateway_knows_it(there: Site) -> None:
    async def close(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "good")
        late = Payment(uuid4(), uuid4(), desk.payment.amount, desk.payment.method)
        late.__dict__.update(desk.payment.__dict__)  # as a process knows it that was cut off
        await desk.void()
        assert desk.payment.authorisation == "voided" and not desk.payment.waiting
        desk.told(await gateway.authorise(late))  # what was on its way comes too late
        desk.hear()
        assert desk.payment.authorisation == "voided"
        assert there.held(desk.payment.id) == 0 == there.held(late.id)

    run(there, close)


def test_a_gateway_has_never_heard_of_what_it_was_not_asked(there: Site) -> None:
    if there.name == "adyen":
        return  # can be asked by sending it again alone

    async def ask(gateway: Gateway) -> None:
        assert not await gateway.lookup(Desk(there, gateway, "good").payment)

    run(there, ask)


def test_a_gateway_that_is_away_was_not_reached(there: Site) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    urls = {"test_gateway": nowhere, "stripe_url": nowhere, "adyen_url": nowhere}

    async def ask() -> None:
        gateway = open_gateway(there.name, there.settings.model_copy(update=urls))
        try:
            with pytest.raises(Unreached):
                await gateway.authorise(Desk(there, gateway, "good").payment)
        finally:
            await gateway.close()

    asyncio.run(ask())


def test_nothing_that_is_said_of_a_failure_names_key_or_token(there: Site) -> None:
    async def ask(gateway: Gateway) -> None:
        desk = Desk(there, gateway, "unavailable")
        with pytest.raises(Unknown) as unknown:
            await desk.authorise()
        said = str(unknown.value)
        assert "sk_" not in said and "AQE" not in said and desk.payment.method not in said and len(said) < 200

    run(there, ask)


@pytest.fixture(scope="module", params=SIGNED)
def signing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(request.param, tmp_path_factory.mktemp(request.param)) as site_of_it:
        yield site_of_it


def test_webhooks_in_any_order_and_number_say_what_a_look_up_says(signing: Site) -> None:
    async def all_of_it(gateway: Gateway) -> None:
        desk = Desk(signing, gateway, "good")
        payment = desk.payment
        signing.webhooks()
        told(payment, await gateway.authorise(payment))
        payment.transaction = payment.transaction or "not yet"
        for number in range(2):
            payment.capture(id := uuid4(), Money(300 + number, "EUR"))
            told(payment, await gateway.capture(payment, id, Money(300 + number, "EUR")))
        first = signing.webhooks()
        for headers, body in first:
            notice = gateway.notice(headers.get, body, datetime.now(UTC))
            told(payment, notice.facts if notice else ())
        payment.refund(refund := uuid4(), Money(100, "EUR"))
        told(payment, await gateway.refund(payment, refund, Money(100, "EUR")))
        got = [*first, *signing.webhooks()]
        assert len(got) >= 4
        seen = set()
        for seed in range(40):
            heard = Payment(payment.order, payment.customer, payment.amount, payment.method)
            heard.captures = {id: Operation(one.amount) for id, one in payment.captures.items()}
            heard.refunds = {refund: Operation(100)}
            heard.waiting = dict.fromkeys([heard.id, *heard.captures, refund], 0)
            for headers, body in Random(seed).sample(2 * got, 2 * len(got)):
                notice = gateway.notice(headers.get, body, datetime.now(UTC))
                assert notice is None or notice.payment == payment.id
                for one in notice.facts if notice else ():
                    seen.add((one.call.__name__, heard.taken > 0))
                    one.call(heard, *one.args)
            assert (heard.authorisation, heard.taken, heard.returned, heard.held) == ("authorised", 601, 100, 399)
            assert not heard.waiting
        assert ("refunded", False) in seen  # a refund was told before its capture

    run(signing, all_of_it)


def test_a_webhook_is_sent_again_under_the_same_id(signing: Site) -> None:
    async def one(gateway: Gateway) -> None:
        desk = Desk(signing, gateway, "good")
        signing.webhooks()
        await gateway.authorise(desk.payment)
        [(headers, body), *_] = signing.webhooks()
        first, again = (gateway.notice(headers.get, body, datetime.now(UTC)) for _ in range(2))
        assert first == again and first is not None and first.id

    run(signing, one)


def test_a_webhook_that_is_forged_is_refused(signing: Site) -> None:
    async def forge(gateway: Gateway) -> None:
        desk = Desk(signing, gateway, "good")
        signing.webhooks()
        await gateway.authorise(desk.payment)
        [(headers, body), *_] = signing.webhooks()
        now = datetime.now(UTC)
        more = json.dumps(json.loads(body)).replace("1000", "9000").encode()
        other_name = body.replace(str(desk.payment.id).encode(), str(uuid4()).encode())
        for wrong in (more, other_name, b"", b"[]", b"{}", b"\xff", b"null", b'{"notificationItems":[]}'):
            with pytest.raises(Forged):
                gateway.notice(headers.get, wrong, now)
        none = {"stripe_webhook_secrets": (), "adyen_hmac_keys": ()}
        unset = open_gateway(signing.name, signing.settings.model_copy(update=none))
        with pytest.raises(Forged):
            unset.notice(headers.get, body, now)

    run(signing, forge)


def test_facts_are_the_interface(there: Site) -> None:
    with pytest.raises(Refused):
        told(Payment(uuid4(), uuid4(), Money(1, "EUR"), "tok_x"), [Fact(Payment.captured, (uuid4(), Money(1, "EUR")))])
