"""Secrets: what proves who somebody is. Never in an event, a topic or a log; in one table, sealed with the master key.

A secret and the event that makes it count are two writes, in this order: the secret is kept under a new id, where it means
nothing, and then an event names the id. Whatever dies in between leaves a row that no event names: nobody can use it, and it
goes when its subject's next secret is kept. So no event ever names a secret that is not there, and none counts without its event.
A secret that is to be used once is used up in the table first and told as an event afterwards: dying in between, it is spent.
"""

from __future__ import annotations

import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aggregates.kernel import Unavailable
from aggregates.kernel.clock import new_id
from api.kernel.vault import KEY_BYTES, NONCE_BYTES, Pool

TABLE = """
CREATE TABLE IF NOT EXISTS secrets (
    id uuid PRIMARY KEY,
    subject uuid NOT NULL,
    kind text NOT NULL,
    sealed bytea NOT NULL,
    used bigint NOT NULL DEFAULT 0,
    used_at timestamptz,
    kept_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS secrets_subject ON secrets (subject)
"""
UNNAMED_S_MAX = 86_400  # a secret that no event has named by then never will be
PROOF_BYTES = 32


class Secrets:
    """Keeps secrets, and makes digests and proofs that only a holder of the master key can make."""

    def __init__(self, pool: Pool, master: bytes) -> None:
        self._pool, self._master = pool, master
        self._seal = AESGCM(self._derived("secrets"))
        self._keys: dict[str, bytes] = {}

    def digest(self, purpose: str, *parts: bytes) -> bytes:
        """32 bytes that nobody without the master key can make or check; `purpose` keeps one use from another's."""
        if purpose not in self._keys:
            self._keys[purpose] = self._derived(purpose)
        made = hmac.new(self._keys[purpose], digestmod="sha256")
        for part in parts:
            made.update(len(part).to_bytes(4, "big") + part)
        return made.digest()

    def proof(self, purpose: str, subject: UUID, intent: UUID) -> str:
        """A text for the one who is to prove something: made anew whenever it is needed, and kept nowhere."""
        made = subject.bytes + intent.bytes + self.digest(purpose, subject.bytes, intent.bytes)
        return urlsafe_b64encode(made).decode().rstrip("=")

    def proven(self, purpose: str, text: str) -> tuple[UUID, UUID] | None:
        """The subject and the intent of a `proof` of ours, None for anything else."""
        try:
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except ValueError:
            return None
        if len(raw) != 2 * 16 + PROOF_BYTES:
            return None
        subject, intent = UUID(bytes=raw[:16]), UUID(bytes=raw[16:32])
        good = hmac.compare_digest(raw[32:], self.digest(purpose, subject.bytes, intent.bytes))
        return (subject, intent) if good else None

    async def keep(self, subject: UUID, kind: str, value: bytes, id: UUID | None = None) -> UUID:
        """Store a secret; the id is for the event that will make it count."""
        id = id or new_id()
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + self._seal.encrypt(nonce, value, id.bytes + kind.encode())
        async with self._pool.connection() as connection:
            await connection.execute(
                "INSERT INTO secrets (id, subject, kind, sealed) VALUES (%s, %s, %s, %s)", (id, subject, kind, sealed)
            )
        return id

    async def reveal(self, subject: UUID, kind: str, id: UUID) -> bytes | None:
        """The subject's secret, or None without one. Raises `Unavailable` under another master key."""
        async with self._pool.connection() as connection:
            rows = await connection.execute(
                "SELECT sealed FROM secrets WHERE (id, kind, subject) = (%s, %s, %s)", (id, kind, subject)
            )
            row = await rows.fetchone()
        if row is None:
            return None
        sealed = bytes(row[0])
        try:
            return self._seal.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], id.bytes + kind.encode())
        except InvalidTag:
            raise Unavailable("secrets cannot be read: this is another master key") from None

    async def use(self, id: UUID, kind: str, number: int = 1) -> bool:
        """Use a secret up to `number` (a code's time step; 1 for once at all). False when it was used so far before."""
        async with self._pool.connection() as connection:
            done = await connection.execute(
                "UPDATE secrets SET used = %s, used_at = now() WHERE (id, kind) = (%s, %s) AND used < %s",
                (number, id, kind, number),
            )
        return done.rowcount == 1

    async def last_use(self, id: UUID, kind: str) -> tuple[int, float] | None:
        """Up to which number a secret was used, and how many seconds ago; None when it was not, or is not there."""
        async with self._pool.connection() as connection:
            rows = await connection.execute(
                "SELECT used, extract(epoch FROM now() - used_at)::float8 FROM secrets"
                " WHERE (id, kind) = (%s, %s) AND used_at IS NOT NULL",
                (id, kind),
            )
            row = await rows.fetchone()
        return None if row is None else (row[0], row[1])

    async def drop(self, id: UUID) -> None:
        """Delete a secret that no longer counts."""
        async with self._pool.connection() as connection:
            await connection.execute("DELETE FROM secrets WHERE id = %s", (id,))

    async def tidy(self, subject: UUID, kind: str, named: Collection[UUID]) -> None:
        """Delete a subject's secrets of that kind that its events do not name, or no longer."""
        async with self._pool.connection() as connection:
            await connection.execute(
                "DELETE FROM secrets WHERE (subject, kind) = (%s, %s) AND id <> ALL(%s)"
                " AND kept_at < now() - make_interval(secs => %s)",
                (subject, kind, list(named), UNNAMED_S_MAX),
            )

    def _derived(self, purpose: str) -> bytes:
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"titan {purpose}".encode()).derive(self._master)


async def forget(pool: Pool, subjects: Collection[UUID]) -> int:
    """Delete all secrets of these subjects. How many there were."""
    async with pool.connection() as connection:
        gone = await connection.execute("DELETE FROM secrets WHERE subject = ANY(%s)", (list(subjects),))
    return gone.rowcount
