"""Makes the tables of the relay, the sagas, the reactors, the processors and the fraud rules. Safe to run at any time, by several at once."""

from __future__ import annotations

from importlib import import_module

import psycopg

from infra.settings import Settings

LOCK = "titan.streams.migrate"

RELAY = """
CREATE TABLE IF NOT EXISTS relay_positions (
    domain text PRIMARY KEY,
    position bigint NOT NULL
) WITH (fillfactor = 10)
"""
"""In each database that has events. `position`: every event up to it is acknowledged by Kafka."""

FOLLOWERS = """
CREATE TABLE IF NOT EXISTS follower_positions (
    follower text,
    domain text,
    partition integer,
    notification_id bigint NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (follower, domain, partition)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS follower_watermarks (
    follower text,
    domain text,
    notification_id bigint NOT NULL,
    PRIMARY KEY (follower, domain)
)
"""
"""In the common database. A follower (a saga, a reactor) has dealt with all events of a partition up to `notification_id`, and
never sees those up to its watermark: they had happened before it was first started."""

PROCESSORS = """
CREATE TABLE IF NOT EXISTS processor_positions (
    processor text,
    topic text,
    partition integer,
    notification_id bigint NOT NULL,
    "offset" bigint NOT NULL,
    watermark timestamptz NOT NULL,
    PRIMARY KEY (processor, topic, partition)
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS processor_states (
    processor text,
    key text,
    topic text NOT NULL,
    partition integer NOT NULL,
    state json NOT NULL,
    due timestamptz,
    PRIMARY KEY (processor, key)
);
CREATE INDEX IF NOT EXISTS processor_states_due ON processor_states (processor, topic, partition, due) WHERE due IS NOT NULL
"""
"""In the common database. What a processor keeps for each aggregate, when that is due, and the last event of each partition in it."""

RULES = """
CREATE TABLE IF NOT EXISTS rule_starts (
    rule text,
    domain text,
    notification_id bigint NOT NULL,
    PRIMARY KEY (rule, domain)
);
CREATE TABLE IF NOT EXISTS rule_horizons (
    rule text PRIMARY KEY,
    before timestamptz NOT NULL
);
CREATE TABLE IF NOT EXISTS rule_events (
    rule text,
    key text,
    at timestamptz,
    domain text,
    position bigint,
    event_id uuid NOT NULL,
    id uuid NOT NULL,
    version integer NOT NULL,
    judged boolean NOT NULL,
    state bytea NOT NULL,
    PRIMARY KEY (rule, key, at, domain, position)
);
CREATE INDEX IF NOT EXISTS rule_events_age ON rule_events (rule, at);
CREATE TABLE IF NOT EXISTS rule_verdicts (
    rule text,
    domain text,
    position bigint,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    id uuid NOT NULL,
    key text NOT NULL,
    at timestamptz NOT NULL,
    hit jsonb,
    revision integer NOT NULL,
    told integer NOT NULL,
    PRIMARY KEY (rule, domain, position)
);
CREATE INDEX IF NOT EXISTS rule_verdicts_news ON rule_verdicts (rule, at) WHERE told < revision
"""
"""In the common database, by `name@version` of a rule. Its hits are of events behind its start; `rule_events` has what its windows
may need still, nothing from before the horizon less a window; `rule_verdicts` each hit that ever was, as it is now (null: withdrawn),
and up to which revision titan.fraud has been told."""

CIRCUITS = """
CREATE TABLE IF NOT EXISTS gateway_circuits (
    gateway text,
    process text,
    closed boolean NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (gateway, process)
)
"""
"""In the common database. What each process says of a gateway: whether it answers, else until when it is left alone."""


def make(connection: psycopg.Connection[tuple[object, ...]], tables: str) -> None:
    """Create what is missing of RELAY, FOLLOWERS, PROCESSORS, RULES or CIRCUITS. One at a time: `IF NOT EXISTS` alone fails for two at once."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (LOCK,))
        connection.execute(tables.encode())


def migrate(settings: Settings) -> None:
    """Create what is missing in every database of the settings; from then on new reactors and new rules get what happens.

    Raises `psycopg.OperationalError` when a database is away.
    """
    for dsn in {settings.postgres, *settings.postgres_domains.values()}:
        with psycopg.connect(dsn, autocommit=True, connect_timeout=5) as connection:
            make(connection, RELAY)
            if dsn == settings.postgres:
                make(connection, FOLLOWERS)
                make(connection, PROCESSORS)
                make(connection, RULES)
                make(connection, CIRCUITS)
    import_module("streams.sagas").register(settings)
    import_module("streams.kernel.rules.starts").register(settings)
