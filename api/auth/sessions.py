"""Sessions: an access token for minutes, and a refresh token that is exchanged for the next pair, once.

A refresh token is `<session>.<number>.<digest>`, made by the master key: nothing of it is kept but up to which number the session's
tokens were exchanged. An older one that comes again was copied: its session ends. The last one may come again for a moment, when
its answer was lost or two tabs asked at once, and gets the same answer.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from base64 import urlsafe_b64encode
from dataclasses import replace
from datetime import timedelta
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from aggregates.auth import Account, Method, Session
from aggregates.kernel import Commands, KernelError, NotFound, Origin, clock
from api.auth.signing import ACCESS_S, Signer
from api.kernel.host import Host
from api.kernel.problems import unauthenticated
from api.kernel.secrets import Secrets
from infra.logs import correlation

log = logging.getLogger(__name__)

KIND = "session"
AGAIN_S = 10.0  # so long the last refresh token may come again
TOKEN_CHARS_MAX = 200
_telling: set[asyncio.Task[None]] = set()
WRONG = "this refresh token is not good, or not any more: sign in again"


class Tokens(BaseModel):
    """A session's pair (RFC 6749). `device`: send it with the next login from here; it keeps the way open while others guess."""

    access_token: str = Field(description="JWT, ES256.", examples=["eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiI…"])
    token_type: Literal["Bearer"] = "Bearer"
    expires_in: int = Field(description="Seconds.", examples=[ACCESS_S])
    refresh_token: str = Field(description="For one use.", examples=["0191d1f09d3b7c3e8f005c2a7d1f4b6a.1.aGVsbG8"])
    device: str | None = Field(None, examples=["AZHR8J07fD6PAFwqfR9Lag"])


RefreshToken = Annotated[
    str,
    Field(
        min_length=1,
        max_length=TOKEN_CHARS_MAX,
        pattern=r"^[!-~]+$",
        examples=["0191d1f09d3b7c3e8f005c2a7d1f4b6a.1.aGVsbG8"],
    ),
]


class Sessions:
    """Begins, continues and ends sessions."""

    def __init__(self, host: Host, secrets: Secrets) -> None:
        self._host, self._secrets = host, secrets
        self.signer = Signer.of(host, secrets)

    def commands(self, account: UUID) -> Commands:
        """The door for what an account does before it has a token."""
        return self._host.store.commands(Origin(actor=f"user:{account}", correlation=correlation.get()))

    async def begin(
        self,
        account: UUID,
        method: Method,
        credential: UUID | None = None,
        client: UUID | None = None,
        scope: str | None = None,
        session: UUID | None = None,
    ) -> UUID:
        """A new session: its row first, then the event that makes it count. Raises `Refused`."""
        session = await self._secrets.keep(account, KIND, b"", session)
        await self.commands(account).tell(
            account, Account.sign_in, session, method, clock.now(), credential, client, scope
        )
        found = await self._host.store.load(Account, account)
        await self._secrets.tidy(account, KIND, found.sessions)  # rows of sessions that are over
        return session

    async def alive(self, account: UUID, session: UUID, client: UUID | None = None) -> tuple[Account, Session]:
        """The session, which must be that client's. Raises the 401 problem when it is over."""
        try:
            found = await self._host.store.load(Account, account)
        except NotFound:
            raise unauthenticated(WRONG, tried=True) from None
        alive = found.alive(session, clock.now())
        if alive is None or alive.client != client:
            raise unauthenticated(WRONG, tried=True)
        return found, alive

    async def pair(
        self,
        account: UUID,
        session: UUID,
        number: int = 1,
        device: str | None = None,
        client: UUID | None = None,
        scope: str | None = None,
    ) -> Tokens:
        """The tokens of a session that is alive, the access token for `scope` or all of the session's."""
        found, alive = await self.alive(account, session, client)
        if scope is not None:
            alive = replace(alive, scope=scope)
        return Tokens(
            access_token=await self.signer.access(found, session, alive),
            expires_in=ACCESS_S,
            refresh_token=self._token(account, session, number),
            device=device,
        )

    async def exchange(self, token: str, client: UUID | None = None, scope: str | None = None) -> Tokens:
        """The next pair. Raises the 401 problem; a token that was exchanged before ends its session."""
        account, session, number = self.read(token)
        await self.alive(account, session, client)  # another client's token is not used up, nor does it end anything
        if not await self._secrets.use(session, KIND, number):
            last = await self._secrets.last_use(session, KIND)
            if last is None or last[0] != number or last[1] >= AGAIN_S:
                log.warning("refresh token %d of session %s came again", number, session)
                await self.commands(account).tell(account, Account.reused, session)
                await self._secrets.drop(session)
                raise unauthenticated(WRONG, tried=True)
        return await self.pair(account, session, number + 1, None, client, scope)

    async def end(self, token: str) -> None:
        """Sign out: the session is over. Raises the 401 problem for a token of one that is over already."""
        account, session, _ = self.read(token)
        await self.alive(account, session)
        await self.commands(account).tell(account, Account.sign_out, session)
        await self._secrets.drop(session)

    def tell_locked(self, account: UUID, seconds: float) -> None:
        """Record a lock without letting the one who guesses wait for it: an address without an account has nothing to record."""

        async def tell() -> None:
            try:
                now = clock.now()
                await self.commands(account).tell(account, Account.lock, now + timedelta(seconds=seconds), now)
            except KernelError:
                log.exception("the lock of %s holds, but could not be recorded", account)

        task = asyncio.ensure_future(tell())
        _telling.add(task)
        task.add_done_callback(_telling.discard)

    def read(self, token: str) -> tuple[UUID, UUID, int]:
        """Account, session and number of a refresh token that we made. Raises the 401 problem."""
        try:
            whose, which, number, _ = token.split(".")
            account, session = UUID(whose), UUID(which)
            made = self._token(account, session, int(number)) if len(number) <= 13 and number.isascii() else ""
        except ValueError:
            raise unauthenticated(WRONG, tried=True) from None
        if not hmac.compare_digest(made.encode(), token.encode()):
            raise unauthenticated(WRONG, tried=True)
        return account, session, int(number)

    def _token(self, account: UUID, session: UUID, number: int) -> str:
        digest = self._secrets.digest("refresh", account.bytes, session.bytes, number.to_bytes(8, "big"))
        return f"{account.hex}.{session.hex}.{number}.{urlsafe_b64encode(digest).decode().rstrip('=')}"
