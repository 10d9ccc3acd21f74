"""A topic of order events grown from the real shop's baskets, for every bench that reads history: `grow(settings, 1_000_000)`.

Each invoice of the sample shop (infra/data) is an order of its lines and prices; it comes again and again under other ids, with
its own payment, parcel and number in the bodies. Orders are placed through the year as the shop's were in one, many times as fast;
each is paid within minutes, shipped within two days, delivered and, a fortnight later, completed, so the lives of thousands
of orders lie across one another, as they do in a real log. As many are cancelled as the shop had cancellations.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby
from random import Random
from typing import NamedTuple
from uuid import UUID, uuid5

import psycopg
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from aggregates.kernel import wire
from aggregates.kernel.event import EPOCH
from aggregates.kernel.money import Line
from aggregates.kernel.wire import Row, headers, micros
from aggregates.order import Order, number_of
from infra import shop
from infra.settings import Settings
from tests.bench.orders import address
from tests.kernel import SAID

SINCE = datetime(2025, 11, 1, tzinfo=UTC)
PER_DAY = 450  # orders
SPACE = UUID(int=0x0511)
PAYMENT, SHIPMENT = UUID(int=0x0BAD_0001), UUID(int=0x0BAD_0002)  # stand in the bodies until a copy has its own
EVENTS_OF_ORDER = 6


class Life(NamedTuple):
    """What happens to one basket: type and body of each event, and its number as it stands in the first."""

    number: bytes
    events: list[tuple[str, bytes]]


@cache
def lives() -> tuple[list[Life], list[Life]]:
    """The shop's baskets as orders that are completed, and as orders that are cancelled."""
    sold = [line for line in shop.lines_of() if shop.is_merchandise(line)]
    completed, cancelled = list[Life](), list[Life]()
    for _, found in groupby(sold, key=lambda line: line.invoice):
        lines = {line.stock_code: line for line in found}
        first = next(iter(lines.values()))
        for until in (completed, cancelled):
            order = Order.place(shop.customer_of(first), "GBP", list(map(_line, lines.values())), address(), SINCE)
            order.pay(PAYMENT, order.total)
            if until is cancelled:
                order.cancel(SAID)
            else:
                order.ship(SHIPMENT, (), "Royal Mail", "JD014600006281230704")
                order.deliver(SHIPMENT)
                order.complete()
            until.append(Life(order.number.encode(), [(e.type, wire.encode(e)) for e in order.collect_events()]))
    return completed, cancelled


def _line(line: shop.Line) -> Line:
    product = uuid5(SPACE, line.stock_code)
    price = int(line.unit_price * 100)
    return Line(line.stock_code, product, line.description, line.quantity, price, 0, 2_000, 0, "main")


def rows(events: int, seed: int = 0) -> Iterator[Row]:
    """The first so many events of the log, in the order in which they happened."""
    dice = Random(seed)
    completed, cancelled = lives()
    invoices = {line.invoice for line in shop.lines_of()}
    share = sum(invoice.startswith("C") for invoice in invoices) / len(invoices)
    coming: list[tuple[int, int, UUID, list[tuple[str, bytes]], int]] = []  # when, a tie-breaker, whose, which, how far
    at, order, id = micros(SINCE), 0, 0
    while id < events:
        while not coming or at <= coming[0][0]:
            order += 1
            at += round(dice.expovariate(PER_DAY) * 86_400_000_000)
            life = dice.choice(cancelled if dice.random() < share else completed)
            whose = UUID(int=dice.getrandbits(128))
            heapq.heappush(coming, (at, order, whose, _own(life, whose), 0))
        now, tie, whose, bodies, step = heapq.heappop(coming)
        kind, body = bodies[step]
        id += 1
        name = f"{id:032x}"
        yield Row(id, whose, step + 1, kind, body, UUID(name), _moment(now), f"checkout:{whose}", None, f"user:{whose}")
        if step + 1 < len(bodies):
            wait = round(dice.expovariate(1 / DELAYS_S[bodies[step + 1][0]]) * 1_000_000)
            heapq.heappush(coming, (now + wait, tie, whose, bodies, step + 1))


DELAYS_S = {  # mean times from the step before
    "order.Confirmed": 120,
    "order.Paid": 0.001,  # the same command
    "order.Shipped": 86_400,
    "order.Delivered": 2 * 86_400,
    "order.Completed": 14 * 86_400,
    "order.Cancelled": 3_600,
}


def _moment(at: int) -> datetime:
    return EPOCH + timedelta(microseconds=at)


def _own(life: Life, whose: UUID) -> list[tuple[str, bytes]]:
    """The bodies with this order's own number, payment and parcel; lengths stay."""
    number = number_of(whose, SINCE).encode()
    payment, parcel = str(UUID(int=whose.int ^ 1)).encode(), str(UUID(int=whose.int ^ 2)).encode()
    old_payment, old_parcel = str(PAYMENT).encode(), str(SHIPMENT).encode()
    return [
        (kind, body.replace(life.number, number).replace(old_payment, payment).replace(old_parcel, parcel))
        for kind, body in life.events
    ]


def grow(settings: Settings, events: int) -> None:
    """Fill the topic of orders with so many, as the relay would have; the store's counters go on behind them."""
    topic = settings.topic("order")
    server: dict[str, str | int | float | bool] = {"bootstrap.servers": settings.kafka}
    admin = AdminClient(server)
    if topic not in admin.list_topics(timeout=10).topics:
        admin.create_topics([NewTopic(topic, num_partitions=settings.partitions)], operation_timeout=30)[topic].result(
            30
        )
    producer = Producer(
        {
            **server,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "compression.type": "lz4",
            "linger.ms": 50,
            "queue.buffering.max.messages": 200_000,
        }
    )
    for row in rows(events):
        made: list[tuple[str, str | bytes | None]] = [*headers(row)]
        at = micros(row.occurred_at) // 1_000
        while True:
            try:
                producer.produce(topic, row.state, str(row.originator_id), timestamp=at, headers=made)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush(120) == 0, "Kafka did not take the events"


def skip(settings: Settings, events: int) -> None:
    """Let store, relay and the live read models in Postgres stand at the end of a grown topic, as if they had made it."""
    from projections.order import order_lines, order_summary, order_timeline, orders

    with psycopg.connect(settings.postgres, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO log_heads (domain, last) VALUES ('order', %s) ON CONFLICT (domain) DO UPDATE SET last = EXCLUDED.last",
            [events],
        )
        connection.execute("INSERT INTO relay_positions (domain, position) VALUES ('order', %s)", [events])
        for partition, (id, offset) in ends(settings).items():
            for table in (orders, order_lines, order_timeline, order_summary):
                connection.execute(
                    """INSERT INTO projection_positions (projection, topic, partition, notification_id, "offset")
                    VALUES (%s, 'order', %s, %s, %s)""",
                    [table.name, partition, id, offset],
                )


def ends(settings: Settings) -> dict[int, tuple[int, int]]:
    """Notification id and offset of the last record of each partition."""
    from replay import log

    last = {}
    spans = [span._replace(first=max(span.first, span.end - 1)) for span in log.spans(settings, ["order"])]
    for batch in log.read(settings, spans):
        for delivery in batch:
            last[delivery.partition] = delivery.notification_id, delivery.offset
    return last
