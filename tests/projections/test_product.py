"""The read models of products: live, replayed and folded are one, whichever product a SKU ends up with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from aggregates.kernel import Event, Money, Refused, Take
from aggregates.product import Medium, Option, Product
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS
from projections.product import catalogue, products, variants
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

PRODUCTS = [PROJECTIONS["projections.product"]]
SIZES = (Option("Size", ("S", "M", "L")),)
Command = tuple[str, int, int, int]  # what, of which product, of which SKU, a number
WORDS = ["add", "add", "price", "price", "publish", "remove", "withdraw", "relist", "title", "media", "tags", "archive"]
COMMANDS = st.lists(
    st.tuples(st.sampled_from(WORDS), st.integers(0, 2), st.integers(0, 3), st.integers(0, 5)), max_size=60
)


def happened(commands: Sequence[Command]) -> tuple[list[Product], list[Event]]:
    """The products after commands, as far as rules and the SKUs' uniqueness allow them, and all that happened, in order."""
    kept = [Product.draft(UUID(int=n), f"Mug {n}") for n in range(3)]
    for product in kept:
        product.offer(SIZES)
    events = [event for product in kept for event in product.collect_events()]
    owners: dict[str, UUID] = {}
    for what, which, number, amount in commands:
        product, sku = kept[which], f"MUG-{number}"
        if what == "add" and owners.get(sku, product.id) != product.id:
            continue
        prices = [Money(amount * 100, "EUR"), Money(amount * 90, "USD")][: 1 + amount % 2] if amount else []
        calls: dict[str, Callable[[], None]] = {
            "add": lambda p=product, s=sku, n=amount: p.add_variant(s, {"Size": "SML"[n % 3]}),  # type: ignore[misc]
            "price": lambda p=product, s=sku, n=prices: p.price(s, n),  # type: ignore[misc]
            "publish": product.publish,
            "remove": lambda p=product, s=sku: p.remove_variant(s),  # type: ignore[misc]
            "withdraw": lambda p=product, s=sku: p.withdraw(s),  # type: ignore[misc]
            "relist": lambda p=product, s=sku: p.relist(s),  # type: ignore[misc]
            "title": lambda p=product, n=amount: p.retitle(f"Mug {n}"),  # type: ignore[misc]
            "media": lambda p=product, n=amount: p.arrange([Medium("image", f"https://a.example/{n}", "")]),  # type: ignore[misc]
            "tags": lambda p=product, n=amount: p.specify({"Glaze": str(n)} if n else {}),  # type: ignore[misc]
            "archive": lambda p=product, n=amount: None if n else p.archive(),  # type: ignore[misc]
        }
        try:
            calls[what]()
        except Refused:
            continue
        for event in product.collect_events():
            events.append(event)  # with its claims
            for claim in event.claims():
                if isinstance(claim, Take):
                    owners[claim.key] = event.id
                else:
                    del owners[claim.key]
    return kept, events


@pytest.fixture
def live(postgres: str, redis: str, tmp_path: Path) -> Iterator[Live]:
    made = Live(settings_of(postgres, redis, tmp_path), PRODUCTS)
    yield made
    made.close()


def agree(settings: Settings, kept: Sequence[Product], events: Sequence[Event]) -> None:
    """The read models say what the products themselves say."""
    last = {event.id: event.at for event in events}
    assert rows_in(settings, products) == {
        (product.id,): {
            "id": product.id, "version": product.version, "seller": product.seller, "title": product.title,
            "description": "", "status": product.status, "attributes": product.attributes,
            "options": [{"name": "Size", "values": ["S", "M", "L"]}], "media": [asdict(one) for one in product.media],
            "created_at": product.created_on, "updated_at": last[product.id],
        }
        for product in kept
    }  # fmt: skip
    offers = {
        (product.id, sku): "archived" if product.status == "archived" else variant.offer
        for product in kept
        for sku, variant in product.variants.items()
    }
    assert rows_in(settings, variants) == {
        (product.id, sku): {
            "product": product.id, "sku": sku, "options": variant.options, "offer": offers[product.id, sku],
            "prices": [asdict(price) for price in variant.prices],
        }
        for product in kept
        for sku, variant in product.variants.items()
    }  # fmt: skip
    assert rows_in(settings, catalogue) == {
        (sku,): {
            "sku": sku, "product": product.id, "seller": product.seller, "title": product.title,
            "options": variant.options, "prices": {price.currency: price.amount for price in variant.prices},
            "status": {"listed": "published"}.get(offers[product.id, sku], offers[product.id, sku]),
        }
        for product in kept
        for sku, variant in product.variants.items()
        if variant.offer != "draft"
    }  # fmt: skip


@given(commands=COMMANDS, seed=st.integers(0, 2**16))
@hypothesis(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_live_is_replayed_is_folded(live: Live, commands: list[Command], seed: int) -> None:
    kept, events = happened(commands)
    rows, tables = rows_of(events), (products, variants, catalogue)
    live.wipe()
    live.dribble(rows, Random(seed))
    shown = [rows_in(live.settings, table) for table in tables]
    agree(live.settings, kept, events)
    live.wipe()
    live.feed(rows)
    assert [rows_in(live.settings, table) for table in tables] == shown


def test_a_sku_that_moved_before_it_was_on_sale_is_with_its_last_product(live: Live) -> None:
    add, price, publish = ("add", 0, 0, 0), ("price", 0, 0, 1), ("publish", 0, 0, 0)
    moved = [add, price, ("remove", 0, 0, 0), ("add", 1, 0, 0), ("price", 1, 0, 2), ("publish", 1, 0, 0)]
    for commands in ([add, price, publish], moved):
        kept, events = happened(commands)
        for seed in range(10):
            live.wipe()
            live.dribble(rows_of(events), Random(seed))
            agree(live.settings, kept, events)
