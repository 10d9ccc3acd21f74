"""Avro schemas as plain trees: every name full, every reference replaced by what it names, everything else left out.

A tree is "long", "string", … , a list (union), or a dict: record, enum, array, map, or a primitive with a logical type or
`"pii": true`. Trees are compared with `==`; what isn't in them (doc, order of keys) is free to change without a new version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from schemas.errors import SchemaError

Tree = Any  # JSON: str | list[Tree] | dict[str, Tree]

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


def expand(schema: Tree, known: dict[str, Tree] | None = None, namespace: str = "", pii: bool = False) -> Tree:
    """The tree of an .avsc's JSON. `known`: named types by full name, added to as they are met.

    A field's `"pii": true` goes down to the strings in it, as far as the next named type. SchemaError: a type this platform doesn't use, or an unknown name.
    """
    known = {} if known is None else known
    match schema:
        case list():
            return [expand(branch, known, namespace, pii) for branch in schema]
        case str() if schema in PRIMITIVES:
            return {"type": "string", "pii": True} if pii and schema == "string" else schema
        case str():
            name = _full(schema, namespace)
            if name not in known:
                raise SchemaError(f"{schema!r} is neither an Avro type nor defined before it is used")
            return known[name]
        case {"type": "record" | "enum" as kind, "name": str() as short}:
            name = _full(short, schema.get("namespace", namespace))
            if name in known:
                raise SchemaError(f"{name} is defined twice")
            inner = name.rpartition(".")[0]
            tree: dict[str, Tree] = {"type": kind, "name": name}
            if schema.get("aliases"):
                tree["aliases"] = [_full(alias, inner) for alias in schema["aliases"]]
            if kind == "enum":
                tree |= {"symbols": schema["symbols"]} | ({"default": schema["default"]} if "default" in schema else {})
            else:
                tree["fields"] = [_field(field, known, inner) for field in schema["fields"]]
            known[name] = tree
            return tree
        case {"type": "array", "items": items}:
            return {"type": "array", "items": expand(items, known, namespace, pii)}
        case {"type": "map", "values": values}:
            return {"type": "map", "values": expand(values, known, namespace, pii)}
        case {"type": str() as kind} if kind in PRIMITIVES:
            extra = {key: schema[key] for key in ("logicalType",) if key in schema}
            if kind == "string" and (pii or schema.get("pii")):
                extra["pii"] = True
            return {"type": kind} | extra if extra else kind
        case {"type": list() | dict() as nested}:
            return expand(nested, known, namespace, pii)
    raise SchemaError(f"{json.dumps(schema)} is not a type this platform writes")


def _field(field: dict[str, Tree], known: dict[str, Tree], namespace: str) -> dict[str, Tree]:
    tree = {"name": field["name"], "type": expand(field["type"], known, namespace, bool(field.get("pii")))}
    tree |= {key: field[key] for key in ("default", "aliases") if key in field}
    if tree["type"] == "double" and isinstance(tree.get("default"), int):
        tree["default"] = float(tree["default"])  # JSON says 0 for 0.0, and a default reaches Python as it stands
    return tree


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def canonical(tree: Tree) -> Tree:
    """The tree as a schema for others: each named type defined where it first occurs and named from then on."""
    seen: set[str] = set()

    def once(node: Tree) -> Tree:
        if isinstance(node, dict) and node["type"] in ("record", "enum"):
            if node["name"] in seen:
                return node["name"]
            seen.add(node["name"])
        return _map(node, once)

    return once(tree)


def plain(tree: Tree) -> Tree:
    """The tree without logical types and flags: what fastavro writes and reads fastest. The bytes are the same."""
    if isinstance(tree, dict) and tree["type"] in PRIMITIVES:
        return tree["type"]
    return _map(tree, plain)


def text(schema: Tree) -> str:
    """One line of JSON, the same for the same schema."""
    return json.dumps(schema, separators=(",", ":"), ensure_ascii=False)


def walk(tree: Tree) -> Iterator[Tree]:
    """The node itself and all below it."""
    yield tree
    for child in children(tree):
        yield from walk(child)


def children(tree: Tree) -> list[Tree]:
    if isinstance(tree, list):
        return tree
    if isinstance(tree, dict):
        return [tree[key] for key in ("items", "values") if key in tree] + [f["type"] for f in tree.get("fields", ())]
    return []


def _map(tree: Tree, change: Callable[[Tree], Tree]) -> Tree:
    if isinstance(tree, list):
        return [change(branch) for branch in tree]
    if not isinstance(tree, dict):
        return tree
    changed = dict(tree)
    for key in ("items", "values"):
        if key in tree:
            changed[key] = change(tree[key])
    if "fields" in tree:
        changed["fields"] = [field | {"type": change(field["type"])} for field in tree["fields"]]
    return changed
