"""The second factor: time-based codes (RFC 6238), each good once, and recovery codes for when the device is lost.

Guesses at codes are counted where they come from, as those at passwords are, so that who has the password locks nobody out: devices that
have signed in before are counted by themselves, and so is who is signed in. Recovery codes are not for 64 bits are not guessed:
they open the account whoever guesses at the rest, as does a reset by mail, whose answer makes a device known.

How much guessing gains, from however many networks: three of 10^6 codes are good at a time (`STEPS`), so each guess is right with 3 in
10^6. Of an account's codes 20 a day may be wrong (`code_day_tries`): who has the password gets in with 6 in 100,000 a day, 2.2 % in a
year, until the password is changed. Who has a known device's proof as well, or the mailbox, has 20 more.
"""

from __future__ import annotations

import hmac
from secrets import token_hex
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID, uuid5

import pyotp
from fastapi import APIRouter
from pydantic import BaseModel, Field

from aggregates.auth import Account, Method
from aggregates.kernel import Refused, clock
from aggregates.kernel.clock import new_id
from api.auth.fields import Code, Limits, limit
from api.auth.sessions import Sessions
from api.kernel import Body, Caller, Commands, Receipt, Vault, caller
from api.kernel.attempts import Attempts, Limit
from api.kernel.host import Host
from api.kernel.problems import Problem
from api.kernel.route import Route
from api.kernel.secrets import Secrets as Kept
from api.kernel.stores import Secrets, TheHost

TOTP, RECOVERY = "totp", "recovery code"
STEP_S = 30
STEPS = (0, -1, 1)  # clocks differ, and people are slow
RECOVERY_CODES = 10
WRONG = "this code is wrong, or was used before"
KNOWN, SIGNED_IN = "device", "session"  # where a try comes from, instead of a network: only who has a proof, or a token

router = APIRouter(prefix="/auth/totp", tags=["auth"], route_class=Route)
Owner = Annotated[Caller, caller("accounts:write")]


class Offer(BaseModel):
    """For the authenticator; `uri` is what its QR code holds. It counts once one of its codes is confirmed."""

    factor: UUID
    secret: str = Field(examples=["JBSWY3DPEHPK3PXP"])
    uri: str = Field(examples=["otpauth://totp/Titan:ada%40example.com?secret=JBSWY3DPEHPK3PXP&issuer=Titan"])


class RecoveryCodes(BaseModel):
    """Each is good once instead of a code. They are shown this one time."""

    recovery_codes: list[str] = Field(examples=[["3f2a-9c41-77be-0d15"]])


class Confirming(Body):
    factor: UUID
    code: Code


class Proving(Body):
    code: Code


@router.post("", summary="A second factor to set up", responses={404: {}, 409: {}})
async def offer(by: Owner, host: TheHost, secrets: Secrets, vault: Vault) -> Offer:
    account = await host.store.load(Account, by.id)
    if account.factor is not None:
        raise Refused("there is a second factor: disable it first")
    secret = pyotp.random_base32()
    factor = await secrets.keep(by.id, TOTP, secret.encode())
    issuer = urlsplit(host.settings.issuer).hostname
    uri = pyotp.TOTP(secret).provisioning_uri(name=await vault.open(account.email), issuer_name=issuer)
    return Offer(factor=factor, secret=secret, uri=uri)


@router.post("/confirm", summary="Enable it, by its first code", responses={404: {}, 409: {}})
async def confirm(body: Confirming, by: Owner, host: TheHost, secrets: Secrets) -> RecoveryCodes:
    tried = await _tried(host, secrets, by.id, SIGNED_IN)
    if not await _is_code(secrets, by.id, body.factor, body.code):
        raise Refused(WRONG)
    await Attempts(host.views).give_back(tried)
    batch, codes = await _recovery_codes(secrets, by.id)
    await Sessions(host, secrets).commands(by.id).tell(by.id, Account.enable_second_factor, body.factor, batch)
    return RecoveryCodes(recovery_codes=codes)


@router.post("/recovery", summary="New recovery codes instead of the old ones", responses={404: {}, 409: {}})
async def renew(body: Proving, by: Owner, host: TheHost, secrets: Secrets) -> RecoveryCodes:
    await _proven(host, secrets, by.id, body.code)
    batch, codes = await _recovery_codes(secrets, by.id)
    await Sessions(host, secrets).commands(by.id).tell(by.id, Account.renew_recovery_codes, batch)
    return RecoveryCodes(recovery_codes=codes)


@router.post("/disable", summary="Do without the second factor", responses={404: {}})
async def disable(body: Proving, by: Owner, commands: Commands, host: TheHost, secrets: Secrets) -> Receipt:
    await _proven(host, secrets, by.id, body.code)
    return await commands.tell(by.id, Account.disable_second_factor)


async def second(host: Host, secrets: Kept, account: Account, code: str | None, where: str) -> Method:
    """By what somebody signs in who has shown the password. `where`: from which network, or `KNOWN`, or `SIGNED_IN`.

    Raises the problem `second-factor`, or 429.
    """
    if account.factor is None:
        return "password"
    if code is None:
        raise Problem("second-factor", "a code of the authenticator is needed, or a recovery code")
    if code.isdigit() and len(code) == 6:
        tried = await _tried(host, secrets, account.id, where)
        if await _is_code(secrets, account.id, account.factor, code):
            await Attempts(host.views).give_back(tried)
            return "password_and_code"
    elif account.recovery is not None and await secrets.use(_named(secrets, account.recovery, code), RECOVERY):
        await (
            Sessions(host, secrets).commands(account.id).tell(account.id, Account.recovery_code_used, account.recovery)
        )
        return "password_and_recovery_code"
    raise Problem("second-factor", WRONG)


async def _proven(host: Host, secrets: Kept, id: UUID, code: str) -> None:
    """Raises `Refused` unless it is a code of the account's second factor."""
    account = await host.store.load(Account, id)
    if account.factor is None:
        raise Refused("there is no second factor")
    try:
        await second(host, secrets, account, code, SIGNED_IN)
    except Problem as problem:
        if problem.kind == "second-factor":
            raise Refused(WRONG) from problem
        raise


async def _tried(host: Host, secrets: Kept, account: UUID, where: str) -> list[tuple[Limit, str]]:
    """Count a try, and answer with what to give back when it was right. Raises the 429 problem when there were too many."""
    limits, whole = Limits(), where if where in (KNOWN, SIGNED_IN) else "everywhere"
    tries = [(limit("code", limits), f"{account} {where}"), (limit("code_day", limits), f"{account} {whole}")]
    times = await Attempts(host.views).count(*tries)
    if times[1] == limits.code_day_tries:
        Sessions(host, secrets).tell_locked(account, limits.code_day_s)
    return tries


async def _is_code(secrets: Kept, account: UUID, factor: UUID, code: str) -> bool:
    """Whether it is a code of now that was not used before, nor a later one."""
    secret = await secrets.reveal(account, TOTP, factor)
    if secret is None:
        return False
    totp, now = pyotp.TOTP(secret.decode()), int(clock.now().timestamp()) // STEP_S
    step = next((now + by for by in STEPS if hmac.compare_digest(totp.at((now + by) * STEP_S), code)), None)
    return step is not None and await secrets.use(factor, TOTP, step)


async def _recovery_codes(secrets: Kept, account: UUID) -> tuple[UUID, list[str]]:
    """A batch of new codes, kept under names that only the codes lead to."""
    batch = new_id()
    codes = ["-".join(token_hex(2) for _ in range(4)) for _ in range(RECOVERY_CODES)]
    for code in codes:
        await secrets.keep(account, RECOVERY, b"", _named(secrets, batch, code))
    return batch, codes


def _named(secrets: Kept, batch: UUID, code: str) -> UUID:
    plain = code.lower().replace("-", "")
    return uuid5(batch, secrets.digest(RECOVERY, batch.bytes, plain.encode()).hex())
