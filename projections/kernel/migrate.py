"""Makes the tables of all read models, the positions and the dead letters. Safe to run at any time, by several at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import psycopg

from infra.settings import Settings
from projections.kernel import clickhouse, parking, postgres
from projections.kernel.clauses import Projection, projections
from projections.kernel.clickhouse import ClickTable
from projections.kernel.postgres import Table


def migrate(
    settings: Settings,
    sinks: Collection[str] = ("postgres", "redis", "clickhouse"),
    of: Iterable[Projection] | None = None,
) -> list[str]:
    """Create what is missing, columns too; answers with what it did, in words. Redis needs none.

    Raises Broken for a column whose type changed, psycopg.OperationalError or Down for a server that is away.
    """
    tables = [table for projection in (projections() if of is None else of) for table in projection.tables]
    with psycopg.connect(settings.postgres, autocommit=True, connect_timeout=5) as connection:
        done = postgres.migrate(
            connection, [t for t in tables if isinstance(t, Table) and "postgres" in sinks], parking.SCHEMA
        )
    if found := [t for t in tables if isinstance(t, ClickTable) and "clickhouse" in sinks]:
        done += clickhouse.migrate(settings.clickhouse, found)
    return done
