"""What stops the stack, in one line that says what to do."""

from __future__ import annotations


class StackError(Exception):
    """Shown to the user as it is, without a traceback."""
