"""The worker that `live` is measured by, with one read model: `python -m tests.bench.summary`. A row an order, as a list shows it."""

from __future__ import annotations

import logging
import signal
import sys
from threading import Event as Flag

from infra.settings import settings
from projections.kernel.clauses import projection
from projections.kernel.migrate import migrate
from projections.order import order_summary
from streams.worker import work


def main() -> int:
    chosen, stop = settings(), Flag()
    mine = projection("projections.order").only([order_summary])
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    migrate(chosen, ["postgres"], [mine])
    return work(chosen, ["postgres"], stop, of=[mine], topics=["order"])


if __name__ == "__main__":
    sys.exit(main())
