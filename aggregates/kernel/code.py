"""Codes that stand for money: unguessable, readable over the telephone, and kept only as a keyed hash.

Crockford's base 32 (no I, L, O, U), 24 random characters and one that checks them: 120 bits. Shown in fives, as
`7K3M9-Q2XB0-…`; read in any case, with or without dashes, I and L as 1, O as 0.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from aggregates.kernel.errors import Invalid

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RANDOM_CHARS, GROUP_CHARS, HINT_CHARS = 24, 5, 4  # who sees the hint still lacks 100 bits
CODE_CHARS_MAX = 64  # as people type it
_READ = str.maketrans("ILO", "110", " -")


def new_code() -> str:
    """A code as it is shown, once."""
    text = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARS))
    return shown(text + _check(text))


def shown(code: str) -> str:
    """A code in groups."""
    return "-".join(code[n : n + GROUP_CHARS] for n in range(0, len(code), GROUP_CHARS))


def read_code(typed: str) -> str:
    """The code without its groups, whatever way it was typed. Raises `Invalid` for what can't be one, or has a slip in it."""
    code = typed[:CODE_CHARS_MAX].upper().translate(_READ)
    if len(code) != RANDOM_CHARS + 1 or not set(code) <= set(ALPHABET):
        raise Invalid(f"a code has {RANDOM_CHARS + 1} letters and digits")
    if code[-1] != _check(code[:-1]):
        raise Invalid("a letter of the code is wrong")
    return code


def keyed_hash(key: bytes, code: str) -> str:
    """What is kept of a code: 64 hexadecimal digits that say nothing without the key."""
    return hmac.new(key, code.encode(), hashlib.sha256).hexdigest()


def hint_of(code: str) -> str:
    """The last characters, for people to tell their codes apart."""
    return code[-HINT_CHARS:]


def _check(text: str) -> str:
    """Luhn's algorithm in base 32: finds every wrong character, and two neighbours swapped (but 0 with Z)."""
    total = 0
    for place, char in enumerate(reversed(text)):
        digit = ALPHABET.index(char) * (1 if place % 2 else 2)
        total += digit // len(ALPHABET) + digit % len(ALPHABET)
    return ALPHABET[-total % len(ALPHABET)]
