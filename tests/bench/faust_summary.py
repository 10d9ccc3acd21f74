"""The other baseline of `replay`: `order_summary` built from the beginning by a Faust agent. `python -m tests.bench.faust_summary EVENTS FOLDER`.

The agent takes raw records and hands a thousand at a time to the platform's own runner and sink. Writes the events a second.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import faust
import uvloop

from infra.settings import settings
from projections.kernel.clauses import projection
from projections.kernel.runner import Delivery, Runner
from projections.kernel.sinks import sink_of
from projections.order import order_summary
from replay.shadow import shadow_of

TAKE = 1_000


async def main(events: int, folder: str) -> None:
    chosen = settings()
    topic = chosen.topic("order")
    runner = Runner(
        sink_of("postgres", chosen),
        [projection("projections.order")],
        ["order"],
        targets={order_summary: shadow_of(order_summary, "faust")},
    )
    runner.assign([("order", partition) for partition in range(chosen.partitions)])
    app = faust.App(
        f"{topic}-summary-{os.getpid()}",
        broker=f"kafka://{chosen.kafka}",
        store="memory://",
        datadir=folder,
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        loop=asyncio.get_running_loop(),
    )
    over = asyncio.Event()
    times: list[float] = []

    @app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw"))
    async def summary(stream: Any) -> AsyncIterator[None]:
        seen, taken = 0, list[Delivery]()
        async for event in stream.events():
            one = event.message
            seen += 1
            taken.append(Delivery("order", one.partition, one.offset, one.key, one.value, [*dict(one.headers).items()]))
            if len(taken) == TAKE or seen == events:
                runner.handle(taken)
                taken = []
            if seen in (1, events):
                times.append(time.perf_counter())
                if seen == events:
                    over.set()
        return
        yield  # an agent is a generator

    await app.start()
    await over.wait()
    print((events - 1) / (times[1] - times[0]), flush=True)
    os._exit(0)  # it would take seconds to leave its group


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
