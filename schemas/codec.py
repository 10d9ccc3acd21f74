"""Events to bytes and back: byte 0, the schema's id in 4 bytes, then the domain's union in Avro.

Written with today's schema only; read with whichever wrote them, resolved to today's (defaults, aliases) when they differ.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

from fastavro._read import _read_data as read_data  # type: ignore[attr-defined]

from schemas import history
from schemas.compatible import successor
from schemas.errors import Invalid, SchemaError, SchemaMismatch, Unlocked, Unreadable
from schemas.history import Entry, subject_of
from schemas.shapes import Get, Shapes, Turn
from schemas.tree import Tree, canonical, expand, plain, text

AVRO = Path(__file__).parent / "avro"
DEFINED_FROM_ID = 2**30  # ids of `define` are from here on: far above what a history of ours will ever count

_NAMED: dict[str, dict[str, Any]] = {"writer": {}, "reader": {}}  # no names to look up: trees are expanded


@dataclass(frozen=True, slots=True)
class Binding:
    """An event class bound to its record. `encode` is the hot path: see `bind`."""

    domain: str
    name: str
    encode: Callable[[Mapping[str, Any]], bytes]
    get: Get
    turn: Turn


@dataclass(slots=True)
class _Domain:
    name: str
    tree: list[Tree]
    writer: int | None  # the id of today's schema, once it is locked
    known: dict[int, Entry]
    bindings: dict[str, Binding] = field(default_factory=dict)
    readers: dict[bytes, _Reader] = field(default_factory=dict)  # by the framing: 0, id, index in the union


_Reader = tuple[str, Get]  # the event, and what reads a record written with that schema as today's
_domains: dict[str, _Domain] = {}
_readers: dict[str, dict[bytes, _Reader]] = {}


def union_of(domain: str, avro: Path | None = None) -> list[Tree]:
    """The tree of schemas/avro/<domain>.avsc. SchemaError: no such file, not an array of records, or not valid Avro."""
    avro = AVRO if avro is None else avro
    common = _json(avro / "common.avsc")
    return _union(domain, _json(avro / f"{domain}.avsc"), common, str(avro / f"{domain}.avsc"))


def _json(file: Path) -> Tree:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise SchemaError(f"{file} is missing: the schema is written first") from error
    except ValueError as error:
        raise SchemaError(f"{file} is not JSON: {error}") from error


def _union(domain: str, schema: Tree, common: Tree, where: str) -> list[Tree]:
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
    return records


def define(domain: str, union: Tree, history: list[Tree] | None = None) -> None:
    """Give a domain its schema in code instead of a file and the lock: for tests, and for tools with topics of their own.

    `union`: JSON of today's event records; `history`: earlier unions, oldest first, which stay readable. Ids follow from the
    content, so two processes that define the same agree. Defining again replaces the domain, whose events are then bound anew.
    """
    common = _json(AVRO / "common.avsc")
    known: dict[int, Entry] = {}
    tree: list[Tree] = []
    for version, schema in enumerate([*(history or ()), union], start=1):
        tree = _union(domain, schema, common, f"define({domain!r}), schema {version}")
        entry = Entry(0, subject_of(domain), version, canonical(tree))
        id = DEFINED_FROM_ID + crc32(f"{entry.subject} {entry.text}".encode()) % DEFINED_FROM_ID
        known[id] = Entry(id, entry.subject, version, entry.schema)
    _domains[domain] = _Domain(domain, tree, id, known)
    _readers[domain] = _domains[domain].readers


_locked = functools.cache(history.load)  # once a process, not once a domain


def _domain(name: str) -> _Domain:
    if name not in _domains:
        tree = union_of(name)
        known = {entry.id: entry for entry in _locked(history.FILE) if entry.subject == subject_of(name)}
        latest = max(known.values(), key=lambda entry: entry.id, default=None)
        locked = latest is not None and latest.text == text(canonical(tree))
        _domains[name] = _Domain(name, tree, latest.id if latest is not None and locked else None, known)
        _readers[name] = _domains[name].readers
    return _domains[name]


def bind(domain: str, name: str, fields: Mapping[str, Any]) -> Binding:
    """Check an event class against its record and compile its codec. Called once, when the class is made.

    `fields`: the resolved type of each field. SchemaMismatch names every difference, both sides of each. While the domain's
    .avsc isn't locked the binding is made all the same, but `encode` raises Unlocked.

    `encode(values)` takes the fields' Python values by name (other keys are left out, so an event's own __dict__ will do) and
    gives the framed bytes. Invalid: a value that its field can't hold, named with the field.
    """
    of = _domain(domain)
    where = f"{domain}.{name} and schemas/avro/{domain}.avsc disagree"
    index = next((n for n, record in enumerate(of.tree) if record["name"] == f"titan.{domain}.{name}"), None)
    if index is None:
        names = ", ".join(record["name"].rpartition(".")[2] for record in of.tree)
        raise SchemaMismatch(f"{where}: {name} is in Python only; the schema has {names}")
    shapes = Shapes()
    by_field, misfits = shapes.fields(fields, of.tree[index])
    if misfits:
        raise SchemaMismatch("\n  ".join([f"{where}:", *sorted(misfits)]))
    put, get, turn = shapes.record(by_field)

    def why(values: Mapping[str, Any], error: Exception) -> Invalid:
        missing = [field for field in by_field if field not in values]
        found = (shape.problem(values[field], field) for field, shape in by_field.items() if field in values)
        problem = f"{missing[0]} is missing" if missing else next(filter(None, found), repr(error))
        return Invalid(f"{domain}.{name} cannot be written: {problem}")

    if of.writer is None:

        def encode(values: Mapping[str, Any]) -> bytes:
            raise Unlocked(f"schemas/avro/{domain}.avsc is not locked as it is now: run `titan schemas lock`")

    else:
        prefix = b"\0" + of.writer.to_bytes(4) + _varint(index)

        def encode(values: Mapping[str, Any]) -> bytes:
            buffer = bytearray(prefix)
            try:
                put(buffer, values)
                return bytes(buffer)
            except Exception as error:
                raise why(values, error) from error

    binding = of.bindings[name] = Binding(domain, name, encode, get, turn)
    of.readers.clear()
    return binding


def _varint(index: int) -> bytes:
    """A branch of a union, as Avro writes longs: zigzag, 7 bits a byte."""
    rest, out = index << 1, bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*out, rest])


def decode(domain: str, data: bytes) -> tuple[str, dict[str, Any]]:
    """(event name, values as the bound types) of framed bytes, whichever schema of the domain wrote them, as today's event.

    Unreadable: not framed, cut off, too long, an unknown schema id, or an event that today's schema neither has nor renames.
    """
    try:
        name, get = _readers[domain][data[:6]]
        start = 6
    except KeyError:
        (name, get), start = _reader(domain, data)
    stream = BytesIO(data)
    stream.seek(start)
    try:
        values = get(stream)
    except Exception as error:
        raise Unreadable(f"{domain}.{name} cannot be read from {len(data)} bytes: {error!r}") from error
    if stream.tell() != len(data):
        raise Unreadable(f"{domain}.{name} ends at byte {stream.tell()} of {len(data)}")
    return name, values


def _reader(domain: str, data: bytes) -> tuple[_Reader, int]:
    """The reader of these bytes, built when first met, and where the record starts."""
    of = _domain(domain)
    start = 6
    while start <= len(data) and data[start - 1] > 127 and start < 10:
        start += 1
    framing = bytes(data[:start])
    if framing in of.readers:
        return of.readers[framing], start
    if len(framing) < start or framing[0] != 0:
        raise Unreadable(f"not an event of {domain}: {len(data)} bytes that don't start with 0 and a schema id")
    id = int.from_bytes(framing[1:5])
    if id not in of.known:
        raise Unreadable(f"schema id {id} is not one of {subject_of(domain)}'s: {sorted(of.known)}")
    union = of.known[id].tree
    index = sum((byte & 127) << 7 * place for place, byte in enumerate(framing[5:])) >> 1
    if index >= len(union) or _varint(index) != framing[5:]:
        raise Unreadable(f"schema id {id} has {len(union)} events, not a number {index}")
    record = union[index]
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

    reader = (name, binding.get if written == today else resolve)
    of.readers[framing] = reader
    return reader, start
