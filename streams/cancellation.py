"""A cancelled order that was paid: its money goes back to the customer and its pieces to the shelf, once each."""

from __future__ import annotations

from uuid import uuid5

from aggregates.inventory import Stock, stock_id
from aggregates.kernel import Commands, Money, Recorded
from aggregates.order import Cancelled
from aggregates.payment import Payment
from streams.kernel import reacts


@reacts
async def give_back(r: Recorded[Cancelled], commands: Commands) -> None:
    """Both commands have ids of the order's own, so whatever is repeated, each has its effect once."""
    e = r.event
    if e.payment is None:
        return
    refund = uuid5(e.id, "cancellation")
    await commands.under(command=uuid5(refund, "money")).tell(
        e.payment, Payment.refund, refund, Money(e.amount, e.currency)
    )
    await commands.under(command=uuid5(refund, "stock")).tell_all(
        [(stock_id(one.sku, one.location), Stock.receive, (one.quantity, f"cancelled order {e.id}")) for one in e.lines]
    )
