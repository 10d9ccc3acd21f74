"""Signing in and out.

Guessing is slowed down where it comes from: for an address and a network, and for a network. When many networks guess at one address
together, only devices that have signed in before (and answered mails) may try there for a while, so that guessing locks nobody out
of their own account. All of it is counted for addresses without an account as well.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import Field

from aggregates.auth import Account
from aggregates.kernel import NotFound, Refused
from aggregates.kernel.clock import new_id
from api.auth.fields import Code, Device, Email, Limits, Network, Password, Told, address_digest, limit
from api.auth.passwords import CHARS_MAX, hashed, matches
from api.auth.registration import KIND, device, knows
from api.auth.second import KNOWN, second
from api.auth.sessions import RefreshToken, Sessions, Tokens
from api.kernel import Body, Caller, Commands, Receipt, caller
from api.kernel.attempts import Attempts
from api.kernel.host import Host
from api.kernel.problems import unauthenticated
from api.kernel.route import Route
from api.kernel.secrets import Secrets as Kept
from api.kernel.stores import Secrets, TheHost

WRONG = "the address or the password is wrong, or the address is not verified yet"

router = APIRouter(prefix="/auth", tags=["auth"], route_class=Route)
Owner = Annotated[Caller, caller("accounts:write")]
Tried = Annotated[str, Field(min_length=1, max_length=CHARS_MAX, examples=["correct horse battery staple"])]


class Login(Body):
    email: Email
    password: Tried
    device: Device = None
    code: Annotated[Code | None, Field(description="Of accounts with a second factor.")] = None


class Refreshing(Body):
    refresh_token: RefreshToken


class Changing(Body):
    old: Tried
    new: Password


@router.post("/login", summary="Sign in", responses={401: {}})
async def login(body: Login, network: Network, host: TheHost, secrets: Secrets) -> Tokens:
    account, credential, where = await checked(host, secrets, network, body.email, body.password, body.device)
    sessions = Sessions(host, secrets)
    method = await second(host, secrets, account, body.code, where)
    session = await sessions.begin(account.id, method, credential)
    return await sessions.pair(account.id, session, device=device(secrets, account.id, credential))


@router.post("/refresh", summary="The next pair of tokens", responses={401: {}})
async def refresh(body: Refreshing, host: TheHost, secrets: Secrets) -> Tokens:
    return await Sessions(host, secrets).exchange(body.refresh_token)


@router.post("/logout", summary="End a session", responses={401: {}})
async def logout(body: Refreshing, host: TheHost, secrets: Secrets) -> Told:
    await Sessions(host, secrets).end(body.refresh_token)
    return Told(detail="the session is over; its last access token ends by itself within minutes")


@router.post("/logout-everywhere", summary="End all own sessions", responses={404: {}})
async def logout_everywhere(by: Owner, commands: Commands) -> Receipt:
    return await commands.tell(by.id, Account.sign_out_everywhere)


@router.post("/password", summary="Change the own password", responses={404: {}})
async def change_password(body: Changing, by: Owner, commands: Commands, host: TheHost, secrets: Secrets) -> Receipt:
    """Every session ends, this one too: sign in again."""
    found = await host.store.load(Account, by.id)
    tried = (limit("place", Limits()), f"password {by.id}")
    await Attempts(host.views).count(tried)
    old = found.credential
    if old is None or not await matches(await secrets.reveal(by.id, KIND, old), body.old):
        raise Refused("the old password is wrong")
    await Attempts(host.views).give_back([tried])
    new = await secrets.keep(by.id, KIND, await hashed(body.new))
    done = await commands.tell(by.id, Account.change_password, old, new)
    await secrets.drop(old)
    return done


async def checked(
    host: Host, secrets: Kept, network: str, email: str, password: str, known: str | None
) -> tuple[Account, UUID, str]:
    """The account whose address and password these are, the password's id, and where this comes from, for `second`.

    Raises the 401 problem, or 429.

    An address without an account costs the same: the same questions to the database, and a hash.
    """
    limits = Limits()
    digest = address_digest(secrets, email)
    id = await host.store.owner("auth", "email", digest)
    try:
        account = await host.store.load(Account, id or new_id())
    except NotFound:
        account = None
    credential = account.credential if account else None
    hash = await secrets.reveal(id or new_id(), KIND, credential or new_id())
    where = KNOWN if knows(secrets, account, known) else network
    tries = [(limit("place", limits), f"{digest} {where}")]
    if where == network:  # else it does not matter who else is in that network, or guesses from anywhere
        tries += [(limit("network", limits), network), (limit("address", limits), digest)]
    times = await Attempts(host.views).count(*tries)
    good = await matches(hash, password)
    if good and account is not None and credential is not None:
        await Attempts(host.views).give_back(tries)
        return account, credential, where
    if account is not None and where == network and times[2] == limits.address_tries:
        Sessions(host, secrets).tell_locked(account.id, limits.address_s)
    raise unauthenticated(WRONG, tried=True)
