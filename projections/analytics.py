"""Every event of every domain in one table, for analysts: who did what, when, in which request, and the event itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from aggregates.kernel import Event, Recorded
from aggregates.kernel.event import ENVELOPE
from projections.kernel import Change, ClickTable, project

# `data` is the event's own fields as JSON: JSONExtractInt(data, 'total'). Personal data in it stays sealed.
events = ClickTable(
    "events",
    order_by=("domain", "type", "at"),
    domain=str,
    type=str,
    at=datetime,
    aggregate=UUID,
    version=int,
    position=int,
    event_id=UUID,
    actor=str,
    correlation=str,
    causation=UUID | None,
    data=dict[str, Any],
    views={
        "events_by_minute": "SELECT toStartOfMinute(at) AS minute, type, count() AS events FROM events FINAL GROUP BY minute, type",
    },
)


@project
def anything(e: Recorded[Event]) -> list[Change]:
    event = e.event
    return [
        events.row(
            domain=event.domain,
            type=event.type,
            at=event.at,
            aggregate=event.id,
            version=event.version,
            position=e.position,
            event_id=e.event_id,
            actor=e.actor,
            correlation=e.correlation,
            causation=e.causation,
            data={name: value for name, value in vars(event).items() if name not in ENVELOPE},
        )
    ]
