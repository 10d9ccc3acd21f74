"""Events to bytes and back: byte 0, the id of the event's schema in 4 bytes, then its record in Avro.

Written with today's schema only; read with whichever wrote them, resolved to today's (defaults, aliases) when they differ.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

from fastavro._read import _read_data as read_data  # type: ignore[attr-defined]
from fastavro._read import read_boolean  # type: ignore[attr-defined]

from schemas import history
from schemas.compatible import successor
from schemas.errors import Invalid, SchemaError, SchemaMismatch, Unlocked, Unreadable
from schemas.history import Entry, subject_of
from schemas.shapes import Get, Shapes, Turn
from schemas.tree import Tree, canonical, expand, plain, text

AVRO = Path(__file__).parent / "avro"
# What an event without fields has in its schema: confluent-kafka's deserializer refuses a body of no bytes, and ClickHouse a
# record of no columns. It never reaches Python.
EMPTY: Tree = {"name": "_empty", "type": "boolean", "default": False}
DEFINED_FROM_ID = 2**30  # ids of `define` are from here on: far above what a history of ours will ever count

_NAMED: dict[str, dict[str, Any]] = {"writer": {}, "reader": {}}  # no names to look up: trees are expanded


@dataclass(frozen=True, slots=True)
class Binding:
    """An event class bound to its record. `encode` is the hot path: see `bind`.

    `renamed`: names that the event had once, by its record's aliases: old rows and records say them still. `framing`: what
    bytes of today's schema begin with. `first(count)` reads only so many fields of them, the first ones.
    """

    domain: str
    name: str
    renamed: tuple[str, ...]
    encode: Callable[[Mapping[str, Any]], bytes]
    get: Get
    turn: Turn
    framing: bytes
    first: Callable[[int], Get]


@dataclass(slots=True)
class _Domain:
    name: str
    tree: list[Tree]  # today's events
    writers: dict[str, int]  # the id of today's schema by the record's full name, once it is locked
    known: dict[int, Entry]
    bindings: dict[str, Binding] = field(default_factory=dict)
    readers: dict[bytes, _Reader] = field(default_factory=dict)  # by the framing: 0 and the id


_Reader = tuple[str, Get]  # the event, and what reads a record written with that schema as today's
_domains: dict[str, _Domain] = {}
_readers: dict[str, dict[bytes, _Reader]] = {}


def events_of(domain: str, avro: Path | None = None) -> list[Tree]:
    """The records of schemas/avro/<domain>.avsc. SchemaError: no such file, not an array of records, or not valid Avro."""
    avro = AVRO if avro is None else avro
    common = _json(avro / "common.avsc")
    return _events(domain, _json(avro / f"{domain}.avsc"), common, str(avro / f"{domain}.avsc"))


def _json(file: Path) -> Tree:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SchemaError(f"{file} is missing: the schema is written first") from error
    except ValueError as error:
        raise SchemaError(f"{file} is not JSON: {error}") from error


def _events(domain: str, schema: Tree, common: Tree, where: str) -> list[Tree]:
    known: dict[str, Tree] = {}
    try:
        expand(common, known)
        tree: list[Tree] = expand(schema, known, f"titan.{domain}")
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"{where}: not an Avro schema ({error!r})") from error
    records = tree if isinstance(tree, list) else []
    wrong = [branch for branch in records if not isinstance(branch, dict) or branch["type"] != "record"]
    if not records or wrong:
        raise SchemaError(f"{where}: an array of event records is expected")
    for record in records:
        if record["name"].rpartition(".")[0] != f"titan.{domain}":
            raise SchemaError(f"{where}: {record['name']} is not in the namespace titan.{domain}")
    return [record | {"fields": record["fields"] or [EMPTY]} for record in records]


def define(domain: str, union: Tree, history: list[Tree] | None = None) -> None:
    """Give a domain its schema in code instead of a file and the lock: for tests, and for tools with topics of their own.

    `union`: JSON array of today's event records; `history`: earlier ones, oldest first, which stay readable. Ids follow from the
    content, so two processes that define the same agree. Defining again replaces the domain, whose events are then bound anew.
    SchemaError: not an array of event records, or two schemas get the same id, which is rare: rename one.
    """
    common = _json(AVRO / "common.avsc")
    known: dict[int, Entry] = {}
    for version, schema in enumerate([*(history or ()), union], start=1):
        where = f"define({domain!r}), schema {version}"
        tree = _events(domain, schema, common, where)
        writers: dict[str, int] = {}
        for record in tree:
            subject, written = subject_of(record["name"]), canonical(record)
            id = DEFINED_FROM_ID + crc32(f"{subject} {text(written)}".encode()) % DEFINED_FROM_ID
            writers[record["name"]] = id
            if known.setdefault(id, Entry(id, subject, version, written)).schema != written:
                raise SchemaError(f"{where}: {record['name']} gets the id {id} of {known[id].subject}: rename one")
    _domains[domain] = _Domain(domain, tree, writers, known)
    _readers[domain] = _domains[domain].readers


_locked = functools.cache(history.load)  # once a process, not once a domain


def _domain(name: str) -> _Domain:
    if name not in _domains:
        tree = events_of(name)
        known = {entry.id: entry for entry in _locked(history.FILE) if entry.domain == name}
        latest = {entry.subject: entry for entry in known.values()}
        current = ((record, latest.get(subject_of(record["name"]))) for record in tree)
        writers = {r["name"]: entry.id for r, entry in current if entry and entry.text == text(canonical(r))}
        _domains[name] = _Domain(name, tree, writers, known)
        _readers[name] = _domains[name].readers
    return _domains[name]


def bind(domain: str, name: str, fields: Mapping[str, Any]) -> Binding:
    """Check an event class against its record and compile its codec. Called once, when the class is made.

    `fields`: the resolved type of each field. SchemaMismatch names every difference, both sides of each. While the record
    isn't locked as it stands in the .avsc the binding is made all the same, but `encode` raises Unlocked.

    `encode(values)` takes the fields' Python values by name (other keys are left out, so an event's own __dict__ will do) and
    gives the framed bytes. Invalid: a value that its field can't hold, named with the field.
    """
    of = _domain(domain)
    where = f"{domain}.{name} and schemas/avro/{domain}.avsc disagree"
    record = next((record for record in of.tree if record["name"] == f"titan.{domain}.{name}"), None)
    if record is None:
        names = ", ".join(record["name"].rpartition(".")[2] for record in of.tree)
        raise SchemaMismatch(f"{where}: {name} is in Python only; the schema has {names}")
    empty = record["fields"] == [EMPTY]
    shapes = Shapes()
    by_field, misfits = shapes.fields(fields, record | {"fields": []} if empty else record)
    if misfits:
        raise SchemaMismatch("\n  ".join([f"{where}:", *sorted(misfits)]))
    put, get, turn = (_put_empty, _get_empty, _turn_empty) if empty else shapes.record(by_field)

    def why(values: Mapping[str, Any], error: Exception) -> Invalid:
        missing = [field for field in by_field if field not in values]
        found = (shape.problem(values[field], field) for field, shape in by_field.items() if field in values)
        problem = f"{missing[0]} is missing" if missing else next(filter(None, found), repr(error))
        return Invalid(f"{domain}.{name} cannot be written: {problem}")

    @functools.cache
    def first(count: int) -> Get:
        return _get_empty if empty else shapes.record(dict(islice(by_field.items(), count)))[1]

    id = of.writers.get(record["name"])
    prefix = b"" if id is None else b"\0" + id.to_bytes(4)
    if id is None:

        def encode(values: Mapping[str, Any]) -> bytes:
            raise Unlocked(f"{name} of schemas/avro/{domain}.avsc is not locked as it is now: run `titan schemas lock`")

    else:

        def encode(values: Mapping[str, Any]) -> bytes:
            buffer = bytearray(prefix)
            try:
                put(buffer, values)
                return bytes(buffer)
            except Exception as error:
                raise why(values, error) from error

    today = {event["name"] for event in of.tree}
    renamed = tuple(alias.rpartition(".")[2] for alias in record.get("aliases", ()) if alias not in today)
    binding = of.bindings[name] = Binding(domain, name, renamed, encode, get, turn, prefix, first)
    of.readers.clear()
    return binding


def today(domain: str) -> str:
    """Today's schema of a domain as text: it changes whenever what old events are read as may change."""
    return text(_domain(domain).tree)


def _put_empty(buffer: bytearray, values: Mapping[str, Any]) -> None:
    buffer.append(0)


def _get_empty(stream: BytesIO) -> dict[str, Any]:
    read_boolean(stream)
    return {}


def _turn_empty(read: dict[str, Any]) -> dict[str, Any]:
    return {}


def decode(domain: str, data: bytes) -> tuple[str, dict[str, Any]]:
    """(event name, values as the bound types) of framed bytes, whichever schema of the domain wrote them, as today's event.

    Unreadable: not framed, cut off, too long, an unknown schema id, or an event that today's schema neither has nor renames.
    """
    try:
        name, get = _readers[domain][data[:5]]
    except KeyError:
        name, get = _reader(domain, data)
    stream = BytesIO(data)
    stream.seek(5)
    try:
        values = get(stream)
    except Exception as error:
        raise Unreadable(f"{domain}.{name} cannot be read from {len(data)} bytes: {error!r}") from error
    if stream.tell() != len(data):
        raise Unreadable(f"{domain}.{name} ends at byte {stream.tell()} of {len(data)}")
    return name, values


def leading(domain: str, name: str, data: bytes, count: int) -> dict[str, Any] | None:
    """The first `count` fields of an event's framed bytes, the rest unread; None where another event or schema wrote them.

    Unreadable: cut off before that.
    """
    binding = _domain(domain).bindings[name]
    if data[:5] != binding.framing:
        return None
    stream = BytesIO(data)
    stream.seek(5)
    try:
        return binding.first(count)(stream)
    except Exception as error:
        raise Unreadable(f"{domain}.{name} cannot be read from {len(data)} bytes: {error!r}") from error


def _reader(domain: str, data: bytes) -> _Reader:
    """The reader of these bytes, built when their schema is first met."""
    of = _domain(domain)
    framing = bytes(data[:5])
    if len(framing) < 5 or framing[0] != 0:
        raise Unreadable(f"not an event of {domain}: {len(data)} bytes that don't start with 0 and a schema id")
    id = int.from_bytes(framing[1:5])
    if id not in of.known:
        raise Unreadable(f"schema id {id} is not one of titan.{domain}'s: {sorted(of.known)}")
    record = of.known[id].tree
    target = successor(record, of.tree)
    if target is None:
        raise Unreadable(
            f"{record['name']} (schema id {id}) is gone from schemas/avro/{domain}.avsc, and no event has it as an alias"
        )
    name = target["name"].rpartition(".")[2]
    if name not in of.bindings:
        raise Unreadable(f"{domain}.{name} is not bound: import the module that defines it first")
    binding, written, today = of.bindings[name], plain(record), plain(target)

    def resolve(stream: BytesIO) -> dict[str, Any]:
        return binding.turn(read_data(stream, written, _NAMED, today))

    reader = of.readers[framing] = (name, binding.get if written == today else resolve)
    return reader
