"""Prepared statements that take arrays, run together: one message to Postgres, one transaction, one answer.

psycopg's own pipeline hands each statement to the system by itself, and looks for the type of every array by its elements. A commit
of one event pays more for that than for its decision.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, OperationalError, errors, generators
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from schemas.values import value

PARAMETER = re.compile(r"%\((\w+)\)::(\w+)(\[\])?")
HEAD, NONE = struct.Struct("!iiIii"), b"\xff\xff\xff\xff"
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # Postgres's own
MICROSECOND = timedelta(microseconds=1)
# The object id of each, as in psycopg.postgres.types, and its binary form.
TYPES: dict[str, tuple[int, Callable[[Any], bytes]]] = {
    "uuid": (2950, lambda id: id.bytes),
    "int": (23, struct.Struct("!i").pack),
    "bigint": (20, struct.Struct("!q").pack),
    "text": (25, str.encode),
    "bytea": (17, bytes),
    "timestamptz": (1184, lambda at: struct.pack("!q", (at - EPOCH) // MICROSECOND)),
    "jsonb": (3802, lambda document: b"\x01" + document.encode()),
}
_prepared: WeakKeyDictionary[AsyncConnection[TupleRow], set[bytes]] = WeakKeyDictionary()


@value
class Statement:
    """SQL with its parameters as `%(name)::type` or `%(name)::type[]`, of TYPES, prepared once a connection under its name."""

    name: bytes
    query: bytes
    parameters: Sequence[tuple[str, Callable[[Any], bytes]]]

    @classmethod
    def of(cls, name: str, template: str) -> Statement:
        """Raises `KeyError` for another type."""
        parameters: dict[str, Callable[[Any], bytes]] = {}

        def numbered(found: re.Match[str]) -> str:
            named, kind, array = found.groups()
            oid, dump = TYPES[kind]
            parameters[named] = _array(oid, dump) if array else dump
            return f"${list(parameters).index(named) + 1}::{kind}{array or ''}"

        query = PARAMETER.sub(numbered, template)
        return cls(name.encode(), query.encode(), list(parameters.items()))


def _array(oid: int, dump: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    def dumped(elements: Sequence[Any]) -> bytes:
        parts, nothing = [b""], 0
        for element in elements:
            if element is None:
                nothing = 1
                parts.append(NONE)
            else:
                one = dump(element)
                parts += (len(one).to_bytes(4, "big"), one)
        parts[0] = HEAD.pack(1, nothing, oid, len(elements), 1)
        return b"".join(parts)

    return dumped


async def run(
    connection: AsyncConnection[TupleRow], calls: Sequence[tuple[Statement, Mapping[str, Any]]]
) -> list[PGresult]:
    """The results, in binary. Raises `psycopg.Error`: nothing is stored then, or with `OperationalError` perhaps all."""
    known = _prepared.setdefault(connection, set())
    new = {statement.name: statement for statement, _ in calls if statement.name not in known}
    messages = [
        (one.name, [dump(values[name]) for name, dump in one.parameters], [Format.BINARY] * len(one.parameters))
        for one, values in calls
    ]
    results = await connection.wait(_exchange(connection.pgconn, list(new.values()), messages))
    for result in results:
        if result.status in (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED):
            raise errors.error_from_result(result)
    known.update(new)
    return results[len(new) :]


def _exchange(
    pgconn: PGconn, new: Sequence[Statement], messages: Sequence[tuple[bytes, list[bytes], list[Format]]]
) -> PQGen[list[PGresult]]:
    pgconn.enter_pipeline_mode()
    for one in new:
        pgconn.send_prepare(one.name, one.query)
    for name, values, formats in messages:
        pgconn.send_query_prepared(name, values, formats, result_format=Format.BINARY)
    pgconn.pipeline_sync()
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[PGresult] = []
    while True:
        result = yield from generators.fetch(pgconn)
        if result is None:  # stands between two statements; and comes for ever once the connection is lost
            if pgconn.status != ConnStatus.OK:
                raise OperationalError(pgconn.get_error_message())
        elif result.status == ExecStatus.PIPELINE_SYNC:
            pgconn.exit_pipeline_mode()
            return results
        else:
            results.append(result)
