"""Which domains a command is about, and the events that they have."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from aggregates.kernel import discover
from replay.log import ReplayError


def chosen(names: Collection[str], every: bool) -> list[str]:
    """The domains named, or all, with their modules imported. Raises ReplayError for one that is not there, and for none."""
    known = discover.domains()
    if unknown := sorted(set(names) - set(known)):
        raise ReplayError(f"there is no domain {', '.join(unknown)}; one of: {', '.join(known)}")
    if bool(names) == every:
        raise ReplayError(f"name domains, or give --all for every one of: {', '.join(known)}")
    found = known if every else sorted(set(names))
    for name in found:
        import_module(f"aggregates.{name}")
    return found
