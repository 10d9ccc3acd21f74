"""What a long run tells of itself: as much on a narrow terminal as on a wide one, and the same to machines."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from infra.settings import ROOT
from replay.log import Span
from replay.progress import Progress

SPANS = [Span("order", partition, 400, 1_500) for partition in range(3)]


@pytest.mark.parametrize("columns", ["70", "200"])
def test_people_are_told_events_and_positions(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with Progress("order_summary", SPANS) as progress:
        progress.moved(800, {"order:0": 1_200})
    assert "order_summary" in (told := capsys.readouterr().err) and "800/3300" in told and "events/s" in told
    assert "order:0@1,200 order:1@400 order:2@400" in told


def test_machines_are_told_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("order_summary", SPANS, as_json=True) as progress:
        progress.moved(3_300, {"order:0": 1_500})
    told = json.loads(capsys.readouterr().out)
    assert (told["events"], told["of"], told["seconds_left"]) == (3_300, 3_300, 0.0)
    assert told["positions"] == {"order:0": 1_500, "order:1": 400, "order:2": 400}


def test_a_command_loads_nothing_for_terminals_or_of_stores_that_it_may_not_need() -> None:
    """It would be half of what it takes to start."""
    modules = ", ".join(
        f"replay.{name}" for name in ("cli", "loading", "projection", "rule", "store", "topic", "verify")
    )
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"rich", "redis", "clickhouse_connect", "fastapi"} & set(done.stdout.split()) == set()
