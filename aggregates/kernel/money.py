"""Prices of a purchase, to the minor unit. Amounts are integers in the minor units of one currency.

Rounding: a tax or a percentage is rounded half away from zero, once, on each line. A discount on the whole purchase is
shared among the lines in proportion to their amounts, and the units that rounding leaves go to the largest remainders,
so the shares always sum to the discount. Totals are sums of rounded lines: nothing is rounded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from aggregates.kernel.currency import digits
from aggregates.kernel.errors import Refused, require
from schemas import Money
from schemas.values import value

AMOUNT_MAX = 10**12  # minor units: above any real order, below JSON's exact 2**53 and Avro's long
QUANTITY_MAX = 10_000
LINES_MAX = 200
BASIS_POINTS = 10_000
OUTSIDE = {
    "lines": f"a purchase has 1 to {LINES_MAX} lines",
    "quantity": f"a quantity is 1 to {QUANTITY_MAX}",
    "price": f"a price is 0 to {AMOUNT_MAX}",
    "tax": "a tax rate is 0 to 100 %",
    "shipping": f"shipping is 0 to {AMOUNT_MAX}",
    "total": f"a purchase comes to {AMOUNT_MAX} at the most",
}
"""What is said past a limit, written once."""


@value
class Line:
    """One SKU of a purchase. `discount` and `tax` are for the whole line; prices are without tax; `tax_bp` is basis points."""

    sku: str
    product: UUID
    title: str
    quantity: int
    unit_price: int
    discount: int
    tax_bp: int
    tax: int
    location: str

    @property
    def gross(self) -> int:
        """Before discount and tax."""
        return self.quantity * self.unit_price

    @property
    def net(self) -> int:
        """After discount, before tax."""
        return self.gross - self.discount

    def priced(self, discount: int) -> Line:
        """The same line with this discount and the tax that is left then."""
        tax = share_of(self.quantity * self.unit_price - discount, self.tax_bp)
        return Line(
            self.sku,
            self.product,
            self.title,
            self.quantity,
            self.unit_price,
            discount,
            self.tax_bp,
            tax,
            self.location,
        )


TenderKind = Literal["voucher", "wallet", "card"]


@value
class Tender:
    """A part of what a purchase is paid with. `source`: the voucher, the wallet, or the card's payment; `amount`: minor units."""

    kind: TenderKind
    source: UUID
    amount: int


@value
class Totals:
    """What a purchase comes to: `total = subtotal - discount + shipping + tax`; `tax` includes that on shipping."""

    subtotal: int
    discount: int
    shipping: int
    tax: int
    total: int


def payable(amount: Money) -> None:
    """Raises `Refused` or `Invalid` for what nobody can pay."""
    digits(amount.currency)
    require(0 < amount.amount <= AMOUNT_MAX, f"an amount is between 1 and {AMOUNT_MAX} minor units")


def share_of(amount: int, basis_points: int) -> int:
    """That part of an amount, half away from zero: 250 basis points of 1001 are 25."""
    product = abs(amount) * basis_points
    whole = (2 * product + BASIS_POINTS) // (2 * BASIS_POINTS)
    return whole if amount >= 0 else -whole


def allocate(amount: int, weights: Sequence[int]) -> list[int]:
    """An amount split in proportion to weights, summing to it exactly: the largest remainders get what is left."""
    if amount == 0:
        return [0] * len(weights)
    whole = sum(weights)
    if whole == 0:
        raise Refused("there is nothing to share an amount among")
    shares = [amount * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda n: (-(amount * weights[n] % whole), n))
    for n in by_remainder[: amount - sum(shares)]:
        shares[n] += 1
    return shares


def price(
    lines: Sequence[Line], discount: int = 0, shipping: int = 0, shipping_tax_bp: int = 0
) -> tuple[list[Line], Totals]:
    """Lines with their share of a purchase-wide discount and their tax, and the totals.

    The lines' own `discount` and `tax` going in are replaced. Raises `Refused` past a limit.
    """
    require(0 < len(lines) <= LINES_MAX, OUTSIDE["lines"])
    for line in lines:
        require(0 < line.quantity <= QUANTITY_MAX, OUTSIDE["quantity"])
        require(0 <= line.unit_price <= AMOUNT_MAX, OUTSIDE["price"])
        require(0 <= line.tax_bp <= BASIS_POINTS, OUTSIDE["tax"])
    gross = [line.quantity * line.unit_price for line in lines]
    subtotal = sum(gross)
    if not 0 <= discount <= subtotal:
        raise Refused(f"a discount is 0 to the subtotal of {subtotal}")
    require(0 <= shipping <= AMOUNT_MAX, OUTSIDE["shipping"])
    priced = [line.priced(part) for line, part in zip(lines, allocate(discount, gross), strict=True)]
    tax = sum([line.tax for line in priced]) + share_of(shipping, shipping_tax_bp)
    total = subtotal - discount + shipping + tax
    require(total <= AMOUNT_MAX, OUTSIDE["total"])
    return priced, Totals(subtotal, discount, shipping, tax, total)
