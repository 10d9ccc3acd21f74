"""A store that several processes rebuild is the one that a single process rebuilds."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import pytest

from aggregates.kernel import Event, wire
from aggregates.kernel.wire import COLUMNS
from infra.kafka.topics import create
from infra.settings import Settings
from replay import domains, packing
from replay.claims import Notes
from replay.log import ReplayError, spans
from replay.store import restore
from tests.bench import corpus
from tests.bench.live import fill
from tests.kernel.servers import Stack, database
from tests.replay.past import dump

EVENTS = 3_000
LOOKS = (
    f"SELECT {COLUMNS} FROM order_events ORDER BY notification_id",
    "SELECT scope, key, owner FROM order_claims ORDER BY 1, 2",
    "SELECT domain, last FROM log_heads",
)


def test_of_an_event_that_claims_only_the_fields_it_needs_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    domains.chosen(["order"], False)
    placed = [row for row in corpus.rows(200) if row.event_type == "order.Placed"]
    numbers = [wire.recorded("order", row).event.number for row in placed]  # type: ignore[attr-defined]
    whole, notes, decoded = wire.decode, Notes("order"), list[bytes]()

    def decode(domain: str, id: UUID, version: int, at: datetime, state: bytes) -> Event:
        decoded.append(state)
        return whole(domain, id, version, at, state)

    monkeypatch.setattr(wire, "decode", decode)

    def take(row: wire.Row, state: bytes) -> None:
        notes.take(row.notification_id, b"order.Placed", str(row.originator_id).encode(), state, wire.headers(row))

    for row in placed:
        take(row, row.state)
    _, claimed, _ = notes.taken()
    assert [line.split(b"\t")[3].decode() for line in claimed.splitlines()] == numbers
    assert len(decoded) == 1  # from which it is known what the others are asked for
    take(placed[0], placed[0].state[:8])
    assert notes.taken() == (1, b"", b"")
    take(placed[0], b"\0\0\0\0\0")  # another schema: it is left to `decode`
    assert notes.taken() == (1, b"", b"") and len(decoded) == 2


@pytest.fixture
def filled(settings: Settings) -> Settings:
    create(settings, domains.chosen(["order"], False))
    fill(settings, EVENTS)
    return settings


def test_it_is_the_same_store(filled: Settings, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[packing.Worker] = []
    with database(stack) as alone, database(stack) as together:
        [one] = restore(filled, ["order"], alone)
        monkeypatch.setattr(packing, "INLINE_MAX", 0)
        monkeypatch.setattr(packing, "cores", lambda: 3)
        started = packing.Worker.__init__

        def start(self: packing.Worker, *given: object) -> None:
            told.append(self)
            started(self, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(packing.Worker, "__init__", start)
        [other] = restore(filled, ["order"], together)
        assert len(told) == 3
        assert one == other and one.events == EVENTS and one.claims > 0
        for look in LOOKS:
            assert dump(alone, look) == dump(together, look), look


def test_a_process_that_dies_is_one_line_and_the_others_end(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "INLINE_MAX", 0)
    monkeypatch.setattr(packing, "cores", lambda: 2)
    made: list[packing.Worker] = []
    started = packing.Worker.__init__

    def start(self: packing.Worker, *given: object) -> None:
        started(self, *given)  # type: ignore[arg-type]
        made.append(self)
        if len(made) == 1:
            self.process.kill()

    monkeypatch.setattr(packing.Worker, "__init__", start)
    job = packing.Job(filled, "order", spans(filled, ["order"]), None)
    with pytest.raises(ReplayError, match="a worker ended with -9: start again"):
        list(packing.packed(job))
    assert [worker.process.poll() for worker in made] == [-9, -9]
