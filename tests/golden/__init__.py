"""`titan golden add|accept`: for each schema version that was ever locked, a history of events whose bytes are kept for ever.

`tests/golden/<domain>.jsonl` has a line a history: `events`, the bodies as they lie in store and topic, each under the record and
version that wrote it; and `told`, what today's code makes of them: values, the aggregate's state, the rows of every read model
(the last two as hashes by attribute and by column). Each build reads all of them anew.

`add` records histories for the versions that have none, out of what the domain's own tests in tests/test_<domain>*.py do, so they
are ones that its rules allow. Lines are only ever appended: `chain` covers all events so far. `accept` says that old events are
meant to be read in another way from now on: it writes `told` anew, for the reviewer to look at.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import orjson
import pytest

from aggregates.kernel import Event, Recorded, domains, snapshot, wire
from aggregates.kernel.event import ENVELOPE, EPOCH
from infra.folding import apply
from infra.settings import ROOT
from projections.kernel import changes
from projections.kernel.clauses import projections
from projections.kernel.tables import AnyTable, json_bytes
from schemas import history

FOLDER = Path(__file__).parent
HASH_CHARS = 12
HISTORY_EVENTS_MAX = 30
ADD = "run: titan golden add"
ACCEPT = "if old events are meant to be read so from now on, run: titan golden accept"

Version = tuple[str, int]  # an event's name at the time, and its schema's version
Told = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """One event as it was written: its record's version, its time in microseconds, and its Avro body without the framing."""

    name: str
    version: int
    at: int
    body: bytes

    @property
    def json(self) -> list[Any]:
        return [self.name, self.version, self.at, base64.b64encode(self.body).decode()]


@dataclass(frozen=True)
class History:
    """The events of one aggregate from its first. `told` is what the file says of them."""

    domain: str
    id: UUID
    events: list[Written]
    chain: str = ""
    told: Told = field(default_factory=dict)

    @property
    def versions(self) -> set[Version]:
        return {(one.name, one.version) for one in self.events}

    def chained(self, previous: str) -> str:
        content = orjson.dumps([previous, str(self.id), [one.json for one in self.events]])
        return hashlib.sha256(content).hexdigest()

    @property
    def line(self) -> bytes:
        written = {"id": str(self.id), "events": [one.json for one in self.events], "chain": self.chain}
        return orjson.dumps({**written, "told": self.told}) + b"\n"

    def read(self) -> list[Recorded[Event]]:
        """Its events as today's code gets them from a store or a topic."""
        import_module(f"aggregates.{self.domain}")
        ids = {(entry.subject.rpartition(".")[2], entry.version): entry.id for entry in locked(self.domain)}
        found = []
        for number, one in enumerate(self.events, start=1):
            body = b"\0" + ids[one.name, one.version].to_bytes(4) + one.body
            event = wire.decode(self.domain, self.id, number, EPOCH + timedelta(microseconds=one.at), body)
            found.append(Recorded(event, uuid5(self.id, str(number)), number, "golden", None, "user:golden"))
        return found


def locked(domain: str) -> list[history.Entry]:
    """Every version of every event of a domain that was ever locked."""
    return [entry for entry in history.load() if entry.domain == domain]


def load(domain: str) -> list[History]:
    """The histories of a domain, in order."""
    file = FOLDER / f"{domain}.jsonl"
    found = []
    for line in file.read_bytes().splitlines() if file.exists() else ():
        one = orjson.loads(line)
        events = [Written(name, version, at, base64.b64decode(body)) for name, version, at, body in one["events"]]
        found.append(History(domain, UUID(one["id"]), events, one["chain"], one["told"]))
    return found


def missing(domain: str) -> set[Version]:
    """The locked versions of which no history is kept."""
    wanted = {(entry.subject.rpartition(".")[2], entry.version) for entry in locked(domain)}
    return wanted.difference(*(one.versions for one in load(domain)))


def tell(one: History) -> Told:
    """What today's code makes of a history."""
    read = one.read()
    aggregate: Any = None
    for recorded in read:
        aggregate = recorded.event.mutate(aggregate)
    state = {name: value for name, value in vars(aggregate).items() if not name.startswith("_")}
    return {
        "values": [_plain({n: v for n, v in vars(r.event).items() if n not in ENVELOPE}) for r in read],
        "types": [r.event.type for r in read],
        "state": {name: _hash(_sorted(snapshot._pack(value))) for name, value in sorted(state.items())},
        "rows": {table: _columns(rows) for table, rows in sorted(rows_of(read).items())},
    }


def rows_of(events: Iterable[Recorded[Event]]) -> dict[str, list[dict[str, Any]]]:
    """The rows that read models hold after these events, by table."""
    rows: dict[AnyTable, dict[Any, dict[str, Any]]] = defaultdict(dict)
    own = [one for one in projections() if not one.everything]  # those that take every event keep it as it is
    for recorded in events:
        for change in changes(recorded, own):
            apply(rows[change.table], change, (recorded.position, len(rows[change.table])))
    return {f"{table.sink}.{table.name}": list(found.values()) for table, found in rows.items()}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    by_column: dict[str, list[Any]] = defaultdict(list)
    for row in sorted(map(_plain, rows), key=orjson.dumps):
        for name, value in row.items():
            by_column[name].append(value)
    return {name: _hash(values) for name, values in sorted(by_column.items())}


def _plain(value: Any) -> Any:
    return orjson.loads(json_bytes(value))


def _sorted(value: Any) -> Any:
    """A packed value in which the order of sets and dicts says nothing."""
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    if isinstance(value, dict):
        inner = {name: _sorted(item) for name, item in value.items()}
        if value.get("@") in ("set", "frozenset", "dict"):
            inner["v"].sort(key=orjson.dumps)
        return inner
    return value


def _hash(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()[:HASH_CHARS]


def differences(one: History) -> Iterator[str]:
    """How today's code reads a history in another way than `told` says. What is new since (a field, a column) is none."""
    now = tell(one)
    for number, (was, name) in enumerate(zip(one.told["values"], one.told["types"], strict=True)):
        if now["types"][number] != name:
            yield f"event {number + 1} was {name} and is {now['types'][number]}"
        for what, value in was.items():
            found = now["values"][number].get(what, "gone")
            if found != value:
                yield f"event {number + 1}, {name}: {what} was {value!r} and is {found!r}"
    for what, value in one.told["state"].items():
        if now["state"].get(what) != value:
            yield f"the aggregate's {what} is another"
    for table, columns in one.told["rows"].items():
        for column, value in columns.items():
            if now["rows"].get(table, {}).get(column) != value:
                yield f"{table}.{column} is another"


class Recorder:
    """A pytest plugin: whatever the tests send through Avro, by aggregate."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, UUID], list[Event]] = {}
        self._paths: dict[str, list[list[Event]]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        import tests.kernel as kernel

        through = kernel.through_avro

        def noting(event: Event) -> Event:
            back = through(event)
            self._note(back)
            return back

        kernel.through_avro = noting

    def _note(self, event: Event) -> None:
        """From one `given` several commands may start: each is a way of its own."""
        path = self._now.get((event.domain, event.id), [])
        if event.version > len(path) + 1:
            return  # how it came to that is not known
        if event.version <= len(path):
            path = path[: event.version - 1]
        path = self._now[event.domain, event.id] = [*path, event]
        self._paths[event.domain].append(path)

    def histories(self, domain: str) -> list[History]:
        """What happened to aggregates, each from its first event."""
        ids = {entry.id: entry for entry in locked(domain)}

        def written(event: Event) -> Written:
            framed = wire.encode(event)
            entry = ids[int.from_bytes(framed[1:5])]
            return Written(entry.subject.rpartition(".")[2], entry.version, wire.micros(event.at), framed[5:])

        paths = [path for path in self._paths[domain] if len(path) <= HISTORY_EVENTS_MAX]
        return [History(domain, path[0].id, [written(event) for event in path]) for path in paths]


def shortest(candidates: Iterable[History], wanted: set[Version]) -> list[History]:
    """Few and short ones that have all the versions that any has."""
    pool, chosen = list(candidates), list[History]()
    while pool := [one for one in pool if one.versions & wanted]:
        best = min(pool, key=lambda one: (len(one.events) + 1) / len(one.versions & wanted))
        chosen.append(best)
        wanted = wanted - best.versions
    return chosen


def add(of: Iterable[str]) -> int:
    """Record what is missing. Returns the exit code: 1 when some version is in no test."""
    wanted = {domain: versions for domain in of if (versions := missing(domain))}
    if not wanted:
        print("every locked version has its golden history")
        return 0
    recorder = Recorder()
    files = [str(file) for domain in wanted for file in ROOT.glob(f"tests/test_{domain}*.py")]
    if files and pytest.main(["-q", "-m", "not slow", *files], plugins=[recorder]) != 0:
        print("the tests failed: nothing was recorded", file=sys.stderr)
        return 1
    code = 0
    for domain, versions in wanted.items():
        kept = load(domain)
        chain = kept[-1].chain if kept else ""
        for one in shortest(recorder.histories(domain), versions):
            chain = one.chained(chain)
            made = History(domain, one.id, one.events, chain)
            with (FOLDER / f"{domain}.jsonl").open("ab") as out:
                out.write(History(domain, one.id, one.events, chain, tell(made)).line)
            print(f"{domain}: {', '.join(f'{event.name} {event.version}' for event in one.events)}")
        for name, version in sorted(missing(domain)):
            print(
                f"{domain}: no test in tests/test_{domain}*.py makes a {name} (version {version}): write one",
                file=sys.stderr,
            )
            code = 1
    return code


def accept(of: Iterable[str]) -> int:
    """Write anew what today's code makes of each history, and say what changed."""
    for domain in of:
        kept = load(domain)
        for number, one in enumerate(kept, start=1):
            for difference in differences(one):
                print(f"{domain} {number}: {difference}")
        if kept:
            lines = [History(domain, one.id, one.events, one.chain, tell(one)).line for one in kept]
            (FOLDER / f"{domain}.jsonl").write_bytes(b"".join(lines))
    return 0


def main(argv: list[str]) -> int:
    options = argparse.ArgumentParser(prog="titan golden", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("command", choices=["add", "accept"])
    options.add_argument("domains", nargs="*", help="all of them if none is given")
    given = options.parse_args(argv)
    if unknown := set(given.domains) - set(domains()):
        print(f"error: there is no domain {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    return (add if given.command == "add" else accept)(given.domains or sorted(domains()))
