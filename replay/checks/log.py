"""An event store and its topic, compared event by event up to a cut: all that a relay had published when it began.

Both come as the bytes of a row of COPY, so equal events have equal bytes and none is decoded. First a sum of hashes over each
range of ids, of the topic as its readers take it: what stands behind a higher id of its partition is not seen. Only where the sums
differ are the events themselves looked at, so memory grows with the log by two numbers a range.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Collection, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

import psycopg
from psycopg import sql

from aggregates.kernel import wire
from aggregates.kernel.migrate import names
from aggregates.kernel.partition import partition_of
from aggregates.kernel.wire import COLUMNS, Row
from infra.settings import Settings
from replay import rows
from replay.checks import Checked, Difference
from replay.log import ReplayError, Span, messages, spans
from replay.progress import Progress
from schemas.external import Ids

RANGE = 4_096  # ids
RANGES_MAX = 25  # differing ranges that are looked at event by event
BITS = 2**64 - 1
TOLD = 1_000  # rows between two words of progress

T = TypeVar("T")


class Record(NamedTuple):
    """An event in a topic. `late`: it stands behind a higher id of its partition, so that readers drop it."""

    partition: int
    offset: int
    row: bytes
    late: bool


class Pair(NamedTuple):
    """An event as the store and as the topic has it, and the difference that it is."""

    stored: bytes | None
    record: Record | None
    difference: Difference


class LogCheck:
    """`compare`, and `repair` what it found. Both raise ReplayError and psycopg.Error."""

    def __init__(self, of: Settings, domain: str, ids: Ids | None = None, as_json: bool = False) -> None:
        self._of, self._domain, self._ids, self._as_json = of, domain, ids, as_json
        self._names = names(domain)
        self.what = f"event store and topic {domain}"
        self.pairs: list[Pair] = []

    def compare(self) -> Checked:
        checked = Checked(self.what)
        head, published = self._heads()
        cut = min(head, published)
        its = spans(self._of, [self._domain], partial=True)
        notes = [f"{head - cut:,} events are not published yet"] if head > cut else []
        newest: list[tuple[int, Record]] = []
        with Progress(f"log {self._domain}", its, self._as_json, cut + sum(span.records for span in its)) as progress:
            rows = self._stored(sql.SQL("notification_id <= {}").format(sql.Literal(cut)))
            stored = self._sums(told(rows, progress), cut)
            known = self._sums(self._taken(its, newest, progress), cut)
        differing = [
            number for number in sorted(stored.keys() | known.keys()) if stored.get(number) != known.get(number)
        ]
        self.pairs = self._pairs(its, differing[:RANGES_MAX], cut)
        if newest and newest[0][0] > self._heads()[0]:
            self.pairs.append(self._beyond(*newest[0]))
        checked.rows, checked.count = cut, len(self.pairs)
        if more := len(differing) - RANGES_MAX if len(differing) > RANGES_MAX else 0:
            checked.count += more
            notes.append(f"{more} more ranges of {RANGE:,} events differ, from {differing[RANGES_MAX] * RANGE:,} on")
        checked.note = "; ".join(notes)
        checked.differences = [pair.difference for pair in self.pairs]
        return checked

    def repair(self) -> None:
        """Mend the store from the topic, and write the topic anew from the store, each where the other is sure to be right.

        A record of Kafka can't be changed afterwards, a row of the store can: so a changed row becomes what its record says.
        """
        lacking = [pair for pair in self.pairs if pair.record is None or pair.record.late]
        with psycopg.connect(self._of.dsn(self._domain), connect_timeout=5) as connection:
            # No command is committed meanwhile.
            connection.execute("SELECT FROM log_heads WHERE domain = %s FOR UPDATE", [self._domain])
            for pair in self.pairs:
                if pair not in lacking:
                    self._mend(connection, pair)
        if not lacking:
            return
        from replay.topic import rewrite

        if sure := all(pair.difference.repaired for pair in self.pairs if pair not in lacking):
            rewrite(self._of, self._domain, force=True)
        for pair in lacking:
            pair.difference.repaired = sure
            pair.difference.refused = "" if sure else "its store differs, too, and is mended first"

    def _mend(self, connection: psycopg.Connection[Any], pair: Pair) -> None:
        """Make of a row what the topic says, if it can be nothing else."""
        assert pair.record is not None
        difference, row = pair.difference, rows.unpacked(pair.record.row)
        before = rows.unpacked(pair.stored) if pair.stored else None
        if difference.refused:
            return
        if before is not None and _where(before) != _where(row):
            difference.refused = "store and topic tell of different aggregates under this id"
            return
        try:
            wire.recorded(self._domain, row)
        except Exception as error:
            difference.refused = f"the topic's record can't be read: {error}"
            return
        try:
            with connection.transaction():
                self._execute(connection, "DELETE FROM {events} WHERE notification_id = %s", [row.notification_id])
                marks = ", ".join(["%s"] * len(Row._fields))
                self._execute(connection, f"INSERT INTO {{events}} ({COLUMNS}) VALUES ({marks})", row)
                self._execute(connection, "DELETE FROM {snapshots} WHERE originator_id = %s", [row.originator_id])
        except psycopg.errors.UniqueViolation:
            difference.refused = "its aggregate has another event at this version"
            return
        difference.repaired = True

    def _execute(self, connection: psycopg.Connection[Any], query: str, values: Any) -> None:
        connection.execute(sql.SQL(query).format(**self._names), values)

    def _heads(self) -> tuple[int, int]:
        """The last id stored, and the last that is certain to be in the topic."""
        with psycopg.connect(self._of.dsn(self._domain), connect_timeout=5) as connection:
            row = connection.execute("SELECT last FROM log_heads WHERE domain = %s", [self._domain]).fetchone()
            made = connection.execute("SELECT to_regclass('relay_positions')").fetchone()
            position = None
            if made and made[0]:
                query = "SELECT position FROM relay_positions WHERE domain = %s"
                position = connection.execute(query, [self._domain]).fetchone()
        if row is None:
            raise ReplayError(f"there is no event store of {self._domain} in its database")
        return row[0], position[0] if position else 0

    def _stored(self, where: sql.Composable) -> Iterator[tuple[int, bytes]]:
        """Rows of the store by id, packed, of one snapshot."""
        query = sql.SQL(f"COPY (SELECT {COLUMNS} FROM {{events}} WHERE {{where}}) TO STDOUT (FORMAT BINARY)")
        with closing(psycopg.connect(self._of.dsn(self._domain), connect_timeout=5)) as connection:
            with connection.cursor().copy(query.format(**self._names, where=where)) as copy:
                for chunk in copy:
                    row = bytes(chunk).removeprefix(rows.BEGIN)
                    if row and row != rows.END:
                        yield rows.id_of(row), row

    def _records(self, its: Collection[Span], progress: Progress | None = None) -> Iterator[tuple[int, Record]]:
        """Every event in the topic."""
        newest: dict[int, int] = {}
        batches = messages(self._of, its)
        for batch in progress.over(self._domain, batches) if progress else batches:
            for message in batch:
                key, value, headers = rows.record(message)
                partition, offset = cast(int, message.partition()), cast(int, message.offset())
                try:
                    id, _, row = rows.packed(key, value if self._ids is None else self._ids.stored(value), headers)
                except ValueError:
                    continue  # it never was in a store: workers park it
                late = id <= newest.get(partition, 0)
                if not late:
                    newest[partition] = id
                yield id, Record(partition, offset, row, late)

    def _taken(
        self, its: Collection[Span], newest: list[tuple[int, Record]], progress: Progress
    ) -> Iterator[tuple[int, bytes]]:
        """What readers take of the topic; the newest of it is put into `newest`."""
        for id, record in self._records(its, progress):
            if not record.late:
                if not newest or id > newest[0][0]:
                    newest[:] = [(id, record)]
                yield id, record.row

    @staticmethod
    def _sums(events: Iterator[tuple[int, bytes]], cut: int) -> dict[int, int]:
        sums: dict[int, int] = {}
        for id, row in events:
            if id <= cut:
                sums[id // RANGE] = (sums.get(id // RANGE, 0) + hash(row)) & BITS
        return sums

    def _pairs(self, its: Collection[Span], ranges: Collection[int], cut: int) -> list[Pair]:
        """The events of these ranges that are not the same on both sides."""
        if not ranges:
            return []
        where = sql.SQL("notification_id / {} = ANY({}) AND notification_id <= {}")
        wanted = where.format(sql.Literal(RANGE), sql.Literal(list(ranges)), sql.Literal(cut))
        stored = dict(self._stored(wanted))
        seen: dict[int, Record] = {}
        for id, record in self._records(its):
            if id <= cut and id // RANGE in ranges and (id not in seen or seen[id].late):
                seen[id] = record
        made = []
        for id in sorted(stored.keys() | seen.keys()):
            row, its_record = stored.get(id), seen.get(id)
            if its_record is None or its_record.late or row != its_record.row:
                made.append(Pair(row, its_record, self._difference(id, row, its_record, its, seen)))
        return made

    def _difference(
        self, id: int, stored: bytes | None, record: Record | None, its: Collection[Span], seen: dict[int, Record]
    ) -> Difference:
        it = rows.unpacked(stored or (record.row if record else b""))
        if record is None:
            partition = partition_of(str(it.originator_id).encode(), len(its))
            after = sorted((i, r.offset) for i, r in seen.items() if r.partition == partition and not r.late)
            place = bisect(after, (id, 0))
            offset = after[place][1] if place < len(after) else next(s.end for s in its if s.partition == partition)
            why = "is in the store and not in the topic, where it should stand before this offset"
        else:
            partition, offset = record.partition, record.offset
            if record.late:
                why = "stands in the topic behind a later event of its partition, where readers drop it"
            elif stored is None:
                why = "is in the topic and not in the store"
            else:
                theirs = rows.unpacked(record.row)
                why = "; ".join(
                    f"{name} is {_shown(ours)} in the store and {_shown(told)} in the topic"
                    for name, ours, told in zip(Row._fields, it, theirs, strict=True)
                    if ours != told
                )
        return Difference(self.what, _key(it), why, self._domain, partition, offset, id)

    def _beyond(self, id: int, record: Record) -> Pair:
        """The store has lost its end: what it stores now gets ids that the topic has given away."""
        difference = Difference(
            self.what, _key(rows.unpacked(record.row)), "and maybe others before it are in the topic, and the store ends before",
            self._domain, record.partition, record.offset, id,
            refused="rebuild the store, before it stores anything else: titan replay store",
        )  # fmt: skip
        return Pair(None, record, difference)


def told(rows: Iterator[T], progress: Progress) -> Iterator[T]:
    """The rows, with the progress of reading them."""
    while some := list(islice(rows, TOLD)):
        yield from some
        progress.moved(len(some), {})


def _where(row: Row) -> tuple[Any, int]:
    return row.originator_id, row.originator_version


def _key(row: Row) -> str:
    return f"{row.event_type} {row.notification_id} of {row.originator_id} at version {row.originator_version}"


def _shown(value: object) -> str:
    return f"{len(value)} bytes {value[:24].hex()}" if isinstance(value, bytes) else str(value)
