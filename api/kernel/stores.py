"""Pieces for routes that read by themselves: `views: Views`, `store: Store`, `clickhouse: ClickHouse`, `vault: Vault`, …"""

from __future__ import annotations

from typing import Annotated, Any

import redis.asyncio as aio
from clickhouse_connect.driver.asyncclient import AsyncClient
from fastapi import Depends

from aggregates.kernel import Invalid
from aggregates.kernel import Store as EventStore
from aggregates.kernel.code import keyed_hash, read_code
from api.kernel import secrets, vault
from api.kernel.attempts import Attempts, Limit
from api.kernel.call import Call
from api.kernel.host import Host
from api.kernel.piece import Piece
from api.kernel.problems import Problem, retry_after


class HostPiece(Piece[Host]):
    def take(self, call: Call) -> Host:
        return call.host


class ViewsPiece(Piece[vault.Pool]):
    def take(self, call: Call) -> vault.Pool:
        return call.host.views


class StorePiece(Piece[EventStore]):
    def take(self, call: Call) -> EventStore:
        return call.host.store


class RedisPiece(Piece[aio.Redis]):
    def take(self, call: Call) -> aio.Redis:
        return call.host.redis


class VaultPiece(Piece[vault.Vault]):
    def take(self, call: Call) -> vault.Vault:
        if call.host.vault is None:
            raise Problem(
                "unavailable",
                "personal data cannot be read or kept: the master key is missing",
                headers=retry_after(30),
            )
        return call.host.vault


class SecretsPiece(Piece[secrets.Secrets]):
    def take(self, call: Call) -> secrets.Secrets:
        if call.host.secrets is None:
            raise Problem("unavailable", "nobody can sign in: the master key is missing", headers=retry_after(30))
        return call.host.secrets


class LateClickHouse:
    """ClickHouse, connected by the first query of the process."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __call__(self) -> AsyncClient:
        """The client. Raises what becomes a 503 when the server is away."""
        return await self._host.clickhouse()


class ClickHousePiece(Piece[LateClickHouse]):
    def take(self, call: Call) -> LateClickHouse:
        return LateClickHouse(call.host)


class BodyBytes:
    """The raw body of a request, for signatures: `await raw()` are the bytes, at most the limit; `raw.json(body)` reads them.

    A sender whose signature fits is let through at any speed; of one that nobody vouches for, `await raw.spend()` says so.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __call__(self) -> bytes:
        return await self._call.body()

    def json(self, body: bytes) -> Any:
        """JSON values by the rules of any other body. Raises 422."""
        return self._call.parsed(body)

    async def spend(self) -> None:
        """A token of the address's, as any request without a good token costs. Raises 429."""
        limits, name = self._call.host.limits, f"ip:{self._call.network}"
        await self._call.host.limiter.admit(name, limits.ip_per_s, limits.ip_burst)

    def header(self, name: str) -> str | None:
        """A header's value, None without it."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self._call.scope["headers"] if key == wanted), None)


class RawPiece(Piece[BodyBytes]):
    vouches = True

    def take(self, call: Call) -> BodyBytes:
        return BodyBytes(call)


class Codes:
    """The codes that stand for money: how they are hashed, and how fast they may be tried."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def tried(self, use: str, typed: str) -> str | None:
        """The keyed hash of a code that somebody typed, None for what can't be one. Each try is counted first.

        Raises 429 for a caller, or an address, that tries too many. Machines have a limit of requests only.
        """
        call, limits = self._call, self._call.host.limits
        by = call.identified()
        if by.role not in ("service", "admin"):
            await Attempts(call.host.views).count(
                (Limit("code", limits.code_tries, limits.code_s), by.actor),
                (Limit("code.ip", limits.code_ip_tries, limits.code_ip_s), call.network),
                what="too many codes were tried: wait",
            )
        try:
            return self.hashed(use, read_code(typed))
        except Invalid:
            return None

    def hashed(self, use: str, code: str) -> str:
        """The keyed hash of a code, as `read_code` gives it. `use`: what it is a code for."""
        if self._call.host.vault is None:
            raise Problem("unavailable", "there are no codes: the master key is missing", headers=retry_after(30))
        return keyed_hash(vault.derived_key(self._call.host.settings.master_key, f"codes of {use}"), code)


class CodesPiece(Piece[Codes]):
    def take(self, call: Call) -> Codes:
        return Codes(call)


TheHost = Annotated[Host, Depends(HostPiece())]
Views = Annotated[vault.Pool, Depends(ViewsPiece())]
Store = Annotated[EventStore, Depends(StorePiece())]
Redis = Annotated[aio.Redis, Depends(RedisPiece())]
Vault = Annotated[vault.Vault, Depends(VaultPiece())]
Secrets = Annotated[secrets.Secrets, Depends(SecretsPiece())]
ClickHouse = Annotated[LateClickHouse, Depends(ClickHousePiece())]
TheCodes = Annotated[Codes, Depends(CodesPiece())]
Raw = Annotated[BodyBytes, Depends(RawPiece())]
