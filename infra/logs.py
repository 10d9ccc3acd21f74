"""Structured logs: JSON lines on standard output, each with the correlation id of the request that it belongs to.

The API has the id from `traceparent`; it goes with the events, and whoever handles one binds it: the lines of one request have one
id in every process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from infra.errors import StackError

if TYPE_CHECKING:  # the commands bind ids and never log: they have no use for it
    from structlog.typing import EventDict, WrappedLogger

log = logging.getLogger(__name__)

correlation: ContextVar[str] = ContextVar("correlation", default="")
ACCESS_FLUSH_S = 0.05
access_on = True
out: BinaryIO
_waiting: list[bytes] = []


@contextmanager
def bound(id: str) -> Iterator[None]:
    """What is logged within has this correlation id."""
    token = correlation.set(id)
    try:
        yield
    finally:
        correlation.reset(token)


def _correlated(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if (found := correlation.get()) and "correlation" not in event:
        event["correlation"] = found
    return event


def _dumps(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)


class _Lines(logging.Handler):
    """Python's own logging (servers, drivers, our kernel) as the same JSON lines."""

    def emit(self, record: logging.LogRecord) -> None:
        import structlog

        try:
            event: EventDict = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            structlog.get_logger().log(record.levelno, **event)
        except Exception:
            self.handleError(record)


def access(event: dict[str, Any]) -> None:
    """One line a request, written with those of its neighbours: a system call each would cost more than the line."""
    if not access_on:
        return
    event["timestamp"] = datetime.now(UTC)
    _waiting.append(orjson.dumps(event, default=repr, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))
    if len(_waiting) == 1:
        asyncio.get_running_loop().call_later(ACCESS_FLUSH_S, flush)


def flush() -> None:
    """Write the lines that wait."""
    lines = b"".join(_waiting)
    _waiting.clear()
    out.write(lines)
    out.flush()


def configure(level: str, to: BinaryIO | None = None) -> None:
    """Send structlog and the standard library's logging to standard output (or elsewhere) as JSON, from `level` up."""
    global access_on, out
    import structlog

    out = to or sys.stdout.buffer
    number = logging.getLevelNamesMapping()[level.upper()]
    access_on = number <= logging.INFO
    structlog.configure(
        processors=[
            _correlated,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Never with locals: they hold tokens, passwords and personal data.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one, _Lines | logging.StreamHandler)] + [_Lines()]
    root.setLevel(number)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "uvicorn.access"  # one line a request is ours


def begin() -> None:
    """For a process of its own, before it knows its settings: what ends it is such a line, too."""
    configure("info")
    sys.excepthook = _ended


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, StackError):  # one line that says what to do
        log.critical("%s", error)
    elif issubclass(kind, KeyboardInterrupt):
        log.info("interrupted")
    else:
        log.critical("the process ends: %s: %s", kind.__name__, error, exc_info=(kind, error, trace))
