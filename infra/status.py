"""`titan status [--json]`: URLs, processes, topics, lag and positions of the platform that the settings name.

With --json one object on standard output:
    state      "down", "starting", "loading" (the sample shop), "ready", "stopping", or "external": no supervisor runs here
    urls       name → URL
    processes  name, pid (null between two runs), up_s, restarts, memory_mb, cpu_percent (of one core, since its start), error, log,
               metrics (URL for Prometheus, null for the servers)
    topics     name, partitions, messages
    lag        processor, of, lag (events not yet handled): a sink's tables as the workers tell, a consumer group's topics
    parked     processor, events, oldest_s: what it could not handle (`titan dlq`)
    positions  domain, stored (events in the log), published (how far the relay is)
    errors     servers that did not answer
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from contextlib import suppress
from decimal import Decimal
from typing import Any, LiteralString

import psutil
import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from rich.console import Console
from rich.table import Table

from infra import state
from infra.kafka.topics import offsets
from infra.settings import Settings, running_file, settings

ANSWER_S = 5
LEADERS_S = 20
DOWN = "down"


def main(argv: list[str]) -> int:
    """0 when it runs and every process is alive, else 1."""
    parser = argparse.ArgumentParser(
        prog="titan status", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    given = parser.parse_args(argv)
    found = status(settings())
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        _show(found, Console())
    whole = found["state"] != DOWN and not found["errors"] and all(row["pid"] for row in found["processes"])
    return 0 if whole else 1


def status(of: Settings) -> dict[str, Any]:
    """What the module's first lines describe."""
    told = state.read()
    running = told if told and state.alive(told) else {}
    external = "kafka" in of.model_fields_set and not running_file().exists()
    found: dict[str, Any] = {
        "state": running.get("state") or ("external" if external else DOWN),
        "urls": running.get("urls", {}),
        "processes": [_process(entry) for entry in running.get("processes", [])],
        "topics": [],
        "lag": [],
        "parked": [],
        "positions": [],
        "errors": [],
    }
    if found["state"] in (DOWN, "starting"):
        return found
    try:
        _kafka(of, found)
    except KafkaException as error:
        found["errors"].append(f"kafka: {error.args[0].str()}")
    for dsn in dict.fromkeys([of.postgres, *of.postgres_domains.values()]):
        try:
            with psycopg.connect(dsn, connect_timeout=ANSWER_S) as connection:
                _postgres(connection, found)
        except psycopg.OperationalError as error:
            found["errors"].append(f"postgres: {' '.join(str(error).split())}")
    return found


def _process(entry: dict[str, Any]) -> dict[str, Any]:
    row = {name: entry.get(name) for name in ("name", "restarts", "error", "log", "metrics")} | {"pid": None}
    process = state.alive(entry)
    if process:
        with suppress(psutil.Error):
            family = [process, *process.children(recursive=True)]  # PostgreSQL is one process a connection
            up_s = max(time.time() - process.create_time(), 0.001)
            spent = sum(sum(member.cpu_times()[:2]) for member in family)
            row |= {
                "pid": process.pid,
                "up_s": round(up_s),
                "memory_mb": round(sum(_memory(member) for member in family) / 1024**2),
                "cpu_percent": round(100 * spent / up_s, 1),
            }
    return row


def _memory(process: psutil.Process) -> int:
    """Bytes, shared pages divided among those who share them where the system tells (Linux)."""
    with suppress(psutil.Error):
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.uss))
    return 0


def _kafka(of: Settings, found: dict[str, Any]) -> None:
    admin = AdminClient({"bootstrap.servers": of.kafka, "log_level": 0})
    topics = {
        name: topic
        for name, topic in admin.list_topics(timeout=ANSWER_S).topics.items()
        if name.startswith(of.topic_prefix)
    }
    partitions = [TopicPartition(name, number) for name, topic in topics.items() for number in topic.partitions]
    if not partitions:
        return
    first, last = (offsets(admin, partitions, spec, LEADERS_S) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
    for name, topic in sorted(topics.items()):
        count = sum(last[where] - first[where] for where in partitions if where.topic == name)
        found["topics"].append({"name": name, "partitions": len(topic.partitions), "messages": count})
    groups = [group.group_id for group in admin.list_consumer_groups(request_timeout=ANSWER_S).result().valid]
    ends = {(where.topic, where.partition): offset for where, offset in last.items()}
    for group in sorted(group for group in groups if group.startswith(of.namespace)):
        [asked] = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        behind: dict[str, int] = defaultdict(int)
        for where in asked.result().topic_partitions:
            if where.offset >= 0 and (where.topic, where.partition) in ends:
                behind[where.topic] += max(0, ends[where.topic, where.partition] - where.offset)
        found["lag"] += [{"processor": group, "of": topic, "lag": lag} for topic, lag in sorted(behind.items())]


LAG = "SELECT sink, key, sum(value::bigint) FROM worker_status, jsonb_each_text(lag) GROUP BY 1, 2 ORDER BY 1, 2"
PARKED = (
    "SELECT processor, count(*), extract(epoch FROM now() - min(parked_at))::bigint FROM parked GROUP BY 1 ORDER BY 1"
)


def _postgres(connection: psycopg.Connection[Any], found: dict[str, Any]) -> None:
    there = {
        name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    }

    def rows(table: str, query: LiteralString, *columns: str) -> list[dict[str, Any]]:
        answer = connection.execute(query).fetchall() if table in there else []
        return [dict(zip(columns, map(_plain, row), strict=True)) for row in answer]

    found["lag"] += rows("worker_status", LAG, "processor", "of", "lag")
    found["parked"] += rows("parked", PARKED, "processor", "events", "oldest_s")
    published = rows("relay_positions", "SELECT domain, position FROM relay_positions", "domain", "published")
    relayed = {row["domain"]: row["published"] for row in published}
    stored = rows("log_heads", "SELECT domain, last FROM log_heads ORDER BY domain", "domain", "stored")
    found["positions"] += [{**row, "published": relayed.get(row["domain"], 0)} for row in stored]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) else value


def _show(found: dict[str, Any], console: Console) -> None:
    console.print(f"state: [bold]{found['state']}[/bold]")
    for error in found["errors"]:
        console.print(f"[red]{error}[/red]")
    for name, url in found["urls"].items():
        console.print(f"  {name:<11} {url}", soft_wrap=True, highlight=False)
    if serving := [row for row in found["processes"] if row["metrics"]]:
        console.print("metrics")
        for row in serving:
            console.print(f"  {row['name']:<11} {row['metrics']}", soft_wrap=True, highlight=False)
    for title in ("processes", "topics", "lag", "parked", "positions"):
        rows = [{key: value for key, value in row.items() if key not in ("log", "metrics")} for row in found[title]]
        if title == "lag":
            rows = [row for row in rows if row["lag"]]
        if not rows:
            continue
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
        columns = list(dict.fromkeys(key for row in rows for key in row))
        for column in columns:
            table.add_column(
                column, justify="left" if column in ("name", "processor", "of", "domain", "error") else "right"
            )
        for row in rows:
            table.add_row(*("" if row.get(column) is None else str(row[column]) for column in columns))
        console.print(table)
