"""Sagas, reactors and durable timers of all domains, in one process: `python -m streams.sagas [--metrics-port N]`.

They are found in the modules of streams/: every `Saga` and `@reacts` function. Start as many processes as you like: they share
the events by partition, and each command has its effect once. SIGTERM: what is at work is finished, exit 0. Exit 3, with ALARM in
the log: too many events had to be parked.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import pkgutil
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

import uvloop
from prometheus_client import start_http_server

import streams
from aggregates.kernel import Event, Origin, Recorded, Store, domains
from aggregates.kernel.clock import wall
from aggregates.kernel.event import AGGREGATES
from infra.settings import Settings, settings
from projections.kernel.parking import Limits, PostgresParking, TooManyParked
from streams.kernel.dlq import Copier
from streams.kernel.follow import Follower, Positions
from streams.kernel.reactor import Reactor
from streams.kernel.runner import SagaRunner
from streams.kernel.saga import Saga
from streams.kernel.timers import Timers

if TYPE_CHECKING:
    from schemas.external import Ids

log = logging.getLogger("streams.sagas")

NOT_HERE = frozenset({"kernel", "relay", "worker", "sagas", "faust_app", "rules", "gateways"})
ALARM = 3


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


class Reacting:
    """The reactors of one module: one follower, so that they keep an order."""

    def __init__(self, module: str, reactors: Iterable[Reactor], store: Store) -> None:
        self.name, self._store = f"reactor.{module.rpartition('.')[2]}", store
        self._by_kind: dict[type[Event], Reactor] = {}
        for reactor in reactors:
            for kind in reactor.kinds:
                if self._by_kind.setdefault(kind, reactor) is not reactor:
                    raise TypeError(f"{module} has two reactors to {kind.type}")

    @property
    def wanted(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for kind in self._by_kind:
            found.setdefault(kind.domain, set()).add(kind.type)
        return found

    async def handle(self, recorded: Recorded[Event]) -> None:
        """Call the reactor, with commands that name the event as their cause."""
        origin = Origin(self.name, recorded.correlation, recorded.event_id)
        await self._by_kind[type(recorded.event)].call(recorded, self._store.commands(origin))


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

        async def heads(of: Collection[str]) -> Mapping[str, int]:
            found: dict[str, int] = {}
            for domain in of:
                async with store.database(domain).reading() as connection:
                    cursor = await connection.execute("SELECT last FROM log_heads WHERE domain = %s", (domain,))
                    row = await cursor.fetchone()
                found[domain] = row[0] if row else 0
            return found

        def follower(
            name: str,
            wanted: Mapping[str, Collection[str]],
            handle: Callable[[Recorded[Event]], Awaitable[None]],
            own: str,
        ) -> Follower:
            parking = PostgresParking(chosen.postgres, limits, copier)
            stack.callback(parking.close)
            return Follower(
                name, chosen, positions, wanted, handle, heads=heads, parking=parking, from_start=[own], ids=ids
            )

        runners = [SagaRunner(saga, store, clock) for saga in sagas]
        followers = [follower(f"saga.{one.saga.name}", one.wanted, one.handle, one.saga.name) for one in runners]
        for module in sorted({reactor.module for reactor in reactors}):
            reacting = Reacting(module, [one for one in reactors if one.module == module], store)
            followers.append(follower(reacting.name, reacting.wanted, reacting.handle, ""))
        timers = Timers(store, {cls.domain for cls in AGGREGATES.values()}, clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(timers.run(stop), name="timers")
            for one in followers:
                tasks.create_task(one.run(stop), name=one.name)


async def _main(chosen: Settings) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sagas, reactors = discover()
    for domain in domains():
        import_module(f"aggregates.{domain}")  # their timers are fired here
    ids = None
    if chosen.schema_registry_url:
        from schemas import external

        ids = await asyncio.to_thread(external.register, chosen.schema_registry_url)
    log.info("%d sagas, %d reactors, timers of %d domains", len(sagas), len(reactors), len(domains()))
    code = 0
    try:
        await serve(chosen, stop, sagas, reactors, ids=ids)
    except* TooManyParked as group:
        log.critical("ALARM: sagas stopped: %s", "; ".join(map(str, group.exceptions)))
        code = ALARM
    return code


def main() -> int:
    """The exit code: 0 when asked to stop."""
    parser = argparse.ArgumentParser(prog="python -m streams.sagas", description=__doc__.splitlines()[0])
    parser.add_argument("--metrics-port", type=int, help="serve Prometheus metrics there")
    parser.add_argument("--metrics-host", default="127.0.0.1")
    given, chosen = parser.parse_args(), settings()
    logging.basicConfig(level=chosen.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if given.metrics_port is not None:
        start_http_server(given.metrics_port, addr=given.metrics_host)
    with suppress(KeyboardInterrupt):
        return uvloop.run(_main(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main())
