"""Shoppers of the demo do what people do."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

from infra.demo import Demo
from infra.servers import HOST, free_port
from infra.shopper import Answer, Api


def test_who_cannot_reach_the_bank_loads_its_page_again() -> None:
    port, asked, again = free_port(), list[bytes](), asyncio.Event()

    class Shop:
        """Has one checkout, whose payment the bank asks about."""

        looks = 0

        async def get(self, path: str, by: UUID) -> Answer:
            self.looks += 1
            if self.looks > 3:  # the checkout, the payment, and the payment once more: the bank was not there
                again.set()
            return Answer(200, {"payment": "one", "url": f"http://{HOST}:{port}/actions/one"})

    async def bank(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def main() -> None:
        confirming = asyncio.create_task(Demo(cast(Api, cast(Any, Shop())), 0)._confirm(uuid4(), "one", True))
        waiting = asyncio.create_task(again.wait())
        await asyncio.wait([waiting, confirming], return_when=asyncio.FIRST_COMPLETED)
        assert not confirming.done(), confirming
        async with await asyncio.start_server(bank, HOST, port):
            await confirming

    asyncio.run(main())
    assert asked == [b"POST /actions/one?answer=yes HTTP/1.1\r\n"]
