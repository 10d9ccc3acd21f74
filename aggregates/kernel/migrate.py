"""The event store's tables: one set a domain, and the heads of all logs of a database. Made once, by `infra up`."""

from __future__ import annotations

import psycopg
from psycopg import sql

LOCK = 7_134_001  # any number: serialises concurrent migrations of one database

SHARED = """
CREATE TABLE IF NOT EXISTS log_heads (
    domain text PRIMARY KEY,
    last bigint NOT NULL
) WITH (fillfactor = 10)
"""

# fillfactor: the one row of a domain changes with every commit, and stays a heap-only update while its page has room.

DOMAIN = """
CREATE TABLE IF NOT EXISTS {events} (
    notification_id bigint NOT NULL,
    originator_id uuid NOT NULL,
    originator_version integer NOT NULL,
    event_type text NOT NULL,
    state bytea NOT NULL,
    event_id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    correlation_id text NOT NULL,
    causation_id uuid,
    actor text NOT NULL,
    PRIMARY KEY (originator_id, originator_version)
);
CREATE UNIQUE INDEX IF NOT EXISTS {events_log} ON {events} (notification_id);
CREATE TABLE IF NOT EXISTS {snapshots} (
    originator_id uuid PRIMARY KEY,
    originator_version integer NOT NULL,
    fingerprint text NOT NULL,
    state bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS {commands} (
    command_id uuid PRIMARY KEY,
    fingerprint bytea NOT NULL,
    originator_id uuid NOT NULL,
    originator_version integer NOT NULL,
    notification_id bigint NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS {claims} (
    scope text NOT NULL,
    key text NOT NULL,
    owner uuid NOT NULL,
    PRIMARY KEY (scope, key)
);
CREATE TABLE IF NOT EXISTS {timers} (
    originator_id uuid NOT NULL,
    key text NOT NULL,
    due timestamptz NOT NULL,
    call text NOT NULL,
    args jsonb NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    error text,
    PRIMARY KEY (originator_id, key)
);
CREATE INDEX IF NOT EXISTS {timers_due} ON {timers} (due);
INSERT INTO log_heads (domain, last) VALUES ({domain}, 0) ON CONFLICT DO NOTHING
"""


def names(domain: str) -> dict[str, sql.Composable]:
    """The identifiers of a domain's tables, quoted, for SQL templates."""
    tables = ("events", "snapshots", "commands", "claims", "timers", "events_log", "timers_due")
    made: dict[str, sql.Composable] = {table: sql.Identifier(f"{domain}_{table}") for table in tables}
    return {**made, "domain": sql.Literal(domain)}


def migrate(dsn: str, domains: list[str]) -> None:
    """Create what is missing for these domains in one database. Safe to run at any time, by several at once."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        connection.execute(SHARED)
        for domain in domains:
            connection.execute(sql.SQL(DOMAIN).format(**names(domain)))
