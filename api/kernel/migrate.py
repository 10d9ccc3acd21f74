"""The API's own tables: keys of personal data, public keys of tokens, secrets, and tries at them. Made by `infra up`, safe to run
at any time. Those of modules that bring FastAPI stand here: making tables need not wait for it."""

from __future__ import annotations

import psycopg

from api.kernel import secrets, vault
from infra.settings import Settings

LOCK = 7_134_002  # any number: serialises concurrent migrations of one database
PUBLISHED_KEYS = """
CREATE TABLE IF NOT EXISTS published_keys (
    kid text PRIMARY KEY,
    public jsonb NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now()
)
"""
ATTEMPTS = """
CREATE UNLOGGED TABLE IF NOT EXISTS attempts (
    key bytea PRIMARY KEY,
    count integer NOT NULL,
    until timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_until ON attempts (until)
"""


def migrate(settings: Settings) -> None:
    """Create what is missing."""
    with psycopg.connect(settings.postgres) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        for table in (vault.TABLE, PUBLISHED_KEYS, secrets.TABLE, ATTEMPTS):
            connection.execute(table)
