"""Text and codes that people type, in any script: brought to one form (Unicode NFC), or an error naming what is wrong."""

from __future__ import annotations

import re
import unicodedata

from aggregates.kernel.errors import Invalid, Refused

SKU_CHARS_MAX = 64
SKU = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{SKU_CHARS_MAX - 1}}}", re.ASCII)
UNWRITTEN = ("Cc", "Cs")  # control characters, halves of a surrogate pair
UNSEEN = ("Cf", "Zs", "Zl", "Zp")  # joiners and spaces. Code points newer than this Python's tables count as seen


def line(value: str, what: str, chars_max: int) -> str:
    """One line that shows something, at most `chars_max` code points: spaces and line breaks in a row become one space.

    Raises `Refused` for one that shows nothing, `Invalid` for one that is too long or no text.
    """
    made = _written(" ".join(unicodedata.normalize("NFC", value).split()), what, chars_max)
    if all(unicodedata.category(char) in UNSEEN for char in made):
        raise Refused(f"{what} is empty")
    return made


def prose(value: str, what: str, chars_max: int) -> str:
    """Free text, empty or not: lines end in a newline, tabs stay."""
    made = unicodedata.normalize("NFC", value.replace("\r\n", "\n").replace("\r", "\n")).strip()
    return _written(made, what, chars_max, "\n\t")


def sku(value: str) -> str:
    """A stock keeping unit: it goes into URLs, file names and labels, so Latin letters, digits, `.`, `_` and `-` only."""
    if not SKU.fullmatch(value):
        raise Invalid(f"a SKU is 1 to {SKU_CHARS_MAX} letters, digits, '.', '_' or '-', not {value[:80]!r}")
    return value


def _written(value: str, what: str, chars_max: int, allowed: str = "") -> str:
    if len(value) > chars_max:
        raise Invalid(f"{what} has {len(value)} characters; {chars_max} is the most")
    for char in value:
        if unicodedata.category(char) in UNWRITTEN and char not in allowed:
            raise Invalid(f"{what} has a character that is not text: U+{ord(char):04X}")
    return value
