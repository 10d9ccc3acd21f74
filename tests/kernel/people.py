"""People with accounts, over HTTP: registered, verified by the mail that they would get, signed in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID, uuid4

import httpx
import psycopg
from psycopg_pool import AsyncConnectionPool

from aggregates.auth import Account
from aggregates.kernel import Store
from api.auth.fields import address_digest
from api.kernel.secrets import Secrets
from api.kernel.vault import read_master_key
from infra.settings import Settings
from tests.kernel.connections import connected

T = TypeVar("T")
PASSWORD = "correct horse battery"


@dataclass
class Person:
    """Somebody with an account and the tokens of the last sign-in."""

    id: UUID
    email: str
    tokens: dict[str, Any]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens['access_token']}"}


@dataclass
class People:
    """Does what people do, at one API."""

    http: httpx.Client
    settings: Settings

    def post(self, path: str, status: int, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def forget_tries(self) -> None:
        """As if nobody had ever guessed or asked for mails from here."""
        with connected(self.settings.postgres) as connection:
            connection.execute("DELETE FROM attempts")

    def register(self, email: str = "", password: str = PASSWORD) -> str:
        """Ask for an account; the address."""
        email = email or f"{uuid4().hex}@example.com"
        self.post("/auth/register", 202, email=email, password=password)
        return email

    def verified(self, email: str = "", password: str = PASSWORD) -> tuple[UUID, str]:
        """Ask for an account and answer the mail."""
        email = self.register(email, password)
        self.post("/auth/verify", 200, token=self.mail("verify", email), password=password)
        return self.account(email).id, email

    def join(self, email: str = "") -> Person:
        """Somebody new, signed in."""
        id, email = self.verified(email)
        return Person(id, email, self.login(email))

    def login(self, email: str, password: str = PASSWORD, status: int = 200, **more: Any) -> dict[str, Any]:
        return self.post("/auth/login", status, email=email, password=password, **more)

    def mail(self, purpose: str, email: str) -> str:
        """The token in the newest mail of an address."""
        account = self.account(email)
        assert account.pending, "nobody was written to"
        return self.secrets(lambda secrets: _told(secrets.proof(purpose, account.id, list(account.pending)[-1])))

    def account(self, email: str) -> Account:
        digest = self.secrets(lambda secrets: _told(address_digest(secrets, email)))

        async def load() -> Account:
            async with Store.open(self.settings.postgres) as store:
                owner = await store.owner("auth", "email", digest)
                assert owner is not None, f"nobody has {email}"
                return await store.load(Account, owner)

        return asyncio.run(load())

    def pool(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        """Connections of one's own to the platform's database."""
        return AsyncConnectionPool(
            self.settings.postgres, connection_class=psycopg.AsyncConnection, min_size=1, max_size=1, open=False
        )

    def secrets(self, work: Callable[[Secrets], Awaitable[T]]) -> T:
        """Something done with the platform's secrets, as a process of its own would."""

        async def done() -> T:
            async with self.pool() as pool:
                return await work(Secrets(pool, read_master_key(self.settings.master_key)))

        return asyncio.run(done())


async def _told(value: T) -> T:
    return value
