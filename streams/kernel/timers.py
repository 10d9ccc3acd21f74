"""Durable timers: commands that are due are given, each once, by whichever process is alive.

A timer's row goes in the commit of its command, also when that decides that nothing is to be done. Several processes may try
the same timer: its command id is made of aggregate, key and time, so one is stored. A timer may be replaced while it is being
fired: a command that is due looks for itself whether it still matters.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from prometheus_client import Counter, Gauge
from psycopg import sql

from aggregates.kernel import Conflict, NotFound, Origin, Refused, Store, TimerRef, Unavailable
from aggregates.kernel.clock import wall
from aggregates.kernel.commands import command_of
from aggregates.kernel.migrate import names
from aggregates.kernel.store import Database
from infra.logs import bound

log = logging.getLogger(__name__)

POLL_S = 1.0  # a timer set for sooner than that may be so late
LOOK_S = 30.0  # between two looks for domains whose tables have been made since
BATCH_MAX = 200  # timers fired at once
RETRY_S = (1.0, 3600.0)  # first and longest pause after a command that failed by a bug
TRIES_MAX = 16  # about eight hours; then the row stays, due never, with its error

FIRED = Counter("timers_fired_total", "Timers whose command was given", ["domain"])
REFUSED = Counter("timers_refused_total", "Timers whose command was refused: they are gone", ["domain"])
FAILED = Counter("timers_failed_total", "Timers whose command failed by a bug: alarm", ["domain"])
LATE = Gauge("timers_late_seconds", "How late the timer was that was fired last")


class Due(NamedTuple):
    """A row of a domain's timers."""

    domain: str
    originator_id: UUID
    key: str
    due: datetime
    call: str
    args: list[Any]
    attempts: int


@cache
def _query(domains: tuple[str, ...]) -> sql.Composed:
    of_one = sql.SQL(
        "(SELECT {domain} AS domain, originator_id, key, due, call, args, attempts FROM {timers}"
        " WHERE due <= %(until)s ORDER BY due LIMIT %(limit)s)"
    )
    of_all = sql.SQL(" UNION ALL ").join(of_one.format(**names(domain)) for domain in domains)
    return sql.SQL("SELECT * FROM ({}) AS upcoming ORDER BY due LIMIT %(limit)s").format(of_all)


class Timers:
    """Fires the timers of these domains. `clock` says what is due; tests move it and call `fire_due`."""

    def __init__(self, store: Store, domains: Collection[str], clock: Callable[[], datetime] = wall) -> None:
        self._store, self._clock = store, clock
        self._databases: dict[Database, list[str]] = {}
        for domain in sorted(domains):
            self._databases.setdefault(store.database(domain), []).append(domain)
        self._there: dict[Database, tuple[str, ...]] = {}  # those that have their tables by now
        self._looked: dict[Database, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Fire what is due until `stop` is set."""
        while not stop.is_set():
            wait_s = POLL_S
            try:
                wait_s = await self._round()
            except (Unavailable, psycopg.Error) as error:
                log.warning("timers wait for the event store: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), wait_s)

    async def fire_due(self) -> int:
        """Fire all that is due now, also what that makes due; returns how many. Raises `Unavailable`."""
        fired = 0
        while due := [one for one in await self._upcoming() if one.due <= self._clock()]:
            settled = await asyncio.gather(*map(self._fire, due))
            fired += sum(settled)
            if not any(settled):
                break
        return fired

    async def _round(self) -> float:
        """Fire what is due; returns the seconds until there may be more."""
        upcoming, now = await self._upcoming(), self._clock()
        due = [one for one in upcoming if one.due <= now]
        settled = await asyncio.gather(*map(self._fire, due))
        if any(settled) and len(due) == len(upcoming):
            return 0.0
        later = [one.due for one in upcoming if one.due > now]
        return max(0.0, min(POLL_S, *((one - self._clock()).total_seconds() for one in later))) if later else POLL_S

    async def _upcoming(self) -> list[Due]:
        """The timers that are due before the next poll, soonest first."""
        found: list[Due] = []
        until = self._clock() + timedelta(seconds=POLL_S)
        for database, domains in self._databases.items():
            async with database.reading() as connection:
                if time.monotonic() > self._looked.get(database, -LOOK_S) + LOOK_S:
                    cursor = await connection.execute("SELECT domain FROM log_heads WHERE domain = ANY(%s)", (domains,))
                    self._there[database] = tuple(sorted(domain for (domain,) in await cursor.fetchall()))
                    self._looked[database] = time.monotonic()
                if there := self._there[database]:
                    cursor = await connection.execute(_query(there), {"until": until, "limit": BATCH_MAX})
                    found += [Due(*row) for row in await cursor.fetchall()]
        return found

    async def _fire(self, one: Due) -> bool:
        """Give the command; whether the timer is settled by that. It is not when the store is away."""
        fired = TimerRef(one.originator_id, one.key, one.due)
        origin = Origin("timer", command=fired.command(one.domain), timer=fired)
        with bound(origin.correlation):
            return await self._give(one, origin)

    async def _give(self, one: Due, origin: Origin) -> bool:
        try:
            _, method = command_of(one.domain, one.call)
            given = {"now": self._clock()} if "now" in inspect.signature(method).parameters else {}
            receipt = await self._store.commands(origin).tell(one.originator_id, method, *one.args, **given)
        except (Unavailable, Conflict) as error:
            log.warning("timer %s of %s %s: %s", one.key, one.domain, one.originator_id, error)
            return False
        except (Refused, NotFound) as no:
            log.info("timer %s of %s %s: %s", one.key, one.domain, one.originator_id, no)
            REFUSED.labels(one.domain).inc()
            await self._end(one)
            return True
        except Exception as error:
            log.exception("timer %s of %s %s: %s", one.key, one.domain, one.originator_id, one.call)
            FAILED.labels(one.domain).inc()
            await self._put_off(one, f"{type(error).__name__}: {error}")
            return True
        if receipt.replayed:
            await self._end(one)  # set again for the very time at which it was fired
        LATE.set((self._clock() - one.due).total_seconds())
        FIRED.labels(one.domain).inc()
        return True

    async def _end(self, one: Due) -> None:
        await self._change(one, "DELETE FROM {timers} WHERE originator_id = %(id)s AND key = %(key)s AND due = %(due)s")

    async def _put_off(self, one: Due, error: str) -> None:
        last = one.attempts + 1 >= TRIES_MAX
        pause_s = min(RETRY_S[0] * 2.0**one.attempts, RETRY_S[1])
        await self._change(
            one,
            "UPDATE {timers} SET attempts = attempts + 1, error = %(error)s,"
            " due = CASE WHEN %(last)s THEN 'infinity' ELSE %(again)s::timestamptz END"
            " WHERE originator_id = %(id)s AND key = %(key)s AND due = %(due)s",
            error=error.replace("\0", "?")[:2000],
            last=last,
            again=self._clock() + timedelta(seconds=pause_s),
        )

    async def _change(self, one: Due, statement: str, **values: object) -> None:
        """Only the row that was fired: it may have been replaced."""
        try:
            async with self._store.database(one.domain).reading() as connection:
                await connection.execute(
                    sql.SQL(statement).format(**names(one.domain)),  # ours, above
                    {"id": one.originator_id, "key": one.key, "due": one.due, **values},
                )
        except (Unavailable, psycopg.Error) as error:
            log.warning("timer %s of %s %s stays: %s", one.key, one.domain, one.originator_id, error)
