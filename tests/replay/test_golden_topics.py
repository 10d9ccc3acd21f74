"""The golden histories of every domain in real topics: each command reads them in processes of its own, and nothing else leaves.

Every schema version that was ever locked is in these histories, in the bytes of its time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from aggregates.kernel import domains
from aggregates.kernel.wire import Row
from infra.folding import Folding
from infra.migrate import migrate
from infra.settings import ROOT, Settings
from tests.golden import load, locked
from tests.kernel.eventlog import published, stored
from tests.kernel.pipeline import relayed, relaying, store_rows
from tests.kernel.platform import variables, wait_for
from tests.kernel.servers import Stack, database, fresh_settings

TO_PEOPLE = ("smtplib", "aiosmtplib", "streams.kernel.mail", "streams.mailing", "streams.people")
TO_VENDORS = ("httpx", "aiohttp", "requests", "streams.gateways", "streams.payment")
TO_COMMANDS = (
    "streams.sagas",
    "streams.kernel.driver",
    "streams.kernel.follow",
    "streams.worker",
    "api.app",
    "fastapi",
    "faust",
)
COMMANDS = """
import json, os, sys
from replay import cli
for argv in json.load(sys.stdin):
    os.environ["TITAN_TEST_COMMAND"] = argv.pop(0)
    assert cli.main(argv) == 0, argv
"""


def golden_rows(domain: str) -> list[Row]:
    """The histories of a domain as its store has them, each under an id of its own."""
    ids = {(entry.subject.rpartition(".")[2], entry.version): entry.id for entry in locked(domain)}
    rows = []
    for history in load(domain):
        id = uuid4()
        for written, read in zip(history.events, history.read(), strict=True):
            body = b"\0" + ids[written.name, written.version].to_bytes(4) + written.body
            kind, at = f"{domain}.{written.name}", read.event.at
            rows.append(Row(0, id, read.event.version, kind, body, uuid4(), at, "golden", None, "user:golden"))
    return rows


class Golden:
    """The platform, and what was written down of each command's processes: (kind, what)."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder, self.logs = settings, folder, dict[str, list[Row]]()
        migrate(settings)
        for domain in domains():
            store_rows(settings.postgres, domain, golden_rows(domain))
            with psycopg.connect(settings.postgres) as connection:
                self.logs[domain] = stored(connection, domain)
        with relaying(settings):
            wait_for(lambda: all(relayed(settings, domain) for domain in self.logs), "the histories are in the topics")
        (folder / "sitecustomize.py").write_text("import tests.replay.spy\n")

    def run(self, *commands: Sequence[str]) -> dict[str, set[tuple[str, str]]]:
        """Run commands, each behind the name that it is noted under."""
        notes = self.folder / uuid4().hex
        env = {
            **os.environ, **variables(self.settings), "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
            "TITAN_TEST_SPY": str(notes), "TITAN_TEST_COMMAND": "none",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            input=json.dumps(commands), cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
        found = defaultdict(set)
        for line in notes.read_text().splitlines():
            command, kind, what = line.split(" ", 2)
            found[command].add((kind, what))
        return found

    def topics(self) -> dict[str, list[list[Row]]]:
        return {domain: published(self.settings.kafka, self.settings.topic(domain)) for domain in self.logs}


@pytest.fixture(scope="module")
def golden(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Golden]:
    with fresh_settings(stack, tmp_path_factory.mktemp("golden")) as settings:
        # Some histories are tellings of one aggregate, with the same sessions in them: a single partition keeps their order.
        yield Golden(settings.model_copy(update={"partitions": 1}), tmp_path_factory.mktemp("spy"))


@pytest.mark.slow
def test_every_version_is_replayed_by_every_command_and_nothing_leaves(golden: Golden, stack: Stack) -> None:
    of = golden.settings
    folding = Folding(of)
    for domain, log in golden.logs.items():
        assert {row.state[:5] for row in log} == {b"\0" + entry.id.to_bytes(4) for entry in locked(domain)}
        folding.read_on(domain, len(log))
    before = golden.topics()
    assert {domain: sorted(row for one in lanes for row in one) for domain, lanes in before.items()} == golden.logs
    orders = golden.logs["order"]
    first, postgres = orders[0].occurred_at.isoformat(), ["order_summary", "--sink", "postgres"]
    with database(stack) as elsewhere:
        noted = golden.run(
            ["projection", "projection", "--all", "--workers", "1", "--json"],
            ["what-if", "projection", *postgres, "--with", "projections/order.py", "--json"],
            ["diff", "diff", *postgres, "--at", first, "--at", "now", "--json"],
            ["aggregate", "aggregate", "order", str(orders[0].originator_id), "--json"],
            ["verify", "verify", "refund", "--json"],
            ["store", "store", "--all", "--into", elsewhere, "--json"],
            ["rule", "rule", "order_velocity", "--json"],
        )
        for domain, log in golden.logs.items():
            with psycopg.connect(elsewhere) as connection:
                assert stored(connection, domain) == log
    assert list(folding.differences()) == []
    assert golden.topics() == before
    for domain, log in golden.logs.items():
        with psycopg.connect(of.postgres) as connection:
            assert stored(connection, domain) == log
    assert noted.keys() == {"none", "projection", "what-if", "diff", "aggregate", "verify", "rule", "store"}
    assert [(command, what) for command, its in noted.items() for kind, what in its if kind == "made"] == []
    for command, its in noted.items():
        _reaches_servers_alone(of, command, its)


def test_who_writes_a_topic_has_a_producer_and_nothing_more(golden: Golden) -> None:
    noted = golden.run(["topic", "topic", "order", "--force", "--json"])
    assert {what for kind, what in noted["topic"] if kind == "made"} == {"Producer"}
    _reaches_servers_alone(golden.settings, "topic", noted["none"] | noted["topic"])
    again = published(golden.settings.kafka, golden.settings.topic("order"))
    assert sorted(row for one in again for row in one) == golden.logs["order"]


def _reaches_servers_alone(of: Settings, command: str, noted: set[tuple[str, str]]) -> None:
    """No module that mails, pays or gives commands was asked for, and no server but our own four was connected to."""
    forbidden = TO_PEOPLE + TO_VENDORS + TO_COMMANDS
    asked = [
        what for kind, what in noted if kind == "import" and f"{what}.".startswith(tuple(f"{f}." for f in forbidden))
    ]
    assert asked == [], command
    servers = {of.kafka.rpartition(":")[2], str(conninfo_to_dict(of.postgres)["port"])}
    servers |= {str(urlsplit(url).port) for url in (of.redis, of.clickhouse)}
    assert {what for kind, what in noted if kind == "port"} <= servers, command
