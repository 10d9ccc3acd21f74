"""The three sinks by name."""

from __future__ import annotations

from collections.abc import Callable

from infra.settings import Settings
from projections.kernel.behind import BehindSink
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.postgres import PostgresSink
from projections.kernel.redis_sink import RedisSink
from projections.kernel.runner import Sink

SINKS: dict[str, Callable[[Settings], Sink]] = {
    "postgres": lambda settings: PostgresSink(settings.postgres),
    "redis": lambda settings: RedisSink(settings.redis, settings.namespace),
    "clickhouse": lambda settings: ClickHouseSink(settings.clickhouse),
}


def sink_of(name: str, settings: Settings, behind: bool = False) -> Sink:
    """A sink of its own for the calling thread. It connects when it is first used.

    With `behind` it may store a large batch while the next one is made; see `Sink.settle`.
    """
    return BehindSink(settings.postgres) if behind and name == "postgres" else SINKS[name](settings)
