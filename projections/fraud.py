"""Fraud cases as they are, for those who review them; and for analysts everything that was said of them, by rule."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from aggregates.fraud import Confirmed, Dismissed, Raised, Revised, Verdict, Withdrawn
from projections.kernel import Change, ClickTable, Table, project

cases = Table(
    "fraud_cases",
    key="id",
    id=UUID,
    rule=str,
    rule_version=int,
    subject=UUID,
    score=int,
    why=str,
    cause=UUID,
    cause_type=str,
    cause_of=UUID,
    happened_at=datetime,
    stands=bool,
    verdict=Verdict,
    reason=str | None,
    raised_at=datetime,
    changed_at=datetime,
    version=int,
    person="subject",
    part_of="subject",
    indexes=[("raised_at",), ("verdict", "raised_at"), ("rule", "raised_at"), ("subject",), ("cause_of",)],
)

# One row for each thing that was said of a case. `score` is that of a rule's word, 0 for a person's, whose words are sealed and
# stand in the case alone.
said = ClickTable(
    "fraud_said",
    order_by=("rule", "at"),
    at=datetime,
    what=Literal["raised", "revised", "withdrawn", "confirmed", "dismissed"],
    rule=str,
    rule_version=int,
    case=UUID,
    score=int,
    why=str,
    part_of="case",
    views={
        "fraud_by_rule": "SELECT rule, rule_version, uniqExactIf(case, what = 'raised') AS raised,"
        " uniqExactIf(case, what = 'withdrawn') AS withdrawn, uniqExactIf(case, what = 'confirmed') AS confirmed,"
        " uniqExactIf(case, what = 'dismissed') AS dismissed, min(at) AS first, max(at) AS last"
        " FROM fraud_said FINAL GROUP BY rule, rule_version",
    },
)


@project
def raised(e: Raised) -> list[Change]:
    row = cases.put(
        e.id,
        rule=e.rule,
        rule_version=e.rule_version,
        subject=e.subject,
        score=e.score,
        why=e.why,
        cause=e.cause,
        cause_type=e.cause_type,
        cause_of=e.cause_of,
        happened_at=e.happened_at,
        verdict="open",
        raised_at=e.at,
    )
    return [row, *_said(e, "raised", e.score, e.why, stands=True)]


@project
def revised(e: Revised) -> list[Change]:
    word = cases.put(e.id, subject=e.subject, score=e.score, why=e.why)
    return [word, *_said(e, "revised", e.score, e.why, stands=True)]


@project
def withdrawn(e: Withdrawn) -> list[Change]:
    return _said(e, "withdrawn", stands=False)


@project
def confirmed(e: Confirmed) -> list[Change]:
    return _said(e, "confirmed", why=e.reason, verdict="confirmed", reason=e.because or e.reason)


@project
def dismissed(e: Dismissed) -> list[Change]:
    return _said(e, "dismissed", why=e.reason, verdict="dismissed", reason=e.because or e.reason)


def _said(
    e: Raised | Revised | Withdrawn | Confirmed | Dismissed, what: str, score: int = 0, why: str = "", **columns: Any
) -> list[Change]:
    return [
        cases.put(e.id, changed_at=e.at, version=e.version, **columns),
        said.row(at=e.at, what=what, rule=e.rule, rule_version=e.rule_version, case=e.id, score=score, why=why),
    ]
