"""Checkout: one attempt at buying a cart. Its steps are in `streams/checkout.py`; here is what it knows and what happened.

One purchase, one id: the order that comes of it has the checkout's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID, uuid5

from aggregates.kernel import Created, Invalid, event, process, require
from aggregates.kernel.currency import digits
from aggregates.kernel.event import under_id
from aggregates.kernel.money import Line, Tender, TenderKind, price
from aggregates.kernel.process import Process, Progress
from aggregates.kernel.tender import shared, stated
from aggregates.kernel.token import Way, payment_token
from schemas import Address


# What can happen. `apply` only records: it never refuses, so old events always load.
class Started(Created):
    customer: UUID
    cart: UUID
    contents: int
    currency: str
    lines: tuple[Line, ...]
    discount: int
    shipping: int
    shipping_tax_bp: int
    total: int
    address: Address
    method: str
    tenders: tuple[Tender, ...]
    saved: UUID | None
    gateway: str


class StepBegun(process.StepBegun): ...


class StepDone(process.StepDone): ...


class StepRefused(process.StepRefused): ...


class StepOverdue(process.StepOverdue): ...


class StepUndone(process.StepUndone): ...


class StepFailed(process.StepFailed): ...


class StepRetried(process.StepRetried): ...


class Finished(process.Finished): ...


# What is allowed.
class Checkout(Process):
    """`total` is what the order must come to, and what its `tenders` come to.

    `method` is a token; of one that is `saved`, `gateway` is the only one that may take it.
    """

    @event(Started)
    def __init__(
        self,
        customer: UUID,
        cart: UUID,
        contents: int,
        currency: str,
        lines: tuple[Line, ...],
        discount: int,
        shipping: int,
        shipping_tax_bp: int,
        total: int,
        address: Address,
        method: str,
        tenders: tuple[Tender, ...],
        saved: UUID | None = None,
        gateway: str = "",
    ) -> None:
        self.customer, self.cart, self.contents, self.currency, self.lines = customer, cart, contents, currency, lines
        self.discount, self.shipping, self.shipping_tax_bp, self.total = discount, shipping, shipping_tax_bp, total
        self.address, self.method, self.saved, self.gateway = address, method, saved, gateway
        self.tenders = stated(tenders, payment_of(self.id), total)
        self.progress = Progress()

    @classmethod
    def start(
        cls,
        customer: UUID,
        cart: UUID,
        contents: int,
        currency: str,
        lines: Sequence[Line],
        address: Address,
        way: Way | None,
        discount: int = 0,
        shipping: int = 0,
        shipping_tax_bp: int = 0,
        offers: Sequence[Tender] = (),
    ) -> Checkout:
        """A checkout of a cart at its version `contents`, priced by `aggregates.kernel.money.price`.

        `offers` are vouchers and a wallet with the most that each may pay; the card, `way`, pays what they leave.
        """
        digits(currency)  # raises for what is no currency
        priced, sums = price(lines, discount, shipping, shipping_tax_bp)
        require(sums.total > 0, "there is nothing to pay")
        id = cls.create_id()
        tenders = shared(sums.total, offers, payment_of(id))
        by_card = sum(one.amount for one in tenders if one.kind == "card")
        if by_card and way is None:
            raise Invalid(
                f"{by_card} of {sums.total} are left to be paid by a card: name a method, or prefer a saved one"
            )
        card = way if by_card else None
        with under_id(id):
            return cls(
                customer=customer,
                cart=cart,
                contents=contents,
                currency=currency,
                lines=tuple(priced),
                discount=discount,
                shipping=shipping,
                shipping_tax_bp=shipping_tax_bp,
                total=sums.total,
                address=address,
                method=payment_token(card.token) if card else "",
                tenders=tenders,
                saved=card.saved if card else None,
                gateway=card.gateway if card else "",
            )

    def paid_by(self, kind: TenderKind) -> list[Tender]:
        """The tenders of one kind."""
        return [one for one in self.tenders if one.kind == kind]

    @property
    def by_card(self) -> int:
        """What a card pays, minor units."""
        return sum(one.amount for one in self.paid_by("card"))

    @property
    def payment(self) -> UUID:
        """The card's payment of this checkout, should there be one."""
        return payment_of(self.id)

    @property
    def capture(self) -> UUID:
        """The one capture of that payment."""
        return uuid5(self.id, "capture")


def payment_of(checkout: UUID) -> UUID:
    """The payment of a checkout: its id follows from the checkout's."""
    return uuid5(checkout, "payment")
