"""Where a rule's hits begin: with what happens after it was first known to the platform. What was before fills its windows.

`titan replay rule` says what it would have raised until then.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import Any

import psycopg

from infra.settings import Settings
from streams.kernel.rules.found import discover
from streams.kernel.rules.rule import Rule


def register(settings: Settings, rules: Collection[Rule[Any]] | None = None) -> None:
    """Fix the starts of rules that are new, all there are by default, at the ends of their domains' logs."""
    if rules is None:
        for domain in import_module("aggregates.kernel").domains():
            import_module(f"aggregates.{domain}")
        rules = discover()
    with psycopg.connect(settings.postgres, autocommit=True, connect_timeout=5) as connection:
        for rule in rules:
            known = connection.execute("SELECT domain FROM rule_starts WHERE rule = %s", (rule.id,)).fetchall()
            for domain in set(rule.domains) - {domain for (domain,) in known}:
                with psycopg.connect(settings.dsn(domain), autocommit=True, connect_timeout=5) as events:
                    head = events.execute("SELECT last FROM log_heads WHERE domain = %s", (domain,)).fetchone()
                connection.execute(
                    "INSERT INTO rule_starts VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                    (rule.id, domain, head[0] if head else 0),
                )
