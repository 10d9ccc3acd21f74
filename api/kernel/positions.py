"""Reading one's own writes: wait until a read model has passed the position that a command's receipt named."""

from __future__ import annotations

import asyncio
import re
import time
from functools import lru_cache
from itertools import takewhile
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg import sql

from aggregates.kernel.migrate import names
from aggregates.kernel.partition import partition_of
from api.kernel.host import Host
from api.kernel.problems import Problem, retry_after
from projections.kernel.clauses import PROJECTIONS

POSITION = "^[a-z]+:[0-9]{1,18}$"
_POSITION = re.compile("([a-z]+):([0-9]{1,18})")
WRITTEN_FIRST, WRITTEN_MAX = 4, 1_000  # events behind a position that are looked at: most commands have one or two
FIRST_LOOK_S, LAST_LOOK_S = 0.004, 0.1  # between two looks at the read model, growing


async def row_of(host: Host, table: Any, key: UUID) -> dict[str, Any] | None:
    """A row of a table in Postgres or Redis, by column."""
    if table.sink == "redis":
        return cast("dict[str, Any] | None", await table.get(host.redis, key, host.settings.namespace))
    return cast("dict[str, Any] | None", await table.get(host.views, key))


async def row_made(host: Host, table: Any, domain: str, id: UUID) -> dict[str, Any] | None:
    """The row of an aggregate, waited for when it was made a moment ago. Raises 503 as `passed`."""
    row = await row_of(host, table, id)
    if row is None and await caught_up(host, table, domain, id):
        row = await row_of(host, table, id)
    return row


async def _position(host: Host, table: Any, domain: str, partition: int) -> int:
    if table.sink == "redis":
        return cast(int, await table.position(host.redis, domain, partition, host.settings.namespace))
    return cast(int, await table.position(host.views, domain, partition))


async def passed(host: Host, table: Any, after: str) -> None:
    """Return once `table` shows what was stored at the position `after`. Raises 503 after a bounded wait, 404 for no position."""
    found = _POSITION.fullmatch(after)
    written = await _written(host, found[1], int(found[2])) if found and _known(found[1]) else {}
    if found is None or not written:
        raise Problem("not-found", "there is no such position")
    if _reads(table, found[1]):
        for id, position in written.items():
            await _reached(host, table, found[1], id, position)


async def caught_up(host: Host, table: Any, domain: str, id: UUID) -> bool:
    """Whether an aggregate is stored at all; if so, return once `table` has seen all its events. Raises 503 as `passed`."""
    query = sql.SQL("SELECT max(notification_id) FROM {events} WHERE originator_id = %s").format(**names(domain))
    async with host.store.database(domain).reading() as connection:
        row = await (await connection.execute(query, (id,))).fetchone()
    if row is None or row[0] is None:
        return False
    if _reads(table, domain):
        await _reached(host, table, domain, id, row[0])
    return True


async def _reached(host: Host, table: Any, domain: str, id: UUID, position: int) -> None:
    partition = partition_of(str(id).encode(), await _partitions(host, domain))
    give_up, pause = time.monotonic() + host.limits.view_wait_s, FIRST_LOOK_S
    while await _position(host, table, domain, partition) < position:
        if time.monotonic() + pause > give_up:
            raise Problem(
                "view-pending", f"{table.name} has not reached {domain}:{position} yet", headers=retry_after(1)
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LAST_LOOK_S)


async def _written(host: Host, domain: str, position: int, most: int = WRITTEN_FIRST) -> dict[UUID, int]:
    """The last event of each aggregate that the command changed whose last event stands at `position`; none for no such one.

    A command's events stand one behind another, under one correlation: a command on several aggregates has some in other partitions.
    """
    query = sql.SQL(
        "SELECT notification_id, originator_id, correlation_id FROM {events}"
        " WHERE notification_id <= %s ORDER BY notification_id DESC LIMIT %s"
    ).format(**names(domain))
    try:
        async with host.store.database(domain).reading() as connection:
            rows = await (await connection.execute(query, (position, most))).fetchall()
    except psycopg.errors.UndefinedTable:  # a domain that was never migrated has no positions
        return {}
    if not rows or rows[0][0] != position:
        return {}
    own = list(takewhile(lambda row: row[2] == rows[0][2], rows))
    if len(own) == most < WRITTEN_MAX:
        return await _written(host, domain, position, WRITTEN_MAX)
    return {id: at for at, id, _ in reversed(own)}


async def _partitions(host: Host, domain: str) -> int:
    """Its topic's partitions: as many as read models have positions for, and never fewer than the settings make."""
    known = host.partitions.get(domain)
    if known is None or known[0] < time.monotonic():
        async with host.views.connection() as connection:
            rows = await connection.execute(
                "SELECT max(partition) FROM projection_positions WHERE topic = %s", (domain,)
            )
            row = await rows.fetchone()
        count = max(host.settings.partitions, (row[0] if row and row[0] is not None else 0) + 1)
        known = host.partitions[domain] = (time.monotonic() + 60, count)
    return known[1]


def _known(domain: str) -> bool:
    return any(domain in projection.domains for projection in PROJECTIONS.values())


@lru_cache(maxsize=1_000)
def _reads(table: Any, domain: str) -> bool:
    """Whether events of a domain can change a table."""
    for projection in PROJECTIONS.values():
        if any(one is table for one in projection.tables):
            return projection.everything or domain in projection.domains
    return False
