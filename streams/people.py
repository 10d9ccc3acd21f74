"""What follows for a person from what happens to the account, and what erasing one takes.

Erasing goes in an order that is safe to die in anywhere, and is repeated until it is done: first nobody can sign in any more, then the
key is destroyed, for good, so that nothing can be sealed with another one either, then what is left beside it goes, and only then it
is told as done.
"""

from __future__ import annotations

from contextlib import suppress

from psycopg import AsyncConnection
from psycopg.sql import SQL, Composable, Identifier, Literal
from psycopg_pool import AsyncConnectionPool

from aggregates.auth import Account, AddressVerified
from aggregates.kernel import Commands, Conflict, NotFound, Recorded
from aggregates.kernel.migrate import LOCK, names
from aggregates.payment import Methods
from aggregates.user import Erased, ErasureRequested, User
from api.kernel.secrets import forget
from api.kernel.vault import Pool, erase_for_good
from infra.settings import Settings, settings
from streams.kernel import reacts
from streams.kernel.mail import sender

STORE: dict[str, Composable] = {
    **names("user"),
    "erased": Literal(Erased.type),
    "index": Identifier("user_events_erased"),
}
INDEX = SQL("CREATE INDEX IF NOT EXISTS {index} ON {events} (originator_id) WHERE event_type = {erased}").format(
    **STORE
)
WHO = SQL("SELECT originator_id FROM {events} WHERE event_type = {erased}").format(**STORE)


@reacts
async def welcome(r: Recorded[AddressVerified], commands: Commands) -> None:
    """Who has an account has a profile."""
    with suppress(Conflict):  # there is one: this was done before, or the person was faster
        await commands.open_as(r.event.id, User)


@reacts
async def erase(r: Recorded[ErasureRequested], commands: Commands) -> None:
    """Close the account, remove the ways to pay, destroy the key, forget the secrets and the mails that lie here."""
    id, chosen = r.event.id, settings()
    mails = []
    with suppress(NotFound):  # who signs in elsewhere has no account here
        mails = list((await commands.load(Account, id)).mails)
        await commands.tell(id, Account.close)
    with suppress(NotFound):
        for method in (await commands.load(Methods, id)).kept:
            await commands.tell(id, Methods.remove, method)
    async with _pool(chosen.postgres) as pool:
        await erase_for_good(pool, [id])
        await forget(pool, [id])
    for mail in mails:
        await sender(chosen).forget(mail)
    await commands.tell(id, User.erased)


async def migrate(to: Settings) -> None:
    """Who was erased is found without reading all that is known of everybody."""
    async with _pool(to.dsn("user")) as pool, pool.connection() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        await connection.execute(INDEX)


async def stay_erased(chosen: Settings) -> int:
    """Erase again whoever was erased, and answer how many keys and secrets that took: none, unless their tables are from a copy that is
    older than the erasure.

    It is done before any process starts and when this one does, so that it does not matter when the tables were put back. Raises
    `psycopg.OperationalError` when a database is away; done in part, it is done again.
    """
    async with _pool(chosen.dsn("user")) as pool, pool.connection() as connection:
        erased = [id for (id,) in await (await connection.execute(WHO)).fetchall()]
    async with _pool(chosen.postgres) as pool:
        return await erase_for_good(pool, erased) + await forget(pool, erased)


def _pool(dsn: str) -> Pool:
    return AsyncConnectionPool(dsn, connection_class=AsyncConnection, min_size=1, max_size=1, open=False)
