"""The toy's read model, filled by the real runner and sink without a broker between them."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from psycopg import sql

from aggregates.kernel.migrate import names
from aggregates.kernel.partition import partition_of
from aggregates.kernel.wire import COLUMNS, Row, headers
from projections.kernel.clauses import PROJECTIONS, project
from projections.kernel.postgres import PostgresSink, Table
from projections.kernel.runner import Delivery, Runner
from projections.kernel.tables import Change
from tests.api.kernel.purse import Filled, Opened, Spent
from tests.kernel.connections import connected

PARTITIONS = 4

purses = Table(
    "purses", key="id", id=UUID, owner=UUID, currency=str, holder=str, balance=int, version=int, indexes=[("owner",)]
)


@project
def opened(e: Opened) -> list[Change]:
    return [purses.put(e.id, owner=e.owner, currency=e.currency, holder=e.holder, balance=0, version=e.version)]


@project
def filled(e: Filled) -> list[Change]:
    return [purses.add(e.id, balance=e.amount), purses.put(e.id, version=e.version)]


@project
def spent(e: Spent) -> list[Change]:
    return [purses.add(e.id, balance=-e.amount), purses.put(e.id, version=e.version)]


def catch_up(dsn: str, partitions: Iterable[int] = range(PARTITIONS)) -> None:
    """Project everything that is stored, as the worker would that has these partitions."""
    query = sql.SQL(f"SELECT {COLUMNS} FROM {{events}} ORDER BY notification_id").format(**names("purse"))
    with connected(dsn) as connection:
        rows = [Row(*row) for row in connection.execute(query).fetchall()]
    sink = PostgresSink(dsn)
    runner = Runner(sink, [PROJECTIONS[__name__]], ["purse"])
    runner.assign([("purse", partition) for partition in partitions])
    runner.handle([_delivery(row) for row in rows])
    sink.close()


def _delivery(row: Row) -> Delivery:
    key = str(row.originator_id).encode()
    return Delivery("purse", partition_of(key, PARTITIONS), row.notification_id, key, row.state, headers(row))
