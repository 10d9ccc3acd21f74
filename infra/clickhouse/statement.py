"""What an HTTP front must know of a statement before the engine parses it: where an insert's data begins, which format
an answer has. Everything else is left to the engine's own parser."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

HEAD_MAX = 256 * 1024  # bytes: an INSERT's text up to its data; ClickHouse's own default of max_query_size
TAIL_MIN = 1024  # bytes behind FORMAT that must be here before the end of the text is trusted

_TOKEN = re.compile(
    rb"""(?P<blank>\s+|--[^\n]*|\#[ !][^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<word>[A-Za-z0-9_$\x80-\xff]+)
    |(?P<mark>.)""",
    re.VERBOSE | re.DOTALL,
)
_SETTINGS = re.compile(
    rb"\s*SETTINGS\s+(\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|[\w.+-]+)(?:\s*,\s*\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|[\w.+-]+))*)",
    re.IGNORECASE | re.DOTALL,
)
_DATA_GAP = re.compile(rb"[ \t\f\v]*\r?\n?")


@dataclass(frozen=True)
class Insert:
    """`INSERT INTO … [SETTINGS …] FORMAT …` split where its data begins. `settings` has no keyword; "" for none."""

    into: str
    settings: str
    format: str
    data_at: int  # offset in the text

    @property
    def head(self) -> str:
        """The statement without its format."""
        return self.into + (f" SETTINGS {self.settings}" if self.settings else "")

    def from_file(self, path: str) -> str:
        """The statement that takes its data from a file."""
        settings = f"SETTINGS {self.settings} " if self.settings else ""
        return f"{self.into} FROM INFILE {literal(path)} COMPRESSION 'none' {settings}FORMAT {self.format}"


def first_word(tokens: list[str]) -> str:
    """A statement's first keyword in capitals, opening parentheses skipped; "" when there is none."""
    found = next((token for token in tokens if token != "("), "")
    return found.upper()


def split_insert(text: bytes, whole: bool) -> Insert | bool | None:
    """Find an INSERT's data in the beginning of a request.

    Returns the split, None when the statement carries no data of its own (not an INSERT, or INSERT … SELECT), or False
    when more text is needed to tell; never False when `whole`.
    """
    words: list[str] = []
    depth, opened = 0, False
    parts = [0, 0]  # where the table's part ends, and where the settings begin
    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup, token.group()
        if not whole and token.end() == len(text):
            return False
        if kind == "blank":
            continue
        if kind == "mark":
            depth += (value == b"(") - (value == b")")
            opened = value == b"("
            words.append("")
            continue
        word = value.decode("utf-8", "replace").upper() if kind == "word" else ""
        if not words and word != "INSERT":
            return None
        if word in ("SELECT", "WITH", "WATCH") and (depth == 0 or (opened and len(words) > 3)) and len(words) > 2:
            return None
        if depth == 0 and word == "VALUES" and len(words) > 2:
            return Insert(*_head(text, token.start(), parts), "Values", token.end())
        if depth == 0 and word == "FORMAT" and len(words) > 2:
            return _formatted(text, token.start(), token.end(), whole, parts)
        if depth == 0 and word == "SETTINGS" and len(words) > 2:
            parts = [token.start(), token.end()]
        words.append(word)
        opened = False
    return None if whole else False


def _head(text: bytes, end: int, parts: list[int]) -> tuple[str, str]:
    """The table's part of a head that ends there, and its settings."""
    first, second = parts if parts[1] else (end, end)
    return text[:first].decode("utf-8", "replace"), text[second:end].decode("utf-8", "replace").strip()


def _formatted(text: bytes, start: int, end: int, whole: bool, parts: list[int]) -> Insert | bool | None:
    if not whole and len(text) - end < TAIL_MIN:
        return False
    position = end
    while (token := _TOKEN.match(text, position)) and token.lastgroup == "blank":
        position = token.end()
    if token is None or token.lastgroup != "word":
        return None
    name, position = token.group().decode(), token.end()
    into, settings = _head(text, start, parts)
    if more := _SETTINGS.match(text, position):
        settings, position = ", ".join(filter(None, (settings, more.group(1).decode()))), more.end()
    gap = _DATA_GAP.match(text, position)
    return Insert(into, settings, name, gap.end() if gap else position)


def outline(text: bytes) -> list[str]:
    """The statement's tokens without blanks and comments: words, single marks, quoted names; a string is `''`."""
    found = []
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "quoted" or token.lastgroup == "tag":
            first = token.group()[:1]
            found.append(token.group().decode("utf-8", "replace") if first in b'`"' else "''")
        elif token.lastgroup != "blank":
            found.append(token.group().decode("utf-8", "replace"))
    return found


def answer_format(tokens: list[str]) -> str | None:
    """The format that a query's own FORMAT clause asks for, None without one."""
    at = len(tokens) - 1
    depth = 0
    while at > 0:
        depth += (tokens[at] == ")") - (tokens[at] == "(")
        ends = at + 2 >= len(tokens) or tokens[at + 2].upper() in (";", "SETTINGS", "INTO")
        if depth == 0 and ends and tokens[at].upper() == "FORMAT" and at + 1 < len(tokens):
            return tokens[at + 1] if re.fullmatch(r"[A-Za-z]\w*", tokens[at + 1]) else None
        at -= 1
    return None


def names_file(tokens: list[str]) -> bool:
    """INTO OUTFILE and FROM INFILE are for a client's machine; no server executes them."""
    pairs = {(first.upper(), second.upper()) for first, second in pairwise(tokens)}
    return bool(pairs & {("INTO", "OUTFILE"), ("FROM", "INFILE")})


def changes_settings(tokens: list[str]) -> bool:
    """Whether a SETTINGS clause stands anywhere in the statement."""
    return any(
        tokens[at].upper() == "SETTINGS" and tokens[at + 2] == "=" and tokens[at + 1].isidentifier()
        for at in range(len(tokens) - 2)
    )


def literal(text: str) -> str:
    """`text` as a ClickHouse string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0")
    return f"'{escaped}'"


def name(text: str) -> str:
    """`text` as a quoted ClickHouse identifier."""
    return "`" + text.replace("\\", "\\\\").replace("`", "\\`") + "`"
