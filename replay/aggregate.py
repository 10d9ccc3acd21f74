"""`titan replay aggregate DOMAIN ID [--at TIME | --version N] [--from store|topic]`: one aggregate as it is, or was, and what happened to it.

Personal data stays sealed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any
from uuid import UUID

import orjson
import psycopg
from psycopg import sql

from aggregates.kernel import Aggregate, Event, Recorded, wire
from aggregates.kernel.event import ENVELOPE
from aggregates.kernel.migrate import names
from aggregates.kernel.partition import partition_of
from aggregates.kernel.snapshot import SKIPPED
from aggregates.kernel.wire import COLUMNS, Row
from infra.settings import Settings, settings
from replay import domains, rows
from replay.failures import line
from replay.log import ReplayError, ids_of, messages, spans
from replay.moments import moment_of
from replay.progress import Progress


@dataclass
class Story:
    """An aggregate's state, and the events that made it, in order."""

    state: Aggregate
    events: Sequence[Recorded[Event]]

    def document(self, source: str) -> dict[str, Any]:
        """For machines, and for people line by line."""
        last = self.events[-1].event
        return {
            "domain": last.domain, "aggregate": type(self.state).__name__, "id": last.id, "version": last.version, "at": last.at,
            "from": source,
            "state": {name: value for name, value in vars(self.state).items() if name not in (*SKIPPED, "_created_on", "_modified_on")},
            "events": [
                {
                    "version": one.event.version, "at": one.event.at, "type": one.event.type, "notification_id": one.position,
                    "event_id": one.event_id, "actor": one.actor, "correlation": one.correlation, "causation": one.causation,
                    "data": {name: value for name, value in vars(one.event).items() if name not in ENVELOPE},
                }
                for one in self.events
            ],
        }  # fmt: skip


def story(
    of: Settings,
    domain: str,
    id: UUID,
    at: datetime | None = None,
    version: int | None = None,
    source: str = "store",
    as_json: bool = False,
) -> Story:
    """The aggregate now, at a time (events up to and at it) or at a version. Raises ReplayError for one that is not there."""
    history = _from_topic(of, domain, id, as_json) if source == "topic" else _from_store(of, domain, id)
    if not history:
        raise ReplayError(f"the {source} has no {domain} {id}")
    if version is not None and not 1 <= version <= history[-1].originator_version:
        raise ReplayError(
            f"there is no version {version} of {domain} {id}: the last is {history[-1].originator_version}"
        )
    state: Any = None
    events: list[Recorded[Event]] = []
    for number, row in enumerate(history, start=1):
        if row.originator_version != number:
            raise ReplayError(f"the {source} lacks version {number} of {domain} {id}: titan replay verify {domain}")
        if (at is not None and row.occurred_at > at) or (version is not None and number > version):
            break  # of two writers' clocks: what comes after had not happened either
        try:
            events.append(wire.recorded(domain, row))
        except Exception as error:
            raise ReplayError(f"version {number} of {domain} {id} can't be read: {error}") from error
        state = events[-1].event.mutate(state)
    if state is None:
        raise ReplayError(f"there was no {domain} {id} then: it was made at {history[0].occurred_at.isoformat()}")
    return Story(state, events)


def _from_store(of: Settings, domain: str, id: UUID) -> list[Row]:
    query = sql.SQL(f"SELECT {COLUMNS} FROM {{events}} WHERE originator_id = %s ORDER BY originator_version")
    try:
        with psycopg.connect(of.dsn(domain), connect_timeout=5, options="-c timezone=UTC") as connection:
            return [Row(*row) for row in connection.execute(query.format(**names(domain)), [id])]
    except psycopg.Error as error:
        raise ReplayError(f"the event store: {line(error)}") from error


def _from_topic(of: Settings, domain: str, id: UUID, as_json: bool) -> list[Row]:
    """From the one partition that it can be in; what is there twice is one event."""
    key, its = str(id).encode(), spans(of, [domain], partial=True)
    its = [its[partition_of(key, len(its))]]
    ids = ids_of(of)
    found: dict[int, Row] = {}
    with Progress(f"{domain} {id}", its, as_json) as progress:
        for message in chain.from_iterable(progress.over(domain, messages(of, its))):
            its_key, value, headers = rows.record(message)
            if its_key == key:
                try:
                    row = wire.row_of(its_key, value if ids is None else ids.stored(value), headers)
                except ValueError:
                    continue  # no event of ours
                found.setdefault(row.originator_version, row)
    return [found[version] for version in sorted(found)]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="titan replay aggregate", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("domain")
    parser.add_argument("id")
    moment = parser.add_mutually_exclusive_group()
    moment.add_argument("--at", metavar="TIME", help="as it was then: 2026-11-01T12:00:00Z")
    moment.add_argument("--version", type=int, metavar="N", help="as it was at this version")
    parser.add_argument("--from", dest="source", choices=("store", "topic"), default="store")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    [domain] = domains.chosen([given.domain], False)
    try:
        id = UUID(given.id)
    except ValueError as error:
        raise ReplayError(f"{given.id!r} is not the id of an aggregate: a UUID is expected") from error
    found = story(settings(), domain, id, _moment(given.at), given.version, given.source, given.json).document(
        given.source
    )
    if given.json:
        print(_json(found))
        return 0
    print(f"{found['domain']}.{found['aggregate']} {id}, version {found['version']} at {found['at'].isoformat()}")
    for name, value in found["state"].items():
        print(f"  {name}: {_json(value)}")
    for one in found["events"]:
        print(
            f"{one['version']:>5}  {one['at'].isoformat()}  {one['type']}  by {one['actor']}  correlation {one['correlation']}"
        )
        if one["data"]:
            print(f"       {_json(one['data'])}")
    return 0


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    if (at := moment_of(text)) > datetime.now(UTC):
        raise ReplayError(f"{at.isoformat()} is in the future")
    return at


def _json(value: Any) -> str:
    return orjson.dumps(value, default=_other, option=orjson.OPT_NON_STR_KEYS).decode()


def _other(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, tuple):  # a NamedTuple
        return value._asdict() if hasattr(value, "_asdict") else list(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
