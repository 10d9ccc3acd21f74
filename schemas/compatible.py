"""May today's schema replace all those before it? BACKWARD_TRANSITIVE: today's code reads whatever was ever written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from fastavro import parse_schema

from schemas.history import Entry
from schemas.shapes import LONG_MAX, LONG_MIN
from schemas.tree import Tree, canonical, walk

# Written → read. Not string ↔ bytes, which Avro has too: our types have no bytes.
PROMOTIONS = {
    ("int", "long"),
    ("int", "float"),
    ("int", "double"),
    ("long", "float"),
    ("long", "double"),
    ("float", "double"),
}
NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")  # of a field; fastavro looks at those of types and symbols


def complaints(domain: str, today: list[Tree], past: Sequence[Entry]) -> list[str]:
    """Why the events `today` may not follow `past` (of the same domain, any order), each with what to do; none: they may."""
    found: dict[str, list[str]] = {}  # complaint → the versions it was found against
    for entry in past:
        for complaint in incompatible([entry.tree], today):
            found.setdefault(complaint, []).append(f"{entry.tree['name'].rpartition('.')[2]} {entry.version}")
    return [f"{domain}: {complaint} (against {', '.join(versions)})" for complaint, versions in found.items()]


def defects(tree: list[Tree]) -> Iterator[str]:
    """What is wrong with a domain's records by themselves: names that Avro forbids, defaults that their types can't hold."""
    try:
        parse_schema(canonical(tree))
    except Exception as error:  # fastavro has no one class for it
        yield f"not valid Avro: {error}"
    for node in walk(tree):
        fields = node["fields"] if isinstance(node, dict) and node["type"] == "record" else []
        names = [name for field in fields for name in (field["name"], *field.get("aliases", ()))]
        yield from (f"{node['name']}: {name!r} is no Avro name" for name in names if not NAME.fullmatch(name))
        yield from (f"{node['name']}: {name} names two fields" for name in sorted(set(names)) if names.count(name) > 1)
        for field in fields:
            if "default" in field and not _holds(field["type"], field["default"]):
                yield f"{node['name']}.{field['name']}: {field['default']!r} is no {_said(field['type'])} and can't be its default"


def _holds(tree: Tree, value: Any) -> bool:
    """Is it a value of the type, as JSON? Of a union: of its first type, as Avro wants it."""
    if isinstance(tree, list):
        return _holds(tree[0], value)
    match _kind(tree):
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "int" | "long":
            return isinstance(value, int) and not isinstance(value, bool) and LONG_MIN <= value <= LONG_MAX
        case "float" | "double":
            return isinstance(value, float)
        case "array":
            return isinstance(value, list) and all(_holds(tree["items"], item) for item in value)
        case "map":
            return isinstance(value, dict) and all(_holds(tree["values"], item) for item in value.values())
        case "enum":
            return value in tree["symbols"]
        case "record":
            fields = {field["name"]: field["type"] for field in tree["fields"]}
            return (
                isinstance(value, dict)
                and value.keys() == fields.keys()
                and all(_holds(fields[k], value[k]) for k in value)
            )
    return isinstance(value, str) and not _pii(tree) and (_logical(tree) != "uuid" or _is_uuid(value))


def _is_uuid(value: str) -> bool:
    try:
        return str(UUID(value)) == value
    except ValueError:
        return False


def incompatible(old: list[Tree], today: list[Tree]) -> Iterator[str]:
    """What is incompatible between old events of a domain and today's, all of them: a renamed one is found by its alias."""
    for record in old:
        heir = successor(record, today)
        if heir is None:
            yield f"{record['name']} is gone: keep its record, or give its name as an alias to the event that replaces it"
        else:
            yield from _types(record, heir, heir["name"].rpartition(".")[2])


def successor(record: Tree, events: list[Tree]) -> Tree | None:
    """Today's event for one written long ago: the same name, else the one that has it as an alias."""
    by_name = (today for today in events if today["name"] == record["name"])
    by_alias = (today for today in events if record["name"] in today.get("aliases", ()))
    return next(by_name, next(by_alias, None))


def _types(old: Tree, new: Tree, path: str) -> Iterator[str]:
    if isinstance(old, list) or isinstance(new, list):
        yield from _optional(old, new, path)
        return
    kind, now = _kind(old), _kind(new)
    if _pii(old) != _pii(new):
        # Old events hold plaintext (or sealed text) for ever, and today's code would take it for the other.
        yield f'{path}: "pii" was {_pii(old)} and is {_pii(new)}: add a field of another name instead'
    elif kind == now == "record":
        yield from _records(old, new, path)
    elif kind == now == "enum":
        yield from _enums(old, new, path)
    elif kind == now == "array":
        yield from _types(old["items"], new["items"], f"{path}[]")
    elif kind == now == "map":
        yield from _types(old["values"], new["values"], f"{path}{{}}")
    elif _logical(old) != _logical(new) or (kind != now and (kind, now) not in PROMOTIONS):
        yield f"{path}: {_said(old)} cannot be read as {_said(new)}: add a field of another name with a default instead"


def _optional(old: Tree, new: Tree, path: str) -> Iterator[str]:
    """Each type that was written needs one that reads it; more may be added."""
    branches = new if isinstance(new, list) else [new]
    for written in old if isinstance(old, list) else [old]:
        attempts = [list(_types(written, read, path)) for read in branches]
        if not any(attempt == [] for attempt in attempts):
            same = [attempt for attempt, read in zip(attempts, branches, strict=True) if _kind(written) == _kind(read)]
            yield from same[0] if same else [f"{path}: {_said(written)} was allowed and is no more: keep it"]


def _records(old: Tree, new: Tree, path: str) -> Iterator[str]:
    if not _named(old, new):
        yield f"{path}: {old['name']} cannot be read as {new['name']}: give it the alias {old['name']}"
        return
    written = {field["name"]: field for field in old["fields"]}
    taken: dict[str, str] = {}
    for field in new["fields"]:
        sources = [name for name in (field["name"], *field.get("aliases", ())) if name in written]
        if len(sources) > 1:
            yield f"{path}.{field['name']}: {' and '.join(sources)} were two fields, and an alias makes them one"
        for source in sources[:1]:
            if source in taken:
                yield f"{path}.{field['name']}: {source} is already read as {taken[source]}"
            taken[source] = field["name"]
            yield from _types(written[source]["type"], field["type"], f"{path}.{field['name']}")
        if not sources and "default" not in field:
            yield f"{path}.{field['name']}: was not always there and has no default: give it one"


def _enums(old: Tree, new: Tree, path: str) -> Iterator[str]:
    if not _named(old, new):
        yield f"{path}: {old['name']} cannot be read as {new['name']}: give it the alias {old['name']}"
    gone = [symbol for symbol in old["symbols"] if symbol not in new["symbols"]]
    if gone and "default" not in new:
        yield f"{path}: {', '.join(gone)} can no longer be read: keep it in {new['name']}"


def _named(old: Tree, new: Tree) -> bool:
    return bool(old["name"] == new["name"] or old["name"] in new.get("aliases", ()))


def _kind(tree: Tree) -> str:
    return "union" if isinstance(tree, list) else tree if isinstance(tree, str) else str(tree["type"])


def _logical(tree: Tree) -> Any:
    return tree.get("logicalType") if isinstance(tree, dict) else None


def _pii(tree: Tree) -> bool:
    return isinstance(tree, dict) and tree.get("pii") is True


def _said(tree: Tree) -> str:
    return f"{_kind(tree)} ({_logical(tree)})" if _logical(tree) else _kind(tree)
