"""A part of `replay`: one fraud rule over the whole topic, by the command itself, beside the consumer that only decodes the Avro."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from infra.settings import ROOT, Settings
from tests.bench import Figure, at_least
from tests.kernel.platform import variables

RULE = "order_velocity"
SECONDS_MAX = 1_200.0


def measure(settings: Settings, domain: str, events: int, quick: bool) -> list[Figure]:
    """`events` are in the topic of `domain`."""
    decoding = float(said(settings, "tests.bench.decoding", settings.kafka, settings.topic(domain), str(events)))
    told: dict[str, Any] = json.loads(said(settings, "infra.cli", "replay", "rule", RULE, "--json").splitlines()[-1])
    assert told["read"] >= events, told  # others may have ordered meanwhile
    what = f"back-test of {RULE}, {events:,} events, {told['judged']:,} of them judged"
    return [at_least("replay", what, told["events_per_s"], "events/s", decoding, "consumer that decodes", 0.35)]


def said(settings: Settings, module: str, *argv: str) -> str:
    """What a module writes as a process."""
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT, env={**os.environ, **variables(settings), "TITAN_DATA": str(settings.data)},
        capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout
