"""How the vendors' own reports are read. What all gateways' reconciliation promises is in test_reconciliation.py."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways import adyen, stripe
from streams.gateways.adyen.settlement import rows_of as adyen_rows
from streams.gateways.interface import Gateway, Unknown, Unreached
from streams.gateways.minor import STRIPE
from streams.gateways.routing import Terms
from streams.gateways.settlement import FOREIGN, NoReport, Settled, Settles
from streams.gateways.stripe.settlement import rows_of as stripe_rows
from tests.kernel.adyen_report import HEAD
from tests.kernel.adyen_stand_in import ACCOUNT, body_of, signed
from tests.kernel.gateway_sites import AdyenSite, StripeSite, site
from tests.streams.test_gateway_contract import told

PAYMENT, OPERATION = UUID(int=1), UUID(int=2)
AT = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)


@pytest.fixture
def at_stripe(tmp_path: Any) -> Iterator[StripeSite]:
    with site("stripe", tmp_path, Terms(fee_bp=200)) as found:
        assert isinstance(found, StripeSite)
        yield found


@pytest.fixture
def at_adyen(tmp_path: Any) -> Iterator[AdyenSite]:
    with site("adyen", tmp_path) as found:
        assert isinstance(found, AdyenSite)
        yield found


async def captured(gateway: Gateway, card: str, *amounts: int, of: int = 1000) -> Payment:
    """A payment of which so much was captured; the vendor knows, whatever the payment does."""
    payment = Payment(uuid4(), uuid4(), Money(of, "EUR"), card)
    told(payment, await gateway.authorise(payment))
    for amount in amounts:
        payment.capture(id := uuid4(), Money(amount, "EUR"))
        told(payment, await gateway.capture(payment, id, Money(amount, "EUR")))
    return payment


async def today_of(gateway: Settles) -> list[Settled]:
    """The rows of now: of two days, should it be midnight."""
    now = datetime.now(UTC)
    days = {now.date(), (now - timedelta(minutes=1)).date()}
    return [row for day in sorted(days) for row in gateway.settled(await gateway.settlement(day))]


def no_header(name: str) -> str | None:
    return None  # Adyen signs inside the body


# Stripe
def line(**more: Any) -> dict[str, Any]:
    source = {"id": "ch_1", "object": "charge", "amount": 1000, "currency": "eur", "payment_intent": "pi_1"}
    source["metadata"] = {"titan_payment": str(PAYMENT)}
    return {
        "id": "txn_1", "reporting_category": "charge", "created": int(AT.timestamp()), "amount": 1000, "currency": "eur", "fee": 29,
        "source": {**source, **more.pop("source", {})}, **more,
    }  # fmt: skip


def written(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def test_balance_transactions_are_read() -> None:
    refund = {"metadata": {"titan_payment": str(PAYMENT), "titan_refund": str(OPERATION)}}
    [capture, back] = stripe_rows(written(line(), line(reporting_category="refund", amount=-300, fee=0, source=refund)))
    assert capture == Settled("txn_1", "capture", PAYMENT, None, 1000, "EUR", 29, AT)
    assert (back.kind, back.operation, back.amount, back.fee) == ("refund", OPERATION, 300, 0)
    by_hand = line(reporting_category="refund", amount=-300)
    payout = line(reporting_category="payout", amount=-9_000, source={"metadata": {}})
    assert [row.operation for row in stripe_rows(written(by_hand, payout))] == [FOREIGN]
    [other] = stripe_rows(written(line(reporting_category="other_adjustment", amount=-7, source={"metadata": {}})))
    assert (other.kind, other.payment, other.amount) == ("other", None, -7)
    nobody = line(source={"metadata": {"titan_payment": "order-17"}, "payment_intent": None})
    assert stripe_rows(written(nobody))[0].payment is None


def test_amounts_that_stripe_converted_are_those_of_the_source() -> None:
    dollars = {"currency": "usd", "amount": 1150, "amount_captured": 1150}
    [row] = stripe_rows(written(line(source=dollars)))
    assert (row.amount, row.currency, row.fee) == (1150, "USD", None)
    parts = {"payment_method_details": {"card": {"multicapture": {"status": "available"}, "last4": "4242"}}}
    [row] = stripe_rows(written(line(source={**dollars, **parts})))
    assert (row.amount, row.currency) == (None, "USD")
    [row] = stripe_rows(written(line(currency="isk", amount=1_500, fee=45, source={"currency": "isk"})))
    assert (row.amount, row.currency, row.fee) == (15, "ISK", 0)  # 45 hundredths of a krona
    assert STRIPE.nearest(50, "ISK") == 1 and STRIPE.nearest(49, "ISK") == 0 and STRIPE.nearest(3, "MGA") == 300


@pytest.mark.parametrize("wrong", [{"amount": "x"}, {"created": None}, {"fee": 1.5}, {"source": "ch_1"}])
def test_a_balance_transaction_that_cannot_be_read_says_where(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^row 2, {next(iter(wrong))}.*: ") as told:
        stripe_rows(written(line(), {**line(), **wrong}))
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="^row 1, all of it"):
        stripe_rows(b"[]\n")
    with pytest.raises(ValueError, match="^row 1, amount: 150 of the gateway's ISK is finer"):
        stripe_rows(written(line(currency="isk", amount=150, source={"currency": "isk"})))


def test_every_page_is_read_and_the_report_is_the_same_again(at_stripe: StripeSite) -> None:
    async def ask() -> None:
        gateway = stripe.connect(at_stripe.settings)
        payments = [await captured(gateway, "pm_card_visa", 1000) for _ in range(3)]
        at_stripe.vendor.balance.page_rows_max = 2
        await captured(gateway, "pm_card_visa", 400, 300)
        rows = await today_of(gateway)
        assert {row.payment for row in rows} > {one.id for one in payments}
        assert sorted(row.amount or 0 for row in rows) == [300, 400, 1000, 1000, 1000]
        assert {row.fee for row in rows} == {6, 8, 20}
        day = datetime.now(UTC).date()
        pages = [path for _, path in at_stripe.vendor.requests if path.endswith("/balance_transactions")]
        assert len(pages) >= 3 and await gateway.settlement(day) == await gateway.settlement(day)
        await gateway.close()

    asyncio.run(ask())


def test_a_card_captured_once_and_in_part_makes_one_row(at_stripe: StripeSite) -> None:
    async def ask() -> None:
        gateway = stripe.connect(at_stripe.settings)
        payment = await captured(gateway, "pm_oneCapture", 600)
        [row] = await today_of(gateway)
        assert (row.payment, row.kind, row.amount, row.fee) == (payment.id, "capture", 600, 12)
        await gateway.close()

    asyncio.run(ask())


@pytest.mark.parametrize("ids", ["ab", "ba"])
def test_a_reversal_belongs_to_its_charge_whichever_is_listed_first(ids: str) -> None:
    back = line(id=f"txn_{ids[1]}", reporting_category="partial_capture_reversal", amount=-400, fee=-8)
    for lines in ([line(id=f"txn_{ids[0]}"), back], [back, line(id=f"txn_{ids[0]}")]):
        [row] = stripe_rows(written(*lines))
        assert (row.amount, row.fee) == (600, 21)
    [alone] = stripe_rows(written(back))
    assert (alone.kind, alone.amount) == ("capture reversed", 400)


def test_a_dispute_is_found_by_its_payment_intent_and_nothing_of_the_card_is_kept(at_stripe: StripeSite) -> None:
    async def ask() -> None:
        gateway = stripe.connect(at_stripe.settings)
        payment = await captured(gateway, "pm_card_visa", 1000)
        [intent] = at_stripe.vendor.intents.values()
        at_stripe.vendor.dispute(intent, 1000)
        _, row = sorted(await today_of(gateway), key=lambda one: one.kind == "chargeback")
        assert (row.kind, row.payment, row.operation, row.amount) == ("chargeback", payment.id, None, 1000)
        report = await gateway.settlement(datetime.now(UTC).date())
        assert not any(word in report for word in (b"pm_card_visa", b"4242", b"exp_", b"billing", b"visa"))
        await gateway.close()

    asyncio.run(ask())


# Adyen
def step(**more: str) -> dict[str, str]:
    return dict.fromkeys(HEAD, "") | {
        "Merchant Account": ACCOUNT, "Psp Reference": "PSP1", "Merchant Reference": str(PAYMENT), "TimeZone": "CET",
        "Booking Date": "2026-11-24 11:30:00", "Record Type": "Settled", "Payment Currency": "EUR", "Captured (PC)": "-10.00",
        "Settlement Currency": "EUR", "Payable (SC)": "9.71", "Markup (SC)": "0.1", "Scheme Fees (SC)": "0.0949",
        "Interchange (SC)": "0.0951", "Modification Merchant Reference": f"{PAYMENT}.{OPERATION}", "Modification Psp Reference": "MOD1",
        **more,
    }  # fmt: skip


def sheet(*steps: dict[str, str]) -> bytes:
    head = ",".join(HEAD)
    return "\r\n".join([head, *(",".join(one[name] for name in HEAD) for one in steps), ""]).encode()


def rows(**more: str) -> list[Settled]:
    return adyen_rows(sheet(step(**more)), ACCOUNT)


def test_accounting_rows_are_read() -> None:
    assert rows() == [Settled("MOD1", "capture", PAYMENT, OPERATION, 1000, "EUR", 29, AT)]
    for kind, read in (
        ("Refunded", "refund"),
        ("Chargeback", "chargeback"),
        ("ChargebackReversed", "chargeback reversed"),
    ):
        assert rows(**{"Record Type": kind, "Captured (PC)": "10.00"})[0].kind == read
    for kind in ("Received", "Authorised", "SentForSettle", "SentForRefund"):  # steps on the way
        assert not rows(**{"Record Type": kind, "Payable (SC)": ""})
    assert not rows(**{"Merchant Account": "Another"})
    [other] = rows(
        **{"Record Type": "DepositCorrection", "Payable (SC)": "-5.00", "Modification Merchant Reference": ""}
    )
    assert (other.kind, other.amount, other.fee) == ("other", -500, None)
    [converted] = rows(**{"Settlement Currency": "USD"})
    assert (converted.amount, converted.currency, converted.fee) == (1000, "EUR", None)


def test_what_was_not_done_under_our_reference_is_not_ours() -> None:
    [by_hand] = rows(**{"Modification Merchant Reference": "by hand"})
    assert (by_hand.payment, by_hand.operation) == (PAYMENT, FOREIGN)
    [stranger] = rows(**{"Modification Merchant Reference": "", "Merchant Reference": "order-17"})
    assert stranger.payment is None


@pytest.mark.parametrize(
    ("text", "currency", "units"),
    [
        ("12.34", "EUR", 1234),
        ("-12.34", "EUR", -1234),
        ("500", "JPY", 500),
        ("500.00", "JPY", 500),
        ("5.123", "KWD", 5123),
    ],
)
def test_amounts_are_read_exactly(text: str, currency: str, units: int) -> None:
    [row] = rows(**{"Payment Currency": currency, "Captured (PC)": text, "Settlement Currency": "GBP"})
    assert row.amount == abs(units)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("Captured (PC)", "10.001"), ("Captured (PC)", ""), ("Captured (PC)", "10,00"),
        ("Captured (PC)", "NaN"), ("Booking Date", "yesterday"), ("Markup (SC)", "x"), ("Markup (SC)", "NaN"),
    ],
)  # fmt: skip
def test_an_accounting_row_that_cannot_be_read_says_where(column: str, value: str) -> None:
    wrong = step(**{column: f'"{value}"'})
    with pytest.raises(ValueError, match="^row 3") as said:
        adyen_rows(sheet(step(), wrong), ACCOUNT)
    assert column in str(said.value) or (column.startswith("Markup") and "a fee" in str(said.value))


def test_a_sheet_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone 'XYZ' is not known"):
        rows(TimeZone="XYZ")
    with pytest.raises(ValueError, match="row 2, Captured .PC.: .* is not a currency"):
        rows(**{"Payment Currency": "EURO"})
    for wrong, why in (
        (b"", "there is no column Merchant Account"), (b"\xff\xfe", "not UTF-8"), (sheet(step())[:-20], "as many values"),
        (sheet(step()) + b'"', "no CSV|as many values"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            adyen_rows(wrong, ACCOUNT)
    assert adyen_rows(b"\xef\xbb\xbf" + sheet(step()), ACCOUNT) == rows()


def test_a_chargeback_is_listed_with_its_payment(at_adyen: AdyenSite) -> None:
    async def ask() -> None:
        gateway = adyen.connect(at_adyen.settings)
        payment = await captured(gateway, at_adyen.cards["good"])
        at_adyen.vendor.charge_back(payment.transaction, 1000)
        [row] = await today_of(gateway)
        assert (row.kind, row.payment, row.amount) == ("chargeback", payment.id, 1000)
        await gateway.close()

    asyncio.run(ask())


def test_reports_are_had_with_the_report_users_password_alone(
    at_adyen: AdyenSite, caplog: pytest.LogCaptureFixture
) -> None:
    day = date(2026, 11, 24)
    at_adyen.vendor.books.missing.add(day)

    async def ask(wrong: dict[str, Any], kind: type[Exception], why: str) -> None:
        gateway = adyen.connect(at_adyen.settings.model_copy(update=wrong))
        with caplog.at_level(logging.DEBUG), pytest.raises(kind, match=why) as told:
            await gateway.settlement(day)
        for secret in ("report-standin", "nobody knows it", "cmVwb3J0"):
            assert secret not in str(told.value) + caplog.text
        await gateway.close()

    asyncio.run(ask({}, NoReport, "there is no report of 2026-11-24"))
    asyncio.run(ask({"adyen_report_password": SecretStr("nobody knows it")}, Unknown, "it answers 401"))
    asyncio.run(ask({"adyen_report_user": None}, Unreached, "is not set"))
    assert "report-standin" not in repr(at_adyen.settings)


def test_a_webhook_of_a_report_is_taken_and_does_nothing(at_adyen: AdyenSite) -> None:
    gateway, now = adyen.connect(at_adyen.settings), datetime.now(UTC)
    item = {
        "eventCode": "REPORT_AVAILABLE", "pspReference": "payments_accounting_report_2026_11_24.csv", "merchantReference": "",
        "merchantAccountCode": ACCOUNT, "amount": {"value": 0, "currency": "EUR"}, "success": "true", "eventDate": now.isoformat(),
        "reason": "https://elsewhere.example/payments_accounting_report_2026_11_24.csv",
    }  # fmt: skip
    assert gateway.notice(no_header, body_of(signed(item)), now) is None
