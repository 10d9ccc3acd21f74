"""A Schema Registry of the company's own: our whole history is registered there, and its ids go on the wire instead of ours.

Events are stored with our ids and published with theirs: `Ids.published` on the way out, `Ids.stored` on the way in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from schemas import history
from schemas.errors import SchemaError, Unreadable

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Ids:
    """`theirs` by ours, and back."""

    theirs: dict[int, int]
    ours: dict[int, int]

    def published(self, data: bytes) -> bytes:
        """An event's framed bytes with the external registry's id. Unreadable: an id that isn't in the history."""
        return _renumbered(data, self.theirs)

    def stored(self, data: bytes) -> bytes:
        """Framed bytes from a topic with our id. Unreadable: an id that we didn't register."""
        return _renumbered(data, self.ours)


def _renumbered(data: bytes, ids: dict[int, int]) -> bytes:
    id = int.from_bytes(data[1:5])
    if len(data) < 5 or data[0] != 0 or id not in ids:
        raise Unreadable(f"{len(data)} bytes with schema id {id}: not written with a schema of the history")
    return b"\0" + ids[id].to_bytes(4) + data[5:]


@cache
def ids_of(url: str | None) -> Ids | None:
    """Those of the registry at `url`, registered once a process; None without one. SchemaError: see `register`."""
    return register(url) if url else None


def register(url: str, entries: list[history.Entry] | None = None) -> Ids:
    """Register all versions, oldest first, with the registry at `url` (`https://user:password@host` for basic authentication).

    Registering what is there already is no change, so each process does this at its start. SchemaError: the registry can't be
    reached, or refuses a schema (its own compatibility rule is stricter, or somebody else's schemas are in the subject).
    """
    import httpx  # 30 MB that who has no such registry does not need

    from schemas.registry import MEDIA_TYPE

    theirs: dict[int, int] = {}
    with httpx.Client(
        base_url=url, timeout=TIMEOUT_S, headers={"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE}
    ) as client:
        for entry in history.load() if entries is None else entries:
            try:
                answer = client.post(
                    f"/subjects/{entry.subject}/versions", json={"schema": entry.text, "schemaType": "AVRO"}
                )
                answer.raise_for_status()
                theirs[entry.id] = int(answer.json()["id"])
            except httpx.HTTPStatusError as error:
                said = error.response.text[:500]
                raise SchemaError(
                    f"the schema registry refused {entry.subject} version {entry.version}: {said}"
                ) from error
            except (httpx.HTTPError, ValueError, KeyError) as error:
                raise SchemaError(f"the schema registry at {client.base_url.host} cannot be used: {error!r}") from error
    return Ids(theirs, {external: own for own, external in theirs.items()})
