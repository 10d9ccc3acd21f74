"""Getting an account, and getting back into it: both by answering a mail.

The password is chosen at registration and must be known again when the mail is answered, so that nobody can prepare an account with
a password of theirs for somebody else to confirm.
"""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from pydantic import BaseModel, Field

from aggregates.auth import Account
from aggregates.kernel import Refused, clock
from aggregates.kernel.clock import new_id
from api.auth.fields import Device, Email, Network, Password, Proof, Told, address_digest, mail_asked, steady
from api.auth.passwords import hashed, matches
from api.auth.sessions import Sessions
from api.kernel import Body
from api.kernel.host import Host
from api.kernel.route import Route
from api.kernel.secrets import Secrets as Kept
from api.kernel.stores import Secrets, TheHost, Vault

KIND = "password"
TOLD = Told(detail="if this can be done, a mail says how it goes on")
NO_MAIL = "this mail was answered already, or is too old: ask for another"

router = APIRouter(prefix="/auth", tags=["auth"], route_class=Route)


class Registering(Body):
    email: Email
    password: Password


class Answering(Body):
    token: Proof
    password: Password


class Forgetting(Body):
    email: Email
    device: Device = None


class Proven(BaseModel):
    """The account is the caller's. `device`: send it with the login."""

    id: UUID = Field(examples=["0191d1f0-9d3b-7c3e-8f00-5c2a7d1f4b6a"])
    device: str = Field(examples=["AZHR8J07fD6PAFwqfR9Lag"])


@router.post("/register", status_code=202, summary="Ask for an account", responses={})
async def register(body: Registering, network: Network, host: TheHost, secrets: Secrets, vault: Vault) -> Told:
    async with steady():
        digest, account = address_digest(secrets, body.email), new_id()
        await mail_asked(host, network, f"registration {digest}")
        hash = await hashed(body.password)
        owner = await host.store.owner("auth", "email", digest)
        if owner is None:
            credential = await secrets.keep(account, KIND, hash)
            email = await vault.seal(account, body.email)
            make = Sessions(host, secrets).commands(account).open_as
            try:
                await make(account, Account.register, email, digest, new_id(), credential, clock.now())
                return TOLD
            except Refused:  # another registration of this address was a moment faster
                owner = await host.store.owner("auth", "email", digest)
        if owner is not None:
            credential = await secrets.keep(owner, KIND, hash)
            await (
                Sessions(host, secrets)
                .commands(owner)
                .tell(owner, Account.register_again, new_id(), credential, clock.now())
            )
    return TOLD


@router.post("/verify", summary="Answer the mail of a registration, with its password", responses={409: {}})
async def verify(body: Answering, host: TheHost, secrets: Secrets) -> Proven:
    return await verified(host, secrets, body.token, body.password)


@router.post("/forgot", status_code=202, summary="Ask for a mail to choose a new password")
async def forgot(body: Forgetting, network: Network, host: TheHost, secrets: Secrets) -> Told:
    """A known device is counted by itself: whoever else asks for such mails, and from wherever, cannot use up its own."""
    async with steady():
        digest = address_digest(secrets, body.email)
        owner = await host.store.owner("auth", "email", digest)
        account = await host.store.load(Account, owner) if owner is not None else None
        known = knows(secrets, account, body.device)
        await mail_asked(host, network, f"reset {digest}", known)
        if owner is not None:
            commands = Sessions(host, secrets).commands(owner)
            await commands.tell(owner, Account.ask_reset, new_id(), clock.now(), known)
    return TOLD


@router.post("/reset", summary="Answer that mail with a new password", responses={409: {}})
async def reset(body: Answering, host: TheHost, secrets: Secrets) -> Proven:
    """Every session of the account ends. A second factor stays as it is."""
    return await chosen_anew(host, secrets, body.token, body.password)


async def verified(host: Host, secrets: Kept, token: str, password: str) -> Proven:
    """The account whose mail this answers has a password now. Raises `Refused`."""
    account, intent = _answered(secrets, "verify", token)
    found = await host.store.load(Account, account)
    waiting = found.pending.get(intent)
    credential = waiting.credential if waiting else None
    if credential is None or not await matches(await secrets.reveal(account, KIND, credential), password):
        raise Refused(NO_MAIL if credential is None else "this is not the password that was chosen at registration")
    await Sessions(host, secrets).commands(account).tell(account, Account.verify, intent, credential, clock.now())
    return await _proven(host, secrets, account)


async def chosen_anew(host: Host, secrets: Kept, token: str, password: str) -> Proven:
    """The account whose mail this answers has another password now. Raises `Refused`."""
    account, intent = _answered(secrets, "reset", token)
    credential = await secrets.keep(account, KIND, await hashed(password))
    await Sessions(host, secrets).commands(account).tell(account, Account.reset, intent, credential, clock.now())
    return await _proven(host, secrets, account)


def device(secrets: Kept, account: UUID, credential: UUID) -> str:
    """What a device that has proven itself sends along at login, until the password changes."""
    return secrets.proof("device", account, credential)


def knows(secrets: Kept, account: Account | None, device: str | None) -> bool:
    """Whether what a device sends along is the account's, made since the password was last changed."""
    if account is None or account.credential is None or device is None:
        return False
    return secrets.proven("device", device) == (account.id, account.credential)


async def _proven(host: Host, secrets: Kept, account: UUID) -> Proven:
    """The answer to who has answered a mail; passwords that are no longer named go."""
    found = await host.store.load(Account, account)
    assert found.credential is not None
    named = [found.credential, *(one.credential for one in found.pending.values() if one.credential)]
    await secrets.tidy(account, KIND, named)
    return Proven(id=account, device=device(secrets, account, found.credential))


def _answered(secrets: Kept, purpose: str, token: str) -> tuple[UUID, UUID]:
    """Account and intent of a mail of ours. Raises `Refused`."""
    found = secrets.proven(purpose, token)
    if found is None:
        raise Refused(NO_MAIL)
    return found
