"""Why somebody did something, in their own words: personal data of whom it is about, and sealed for that person."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from aggregates.kernel import Refused, Sealed
from aggregates.kernel.text import line
from api.kernel.host import Host
from api.kernel.types import ONE_LINE
from api.kernel.vault import Vault
from projections.kernel import Table
from projections.kernel.clauses import projections

REASON_CHARS_MAX = 500
Reason = Annotated[
    str, Field(min_length=1, max_length=REASON_CHARS_MAX, pattern=ONE_LINE, examples=["the handle is broken"])
]


async def sealed(vault: Vault, about: UUID, reason: str) -> Sealed | None:
    """A reason as events hold it, readable with that person's key alone; None where the person was erased: nothing is kept then.

    Raises `Refused` for one that shows nothing.
    """
    words = line(reason, "a reason", REASON_CHARS_MAX)
    try:
        return await vault.seal(about, words)
    except Refused:
        return None


async def person_of(host: Host, thing: UUID) -> UUID:
    """Whose an order, a payment, or whatever else read models show, is; what none of them knows as somebody's is taken for a person."""
    for projection in projections():
        for table in projection.tables:
            if isinstance(table, Table) and table.key == ("id",) and table.person:
                row = await table.get(host.views, thing)
                if row is not None and isinstance(person := row[table.person[0]], UUID):
                    return person
    return thing
