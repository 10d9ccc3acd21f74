"""The three sinks by name."""

from __future__ import annotations

from collections.abc import Callable

from infra.settings import Settings
from projections.kernel.behind import BehindSink
from projections.kernel.postgres import PostgresSink
from projections.kernel.runner import Sink


def _postgres(settings: Settings) -> Sink:
    return PostgresSink(settings.postgres)


def _redis(settings: Settings) -> Sink:
    from projections.kernel.redis_sink import RedisSink  # its client is a third of what a process without Redis imports

    return RedisSink(settings.redis, settings.namespace)


def _clickhouse(settings: Settings) -> Sink:
    from projections.kernel.clickhouse_sink import ClickHouseSink

    return ClickHouseSink(settings.clickhouse)


SINKS: dict[str, Callable[[Settings], Sink]] = {"postgres": _postgres, "redis": _redis, "clickhouse": _clickhouse}


def sink_of(name: str, settings: Settings, behind: bool = False) -> Sink:
    """A sink of its own for the calling thread. It connects when it is first used.

    With `behind` it may store a large batch while the next one is made; see `Sink.settle`.
    """
    return BehindSink(settings.postgres) if behind and name == "postgres" else SINKS[name](settings)
