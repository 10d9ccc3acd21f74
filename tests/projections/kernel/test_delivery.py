"""A record as the runner takes it: what its headers say, in whatever order they stand."""

from __future__ import annotations

from random import Random
from uuid import UUID, uuid4

import pytest

from aggregates.kernel.wire import Row, headers
from projections.kernel.runner import Delivery
from tests.projections.kernel.purse import DOMAIN, Filled, Log, Opened

log = Log()
opened = log.add(1, Opened, owner=log.purse(2), currency="EUR")
filled = log.add(1, Filled, amount=5)


def delivered(row: Row, made: list[tuple[str, bytes]] | None = None) -> Delivery:
    made = headers(row) if made is None else made
    return Delivery(DOMAIN, 0, 7, str(row.originator_id).encode(), row.state, made)


@pytest.mark.parametrize("causation", [None, uuid4()])
def test_headers_in_any_order_say_the_same(causation: UUID | None) -> None:
    row = filled._replace(causation_id=causation)
    ours = headers(row)
    for seed in range(4):
        turned = list(ours)
        if seed:
            Random(seed).shuffle(turned)
        one = delivered(row, turned)
        assert (one.notification_id, one.type) == (row.notification_id, row.event_type)
        assert list(one.headers) == turned, "what is parked is what came"
        told = one.recorded()
        assert told.event == one.event() == log.events()[1].event
        assert (told.event_id, told.causation, told.actor) == (row.event_id, causation, row.actor)


@pytest.mark.parametrize("name", ["version", "occurred-at"])
def test_a_missing_header_is_named_when_the_event_is_asked_for(name: str) -> None:
    one = delivered(filled, [header for header in headers(filled) if header[0] != name])
    assert one.notification_id == filled.notification_id
    with pytest.raises(ValueError, match="its version or its time"):
        one.event()


@pytest.mark.parametrize("name", ["event-id", "correlation-id", "actor"])
def test_a_record_is_not_made_without_its_origin(name: str) -> None:
    one = delivered(filled, [header for header in headers(filled) if header[0] != name])
    assert one.event().version == 2
    with pytest.raises(ValueError, match="its id, correlation or actor"):
        one.recorded()


@pytest.mark.parametrize("foreign", [[], [("x", b"\xff")], [("notification-id", b"-1")], [("a", b"")] * 9])
def test_a_record_that_is_not_ours_keeps_its_headers(foreign: list[tuple[str, bytes]]) -> None:
    one = delivered(filled, foreign)
    assert (one.notification_id, one.type, list(one.headers)) == (0, "", foreign)


def test_what_was_forgotten_is_decoded_again() -> None:
    one = delivered(opened)
    before = one.recorded()
    one.forget()
    assert one.recorded() == before and one.recorded() is not before
