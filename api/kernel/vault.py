"""Personal data: encrypted with a key per person, so that erasing one row erases the person from every topic and table.

A sealed text is `sealed:1:<subject>:<base64 of nonce and AES-256-GCM ciphertext>`, the subject being authenticated with
it. Keys lie in Postgres, each wrapped by the master key of the settings. A process remembers a key for `CACHED_S` at the
most: so long may an erased text still be readable.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import Refused, Sealed, Unavailable

Pool = AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]

log = logging.getLogger(__name__)

TABLE = """
CREATE TABLE IF NOT EXISTS vault_keys (
    subject uuid PRIMARY KEY,
    wrapped bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
"""
KEY_BYTES, NONCE_BYTES = 32, 12
ERASED = b""  # instead of a key: there is none, and there will be none
CACHED_S = 30.0
CACHED_KEYS_MAX = 10_000
TEXT_CHARS_MAX = 100_000
_SEALED = re.compile(r"sealed:1:([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}):([A-Za-z0-9+/=]+)")


def read_master_key(path: Path) -> bytes:
    """Raises `ValueError` or `OSError` naming the file when it does not hold 32 bytes in base64."""
    key = base64.b64decode(path.read_text().strip(), validate=True)
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} must hold {KEY_BYTES} bytes in base64")
    return key


@lru_cache(maxsize=16)
def derived_key(path: Path, use: str) -> bytes:
    """A key of 32 bytes for one use, from the master key in a file. Raises `ValueError` or `OSError` as `read_master_key`."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=use.encode()).derive(read_master_key(path))


class Vault:
    """Seals and opens personal data."""

    def __init__(self, pool: Pool, master: bytes) -> None:
        self._pool, self._master = pool, AESGCM(master)
        self._cache: dict[UUID, tuple[float, AESGCM]] = {}

    async def seal(self, subject: UUID, text: str) -> Sealed:
        """`text` (at most 100,000 characters) as only the holder of the subject's key reads it; makes the key if need be."""
        return (await self.seal_all(subject, text))[0]

    async def seal_all(self, subject: UUID, *texts: str) -> list[Sealed]:
        """Several texts of one subject, each by itself."""
        cached = self._cache.get(subject)
        if cached is not None and time.monotonic() < cached[0]:
            key = cached[1]
        else:
            key = (await self._keys([subject]))[subject] or await self._made(subject)
        nonces, bound = os.urandom(NONCE_BYTES * len(texts)), subject.bytes
        prefix, sealed = f"sealed:1:{subject}:", []
        for number, text in enumerate(texts):
            if len(text) > TEXT_CHARS_MAX:
                raise ValueError(f"a sealed text has at most {TEXT_CHARS_MAX} characters")
            nonce = nonces[number * NONCE_BYTES : (number + 1) * NONCE_BYTES]
            closed = binascii.b2a_base64(nonce + key.encrypt(nonce, text.encode(), bound), newline=False)
            sealed.append(Sealed(prefix + closed.decode()))
        return sealed

    async def open(self, sealed: str) -> str:
        """The text, or "" when the subject's key was erased. Raises `ValueError` for what was never sealed."""
        found = _SEALED.fullmatch(sealed)
        if found is None:
            raise ValueError("not a sealed text")
        subject = UUID(found[1])
        return _opened((await self._keys([subject]))[subject], subject, found[2])

    async def open_all(self, value: Any, only: UUID | None = None) -> Any:
        """The same JSON-like value with every sealed text in it opened; their keys are fetched in one query.

        `only`: what is not this subject's is "".
        """
        subjects: set[UUID] = set()
        _subjects(value, subjects)
        if not subjects:
            return value
        wanted = subjects if only is None else subjects & {only}
        return _rendered(value, dict.fromkeys(subjects - wanted) | await self._keys(wanted))

    async def erase(self, subject: UUID) -> bool:
        """Forget a person: what was sealed for them is "" from now on, everywhere. False when there was no key."""
        self._cache.pop(subject, None)
        async with self._pool.connection() as connection:
            gone = await connection.execute(
                "DELETE FROM vault_keys WHERE subject = %s AND wrapped <> %s", (subject, ERASED)
            )
        self._cache.pop(subject, None)  # read again while the delete was on its way
        return gone.rowcount > 0

    async def _keys(self, subjects: Iterable[UUID]) -> dict[UUID, AESGCM | None]:
        now = time.monotonic()
        found: dict[UUID, AESGCM | None] = {}
        missing = []
        for subject in subjects:
            cached = self._cache.get(subject)
            if cached is not None and now < cached[0]:
                found[subject] = cached[1]
            else:
                missing.append(subject)
        if missing:
            async with self._pool.connection() as connection:
                rows = await connection.execute(
                    "SELECT subject, wrapped FROM vault_keys WHERE subject = ANY(%s)", (missing,)
                )
                wrapped = {subject: bytes(key) for subject, key in await rows.fetchall()}
            for subject in missing:
                key = self._unwrap(subject, wrapped[subject]) if wrapped.get(subject) else None
                found[subject] = key
                if key is not None:  # a key that is not there may be made by another process at any moment
                    self._remember(subject, key)
        return found

    async def _made(self, subject: UUID) -> AESGCM:
        nonce = os.urandom(NONCE_BYTES)
        wrapped = nonce + self._master.encrypt(nonce, os.urandom(KEY_BYTES), subject.bytes)
        async with self._pool.connection() as connection:
            rows = await connection.execute(
                # Of two who make a key at once one wins, and both read the winner's.
                "INSERT INTO vault_keys AS mine (subject, wrapped) VALUES (%s, %s)"
                " ON CONFLICT (subject) DO UPDATE SET wrapped = mine.wrapped RETURNING wrapped",
                (subject, wrapped),
            )
            row = await rows.fetchone()
        assert row is not None
        if bytes(row[0]) == ERASED:
            raise Refused("this person was erased: nothing personal is kept for them any more")
        key = self._unwrap(subject, bytes(row[0]))
        self._remember(subject, key)
        return key

    def _unwrap(self, subject: UUID, wrapped: bytes) -> AESGCM:
        try:
            return AESGCM(self._master.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], subject.bytes))
        except InvalidTag:
            log.error("the master key is not the one that wrapped the key of %s", subject)
            raise Unavailable("personal data cannot be read or kept: this is another master key") from None

    def _remember(self, subject: UUID, key: AESGCM) -> None:
        while len(self._cache) >= CACHED_KEYS_MAX:
            del self._cache[next(iter(self._cache))]
        self._cache[subject] = (time.monotonic() + CACHED_S, key)


async def erase_for_good(pool: Pool, subjects: Collection[UUID]) -> int:
    """Destroy the keys of people, and let none be made for them any more: `seal` raises `Refused`. How many there were."""
    async with pool.connection() as connection:
        gone = await connection.execute(
            "UPDATE vault_keys SET wrapped = %s WHERE subject = ANY(%s) AND wrapped <> %s",
            (ERASED, list(subjects), ERASED),
        )
        await connection.execute(
            "INSERT INTO vault_keys (subject, wrapped) SELECT unnest(%s::uuid[]), %s ON CONFLICT DO NOTHING",
            (sorted(subjects), ERASED),
        )
    return gone.rowcount


def _opened(key: AESGCM | None, subject: UUID, closed: str) -> str:
    if key is None:
        return ""
    try:
        raw = base64.b64decode(closed, validate=True)
        return key.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], subject.bytes).decode()
    except (InvalidTag, binascii.Error, ValueError):
        return ""  # sealed under a key that was erased, before this one was made


def _subjects(value: Any, into: set[UUID]) -> None:
    if isinstance(value, str):
        if value.startswith("sealed:") and (found := _SEALED.fullmatch(value)):
            into.add(UUID(found[1]))
    elif isinstance(value, Mapping):
        for one in value.values():
            _subjects(one, into)
    elif isinstance(value, list | tuple):
        for one in value:
            _subjects(one, into)


def _rendered(value: Any, keys: Mapping[UUID, AESGCM | None]) -> Any:
    if isinstance(value, str):
        if value.startswith("sealed:") and (found := _SEALED.fullmatch(value)):
            subject = UUID(found[1])
            return _opened(keys[subject], subject, found[2])
        return value
    if isinstance(value, Mapping):
        return {name: _rendered(one, keys) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rendered(one, keys) for one in value]
    return value
