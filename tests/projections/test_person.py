"""Whose data is where: every table and every event that names somebody says so, or is named here with the reason why not."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any
from uuid import UUID

import pytest

from aggregates.kernel import domains
from aggregates.kernel.event import ENVELOPE, EVENTS
from projections.kernel import ClickTable, RedisTable, Table
from projections.kernel.clauses import projections
from projections.kernel.tables import AnyTable

PEOPLE = re.compile(
    "account|actor|author|buyer|by|client|customer|email|holder|member|owner|payee|person|recipient|sender|seller|subject|user"
)
ELSEWHERE = "something that has rows of its own, found by their own columns"
GOODS = "goods are offered to everybody, and are no data about a person"
BOOKS = "a name that the shop's and the gateway's books have for a movement of money"
OTHER = {
    "clickhouse.events.actor": "what somebody did to another's things is the other's",
    "clickhouse.events.aggregate": "events are exported from their stores",
    "clickhouse.events.causation": "an event", "clickhouse.events.event_id": "an event",
    "clickhouse.order_summary.customer": "stands in an order's first row alone: the rows are found by the order",
    "clickhouse.sales.order": ELSEWHERE, "clickhouse.sales.product": GOODS,
    "postgres.accounts.email": "on the row of the account itself", "postgres.checkouts.cart": ELSEWHERE, "postgres.checkouts.payment": ELSEWHERE,
    "postgres.fraud_cases.cause": "an event", "postgres.fraud_cases.cause_of": "whom the rule suspects is the subject",
    "postgres.order_lines.product": GOODS, "postgres.orders.payment": ELSEWHERE,
    "postgres.payment_methods.method": ELSEWHERE, "postgres.payment_operations.id": BOOKS,
    "postgres.payment_preferences.method": ELSEWHERE, "postgres.payments.order": ELSEWHERE,
    "postgres.products.seller": GOODS, "postgres.reconciliation_differences.operation": BOOKS,
    "postgres.reconciliation_differences.reconciliation": BOOKS,
    "postgres.refunds.decided_by": "who of the staff decided is a fact about the customer's refund", "postgres.refunds.order": ELSEWHERE,
    "postgres.reservations.stock": GOODS, "postgres.sessions.client": "a program", "postgres.stocks.seller": GOODS,
    "postgres.top_ups.payment": ELSEWHERE, "postgres.user_addresses.address": "one of the person's own addresses",
    "postgres.users.billing": "one of the person's own addresses", "postgres.users.shipping": "one of the person's own addresses",
    "postgres.variants.product": GOODS, "postgres.vouchers.batch": "vouchers that were issued together",
    "postgres.wallet_entries.other": "the other one's wallet is the other one's", "postgres.wallet_entries.reference": BOOKS,
    "postgres.escrows.escrow": BOOKS, "redis.catalogue.product": GOODS, "redis.catalogue.seller": GOODS,
}  # fmt: skip
OTHER_FIELDS = {
    "auth.SignedIn.client": "a program", "inventory.Opened.seller": GOODS, "product.Drafted.seller": GOODS, "product.Published.seller": GOODS,
    "refund.Approved.by": "who of the staff decided is a fact about the customer's refund",
    "order.PaymentSettled.by": "who of the staff decided is a fact about the customer's order",
    "refund.Rejected.by": "who of the staff decided is a fact about the customer's refund",
    "wallet.Captured.payee": "a wallet", "wallet.Received.sender": "a wallet", "wallet.Refunded.payee": "a wallet",
    "wallet.Sent.recipient": "a wallet",
}  # fmt: skip


CODES = "from a list or a pattern: nobody's own words"
SHOP = "of the shop and its goods, for everybody to see"
GATEWAY = "a gateway's words or names, or ours of a gateway"
MACHINE = "written by a program"
TEXTS = {
    **dict.fromkeys(("address.country", "amount.currency", "country", "currency", "day", "expires", "name", "place.country", "text"), CODES),
    **dict.fromkeys(("prices.currency", "listings.prices.currency", "scope", "scopes", "value.currency", "auth.ClientRegistered.name"), CODES),
    **dict.fromkeys(("attributes", "description", "lines.location", "lines.sku", "lines.title", "listings.options", "listings.sku"), SHOP),
    **dict.fromkeys(("location", "media.alt", "media.url", "options", "options.name", "options.values", "parts.sku", "sku", "skus"), SHOP),
    **dict.fromkeys(("asked.sku", "title", "redirect_uris", "provider"), SHOP),
    **dict.fromkeys(("brand", "code", "difference.ours", "difference.row", "difference.theirs", "gateway", "method", "report"), GATEWAY),
    **dict.fromkeys(("token", "transaction", "url"), GATEWAY),
    **dict.fromkeys(("cause_type", "hint", "number", "rule", "step", "why"), MACHINE),
    **dict.fromkeys(("digest", "secret", "subject"), "a digest that says nothing by itself"),
    **dict.fromkeys(("carrier", "tracking"), "a parcel's name in a carrier's books"),
    **dict.fromkeys(("inventory.Adjusted.reason", "reference"), "of pieces and deliveries: the shop's books"),
    "order.PaymentReversed.reason": GATEWAY, "refund.CardReversed.reason": GATEWAY,
    "wallet.WithdrawalFailed.reason": GATEWAY, "refund.Withheld.reason": MACHINE,
    **{f"payment.{kind}.reason": GATEWAY for kind in (
        "AttachDeclined", "CaptureFailed", "CaptureReversed", "Declined", "Leaving", "Left", "RefundFailed", "RefundReversed", "ReportMissing", "Routed", "Unresolved",
    )},
}  # fmt: skip


def tables() -> Iterator[AnyTable]:
    for projection in projections():
        yield from projection.tables


def test_every_column_that_names_somebody_says_so_or_has_a_reason() -> None:
    """An id is a person's, of something of a person's, the row's own, or has a reason here; so has what is called like a person."""
    left = set()
    for table in tables():
        for column in table.columns.values():
            names = column.kind is UUID or PEOPLE.fullmatch(column.name)
            if names and column.name not in (*table.person, *table.part_of) and table.key != (column.name,):
                left.add(f"{table.sink}.{table.name}.{column.name}")
    assert left == OTHER.keys()


def test_every_event_that_names_somebody_is_of_something_that_is_exported() -> None:
    """By the field's name: the domain has a table that declares it as a person's, or there is a reason here."""
    declared = {(projection.name, name) for projection in projections() for t in projection.tables for name in t.person}
    left = set()
    for event in EVENTS.values():
        hints = typing.get_type_hints(event)
        for name in {field.name for field in fields(event)} - ENVELOPE:
            if hints[name] in (UUID, UUID | None) and PEOPLE.fullmatch(name) and (event.domain, name) not in declared:
                left.add(f"{event.type}.{name}")
    assert {
        one for one in left if one.partition(".")[0] in domains()
    } == OTHER_FIELDS.keys()  # not of tests' toy domains


def test_what_somebody_types_is_sealed_or_has_a_reason_not_to_be() -> None:
    """Each text in an event that is not sealed; a `reason` beside a sealed `because` is ours."""
    left = set()
    for event in EVENTS.values():
        hints = typing.get_type_hints(event)
        for name in {field.name for field in fields(event)} - ENVELOPE:
            if event.domain in domains() and not (name == "reason" and "because" in hints):
                left |= {(event.type, path) for path in texts(hints[name], name)}
    named = {path if path in TEXTS else f"{kind}.{path}" for kind, path in left}
    assert named - TEXTS.keys() == set()


def texts(hint: Any, path: str) -> Iterator[str]:
    """Where in a value of this type there are texts of any kind. What is sealed is a type of its own."""
    if hint is str:
        yield path
    elif is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        for field in fields(hint):
            yield from texts(hints[field.name], f"{path}.{field.name}")
    elif typing.get_origin(hint) is not typing.Literal:
        for inner in typing.get_args(hint):
            yield from texts(inner, path)


def test_what_is_declared_can_be_found() -> None:
    """Redis can't be asked for a column: its rows are read by the ids of things that Postgres knows."""
    for table in tables():
        if isinstance(table, RedisTable) and (table.person or table.part_of):
            assert table.key == ("id",), table
            assert any(
                isinstance(one, Table) and one.key == ("id",) and one.person == table.person for one in tables()
            ), table


@pytest.mark.parametrize("wrong", ["nobody", "title"])
def test_a_person_is_named_by_an_id_that_is_there(wrong: str) -> None:
    with pytest.raises(ValueError, match=f"{wrong} is no column with ids"):
        ClickTable("sales", order_by=("title",), title=str, customer=UUID, person=wrong)
