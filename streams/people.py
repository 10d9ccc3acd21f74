"""What follows for a person from what happens to the account, and what erasing one takes.

Erasing goes in an order that is safe to die in anywhere, and is repeated until it is done: first nobody can sign in any more, then the
key is destroyed, for good, so that nothing can be sealed with another one either, then what is left beside it goes, and only then it
is told as done.
"""

from __future__ import annotations

from contextlib import suppress

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from aggregates.auth import Account, AddressVerified
from aggregates.kernel import Commands, Conflict, NotFound, Recorded
from aggregates.payment import Methods
from aggregates.user import ErasureRequested, User
from api.kernel.secrets import Secrets
from api.kernel.vault import Vault, read_master_key
from infra.settings import settings
from streams.kernel import reacts
from streams.kernel.mail import sender


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
    master = read_master_key(chosen.master_key)
    async with AsyncConnectionPool(
        chosen.postgres, connection_class=AsyncConnection, min_size=1, max_size=1, open=False
    ) as pool:
        await Vault(pool, master).erase(id, for_good=True)
        await Secrets(pool, master).forget(id)
    for mail in mails:
        await sender(chosen).forget(mail)
    await commands.tell(id, User.erased)
