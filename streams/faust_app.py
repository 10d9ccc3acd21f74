"""The processors with keyed state and timers, and the fraud rules, hosted by Faust: `python -m streams.faust_app [--metrics-port N]`.

Processors are found in the modules of streams/: every `Processor`; rules in streams/rules/ and under the entry points of
`titan.fraud_rules`. Start as many processes as you like: they share the partitions, and what is
raised is raised once. SIGTERM: exit 0. Whatever does not work any more ends the process, to begin anew where its positions are: exit 1
for an error, 3 with ALARM for too many parked events, 4 with ALARM for partitions that did not move though there was more to read.
"""

from __future__ import annotations

import asyncio
import logging
import pkgutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib import import_module
from typing import Any

import psycopg
import uvloop
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

import streams
from aggregates.kernel import Event, Recorded, Store, domains, wire
from api.kernel.blind import blinded
from infra.settings import Settings
from projections.kernel.parking import Parked, PostgresParking, TooManyParked
from projections.kernel.runner import Delivery, Down
from schemas import external
from streams import verdicts
from streams.kernel.dlq import Copier
from streams.kernel.entry import begin, parser
from streams.kernel.faust import Records, Watchdog, make_app
from streams.kernel.lanes import Partitioned
from streams.kernel.migrate import migrate
from streams.kernel.processor import Host, Processor
from streams.kernel.rules.found import discover as discover_rules
from streams.kernel.rules.host import RuleHost

log = logging.getLogger("streams.faust_app")

NOT_HERE = frozenset({"kernel", "relay", "worker", "sagas", "faust_app", "rules", "gateways", "verdicts"})
CHATTY = frozenset({"faust", "mode", "aiokafka"})
REMIND_S = 30.0
STALLED_S = 60.0
STOP_S = 10.0
POOL_MAX = 4  # connections that all of them share
FAILED, ALARM = 1, 3


class Reminders(logging.Filter):
    """While a broker is away aiokafka says so forty times a second: of a chatty library's message one in REMIND_S is enough."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in CHATTY:
            return True
        key, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._said.get(key, -REMIND_S) < REMIND_S:
            return False
        self._said[key] = now
        return True


def discover() -> list[type[Processor[Any]]]:
    """The processors that the modules of streams/ define. Raises `TypeError` for two of one name."""
    found: dict[str, type[Processor[Any]]] = {}
    for module in sorted(pkgutil.iter_modules(streams.__path__), key=lambda module: module.name):
        if module.name in NOT_HERE:
            continue
        for value in vars(import_module(f"streams.{module.name}")).values():
            if not isinstance(value, type) or not issubclass(value, Processor) or value is Processor:
                continue
            if found.setdefault(value.name, value) is not value:
                raise TypeError(f"there are two processors {value.name}")
    return list(found.values())


@asynccontextmanager
async def hosting(chosen: Settings, records: Records) -> AsyncIterator[list[Partitioned]]:
    """All processors and rules, each with its host."""
    for domain in domains():
        import_module(f"aggregates.{domain}")
    ids = await asyncio.to_thread(external.ids_of, chosen.schema_registry_url)

    def decode(delivery: Delivery) -> Recorded[Event]:
        if ids is None:
            return delivery.recorded()
        return wire.read(delivery.topic, delivery.key, ids.stored(delivery.value), delivery.headers)

    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Store.open(chosen.postgres, chosen.postgres_domains, readers=2))
        pool = AsyncConnectionPool[AsyncConnection[TupleRow]](
            chosen.postgres, min_size=1, max_size=POOL_MAX, timeout=5, open=False, kwargs={"connect_timeout": 5}
        )
        await stack.enter_async_context(pool)
        blind = await stack.enter_async_context(blinded(chosen))
        copier, hosts = Copier(chosen), list[Partitioned]()
        stack.callback(copier.close)

        def parking() -> PostgresParking:
            made = PostgresParking(chosen.postgres, copy=copier)
            stack.callback(made.close)
            return made

        for kind in discover():
            hosts.append(Host(kind(chosen), pool, store, parking(), records, decode=decode))
        for rule in discover_rules():
            tell = verdicts.told_to(store)
            hosts.append(RuleHost(rule, pool, parking(), records, tell, blind=blind, decode=decode))
        for host in hosts:
            stack.callback(host.close)
        yield hosts


async def serve(chosen: Settings, stop: asyncio.Event, stalled_s: float = STALLED_S) -> None:
    """Run the processors until `stop` is set. Raises what they fail with."""
    records = Records(chosen)
    async with hosting(chosen, records) as hosts:
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()

        def fail(error: BaseException) -> None:
            if not failed.done():
                failed.set_exception(error)

        app = make_app(chosen, hosts, records, fail, loop)
        Watchdog(chosen, hosts, stalled_s).start()

        async def run() -> None:
            await app.start()
            log.info("%d processors and rules", len(hosts))
            await app.wait()
            if app.crashed:
                raise RuntimeError("Faust has crashed") from app.crash_reason

        running: list[asyncio.Future[Any]] = [failed, asyncio.create_task(run()), asyncio.create_task(stop.wait())]
        running += [asyncio.create_task(host.run()) for host in hosts]
        try:
            ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                one.result()
        finally:
            for one in running:
                one.cancel()
            with suppress(TimeoutError):  # it ends in any case
                await asyncio.wait_for(app.stop(), STOP_S)


def retry(chosen: Settings, sequence: Parked) -> tuple[int, str]:
    """Take over the parked events of one aggregate and processor or rule, in order, given by any of them. Its process waits meanwhile,
    sees the timers that were set, and tells what a rule has found.

    Answers with how many were taken over and taken out, and why it stopped before the end, "" if it did not. Raises Down.
    """

    async def taken() -> tuple[int, str]:
        async with hosting(chosen, Records(chosen)) as hosts:
            for host in hosts:
                if host.parked_as == sequence.processor:
                    return await host.retry((sequence.topic, sequence.partition), sequence.key)
        return 0, f"there is no {sequence.processor} here"

    try:
        return asyncio.run(taken())
    except psycopg.OperationalError as error:
        raise Down(f"the database: {error}") from error


async def _main(chosen: Settings, stalled_s: float) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await serve(chosen, stop, stalled_s)
    except TooManyParked as error:
        log.critical("ALARM: processors stopped: %s", error)
        return ALARM
    except Exception:
        log.exception("processors stopped")
        return FAILED
    return 0


def main() -> int:
    """The exit code: 0 when asked to stop."""
    known = parser("streams.faust_app", __doc__.splitlines()[0])
    known.add_argument("--stalled-s", type=float, default=STALLED_S, help="end when partitions stand still for so long")
    given = known.parse_args()
    chosen = begin(given)
    level = chosen.log_level.upper()
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(level if level == "DEBUG" else "WARNING")
    for handler in logging.getLogger().handlers:
        handler.addFilter(Reminders())
    migrate(chosen)
    return uvloop.run(_main(chosen, given.stalled_s))


if __name__ == "__main__":
    sys.exit(main())
