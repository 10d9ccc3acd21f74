"""Clients over HTTP who note what they ask and what they are told, so that it can be judged afterwards (`tests/kernel/judge.py`).

Unlike the demo's shoppers they don't wait out an outage: a request is sent with little patience, and one without an answer is `unknown`,
or asked again under its key. Several of them work on the same carts.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx
import psycopg
from psycopg import sql

from aggregates.kernel.migrate import names
from aggregates.kernel.recorder import CommandRow
from aggregates.kernel.wire import COLUMNS, Row
from infra.settings import Settings
from infra.token import token
from tests.kernel.judge import Command, History, Read, judge_reads, judge_store, last_versions

PATIENCE_S = 0.7
PAUSE_S = 0.03
OUTAGE_S = 0.2  # between two tries while nobody answers
NOBODY = UUID(int=0)
NEVER = (400, 401, 403, 422, 500)  # nothing that they ask is malformed, or not theirs


class Clerks:
    """`count` clients, as one customer, with a cart of each. `run` until told to stop; then `judge`."""

    def __init__(self, settings: Settings, url: str, seed: str, skus: list[str], count: int = 3) -> None:
        self.settings, self.url, self.skus = settings, url, skus
        self.dice = random.Random(f"clerks {seed}")
        self.customer = UUID(int=self.dice.getrandbits(128), version=4)
        self.history = History("cart")
        self.carts: list[UUID] = []
        self.names = [f"clerk-{n}" for n in range(count)]
        self.faults: list[str] = []
        self.epoch = 0
        """To be moved on when the store of the views is killed."""

    async def run(self, stop: threading.Event) -> None:
        headers = {"Authorization": f"Bearer {token(self.settings, 'customer', self.customer)}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=PATIENCE_S) as http:
            await asyncio.gather(*(self._work(http, name, stop) for name in self.names))

    async def _work(self, http: httpx.AsyncClient, name: str, stop: threading.Event) -> None:
        while not stop.is_set():
            if len(self.carts) < len(self.names):
                await self._open(http, name)
            else:
                cart = self.dice.choice(self.carts)
                told = await self._change(http, name, cart)
                if told is not None or self.dice.random() < 0.3:
                    await self._look(http, name, cart, told)
            await asyncio.sleep(PAUSE_S)

    async def _open(self, http: httpx.AsyncClient, name: str) -> None:
        command, answer = await self._ask(http, name, NOBODY, "POST", "/carts", "/carts", {"currency": "GBP"})
        if answer is not None and answer.status_code == 201:
            command.aggregate = UUID(answer.json()["id"])
            self.carts.append(command.aggregate)

    async def _change(self, http: httpx.AsyncClient, name: str, cart: UUID) -> Command | None:
        sku, roll = self.dice.choice(self.skus), self.dice.random()
        line = f"/carts/{cart}/lines/{sku}"
        asked: tuple[str, str, str, Any]
        match roll:
            case _ if roll < 0.6:
                asked = ("POST", f"/carts/{cart}/lines", "/carts/{id}/lines", {"sku": sku, "quantity": 1})
            case _ if roll < 0.85:
                asked = ("PUT", line, "/carts/{id}/lines/{sku}", {"quantity": self.dice.randrange(1, 5)})
            case _:
                asked = ("DELETE", line, "/carts/{id}/lines/{sku}", None)
        command, _ = await self._ask(http, name, cart, *asked)
        return command if command.outcome == "ok" else None

    async def _ask(
        self, http: httpx.AsyncClient, name: str, cart: UUID, method: str, path: str, route: str, body: Any
    ) -> tuple[Command, httpx.Response | None]:
        """A command, noted before it is sent; asked again now and then when nobody answers."""
        key = f"{name}/{self.dice.getrandbits(64):x}"
        # The id under which the API stores it (api/kernel/commands.py).
        command = self.history.begin(name, uuid5(NAMESPACE_URL, f"{self.customer}\n{method} {route}\n{key}"), cart)
        answer = None
        while answer is None:
            try:
                answer = await http.request(method, path, json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                await asyncio.sleep(OUTAGE_S)
                if self.dice.random() < 0.5:
                    return command, None
        self._expect(answer, f"{method} {path}")
        running = answer.status_code == 409 and answer.json().get("type", "").endswith("running")
        if answer.status_code < 300:
            told = answer.json()
            position = int(told["position"].partition(":")[2] or 0)
            self.history.end(command, "ok", told["version"], position)
        elif answer.status_code < 500 and not running and answer.status_code not in (408, 429):
            self.history.end(command, "no")
        return command, answer

    async def _look(self, http: httpx.AsyncClient, name: str, cart: UUID, told: Command | None) -> None:
        """One's own writes with their position, anybody's without: in Redis by its id, or in Postgres in the customer's list."""
        after = told.position if told else 0
        query, epoch = ({"after": f"cart:{after}"} if after else {}), self.epoch
        view = self.dice.choice(["carts", "customer_carts"])
        try:
            answer = await http.get(f"/carts/{cart}" if view == "carts" else "/carts", params=query)
        except httpx.TransportError:
            return
        self._expect(answer, f"GET {answer.url}")
        if answer.status_code not in (200, 404) or epoch != self.epoch:
            return
        document = answer.json()
        shown = [one for one in document.get("items", [document]) if one.get("id") == str(cart)]
        version = shown[0]["version"] if shown else 0
        self.history.reads.append(Read(name, view, cart, version, after, epoch))

    def _expect(self, answer: httpx.Response, what: str) -> None:
        if answer.status_code in NEVER:
            self.faults.append(f"{what} was answered with {answer.status_code}: {answer.text[:200]}")

    def judge(self) -> Iterator[str]:
        """What is wrong, when all is at rest."""
        asked = [command.id for command in self.history.commands]
        with psycopg.connect(self.settings.dsn("cart")) as connection:
            rows = connection.execute(
                sql.SQL(
                    f"SELECT {COLUMNS} FROM {{events}} WHERE originator_id = ANY(%s) OR causation_id = ANY(%s) OR actor = %s"
                ).format(**names("cart")),
                [self.carts, asked, f"user:{self.customer}"],
            ).fetchall()
            kept = connection.execute(
                sql.SQL(
                    "SELECT command_id, fingerprint, originator_id, originator_version, notification_id"
                    " FROM {commands} WHERE command_id = ANY(%s)"
                ).format(**names("cart")),
                [asked],
            ).fetchall()
        log = [Row(*row) for row in rows]
        yield from judge_store(self.history, log, {row[0]: CommandRow(*row) for row in kept}, {f"user:{self.customer}"})
        yield from judge_reads(self.history, last_versions(log))
        yield from self.faults
