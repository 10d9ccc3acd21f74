"""Personal data: sealed for one person, opened by whoever has the key, gone with it."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic
from uuid import uuid4

import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg_pool import AsyncConnectionPool

from aggregates.kernel import Unavailable
from api.kernel import vault as module
from api.kernel.migrate import migrate
from api.kernel.vault import Pool, Vault, read_master_key
from infra.settings import Settings


def run(dsn: str, work: Callable[[Vault, Vault], Awaitable[None]], folder: Path) -> None:
    """Two processes' vaults on one table."""
    migrate(Settings(postgres=dsn))
    migrate(Settings(postgres=dsn))
    (folder / "master").write_text(base64.b64encode(os.urandom(32)).decode())

    async def main() -> None:
        pool: Pool
        async with AsyncConnectionPool(dsn, connection_class=psycopg.AsyncConnection, open=False) as pool:
            master = read_master_key(folder / "master")
            await work(Vault(pool, master), Vault(pool, master))

    asyncio.run(main())


def test_what_is_sealed_is_opened_by_another_process(postgres: str, tmp_path: Path) -> None:
    async def work(one: Vault, two: Vault) -> None:
        ada = uuid4()
        for text in ("", "Ada", "Zoë 🐘 \0", "x" * module.TEXT_CHARS_MAX):
            sealed = await one.seal(ada, text)
            assert sealed.startswith(f"sealed:1:{ada}:")
            assert text == "" or text not in sealed
            assert await two.open(sealed) == text
        assert await one.seal(ada, "Ada") != await one.seal(ada, "Ada")
        with pytest.raises(ValueError, match="at most"):
            await one.seal(ada, "x" * (module.TEXT_CHARS_MAX + 1))

    run(postgres, work, tmp_path)


def test_an_erased_person_stays_erased_also_under_a_new_key(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(one: Vault, two: Vault) -> None:
        ada, bob = uuid4(), uuid4()
        old, other = await one.seal(ada, "Ada"), await one.seal(bob, "Bob")
        assert await two.open(old) == "Ada"
        assert await one.erase(ada) is True
        assert await one.erase(ada) is False
        assert await one.open(old) == ""
        assert await two.open(old) == "Ada"  # remembered, for CACHED_S at the most
        monkeypatch.setattr("time.monotonic", lambda now=monotonic(): now + module.CACHED_S + 1)
        assert await two.open(old) == ""
        new = await one.seal(ada, "Ada again")
        assert (await two.open(new), await two.open(old), await two.open(other)) == ("Ada again", "", "Bob")

    run(postgres, work, tmp_path)


def test_two_who_seal_for_a_new_person_at_once_use_one_key(postgres: str, tmp_path: Path) -> None:
    async def work(one: Vault, two: Vault) -> None:
        ada = uuid4()
        sealed = await asyncio.gather(*(each.seal(ada, f"{n}") for n, each in enumerate([one, two] * 10)))
        assert [await one.open(made) for made in sealed] == [f"{n}" for n in range(20)]

    run(postgres, work, tmp_path)


def test_a_sealed_text_is_bound_to_its_person(postgres: str, tmp_path: Path) -> None:
    async def work(one: Vault, two: Vault) -> None:
        ada, bob = uuid4(), uuid4()
        sealed = await one.seal(ada, "Ada")
        await one.seal(bob, "Bob")
        assert await one.open(sealed.replace(str(ada), str(bob))) == ""
        head, _, closed = sealed.rpartition(":")
        raw = bytearray(base64.b64decode(closed))
        raw[-1] ^= 1
        assert await one.open(f"{head}:{base64.b64encode(raw).decode()}") == ""
        assert await one.open(f"{head}:AAAA") == ""
        for wrong in ("", "Ada", "sealed:2:x:y", f"sealed:1:{ada}:", f"sealed:1:{ada}:%"):
            with pytest.raises(ValueError, match="not a sealed text"):
                await one.open(wrong)

    run(postgres, work, tmp_path)


def test_a_document_is_opened_wherever_it_is_sealed(postgres: str, tmp_path: Path) -> None:
    async def work(one: Vault, two: Vault) -> None:
        ada, bob = uuid4(), uuid4()
        document = {"to": await one.seal(ada, "Ada"), "lines": [{"by": await one.seal(bob, "Bob"), "n": 1, "x": None}]}
        assert await two.open_all(document) == {"to": "Ada", "lines": [{"by": "Bob", "n": 1, "x": None}]}
        assert await two.open_all({"plain": ["text", 1]}) == {"plain": ["text", 1]}

    run(postgres, work, tmp_path)


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(b"x" * 31).decode(), "%" * 44])
def test_a_master_key_is_32_bytes(tmp_path: Path, text: str) -> None:
    (tmp_path / "master").write_text(text)
    with pytest.raises(ValueError):
        read_master_key(tmp_path / "master")


def test_another_master_key_opens_nothing_and_says_so(postgres: str, tmp_path: Path) -> None:
    async def work(one: Vault, two: Vault) -> None:
        ada = uuid4()
        sealed = await one.seal(ada, "Ada")
        (tmp_path / "master").write_text(base64.b64encode(os.urandom(32)).decode())
        two._master = AESGCM(read_master_key(tmp_path / "master"))
        for attempt in (two.open(sealed), two.seal(ada, "Ada")):
            with pytest.raises(Unavailable, match="another master key"):
                await attempt

    run(postgres, work, tmp_path)
