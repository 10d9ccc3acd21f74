"""A shadow: a read model built under another name beside the live one, and what each sink has to do for it.

The life of one: `make`, then several loaders at once, each with partitions of its own, each killed and resumed at any time; then
`finish`, and `switch` puts it in the place of the live one, or it stays, to be looked at. Until `finish` nobody but a loader
reads or writes it. From `finish` on the sink's ordinary `Sink` knows it by its name, as it knows a live table.

A rebuilt table holds also what waits in the dead-letter queue: a rebuild stops at poison, so at its end there is none. `switch`
writes that down as the table's position in the lane `<domain>!`, which `Runner` looks at before it applies a parked event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Protocol

from infra.settings import Settings
from projections.kernel.runner import Sink
from projections.kernel.tables import MARK, AnyTable

REBUILD = "rebuild"
NICE = 15  # how far a load steps back: behind the live platform, and still at work on a machine that is never idle

Reach = Mapping[tuple[str, int], int]
"""An offset by (domain, partition): what has to be seen, that record included."""


class Loader(Sink, Protocol):
    """A sink that gathers what it is to apply, folded, and writes it in bulk: rows and positions together at `checkpoint`.

    Its positions are those of the last checkpoint until then. A lane has one loader at a time; a second one is `Fenced`.
    """

    @property
    def rows(self) -> int:
        """Rows gathered since the last checkpoint: what a loader's memory is limited by."""

    def checkpoint(self) -> None:
        """Write all that was gathered, and the positions, as one. Raises Fenced, BadData, Broken or Down."""


class Shadows(Protocol):
    """The shadows in one sink. Methods raise Down, Broken and what is said."""

    name: str
    """The sink's."""

    def make(self, shadow: AnyTable) -> None:
        """An empty table for the loaders, with no positions; what was there under this name is gone."""

    def there(self, shadow: AnyTable) -> bool:
        """Whether it was made and is still whole: loaders, or what comes after `finish`, can go on with it."""

    def loader(self) -> Loader:
        """For one process."""

    def finished(self, shadow: AnyTable) -> bool:
        """Whether `finish` is through and loaders can't go on with it."""

    def finish(self, shadow: AnyTable) -> None:
        """Make of it what a live table is: its indexes, its positions where the sink looks for them. Again: nothing."""

    def switch(self, pairs: Mapping[AnyTable, AnyTable], catch_up: Callable[[Reach], None]) -> None:
        """Put finished shadows in the place of live tables, data and positions of all pairs at one moment.

        The live tables are held still, `catch_up` is called with how far they had got and brings the shadows at least there
        through the ordinary sink, so no view goes backwards; then live readers and workers find the shadow's rows under the
        live name. What was live before is gone. Whatever is raised before that moment leaves the live tables untouched.
        """

    def drop(self, name: str) -> None:
        """Remove a shadow by its name, with its positions; none there is fine."""

    def names(self) -> list[str]:
        """The shadows that lie around."""

    def close(self) -> None: ...


def shadow_of(table: AnyTable, purpose: str = REBUILD) -> AnyTable:
    """The table under the name of its shadow: `order_summary__rebuild`."""
    return table.named(f"{table.name}{MARK}{purpose}")


SHADOWS = {
    "postgres": ("replay.postgres", "PostgresShadows"),
    "redis": ("replay.redis", "RedisShadows"),
    "clickhouse": ("replay.clickhouse", "ClickHouseShadows"),
}


def shadows_of(sink: str, settings: Settings) -> Shadows:
    """The shadows of a sink, by its name."""
    module, name = SHADOWS[sink]
    made: Shadows = getattr(import_module(module), name)(settings)
    return made
