"""The books of Adyen's stand-in: each step of a payment, and the Payment accounting report of a day, which is wrong where a test wants
it so."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from aggregates.kernel.currency import digits
from streams.gateways.minor import ADYEN
from streams.gateways.routing import Terms

HEAD = (
    "Company Account", "Merchant Account", "Psp Reference", "Merchant Reference", "Payment Method", "Booking Date", "TimeZone",
    "Main Currency", "Main Amount", "Record Type", "Payment Currency", "Received (PC)", "Authorised (PC)", "Captured (PC)",
    "Settlement Currency", "Payable (SC)", "Commission (SC)", "Markup (SC)", "Scheme Fees (SC)", "Interchange (SC)",
    "Processing Fee Currency", "Processing Fee (FC)", "User Name", "Payment Method Variant", "Modification Merchant Reference",
    "Modification Psp Reference",
)  # fmt: skip
MONEY = ("Settled", "SettledReversed", "Refunded", "RefundedReversed", "Chargeback")


@dataclass(frozen=True)
class Step:
    """`value` counts Adyen's minor units."""

    kind: str
    psp: str
    reference: str
    value: int
    currency: str
    modification: str = ""
    modification_psp: str = ""
    at: datetime = datetime.min
    fee: int = 0


class Books:
    """`errors`: what is wrong, by our id of the capture or refund. `missing`: days of which there is no report."""

    def __init__(self, account: str) -> None:
        self.terms = Terms()
        self.errors: dict[str, str] = {}
        self.missing: set[date] = set()
        self._account, self._steps = account, list[Step]()

    def book(self, step: Step) -> None:
        """A step that happens now. A fee is due for what is settled."""
        paid = ADYEN.ours(step.value, step.currency)
        fee = self.terms.cost(paid) if step.kind == "Settled" else 0
        self._steps.append(replace(step, at=datetime.now(UTC), fee=fee))

    def report(self, day: date) -> str:
        made = io.StringIO()
        lines = csv.DictWriter(made, HEAD, restval="")
        lines.writeheader()
        for step in self._steps:
            error = self.errors.get(step.modification.partition(".")[2], "") if step.kind in MONEY else ""
            lines.writerows(self._line(one) for one in _told(step, error) if one.at.date() == day)
        return made.getvalue()

    def _line(self, step: Step) -> dict[str, str]:
        currency, amount = step.currency, _major(Decimal(step.value), step.currency)
        registers = {
            "Received": {"Received (PC)": amount},
            "Authorised": {"Received (PC)": f"-{amount}", "Authorised (PC)": amount},
            "SentForSettle": {"Authorised (PC)": f"-{amount}", "Captured (PC)": amount},
            "Settled": {"Captured (PC)": f"-{amount}"},
            "SettledReversed": {"Captured (PC)": amount},
            "SentForRefund": {"Captured (PC)": f"-{amount}"},
            "Refunded": {"Captured (PC)": amount},
            "RefundedReversed": {"Captured (PC)": f"-{amount}"},
            "Chargeback": {"Captured (PC)": f"-{amount}"},
        }[step.kind]
        if step.kind in MONEY:
            third, half = step.fee // 3, step.fee // 2
            bit = Decimal("0.4") if step.fee else Decimal()  # the parts may be finer than the currency
            parts = {
                "Markup (SC)": Decimal(step.fee - third - half),
                "Scheme Fees (SC)": third + bit,
                "Interchange (SC)": half - bit,
            }
            back = step.kind in ("Refunded", "SettledReversed", "Chargeback")
            payable = -step.value if back else step.value - step.fee
            registers |= {"Settlement Currency": currency, "Payable (SC)": _major(Decimal(payable), currency)}
            registers |= {name: _major(part, currency) for name, part in parts.items()}
        return {
            "Company Account": "Titan", "Merchant Account": self._account, "Psp Reference": step.psp, "Payment Method": "visa",
            "Merchant Reference": step.reference, "Booking Date": f"{step.at:%Y-%m-%d %H:%M:%S}", "TimeZone": "UTC",
            "Record Type": step.kind, "Main Currency": currency, "Main Amount": amount, "Payment Currency": currency,
            "Modification Merchant Reference": step.modification, "Modification Psp Reference": step.modification_psp, **registers,
        }  # fmt: skip


def _told(step: Step, error: str) -> Iterator[Step]:
    match error:
        case "omitted":
            return
        case "doubled":
            yield step
        case "amount":
            step = replace(step, value=step.value + 1)
        case "currency":
            step = replace(step, currency="CHF")
        case "fee":
            step = replace(step, fee=step.fee + 1)
        case "unknown":  # nobody's that we know
            step = replace(step, reference="order-17", modification="", psp=step.psp[::-1])
        case "next_day":
            step = replace(step, at=step.at + timedelta(days=1))
    yield step


def _major(value: Decimal, currency: str) -> str:
    """12.34, by as many decimals as Adyen counts."""
    return f"{value.scaleb(-ADYEN.decimals.get(currency, digits(currency))):f}"
