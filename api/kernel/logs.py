"""Structured logs: JSON lines on standard output, each with the correlation id of the request that it belongs to."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

correlation: ContextVar[str] = ContextVar("correlation", default="")
access = structlog.get_logger("access")


def _correlated(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if (found := correlation.get()) and "correlation" not in event:
        event["correlation"] = found
    return event


def _dumps(event: Any, **_: Any) -> bytes:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS)


class _Lines(logging.Handler):
    """Python's own logging (servers, drivers, our kernel) as the same JSON lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event: EventDict = {"event": record.getMessage(), "logger": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            structlog.get_logger().log(record.levelno, **event)
        except Exception:
            self.handleError(record)


def configure(level: str) -> None:
    """Send structlog and the standard library's logging to standard output as JSON, from `level` up."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            _correlated,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(serializer=_dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [one for one in root.handlers if not isinstance(one, _Lines | logging.StreamHandler)] + [_Lines()]
    root.setLevel(number)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "uvicorn.access"  # one line a request is ours
