"""Tokens of our own: ES256 keys that rotate, published for whoever verifies, and the claims of what is signed."""

from __future__ import annotations

import json
import logging
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

log = logging.getLogger(__name__)

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

    async def rotate(self, newest: UUID | None = None, ahead: timedelta = PUBLISHED_AHEAD) -> None:
        """Add a key that signs from `ahead` on. `newest`: only if no other was added meanwhile."""
        await self._keyring()
        now = clock.now()
        kid = await self._made()
        await self._commands().tell(KEYRING, Keyring.rotate, kid, now + ahead, now, newest)
        await self._tidy()

    async def revoke(self, kid: UUID) -> None:
        """What the key has signed is refused within a minute, everywhere. If this dies half-way, the next look unpublishes it."""
        await self._keyring()
        await self._commands().tell(KEYRING, Keyring.revoke, kid, clock.now())
        async with self._host.views.connection() as connection:
            await connection.execute("DELETE FROM published_keys WHERE kid = %s", (str(kid),))
        await self._secrets.drop(kid)
        self._looked = float("-inf")

    async def _current(self) -> ECKey:
        if self._key is None or time.monotonic() > self._looked + LOOK_S:
            keyring = await self._keyring()
            newest, since = next(reversed(keyring.keys.items()))
            if since + ROTATE_AFTER < clock.now():
                await self.rotate(newest)
            kid = keyring.current(clock.now())
            if self._key is None or self._key.kid != str(kid):
                self._key = await self._revealed(kid) or await self._instead()
            await self._follow()
            self._looked = time.monotonic()
        return self._key

    async def _revealed(self, kid: UUID) -> ECKey | None:
        private = await self._secrets.reveal(KEYRING, KIND, kid)
        return ECKey.import_key(json.loads(private)) if private is not None else None

    async def _instead(self) -> ECKey:
        """A key to sign with at once: the secrets are from a copy that is older than the one whose turn it is."""
        await self.rotate(next(reversed((await self._keyring()).keys)), timedelta())
        kid = (await self._keyring()).current(clock.now())
        log.error("the secrets lack the key that is to sign: %s signs instead", kid)
        key = await self._revealed(kid)
        if key is None:
            raise NotFound(f"there is no key {kid}")
        return key

    async def _follow(self) -> None:
        """Make the table say what the keyring says: it may have been lost, or come from an old copy. What is named is published, what was
        retired is not; a key that was made a moment ago and that nothing names yet stays.
        """
        async with self._host.views.connection() as connection:
            rows = await connection.execute("SELECT kid FROM published_keys")
            published = {kid for (kid,) in await rows.fetchall()}
        for kid in (await self._keyring()).keys:
            if str(kid) not in published and (key := await self._revealed(kid)) is not None:
                await self._publish(key)
        retired = [
            str(kid) for kid in (await self._keyring()).retired
        ]  # after that: one may have been retired meanwhile
        async with self._host.views.connection() as connection:
            await connection.execute("DELETE FROM published_keys WHERE kid = ANY(%s)", (retired,))

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
        await self._publish(key)
        return kid

    async def _publish(self, key: ECKey) -> None:
        async with self._host.views.connection() as connection:
            await connection.execute(
                "INSERT INTO published_keys (kid, public) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (key.kid, json.dumps(key.as_dict(private=False))),
            )

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
