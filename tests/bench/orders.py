"""A shop's order events as the log has them: every order placed, paid, shipped, delivered and completed, many of them at a time.

The bodies are made by the aggregate and encoded as they are stored; those of `BODIES` orders come again under other ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random
from uuid import UUID, uuid4

from aggregates.kernel import clock, wire
from aggregates.kernel.money import Line
from aggregates.kernel.wire import Row
from aggregates.order import Order, number_of
from schemas import Address, Sealed

BODIES = 2_000
WAVE = 1_000  # orders that are placed before the first of them is shipped
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
def bodies() -> list[list[tuple[str, bytes]]]:
    """Type and body of each event in the lives of `BODIES` orders."""
    dice, made = Random(0), []
    for _ in range(BODIES):
        order = placed(dice)
        order.pay(uuid4(), order.total)
        order.ship(SHIPMENT, (), "DHL", "JD014600006281230704")
        order.deliver(SHIPMENT)
        order.complete()
        made.append([(event.type, wire.encode(event)) for event in order.collect_events()])
    return made


def rows(events: int, until: int) -> Iterator[Row]:
    """The log of so many events: `until` of them an order, where an order is paid at once, and goes on a wave later each."""
    steps = [PAID, *range(PAID + 1, until + 1)]
    waves: list[list[tuple[UUID, int]]] = []
    lives, made = bodies(), 0
    while True:
        waves.append([(clock.new_id(), made + n) for n in range(WAVE)])
        for age, wave in enumerate(reversed(waves[-len(steps) :])):
            for id, number in wave:
                for version in range(steps[age - 1] if age else 0, steps[age]):
                    if made == events:
                        return
                    made += 1
                    kind, body = lives[number % BODIES][version]
                    yield Row(
                        made, id, version + 1, kind, body, uuid4(), clock.now(), uuid4().hex, None, "user:" + str(id)
                    )


def number(id: UUID) -> str:
    """The number that an order of this id claims."""
    return number_of(id, clock.now())
