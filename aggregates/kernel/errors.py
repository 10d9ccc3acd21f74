"""The few ways in which a command can fail. `api.kernel` turns each into its HTTP answer, in one place."""

from __future__ import annotations


class KernelError(Exception):
    """Base of the family; `str(error)` is a sentence that may be shown to the caller."""


class Refused(KernelError):
    """A rule says no. Nothing was stored."""


class Invalid(KernelError, ValueError):
    """The input is malformed: no rule was asked."""


class NotFound(KernelError):
    """There is no such aggregate, or none at that version or time."""


class Conflict(KernelError):
    """The aggregate is not at the version that the caller named, or a race was lost on every retry."""


class Reused(KernelError):
    """The command id (idempotency key) was used before, for something else."""


class Unavailable(KernelError):
    """The store does not answer. Whether the command was stored is unknown: ask again with the same command id."""


def require(condition: object, why: str) -> None:
    """The one way in which a rule refuses. Raises `Refused(why)` unless `condition` holds."""
    if not condition:
        raise Refused(why)
