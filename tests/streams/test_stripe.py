"""What is Stripe's own: PaymentIntents, its signatures, its minor units. The rest is in test_gateway_contract.py."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from pydantic import SecretStr

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.interface import Declined, Forged, Unknown
from streams.gateways.minor import ADYEN, STRIPE, MinorUnits
from streams.gateways.signature import TOLERANCE_S
from streams.gateways.stripe import StripeGateway, connect
from tests.kernel.gateway_sites import StripeSite, site
from tests.streams.test_gateway_contract import names, told


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeSite]:
    with site("stripe", tmp_path_factory.mktemp("stripe")) as found:
        assert isinstance(found, StripeSite)
        yield found


def run(there: StripeSite, what: Callable[[StripeGateway], Awaitable[None]]) -> None:
    async def main() -> None:
        gateway = connect(there.settings)
        try:
            await what(gateway)
        finally:
            await gateway.close()

    asyncio.run(main())


def pay(method: str, amount: int = 1000, currency: str = "EUR") -> Payment:
    return Payment(uuid4(), uuid4(), Money(amount, currency), method)


def of(there: StripeSite, payment: Payment) -> list[dict[str, object]]:
    """The PaymentIntents that there are for a payment."""
    return [one for one in there.vendor.intents.values() if one["metadata"].get("titan_payment") == str(payment.id)]


@pytest.mark.parametrize(
    ("theirs", "amount", "currency", "units"),
    [
        (STRIPE, 1999, "EUR", 1999),
        (STRIPE, 500, "JPY", 500),
        (STRIPE, 5, "ISK", 500),
        (STRIPE, 5, "UGX", 500),
        (STRIPE, 500, "MGA", 5),
        (STRIPE, 5120, "KWD", 5120),
        (ADYEN, 5, "ISK", 500),
        (ADYEN, 5, "CLP", 500),
        (ADYEN, 500, "CVE", 5),
        (ADYEN, 500, "IDR", 5),
        (ADYEN, 5, "UGX", 5),
        (ADYEN, 5123, "KWD", 5123),
    ],
)
def test_minor_units_are_the_vendors(theirs: MinorUnits, amount: int, currency: str, units: int) -> None:
    assert theirs.theirs(Money(amount, currency)) == units
    assert theirs.ours(units, currency) == Money(amount, currency)


def test_an_amount_that_a_vendor_cannot_take_is_refused_and_never_rounded(there: StripeSite) -> None:
    for theirs, wrong in ((STRIPE, Money(501, "MGA")), (STRIPE, Money(5123, "KWD")), (ADYEN, Money(501, "IDR"))):
        with pytest.raises(ValueError, match="finer than the gateway's"):
            theirs.theirs(wrong)
    with pytest.raises(ValueError, match="finer than ours"):
        STRIPE.ours(501, "ISK")

    async def ask(gateway: StripeGateway) -> None:
        for amount, currency, code in ((501, "MGA", "invalid_amount"), (49, "EUR", "amount_too_small")):
            payment = pay("pm_card_visa", amount, currency)
            told(payment, facts := await gateway.authorise(payment))
            assert (names(facts), facts[0].args[0]) == (["declined"], code)
            assert not of(there, payment) and names(await gateway.void(payment)) == ["voided"]
            assert not await gateway.lookup(payment)
        krona = pay("pm_card_visa", 5, "ISK")
        told(krona, await gateway.authorise(krona))
        [intent] = of(there, krona)
        assert (intent["amount"], intent["currency"], krona.held) == (500, "isk", 5)
        krona.capture(id := uuid4(), Money(3, "ISK"))
        told(krona, await gateway.capture(krona, id, Money(3, "ISK")))
        assert (intent["amount_received"], krona.taken) == (300, 3)
        krona.refund(id := uuid4(), Money(2, "ISK"))
        told(krona, await gateway.refund(krona, id, Money(2, "ISK")))
        [refund] = [one for one in there.vendor.refunds.values() if one["payment_intent"] == intent["id"]]
        assert (refund["amount"], krona.returned) == (200, 2)

    run(there, ask)


def test_a_saved_card_is_used_in_its_customers_name(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay(card := there.vendor.card())
        await gateway.attach(payment.customer, uuid4(), card, {})
        for _ in range(2):
            told(payment, await gateway.authorise(payment))
        [intent] = of(there, payment)
        assert (payment.held, intent["customer"]) == (1000, there.vendor.attached[card])

    run(there, ask)


def test_a_customer_has_one_customer_at_stripe_though_the_search_lags(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        ada, cards = uuid4(), [there.vendor.card() for _ in range(3)]
        there.vendor.search_lags = True
        for card in cards[:2]:
            await gateway.attach(ada, uuid4(), card, {})
        there.vendor.search_lags = False
        there.vendor.forget_keys()
        await gateway.attach(ada, uuid4(), cards[2], {})
        assert there.kept(ada) == set(cards) and len({there.vendor.attached[card] for card in cards}) == 1

    run(there, ask)


def test_a_card_of_a_customer_at_stripe_who_is_nobody_we_know_is_not_charged(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay(card := there.vendor.card())
        there.vendor.attach(card, str(there.vendor.enrol({})["id"]))
        assert names(await gateway.authorise(payment)) == ["declined"]
        with pytest.raises(Declined, match="not this customer's"):
            await gateway.attach(payment.customer, uuid4(), card, {})
        await gateway.detach(payment.customer, card)
        assert card in there.vendor.attached

    run(there, ask)


def test_a_card_that_is_captured_once_gives_back_the_rest(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay("pm_oneCapture")
        told(payment, await gateway.authorise(payment))
        payment.capture(id := uuid4(), Money(600, "EUR"))
        told(payment, facts := await gateway.capture(payment, id, Money(600, "EUR")))
        assert names(facts) == ["authorised", "captured", "voided"]
        assert (payment.taken, payment.held, payment.waiting) == (600, 0, {})

    run(there, ask)


def test_the_money_is_held_as_long_as_the_card_says(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay("pm_card_visa")
        told(payment, await gateway.authorise(payment))
        assert payment.expires_at is not None
        assert timedelta(days=5) < payment.expires_at - datetime.now(UTC) < timedelta(days=6)

    run(there, ask)


def test_a_refund_under_way_is_done_when_stripe_says_so(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay("pm_refundPending")
        told(payment, await gateway.authorise(payment))
        payment.capture(id := uuid4(), Money(1000, "EUR"))
        told(payment, await gateway.capture(payment, id, Money(1000, "EUR")))
        payment.refund(refund := uuid4(), Money(10, "EUR"))
        for _ in range(2):
            assert not await gateway.refund(payment, refund, Money(10, "EUR"))
        [one] = [one for one in there.vendor.refunds.values() if one["metadata"]["titan_refund"] == str(refund)]
        assert refund in payment.waiting
        there.vendor.webhooks()
        there.vendor.finish(one)
        [(headers, body)] = there.vendor.webhooks()
        notice = gateway.notice(headers.get, body, datetime.now(UTC))
        assert notice is not None and notice.payment == payment.id
        told(payment, notice.facts)
        assert payment.returned == 10 and not payment.waiting

    run(there, ask)


def test_a_lost_answer_to_the_first_step_moves_no_money_and_makes_one_payment(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay("pm_lostAuthorise")
        with pytest.raises(Unknown, match="no answer"):
            await gateway.authorise(payment)
        for _ in range(2):
            told(payment, await gateway.authorise(payment))
        assert len(of(there, payment)) == 1
        assert (
            len([path for method, path in there.vendor.requests if path.endswith(f"{payment.transaction}/confirm")])
            == 3
        )

    run(there, ask)


def test_what_is_a_day_old_is_found_without_its_key(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment = pay("pm_lostAuthorise")
        with pytest.raises(Unknown):
            await gateway.authorise(payment)
        there.vendor.forget_keys()
        assert names(await gateway.lookup(payment)) == ["authorised"]
        payment.void()
        told(payment, await gateway.void(payment))
        assert [one["status"] for one in of(there, payment)] == ["canceled"] and not payment.waiting

    run(there, ask)


def test_a_signature_holds_for_five_minutes_either_way_and_for_both_secrets(there: StripeSite) -> None:
    gateway, now = connect(there.settings), datetime.now(UTC)
    event = {"id": "evt_1", "data": {"object": {"object": "charge", "metadata": {}}}}
    at = int(now.timestamp())
    for shift, secret, fits in (
        (0, "whsec_new", True),
        (TOLERANCE_S, "whsec_standin", True),
        (-TOLERANCE_S, "whsec_standin", True),
        (TOLERANCE_S + 1, "whsec_standin", False),
        (-TOLERANCE_S - 1, "whsec_standin", False),
        (0, "whsec_other", False),
        (0, "", False),
    ):
        headers, body = there.vendor.signed(event, at + shift, secret or "x")
        moment = datetime.fromtimestamp(at, UTC)
        if fits:
            assert gateway.notice(headers.get, body, moment) is None  # genuine, and about nothing of ours
        else:
            with pytest.raises(Forged):
                gateway.notice(headers.get, body, moment)
    for header in ("t=,v1=", "v1=1", "t=1", "t=1,v1=é", ",", "t=x,v1=1", "t=1=2,v1=a"):
        with pytest.raises(Forged):
            gateway.notice({"stripe-signature": header}.get, body, now)


def test_a_signature_is_made_as_stripe_describes_it_and_one_of_several_fits(there: StripeSite) -> None:
    gateway, now, body = (
        connect(there.settings),
        datetime.now(UTC),
        b'{"id":"evt_1","data":{"object":{"object":"charge"}}}',
    )
    at = int(now.timestamp())
    mine, other = (
        hmac.new(one, b"%d." % at + body, hashlib.sha256).hexdigest() for one in (b"whsec_standin", b"other")
    )
    for header in (f"t={at},v1={mine}", f"t={at},v0={other},v1={other},v1={mine}"):
        assert gateway.notice({"stripe-signature": header}.get, body, now) is None
    for header in (f"t={at},v1={other}", f"t={at},v0={mine}", f"t={at + 1},v1={mine}", f"v1={mine}"):
        with pytest.raises(Forged):
            gateway.notice({"stripe-signature": header}.get, body, now)


def test_what_moves_money_goes_under_our_own_ids(there: StripeSite) -> None:
    async def ask(gateway: StripeGateway) -> None:
        payment, capture, refund = pay(card := there.vendor.card()), uuid4(), uuid4()
        there.vendor.keys.clear()
        await gateway.attach(payment.customer, uuid4(), card, {})
        told(payment, await gateway.authorise(payment))
        payment.capture(capture, Money(600, "EUR"))
        told(payment, await gateway.capture(payment, capture, Money(600, "EUR")))
        payment.refund(refund, Money(200, "EUR"))
        told(payment, await gateway.refund(payment, refund, Money(200, "EUR")))
        assert there.vendor.keys == [
            ("enrol", f"{payment.customer}-customer"),
            ("attach", f"{card}-attach-{payment.customer}"),
            ("make", str(payment.id)),
            ("update", f"{payment.id}-customer"),
            ("authorise", f"{payment.id}-confirm"),
            ("capture", str(capture)),
            ("refund", str(refund)),
        ]

    run(there, ask)


def test_a_wrong_key_is_told_without_the_key(there: StripeSite) -> None:
    async def ask() -> None:
        gateway = connect(there.settings.model_copy(update={"stripe_secret_key": SecretStr("sk_test_wrong")}))
        with pytest.raises(Unknown, match="it answers 401: AuthenticationError") as wrong:
            await gateway.authorise(pay("pm_card_visa"))
        assert "sk_" not in str(wrong.value)
        await gateway.close()
        unset = connect(there.settings.model_copy(update={"stripe_secret_key": None}))
        with pytest.raises(Unknown, match="its secret key is not set"):
            await unset.authorise(pay("pm_card_visa"))
        await unset.close()

    asyncio.run(ask())
    assert "sk_" not in repr(there.settings)
