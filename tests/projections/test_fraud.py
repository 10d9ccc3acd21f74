"""The read models of fraud cases: whatever was said in whichever order of partitions, they show it, and count it by rule."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import UUID

import clickhouse_connect

from aggregates.fraud import Case
from aggregates.kernel import Event
from aggregates.kernel.event import under_id
from projections.fraud import cases
from projections.kernel.clauses import PROJECTIONS
from tests.kernel import SAID
from tests.kernel.topic import Live, rows_in, rows_of, settings_of

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def happened(dice: Random) -> tuple[list[Case], list[Event]]:
    """Cases of two rules after words of rules and people, and everything that happened."""
    kept, events = list[Case](), list[Event]()
    for n in range(6):
        with under_id(UUID(int=100 + n)):
            rule = ("card_testing", "order_velocity")[n % 2]
            kept.append(Case(rule, 1, UUID(int=n), 10 + n, f"why {n}", UUID(int=n), "x.Y", UUID(int=n), NOON, 1))
    for case in kept:
        events += case.collect_events()
    for revision in range(2, 30):
        case = dice.choice(kept)
        what = dice.randrange(8)
        if what < 3:
            case.withdraw(revision)
        elif what < 6:
            case.revise(UUID(int=revision), revision, f"again {revision}", revision)
        elif case.verdict == "open":
            (case.confirm if what == 6 else case.dismiss)(SAID)
        events += case.collect_events()
    return kept, events


def test_the_read_models_show_and_count_what_was_said(
    postgres: str, redis: str, clickhouse: str, tmp_path: Path
) -> None:
    kept, events = happened(Random(3))
    settings = settings_of(postgres, redis, tmp_path).model_copy(update={"clickhouse": clickhouse})
    live = Live(settings, [PROJECTIONS["projections.fraud"]], sinks=("postgres", "clickhouse"))
    live.feed(rows_of(events))
    shown = rows_in(settings, cases)
    for case in kept:
        row = shown[case.id,]
        assert (row["stands"], row["verdict"], row["version"]) == (case.stands, case.verdict, case.version)
        assert (row["subject"], row["score"], row["why"]) == (case.subject, case.score, case.why)
        assert bool(row["reason"]) == (case.verdict != "open")
    live.close()
    client = clickhouse_connect.get_client(dsn=clickhouse)
    counted = {row["rule"]: row for row in client.query("SELECT * FROM fraud_by_rule").named_results()}
    assert counted.keys() == {"card_testing", "order_velocity"}
    for rule, row in counted.items():
        its = [case for case in kept if case.rule == rule]
        assert row["raised"] == len(its)
        for verdict in ("confirmed", "dismissed"):
            assert row[verdict] == sum(case.verdict == verdict for case in its)
    client.close()
