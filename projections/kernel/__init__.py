"""The words of a projection: tables, clauses, changes.

wallets = Table("wallets", key="id", id=UUID, owner=UUID, balance=int)

@project
def deposited(e: Deposited) -> list[Change]:
    return [wallets.add(e.id, balance=e.amount)]
"""

from __future__ import annotations

from projections.kernel.clauses import ForgottenEvent, changes, ignore, project, projections
from projections.kernel.clickhouse import ClickTable
from projections.kernel.postgres import Page, Pool, Table
from projections.kernel.redis import RedisTable
from projections.kernel.tables import Change

__all__ = [
    "Change",
    "ClickTable",
    "ForgottenEvent",
    "Page",
    "Pool",
    "RedisTable",
    "Table",
    "changes",
    "ignore",
    "project",
    "projections",
]
