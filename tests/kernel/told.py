"""What this process logs while a test looks, as the lines of JSON that a process of the platform writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from infra import logs

Lines = Callable[[], list[dict[str, Any]]]


@contextmanager
def logged() -> Iterator[Lines]:
    root, out = logging.getLogger(), BytesIO()
    handlers, level = root.handlers[:], root.level
    logs.configure("info", out)
    try:
        yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
