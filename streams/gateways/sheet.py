"""Reports that gateways write as CSV: their lines by column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence


def lines_of(report: bytes, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Each line's number in the file and its values; there may be other columns. Raises `ValueError`, whose `str` is a sentence."""
    try:
        lines = csv.DictReader(io.StringIO(report.decode("utf-8-sig"), newline=""), strict=True)
        if missing := [name for name in columns if name not in (lines.fieldnames or ())]:
            raise ValueError(f"there is no column {', '.join(missing)}")
        for number, line in enumerate(lines, start=2):
            if None in line or None in line.values():
                raise ValueError(f"row {number} has not as many values as there are columns")
            yield number, line
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from error
