"""What can be wrong with a schema or a value. One family: catch `SchemaError` for all."""

from __future__ import annotations


class SchemaError(Exception):
    """Anything wrong with a schema, its history, or data that claims to follow it."""


class SchemaMismatch(SchemaError, TypeError):
    """An event class and its record in the .avsc disagree; the message names both sides, field by field."""


class Invalid(SchemaError, ValueError):
    """A value cannot be written as its field says; the message names the event, the field and the value."""


class Unlocked(SchemaError):
    """An event's record is not in the history as it is now: nothing may be written with it until `titan schemas lock` ran."""


class Unreadable(SchemaError, ValueError):
    """Bytes that no known schema reads: not framed, unknown schema id, cut off, or an event that nobody takes over."""


class HistoryBroken(SchemaError):
    """schemas/history.jsonl was edited, reordered or cut; the message names the line and says what to do."""
