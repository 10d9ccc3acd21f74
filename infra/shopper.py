"""A client of the public API, as the sample shop's and the demo's shoppers use it: tokens, retries, receipts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

import httpx

from infra.errors import StackError
from infra.settings import Settings
from infra.token import token

TRIES_MAX = 40
PAUSE_S = (0.05, 2.0)  # first and longest, when there is no Retry-After
AT_ONCE_MAX = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the API: its status and its JSON document."""

    status: int
    document: Any

    @property
    def ok(self) -> bool:
        return self.status < 400

    @property
    def why(self) -> str:
        """What a problem document says."""
        detail: str = self.document.get("detail") or self.document.get("title") or str(self.status)
        return detail


@dataclass
class Api:
    """The API at a URL. `async with Api(settings) as api:`; requests are repeated while it is busy or not there."""

    settings: Settings
    url: str = ""
    _tokens: dict[tuple[str, UUID], str] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        self.url = self.url or f"http://{self.settings.api_host}:{self.settings.api_port}"
        limits = httpx.Limits(max_connections=AT_ONCE_MAX, max_keepalive_connections=AT_ONCE_MAX)
        self._http = httpx.AsyncClient(base_url=self.url, limits=limits, timeout=30)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, by: UUID | None = None, role: str = "customer", **query: Any) -> Answer:
        return await self.ask("GET", path, by, role, query=query)

    async def post(
        self,
        path: str,
        document: Any = None,
        by: UUID | None = None,
        role: str = "customer",
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """A command. With a `key` it happens once, however often it is sent."""
        return await self.ask("POST", path, by, role, document=document, key=key, headers=headers)

    async def ask(
        self,
        method: str,
        path: str,
        by: UUID | None,
        role: str,
        *,
        document: Any = None,
        key: str | None = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request and its answer; 429, 503 and no answer at all are waited out. Raises StackError when that takes too long."""
        headers = {**(headers or {}), **({"Idempotency-Key": key} if key else {})}
        if by is not None:
            headers["Authorization"] = f"Bearer {self._token(by, role)}"
        pause, trouble = PAUSE_S[0], ""
        for _ in range(TRIES_MAX):
            try:
                found = await self._http.request(method, path, json=document, params=query, headers=headers)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__} {error}".strip()
            else:
                running = found.status_code == 409 and found.json().get("type", "").endswith("running")
                if found.status_code not in (429, 503) and not running:
                    return Answer(found.status_code, found.json() if found.content else None)
                trouble = f"{found.status_code} {found.text[:200]}"
                pause = max(pause, float(found.headers.get("Retry-After", 0)) * 0.2)
            await asyncio.sleep(min(pause, PAUSE_S[1]))
            pause *= 1.5
        raise StackError(f"{method} {self.url}{path} is not answered: {trouble}")

    def _token(self, by: UUID, role: str) -> str:
        made = self._tokens.get((role, by))
        if made is None:
            made = self._tokens[role, by] = token(self.settings, role, by)
        return made
