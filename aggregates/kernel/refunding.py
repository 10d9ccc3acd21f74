"""What goes back of a purchase, to the unit and to the piece: never more than was bought, and all of it in the end.

Rounding: pieces are worth their share of what their line came to, tax included, rounded half up; the share is taken of what is left
of the line, and its last pieces are worth all that is left, so that the refunds of a line come to the line exactly. An amount is
split into net and tax in the proportion that is left of both. Shipping goes back whole, with the last piece of the purchase or when
it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID

from aggregates.kernel.errors import require
from aggregates.kernel.money import AMOUNT_MAX, Line, Tender
from aggregates.kernel.tender import back
from schemas.values import value


@value
class Return:
    """What is asked for of a line: pieces, or with a quantity of 0 money alone. `amount`: less than they are worth, tax included."""

    sku: str
    quantity: int
    amount: int | None = None


@value
class Returned:
    """What goes back of a line. `unsent` of the pieces have not left; `worth` is their share of the line; `net` + `tax` goes back."""

    sku: str
    product: UUID
    title: str
    location: str
    quantity: int
    unsent: int
    worth: int
    net: int
    tax: int

    @property
    def amount(self) -> int:
        """With tax."""
        return self.net + self.tax


@value
class Claim:
    """What one refund takes. `shipping` is with its tax; `tenders` say which part of it goes back to where."""

    lines: tuple[Returned, ...]
    shipping: int
    tenders: tuple[Tender, ...]

    @property
    def amount(self) -> int:
        return self.shipping + sum(line.amount for line in self.lines)


@dataclass
class Left:
    """What is left of a line: pieces and what they are worth, and money, which differs from that when less or more went back."""

    pieces: int
    worth: int
    net: int
    tax: int


@dataclass
class Rest:
    """What of a paid purchase has not gone back, and is not on its way back."""

    lines: dict[str, Left]
    shipping: int
    tenders: dict[UUID, Tender]

    @classmethod
    def of(cls, lines: Iterable[Line], total: int, tenders: Iterable[Tender]) -> Rest:
        """All of it."""
        left = {one.sku: Left(one.quantity, one.net + one.tax, one.net, one.tax) for one in lines}
        shipping = total - sum(one.worth for one in left.values())
        return cls(left, shipping, {one.source: one for one in tenders})

    @property
    def amount(self) -> int:
        """All the money that is left."""
        return self.shipping + sum(one.net + one.tax for one in self.lines.values())

    def claim(
        self, asked: Sequence[Return], shipping: bool | None, lines: Sequence[Line], unsent: dict[str, int]
    ) -> Claim:
        """What a refund would take. Nothing named: all pieces left. `shipping`: None for the rule. Raises `Refused`."""
        if not asked and not shipping:
            asked = [Return(sku, one.pieces) for sku, one in self.lines.items() if one.pieces]
        require(len({one.sku for one in asked}) == len(asked), "each line of a refund is another SKU")
        by_sku = {line.sku: line for line in lines}
        given = []
        for one in asked:
            require(one.sku in by_sku, f"{one.sku} is not on the order")
            given.append(self._returned(one, by_sku[one.sku], unsent[one.sku]))
        gone = {one.sku: one.quantity for one in given}
        last = any(gone.values()) and all(left.pieces == gone.get(sku, 0) for sku, left in self.lines.items())
        carried = self.shipping if shipping or (shipping is None and last) else 0
        amount = carried + sum(one.amount for one in given)
        require(amount > 0, "there is nothing to give back")
        return Claim(tuple(given), carried, back(list(self.tenders.values()), amount))

    def take(self, claim: Claim) -> None:
        """Record that it is on its way back."""
        self._move(claim, -1)

    def put_back(self, claim: Claim) -> None:
        """Record that it does not go back after all."""
        self._move(claim, 1)

    def _returned(self, asked: Return, line: Line, unsent: int) -> Returned:
        left, quantity = self.lines[asked.sku], asked.quantity
        require(quantity >= 0, "a quantity is not negative")
        require(quantity <= left.pieces, f"{quantity} of {asked.sku} is more than the {left.pieces} left to refund")
        money = left.net + left.tax
        worth = share(left.worth, quantity, left.pieces)
        most = min(worth, money) if quantity else money
        amount = (most if quantity else 0) if asked.amount is None else asked.amount
        require(quantity > 0 or amount > 0, f"of {asked.sku} neither pieces nor money are named")
        require(0 <= amount <= most, f"{amount} for {asked.sku} is more than the {most} it is worth")
        tax = share(left.tax, amount, money)
        return Returned(
            asked.sku, line.product, line.title, line.location, quantity, min(quantity, unsent), worth, amount - tax, tax
        )  # fmt: skip

    def _move(self, claim: Claim, sign: int) -> None:
        self.shipping += sign * claim.shipping
        for one in claim.lines:
            left = self.lines[one.sku]
            left.pieces += sign * one.quantity
            left.worth += sign * one.worth
            left.net += sign * one.net
            left.tax += sign * one.tax
        for part in claim.tenders:
            before = self.tenders[part.source]
            self.tenders[part.source] = Tender(part.kind, part.source, before.amount + sign * part.amount)

    def check(self) -> None:
        """Assert that nothing is below zero, and that what is left of the money is left of what it was paid with."""
        for one in self.lines.values():
            assert min(one.pieces, one.worth, one.net, one.tax) >= 0 and (one.pieces or not one.worth), one
        assert 0 <= self.shipping <= AMOUNT_MAX
        assert all(part.amount >= 0 for part in self.tenders.values())
        assert sum(part.amount for part in self.tenders.values()) == self.amount


def share(whole: int, part: int, of: int) -> int:
    """`part` of `of` parts of an amount, rounded half up; the last part is all of it."""
    return whole if part == of else (2 * whole * part + of) // (2 * of)
