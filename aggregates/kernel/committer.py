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
WAIT_S = 10.0  # then a command is answered "unknown"
RETRY_S = (0.05, 1.0)  # first and longest pause while the database is away
ROLLED_BACK = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


@dataclass(slots=True, eq=False)
class Pending:
    """A command on its way to the disk. `after` are those in flight whose events it was decided on.

    `done` has the truth, however late. Whoever gave the command waits for `told`, which gives up on a database that is away,
    and may be cancelled.
    """

    append: Append
    done: asyncio.Future[Outcome]
    told: asyncio.Future[Outcome]
    after: list[Pending] = field(default_factory=list)
    failed: bool = False
    sent: bool = False
    since: float = 0.0


class Committer:
    """The one writer of a process to one database. Use as an async context manager; `submit` from the same loop."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._queue: deque[Pending] = deque()
        self._news = asyncio.Event()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._sent: list[Pending] = []

    async def __aenter__(self) -> Committer:
        self._task = asyncio.create_task(self._run(), name="committer")
        self._watch = asyncio.create_task(self._give_up(), name="committer's watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Commits what is queued, for as long as the database answers."""
        assert self._task
        assert self._watch
        while self._queue and self._connection is not None:
            await asyncio.wait([p.done for p in self._queue], timeout=1)
        for task in (self._task, self._watch):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for pending in [*self._sent, *self._queue]:
            if not pending.told.done():
                pending.told.set_exception(Unavailable("the store was closed"))
        if self._connection is not None:
            await self._connection.close()

    def submit(self, append: Append, after: list[Pending]) -> Pending:
        """Queue a command's writes; `done` of what comes back has their outcome. Raises `Unavailable` when overloaded."""
        if len(self._queue) >= QUEUE_COMMANDS_MAX:
            raise Unavailable("too many commands are waiting to be stored")
        loop = asyncio.get_running_loop()
        pending = Pending(append, loop.create_future(), loop.create_future(), after, since=loop.time())
        self._queue.append(pending)
        self._news.set()
        return pending

    async def _give_up(self) -> None:
        """Tell those who have waited for too long. What was not sent is taken back; what was may be stored still."""
        while True:
            await asyncio.sleep(WAIT_S / 10)
            late = asyncio.get_running_loop().time() - WAIT_S
            for pending in self._sent:
                if pending.since < late and not pending.told.done():
                    pending.told.set_exception(Unavailable("the event store does not answer"))
            while self._queue and self._queue[0].since < late:
                pending = self._queue.popleft()
                if not pending.told.done():
                    pending.told.set_exception(Unavailable("the event store does not answer; nothing was stored"))
                self._settle(pending, Outcome(problem=("stream", "given up before it was sent")))

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._news.clear()
                await self._news.wait()
            self._sent = self._take()
            if self._sent:
                await self._commit(self._sent)
                self._sent = []

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
                    if not batch[0].told.done():
                        batch[0].told.set_exception(error)
                    self._settle(batch[0], Outcome(problem=("stream", "refused by the database")))
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
        pending.done.set_result(outcome)
        if not pending.told.done():
            pending.told.set_result(outcome)

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
