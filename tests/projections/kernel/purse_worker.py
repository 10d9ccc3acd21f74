"""The worker with the toy projection, as a process of its own: `python -m tests.projections.kernel.purse_worker SINK …`."""

from __future__ import annotations

import signal
import sys
import threading

from infra import logs
from infra.settings import settings
from projections.kernel.parking import Limits
from streams.worker import work
from tests.projections.kernel.purse import DOMAIN
from tests.projections.kernel.stores import PURSES


def main(sinks: list[str]) -> int:
    stop = threading.Event()
    logs.begin()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return work(settings(), sinks, stop, Limits(sequences_min=10, ratio_max=0.05), [PURSES], [DOMAIN])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
