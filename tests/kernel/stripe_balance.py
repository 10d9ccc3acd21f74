"""The balance of the account at Stripe's stand-in: a movement for each capture and refund, and what Stripe lists of them, which is wrong
where a test wants it so."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

from aggregates.kernel import Money
from streams.gateways.minor import STRIPE
from streams.gateways.routing import Terms

Document = dict[str, Any]

DAY_S = 86_400


class Balance:
    """`errors`: what is wrong, by our id of the capture or refund. `page_rows_max`: fewer than Stripe's hundred make more pages."""

    def __init__(self) -> None:
        self.terms = Terms()
        self.errors: dict[str, str] = {}
        self.page_rows_max = 100
        self._movements: list[tuple[str, Document]] = []

    def move(self, category: str, type: str, amount: int, source: Document, operation: str = "", at: int = 0) -> None:
        """`amount`: in Stripe's units, negative when the money leaves. A fee is due for what a charge brings."""
        currency, created = source["currency"], at or int(time.time())
        brought = amount if category in ("charge", "partial_capture_reversal") else 0
        ours = STRIPE.ours(abs(brought), currency.upper())
        fee = self.terms.cost(ours) if category == "charge" else 0
        if category == "partial_capture_reversal":
            charged = STRIPE.ours(source["amount"], currency.upper())
            fee = self.terms.cost(Money(charged.amount - ours.amount, ours.currency)) - self.terms.cost(charged)
        details = [
            {"amount": fee, "application": None, "currency": currency, "description": None, "type": "stripe_fee"}
        ]
        self._movements.append(
            (
                operation,
                {
                    "id": f"txn_{secrets.token_hex(12)}", "object": "balance_transaction", "type": type, "reporting_category": category,
                    "amount": amount, "fee": fee, "net": amount - fee, "currency": currency, "created": created,
                    "available_on": created + 2 * DAY_S, "balance_type": "payments", "description": None, "exchange_rate": None,
                    "fee_details": details if fee else [], "status": "pending", "source": json.loads(json.dumps(source)),
                },
            )
        )  # fmt: skip

    def listed(self, created: Document, limit: int, expand: list[str], starting_after: str = "") -> Document:
        assert 1 <= limit <= 100 and expand == ["data.source"]
        told = [one for operation, row in self._movements for one in self._told(row, self.errors.get(operation, ""))]
        of_day = [one for one in told if int(created["gte"]) <= one["created"] < int(created["lt"])]
        of_day.reverse()  # the latest first
        ids = [one["id"] for one in of_day]
        rest = of_day[ids.index(starting_after) + 1 :] if starting_after else of_day
        rows = min(limit, self.page_rows_max)
        url = "/v1/balance_transactions"
        return {"object": "list", "url": url, "has_more": len(rest) > rows, "data": rest[:rows]}

    @staticmethod
    def _told(row: Document, error: str) -> Iterator[Document]:
        source = row["source"]
        match error:
            case "omitted":
                return
            case "doubled":
                yield {**row, "id": row["id"] + "2"}
            case "amount":
                step = STRIPE.step.get(row["currency"].upper(), 1)
                row = {**row, "amount": row["amount"] + step, "net": row["net"] + step}
            case "currency":
                row = {**row, "currency": "chf", "source": {**source, "currency": "chf"}}
            case "fee":
                row = {**row, "fee": row["fee"] + 1, "net": row["net"] - 1}
            case "unknown":  # nobody's that we know
                row = {**row, "source": {**source, "id": source["id"] + "2", "metadata": {}, "payment_intent": None}}
            case "next_day":
                row = {**row, "created": row["created"] + DAY_S}
        yield row
