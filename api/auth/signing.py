"""Tokens of our own: ES256 keys that rotate, published for whoever verifies, and the claims of what is signed."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from joserfc import jwt
from joserfc.jwk import ECKey

from aggregates.auth import KEYRING, Account, Keyring, Session
from aggregates.kernel import Commands, Conflict, NotFound, Origin, clock
from aggregates.kernel.clock import new_id
from api.kernel.host import Host
from api.kernel.secrets import Secrets
from infra.logs import correlation

ACCESS_S = 600
"""An access token's life: as long may one be used after its session was ended."""
KIND = "signing key"
ROTATE_AFTER = timedelta(days=90)
PUBLISHED_AHEAD = timedelta(
    minutes=5
)  # a key is published for so long before it signs: longer than verifiers keep a set
LOOK_S = 30.0  # so often a process looks which key is in use

SIGNERS: dict[Host, Signer] = {}  # one process has one host


class Signer:
    """Signs with the key that is in use, making the first one, and the next one when it is time."""

    def __init__(self, host: Host, secrets: Secrets) -> None:
        self._host, self._secrets = host, secrets
        self._key: ECKey | None = None
        self._looked = float("-inf")

    @classmethod
    def of(cls, host: Host, secrets: Secrets) -> Signer:
        if host not in SIGNERS:
            SIGNERS[host] = cls(host, secrets)
        return SIGNERS[host]

    async def sign(self, claims: dict[str, Any], kind: str, seconds: int) -> str:
        """A JWT: `claims`, and iss, iat and exp. `kind`: its `typ`."""
        key = await self._current()
        now = int(time.time())
        whole = {"iss": self._host.settings.issuer, "iat": now, "exp": now + seconds, **claims}
        return str(jwt.encode({"alg": "ES256", "kid": key.kid, "typ": kind}, whole, key))

    async def access(self, account: Account, id: UUID, session: Session) -> str:
        """An access token of a session (RFC 9068): what the account's role may, narrowed to the session's scope."""
        claims = {
            "aud": self._host.settings.jwt_audience,
            "sub": str(account.id),
            "role": account.role,
            "sid": str(id),
            "jti": str(new_id()),
            "client_id": str(session.client or "titan"),
        }
        if session.scope is not None:
            claims["scope"] = session.scope
        return await self.sign(claims, "at+jwt", ACCESS_S)

    async def jwks(self) -> list[dict[str, Any]]:
        """Every public key whose tokens are accepted, the file's too."""
        await self._current()  # whoever asks before the first sign-in finds the key that will sign it
        async with self._host.views.connection() as connection:
            rows = await connection.execute("SELECT public FROM published_keys ORDER BY published_at, kid")
            published = [dict(public) for (public,) in await rows.fetchall()]
        return published + self._host.keys.filed()

    async def rotate(self, newest: UUID | None = None) -> None:
        """Add a key that signs from `PUBLISHED_AHEAD` on. `newest`: only if no other was added meanwhile."""
        await self._keyring()
        now = clock.now()
        kid = await self._made()
        await self._commands().tell(KEYRING, Keyring.rotate, kid, now + PUBLISHED_AHEAD, now, newest)
        await self._tidy()

    async def revoke(self, kid: UUID) -> None:
        """What the key has signed is refused within a minute, everywhere. Unpublished first: repeated, if this dies half-way."""
        (await self._keyring()).may_revoke(kid, clock.now())
        async with self._host.views.connection() as connection:
            await connection.execute("DELETE FROM published_keys WHERE kid = %s", (str(kid),))
        await self._commands().tell(KEYRING, Keyring.revoke, kid, clock.now())
        await self._secrets.drop(kid)
        self._looked = float("-inf")

    async def _current(self) -> ECKey:
        if self._key is None or time.monotonic() > self._looked + LOOK_S:
            keyring = await self._keyring()
            kid = keyring.current(clock.now())
            newest, since = next(reversed(keyring.keys.items()))
            if since + ROTATE_AFTER < clock.now():
                await self.rotate(newest)
            if self._key is None or self._key.kid != str(kid):
                private = await self._secrets.reveal(KEYRING, KIND, kid)
                if private is None:
                    raise NotFound(f"there is no key {kid}")
                self._key = ECKey.import_key(json.loads(private))
            self._looked = time.monotonic()
        return self._key

    async def _keyring(self) -> Keyring:
        try:
            return await self._host.store.load(Keyring, KEYRING)
        except NotFound:
            kid = await self._made()
            with suppress(Conflict):  # another process was first: its key is the one, and ours goes unnamed
                await self._commands().open_as(KEYRING, Keyring, kid, clock.now())
            return await self._host.store.load(Keyring, KEYRING)

    async def _made(self) -> UUID:
        """A new key, kept and published. It signs nothing before the keyring names it."""
        kid = new_id()
        key = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256", "kid": str(kid)}, private=True)
        await self._secrets.keep(KEYRING, KIND, json.dumps(key.as_dict(private=True)).encode(), kid)
        async with self._host.views.connection() as connection:
            await connection.execute(
                "INSERT INTO published_keys (kid, public) VALUES (%s, %s)",
                (str(kid), json.dumps(key.as_dict(private=False))),
            )
        return kid

    async def _tidy(self) -> None:
        """Drop keys that the keyring does not name: retired ones, and those of processes that died making them."""
        named = (await self._host.store.load(Keyring, KEYRING)).keys
        async with self._host.views.connection() as connection:
            await connection.execute(
                "DELETE FROM published_keys WHERE kid <> ALL(%s) AND published_at < now() - interval '1 day'",
                ([str(kid) for kid in named],),
            )
        await self._secrets.tidy(KEYRING, KIND, named)

    def _commands(self) -> Commands:
        return self._host.store.commands(Origin(actor="service:auth", correlation=correlation.get()))
