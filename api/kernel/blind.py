"""Keys of personal data for processes that run fraud rules: opened by the vault, and digested."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from api.kernel.vault import Vault, derived_key, read_master_key
from infra.settings import Settings
from streams.kernel.rules.secret import Blind, MakeKeys, no_key

log = logging.getLogger(__name__)


@asynccontextmanager
async def blinded(settings: Settings) -> AsyncIterator[MakeKeys]:
    """What makes keys of secrets; without the master key it raises `NoKey` when it is first asked."""
    try:
        master, key = read_master_key(settings.master_key), derived_key(settings.master_key, "rules")
    except (OSError, ValueError) as error:
        log.error("ALARM: rules that need personal data can't run: %s", error)
        yield no_key
        return
    # Connections of its own: whoever asks may be in the middle of a transaction.
    async with AsyncConnectionPool[AsyncConnection[TupleRow]](
        settings.postgres, min_size=0, max_size=2, timeout=5, open=False, kwargs={"connect_timeout": 5}
    ) as pool:
        yield Blind(Vault(pool, master).open_all, key)
