"""Group commit: commands that wait in the same few milliseconds share one transaction and one fsync."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from dataclasses import dataclass, field

import psycopg

from aggregates.kernel import recorder
from aggregates.kernel.errors import Unavailable
from aggregates.kernel.recorder import Append, Connection, Outcome

log = logging.getLogger(__name__)

BATCH_EVENTS_MAX = 2_000  # bounds the lock time of one commit
QUEUE_COMMANDS_MAX = 20_000
RETRY_S = (0.05, 1.0)  # first and longest pause while the database is away
ROLLED_BACK = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


@dataclass(slots=True, eq=False)
class Pending:
    """A command on its way to the disk. `after` are those in flight whose events it was decided on."""

    append: Append
    done: asyncio.Future[Outcome]
    after: list[Pending] = field(default_factory=list)
    failed: bool = False
    sent: bool = False


class Committer:
    """The one writer of a process to one database. Use as an async context manager; `submit` from the same loop."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._queue: deque[Pending] = deque()
        self._news = asyncio.Event()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Committer:
        self._task = asyncio.create_task(self._run(), name="committer")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Commits what is queued, for as long as the database answers."""
        assert self._task
        while self._queue and self._connection is not None:
            await asyncio.wait([p.done for p in self._queue], timeout=1)
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        for pending in self._queue:
            if not pending.done.done():
                pending.done.set_exception(Unavailable("the store was closed"))
        if self._connection is not None:
            await self._connection.close()

    def submit(self, append: Append, after: list[Pending]) -> Pending:
        """Queue a command's writes; `done` of what comes back has their outcome. Raises `Unavailable` when overloaded."""
        if len(self._queue) >= QUEUE_COMMANDS_MAX:
            raise Unavailable("too many commands are waiting to be stored")
        pending = Pending(
            append, asyncio.get_running_loop().create_future(), [p for p in after if not p.done.done() or p.failed]
        )
        self._queue.append(pending)
        self._news.set()
        return pending

    def abandon(self, pending: Pending) -> bool:
        """Take a command back that has not been sent yet. Returns whether it is certain that it is not stored."""
        if pending.sent or pending.done.done():
            return False
        with contextlib.suppress(ValueError):
            self._queue.remove(pending)
        self._settle(pending, Outcome(problem=("stream", "given up before it was stored")))
        return True

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._news.clear()
                await self._news.wait()
            batch = self._take()
            if batch:
                await self._commit(batch)

    def _take(self) -> list[Pending]:
        """The next commands that may share a commit, in order."""
        batch: list[Pending] = []
        events = 0
        commands: set[object] = set()
        claims: set[tuple[str, str]] = set()
        while self._queue and events < BATCH_EVENTS_MAX:
            pending = self._queue[0]
            one = pending.append
            if any(earlier.failed for earlier in pending.after):
                self._queue.popleft()
                self._settle(pending, Outcome(problem=("stream", "an earlier command")))
                continue
            keys = {(f"{one.domain} {c.scope}", c.key) for _, c in one.claims}
            asked = one.command and (one.domain, one.command.command_id)
            if (asked and asked in commands) or keys & claims:
                break  # it must see the other one's outcome: next commit
            self._queue.popleft()
            pending.sent = True
            commands.add(asked)
            claims |= keys
            events += len(one.rows)
            batch.append(pending)
        return batch

    async def _commit(self, batch: list[Pending]) -> None:
        pause = RETRY_S[0]
        while True:
            try:
                connection = await self._connected()
                outcomes = await recorder.append(connection, [pending.append for pending in batch])
                break
            except ROLLED_BACK:
                await self._disconnect()
            except (psycopg.OperationalError, OSError) as error:
                # Stored or not? Sent again under the same event ids, it is stored once either way.
                log.warning("the event store does not answer, trying again in %.2f s: %s", pause, str(error).strip())
                await self._disconnect()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, RETRY_S[1])
            except Exception as error:
                # A row that the database refuses. Alone it is its own fault; in company it is sent again alone.
                await self._disconnect()
                if len(batch) == 1:
                    batch[0].failed = True
                    if not batch[0].done.done():
                        batch[0].done.set_exception(error)
                    return
                for pending in batch:
                    if any(earlier.failed for earlier in pending.after):
                        self._settle(pending, Outcome(problem=("stream", "an earlier command")))
                    else:
                        await self._commit([pending])
                return
        for pending, outcome in zip(batch, outcomes, strict=True):
            self._settle(pending, outcome)

    def _settle(self, pending: Pending, outcome: Outcome) -> None:
        pending.failed = outcome.problem is not None
        if not pending.done.done():
            pending.done.set_result(outcome)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                self._dsn, autocommit=True, connect_timeout=5, prepare_threshold=2, application_name="titan-committer"
            )
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                await self._connection.close()
            self._connection = None
