"""The projection that `live` is measured by, and its worker: `python -m tests.bench.summary`. A row an order, as a list shows it."""

from __future__ import annotations

import logging
import signal
import sys
from datetime import datetime
from threading import Event as Flag
from uuid import UUID

from aggregates.order import Cancelled, Completed, Confirmed, Delivered, Paid, Placed, Shipped, Status
from infra.settings import settings
from projections.kernel import Change, Table, project
from projections.kernel.clauses import projection
from projections.kernel.migrate import migrate
from streams.worker import work

summaries = Table(
    "order_summaries",
    key="id",
    id=UUID,
    number=str,
    customer=UUID,
    status=Status,
    currency=str,
    lines=int,
    total=int,
    placed_at=datetime,
    changed_at=datetime,
    indexes=[("customer", "placed_at")],
)


@project
def placed(e: Placed) -> list[Change]:
    return [
        summaries.put(
            e.id,
            number=e.number,
            customer=e.customer,
            status="placed",
            currency=e.currency,
            lines=len(e.lines),
            total=e.total,
            placed_at=e.at,
            changed_at=e.at,
        )
    ]


@project
def changed(e: Confirmed | Paid | Shipped | Delivered | Completed | Cancelled) -> list[Change]:
    return [summaries.put(e.id, status=STATUS[type(e)], changed_at=e.at)]


STATUS: dict[type, Status] = {
    Confirmed: "confirmed",
    Paid: "paid",
    Shipped: "shipped",
    Delivered: "delivered",
    Completed: "completed",
    Cancelled: "cancelled",
}


def main() -> int:
    chosen, stop, mine = settings(), Flag(), projection(__name__)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    migrate(chosen, ["postgres"], [mine])
    return work(chosen, ["postgres"], stop, of=[mine], topics=["order"])


if __name__ == "__main__":
    sys.exit(main())
