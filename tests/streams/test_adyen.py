"""What is Adyen's own: its document, and answers that are somebody else's. The rest is in test_gateway_contract.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.adyen import connect
from streams.gateways.interface import Forged, Unknown
from tests.kernel.adyen_stand_in import ACCOUNT, body_of, signed
from tests.kernel.documents import disagreements, published, wrong_answer, wrong_request
from tests.kernel.gateway_sites import AdyenSite, site
from tests.streams.test_gateway_contract import names


def no_header(name: str) -> str | None:
    return None  # Adyen signs inside the body


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdyenSite]:
    with site("adyen", tmp_path_factory.mktemp("adyen")) as found:
        assert isinstance(found, AdyenSite)
        yield found


def test_our_facts_are_those_of_the_published_document() -> None:
    document = published()
    if document is None:
        pytest.skip("there is no npm that gets Adyen's document")
    assert not list(disagreements(document))


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
