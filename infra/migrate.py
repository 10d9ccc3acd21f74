"""Tables and topics of every domain in the checkout: `python -m infra.migrate [--keys] [--starting]`. Safe to run at any time, by several at once.

When tables were put back from an old copy, whoever was erased meanwhile is erased again.

Each folder's kernel that keeps tables has a `migrate` module; domains are discovered, not listed.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec

import psycopg

from infra.children import READY_S_MAX
from infra.errors import StackError
from infra.kafka import topics
from infra.settings import Settings, settings
from infra.token import make_keys

MORE = (
    "streams.kernel.migrate",
    "projections.kernel.migrate",
    "api.kernel.migrate",
    "streams.people",
)  # each: migrate(settings)


def migrate(to: Settings, kafka_s: float = topics.ANSWER_S) -> list[str]:
    """Create what is missing; returns the domains. Kafka has so long to answer. Raises StackError when a server can't be reached or refuses."""
    from aggregates.kernel import domains
    from aggregates.kernel.migrate import migrate as events
    from projections.kernel.runner import Broken, Down

    found: list[str] = domains()
    by_database = defaultdict(list)
    for domain in found:
        by_database[to.dsn(domain)].append(domain)
    try:
        for dsn, its in by_database.items():
            events(dsn, its)
        for name in MORE:
            if _exists(name):
                done = import_module(name).migrate(to)
                if inspect.isawaitable(done):
                    asyncio.run(_wait(done))
        if again := asyncio.run(import_module("streams.people").stay_erased(to)):
            print(f"{again} keys and secrets of erased people were here again, from an old copy: destroyed")
    except (psycopg.Error, Down, Broken) as error:
        raise StackError(f"can't make the tables: {' '.join(str(error).split())}") from error
    topics.create(to, found, kafka_s)
    return found


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package is not there either
        return False


async def _wait(done: object) -> None:
    assert inspect.isawaitable(done)
    await done


if __name__ == "__main__":
    try:
        if "--keys" in sys.argv:
            make_keys(settings())
        made = migrate(settings(), READY_S_MAX if "--starting" in sys.argv else topics.ANSWER_S)
        print(f"{len(made)} domains")
        from replay.topic import forgotten, lost

        if gone := forgotten(settings(), made):
            raise StackError(
                f"there are events in the topics of {', '.join(gone)}, and none in their event stores: Postgres was lost, or it is "
                "another one. Once `titan up --servers` has started what is local, give `titan replay store "
                f"{'--all' if gone == made else ' '.join(gone)}`, with `--keys` if there is a copy (README, Replay). For a new platform "
                "beside the old one set TITAN_TOPIC_PREFIX and TITAN_NAMESPACE"
            )
        if gone := lost(settings(), made):
            print(
                f"ALARM: Kafka has lost what was published of {', '.join(gone)}. Once all is up give `titan replay topic --all`: "
                "it writes the topics anew from the event stores"
            )
    except StackError as error:
        sys.exit(f"error: {error}")
