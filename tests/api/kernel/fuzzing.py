"""What the fuzzer does otherwise: its hooks (SCHEMATHESIS_HOOKS names this module), and what it sent, to be sent again by others.

TITAN_FUZZ_KNOWN names a JSON file, lists of ids by name, to be met by what is drawn. TITAN_FUZZ_SENT names a file that each request
but those of the coverage phase is appended to. TITAN_FUZZ_WHOLE leaves nothing out of the coverage phase.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zlib import crc32

import schemathesis
from schemathesis.core import NOT_SET
from schemathesis.generation.meta import CaseMetadata

MANY = 20  # values of an enumeration
CURRENCIES = ("EUR", "GBP", "JPY", "KWD")  # of two decimals, none and three
METHODS = ("GET", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "QUERY")
WHOLE = bool(os.environ.get("TITAN_FUZZ_WHOLE"))
SENT = os.environ.get("TITAN_FUZZ_SENT")
POOL: dict[str, list[str]] = json.loads(Path(file).read_text()) if (file := os.environ.get("TITAN_FUZZ_KNOWN")) else {}

gc.set_threshold(100_000, 20, 100)  # strategies are many small objects that stay
wrong: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)


def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Each currency would be ordered in, paid and refunded, in every place that has one."""
    if not WHOLE:
        shorten(raw_schema)


def shorten(part: Any) -> None:
    """Leave a few values in long enumerations."""
    if isinstance(part, dict):
        if isinstance(values := part.get("enum"), list) and len(values) > MANY:
            part["enum"] = [value for value in values if value in CURRENCIES] or values[:MANY]
        part = part.values()
    if not isinstance(part, str | int | float | None):
        for one in part:
            shorten(one)


def filter_case(context: Any, case: Any) -> bool:
    """Leave out of the coverage phase what repeats another of its requests but for what is right in it.

    The same wrong value of a query's parameter or header comes with all other parameters and again with none of them. There and in a
    path a value of whatever wrong type is a text: of five an operation gets the first and some others, each other ones. Methods that
    no path takes are refused in one place for all paths: each is tried on a quarter of them.
    """
    said = case.meta.phase.data
    scenario = getattr(said, "scenario", None)
    if WHOLE or scenario is None or not case.meta.generation.mode.is_negative:
        return True
    if scenario == "unspecified_http_method":
        return (METHODS.index(case.method.upper()) + crc32(case.path.encode())) % 4 == 0
    given = {"query": case.query, "header": case.headers, "path": case.path_parameters}.get(said.parameter_location)
    if given is None:
        return True
    where = (case.operation.label, scenario, said.parameter_location, said.parameter)
    value = repr(given.get(said.parameter) if said.parameter else said.description)
    if value in wrong[where]:
        return False
    new = not wrong[where]
    wrong[where].add(value)
    return new or scenario != "incorrect_type" or crc32(f"{where}{value}".encode()) % 3 == 0


def known(name: str, drawn: Any) -> Any:
    """A thing of that name instead of the one drawn, for a valid one, most of the time."""
    if not isinstance(drawn, str):
        return drawn
    try:
        drawn = drawn if name in ("sku", "code", "currency") else str(UUID(drawn))
    except ValueError:
        return drawn
    choice = sum(map(ord, drawn)) % (len(POOL[name]) + 1)
    return POOL[name][choice] if choice < len(POOL[name]) else drawn


def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Drawn ids meet nothing that is there: many become ids of what is, so that requests get past "there is no such thing".

    A key that was drawn twice for different requests is rightly refused: each request gets its own.
    """
    positive = case.meta and case.meta.generation.mode.is_positive
    if positive and case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = uuid4().hex
    if not POOL:
        return
    path, plural = case.path_parameters or {}, case.path.split("/")[1]
    if plural in POOL and "id" in path:
        path["id"] = known(plural, path["id"])
    if positive:
        for name in POOL.keys() & path.keys():
            path[name] = known(name, path[name])
        lines = case.body.get("lines") if isinstance(case.body, dict) else None
        for one in (case.body, *(lines if isinstance(lines, list) else ())):
            for name in POOL.keys() & one.keys() if isinstance(one, dict) else ():
                if name != "code" or plural == "vouchers":  # there are codes of other kinds
                    one[name] = known(name, one[name])


def remember(context: Any, response: Any, case: Any) -> None:
    """A check that finds nothing, and keeps the request but for who sent it. (A hook would see those that checks send, too.)"""
    if SENT is None or case.meta is None or case.meta.phase.name == "coverage":
        return
    given = {
        "method": case.method, "path_parameters": case.path_parameters, "cookies": case.cookies, "query": case.query,
        "headers": {name: value for name, value in case.headers.items() if name.lower() != "authorization"},
        "media_type": case.media_type, "multipart_content_types": case.multipart_content_types,
    } | ({} if case.body is NOT_SET else {"body": case.body})  # fmt: skip
    with open(SENT, "ab") as file:
        pickle.dump((case.operation.label, given, case.meta.to_dict()), file)


def sent_again(schema: Any, sent: Path, tokens: Sequence[str | None]) -> Iterator[Any]:
    """The cases of a file that TITAN_FUZZ_SENT named, each with one of the tokens in turn, or without any."""
    with sent.open("rb") as file:
        for token in cycle(tokens):
            if not file.peek(1):
                return
            label, given, meta = pickle.load(file)
            if token is not None:
                given["headers"]["Authorization"] = f"Bearer {token}"
            yield schema.find_operation_by_label(label).Case(**given, _meta=CaseMetadata.from_dict(meta))


for hook in (before_load_schema, filter_case, before_call):
    schemathesis.hook(hook)
schemathesis.check(remember)
