"""What is Adyen's own: its document, and answers that are somebody else's. The rest is in test_gateway_contract.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from aggregates.kernel import Money
from aggregates.kernel.token import payment_token
from aggregates.payment import Payment
from streams.gateways.adyen import connect, id_of, token_of
from streams.gateways.interface import Confirm, Forged, Unknown
from tests.kernel.adyen_facts import wrong_answer, wrong_request
from tests.kernel.adyen_stand_in import ACCOUNT, DIGITS, GOOD, body_of, signed
from tests.kernel.gateway_sites import AdyenSite, site
from tests.streams.test_gateway_contract import names


def no_header(name: str) -> str | None:
    return None  # Adyen signs inside the body


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdyenSite]:
    with site("adyen", tmp_path_factory.mktemp("adyen")) as found:
        assert isinstance(found, AdyenSite)
        yield found


def test_what_adyen_does_not_take_is_told() -> None:
    good = {"merchantAccount": "A", "amount": {"value": 1, "currency": "EUR"}, "reference": "x"}
    captures = "/payments/{paymentPspReference}/captures"
    assert not wrong_request(captures, good)
    for wrong in (
        {"amount": {"value": "1", "currency": "EUR"}},
        {"amount": {"value": 1}},
        {"more": 1},
        {"reference": 1},
    ):
        assert wrong_request(captures, {**good, **wrong})
    assert wrong_request("/payments/capture", good) and wrong_answer(captures, 200, {})


def test_what_the_bank_says_of_one_payment_says_nothing_of_another(there: AdyenSite) -> None:
    async def ask() -> None:
        gateway = connect(there.settings)
        cheap, dear = (Payment(uuid4(), uuid4(), Money(one, "EUR"), there.cards["action"]) for one in (1, 100_000))
        urls = {}
        for one in (cheap, dear):
            [told] = await gateway.authorise(one)
            urls[one.id] = told.args[0]
        back = there.decide(urls[cheap.id], True)
        with pytest.raises(Unknown, match="of another payment"):
            await gateway.returned(dear, back)
        assert names(await gateway.returned(cheap, back)) == ["authorised"]
        assert not await gateway.returned(dear, {"payment_intent": "x"})
        await gateway.close()

    asyncio.run(ask())


def test_a_webhook_names_our_account_and_our_reference_and_is_joined_in_one_way_only(there: AdyenSite) -> None:
    gateway, now, payment = connect(there.settings), datetime.now(UTC), uuid4()
    item = {
        "eventCode": "AUTHORISATION", "pspReference": "PSP1", "merchantReference": str(payment), "merchantAccountCode": ACCOUNT,
        "amount": {"value": 1, "currency": "EUR"}, "success": "true", "reason": "", "eventDate": now.isoformat(),
    }  # fmt: skip
    notice = gateway.notice(no_header, body_of(signed(item)), now)
    assert notice is not None and (notice.payment, names(notice.facts)) == (payment, ["authorised"])
    assert gateway.notice(no_header, body_of(signed({**item, "merchantAccountCode": "Other"})), now) is None
    assert gateway.notice(no_header, body_of(signed({**item, "merchantReference": "order-17"})), now) is None
    with pytest.raises(Forged):  # the same text is signed, with its parts shifted
        gateway.notice(no_header, body_of(signed({**item, "pspReference": "PSP1:x", "originalReference": "y"})), now)


def test_a_signature_is_the_one_that_adyen_gives_as_its_example(there: AdyenSite) -> None:
    example = {
        "eventCode": "AUTHORISATION", "pspReference": "7914073381342284", "merchantReference": "TestPayment-1407325143704",
        "merchantAccountCode": "TestMerchant", "amount": {"value": 1130, "currency": "EUR"}, "success": "true",
        "eventDate": "2014-08-06T17:15:34+02:00",
        "additionalData": {"hmacSignature": "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="},
    }  # fmt: skip
    gateway, now = connect(there.settings), datetime.now(UTC)
    assert gateway.notice(no_header, body_of(example), now) is None  # Adyen's, of a payment that is not ours
    for name, value in (("success", "false"), ("amount", {"value": 1131, "currency": "EUR"}), ("pspReference", "791")):
        with pytest.raises(Forged, match="does not fit"):
            gateway.notice(no_header, body_of({**example, name: value}), now)


def test_what_moves_money_goes_under_our_own_ids_in_adyens_units(there: AdyenSite) -> None:
    async def ask() -> None:
        gateway = connect(there.settings)
        payment, capture, refund = Payment(uuid4(), uuid4(), Money(1000, "CLP"), there.cards["good"]), uuid4(), uuid4()
        there.vendor.keys.clear()
        for _ in range(2):
            await gateway.authorise(payment)
            [(payment.transaction, made)] = [
                (psp, one) for psp, one in there.vendor.payments.items() if one["reference"] == str(payment.id)
            ]
            await gateway.capture(payment, capture, Money(600, "CLP"))
            await gateway.refund(payment, refund, Money(200, "CLP"))
            await gateway.void(payment)
        assert made["amount"] == {"value": 100_000, "currency": "CLP"}
        assert (made["captured"], made["refunded"]) == (60_000, 20_000)
        ids = {"authorise": payment.id, "captures": capture, "refunds": refund, "cancels": payment.void_id}
        assert there.vendor.keys == [(kind, str(id)) for kind, id in ids.items()] * 2
        await gateway.close()

    asyncio.run(ask())


def test_a_stored_cards_token_never_looks_like_a_card_number(there: AdyenSite) -> None:
    assert token_of(GOOD) == f"adyen_{GOOD}"
    for id in (DIGITS, "1", "12345", GOOD, "X1"):
        assert id_of(payment_token(token_of(id))) == id

    async def ask() -> None:
        gateway, payment = connect(there.settings), Payment(uuid4(), uuid4(), Money(100, "EUR"), token_of(DIGITS))
        there.vendor.stored.clear()
        assert await gateway.attach(payment.customer, uuid4(), *there.form("good")) == payment.method
        assert names(await gateway.authorise(payment)) == ["authorised"]
        await gateway.close()

    asyncio.run(ask())


def test_a_card_that_the_bank_wants_confirmed_is_stored_when_the_browser_is_back(there: AdyenSite) -> None:
    async def ask() -> None:
        gateway, ada, method = connect(there.settings), uuid4(), uuid4()
        answer = await gateway.attach(ada, method, *there.form("action"))
        assert isinstance(answer, Confirm) and there.kept(ada) == set()
        back = there.decide(answer.url, True)
        with pytest.raises(Unknown, match="of another payment"):
            await gateway.confirmed(ada, uuid4(), back)
        with pytest.raises(Unknown, match="says nothing"):
            await gateway.confirmed(ada, method, {})
        token, again = [await gateway.confirmed(ada, method, back) for _ in range(2)]
        assert token == again and there.kept(ada) == {token}
        paid = await gateway.authorise(Payment(uuid4(), ada, Money(1, "EUR"), token))
        assert names(paid) == ["action_required"]
        other = await gateway.attach(ada, uuid4(), *there.form("action"))
        assert isinstance(other, Confirm)
        with pytest.raises(Unknown):
            await gateway.confirmed(ada, method, there.decide(other.url, False))
        await gateway.close()

    asyncio.run(ask())


def test_an_account_that_does_not_tell_the_token_saves_nothing(there: AdyenSite) -> None:
    async def ask() -> None:
        gateway = connect(there.settings)
        with pytest.raises(Unknown, match="the account leaves that out"):
            await gateway.attach(uuid4(), uuid4(), "", there.vendor.form("NOTOKEN"))
        await gateway.close()

    asyncio.run(ask())
