"""Every schema that was ever written with, in one append-only file: schemas/history.jsonl.

Each event is a subject of its own, `<topic>-<full name of its record>` (Confluent's TopicRecordNameStrategy). Not each topic, with
a union of its events as the schema: ClickHouse's AvroConfluent, Flink and much of Kafka Connect can't read a union.

A line is {"id", "subject", "version", "schema", "chain"}: ids count up over all subjects, versions within one, and `chain` is
the sha256 of the line before together with this line, so an edited, reordered or missing line is found without asking git.
After a merge of two branches that both locked: keep the lines of the one that was released, then lock again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import HistoryBroken
from schemas.tree import Tree, expand, text

FILE = Path(__file__).parent / "history.jsonl"
RESTORE = (
    "restore schemas/history.jsonl from version control and run `titan schemas lock`; lines are only ever appended"
)


@dataclass(frozen=True)
class Entry:
    """One locked schema. `schema`: the event's record as JSON, named types inlined where first used."""

    id: int
    subject: str
    version: int
    schema: Tree
    chain: str = ""

    @property
    def domain(self) -> str:
        return self.subject.partition("-")[0].removeprefix("titan.")

    @cached_property
    def tree(self) -> Tree:
        return expand(self.schema)

    @cached_property
    def text(self) -> str:
        return text(self.schema)

    def chained(self, previous: str) -> Entry:
        content = text([previous, self.id, self.subject, self.version, self.schema])
        return Entry(self.id, self.subject, self.version, self.schema, hashlib.sha256(content.encode()).hexdigest())

    @property
    def line(self) -> str:
        """The entry as it stands in the file, newline included."""
        fields = {"id": self.id, "subject": self.subject, "version": self.version, "schema": self.schema}
        return text(fields | {"chain": self.chain}) + "\n"


def subject_of(record: str) -> str:
    """The subject of a record by its full name, whose namespace is the topic: titan.order-titan.order.Placed."""
    return f"{record.rpartition('.')[0]}-{record}"


def load(file: Path | None = None) -> list[Entry]:
    """All locked schemas, by id (the first is 1). HistoryBroken: a line was edited, moved or taken out. No file: none."""
    file = FILE if file is None else file
    if not file.exists():
        return []
    entries: list[Entry] = []
    versions: dict[str, int] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        entry = _parse(line, number)
        version = versions[entry.subject] = versions.get(entry.subject, 0) + 1
        expected = entry.chained(entries[-1].chain if entries else "")
        if (entry.id, entry.version, entry.chain) != (number, version, expected.chain):
            raise HistoryBroken(f"line {number} of the schema history is not what was appended there: {RESTORE}")
        entries.append(entry)
    return entries


def _parse(line: str, number: int) -> Entry:
    try:
        fields: dict[str, Any] = json.loads(line)
        return Entry(fields["id"], fields["subject"], fields["version"], fields["schema"], fields["chain"])
    except (ValueError, KeyError, TypeError) as error:
        raise HistoryBroken(f"line {number} of the schema history cannot be read ({error}): {RESTORE}") from error


def append(new: Iterable[tuple[str, Tree]], file: Path | None = None) -> list[Entry]:
    """Lock (subject, canonical schema) pairs at the end of the history, but for those locked meanwhile; the entries as appended."""
    file = FILE if file is None else file
    with file.open("a", encoding="utf-8") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # two that lock at once append one after the other
        entries = load(file)
        before = len(entries)
        for subject, schema in new:
            past = [entry for entry in entries if entry.subject == subject]
            if past and past[-1].text == text(schema):
                continue
            entry = Entry(len(entries) + 1, subject, len(past) + 1, schema)
            entries.append(entry.chained(entries[-1].chain if entries else ""))
        out.writelines(entry.line for entry in entries[before:])
    return entries[before:]
