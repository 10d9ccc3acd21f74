"""What fraud rules have told so far, derived again from the cases that came of it: so that after a loss a rule's next word is its next revision.

A rule that judges an event again after its tables were lost would begin with revision 1, which the case has heard long ago.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import psycopg
from psycopg import sql

from aggregates.fraud import Case
from aggregates.kernel import wire
from aggregates.kernel.migrate import names
from streams.kernel.rules import Hit
from streams.kernel.rules.host import as_json

Connection = psycopg.Connection[Any]

ROWS = 5_000  # at a time
TOLD = """
INSERT INTO rule_verdicts (rule, domain, position, event_id, event_type, id, key, at, hit, revision, told)
SELECT v.rule, {domain}, e.notification_id, v.event_id, v.event_type, v.id, '', v.at, v.hit, v.revision, v.revision
FROM unnest(%s::text[], %s::uuid[], %s::text[], %s::uuid[], %s::timestamptz[], %s::text[]::jsonb[], %s::int[])
    AS v(rule, event_id, event_type, id, at, hit, revision)
JOIN {events} e ON (e.originator_id, e.event_id) = (v.id, v.event_id)
ON CONFLICT DO NOTHING
"""


def resume(connection: Connection) -> None:
    """Fill `rule_verdicts` from the cases in this database, as far as the events that they are of are in it too. Again is harmless."""
    by_domain: dict[str, list[Case]] = {}
    cases = _cases(connection)
    while some := list(islice(cases, ROWS)):
        by_domain.clear()
        for case in some:
            by_domain.setdefault(case.cause_type.partition(".")[0], []).append(case)
        for domain, its in by_domain.items():
            if _there(connection, domain):
                _insert(connection, domain, its)


def _insert(connection: Connection, domain: str, cases: list[Case]) -> None:
    rows = [
        (
            f"{one.rule}@{one.rule_version}", one.cause, one.cause_type, one.cause_of, one.happened_at,
            as_json(Hit(one.subject, one.score, one.why)) if one.stands else None, one.revision,
        )
        for one in cases
    ]  # fmt: skip
    connection.execute(sql.SQL(TOLD).format(**names(domain)), [list(column) for column in zip(*rows, strict=True)])


def _cases(connection: Connection) -> Iterator[Case]:
    """Every case as it is now."""
    if not _there(connection, Case.domain):
        return
    query = "SELECT originator_id, originator_version, occurred_at, state FROM {events} ORDER BY 1, 2"
    with connection.transaction(), connection.cursor("cases") as cursor:
        cursor.execute(sql.SQL(query).format(**names(Case.domain)))
        events = (wire.decode(Case.domain, *row) for row in cursor)
        for _, its in groupby(events, attrgetter("originator_id")):
            case: Case | None = None
            for event in its:
                case = event.mutate(case)
            if case is not None:
                yield case


def _there(connection: Connection, domain: str) -> bool:
    found = connection.execute("SELECT to_regclass(%s)", [f'"{domain}_events"']).fetchone()
    return found is not None and found[0] is not None
