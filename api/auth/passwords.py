"""Passwords: argon2id, as OWASP advises for servers. A check takes as long without a hash as with one."""

from __future__ import annotations

import asyncio
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from api.kernel.problems import Problem, retry_after

CHARS_MIN, CHARS_MAX = 10, 128
HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # 19 MiB, some 25 ms
AT_ONCE = os.cpu_count() or 1
WAITING_MAX = 64  # hashes that wait for a thread: more are turned away, so that logins cannot drown the rest

T = TypeVar("T")

_threads = ThreadPoolExecutor(AT_ONCE, "argon2")
_waiting = 0


async def hashed(password: str) -> bytes:
    """The hash to keep. Raises the 503 problem when too many wait."""
    return (await _in_thread(lambda: HASHER.hash(_normal(password)))).encode()


async def matches(hash: bytes | None, password: str) -> bool:
    """Whether it is the password of the hash; without one it is not, after as long a look."""

    def look() -> bool:
        try:
            return HASHER.verify((hash or _nobodys()).decode(), _normal(password))
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False

    return await _in_thread(look) and hash is not None


@lru_cache(maxsize=1)
def _nobodys() -> bytes:
    return HASHER.hash(os.urandom(16)).encode()


def _normal(password: str) -> bytes:
    """The same password typed on another keyboard is the same bytes."""
    return unicodedata.normalize("NFKC", password).encode()


async def _in_thread(work: Callable[[], T]) -> T:
    global _waiting
    if _waiting >= WAITING_MAX:
        raise Problem("unavailable", "too many people sign in at this moment", headers=retry_after(2))
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, work)
    finally:
        _waiting -= 1
