"""The adapter of the built-in test gateway (`streams.gateways.test_gateway`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import orjson

from aggregates.kernel import Money
from aggregates.payment import Payment
from streams.gateways.interface import Confirm, Declined, Fact, Forged, Notice, Unknown, Unreached, fact
from streams.gateways.settings import GatewaySettings
from streams.gateways.settlement import Kind, Settled
from streams.gateways.sheet import lines_of
from streams.gateways.signature import HEADER, verify

CONNECTIONS_MAX = 64
INVALID = ("invalid_method", "There is no such card.")


class TestGateway:
    __test__ = False  # not one of pytest's

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings, self._webhook_secret = settings, settings.test_key("webhook")
        self._client: httpx.AsyncClient | None = None

    async def authorise(self, payment: Payment) -> Sequence[Fact]:
        amount = payment.amount
        body = {"amount": amount.amount, "currency": amount.currency, "token": payment.method}
        return facts_of(await self._ask("PUT", payment, "", body))

    async def capture(self, payment: Payment, capture: UUID, amount: Money) -> Sequence[Fact]:
        return facts_of(await self._ask("PUT", payment, f"/captures/{capture}", {"amount": amount.amount}))

    async def void(self, payment: Payment) -> Sequence[Fact]:
        found = await self._ask("PUT", payment, "/void", {})
        facts = facts_of(found)
        if found["status"] == "captured":  # nothing is held any more, which is what was asked for
            facts.append(fact(Payment.voided, found["transaction"]))
        return facts

    async def refund(self, payment: Payment, refund: UUID, amount: Money) -> Sequence[Fact]:
        return facts_of(await self._ask("PUT", payment, f"/refunds/{refund}", {"amount": amount.amount}))

    async def lookup(self, payment: Payment) -> Sequence[Fact]:
        found = await self._ask("GET", payment, "", None)
        return facts_of(found) if found else ()

    async def attach(self, customer: UUID, method: UUID, token: str, details: Mapping[str, str]) -> str | Confirm:
        answer = await self._send("PUT", f"/customers/{customer}/methods/{token or '-'}", None)
        if answer.status_code == 422:
            raise Declined(*INVALID)
        if no := self._certain(answer).get("declined"):
            raise Declined(no["code"], no["reason"])
        return token

    async def detach(self, customer: UUID, token: str) -> None:
        self._certain(
            await self._send("DELETE", f"/customers/{customer}/methods" + (f"/{token}" if token else ""), None)
        )

    @property
    def within(self) -> timedelta:
        return self._settings.settles_within(usual=0)

    async def settlement(self, day: date) -> bytes:
        try:
            answer = await self._http.get(f"/settlements/{day.isoformat()}")
        except httpx.HTTPError as error:
            raise Unknown(f"no answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise Unknown(f"it answers {answer.status_code}: {answer.text[:100]}")
        return answer.content

    def settled(self, report: bytes) -> Sequence[Settled]:
        return rows_of(report)

    def notice(self, header: Callable[[str], str | None], body: bytes, now: datetime) -> Notice | None:
        verify([self._webhook_secret], header(HEADER), body, now)
        try:
            told = orjson.loads(body)
            return Notice(str(told["id"]), UUID(told["payment"]["reference"]), facts_of(told["payment"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Forged("the signature fits, but this is none of our webhooks") from error

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:  # who only reads webhooks needs none
            self._client = httpx.AsyncClient(
                base_url=self._settings.test_gateway_url,
                timeout=self._settings.gateway_timeout_s,
                headers={"authorization": f"Bearer {self._settings.test_key('api').decode()}"},
                limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
                trust_env=False,
            )
        return self._client

    async def _ask(self, method: str, payment: Payment, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        answer = await self._send(method, f"/payments/{payment.id}{path}", body)
        if method == "GET" and answer.status_code == 404:
            return {}
        if method == "PUT" and not path and answer.status_code == 422:  # it does not know such a card
            code, reason = INVALID
            return {"status": "declined", "code": code, "reason": reason, "operations": []}
        return self._certain(answer)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            return await self._http.request(method, path, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreached(f"the gateway is not reached: {type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise Unknown(f"no answer: {type(error).__name__}") from error

    def _certain(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.status_code != 200:
            raise Unknown(f"it answers {answer.status_code}: {answer.text[:100]}")
        found: dict[str, Any] = answer.json()
        return found


def facts_of(found: Mapping[str, Any]) -> list[Fact]:
    """What the gateway's document of a payment says, in the order in which it can have happened."""
    status = found["status"]
    facts = []
    if status == "declined":
        facts.append(fact(Payment.declined, found["code"], found["reason"]))
    elif status == "requires_action":
        facts.append(fact(Payment.action_required, found["action_url"], _time(found["expires_at"])))
    elif status in ("authorised", "captured"):
        facts.append(fact(Payment.authorised, found["transaction"], _time(found["expires_at"])))
    for one in found["operations"]:
        reference, amount = UUID(one["reference"]), Money(one["amount"], found["currency"])
        match one["kind"], one["status"]:
            case "capture", "done":
                facts.append(fact(Payment.captured, reference, amount))
            case "capture", "failed":
                facts.append(fact(Payment.capture_failed, reference, amount, one["code"], one["reason"]))
            case "capture", "reversed":
                facts.append(fact(Payment.capture_reversed, reference, amount, one["code"], one["reason"]))
            case "refund", "done":
                facts.append(fact(Payment.refunded, reference, amount))
            case "refund", "failed":
                facts.append(fact(Payment.refund_failed, reference, amount, one["code"], one["reason"]))
            case "refund", "reversed":
                facts.append(fact(Payment.refund_reversed, reference, amount, one["code"], one["reason"]))
    if status == "voided":
        facts.append(fact(Payment.voided, found["transaction"]))
    return facts


def rows_of(report: bytes) -> list[Settled]:
    """The rows of a settlement report. Raises `ValueError` naming row and column."""
    rows = []
    for number, line in lines_of(report, list(COLUMNS)):
        column = ""
        try:
            values: dict[str, Any] = {}
            for column, read in COLUMNS.items():
                values[column] = read(line[column])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"row {number}, {column}: {line.get(column)!r} can't be read") from error
        rows.append(Settled(**values))
    return rows


def _kind(text: str) -> Kind:
    return KINDS[text]


def _amount(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(text)
    return int(text)


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(text)
    return at


KINDS: Mapping[str, Kind] = {
    "capture": "capture", "capture reversed": "capture reversed", "refund": "refund", "refund reversed": "refund reversed",
}  # fmt: skip
COLUMNS: Mapping[str, Callable[[str], Any]] = {
    "id": str, "kind": _kind, "payment": UUID, "operation": lambda text: UUID(text) if text else None, "amount": _amount,
    "currency": str, "fee": lambda text: _amount(text) if text else None, "at": _moment,
}  # fmt: skip


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def connect(settings: GatewaySettings) -> TestGateway:
    return TestGateway(settings)
