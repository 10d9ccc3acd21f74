"""A time limit for each request at a fraction of what `asyncio.timeout` costs: one timer looks after all of them."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

LOOK_S = 0.1  # how often: a request may be so much over its time


class Deadlines:
    """`with deadlines.within(15): …` raises `TimeoutError` in there when it takes longer, by a LOOK_S at most. Of one event loop."""

    def __init__(self) -> None:
        self._open: set[_Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> _Deadline:
        loop = asyncio.get_running_loop()
        made = _Deadline(self._open, loop.time() + seconds)
        if self._timer is None:
            self._timer = loop.call_later(min(LOOK_S, seconds), self._look, loop)
        return made

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._timer = loop.time(), None
        for one in self._open:
            if one.until <= now and not one.late:
                one.late = True
                one.task.cancel()
        if self._open:
            soonest = min((one.until - now for one in self._open if not one.late), default=LOOK_S)
            self._timer = loop.call_later(max(0.001, min(LOOK_S, soonest)), self._look, loop)


class _Deadline:
    __slots__ = ("_open", "late", "task", "until")

    def __init__(self, open: set[_Deadline], until: float) -> None:
        self._open, self.until, self.late = open, until, False
        self.task: asyncio.Task[Any]

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self._open.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.discard(self)
        if self.late and self.task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error
