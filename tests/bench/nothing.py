"""The baseline of `live`: a Faust app with one agent that does nothing. `python -m tests.bench.nothing BROKER TOPIC EVENTS FOLDER`.

On uvloop, and handed raw bytes. Writes the events a second from its first event to its last.
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


async def main(broker: str, topic: str, events: int, folder: str) -> None:
    app = faust.App(
        f"{topic}-nothing-{os.getpid()}",
        broker=f"kafka://{broker}",
        store="memory://",
        datadir=folder,
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        loop=asyncio.get_running_loop(),
    )
    times: list[float] = []
    over = asyncio.Event()

    @app.agent(app.topic(topic, key_serializer="raw", value_serializer="raw"))
    async def nothing(stream: Any) -> AsyncIterator[None]:
        seen = 0
        async for _ in stream:
            seen += 1
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
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
