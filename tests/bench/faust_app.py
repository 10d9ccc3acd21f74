"""What the Faust baselines share: an app for one agent that is handed the raw bytes of a topic from its beginning, on uvloop."""

from __future__ import annotations

import asyncio
import os
import time

import faust


class Timed:
    """`app` for an agent on `records`, which calls `mark` at its first event and at the last of `events`."""

    def __init__(self, name: str, broker: str, topic: str, events: int, folder: str) -> None:
        self.app = faust.App(
            f"{topic}-{name}-{os.getpid()}",
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
        self.records = self.app.topic(topic, key_serializer="raw", value_serializer="raw")
        self.events = events
        self._times: list[float] = []
        self._over = asyncio.Event()

    def mark(self) -> None:
        self._times.append(time.perf_counter())
        if len(self._times) == 2:
            self._over.set()

    async def run(self) -> None:
        """Until the last event; writes the events a second, and ends the process."""
        await self.app.start()
        await self._over.wait()
        first, last = self._times
        print((self.events - 1) / (last - first), flush=True)
        os._exit(0)  # it would take seconds to leave its group
