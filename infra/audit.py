"""Do all stores tell the same story? Event store, topics, Postgres, Redis, ClickHouse and the gateway, seen from the outside.

Each is read by its own client and compared with what the event store's history comes to: the topics event by event, every read
model row by row (`infra/folding.py`), stock and money by what must balance (`infra/books.py`). `audit` waits until all is
at rest first (`infra/rest.py`), and answers with the differences, one line each; none means that all agree.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from typing import Any
from uuid import UUID

import httpx
import psycopg
from psycopg import sql

from aggregates.inventory import Adjusted, Received, Stock
from aggregates.kernel import Aggregate, Recorded
from aggregates.kernel.migrate import names
from aggregates.kernel.process import Ending
from aggregates.kernel.wire import Row
from aggregates.order import Order
from aggregates.refund import Refund
from infra.books import FOLDED, Books
from infra.folding import Folding
from infra.rest import Rest
from infra.settings import Settings
from infra.topics import Log, Topics
from streams.gateways.settings import GatewaySettings, gateway_settings

SETTLE_S_MAX = 120.0
GATEWAY_S_MAX = 15.0  # until a test gateway answers that is just being started again
PAUSE_S = 0.2
LOOKS_MAX = 3  # more, when what was looked at has changed
SHOWN_MAX = 20  # differences of one kind that are told one by one


class Audit:
    """A look at everything; again and again, if `run` is called again: then only what is new is read, unless `everything` is asked for."""

    def __init__(self, of: Settings) -> None:
        self.of = of
        self.differences: list[str] = []
        self.heads: dict[str, int] = {}
        self.topics = Topics(of)
        self.folding = Folding(of)
        self.states: dict[type[Aggregate], dict[UUID, Any]] = {Stock: {}, **{cls: {} for cls in FOLDED}}
        self.books = Books(self.states)
        self.came: Counter[UUID] = Counter()
        self.returned: Counter[UUID] = Counter()
        self.rest = Rest(of, self.topics, self.folding.which)

    def close(self) -> None:
        self.topics.close()
        self.rest.close()

    def run(self, everything: bool = True) -> list[str]:
        """Look once it is at rest; the differences of this time."""
        self.differences = []
        self.heads, behind = self.rest.wait(SETTLE_S_MAX)
        self.differences += behind
        for domain, head in self.heads.items():
            self._store(domain, head)
            self.folding.read_on(domain, head, self._see)
            self._topic(domain, head)
        self.differences += islice(self.folding.differences(everything), SHOWN_MAX)
        self._stock()
        self._money()
        return self.differences

    def moved(self) -> bool:
        """Whether anything was stored since the last `run` began to look."""
        return self.rest.heads() != self.heads

    def _log(self, domain: str) -> Log:
        return self.topics.logs.get(domain) or Log()

    def _store(self, domain: str, head: int) -> None:
        """The log has no gap."""
        query = sql.SQL(
            "SELECT count(*), coalesce(min(notification_id), 0), coalesce(max(notification_id), 0) FROM {events}"
        )
        with psycopg.connect(self.of.dsn(domain)) as connection:
            row = connection.execute(query.format(**names(domain))).fetchone()
        if row != (head, min(head, 1), head):
            self.differences.append(f"store {domain}: (events, first, last) are {row}, the log's head is {head}")

    def _see(self, row: Row, recorded: Recorded[Any]) -> None:
        """One event of the store, in the order of its log: is it the topic's, and what does it come to?"""
        event, domain = recorded.event, recorded.event.domain
        there = self._log(domain).events.pop(row.notification_id, None)
        if there is not None and there != (str(row.event_id).encode(), str(row.originator_id).encode()):
            self.differences.append(
                f"topic {domain}: notification {row.notification_id} is another event than the store's"
            )
        for cls, states in self.states.items():
            if cls.domain == domain:
                states[event.id] = event.mutate(states.get(event.id))
        self.books.see(event)
        if isinstance(event, Adjusted):
            self.came[event.id] += event.delta
        elif isinstance(event, Received):
            # Those of before returns named their cause are known by their text.
            back = event.cause is not None or event.reference.startswith(("cancelled order ", "refund "))
            (self.returned if back else self.came)[event.id] += event.quantity

    def _topic(self, domain: str, head: int) -> None:
        """The topic has each event, in order, for whoever drops what it has seen."""
        log = self._log(domain)
        if missing := list(islice((id for id in range(1, head + 1) if id not in log.ids), SHOWN_MAX)):
            self.differences.append(f"topic {domain}: notification ids {missing} are missing")
        if foreign := sorted(id for id in log.events if not 0 < id <= head)[:SHOWN_MAX]:
            self.differences.append(f"topic {domain}: notification ids {foreign} are not in the store")
        if log.lost:
            self.differences.append(f"topic {domain}: notification ids {log.lost[:SHOWN_MAX]} came too late to be seen")
        if log.strays:
            self.differences.append(f"topic {domain}: {log.strays[:SHOWN_MAX]} are in two partitions")
        log.events.clear()

    def _compare(self, what: str, told: dict[Any, Any], true: dict[Any, Any]) -> None:
        for key in sorted(told.keys() | true.keys(), key=str):
            if told.get(key) != true.get(key):
                self.differences.append(f"{what} {key}: {told.get(key)}, but its events come to {true.get(key)}")
                if len(self.differences) > SHOWN_MAX:
                    return

    def _orders(self) -> Iterator[Order]:
        """Those that were paid, cancelled ones too."""
        return (order for order in self.states[Order].values() if order.paid)

    def _stock(self) -> None:
        """Pieces are conserved: what came in and is not there was sold, and what was cancelled or sent back came back."""
        stocks = self.states[Stock]
        self.differences += [
            f"stock {one.sku} ({id}): {one.on_hand} on hand, {one.available} available"
            for id, one in stocks.items()
            if one.on_hand < 0 or one.available < 0
        ]
        sold: Counter[str] = Counter()
        back: Counter[str] = Counter()
        for order in self._orders():
            for line in order.lines:
                sold[line.sku] += line.quantity
                back[line.sku] += (
                    line.quantity if order.status == "cancelled" and not any(order.refunded.values()) else 0
                )
        for refund in self.states[Refund].values():
            for line, count in refund.pieces if refund.progress.ended is Ending.DONE else ():
                back[line.sku] += count
        gone: Counter[str] = Counter()
        for id, one in stocks.items():
            gone[one.sku] += self.came[id] + self.returned[id] - one.on_hand
        returned = {stocks[id].sku: count for id, count in self.returned.items() if count}
        self._compare("pieces sold of", dict(+sold), dict(+gone))
        self._compare("pieces back of", dict(+back), returned)

    def _money(self) -> None:
        """What was taken and given back is what orders and wallets say, and what the test gateways say."""
        self.differences += [
            f"{one.what} {_said(one.key)}: {one.told}, but it comes to {one.true}"
            for one in islice(self.books.differences(), SHOWN_MAX)
        ]
        settings = gateway_settings()
        for name in settings.test_gateways:  # the vendors' money is held against their reports: `titan reconcile`
            self._at_test_gateway(name, settings.at(name))

    def _at_test_gateway(self, name: str, gateway: GatewaySettings) -> None:
        """Its book against ours. One that can't be read is a difference too: nobody knows then whether the money is there."""
        headers = {"Authorization": f"Bearer {gateway.test_key('api').decode()}"}
        give_up = time.monotonic() + GATEWAY_S_MAX
        while True:
            try:
                answer = httpx.get(f"{gateway.test_gateway_url}/totals", headers=headers, timeout=10)
                totals = answer.raise_for_status().json()
                break
            except (httpx.HTTPError, ValueError) as error:  # ValueError: something else listens there
                if time.monotonic() > give_up:
                    why = f"{type(error).__name__} {error}".strip()
                    self.differences.append(f"the money of the gateway {name}: it does not tell: {why}")
                    return
                time.sleep(PAUSE_S)
        theirs = {currency: one["captured"] - one["refunded"] for currency, one in totals.items()}
        told = {currency: amount for currency, amount in theirs.items() if amount}
        self._compare(f"the money of the gateway {name} in", told, dict(+self.books.kept(name)))


def _said(key: object) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def audit(of: Settings) -> list[str]:
    """The differences between the stores, one line each; none when all agree."""
    with ExitStack() as stack:
        made = Audit(of)
        stack.callback(made.close)
        found = made.run()
        for _ in range(LOOKS_MAX):
            if not found or not made.moved():
                break
            found = made.run()  # something was told meanwhile: a fraud rule judges when it comes to it
        return found
