"""Processors with keyed state and timers in event time: what `streams/faust_app.py` hosts. It knows no Faust and no Kafka.

A processor folds the events of an aggregate into a state and says when that is due; then it gives a command, once. States live in
Postgres, and change with the positions (`lanes`).

Time is the events' own. A partition's watermark is the latest time of an event in it; one that has been read to its end and is quiet
follows the clock, IDLE_S behind. A timer fires when its partition's watermark has reached it. Its command id is made of processor, key
and time: whatever is fired again, by whomever, is stored once. Late events are fine; what is decided is for the aggregate to check.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import ClassVar, Generic, NamedTuple, TypeVar
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg
from prometheus_client import Counter, Gauge
from pydantic import TypeAdapter

from aggregates.kernel import Commands, Conflict, Event, NotFound, Origin, Recorded, Refused, Store, Unavailable
from aggregates.kernel.clock import wall
from infra.logs import bound
from infra.settings import Settings
from projections.kernel.runner import Delivery, Parking
from streams.kernel.lanes import PARKED, Connection, Lane, Log, Partitioned, Pool, Where

log = logging.getLogger(__name__)

S = TypeVar("S")

POLL_S = 1.0  # between two looks for what is due: a timer is so late at most
LOOK_S = 5.0  # between two looks for timers that a retry has set
IDLE_S = 5.0  # a quiet partition is so far behind the clock: longer than an event takes from its commit to here
FIRE_MAX = 200  # timers of a partition fired at once
AGAIN_S = (1.0, 3600.0)  # first and longest pause before a timer whose command failed by a bug is fired again

FIRED = Counter("processor_fired_total", "Timers whose command was given", ["processor"])
FAILED = Counter("processor_failed_total", "Timers whose command failed by a bug: alarm", ["processor"])
BEHIND = Gauge("processor_watermark_age_seconds", "How far the slowest watermark is behind the clock", ["processor"])

PUT = """
INSERT INTO processor_states (processor, key, topic, partition, state, due)
SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::int[], %s::text[]::json[], %s::timestamptz[])
ON CONFLICT (processor, key) DO UPDATE
SET topic = EXCLUDED.topic, partition = EXCLUDED.partition, state = EXCLUDED.state, due = EXCLUDED.due
"""


class Processor(ABC, Generic[S]):
    """What is kept for each aggregate, and when something is to be done about it. One subclass a module of streams/.

    `events` are the classes it wants, `state` a data class whose fields pydantic can write as JSON. Except for `fire` it is pure:
    time comes from events. A change of `state` needs defaults for what is stored.
    """

    name: ClassVar[str]
    events: ClassVar[Collection[type[Event]]]
    state: type[S]

    def __init__(self, settings: Settings) -> None:
        """Made once a process."""

    @abstractmethod
    def on(self, state: S | None, event: Event) -> S | None:
        """The state after an event; None forgets the aggregate. An event may be late, but never one version before another."""

    @abstractmethod
    def due(self, state: S) -> datetime | None:
        """When `fire` is to be called, in event time; None for not at all. Another timer has another time."""

    @abstractmethod
    async def fire(self, id: UUID, state: S, commands: Commands) -> None:
        """Give the one command that is due. Called again for the same timer it has no effect, since the command's id is the same."""

    @abstractmethod
    def fired(self, state: S) -> S | None:
        """The state after its timer, due at another time or not at all; None forgets the aggregate."""


class Put(NamedTuple):
    """A state as it is stored."""

    topic: str
    partition: int
    state: str
    due: datetime | None


class Host(Partitioned, Generic[S]):
    """Runs one processor over the partitions that it is given: `assign`, `handle` and `fire_due` take turns."""

    def __init__(
        self,
        processor: Processor[S],
        pool: Pool,
        store: Store,
        parking: Parking,
        records: Log,
        *,
        clock: Callable[[], datetime] = wall,
        decode: Callable[[Delivery], Recorded[Event]] = Delivery.recorded,
        idle_s: float = IDLE_S,
    ) -> None:
        name = processor.name
        super().__init__(name, f"processor.{name}", processor.events, pool, parking, records, decode)
        self.processor, self._store, self._clock, self._idle_s = processor, store, clock, idle_s
        self._states: TypeAdapter[S] = TypeAdapter(processor.state)
        self._again: dict[str, tuple[float, float]] = {}  # a failed timer: when to try it again, the pause after that

    # States.

    async def _change(self, connection: Connection, wanted: Sequence[Delivery]) -> Callable[[], None]:
        put = await self._fold(connection, wanted)
        await self._put(connection, put)

        def done() -> None:
            for key, new in put.items():
                self._again.pop(key, None)
                lane = self.lanes.get((new.topic, new.partition)) if new and new.due else None
                if lane is not None and new is not None and new.due is not None:
                    lane.soonest = new.due if lane.soonest is None else min(lane.soonest, new.due)

        return done

    async def _take_again(self, connection: Connection, where: Where, lane: Lane, events: Sequence[Delivery]) -> None:
        states, put = await self._read(connection, events), dict[str, Put | None]()
        for event in events:
            self._advance(states, put, event)
        await self._put(connection, put)
        lane.soonest = await self._soonest(connection, where)

    async def _read(self, connection: Connection, of: Collection[Delivery]) -> dict[str, S]:
        cursor = await connection.execute(
            "SELECT key, state::text FROM processor_states WHERE processor = %s AND key = ANY(%s)",
            (self.name, list({delivery.key.decode("utf-8", "replace") for delivery in of})),
        )
        return {key: self._states.validate_json(state) for key, state in await cursor.fetchall()}

    async def _fold(self, connection: Connection, wanted: Sequence[Delivery]) -> dict[str, Put | None]:
        """The states that the events change, as they are after the last of them."""
        if not wanted:
            return {}
        states = await self._read(connection, wanted)
        put: dict[str, Put | None] = {}
        for delivery in wanted:
            if (delivery.topic, delivery.key) in self._blocked:
                if await self._park(lambda: self._parking.follow(self.parked_as, delivery)):  # noqa: B023
                    PARKED.labels(self.name).inc()
                    continue
                self._blocked.discard((delivery.topic, delivery.key))  # a retry has emptied the sequence
            try:
                with bound(delivery.correlation):
                    self._advance(states, put, delivery)
            except Exception as error:
                PARKED.labels(self.name).inc()
                poison = error
                await self._park(lambda: self._parking.park(self.parked_as, delivery, poison))  # noqa: B023
                self._blocked.add((delivery.topic, delivery.key))
        return put

    def _advance(self, states: dict[str, S], put: dict[str, Put | None], delivery: Delivery) -> None:
        """Fold one event. Whatever it raises has changed nothing."""
        event = self._decode(delivery).event
        key = str(event.id)
        before = states.get(key)
        after = self.processor.on(before, event)
        if after is None:
            if states.pop(key, None) is not None:
                put[key] = None
        elif after != before:
            put[key] = self._as_put(delivery.topic, delivery.partition, after)
            states[key] = after

    def _as_put(self, topic: str, partition: int, state: S) -> Put:
        return Put(topic, partition, self._states.dump_json(state).decode(), self.processor.due(state))

    async def _put(self, connection: Connection, put: Mapping[str, Put | None]) -> None:
        if gone := [key for key, new in put.items() if new is None]:
            await connection.execute(
                "DELETE FROM processor_states WHERE processor = %s AND key = ANY(%s)", (self.name, gone)
            )
        if rows := [(key, *new) for key, new in sorted(put.items()) if new is not None]:
            await connection.execute(PUT, (self.name, *map(list, zip(*rows, strict=True))))

    # Timers.

    async def run(self) -> None:
        """Fire what is due, for ever."""
        looked = time.monotonic()
        while True:
            if time.monotonic() - looked > LOOK_S:
                looked = time.monotonic()
                await self.look()
            await self.fire_due()
            await self._nudge()
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """See the timers that somebody else has set: a retry of what was parked."""
        async with self._turn:
            with suppress(psycopg.OperationalError):  # whoever needs the database waits for it, and says so
                async with self._pool.connection() as connection:
                    cursor = await connection.execute(
                        "SELECT topic, partition, min(due) FROM processor_states WHERE processor = %s AND due IS NOT NULL"
                        " GROUP BY 1, 2",
                        (self.name,),
                    )
                    for topic, partition, soonest in await cursor.fetchall():
                        if lane := self.lanes.get((topic, partition)):
                            lane.soonest = soonest

    async def fire_due(self) -> int:
        """Fire all that is due in the partitions at hand; returns how many. What fails because a server is away stays due."""
        fired = 0
        for where in list(self.lanes):
            more = True
            while more:
                done, more = await self._fire_some(where)
                fired += done
        if self.lanes:
            BEHIND.labels(self.name).set(
                max((self._clock() - self._mark(*one)).total_seconds() for one in self.lanes.items())
            )
        return fired

    def _mark(self, where: Where, lane: Lane) -> datetime:
        """The watermark: never later than the clock, whatever a wrong clock elsewhere has stamped."""
        now = self._clock()
        mark = min(lane.watermark, now)
        end = self._log.end(where)
        if end is not None and lane.next >= end and time.monotonic() - lane.heard >= self._idle_s:
            mark = max(mark, now - timedelta(seconds=self._idle_s))
        return mark

    async def _fire_some(self, where: Where) -> tuple[int, bool]:
        """How many timers of a partition were fired, and whether there may be more."""
        async with self._turn:
            lane = self.lanes.get(where)
            if lane is None or lane.soonest is None or lane.soonest > (mark := self._mark(where, lane)):
                return 0, False
            try:
                due = await self._due(where, mark)
                settled = await asyncio.gather(*(self._fire(*one) for one in due))
                after = {
                    key: self.processor.fired(state) for (key, state, _), done in zip(due, settled, strict=True) if done
                }
                await self._settle(where, lane, after)
            except (psycopg.OperationalError, Unavailable) as error:
                log.warning("%s: timers wait for a database: %s", self.name, error)
                return 0, False
            return len(after), bool(after) and len(due) == FIRE_MAX

    async def _due(self, where: Where, mark: datetime) -> list[tuple[str, S, datetime]]:
        not_yet = [key for key, (at, _) in self._again.items() if at > time.monotonic()]
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """SELECT key, state::text, due FROM processor_states WHERE (processor, topic, partition) = (%s, %s, %s)
                AND due <= %s AND key <> ALL(%s) ORDER BY due LIMIT %s""",
                (self.name, *where, mark, not_yet, FIRE_MAX),
            )
            return [(key, self._states.validate_json(state), due) for key, state, due in await cursor.fetchall()]

    async def _fire(self, key: str, state: S, due: datetime) -> bool:
        """Give the command; whether the timer is settled by that."""
        id = uuid5(NAMESPACE_URL, f"titan:processor:{self.name}:{key}:{due.isoformat()}")
        origin = Origin(f"processor:{self.name}", command=id)
        with bound(origin.correlation):
            return await self._give(key, state, origin)

    async def _give(self, key: str, state: S, origin: Origin) -> bool:
        try:
            await self.processor.fire(UUID(key), state, self._store.commands(origin))
        except (Unavailable, Conflict) as error:
            log.warning("%s: the timer of %s waits: %s", self.name, key, error)
            return False
        except (Refused, NotFound) as no:
            log.info("%s: the timer of %s: %s", self.name, key, no)
        except Exception:
            _, pause = self._again.get(key, (0.0, AGAIN_S[0]))
            self._again[key] = time.monotonic() + pause, min(2 * pause, AGAIN_S[1])
            log.exception("%s: the timer of %s failed; again in %.0f s", self.name, key, pause)
            FAILED.labels(self.name).inc()
            return False
        FIRED.labels(self.name).inc()
        self._again.pop(key, None)
        return True

    async def _settle(self, where: Where, lane: Lane, after: Mapping[str, S | None]) -> None:
        """Store the states after their timers, if this host still has the partition; if not, another fires them to no effect."""
        async with self._pool.connection() as connection, connection.transaction():
            if not await self._still(connection, where, lane):
                return
            put = {key: None if state is None else self._as_put(*where, state) for key, state in after.items()}
            await self._put(connection, put)
            lane.soonest = await self._soonest(connection, where)

    async def _soonest(self, connection: Connection, where: Where) -> datetime | None:
        cursor = await connection.execute(
            "SELECT min(due) FROM processor_states WHERE (processor, topic, partition) = (%s, %s, %s)",
            (self.name, *where),
        )
        [soonest] = await cursor.fetchone() or [None]
        return soonest
