"""Keys of personal data: an address, whose parts are sealed in the events, each with the key of its person.

A rule may ask which events have the same address, never which it is. Its host opens the parts, and keeps a keyed digest of them for as
long as its windows need it, which is days; into the events of a hit nothing of it goes. So whoever is erased is erased here too: at
once for a back-test, to which the address opens as nothing, and in the live state with the window.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

OpenAll = Callable[[list[Any]], Awaitable[list[Any]]]


@dataclass(frozen=True, slots=True)
class Secret:
    """`Secret((e.address.postcode, e.address.street, e.address.country))`: the same however it is written."""

    parts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The parts without case, accents, spaces and punctuation; "" if any of them says nothing."""
        parts = [
            "".join(c for c in unicodedata.normalize("NFKD", part.casefold()) if c.isalnum()) for part in self.parts
        ]
        return "\n".join(parts) if all(parts) else ""


class NoKey(Exception):
    """Personal data can't be opened here: a rule that needs it can't run."""


class Blind:
    """Makes keys of secrets. `open_all` gives a list with the sealed texts in it opened, "" for the erased; `key`: of the digests."""

    def __init__(self, open_all: OpenAll, key: bytes) -> None:
        self._open_all, self._key = open_all, key

    async def __call__(self, secrets: Sequence[Secret]) -> list[str | None]:
        """One key a secret; None for one of somebody who was erased."""
        opened = [Secret(tuple(parts)).text for parts in await self._open_all([list(one.parts) for one in secrets])]
        return [hmac.digest(self._key, text.encode(), hashlib.sha256).hex() if text else None for text in opened]


async def no_key(secrets: Sequence[Secret]) -> list[str | None]:
    """In a process without the master key."""
    raise NoKey("its key is personal data, and the master key is not here")


MakeKeys = Callable[[Sequence[Secret]], Awaitable[list[str | None]]]
