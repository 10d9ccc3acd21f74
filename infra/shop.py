"""The sample shop: real invoices of a UK gift shop, loaded through the public API as its shoppers would have ordered.

Products, prices and opening stock come first; then each invoice becomes a cart, a checkout and an order, and each
cancellation cancels the order that it can be about. Every line that is no sale is sent all the same, or refused here where
the API has no field to refuse it by, and is listed with the reason in `shop-refused.csv` in the data folder.

What is done stands in `shop.jsonl` there, so a second run goes on where the first one stopped, and does nothing once it is
complete; each request has an Idempotency-Key of its own, so one that was sent twice happens once.
Source of the data: infra/data/ATTRIBUTION.md.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import io
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from infra.errors import StackError
from infra.settings import Settings, settings
from infra.shopper import Answer, Api

DATA = Path(__file__).parent / "data" / "online_retail.csv.gz"
SHOPPERS = 24  # at once
MARGIN = 50  # pieces in opening stock above what the invoices need
STEP_S_MAX = 120.0  # of a checkout
CURRENCY = "GBP"
MERCHANT = uuid5(NAMESPACE_URL, "titan:shop:merchant")
COUNTRIES = {
    "Australia": "AU", "Austria": "AT", "Bahrain": "BH", "Belgium": "BE", "Brazil": "BR", "Canada": "CA", "Channel Islands": "JE",
    "Cyprus": "CY", "Czech Republic": "CZ", "Denmark": "DK", "EIRE": "IE", "Finland": "FI", "France": "FR", "Germany": "DE",
    "Greece": "GR", "Hong Kong": "HK", "Iceland": "IS", "Israel": "IL", "Italy": "IT", "Japan": "JP", "Lebanon": "LB",
    "Lithuania": "LT", "Malta": "MT", "Netherlands": "NL", "Norway": "NO", "Poland": "PL", "Portugal": "PT", "RSA": "ZA",
    "Saudi Arabia": "SA", "Singapore": "SG", "Spain": "ES", "Sweden": "SE", "Switzerland": "CH", "USA": "US",
    "United Arab Emirates": "AE", "United Kingdom": "GB",
}  # fmt: skip


class Line(NamedTuple):
    """One line of an invoice, as found."""

    invoice: str
    stock_code: str
    description: str
    quantity: int
    invoiced_at: str
    unit_price: Decimal
    customer: str
    country: str


class Refused(NamedTuple):
    """A line that is no sale, and who says so."""

    line: Line
    why: str


def lines_of(file: Path = DATA, invoices: int | None = None) -> list[Line]:
    """The data's lines; of the first so many invoices only, if asked for."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
        found = [
            Line(
                row["invoice"],
                row["stock_code"],
                row["description"].strip(),
                int(row["quantity"]),
                row["invoiced_at"],
                Decimal(row["unit_price_gbp"]),
                row["customer"],
                row["country"],
            )
            for row in csv.DictReader(text)
        ]
    if invoices is not None:
        first = set(list(dict.fromkeys(line.invoice for line in found))[:invoices])
        found = [line for line in found if line.invoice in first]
    return found


def is_merchandise(line: Line) -> bool:
    """Whether the line sells a thing: merchandise has a code of five digits and up to two letters, and a price."""
    return line.stock_code[:5].isdigit() and line.unit_price > 0 and line.quantity > 0 and not is_cancellation(line)


def is_cancellation(line: Line) -> bool:
    return line.invoice.startswith("C")


def customer_of(line: Line) -> UUID:
    """The shopper of a line. An invoice without a customer is one shopper's who is never seen again."""
    return uuid5(NAMESPACE_URL, f"titan:shop:customer:{line.customer or 'of ' + line.invoice}")


class Journal:
    """What is done, a line each, in the order of doing: `{"unit": "order/536365", "result": …}`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.done: dict[str, Any] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+b") as text:
            text.seek(0)
            whole = 0
            for line in text:
                if not line.endswith(b"\n"):
                    text.truncate(whole)  # cut off by a crash; what comes next would be lost behind it
                    break
                whole += len(line)
                with suppress(ValueError, TypeError, KeyError):  # a damaged one: that unit is done again
                    entry = json.loads(line)
                    self.done[entry["unit"]] = entry["result"]

    def add(self, unit: str, result: Any) -> None:
        """Raises StackError on a full disk: the unit is done again next time, under the same Idempotency-Keys."""
        try:
            with self._file.open("a") as out:
                out.write(json.dumps({"unit": unit, "result": result}) + "\n")
        except OSError as error:
            raise StackError(f"{self._file} can't be written ({error.strerror}): free some space") from error
        self.done[unit] = result


@dataclass
class Shop:
    """One loading of the data into the platform."""

    api: Api
    journal: Journal
    lines: list[Line]
    say: Callable[[str], None]

    async def load(self) -> None:
        sold = [line for line in self.lines if is_merchandise(line)]
        by_sku: dict[str, list[Line]] = defaultdict(list)
        for line in sold:
            by_sku[line.stock_code].append(line)
        invoices: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            invoices[line.invoice].append(line)
        orders = {number: lines for number, lines in invoices.items() if not is_cancellation(lines[0])}
        cancellations = {number: lines for number, lines in invoices.items() if is_cancellation(lines[0])}
        await self._each("products", by_sku, lambda sku: self._product(sku, by_sku[sku]))
        await self._visible()
        await self._each("stock", by_sku, lambda sku: self._stock(sku, sum(line.quantity for line in by_sku[sku])))
        await self._each("orders", orders, lambda number: self._order(number, orders[number]))
        await self._each("cancellations", cancellations, lambda number: self._cancel(number, cancellations[number]))

    async def _each(self, what: str, units: Iterable[str], work: Callable[[str], Awaitable[Any]]) -> None:
        """Work through what is not in the journal, some at a time, with progress."""
        every = list(units)
        todo = [unit for unit in every if f"{what}/{unit}" not in self.journal.done]
        if not todo:
            return
        queue, began, told = iter(todo), time.monotonic(), time.monotonic()
        count = len(every) - len(todo)

        async def worker() -> None:
            nonlocal count, told
            for unit in queue:
                self.journal.add(f"{what}/{unit}", await work(unit))
                count += 1
                if time.monotonic() - told > 2:
                    told = time.monotonic()
                    left = (told - began) / max(count - len(every) + len(todo), 1) * (len(every) - count)
                    self.say(f"sample shop: {what} {count:,} of {len(every):,}, {left:.0f} s left")

        async with asyncio.TaskGroup() as group:
            for _ in range(SHOPPERS):
                group.create_task(worker())
        self.say(f"sample shop: {what} {len(every):,} of {len(every):,}")

    async def _product(self, sku: str, lines: Sequence[Line]) -> str:
        title = Counter(line.description for line in lines if line.description).most_common(1)
        price = int(lines[0].unit_price * 100)
        document = {
            "title": title[0][0] if title else sku,
            "variants": [{"sku": sku, "prices": [{"amount": price, "currency": CURRENCY}]}],
            "publish": True,
        }
        made = await self.api.post("/products", document, MERCHANT, "service", f"shop/product/{sku}")
        return _needed(made, f"the product {sku}")["position"]  # type: ignore[no-any-return]

    async def _visible(self) -> None:
        """Wait until both read models of products have the last one: a stock's seller is looked up in one, what is for sale in the other."""
        positions = [result for unit, result in self.journal.done.items() if unit.startswith("products/")]
        if positions:
            last = max(positions, key=lambda position: int(position.partition(":")[2]))
            _needed(await self.api.get("/products", MERCHANT, "service", after=last, limit=1), "the products")
            _needed(await self.api.get("/products/offers", MERCHANT, "service", after=last, sku="any"), "the catalogue")

    async def _stock(self, sku: str, needed: int) -> str:
        opened = await self.api.post("/stocks", {"sku": sku}, MERCHANT, "service", f"shop/stock/{sku}")
        id = _needed(opened, f"the stock of {sku}")["id"]
        delivery = {"quantity": needed + MARGIN, "reference": "opening stock"}
        got = await self.api.post(f"/stocks/{id}/receive", delivery, MERCHANT, "service", f"shop/received/{sku}")
        _needed(got, f"the stock of {sku}")
        return str(id)

    async def _order(self, number: str, lines: Sequence[Line]) -> dict[str, Any]:
        """One invoice: a cart, its lines, a checkout. The result names the order, and each line that is none."""
        customer, refused, put = customer_of(lines[0]), [], 0
        key = f"shop/{number}"
        cart = _needed(await self.api.post("/carts", {"currency": CURRENCY}, customer, key=f"{key}/cart"), "a cart")
        contents = cart["version"]
        for position, line in enumerate(lines):
            if line.unit_price <= 0:
                refused.append([position, "it has no price"])
                continue
            added = await self.api.post(
                f"/carts/{cart['id']}/lines",
                {"sku": line.stock_code, "quantity": line.quantity},
                customer,
                key=f"{key}/line/{position}",
            )
            if added.ok:
                contents, put = added.document["version"], put + 1
            else:
                refused.append([position, added.why])
        if not put:
            return {"order": None, "refused": refused}
        bought = await self.api.post(
            "/checkouts",
            {
                "cart": cart["id"],
                "contents": contents,
                "method": "tok_visa",
                "address": {
                    "recipient": f"Customer {lines[0].customer or number}",
                    "street": f"{lines[0].customer or number} High Street",  # everybody lives somewhere else
                    "city": "Town",
                    "postcode": "A1 1AA",
                    "country": COUNTRIES.get(lines[0].country, "GB"),
                },
            },
            customer,
            key=f"{key}/checkout",
        )
        receipt = _needed(bought, f"the checkout of {number}")
        status, why = await ended(self.api, customer, receipt)
        if status != "completed":
            raise StackError(f"the checkout {receipt['id']} of invoice {number} is {status}: {why}")
        return {"order": receipt["id"], "refused": refused}

    async def _cancel(self, number: str, lines: Sequence[Line]) -> dict[str, Any]:
        """One cancellation: of the customer's last order before it with that SKU, if the data has it."""
        refused, cancelled = [], []
        for position, line in enumerate(lines):
            order = self._ordered(line)
            if order is None:
                refused.append([position, "no earlier order of this customer has it"])
                continue
            reason = {"reason": f"cancelled by invoice {number}"}
            done = await self.api.post(
                f"/orders/{order}/cancel", reason, customer_of(line), key=f"shop/{number}/{position}"
            )
            if done.ok:
                cancelled.append(order)
            else:
                refused.append([position, done.why])
        return {"cancelled": cancelled, "refused": refused}

    def _ordered(self, cancellation: Line) -> str | None:
        found = None
        for line in self.lines:
            if line.invoiced_at > cancellation.invoiced_at:
                break
            same = (line.customer, line.stock_code) == (cancellation.customer, cancellation.stock_code)
            if same and line.customer and is_merchandise(line):
                found = (self.journal.done.get(f"orders/{line.invoice}") or {}).get("order")
        return found

    def refused(self) -> list[Refused]:
        """Every line that is no sale and cancels nothing."""
        invoices: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            invoices[line.invoice].append(line)
        made = []
        for number, lines in invoices.items():
            what = "cancellations" if is_cancellation(lines[0]) else "orders"
            result = self.journal.done.get(f"{what}/{number}") or {"refused": []}
            made += [Refused(lines[position], why) for position, why in result["refused"]]
        return made


async def ended(api: Api, customer: UUID, receipt: dict[str, Any]) -> tuple[str, str]:
    """How a checkout ended, (`completed` | `failed`, why), once it has. Raises StackError when a step never does."""
    step, give_up, pause = None, 0.0, 0.02
    query = {"after": receipt["position"]}
    while True:
        now = _needed(await api.get(f"/checkouts/{receipt['id']}", customer, **query), "the checkout")
        if now["status"] != "running":
            return now["status"], now["why"]
        if now["step"] != step:
            step, give_up = now["step"], time.monotonic() + STEP_S_MAX
        elif time.monotonic() > give_up:
            raise StackError(f"the checkout {receipt['id']} is at {step!r} for {STEP_S_MAX:.0f} s: {now['trouble']}")
        query = {}
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.5)


def _needed(answer: Answer, what: str) -> Any:
    if not answer.ok:
        raise StackError(f"{what}: {answer.status} {answer.why}")
    return answer.document


async def load(to: Settings, lines: list[Line], say: Callable[[str], None]) -> Shop:
    """Load what is not loaded yet; returns the shop, its journal complete."""
    async with Api(to) as api:
        shop = Shop(api, Journal(to.data / "shop.jsonl"), lines, say)
        await shop.load()
    return shop


def report(shop: Shop, file: Path) -> str:
    """What became of every line, in words; the refused ones go to `file`."""
    refused = shop.refused()
    with io.StringIO(newline="") as text:
        out = csv.writer(text)
        out.writerow([*Line._fields, "refused_because"])
        out.writerows([*one.line, one.why] for one in refused)
        file.write_text(text.getvalue())
    results = shop.journal.done
    orders = sum(bool(result["order"]) for unit, result in results.items() if unit.startswith("orders/"))
    cancelled = {
        order for unit, result in results.items() if unit.startswith("cancellations/") for order in result["cancelled"]
    }
    reasons = Counter(_kind(one) for one in refused)
    listed = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return (
        f"sample shop: {len(shop.lines):,} lines became {orders:,} orders, {len(cancelled)} of them cancelled; "
        f"{len(refused)} lines are no sale ({listed}): {file.name}"
    )


def _kind(one: Refused) -> str:
    """A reason without the particulars of the line, for counting."""
    if is_cancellation(one.line):
        return "cancellations of no order in the data"
    if one.line.unit_price <= 0:
        return "without a price"
    if not one.line.stock_code[:5].isdigit():
        return "postage, fees and adjustments"
    return "with a quantity below one" if one.line.quantity < 1 else "other"


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m infra.shop", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--invoices", type=int, help="only the first so many")
    given = options.parse_args(argv)
    failed = ""
    try:
        to = settings()
        shop = asyncio.run(load(to, lines_of(invoices=given.invoices), lambda line: print(line, flush=True)))
    except* StackError as group:
        failed = str(group.exceptions[0])
    if failed:
        print(f"error: {failed}", file=sys.stderr)
        return 1
    print(report(shop, to.data / "shop-refused.csv"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
