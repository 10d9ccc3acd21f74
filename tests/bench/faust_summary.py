"""The other baseline of `replay`: `order_summary` built from the beginning by a Faust agent. `python -m tests.bench.faust_summary EVENTS FOLDER`.

The agent takes raw records and hands a thousand at a time to the platform's own runner and sink. Writes the events a second.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from infra.settings import settings
from projections.kernel.clauses import projection
from projections.kernel.runner import Delivery, Runner
from projections.kernel.sinks import sink_of
from projections.order import order_summary
from replay.shadow import shadow_of
from tests.bench.faust_app import Timed

TAKE = 1_000


async def main(events: int, folder: str) -> None:
    chosen = settings()
    runner = Runner(
        sink_of("postgres", chosen),
        [projection("projections.order")],
        ["order"],
        targets={order_summary: shadow_of(order_summary, "faust")},
    )
    runner.assign([("order", partition) for partition in range(chosen.partitions)])
    timed = Timed("summary", chosen.kafka, chosen.topic("order"), events, folder)

    @timed.app.agent(timed.records)
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
                timed.mark()
        return
        yield  # an agent is a generator

    await timed.run()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
