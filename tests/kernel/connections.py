"""Connections to Postgres that are kept: making one takes the processor longer than what most tests ask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from select import select
from typing import Any

import psycopg

Connection = psycopg.Connection[Any]

_idle: defaultdict[str, list[Connection]] = defaultdict(list)


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    """A connection to oneself, each statement a transaction of its own."""
    connection = _kept(dsn) or psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    _idle[dsn].append(connection)


def forget(dsn: str) -> None:
    """Close what is kept to a database that is to go."""
    for connection in _idle.pop(dsn, []):
        connection.close()


def _kept(dsn: str) -> Connection | None:
    while True:
        try:
            connection = _idle[dsn].pop()
        except IndexError:
            return None
        if not select([connection], [], [], 0)[0]:
            return connection
        connection.close()  # the server has said goodbye meanwhile
