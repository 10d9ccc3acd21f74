"""Fields of requests, digests and limits that the routes of auth share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.auth.passwords import CHARS_MAX, CHARS_MIN
from api.kernel.attempts import Attempts, Limit
from api.kernel.call import Call
from api.kernel.host import Host
from api.kernel.piece import Piece
from api.kernel.secrets import Secrets

EMAIL_CHARS_MAX = 254
# What browsers take for an address (WHATWG), with a domain of at least two labels. Other scripts' domains come as punycode.
EMAIL = (
    r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    r"(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+$"
)
FLOOR_S = 0.3
"""What must not tell whether there is an account is answered no sooner than this: longer than either way takes."""

Email = Annotated[
    str,
    Field(max_length=EMAIL_CHARS_MAX, pattern=EMAIL, description="Case does not matter.", examples=["ada@example.com"]),
]
Password = Annotated[str, Field(min_length=CHARS_MIN, max_length=CHARS_MAX, examples=["correct horse battery staple"])]
Code = Annotated[
    str,
    Field(
        min_length=6,
        max_length=20,
        pattern="^[0-9A-Za-z-]+$",
        description="Six digits of the authenticator, or a recovery code.",
        examples=["287082"],
    ),
]
Device = Annotated[
    str | None,
    Field(max_length=120, pattern="^[A-Za-z0-9_-]+$", description="`device` of an earlier answer, if there was one."),
]
Proof = Annotated[
    str,
    Field(
        min_length=1,
        max_length=120,
        pattern="^[A-Za-z0-9_-]+$",
        description="What the mail says.",
        examples=["AZHR8J07fD6PAFwqfR9LagGR0fCdO3w-jwBcKn0fS2o"],
    ),
]


class Limits(BaseSettings):
    """How often what can be guessed may be tried; each can be set as TITAN_AUTH_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="TITAN_AUTH_", frozen=True)

    place_tries: int = Field(10, ge=1, description="wrong passwords for one address from one network, or known device")
    place_s: float = Field(900, gt=0)
    address_tries: int = Field(50, ge=1, description="wrong ones for one address from everywhere but known devices")
    address_s: float = Field(3600, gt=0)
    network_tries: int = Field(200, ge=1, description="wrong ones from one network for any addresses")
    network_s: float = Field(900, gt=0)
    code_tries: int = Field(5, ge=1, description="wrong codes of a second factor from one network, or known device")
    code_s: float = Field(900, gt=0)
    code_day_tries: int = Field(20, ge=1, description="the same from everywhere but known devices, and from these")
    code_day_s: float = Field(86_400, gt=0)
    mail_tries: int = Field(30, ge=1, description="mails that one network may ask for")
    mail_s: float = Field(3600, gt=0)
    same_mail_tries: int = Field(3, ge=1, description="of one kind to one address, from one network or known device")
    same_mail_s: float = Field(3600, gt=0)


class Told(BaseModel):
    """Nothing that depends on whether there is such an account."""

    detail: str = Field(examples=["if this can be done, a mail says how it goes on"])


class NetworkPiece(Piece[str]):
    """Where a request comes from."""

    def take(self, call: Call) -> str:
        return call.network


Network = Annotated[str, Depends(NetworkPiece())]


def address_digest(secrets: Secrets, email: str) -> str:
    """What an address is found by: the same for the same mailbox, however it is typed."""
    return secrets.digest("email", email.casefold().encode()).hex()


def limit(name: str, of: Limits) -> Limit:
    """One of the limits, by the first word of its settings."""
    return Limit(f"auth.{name}", getattr(of, f"{name}_tries"), getattr(of, f"{name}_s"))


async def mail_asked(host: Host, network: str, mail: str = "", device: bool = False) -> None:
    """Count a mail that somebody asks for; `mail`: its kind, and the digest of its address. Raises the 429 problem when this network,
    or the known `device`, asked for too many. Whether there is such an account plays no part.
    """
    limits, tries = Limits(), []
    if mail:
        tries.append((limit("same_mail", limits), f"{mail} {'device' if device else network}"))
    if not device:
        tries.append((limit("mail", limits), network))
    await Attempts(host.views).count(*tries, what="too many mails were asked for: look for those that came")


@asynccontextmanager
async def steady() -> AsyncIterator[None]:
    """Let the work in here take `FLOOR_S` at the least, however it ends: its time says nothing."""
    began = time.monotonic()
    try:
        yield
    finally:
        await asyncio.sleep(max(0.0, began + FLOOR_S - time.monotonic()))
