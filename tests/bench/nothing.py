"""The baseline of `live`: a Faust app with one agent that does nothing. `python -m tests.bench.nothing BROKER TOPIC EVENTS FOLDER`.

Writes the events a second from its first event to its last.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvloop

from tests.bench.faust_app import Timed


async def main(broker: str, topic: str, events: int, folder: str) -> None:
    timed = Timed("nothing", broker, topic, events, folder)

    @timed.app.agent(timed.records)
    async def nothing(stream: Any) -> AsyncIterator[None]:
        seen = 0
        async for _ in stream:
            seen += 1
            if seen in (1, events):
                timed.mark()
        return
        yield  # an agent is a generator

    await timed.run()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
