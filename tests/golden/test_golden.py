"""Old events are read as they always were: every locked schema version, from bytes that were kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aggregates.kernel import domains, wire
from tests import golden
from tests.golden import ACCEPT, ADD, load, locked

DOMAINS = sorted(domains())


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_locked_version_has_a_golden_history(domain: str) -> None:
    lacking = [f"{name} {version}" for name, version in sorted(golden.missing(domain))]
    assert not lacking, f"{domain} has none for {', '.join(lacking)}; {ADD}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_histories_are_only_ever_appended(domain: str) -> None:
    chain = ""
    for number, one in enumerate(load(domain), start=1):
        chain = one.chained(chain)
        assert chain == one.chain, (
            f"line {number} of tests/golden/{domain}.jsonl is not what was appended there: restore it from version control"
        )


@pytest.mark.parametrize("domain", DOMAINS)
def test_old_events_are_read_as_they_always_were(domain: str) -> None:
    for number, one in enumerate(load(domain), start=1):
        found = list(golden.differences(one))
        assert not found, f"{domain}, history {number}: {'; '.join(found)}. {ACCEPT}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_todays_schema_wrote_it_still_writes(domain: str) -> None:
    latest = {entry.subject.rpartition(".")[2]: entry.version for entry in locked(domain)}
    for one in load(domain):
        for written, recorded in zip(one.events, one.read(), strict=True):
            if recorded.event.type == f"{domain}.{written.name}" and written.version == latest[written.name]:
                assert wire.encode(recorded.event)[5:] == written.body


def test_what_is_missing_edited_or_read_in_another_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = load("order")[:2]
    monkeypatch.setattr(golden, "FOLDER", tmp_path)
    (tmp_path / "order.jsonl").write_bytes(first.line)
    assert (
        golden.missing("order") == {(e.subject.rpartition(".")[2], e.version) for e in locked("order")} - first.versions
    )
    assert second.chained("") != second.chain != first.chained(first.chain)
    assert list(golden.differences(first)) == []

    told = first.told
    values = [{**told["values"][0], "total": 1}, *told["values"][1:]]
    found = replace(first, told={**told, "values": values, "state": {**told["state"], "status": "", "gone": ""}})
    total = first.read()[0].event.__dict__["total"]
    assert list(golden.differences(found)) == [
        f"event 1, order.Placed: total was 1 and is {total}", "the aggregate's status is another", "the aggregate's gone is another",
    ]  # fmt: skip
    rows = {**told["rows"], "postgres.orders": {"status": "", "total": told["rows"]["postgres.orders"]["total"]}}
    assert list(golden.differences(replace(first, told={**told, "rows": rows}))) == [
        "postgres.orders.status is another"
    ]

    (tmp_path / "order.jsonl").write_bytes(found.line)
    assert golden.accept(["order"]) == 0
    assert load("order") == [first]
