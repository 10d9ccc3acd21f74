"""What a process imports, makes and reaches is written down; Python itself imports this in each, by a `sitecustomize` that says so.

TITAN_TEST_SPY is the file, TITAN_TEST_COMMAND the command that its lines are about: `<command> import|made|port <what>`.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

LOOK_S = 0.25
FILE = os.open(os.environ["TITAN_TEST_SPY"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(kind: str, what: object) -> None:
    os.write(FILE, f"{os.environ['TITAN_TEST_COMMAND']} {kind} {what}\n".encode())


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "import":
        note("import", arguments[0])
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        note("port", arguments[1][1])


sys.addaudithook(_heard)

import confluent_kafka  # noqa: E402, what these import is heard
import psutil  # noqa: E402

from aggregates.kernel.committer import Committer  # noqa: E402


def _look() -> None:
    """Clients in C open their connections unheard."""
    its, seen, never = psutil.Process(), set[int](), threading.Event()
    while not never.wait(LOOK_S):
        now = {one.raddr.port for one in its.net_connections("tcp") if one.raddr}
        for port in now - seen:
            note("port", port)
        seen |= now


class Producer(confluent_kafka.Producer):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        note("made", "Producer")
        super().__init__(*arguments, **named)


def _committing(self: Committer, dsn: str, whole: Any = Committer.__init__) -> None:
    note("made", "Committer")
    whole(self, dsn)


confluent_kafka.Producer = Producer  # type: ignore[misc]
Committer.__init__ = _committing  # type: ignore[method-assign]
threading.Thread(target=_look, daemon=True).start()
