"""Sagas, reactors and durable timers of all domains, in one process: `python -m streams.sagas [--metrics-port N]`.

They are found in the modules of streams/: every `Saga` and `@reacts` function. Start as many processes as you like: they share
the events by partition, and each command has its effect once. SIGTERM: what is at work is finished, exit 0. Exit 3, with ALARM in
the log: too many events had to be parked.
"""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import psycopg
import uvloop

import streams
from aggregates.kernel import Event, Origin, Recorded, Store, domains, wire
from aggregates.kernel.clock import wall
from aggregates.kernel.event import AGGREGATES
from infra.settings import Settings
from projections.kernel.parking import COLUMNS, Limits, Parked, PostgresParking, TooManyParked
from schemas import external
from schemas.external import Ids
from streams.kernel.dlq import Copier
from streams.kernel.entry import begin, parser
from streams.kernel.follow import Follower, Positions
from streams.kernel.reactor import Reactor
from streams.kernel.runner import SagaRunner
from streams.kernel.saga import Saga
from streams.kernel.timers import Timers
from streams.people import stay_erased

log = logging.getLogger("streams.sagas")

NOT_HERE = frozenset({"kernel", "relay", "worker", "sagas", "faust_app", "rules", "gateways"})
ALARM = 3
AGAIN_S = 1.0


def discover() -> tuple[list[Saga[Any]], list[Reactor]]:
    """What the modules of streams/ define. Raises `TypeError` for two of one name."""
    sagas: dict[str, Saga[Any]] = {}
    reactors: list[Reactor] = []
    for found in sorted(pkgutil.iter_modules(streams.__path__), key=lambda found: found.name):
        if found.name in NOT_HERE:
            continue
        for value in vars(import_module(f"streams.{found.name}")).values():
            if isinstance(value, Saga):
                if sagas.setdefault(value.name, value) is not value:
                    raise TypeError(f"two sagas are kept in the aggregate {value.name}")
            elif isinstance(value, Reactor) and value not in reactors:
                reactors.append(value)
    return list(sagas.values()), reactors


Handle = Callable[[Recorded[Event]], Awaitable[None]]


class Reacting:
    """The reactors of one module: one follower, so that they keep an order. Raises `TypeError` for two to one event."""

    def __init__(self, module: str, reactors: Iterable[Reactor], store: Store) -> None:
        self.name, self._store = reacting_name(module), store
        self._by_kind = by_kind(reactors)
        self.wanted = wanted(self._by_kind)

    async def handle(self, recorded: Recorded[Event]) -> None:
        """Call the reactor, with commands that name the event as their cause."""
        origin = Origin(self.name, recorded.correlation, recorded.event_id)
        await self._by_kind[type(recorded.event)].call(recorded, self._store.commands(origin))


def reacting_name(module: str) -> str:
    return f"reactor.{module.rpartition('.')[2]}"


def by_kind(reactors: Iterable[Reactor]) -> dict[type[Event], Reactor]:
    found: dict[type[Event], Reactor] = {}
    for reactor in reactors:
        for kind in reactor.kinds:
            if found.setdefault(kind, reactor) is not reactor:
                raise TypeError(f"{reactor.module} has two reactors to {kind.type}")
    return found


def wanted(kinds: Iterable[type[Event]]) -> dict[str, set[str]]:
    """Event types by domain."""
    found: dict[str, set[str]] = {}
    for kind in kinds:
        found.setdefault(kind.domain, set()).add(kind.type)
    return found


class Following(NamedTuple):
    """A follower to be: its name, the event types it wants by domain, and the domain that it reads from the start, if any."""

    name: str
    wanted: Mapping[str, Collection[str]]
    own: str
    make: Callable[[Store], Handle]

    @property
    def later(self) -> list[str]:
        """The domains that it reads from its watermark."""
        return [domain for domain in self.wanted if domain != self.own]


def followings(
    sagas: Collection[Saga[Any]], reactors: Collection[Reactor], clock: Callable[[], datetime] = wall
) -> list[Following]:
    """One for each saga, and one for each module with reactors. Raises `TypeError` for two reactors of a module to one event."""
    found = []
    for saga in sagas:
        found.append(Following(f"saga.{saga.name}", saga.wanted, saga.name, partial(_driving, saga, clock)))
    for module in sorted({reactor.module for reactor in reactors}):
        own = [one for one in reactors if one.module == module]
        found.append(Following(reacting_name(module), wanted(by_kind(own)), "", partial(_reacting, module, own)))
    return found


def _driving(saga: Saga[Any], clock: Callable[[], datetime], store: Store) -> Handle:
    return SagaRunner(saga, store, clock).handle


def _reacting(module: str, reactors: Sequence[Reactor], store: Store) -> Handle:
    return Reacting(module, reactors, store).handle


def register(chosen: Settings) -> None:
    """Fix the watermarks of followers that are new: what happens from now on is theirs, even if they are not running yet."""
    with psycopg.connect(chosen.postgres, autocommit=True, connect_timeout=5) as connection:
        for one in followings(*discover()):
            known = connection.execute(
                "SELECT domain FROM follower_watermarks WHERE follower = %s", (one.name,)
            ).fetchall()
            for domain in set(one.later) - {domain for (domain,) in known}:
                with psycopg.connect(chosen.dsn(domain), autocommit=True, connect_timeout=5) as events:
                    head = events.execute("SELECT last FROM log_heads WHERE domain = %s", (domain,)).fetchone()
                connection.execute(
                    "INSERT INTO follower_watermarks VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                    (one.name, domain, head[0] if head else 0),
                )


async def _heads(store: Store, of: Collection[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for domain in of:
        async with store.database(domain).reading() as connection:
            cursor = await connection.execute("SELECT last FROM log_heads WHERE domain = %s", (domain,))
            row = await cursor.fetchone()
        found[domain] = row[0] if row else 0
    return found


async def serve(
    chosen: Settings,
    stop: asyncio.Event,
    sagas: Collection[Saga[Any]],
    reactors: Collection[Reactor],
    clock: Callable[[], datetime] = wall,
    limits: Limits | None = None,
    ids: Ids | None = None,
) -> None:
    """Run them, and the timers of all domains imported, until `stop` is set. Raises TooManyParked."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(chosen.postgres, chosen.postgres_domains))
        positions = await stack.enter_async_context(Positions(chosen.postgres))
        copier = Copier(chosen)
        stack.callback(copier.close)
        followers = []
        for one in followings(sagas, reactors, clock):
            parking = PostgresParking(chosen.postgres, limits, copier)
            stack.callback(parking.close)
            followers.append(
                Follower(
                    one.name,
                    chosen,
                    positions,
                    one.wanted,
                    one.make(store),
                    heads=partial(_heads, store),
                    parking=parking,
                    from_start=[one.own],
                    ids=ids,
                )
            )
        timers = Timers(store, {cls.domain for cls in AGGREGATES.values()}, clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(timers.run(stop), name="timers")
            for follower in followers:
                tasks.create_task(follower.run(stop), name=follower.name)


def retry(
    chosen: Settings,
    sequence: Parked,
    sagas: Collection[Saga[Any]] | None = None,
    reactors: Collection[Reactor] | None = None,
) -> tuple[int, str]:
    """Handle the parked events of one aggregate and follower in order, given by any of them. A live follower waits meanwhile.

    Answers with how many were handled and taken out, and why it stopped before the end, "" if it did not. Raises Down.
    """
    if sagas is None or reactors is None:
        sagas, reactors = discover()
    found = [one for one in followings(sagas, reactors) if one.name == sequence.processor]
    if not found:
        return 0, f"there is no {sequence.processor} here"
    which = [sequence.processor, sequence.topic, sequence.key]
    parking = PostgresParking(chosen.postgres)
    try:
        with parking.transaction() as connection:
            connection.execute(
                "SELECT FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s) FOR UPDATE", which
            )
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM parked WHERE (processor, topic, key) = (%s, %s, %s) ORDER BY notification_id".encode(),
                which,
            ).fetchall()
            waiting = [Parked(*row) for row in rows]
            done, why = asyncio.run(_handle_again(chosen, found[0], waiting))
            connection.execute(
                "DELETE FROM parked WHERE (processor, topic, key) = (%s, %s, %s) AND notification_id = ANY(%s)",
                [*which, [row.notification_id for row in waiting[:done]]],
            )
            if why:
                connection.execute(
                    "UPDATE parked SET attempts = attempts + 1, error = %s"
                    " WHERE (processor, topic, key, notification_id) = (%s, %s, %s, %s)",
                    [why.replace("\0", "?")[:2000], *which, waiting[done].notification_id],
                )
            else:
                connection.execute("DELETE FROM parked_sequences WHERE (processor, topic, key) = (%s, %s, %s)", which)
            return done, why
    finally:
        parking.close()


async def _handle_again(chosen: Settings, following: Following, waiting: Sequence[Parked]) -> tuple[int, str]:
    ids = external.ids_of(chosen.schema_registry_url)
    async with Store.open(chosen.postgres, chosen.postgres_domains) as store:
        handle = following.make(store)
        for done, row in enumerate(waiting):
            delivery = row.delivery()
            value = delivery.value if ids is None else ids.stored(delivery.value)
            try:
                recorded = wire.read(delivery.topic, delivery.key, value, delivery.headers)
                await handle(recorded)
            except Exception as error:
                return done, f"{type(error).__name__}: {error}"
    return len(waiting), ""


async def _remember(chosen: Settings, stop: asyncio.Event) -> None:
    """Whoever was erased stays so: before anything else is done, and however long a database is away."""
    while not stop.is_set():
        try:
            if again := await stay_erased(chosen):
                log.warning("%d keys and secrets of erased people were here again, from an old copy: destroyed", again)
            return
        except psycopg.OperationalError as error:
            log.warning("who was erased cannot be looked up: %s", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), AGAIN_S)


async def _main(chosen: Settings) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sagas, reactors = discover()
    for domain in domains():
        import_module(f"aggregates.{domain}")  # their timers are fired here
    ids = await asyncio.to_thread(external.ids_of, chosen.schema_registry_url)
    log.info("%d sagas, %d reactors, timers of %d domains", len(sagas), len(reactors), len(domains()))
    code = 0
    await _remember(chosen, stop)
    try:
        await serve(chosen, stop, sagas, reactors, ids=ids)
    except* TooManyParked as group:
        log.critical("ALARM: sagas stopped: %s", "; ".join(map(str, group.exceptions)))
        code = ALARM
    return code


def main() -> int:
    """The exit code: 0 when asked to stop."""
    chosen = begin(parser("streams.sagas", __doc__.splitlines()[0]).parse_args())
    with suppress(KeyboardInterrupt):
        return uvloop.run(_main(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
