"""`titan schemas check` and `titan schemas lock`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from schemas import codec, history
from schemas.compatible import complaints, defects
from schemas.errors import SchemaError
from schemas.history import Entry, subject_of
from schemas.tree import Tree, canonical, text


def survey(avro: Path, entries: Sequence[Entry]) -> tuple[list[str], list[tuple[str, Tree]]]:
    """(what is wrong, what is not locked yet as subject and schema) of all .avsc files against the history."""
    wrong: list[str] = []
    unlocked: list[tuple[str, Tree]] = []
    locked = {entry.subject: entry.text for entry in entries}
    domains = sorted(file.stem for file in avro.glob("*.avsc") if file.stem != "common")
    for domain in domains:
        try:
            tree = codec.events_of(domain, avro)
        except SchemaError as error:
            wrong.append(str(error))
            continue
        wrong += [f"{domain}: {defect}" for defect in defects(tree)]
        wrong += complaints(domain, tree, [entry for entry in entries if entry.domain == domain])
        for record in tree:
            subject, schema = subject_of(record["name"]), canonical(record)
            if locked.get(subject) != text(schema):
                unlocked.append((subject, schema))
    gone = {entry.domain for entry in entries} - set(domains)
    wrong += [
        f"{domain} is in the history, but {domain}.avsc is gone: its events must stay readable"
        for domain in sorted(gone)
    ]
    return wrong, unlocked


def main(argv: Sequence[str] | None = None) -> int:
    """`check`: 0 when every .avsc is locked and reads all its past; `lock`: appends what isn't locked, unless incompatible."""
    parser = argparse.ArgumentParser(prog="titan schemas", description=__doc__)
    parser.add_argument("command", choices=["check", "lock"])
    command = parser.parse_args(argv).command
    try:
        entries = history.load()
    except SchemaError as error:
        print(error, file=sys.stderr)
        return 1
    wrong, unlocked = survey(codec.AVRO, entries)
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        return 1
    if command == "lock":
        for entry in history.append(unlocked):
            print(f"locked {entry.subject} version {entry.version} as id {entry.id}")
    elif unlocked:
        print(f"not locked: {', '.join(subject for subject, _ in unlocked)}; run `titan schemas lock`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
