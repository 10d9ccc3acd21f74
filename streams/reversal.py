"""What a gateway said to be done and has failed after all: a refund, or a capture.

A refund that came back is the customer's all the same, as one that the bank has refused at once: their wallet gets it. A capture that
came back was never paid: the order is told, and ships nothing more until somebody has seen to it; a top-up is taken from the wallet
again, as far as the money is there. Whatever is repeated, each has its effect once: the references follow from the operation's.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from prometheus_client import Counter

from aggregates.kernel import Commands, NotFound, Recorded
from aggregates.kernel.process import Ending
from aggregates.order import Order
from aggregates.payment import NOT_COVERED, CaptureReversed, Payment, RefundReversed
from aggregates.refund import Refund
from aggregates.wallet import TopUp, Wallet
from streams.cancellation import to_wallet
from streams.kernel import reacts

log = logging.getLogger(__name__)

REVERSED = Counter("payment_reversed_total", "Captures and refunds that failed once they were done", ["kind"])


@reacts
async def refund_reversed(r: Recorded[RefundReversed], commands: Commands) -> None:
    """The wallet makes up for it, but not where the capture was reversed, too: then the customer has not paid."""
    e = r.event
    REVERSED.labels("refund").inc()
    if e.code == NOT_COVERED:
        log.error("ALARM: order %s, payment %s: %s; somebody has to look at it", e.order, e.id, e.reason)
        with suppress(NotFound):  # no refund of an order
            await commands.tell(e.refund, Refund.withhold, e.reason)
        return
    payment = await commands.load(Payment, e.id)
    await to_wallet(commands, payment.customer, e.amount, e.refund)
    with suppress(NotFound):
        await commands.tell(e.refund, Refund.card_reversed, e.reason)


@reacts
async def capture_reversed(r: Recorded[CaptureReversed], commands: Commands) -> None:
    e = r.event
    REVERSED.labels("capture").inc()
    log.error("ALARM: order %s, payment %s: %d of it reversed: %s", e.order, e.id, e.amount.amount, e.reason)
    try:
        await commands.tell(e.order, Order.payment_reversed, e.id, e.capture, e.amount.amount, e.reason)
    except NotFound:
        with suppress(NotFound):  # it was taken for others, who see it in the payment
            top_up = await commands.load(TopUp, e.order)
            if top_up.progress.ended is Ending.DONE:
                await commands.tell(top_up.wallet, Wallet.take_back, top_up.id, e.capture, e.amount)
