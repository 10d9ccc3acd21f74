"""A shop's order events as the log has them: every order placed, paid, shipped, delivered and completed, many of them at a time.

The bodies are made by the aggregate and encoded as they are stored; those of `BODIES` orders come again under other ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import count, cycle, pairwise
from random import Random
from uuid import UUID, uuid4

from aggregates.kernel import clock, wire
from aggregates.kernel.money import Line
from aggregates.kernel.wire import Row
from aggregates.order import Order
from schemas import Address, Sealed

BODIES = 2_000
Body = list[tuple[str, bytes]]  # type and body of each event of an order
PAID, SHIPPED, COMPLETED = 3, 4, 6  # events of an order by then
SHIPMENT = UUID(int=1)  # each order's only parcel


def line(dice: Random, sku: int) -> Line:
    """A line as a shop's orders have it."""
    return Line(
        sku=f"sku-{sku}",
        product=UUID(int=sku),
        title=f"Stoneware mug no. {sku}, hand-glazed",
        quantity=dice.randrange(1, 6),
        unit_price=dice.randrange(100, 9_000),
        discount=0,
        tax_bp=1_900,
        tax=0,
        location="main",
    )


def address() -> Address:
    """Where an order goes; the names are as long as their encrypted forms in the store."""
    sealed = Sealed(f"sealed:1:{uuid4()}:{'A' * 64}")
    return Address(recipient=sealed, street=sealed, city=sealed, postcode=sealed, country="GB")


def placed(dice: Random) -> Order:
    """An order of one to five lines."""
    lines = [line(dice, sku) for sku in dice.sample(range(1_000), dice.randrange(1, 6))]
    return Order.place(UUID(int=dice.randrange(10_000)), "EUR", lines, address(), clock.now(), shipping=490)


@cache
def bodies() -> list[Body]:
    """The lives of `BODIES` orders."""
    dice, made = Random(0), []
    for _ in range(BODIES):
        order = placed(dice)
        order.pay(uuid4(), order.total)
        order.ship(SHIPMENT, (), "DHL", "JD014600006281230704")
        order.deliver(SHIPMENT)
        order.complete()
        made.append([(event.type, wire.encode(event)) for event in order.collect_events()])
    return made


def rows(events: int, until: int, wave_orders: int) -> Iterator[Row]:
    """The log of so many events, `until` of them an order: paid at once, and each later step a wave of new orders later."""
    steps = [0, *range(PAID, until + 1)]
    lives, ids = cycle(bodies()), count(1)
    waves: deque[list[tuple[UUID, Body]]] = deque(maxlen=len(steps) - 1)  # the newest first
    while True:
        waves.appendleft([(clock.new_id(), next(lives)) for _ in range(wave_orders)])
        for wave, (done, then) in zip(waves, pairwise(steps), strict=False):
            for order, body in wave:
                for version in range(done, then):
                    id, (kind, state) = next(ids), body[version]
                    if id > events:
                        return
                    actor = f"user:{order}"
                    yield Row(id, order, version + 1, kind, state, uuid4(), clock.now(), uuid4().hex, None, actor)
