"""The three sinks by name."""

from __future__ import annotations

from collections.abc import Callable

from infra.settings import Settings
from projections.kernel.clickhouse import ClickHouseSink
from projections.kernel.postgres import PostgresSink
from projections.kernel.redis import RedisSink
from projections.kernel.runner import Sink

SINKS: dict[str, Callable[[Settings], Sink]] = {
    "postgres": lambda settings: PostgresSink(settings.postgres),
    "redis": lambda settings: RedisSink(settings.redis, settings.namespace),
    "clickhouse": lambda settings: ClickHouseSink(settings.clickhouse),
}


def sink_of(name: str, settings: Settings) -> Sink:
    """A sink of its own for the calling thread. It connects when it is first used."""
    return SINKS[name](settings)
