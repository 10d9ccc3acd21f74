"""A history that clients recorded, judged afterwards: acknowledged command → event store → topic → every view.

In the manner of Jepsen's checkers. Each client notes a call before it makes it, and how it ended: `ok`, `no` (a rule refused it: it
had no effect), or `unknown` (cut off, timed out: it may have happened or not, and both are legal). Nothing is judged while faults
happen; when all is at rest the history is held against what the stores have. Every function answers with faults in words.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from aggregates.kernel.recorder import CommandRow
from aggregates.kernel.wire import Row

Outcome = Literal["ok", "no", "unknown"]
SHOWN_MAX = 10  # faults of one kind that are told


@dataclass(eq=False)
class Command:
    """One command on one aggregate, under an id that its events name as their cause. `version` and `position` are its receipt's.

    `kept`: the store keeps the id as well, so that it can be asked for again.
    """

    client: str
    id: UUID
    aggregate: UUID
    began: float = 0.0
    ended: float = float("inf")
    outcome: Outcome = "unknown"
    version: int = 0
    position: int = 0
    kept: bool = True

    def __str__(self) -> str:
        return f"{self.client}'s command {self.id} on {self.aggregate}"


@dataclass(eq=False)
class Read:
    """One look at one view of one aggregate: what it showed (version 0: no row), having asked for at least `after`."""

    client: str
    view: str
    aggregate: UUID
    version: int
    after: int = 0
    epoch: int = 0
    """Counts the crashes of the view's store: one that loses its last moments is no fault, unless `after` asked for them."""


@dataclass
class History:
    """What clients of one domain did and saw, in the order in which it happened to each of them."""

    domain: str
    commands: list[Command] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def begin(self, client: str, id: UUID, aggregate: UUID, kept: bool = True) -> Command:
        """To be called before the command is given; until `end` it counts as unknown."""
        made = Command(client, id, aggregate, time.monotonic(), kept=kept)
        self.commands.append(made)
        return made

    def end(self, command: Command, outcome: Outcome, version: int = 0, position: int = 0) -> None:
        command.outcome, command.version, command.position = outcome, version, position
        command.ended = time.monotonic()


def judge_log(rows: Iterable[Row]) -> Iterator[str]:
    """A whole domain's log by itself: no gap, and each aggregate's versions in their order."""
    was, versions = 0, dict[UUID, int]()
    for row in sorted(rows, key=lambda row: row.notification_id):
        if row.notification_id != was + 1:
            yield f"notification {was} is followed by {row.notification_id}"
        if row.originator_version != versions.get(row.originator_id, 0) + 1:
            yield f"notification {row.notification_id}: {row.originator_id} has version {row.originator_version} next"
        was, versions[row.originator_id] = row.notification_id, row.originator_version


def judge_store(
    history: History, rows: Iterable[Row], stored: Mapping[UUID, CommandRow], actors: Collection[str]
) -> Iterator[str]:
    """Commands against the event store: what was acknowledged is there, once; what was refused is not; nobody else wrote.

    `rows` are (at least) the events of the history's aggregates and `stored` the domain's commands, by id. `actors`: those
    whose every command is in the history; sagas and timers may have written, too.
    """
    log = sorted(rows, key=lambda row: row.notification_id)
    by_id = {row.notification_id: row for row in log}
    by_cause: dict[UUID | None, list[Row]] = defaultdict(list)
    for row in log:
        by_cause[row.causation_id].append(row)
    asked = {command.id: command for command in history.commands}
    for command in asked.values():
        yield from _command(command, by_id, by_cause[command.id], stored.get(command.id))
    yield from _some(
        "phantom",
        (
            f"{row.event_type} {row.notification_id} of {row.originator_id}, caused by {row.causation_id}"
            for row in log
            if row.actor in actors and row.causation_id not in asked
        ),
    )
    yield from _order(history)


def _command(
    command: Command, by_id: Mapping[int, Row], effects: Sequence[Row], kept: CommandRow | None
) -> Iterator[str]:
    versions = [row.originator_version for row in effects if row.originator_id == command.aggregate]
    done_at = versions[-1] if versions else 0
    if kept or command.outcome == "ok":
        done_at = kept.originator_version if kept else command.version
    if effects and command.kept and kept is None:
        yield f"{command} has events, and is not known as done"
    if versions and versions[0] + len(versions) - 1 != done_at:
        yield f"{command} had its effect more than once: versions {versions}, done at {done_at}"
    if command.outcome == "no" and (effects or kept):
        yield f"{command} was refused, but has {len(effects)} events"
    if command.outcome == "ok":
        told = (command.version, command.position)
        there = by_id.get(command.position)
        if command.position and (there is None or there.originator_id != command.aggregate):
            yield f"LOST: {command} was acknowledged with version and position {told}, where {there} is"
        elif there is not None and there.originator_version != command.version:
            yield f"{command} was told {told}, where version {there.originator_version} is"
        if command.kept and kept is None:
            yield f"LOST: {command} was acknowledged and is not in the store"
        elif kept and (kept.originator_version, kept.notification_id) != told:
            yield f"{command} was told {told}, the store has {kept.originator_version} at {kept.notification_id}"


def _order(history: History) -> Iterator[str]:
    """A command that began after another one was acknowledged comes after it."""
    by_aggregate: dict[UUID, list[Command]] = defaultdict(list)
    for command in history.commands:
        if command.outcome == "ok" and command.version:
            by_aggregate[command.aggregate].append(command)
    for commands in by_aggregate.values():
        commands.sort(key=lambda one: one.ended)
        highest, ended = 0, iter(sorted(commands, key=lambda one: one.ended))
        waiting = next(ended, None)
        for command in sorted(commands, key=lambda one: one.began):
            while waiting is not None and waiting.ended < command.began:
                highest, waiting = max(highest, waiting.version), next(ended, None)
            if command.version < highest:
                yield f"{command} is at version {command.version}, though {highest} had been acknowledged before it began"


def judge_topic(rows: Iterable[Row], partitions: Sequence[Iterable[Row]]) -> Iterator[str]:
    """The topic against the store: after dropping what a consumer drops, each event once, as it is, in its aggregate's order."""
    wanted = {row.notification_id: row for row in rows}
    seen: Counter[int] = Counter()
    home: dict[UUID, int] = {}
    for number, partition in enumerate(partitions):
        position, versions = 0, dict[UUID, int]()
        for row in partition:
            if row.notification_id <= position:
                continue
            position = row.notification_id
            seen[position] += 1
            if wanted.get(position) != row:
                yield f"partition {number}: notification {position} is not the store's"
            if home.setdefault(row.originator_id, number) != number:
                yield f"{row.originator_id} is in partitions {home[row.originator_id]} and {number}"
            if row.originator_version != versions.get(row.originator_id, 0) + 1:
                yield (
                    f"partition {number}: {row.originator_id} goes from version {versions.get(row.originator_id, 0)} "
                    f"to {row.originator_version}"
                )
            versions[row.originator_id] = row.originator_version
    yield from _some("LOST: not in the topic", (f"notification {id}" for id in wanted if not seen[id]))
    yield from _some("twice in the topic", (f"notification {id}" for id, count in seen.items() if count > 1))


def judge_reads(history: History, last: Mapping[UUID, int]) -> Iterator[str]:
    """Reads: one's own writes are seen, a view never goes back, and it never shows what is not stored (`last`: versions at the end)."""
    at = {c.position: c for c in history.commands if c.outcome == "ok" and c.position}
    highest: dict[tuple[str, str, UUID, int], int] = {}
    for read in history.reads:
        told = at.get(read.after)
        if told is not None and told.aggregate == read.aggregate and read.version < told.version:
            yield (
                f"{read.client} read {read.view} {read.aggregate} after {read.after} and saw version {read.version}, "
                f"not its own {told.version}"
            )
        where = (read.client, read.view, read.aggregate, read.epoch)
        if read.version < highest.get(where, 0):
            yield f"{read.client} saw {read.view} {read.aggregate} go from version {highest[where]} back to {read.version}"
        highest[where] = max(read.version, highest.get(where, 0))
        if read.version > last.get(read.aggregate, 0):
            yield f"{read.client} saw version {read.version} of {read.aggregate}, which has {last.get(read.aggregate, 0)}"


def _some(what: str, faults: Iterable[str]) -> Iterator[str]:
    found = list(faults)
    if found:
        more = f" and {len(found) - SHOWN_MAX} more" if len(found) > SHOWN_MAX else ""
        yield f"{what}: {'; '.join(found[:SHOWN_MAX])}{more}"


def last_versions(rows: Collection[Row]) -> dict[UUID, int]:
    """The newest version of each aggregate."""
    found: dict[UUID, int] = {}
    for row in rows:
        found[row.originator_id] = max(found.get(row.originator_id, 0), row.originator_version)
    return found
