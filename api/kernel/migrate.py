"""The API's own tables: keys of personal data, public keys of tokens, secrets, and tries at them. Made by `infra up`, safe to run
at any time."""

from __future__ import annotations

import psycopg

from api.kernel import attempts, auth, secrets, vault
from infra.settings import Settings

LOCK = 7_134_002  # any number: serialises concurrent migrations of one database


def migrate(settings: Settings) -> None:
    """Create what is missing."""
    with psycopg.connect(settings.postgres) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        for module in (vault, auth, secrets, attempts):
            connection.execute(module.TABLE)
