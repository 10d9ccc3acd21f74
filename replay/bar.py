"""The bar of a long run on a terminal. Only for people: rich takes as long to import as a small topic to read."""

from __future__ import annotations

from collections.abc import Iterable

import rich.progress
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.text import Text


class Bar(rich.progress.Progress):
    """Of one task. With the positions on a line of their own, as far as the terminal is wide."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
            transient=False,
            refresh_per_second=4,
        )
        self.start()
        self._task = self.add_task(what, total=total, speed="", at="")

    def moved(self, events: int, speed: str, at: str) -> None:
        """So many are done in all."""
        self.update(self._task, completed=events, speed=speed, at=at)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in (one for one in self.tasks if one.fields["at"]):
            yield Text(f"  {task.fields['at']}", no_wrap=True, overflow="ellipsis")
