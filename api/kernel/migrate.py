"""The API's own table: the keys of personal data. Made by `infra up`, safe to run at any time."""

from __future__ import annotations

import psycopg

from api.kernel.vault import TABLE
from infra.settings import Settings

LOCK = 7_134_002  # any number: serialises concurrent migrations of one database


def migrate(settings: Settings) -> None:
    """Create what is missing."""
    with psycopg.connect(settings.postgres) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        connection.execute(TABLE)
