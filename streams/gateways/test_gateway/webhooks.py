"""Sends the webhooks that are due, again until they are accepted, and lets authorisations run out."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime

import httpx

from streams.gateways.signature import HEADER, sign
from streams.gateways.test_gateway.book import Book

log = logging.getLogger(__name__)

AT_ONCE = 8
ANSWER_S = 10.0
LOOK_S = 60.0
AFTER_ERROR_S = 1.0


class Sender:
    """One task; `wake` it when the book has changed."""

    def __init__(self, book: Book, url: str, secret: bytes) -> None:
        self._book, self._url, self._secret = book, url, secret
        self._woken = asyncio.Event()

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            while True:
                try:
                    await self._round(client)
                except Exception:
                    log.exception("webhooks wait")
                    await asyncio.sleep(AFTER_ERROR_S)

    async def _round(self, client: httpx.AsyncClient) -> None:
        """Send what is due; if nothing is, wait until something may be."""
        self._woken.clear()
        now = time.time()
        self._book.expire(now)
        due = self._book.due(now, AT_ONCE)
        await asyncio.gather(*(self._send(client, *one) for one in due))
        if not due:
            following = self._book.next()
            pause = LOOK_S if following is None else min(max(following - time.time(), 0.0), LOOK_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)

    async def _send(self, client: httpx.AsyncClient, id: str, copy: int, body: bytes) -> None:
        headers = {HEADER: sign(self._secret, body, datetime.now(UTC)), "content-type": "application/json"}
        try:
            answer = await client.post(self._url, content=body, headers=headers)
            accepted, why = answer.is_success, f"it answers {answer.status_code}"
        except httpx.HTTPError as error:
            accepted, why = False, f"{type(error).__name__} {error}"
        if not accepted:
            log.info("webhook %s is sent again later: %s", id, why)
        self._book.sent(id, copy, accepted, time.time())
