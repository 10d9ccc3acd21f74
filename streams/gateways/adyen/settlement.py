"""Adyen's report of a day: the Payment accounting report, as CSV. Reading is pure.

It has a line for each step of a payment that was booked on that day (docs.adyen.com/reporting/invoice-reconciliation/
payment-accounting-report). The money is in those that change what Adyen owes us: `Settled` and `Refunded`, up to some days after the
capture or the refund, and chargebacks. A capture or refund is found by our own reference of it, the Modification Merchant Reference.

Adyen tells of a report by a webhook, REPORT_AVAILABLE, whose signature covers the report's name and not its URL. So the report is
fetched from where the settings say, under the name that Adyen gives to one of a day, and the report user's password goes nowhere else
(docs.adyen.com/reporting/automatically-get-reports). The account's time zone is best UTC: the report's days are that zone's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from urllib.parse import quote

import httpx

from aggregates.kernel.currency import digits, minor
from streams.gateways.adyen.facts import references
from streams.gateways.interface import Unknown, Unreached
from streams.gateways.settings import GatewaySettings
from streams.gateways.settlement import FOREIGN, Kind, NoReport, Settled
from streams.gateways.sheet import lines_of

NAME = "payments_accounting_report_{:%Y_%m_%d}.csv"
BYTES_MAX = 256 * 1024 * 1024
KINDS: Mapping[str, Kind] = {
    "Settled": "capture",
    "SettledReversed": "capture reversed",
    "Refunded": "refund",
    "RefundedReversed": "refund reversed",
    "Chargeback": "chargeback",
    "SecondChargeback": "chargeback",
    "ChargebackReversed": "chargeback reversed",
}
"""By record type. Others are `other` if they change what Adyen owes us, else steps on the way, and no rows."""
FEES = ("Commission (SC)", "Markup (SC)", "Scheme Fees (SC)", "Interchange (SC)")
COLUMNS = (
    "Merchant Account", "Psp Reference", "Merchant Reference", "Booking Date", "TimeZone", "Record Type", "Payment Currency",
    "Captured (PC)", "Settlement Currency", "Payable (SC)", *FEES, "Modification Merchant Reference",
)  # fmt: skip
ZONES = {
    "UTC": 0, "GMT": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3, "EST": -5, "EDT": -4, "CST": -6,
    "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7, "BRT": -3, "SGT": 8, "HKT": 8, "JST": 9, "AEST": 10, "AEDT": 11,
}  # fmt: skip
"""Hours east of UTC, by the name that the report gives to an account's time zone."""


async def fetch(settings: GatewaySettings, day: date) -> bytes:
    """The report of a day. Raises `NoReport`, `Unreached` or `Unknown`."""
    account, user, password = (
        settings.adyen_merchant_account,
        settings.adyen_report_user,
        settings.adyen_report_password,
    )
    if account is None or user is None or password is None:
        raise Unreached(
            "the gateway is not reached: its merchant account, report user or the user's password is not set"
        )
    url = f"{settings.adyen_reports_url.rstrip('/')}/reports/download/MerchantAccount/{quote(account, safe='')}"
    try:
        async with (
            httpx.AsyncClient(timeout=settings.gateway_timeout_s) as http,
            http.stream("GET", f"{url}/{NAME.format(day)}", auth=(user, password.get_secret_value())) as answer,
        ):
            if answer.status_code == 404:
                raise NoReport(f"there is no report of {day}")
            if answer.status_code != 200:
                raise Unknown(f"it answers {answer.status_code}")
            report = bytearray()
            async for part in answer.aiter_bytes():
                report += part
                if len(report) > BYTES_MAX:
                    raise Unknown(f"the report is larger than {BYTES_MAX} bytes")
            return bytes(report)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Unreached(f"the gateway is not reached: {type(error).__name__}") from error
    except httpx.HTTPError as error:
        raise Unknown(f"no answer: {type(error).__name__}") from error


def rows_of(report: bytes, account: str | None) -> list[Settled]:
    """The rows of a report that are of the merchant account. Raises `ValueError` naming row and column."""
    rows = []
    for number, line in lines_of(report, COLUMNS):
        if line["Merchant Account"] != account:
            continue
        kind = KINDS.get(line["Record Type"], "other")
        paid = kind != "other"
        column = "Captured (PC)" if paid else "Payable (SC)"
        currency = line["Payment Currency" if paid else "Settlement Currency"]
        if not paid and not line[column].strip("-0."):
            continue
        try:
            amount = minor(line[column], currency)
            column = "Booking Date"
            at = datetime.fromisoformat(line[column]).replace(tzinfo=_zone(line["TimeZone"]))
            column = "a fee"
            fee = _fee(line) if paid and line["Settlement Currency"] == currency else None
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"row {number}, {column}: {error}") from error
        payment, operation = references(line["Modification Merchant Reference"])
        if payment is None:
            payment, _ = references(line["Merchant Reference"])
        if operation is None and kind in ("capture", "refund"):
            operation = FOREIGN
        id = line.get("Modification Psp Reference") or line["Psp Reference"]
        rows.append(Settled(id, kind, payment, operation, abs(amount) if paid else amount, currency, fee, at))
    return rows


def _fee(line: Mapping[str, str]) -> int:
    """All that Adyen keeps, rounded half up once: each part may be finer than the currency."""
    total = sum((Decimal(line[name] or 0) for name in FEES), Decimal())
    return int(total.scaleb(digits(line["Settlement Currency"])).quantize(Decimal(1), ROUND_HALF_UP))


def _zone(name: str) -> timezone:
    if name not in ZONES:
        raise ValueError(f"the time zone {name!r} is not known")
    return timezone(timedelta(hours=ZONES[name]))
