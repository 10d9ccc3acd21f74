"""Do all stores tell the same story? Event store, topics, Postgres, Redis, ClickHouse and the gateway, seen from the outside.

Each is read by its own client and compared with what the event store's history comes to. `audit` waits until the views have
reached the end of the log first, and answers with the differences, one line each; none means that all agree.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import clickhouse_connect
import httpx
import psycopg
import redis
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql

from aggregates.inventory import Received, Stock
from aggregates.kernel import Aggregate, Event, domains, wire
from aggregates.kernel.migrate import names
from aggregates.kernel.wire import COLUMNS, Row
from aggregates.order import Order
from aggregates.payment import Payment
from aggregates.wallet import PEERS, Wallet, Withdrawn
from infra.settings import Settings
from projections.kernel.clauses import projections
from projections.kernel.redis import RedisTable
from projections.kernel.sinks import sink_of
from projections.kernel.tables import AnyTable
from streams.gateways.settings import GatewaySettings

SETTLE_S_MAX = 120.0
SHOWN_MAX = 20  # differences of one kind that are told one by one


@dataclass
class Log:
    """What one domain's topic holds: ids in all, and by partition the newest after dropping what a consumer drops."""

    ids: Counter[int] = field(default_factory=Counter)
    newest: dict[int, int] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    """Ids that came after a higher one of their partition without having come before: a consumer never sees them."""


class Audit:
    """One look at everything. `differences` fills up as it goes."""

    def __init__(self, of: Settings, say: Callable[[str], None]) -> None:
        self.of, self.say = of, say
        self.differences: list[str] = []
        self.heads: dict[str, int] = {}

    def run(self) -> list[str]:
        """Look at everything once it is at rest."""
        logs = self.settle()
        for domain, head in self.heads.items():
            self._log(domain, head, logs[domain])
        orders, stocks, payments = (dict(self.fold(cls)) for cls in (Order, Stock, Payment))
        self._orders(orders)
        self._stock(stocks, orders)
        self._money(orders, payments)
        self._clickhouse(orders)
        return self.differences

    def settle(self) -> dict[str, Log]:
        """Wait until topics and views have all that is stored. What has not arrived in time is a difference."""
        give_up = time.monotonic() + SETTLE_S_MAX
        while True:
            self.heads = self._heads()
            logs = {domain: self._topic(domain) for domain in self.heads}
            behind = [
                f"topic {domain}: {self.heads[domain] - len(log.ids)} events are not there"
                for domain, log in logs.items()
                if len(log.ids) < self.heads[domain]
            ]
            behind += [] if behind else self._views_behind(logs)
            if not behind and self.heads == self._heads():
                return logs
            if time.monotonic() > give_up:
                self.differences += behind or ["the event store is still written to"]
                return logs
            time.sleep(0.2)

    def _heads(self) -> dict[str, int]:
        with psycopg.connect(self.of.postgres) as connection:
            rows = connection.execute("SELECT domain, last FROM log_heads").fetchall()
        known = domains()
        return {domain: last for domain, last in rows if domain in known}

    def _topic(self, domain: str) -> Log:
        log, seen = Log(), defaultdict[int, set[int]](set)
        for partition, id in self._records(domain):
            log.ids[id] += 1
            newest = log.newest.get(partition, 0)
            if id > newest:
                log.newest[partition] = id
            elif id not in seen[partition]:
                log.lost.append(id)
            seen[partition].add(id)
        return log

    def _records(self, domain: str) -> Iterator[tuple[int, int]]:
        """(partition, notification id) of every record of a topic, in order within a partition."""
        consumer = Consumer(
            {"bootstrap.servers": self.of.kafka, "group.id": "titan-audit", "enable.auto.commit": False}
        )
        try:
            topic = self.of.topic(domain)
            found = consumer.list_topics(topic, timeout=10).topics[topic].partitions
            where = [TopicPartition(topic, number, 0) for number in found]
            ends = {one.partition: consumer.get_watermark_offsets(one, timeout=10)[1] for one in where}
            left = {number for number, end in ends.items() if end > 0}
            consumer.assign([one for one in where if one.partition in left])
            while left:
                for message in consumer.consume(10_000, timeout=0.2):
                    if message.error():
                        raise RuntimeError(str(message.error()))
                    number = cast(int, message.partition())
                    headers = dict(message.headers() or [])
                    yield number, int(cast(bytes, headers["notification-id"]))
                    if cast(int, message.offset()) + 1 >= ends[number]:
                        left.discard(number)
        finally:
            consumer.close()

    def _views_behind(self, logs: dict[str, Log]) -> list[str]:
        behind = []
        for one in projections():
            reads = set(self.heads) if one.everything else one.domains
            by_sink: dict[str, list[AnyTable]] = defaultdict(list)
            for table in one.tables:
                by_sink[table.sink].append(table)
            for name, tables in by_sink.items():
                sink = sink_of(name, self.of)
                try:
                    for domain in sorted(reads & logs.keys()):
                        newest = logs[domain].newest
                        if not newest:
                            continue
                        at = sink.positions(tables, domain, newest.keys())
                        behind += [
                            f"{name} {table.name}: {domain} partition {partition} is at {at[table, partition].notification_id}, not {id}"
                            for table in tables
                            for partition, id in newest.items()
                            if at[table, partition].notification_id < id
                        ]
                finally:
                    sink.close()
        return behind

    def _log(self, domain: str, head: int, log: Log) -> None:
        """The store's log has no gap, and the topic has each event, in order, for whoever drops what it has seen."""
        query = sql.SQL(
            "SELECT count(*), coalesce(min(notification_id), 0), coalesce(max(notification_id), 0) FROM {events}"
        )
        with psycopg.connect(self.of.postgres) as connection:
            row = connection.execute(query.format(**names(domain))).fetchone()
        if row != (head, min(head, 1), head):
            self.differences.append(f"store {domain}: (events, first, last) are {row}, the log's head is {head}")
        if missing := sorted(set(range(1, head + 1)) - log.ids.keys())[:SHOWN_MAX]:
            self.differences.append(f"topic {domain}: notification ids {missing} are missing")
        if foreign := sorted(log.ids.keys() - set(range(1, head + 1)))[:SHOWN_MAX]:
            self.differences.append(f"topic {domain}: notification ids {foreign} are not in the store")
        if log.lost:
            self.differences.append(f"topic {domain}: notification ids {log.lost[:SHOWN_MAX]} came too late to be seen")

    def fold(self, cls: type[Aggregate]) -> Iterator[tuple[UUID, Any]]:
        """Every aggregate of a class, folded from the store's events."""
        query = sql.SQL(f"SELECT {COLUMNS} FROM {{events}} ORDER BY originator_id, originator_version")
        with psycopg.connect(self.of.dsn(cls.domain)) as connection, connection.cursor(name="audit") as cursor:
            cursor.itersize = 5_000
            cursor.execute(query.format(**names(cls.domain)))
            state: Any = None
            for row in (Row(*columns) for columns in cursor):
                if state is not None and row.originator_id != state.id:
                    yield state.id, state
                    state = None
                state = self._event(cls.domain, row).mutate(state)
            if state is not None:
                yield state.id, state

    def _event(self, domain: str, row: Row) -> Event:
        return wire.decode(domain, row.originator_id, row.originator_version, row.occurred_at, row.state)

    def _compare(self, what: str, told: dict[Any, Any], true: dict[Any, Any]) -> None:
        for key in sorted(told.keys() | true.keys(), key=str):
            if told.get(key) != true.get(key):
                self.differences.append(f"{what} {key}: {told.get(key)}, but its events come to {true.get(key)}")
                if len(self.differences) > SHOWN_MAX:
                    return

    def _orders(self, orders: dict[UUID, Order]) -> None:
        with psycopg.connect(self.of.postgres) as connection:
            rows = connection.execute("SELECT id, status, total, payment, version FROM orders").fetchall()
        self._compare(
            "Postgres order",
            {id: rest for id, *rest in rows},
            {id: [one.status, one.total, one.payment, one.version] for id, one in orders.items()},
        )

    def _stock(self, stocks: dict[UUID, Stock], orders: dict[UUID, Order]) -> None:
        true = {id: (one.on_hand, one.reserved) for id, one in stocks.items()}
        with psycopg.connect(self.of.postgres) as connection:
            rows = connection.execute("SELECT id, on_hand, reserved, available FROM stocks").fetchall()
        self._compare("Postgres stock", {id: (on_hand, held) for id, on_hand, held, _ in rows}, true)
        self.differences += [f"Postgres stock {id}: available is {a}" for id, n, held, a in rows if a != n - held]
        self._compare("Redis stock", self._shelves(), true)
        for id, one in stocks.items():
            if one.on_hand < 0 or one.available < 0:
                self.differences.append(f"stock {one.sku} ({id}): {one.on_hand} on hand, {one.available} available")
        # Pieces are conserved: what came in and is not there was sold, and what was cancelled came back.
        sold: Counter[str] = Counter()
        back: Counter[str] = Counter()
        for order in orders.values():
            if order.payment is not None:
                for line in order.lines:
                    sold[line.sku] += line.quantity
                    back[line.sku] += line.quantity if order.status == "cancelled" else 0
        came, returned = self._received()
        gone: Counter[str] = Counter()
        for id, one in stocks.items():
            gone[one.sku] += came[id] + returned[id] - one.on_hand
        self._compare("pieces sold of", dict(+sold), dict(+gone))
        self._compare("pieces back of", dict(+back), {stocks[id].sku: count for id, count in returned.items() if count})

    def _received(self) -> tuple[Counter[UUID], Counter[UUID]]:
        """Pieces by stock: those that were bought or counted, and those of cancelled orders."""
        came: Counter[UUID] = Counter()
        returned: Counter[UUID] = Counter()
        query = sql.SQL(f"SELECT {COLUMNS} FROM {{events}} WHERE event_type = ANY(%s)").format(**names("inventory"))
        with psycopg.connect(self.of.dsn("inventory")) as connection:
            for columns in connection.execute(query, (["inventory.Received", "inventory.Adjusted"],)):
                event: Any = self._event("inventory", Row(*columns))
                if not isinstance(event, Received):
                    came[event.id] += event.delta
                elif event.reference.startswith("cancelled order "):
                    returned[event.id] += event.quantity
                else:
                    came[event.id] += event.quantity
        return came, returned

    def _shelves(self) -> dict[UUID, tuple[int, int]]:
        [shelves] = [
            table
            for one in projections()
            for table in one.tables
            if isinstance(table, RedisTable) and table.name == "shelves"
        ]
        with redis.Redis.from_url(self.of.redis) as client:
            rows = shelves.scan(client, self.of.namespace)
            return {row["id"]: (row["on_hand"], row["reserved"]) for row in rows}

    def _money(self, orders: dict[UUID, Order], payments: dict[UUID, Payment]) -> None:
        """What was taken and not given back is what the orders came to, and what the gateway says."""
        kept: Counter[str] = Counter()
        for payment in payments.values():
            kept[payment.amount.currency] += payment.taken - payment.returned
        due: Counter[str] = Counter()
        for order in orders.values():
            if order.payment is not None and order.status != "cancelled":
                due[order.currency] += order.total
        due.update(self._wallets())
        self._compare("money kept in", dict(+kept), dict(+due))
        gateway = GatewaySettings()
        headers = {"Authorization": f"Bearer {gateway.test_key('api').decode()}"}
        try:
            totals = (
                httpx.get(f"{gateway.test_gateway_url}/totals", headers=headers, timeout=10).raise_for_status().json()
            )
        except httpx.HTTPError as error:
            self.say(f"audit: the test gateway is not asked: {error}")
            return
        theirs = {currency: one["captured"] - one["refunded"] for currency, one in totals.items()}
        self._compare("the gateway's money in", {c: n for c, n in theirs.items() if n}, dict(+kept))

    def _wallets(self) -> Counter[str]:
        """What cards brought into wallets and did not get back. Between wallets nothing is made and nothing lost."""
        wallets = {id: one for id, one in self.fold(Wallet) if isinstance(one, Wallet)}
        between: Counter[str] = Counter()
        for one in wallets.values():
            between[one.currency] += one.ledger[PEERS]
        self._compare("money made between wallets in", {c: n for c, n in between.items() if n}, {})
        with psycopg.connect(self.of.postgres) as connection:
            rows = connection.execute("SELECT id, balance, held, version FROM wallets").fetchall()
        shown = {id: tuple(row) for id, *row in rows}
        self._compare("wallet", shown, {id: (one.balance, one.held, one.version) for id, one in wallets.items()})
        came: Counter[str] = Counter()
        query = sql.SQL(f"SELECT {COLUMNS} FROM {{events}} WHERE event_type = ANY(%s)").format(**names("wallet"))
        with psycopg.connect(self.of.dsn("wallet")) as connection:
            for columns in connection.execute(query, (["wallet.Deposited", "wallet.Withdrawn"],)):
                event: Any = self._event("wallet", Row(*columns))
                sign = -1 if isinstance(event, Withdrawn) else int(event.source == "topup")
                came[wallets[event.id].currency] += sign * event.amount
        return came

    def _clickhouse(self, orders: dict[UUID, Order]) -> None:
        parts = httpx.URL(self.of.clickhouse)
        client = clickhouse_connect.get_client(
            host=parts.host,
            port=parts.port or 8123,
            username=parts.username or "default",
            password=parts.password,
            database=parts.path.strip("/") or "default",
            interface=parts.scheme,
        )
        try:
            rows = client.query("SELECT domain, count() FROM events FINAL GROUP BY domain").result_rows
            counted: dict[Any, Any] = {one[0]: one[1] for one in rows}
            self._compare(
                "ClickHouse events of", counted, {domain: head for domain, head in self.heads.items() if head}
            )
            sold = client.query(
                "SELECT currency, sum(revenue), sum(tax), sum(quantity) FROM sales FINAL GROUP BY currency"
            ).result_rows
        finally:
            client.close()
        true: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for order in orders.values():
            if order.payment is not None:
                sums = true[order.currency]
                if order.status != "cancelled":
                    sums[0] += sum(line.net for line in order.lines)
                    sums[1] += sum(line.tax for line in order.lines)
                    sums[2] += sum(line.quantity for line in order.lines)
        self._compare("ClickHouse sales in", {currency: list(sums) for currency, *sums in sold}, dict(true))


def audit(of: Settings, say: Callable[[str], None] = print) -> list[str]:
    """The differences between the stores, one line each; none when all agree."""
    return Audit(of, say).run()
