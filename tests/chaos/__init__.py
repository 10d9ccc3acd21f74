"""`titan chaos --rounds N --seed S`: load over HTTP while processes, servers and a replay are killed with -9; all is judged after each round.

Shoppers buy, give up and cancel; clerks note what they ask and are told (clerks.py); a read model is rebuilt meanwhile. After each
round every store must tell the same story: what was acknowledged is in the event store and in the topics, once, every read model
is the fold of the store, stock and money balance. The seed decides who is killed and when, and who does what.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import TypeVar
from unittest.mock import patch

from infra.audit import Audit
from infra.demo import Demo
from infra.errors import StackError
from infra.settings import ROOT
from infra.shop import lines_of, load
from infra.shopper import Api
from tests.chaos.clerks import Clerks
from tests.chaos.victims import VICTIMS, Victims
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, folder, fresh_settings

T = TypeVar("T")
VIEW_STORES = ("redis", "postgres")  # a crash may take the last moments of a view with it, until they are read again
REBUILT = (
    "orders", "order_lines", "order_summary", "payments", "checkouts", "customer_carts", "stocks", "reservations",
    "carts", "shelves", "catalogue", "sales",
)  # fmt: skip
INVOICES = 12
SHOPPERS = 6  # a round
KILLS = 3  # a round
VERIFY_S_MAX = 300.0
SETTINGS = {"TITAN_GATEWAY_TIMEOUT_S": "2"}  # a round need not wait for ten seconds for a gateway that never answers


class Chaos:
    """A platform on servers of its own, so that these can be killed too."""

    def __init__(self, servers: Stack, platform: Platform) -> None:
        self.platform = platform
        self.victims = Victims(servers, platform, self._crashed)
        self.audit = Audit(platform.settings)
        self.clerks: Clerks | None = None
        self.demo: Demo | None = None
        self.took: dict[str, float] = {}
        """When each part of the last round was over."""

    def close(self) -> None:
        self.victims.close()
        self.audit.close()

    def round(self, seed: str, victims: Sequence[str], shoppers: int = SHOPPERS) -> list[str]:
        """Load, victims killed meanwhile; the differences that are left when all is at rest."""
        dice = random.Random(f"chaos {seed}")
        self.clerks = Clerks(self.platform.settings, self.platform.url, seed, self.skus)
        over = threading.Event()
        self.took = {"begun": time.monotonic()}
        # Processes are started by this thread alone: one ends with the thread that started it.
        with ThreadPoolExecutor(2) as others:
            shopping = others.submit(asyncio.run, self._shop(dice.randrange(10**9), shoppers))
            noting = others.submit(asyncio.run, self.clerks.run(over))
            try:
                self.victims.rebuild(dice.sample(REBUILT, 2))
                self.victims.suffer(dice, victims)
                self._took("broken")
                self.demo = self._meanwhile(shopping)
            finally:
                over.set()
            self._took("served")
            self._meanwhile(noting)
            found = self.victims.rebuilt()
            self._took("rebuilt")
            assert self.demo is not None
            found += self._meanwhile(others.submit(self._look, False))
            self._took("judged")
            return found + self._meanwhile(others.submit(asyncio.run, self._check(self.demo)))

    def _crashed(self, name: str) -> None:
        if name in VIEW_STORES and self.clerks is not None:
            self.clerks.epoch += 1

    def _took(self, what: str) -> None:
        self.took[what] = time.monotonic()

    def look(self) -> list[str]:
        """Everything is read and compared, not only what is new."""
        with ThreadPoolExecutor(1) as others:
            return self._meanwhile(others.submit(self._look, True))

    def verify(self) -> list[str]:
        """What the platform's own comparison of stores, topics and read models finds."""
        done = subprocess.run(
            [sys.executable, "-m", "infra.cli", "replay", "verify", "--all"],
            env={**os.environ, **self.platform.env}, cwd=ROOT, capture_output=True, text=True, timeout=VERIFY_S_MAX,
        )  # fmt: skip
        return [] if done.returncode == 0 else [f"titan replay verify: {(done.stdout + done.stderr)[-1000:]}"]

    def _look(self, everything: bool) -> list[str]:
        with patch.dict(os.environ, self.platform.env):  # the test gateway, which is asked, has settings of its own
            found = self.audit.run(everything)
        return found + (list(self.clerks.judge()) if self.clerks is not None else [])

    def told(self) -> Counter[str]:
        """How the clerks' commands of the last round ended."""
        return Counter(command.outcome for command in self.clerks.history.commands) if self.clerks else Counter()

    @property
    def events(self) -> int:
        """All that were looked at."""
        return sum(self.audit.heads.values())

    @property
    def skus(self) -> list[str]:
        """Some that are for sale."""
        return sorted({line.stock_code for line in lines_of(invoices=INVOICES) if line.stock_code[:5].isdigit()})[:8]

    def rebuild(self, *tables: str) -> list[str]:
        """Rebuild these read models, with nobody killed."""
        self.victims.rebuild(tables)
        return self.victims.rebuilt()

    def _meanwhile(self, work: Future[T]) -> T:
        """The result of the work, reviving until it is done whatever gives up."""
        while not work.done():
            self.victims.revive()
            wait([work], timeout=0.2)
        return work.result()

    # Who is served meanwhile.

    async def _shop(self, seed: int, shoppers: int) -> Demo:
        async with Api(self.platform.settings) as api:
            demo = Demo(api, seed)
            await demo.run(shoppers, at_once=4)
            return demo

    async def _check(self, demo: Demo) -> list[str]:
        async with Api(self.platform.settings) as api:
            demo.api = demo.purses.api = api
            return await demo.check()


@contextmanager
def chaos() -> Iterator[Chaos]:
    """A whole platform with a few real products, on servers that nobody else uses."""
    with folder() as data, closing(Stack(data)) as servers:
        with fresh_settings(servers, data / "platform") as settings, Platform(settings, **SETTINGS) as platform:
            platform.start()
            asyncio.run(load(platform.settings, lines_of(invoices=INVOICES), lambda line: None))
            with closing(Chaos(servers, platform)) as made:
                yield made


def victims_of(seed: str) -> list[str]:
    """Who is killed in a round, in this order."""
    dice = random.Random(f"victims {seed}")
    return dice.sample(VICTIMS, KILLS)


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
            victims = victims_of(f"{seed}/{number}")
            began = time.monotonic()
            try:
                differences = made.round(f"{seed}/{number}", victims)
            except* StackError as group:
                differences = [str(one) for one in group.exceptions]
            failed += bool(differences)
            words = "all stores agree" if not differences else "; ".join(differences)
            told = ", ".join(f"{count} {outcome}" for outcome, count in made.told().items())
            parts = ", ".join(f"{what} {now - was:.1f}" for (_, was), (what, now) in pairwise(made.took.items()))
            print(
                f"round {number + 1}: killed {', '.join(map(made.victims.fate, victims))}, rebuilt {', '.join(made.victims.tables)}; {told}; {words}"
                f" ({time.monotonic() - began:.1f} s: {parts})",
                flush=True,
            )
        if differences := made.look() + made.verify():
            failed += 1
            print(f"at the end: {'; '.join(differences)}")
    print(f"{given.rounds - failed} of {given.rounds} rounds without a difference, of {made.events:,} events")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
