"""`replay`: a million order events through the broker, grown from the real shop's baskets, and what is rebuilt from them.

`order_summary` is rebuilt by the command itself, from the start of its process to the switch, beside a confluent-kafka consumer
that only decodes the Avro and a Faust agent that builds the same; then its memory, and the live platform's lag while it runs.
`MEASURES` are the other parts' own, on the same topic.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path

import psutil
import uvloop

from infra.migrate import migrate
from infra.processes import Process
from infra.settings import ROOT, Settings
from projections.order import order_summary
from replay.postgres import PostgresShadows
from replay.shadow import shadow_of
from tests.bench import Figure, at_least, at_most, in_turn, percentile
from tests.bench.corpus import grow, skip
from tests.bench.lag import _lags
from tests.kernel.platform import Platform, variables
from tests.kernel.servers import Stack, fresh_settings

MEASURES = ("tests.bench.replay_store", "tests.bench.rule")  # measure(settings, domain, events, quick) -> list[Figure]
DECODES = "consumer that only decodes"
EVENTS_PER_S = 60_000
MEMORY_MB = 400
FAUST_EVENTS = 100_000
PER_S = 200.0  # commands while the lag is measured
SECONDS_MAX = 1_200.0
POLL_S = 0.1


def run(servers: Stack, quick: bool) -> list[Figure]:
    events = 60_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as small:
        migrate(small)
        grow(small, events // 10)
        _, tenth = rebuild(small, "postgres")
    with tempfile.TemporaryDirectory() as folder, fresh_settings(servers, Path(folder)) as settings:
        with Platform(settings) as platform:
            grow(settings, events)
            skip(settings, events)
            return measure(platform, events, tenth, quick)


def measure(platform: Platform, events: int, tenth: float, quick: bool) -> list[Figure]:
    """Every figure, on a grown topic. `tenth`: MB that a rebuild of a tenth of it took."""
    settings, figures = platform.settings, list[Figure]()
    decoding = output(settings, "tests.bench.decoding", settings.kafka, settings.topic("order"), str(events))
    took, peak = rebuild(settings, "postgres")
    fast, what = events / took, f"order_summary into Postgres, {events:,} events"
    figures.append(at_least("replay", what, fast, "events/s", decoding, DECODES, 0.35))
    enough = f"≥ {EVENTS_PER_S:,} events/s"
    figures.append(Figure("replay", what, fast, "events/s", reach=enough, reached=fast >= EVENTS_PER_S))
    of = f"Faust, from the first {min(events, FAUST_EVENTS):,}"
    figures.append(at_least("replay", what, fast, "events/s", faust(settings, events), of, 6))
    figures.append(at_most("replay", "peak memory of all its processes", peak, "MB", tenth, "with a tenth", MEMORY_MB))
    figures.append(figures[-1]._replace(reach="≤ 1.2 ×", reached=peak <= 1.2 * tenth))
    took, _ = rebuild(settings, "clickhouse")
    what = f"order_summary into ClickHouse, {events:,} events"
    figures.append(at_least("replay", what, events / took, "events/s", decoding, DECODES, 0.5))
    for module in MEASURES:
        figures += import_module(module).measure(settings, "order", events, quick)
    return figures + lag(platform, quick)


def rebuild(settings: Settings, sink: str, *argv: str) -> tuple[float, float]:
    """Seconds of the whole command, and the most MB that its processes had in memory at a time."""
    began, peak = time.perf_counter(), 0.0
    command = [
        sys.executable,
        "-m",
        "infra.cli",
        "replay",
        "projection",
        "order_summary",
        "--sink",
        sink,
        "--json",
        *argv,
    ]
    with tempfile.TemporaryFile() as said:
        process = psutil.Popen(command, cwd=ROOT, env=environment(settings), stdout=said, stderr=said)
        while process.poll() is None:
            assert time.perf_counter() - began < SECONDS_MAX
            peak = max(peak, _memory_mb(process))
            time.sleep(POLL_S)
        took = time.perf_counter() - began
        said.seek(0)
        assert process.returncode == 0, said.read()[-2_000:]
    return took, peak


def _memory_mb(process: psutil.Process) -> float:
    """What a process and its children have resident, each its own and its part of what they share."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += getattr(one.memory_full_info(), "pss", 0) or one.memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20


def faust(settings: Settings, events: int) -> float:
    """Events a second of the Faust agent, over the first `FAUST_EVENTS`: it keeps its pace, and all of them would take minutes."""
    shadow = shadow_of(order_summary, "faust")
    shadows = PostgresShadows(settings)
    try:
        shadows.make(shadow)
        shadows.finish(shadow)
        with tempfile.TemporaryDirectory() as folder:
            return output(settings, "tests.bench.faust_summary", str(min(events, FAUST_EVENTS)), folder)
    finally:
        shadows.drop(shadow.name)
        shadows.close()


def lag(platform: Platform, quick: bool) -> list[Figure]:
    """p99 from commit to visible of orders that are placed meanwhile, with and without a rebuild, in turn."""
    settings = platform.settings
    count = 400 if quick else 4_000
    platform.table["worker"] = Process("worker", "streams.worker", ("--sink", "postgres"))
    platform.start("relay", "worker")
    uvloop.run(_lags(settings, 200))  # until both are at work

    def p99() -> float:
        return 1_000 * percentile(uvloop.run(_lags(settings, count)), 0.99)

    def beside() -> float:
        over = threading.Event()

        def again() -> None:
            while not over.is_set():
                rebuild(settings, "postgres")

        thread = threading.Thread(target=again)
        thread.start()
        try:
            return p99()
        finally:
            over.set()
            thread.join()

    before, with_it = in_turn(1 if quick else 3, p99, beside)
    return [
        Figure(
            "replay", f"live lag p99, {PER_S:.0f} commands/s, while it runs", with_it, "ms", before, "without it", "≤ 2 ×",
            with_it <= 2 * before,
        )
    ]  # fmt: skip


def environment(settings: Settings) -> dict[str, str]:
    return {**os.environ, **variables(settings), "TITAN_DATA": str(settings.data)}


def output(settings: Settings, module: str, *argv: str) -> float:
    """The number that a module writes as a process."""
    done = subprocess.run(
        [sys.executable, "-m", module, *argv],
        cwd=ROOT, env=environment(settings), capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    return float(json.loads(done.stdout))
