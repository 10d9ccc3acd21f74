"""`titan chaos --rounds N --seed S`: shoppers over HTTP while processes and servers are killed with -9, then an audit.

After each round every store must tell the same story: what was acknowledged is in the event store, the topics and every
read model, once; stock and money balance. The seed decides who is killed and when after the start, and who buys what.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import TypeVar
from unittest.mock import patch

from infra.audit import audit
from infra.demo import Demo
from infra.errors import StackError
from infra.shop import lines_of, load
from infra.shopper import Api
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, folder, fresh_settings

T = TypeVar("T")
SERVERS = ("kafka", "postgres", "redis", "clickhouse")
PROCESSES = ("relay", "worker", "sagas", "faust", "gateway", "api")
INVOICES = 12
KILLS = 3  # a round
AFTER_S = (0.3, 2.5)  # between two kills
DOWN_S = (0.0, 1.5)  # how long it stays away


class Chaos:
    """A platform on servers of its own, so that these can be killed too."""

    def __init__(self, servers: Stack, platform: Platform) -> None:
        self.servers, self.platform = servers, platform

    def kill(self, name: str, down_s: float) -> None:
        """End a server or process with -9, and start it again after a while."""
        if name in SERVERS:
            child = self.servers.children[name]
            assert child.process is not None
            os.kill(child.process.pid, signal.SIGKILL)
            child.process.wait()
            child.stop()
            time.sleep(down_s)  # this is the outage
            child.start()
            child.wait_ready()
        else:
            self.platform.kill(name)
            time.sleep(down_s)
            self.platform.start(name)

    def revive(self) -> None:
        """Start again what gave up while a server was away, as the supervisor does."""
        for name, child in self.platform.children.items():
            if child.pid is None:
                self.platform.start(name)

    def round(self, seed: str, victims: Sequence[str], shoppers: int = 12) -> list[str]:
        """Shoppers live, victims killed meanwhile; the differences that are left when all is at rest."""
        dice = random.Random(f"chaos {seed}")
        # Processes are started by this thread alone: one ends with the thread that started it.
        with ThreadPoolExecutor(1) as others:
            shopping = others.submit(asyncio.run, self._shop(dice.randrange(10**9), shoppers))
            for victim in victims:
                time.sleep(dice.uniform(*AFTER_S))  # shoppers are at it
                self.kill(victim, dice.uniform(*DOWN_S))
            demo = self._meanwhile(shopping)
            return self._meanwhile(others.submit(self.audit)) + self._meanwhile(
                others.submit(asyncio.run, self._check(demo))
            )

    async def _shop(self, seed: int, shoppers: int) -> Demo:
        async with Api(self.platform.settings) as api:
            demo = Demo(api, seed)
            await demo.run(shoppers, at_once=4)
            return demo

    async def _check(self, demo: Demo) -> list[str]:
        async with Api(self.platform.settings) as demo.api:
            return await demo.check()

    def _meanwhile(self, work: Future[T]) -> T:
        """The result of the work, reviving until it is done whatever gives up."""
        while not work.done():
            self.revive()
            wait([work], timeout=0.5)
        return work.result()

    def audit(self) -> list[str]:
        with patch.dict(
            os.environ, self.platform.env
        ):  # the audit asks the test gateway, which has settings of its own
            return audit(self.platform.settings, lambda line: None)


@contextmanager
def chaos(extra: Mapping[str, str] | None = None) -> Iterator[Chaos]:
    """A whole platform with a few real products, on servers that nobody else uses."""
    with folder() as data, closing(Stack(data)) as servers:
        with fresh_settings(servers, data / "platform") as settings, Platform(settings, **(extra or {})) as platform:
            platform.start()
            asyncio.run(load(platform.settings, lines_of(invoices=INVOICES), lambda line: None))
            yield Chaos(servers, platform)


def main(argv: list[str]) -> int:
    options = argparse.ArgumentParser(prog="titan chaos", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seed", type=int, default=None, help="repeats a run's choices")
    given = options.parse_args(argv)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    failed = 0
    with chaos() as made:
        for number in range(given.rounds):
            dice = random.Random(f"victims {seed}/{number}")
            victims = [dice.choice([*SERVERS, *PROCESSES]) for _ in range(KILLS)]
            began = time.monotonic()
            try:
                differences = made.round(f"{seed}/{number}", victims)
            except* StackError as group:
                differences = [str(one) for one in group.exceptions]
            failed += bool(differences)
            words = "all stores agree" if not differences else "; ".join(differences)
            print(
                f"round {number + 1}: killed {', '.join(victims)}; {words} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    print(f"{given.rounds - failed} of {given.rounds} rounds without a difference")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
