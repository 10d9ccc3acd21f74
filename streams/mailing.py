"""The mails of accounts: sent after the event that asks for one, and told to the account when the server has taken it.

What a mail proves is made from the intent's id with the master key, at the moment of sending: it is in no event and in no table.
"""

from __future__ import annotations

import logging

from prometheus_client import Counter
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from aggregates.auth import Account, RegistrationRepeated, ResetRequested, VerificationRequested
from aggregates.kernel import Commands, Recorded, Unavailable, clock
from api.kernel.secrets import Secrets
from api.kernel.vault import Vault, read_master_key
from infra.settings import Settings, settings
from streams.kernel import reacts
from streams.kernel.mail import Rejected, Unsent, message, sender

log = logging.getLogger(__name__)

FAILED = Counter("mail_failed_total", "Times that the server did not take a mail")

VERIFY = """Somebody, you we hope, wants an account with this address. If so, go on with the password that was chosen:

{url}

or send it with this token to {api}/auth/verify:

{token}

It is good for a day. If you want an account but have chosen another password, say where you sign in that you have forgotten it: you
will get another mail, to choose one. If it was not you, do nothing: without an answer there is no account.
"""
RESET = """Somebody, you we hope, wants to choose a new password. If so, go on here:

{url}

or send it with this token to {api}/auth/reset:

{token}

It is good for an hour, and ends all sessions. If it was not you, do nothing: the old password stays.
"""
REPEATED = """Somebody, perhaps you, wanted an account with this address, which has one already. Nothing was changed.

If you have forgotten the password, ask for a new one where you sign in.
"""

Intent = VerificationRequested | ResetRequested | RegistrationRepeated


@reacts
async def mail(r: Recorded[Intent], commands: Commands) -> None:
    """Send what an account asks for, unless it was sent. Raises what makes the follower call again later."""
    intent, chosen = r.event.intent, settings()
    account = await commands.load(Account, r.event.id)
    if intent in account.mailed or intent not in account.mails:
        return
    if not isinstance(r.event, RegistrationRepeated) and r.event.expires_at <= clock.now():
        return  # the mail server was away for too long
    to, secrets = await _opened(chosen, account)
    if not to:
        return  # the person was erased
    match r.event:
        case VerificationRequested():
            purpose, subject, text = "verify", "Is this your address?", VERIFY
        case ResetRequested():
            purpose, subject, text = "reset", "A new password", RESET
        case _:
            purpose, subject, text = "", "You have an account already", REPEATED
    token = secrets.proof(purpose, account.id, intent) if purpose else ""
    url = f"{chosen.issuer}/auth/mail/{purpose}?token={token}"
    made = message(chosen, intent, to, subject, text.format(api=chosen.issuer, url=url, token=token))
    try:
        await sender(chosen).send(made)
    except Rejected as error:
        FAILED.inc()
        log.warning("mail %s is refused for good: %s", intent, error)
        return
    except Unsent as error:
        FAILED.inc()
        log.warning("mail %s was not sent: %s", intent, error)
        raise Unavailable(f"the mail server: {error}") from error
    await commands.tell(account.id, Account.mail_taken, intent)


async def _opened(chosen: Settings, account: Account) -> tuple[str, Secrets]:
    """The account's address in the clear, and what makes proofs."""
    master = read_master_key(chosen.master_key)
    async with AsyncConnectionPool(
        chosen.postgres, connection_class=AsyncConnection, min_size=1, max_size=1, open=False
    ) as pool:
        return await Vault(pool, master).open(account.email), Secrets(pool, master)
