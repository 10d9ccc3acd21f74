"""The settlement report of a day, as CSV: what was captured, refunded and reversed, and what is kept of it. It errs where it is told to."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from uuid import NAMESPACE_OID, uuid5

from aggregates.kernel import Money
from streams.gateways.routing import Terms
from streams.gateways.test_gateway.book import Book

Error = Literal["omitted", "doubled", "amount", "currency", "fee", "unknown", "next_day"]
HEAD = ("id", "kind", "payment", "operation", "amount", "currency", "fee", "at")


def report(day: date, book: Book, terms: Terms) -> str:
    """The rows of a day; those of the day before that are told to be late come first."""
    first = datetime.combine(day, time(), UTC)
    before, end = first - timedelta(days=1), first + timedelta(days=1)
    made = io.StringIO()
    lines = csv.writer(made, lineterminator="\n")
    lines.writerow(HEAD)
    late = [row for row in book.settled(before.timestamp(), first.timestamp()) if row["error"] == "next_day"]
    todays = [row for row in book.settled(first.timestamp(), end.timestamp()) if row["error"] != "next_day"]
    for row in [*late, *todays]:
        error = row["error"]
        if error == "omitted":
            continue
        fee: int | str = terms.cost(Money(row["amount"], row["currency"])) if row["kind"] == "capture" else ""
        operation = row["reference"] if error != "unknown" else str(uuid5(NAMESPACE_OID, row["reference"]))
        line = (
            f"set_{operation[:8]}{operation[-4:]}" + ("r" if row["kind"].endswith("reversed") else ""),
            row["kind"],
            row["payment"],
            operation,
            row["amount"] + (error == "amount"),
            row["currency"] if error != "currency" else "XTS",
            fee if error != "fee" else int(fee or 0) + 1,
            datetime.fromtimestamp(row["at"], UTC).isoformat(),
        )
        for _ in range(2 if error == "doubled" else 1):
            lines.writerow(line)
    return made.getvalue()
