"""Commands: an aggregate is loaded, decides, and what it decided is committed once, whatever is retried.

Commands for one aggregate are decided in order inside a process, each on the events of those before it, without waiting
for their commits: a hot aggregate is stored in large batches and meets no conflict. A conflict with another process
(or a failed predecessor) is decided again on what is stored by then.

An aggregate that this process has just changed is not read again: what is decided on a state kept from before is stored only if
that is still the newest. A command that stores nothing on it (a refusal, nothing to do) has no such proof, so it is decided
again on what is stored.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from aggregates.kernel import clock, snapshot, wire
from aggregates.kernel.committer import WAIT_S, Pending
from aggregates.kernel.errors import Conflict, NotFound, Refused, Reused, Unavailable
from aggregates.kernel.event import AGGREGATES, Aggregate, Cancel, Event, Free, Take, Timer, under_id
from aggregates.kernel.recorder import Append, CommandRow, Outcome, TimerRow
from aggregates.kernel.wire import Row
from schemas.values import value

if TYPE_CHECKING:
    from aggregates.kernel.store import Store

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Aggregate)
P = ParamSpec("P")

TRIES_MAX = 12
BACKOFF_S = 0.002  # doubled a try, with jitter, to 0.25 s
READ_FIRST = 50  # commands on aggregates of a kind after one of them was changed by another process


@dataclass(frozen=True, slots=True)
class TimerRef:
    """The timer that a command fires: its row goes in the same commit."""

    originator_id: UUID
    key: str
    due: datetime

    def command(self, domain: str) -> UUID:
        """The id under which it gives its command: fired again, by whomever, it is stored once."""
        due = self.due.astimezone(UTC).isoformat()
        return uuid5(NAMESPACE_URL, f"titan:timer:{domain}:{self.originator_id}:{self.key}:{due}")


@value
class Origin:
    """Who asks, why, and under which command id.

    `actor` is `user:<uuid>`, `saga:<name>`, `timer`, …; `correlation` follows one request through everything it causes;
    `fingerprint` is a digest of what is asked, compared when `command` comes again; `expected` is the version that the
    aggregate must be at.
    """

    actor: str
    correlation: str = field(default_factory=lambda: uuid4().hex)
    causation: UUID | None = None
    command: UUID | None = None
    fingerprint: bytes = b""
    expected: int | None = None
    timer: TimerRef | None = None


@value
class Receipt:
    """A stored command: the aggregate, its version, and the position `<domain>:<notification id>` to read one's writes at.

    `replayed`: the command had been stored before, and this is its answer then.
    """

    id: UUID
    version: int
    position: str
    replayed: bool = False


@dataclass(slots=True)
class Entry:
    """An aggregate that commands are at work on, with events that may still be on their way to the disk."""

    cls: type[Aggregate]
    id: UUID
    loading: asyncio.Future[None] | None = None
    aggregate: Aggregate | None = None
    position: int = 0
    proven: bool = False
    """The state was read or stored for those who use this entry. Otherwise it was kept, and others may have changed it since."""
    last: Pending | None = None
    """The newest command with events of it: commits are in order, so with this one all before it are settled."""
    users: int = 0

    @property
    def doubtful(self) -> bool:
        """Whether nothing says yet, nor will when what is in flight is stored, that the state is the newest."""
        return self.aggregate is not None and not self.proven and self.last is None

    def in_flight(self) -> list[Pending]:
        """The newest command if it is not on the disk yet. A state with events that never will be is dropped first."""
        if self.last is not None and self.last.done.done():
            if self.last.failed:
                self.aggregate = None
            else:
                self.stored(self.last.append, self.last.done.result())
                self.proven = True
            self.last = None
        return [] if self.last is None else [self.last]

    def stored(self, append: Append, outcome: Outcome) -> None:
        """Of a command on several aggregates each has its own events, and its own position."""
        self.position = max(self.position, append.position_of(self.id, outcome.position))


Decide = Callable[[Sequence[Aggregate]], None]
Target = tuple[type[Aggregate], UUID]


class Executor:
    """Runs the commands of one process. All aggregates of a command are of one domain."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # By kind as well: what people have under their own id (profile, ways to pay) is several aggregates.
        self._entries: dict[Target, Entry] = {}
        self._read_first: dict[type[Aggregate], int] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits for snapshots that are being written."""
        if self._background:
            await asyncio.wait(self._background, timeout=5)

    def load(self, cls: type[A], id: UUID) -> Awaitable[A]:
        """The newest stored state."""
        return self._store.load(cls, id)

    @contextmanager
    def expecting(self, cls: type[A], id: UUID) -> Iterator[A | None]:
        """Load an aggregate meanwhile: within, a command on it need not wait for that.

        What is here of it already is yielded, to look at what never changes in it: others may have changed it since.
        """
        entry = self._enter(cls, id)
        self._take(entry)
        if entry.aggregate is None:
            self._loading(entry)
        try:
            yield cast("A | None", entry.aggregate)
        finally:
            self._leave(entry)

    async def change(self, origin: Origin, targets: Sequence[Target], decide: Decide) -> Receipt:
        """One command on aggregates that exist: load, decide, commit, and again on a lost race."""
        for attempt in range(TRIES_MAX):
            receipt = await self._attempt(origin, targets, decide)
            if receipt is not None:
                return receipt
            await asyncio.sleep(min(BACKOFF_S * 2**attempt, 0.25) * random.random())
        raise Conflict("the aggregate is changed by others faster than this command could be stored; try again")

    async def create(self, origin: Origin, domain: str, make: Callable[[], Aggregate]) -> Receipt:
        """One command that makes a new aggregate. The same id again is the same command, or a `Conflict`."""
        try:
            aggregate = make()
        except Refused as no:
            again = await self._refused(origin, domain, [], no)
            assert again is not None, "nothing is in flight"
            return again
        receipt = await self._save(origin, aggregate)
        if receipt is None:
            raise Conflict(f"there is a {type(aggregate).__name__.lower()} {aggregate.id} already")
        return receipt

    async def save(self, origin: Origin, aggregate: Aggregate) -> Receipt:
        """What an aggregate of the caller's own has decided, at the version at which it was loaded, or a `Conflict`."""
        receipt = await self._save(origin, aggregate)
        if receipt is None:
            raise Conflict(f"the {type(aggregate).__name__.lower()} {aggregate.id} was changed meanwhile")
        return receipt

    async def _save(self, origin: Origin, aggregate: Aggregate) -> Receipt | None:
        aggregate.check()
        append = self._append(origin, [aggregate.collect_events()], [aggregate], 0)
        outcome = await self._store.database(aggregate.domain).committer.submit(append, []).told
        return await self._receipt(origin, aggregate.domain, aggregate.id, aggregate.version, outcome)

    async def _attempt(self, origin: Origin, targets: Sequence[Target], decide: Decide) -> Receipt | None:
        domain = targets[0][0].domain
        database = self._store.database(domain)
        entries = [self._enter(cls, id) for cls, id in targets]
        try:
            # Nothing is awaited between here and the submit, so commands decide one after another without a lock.
            aggregates = await self._ready(entries)
            after = [one for entry in entries for one in entry.in_flight()]
            first, position = aggregates[0], entries[0].position
            try:
                if origin.expected is not None and first.version != origin.expected:
                    raise Conflict(f"it is at version {first.version}, not {origin.expected}")
                decide(aggregates)
                changed = list({one.id: one for one in aggregates if one.pending_events}.values())
                for one in changed:
                    one.check()
            except Exception as no:
                if self._doubted([entry for entry in entries if entry.doubtful], entries):
                    return await self._attempt(origin, targets, decide)
                self._forget_undecided(entries)
                if isinstance(no, Refused | Conflict | NotFound):
                    return await self._refused(origin, domain, after, no)
                raise
            ids = {one.id for one in changed}
            if self._doubted([entry for entry in entries if entry.doubtful and entry.id not in ids], entries):
                return await self._attempt(origin, targets, decide)
            version = first.version
            if not changed:
                return await self._nothing(origin, entries, aggregates, version, after)
            try:
                events = [one.collect_events() for one in changed]
                append = self._append(origin, events, aggregates, position)
                snapshots = self._due_snapshots(changed, events)
                pending = database.committer.submit(append, after)
            except BaseException:
                self._forget(entries)
                raise
            kept = {entry.cls for entry in entries if entry.doubtful}
            for entry in entries:
                if entry.id in ids:
                    entry.last = pending
            outcome = await pending.told
            if outcome.problem is not None:
                self._forget(entries)
                if outcome.problem[0] == "stream":
                    self._read_first |= dict.fromkeys(kept, READ_FIRST)
            else:
                for entry in entries:
                    entry.stored(append, outcome)
                    entry.proven |= entry.id in ids
                for cls, target, at_version, state in snapshots:
                    self._background_save(cls, target, at_version, state)
            return await self._receipt(origin, domain, first.id, version, outcome)
        finally:
            for entry in entries:
                self._leave(entry)

    async def _nothing(
        self,
        origin: Origin,
        entries: Sequence[Entry],
        aggregates: Sequence[Aggregate],
        version: int,
        after: Sequence[Pending],
    ) -> Receipt | None:
        """A command that decided that nothing is to be done.

        It rests on events that may be in flight, and whoever reads at its position has to see them: so theirs is waited for.
        """
        first, position = (
            aggregates[0],
            entries[0].position,
        )  # as of `version`: while it waits, others move the entry on
        if not await self._all_stored(after):
            return None
        position = max([position, *(one.append.position_of(first.id, one.done.result().position) for one in after)])
        if origin.command is None and origin.timer is None:
            return Receipt(first.id, version, f"{first.domain}:{position}" if position else "")
        append = self._append(origin, [], aggregates, position)
        if append.command is not None:  # others may have changed it meanwhile
            append.command = replace(append.command, originator_version=version)
        outcome = await self._store.database(first.domain).committer.submit(append, []).told
        return await self._receipt(origin, first.domain, first.id, version, Outcome(position, outcome.problem))

    def _enter(self, cls: type[Aggregate], id: UUID) -> Entry:
        entry = self._entries.get((cls, id))
        if entry is None:
            entry = self._entries[cls, id] = Entry(cls, id)
        entry.users += 1
        return entry

    def _leave(self, entry: Entry) -> None:
        entry.users -= 1
        if not entry.users:
            del self._entries[entry.cls, entry.id]
            if not entry.in_flight() and entry.aggregate is not None and not entry.aggregate.pending_events:
                self._store.database(entry.cls.domain).keep(entry.aggregate, entry.position)

    def _take(self, entry: Entry) -> None:
        """Begin with the state that the last command of this process has left, if nothing else is there."""
        if entry.aggregate is not None or entry.loading is not None or entry.last is not None:
            return
        if (left := self._read_first.get(entry.cls, 0)) > 0:
            self._read_first[entry.cls] = left - 1
        elif (kept := self._store.database(entry.cls.domain).take(entry.cls, entry.id)) is not None:
            entry.aggregate, entry.position, entry.proven = kept.aggregate, kept.position, False

    def _doubted(self, doubtful: Sequence[Entry], entries: Sequence[Entry]) -> bool:
        """Whether a decision rests on such states: it is dropped then, and what came since they were kept is read."""
        if doubtful:
            self._forget_undecided(entries)
        for entry in doubtful:
            if entry.aggregate is not None:
                self._store.database(entry.cls.domain).keep(entry.aggregate, entry.position)
                entry.aggregate = None
            self._loading(entry)
        return bool(doubtful)

    def _loading(self, entry: Entry) -> asyncio.Future[None]:
        """The load that is under way, begun here if there is none."""
        if entry.loading is None:
            entry.loading = asyncio.ensure_future(self._load(entry))
            entry.loading.add_done_callback(lambda done: done.cancelled() or done.exception())  # the command's to raise
        return entry.loading

    async def _ready(self, entries: Sequence[Entry]) -> list[Aggregate]:
        """The newest states that this process knows of, events in flight included."""
        while True:
            for entry in entries:
                entry.in_flight()
                self._take(entry)
            aggregates = [entry.aggregate for entry in entries if entry.aggregate is not None]
            if len(aggregates) == len(entries):
                return aggregates
            for entry in entries:
                if entry.aggregate is None:
                    await asyncio.shield(self._loading(entry))

    async def _load(self, entry: Entry) -> None:
        try:
            while flying := entry.in_flight():
                await asyncio.wait([one.done for one in flying])
            loaded = await self._store.database(entry.cls.domain).load(entry.cls, entry.id, to_change=True)
            if loaded.aggregate is None:
                raise NotFound(f"there is no {entry.cls.__name__.lower()} {entry.id}")
            entry.aggregate, entry.position, entry.proven = loaded.aggregate, loaded.position, True
        finally:
            entry.loading = None

    @staticmethod
    def _forget(entries: Sequence[Entry]) -> None:
        for entry in entries:
            entry.aggregate = None

    @staticmethod
    def _forget_undecided(entries: Sequence[Entry]) -> None:
        """Drop aggregates that a failed decision had begun to change."""
        for entry in entries:
            if entry.aggregate is not None and entry.aggregate.pending_events:
                entry.aggregate = None

    async def _all_stored(self, pending: Sequence[Pending]) -> bool:
        """Wait for events in flight that a decision rests on; False when one was not stored, so decide again."""
        if pending:
            await asyncio.wait([one.done for one in pending], timeout=WAIT_S)
            if any(not one.done.done() for one in pending):
                raise Unavailable("the event store does not answer")
        return not any(one.failed for one in pending)

    async def _refused(self, origin: Origin, domain: str, after: Sequence[Pending], no: Exception) -> Receipt | None:
        """A refusal stands once what it rests on is stored, unless the command had been stored before."""
        if not await self._all_stored(after):
            return None
        if origin.command is not None:
            stored = await self._store.answer(domain, origin.command)
            if stored is not None:
                return self._again(origin, domain, stored)
        raise no

    async def _receipt(self, origin: Origin, domain: str, id: UUID, version: int, outcome: Outcome) -> Receipt | None:
        if outcome.problem is None:
            return Receipt(id, version, f"{domain}:{outcome.position}" if outcome.position else "")
        kind, what = outcome.problem
        if origin.command is not None:
            stored = await self._store.answer(domain, origin.command)
            if stored is not None:
                return self._again(origin, domain, stored)
        if kind == "claim":
            raise Refused(f"{what} is taken")
        return None

    @staticmethod
    def _again(origin: Origin, domain: str, stored: CommandRow) -> Receipt:
        if not stored.may_be(origin.fingerprint):
            raise Reused("this command id was used before, for another request")
        position = f"{domain}:{stored.notification_id}" if stored.notification_id else ""
        return Receipt(stored.originator_id, stored.originator_version, position, replayed=True)

    def _append(
        self, origin: Origin, streams: Sequence[Sequence[Event]], targets: Sequence[Aggregate], position: int
    ) -> Append:
        first = targets[0]
        causation = origin.causation or origin.command
        rows, claims, timers = [], [], []
        if origin.timer is not None:
            timers.append(TimerRow(origin.timer.originator_id, origin.timer.key, only_due=origin.timer.due))
        for events in streams:
            for event in events:
                rows.append(
                    Row(
                        0, event.originator_id, event.originator_version, event.type, wire.encode(event), clock.random_id(),
                        event.timestamp, origin.correlation, causation, origin.actor,
                    )
                )  # fmt: skip
                claims += [(event.originator_id, claim) for claim in event.claims()]
                timers += [timer_row(event.originator_id, timer) for timer in event.timers()]
        command = None
        if origin.command is not None:
            command = CommandRow(origin.command, origin.fingerprint, first.id, first.version, position)
        starts = [(events[0].originator_id, events[0].originator_version) for events in streams]
        return Append(first.domain, rows, starts, {one.id for one in targets}, net_claims(claims), timers, command)

    @staticmethod
    def _due_snapshots(
        changed: Sequence[Aggregate], streams: Sequence[Sequence[Event]]
    ) -> list[tuple[type[Aggregate], UUID, int, bytes]]:
        """The states to keep: dumped here and now, since the next command changes the object."""
        due = []
        for one, events in zip(changed, streams, strict=True):
            every = one.snapshot_every
            if every and one.version // every > (one.version - len(events)) // every:
                try:
                    due.append((type(one), one.id, one.version, snapshot.dump(one)))
                except TypeError:
                    log.exception("no snapshot of %s", one.aggregate_name)
        return due

    def _background_save(self, cls: type[Aggregate], id: UUID, version: int, state: bytes) -> None:
        async def save() -> None:
            try:
                await self._store.database(cls.domain).save_snapshot(cls, id, version, state)
            except Exception:
                log.exception("no snapshot of %s %s; its events stand", cls.aggregate_name, id)

        task = asyncio.ensure_future(save())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def net_claims(claims: Sequence[tuple[UUID, Take | Free]]) -> list[tuple[UUID, Take | Free]]:
    """The last word on each key: a command that takes and frees one leaves only what it ended with."""
    return list({(claim.scope, claim.key): (id, claim) for id, claim in claims}.values())


def timer_row(id: UUID, timer: Timer | Cancel) -> TimerRow:
    """What an event asks for, as a row."""
    if isinstance(timer, Cancel):
        return TimerRow(id, timer.key)
    return TimerRow(id, timer.key, timer.due, timer.call.__qualname__, timer.args)


def owner_of(method: Callable[..., Any]) -> type[Aggregate]:
    """The aggregate class that `Wallet.hold` is a method of. Raises `TypeError` for anything else."""
    name, _, _ = method.__qualname__.rpartition(".")
    found = getattr(sys.modules[method.__module__], name, None)
    if not (isinstance(found, type) and issubclass(found, Aggregate) and found.domain):
        raise TypeError(f"{method.__qualname__} is not a command of an aggregate")
    return found


def domain_made_by(make: Callable[..., Aggregate]) -> str:
    """The domain of what a class, or a class method, makes. Raises `TypeError` for anything else."""
    cls = getattr(make, "__self__", make)
    if not (isinstance(cls, type) and issubclass(cls, Aggregate)):
        raise TypeError(f"{make!r} is neither an aggregate nor a class method of one")
    return cls.domain


def command_of(domain: str, call: str) -> tuple[type[Aggregate], Callable[..., None]]:
    """The class and method of a stored call, `Wallet.expire`. Raises `LookupError` when the code has it no more."""
    name, _, method = call.partition(".")
    cls = AGGREGATES.get(f"{domain}.{name}")
    found = getattr(cls, method, None)
    if cls is None or found is None:
        raise LookupError(f"{domain} has no command {call}")
    return cls, cast("Callable[..., None]", found)


class Commands:
    """Commands under one origin. Each method raises `Refused`, `NotFound`, `Conflict`, `Reused`, `Invalid` or `Unavailable`."""

    def __init__(self, executor: Executor, origin: Origin) -> None:
        self._executor, self.origin = executor, origin

    def under(self, **changes: Any) -> Commands:
        """The same door with another part of its origin, as `commands.under(command=…)`."""
        return Commands(self._executor, replace(self.origin, **changes))

    def expecting(self, cls: type[A], id: UUID) -> AbstractContextManager[A | None]:
        """Load an aggregate while its caller looks elsewhere: a command given within need not wait for that.

        It gives the aggregate if it is here already, perhaps out of date: only what never changes in it may be looked at.
        """
        return self._executor.expecting(cls, id)

    def load(self, cls: type[A], id: UUID) -> Awaitable[A]:
        """The aggregate as it is stored now: a reactor looks before it acts. Raises `NotFound`, `Unavailable`."""
        return self._executor.load(cls, id)

    def open(self, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> Awaitable[Receipt]:
        """Make a new aggregate under a new id; the same command id again answers with the first one's."""
        return self._executor.create(self.origin, domain_made_by(cls), lambda: cls(*args, **kwargs))

    def open_as(self, id: UUID, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> Awaitable[Receipt]:
        """Make a new aggregate under an id of the caller's (a saga derives it, so that a retry meets the first)."""

        def make() -> A:
            with under_id(id):
                return cls(*args, **kwargs)

        return self._executor.create(self.origin, domain_made_by(cls), make)

    def tell(
        self, id: UUID, method: Callable[Concatenate[A, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[Receipt]:
        """Give one aggregate a command: `tell(id, Wallet.hold, escrow, 60)`."""

        def decide(aggregates: Sequence[Aggregate]) -> None:
            method(cast(A, aggregates[0]), *args, **kwargs)

        return self._executor.change(self.origin, [(owner_of(method), id)], decide)

    def save(self, aggregate: Aggregate) -> Awaitable[Receipt]:
        """Store what an aggregate that is the caller's own, folded from its whole history, has decided by its methods.

        That costs no load; it is a `Conflict`, and the aggregate of no use any more, when somebody else was faster.
        """
        return self._executor.save(self.origin, aggregate)

    def tell_with(
        self, id: UUID, other: UUID, method: Callable[Concatenate[A, A, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> Awaitable[Receipt]:
        """Give an aggregate a command that changes another one of its class too, both or neither: `tell_with(payer, payee,
        Wallet.transfer, …)`. The receipt is the first one's."""

        def decide(aggregates: Sequence[Aggregate]) -> None:
            method(cast(A, aggregates[0]), cast(A, aggregates[1]), *args, **kwargs)

        return self._executor.change(self.origin, [(owner_of(method), id), (owner_of(method), other)], decide)

    def tell_all(self, calls: Sequence[tuple[UUID, Callable[..., None], tuple[Any, ...]]]) -> Awaitable[Receipt]:
        """Give several aggregates of one domain a command each, all or nothing: `[(id, Stock.reserve, (order, 2)), …]`."""
        targets = [(owner_of(method), id) for id, method, _ in calls]
        if len({cls.domain for cls, _ in targets}) != 1:
            raise TypeError("the aggregates of one commit are of one domain")

        def decide(aggregates: Sequence[Aggregate]) -> None:
            for aggregate, (_, method, args) in zip(aggregates, calls, strict=True):
                method(aggregate, *args)

        return self._executor.change(self.origin, targets, decide)
