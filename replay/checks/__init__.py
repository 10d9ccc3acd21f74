"""What `titan replay verify` compares: event stores with topics, and with what they keep beside their events; read models with
what their events come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SHOWN_MAX = 20  # differences of one store or read model that are named one by one


@dataclass
class Difference:
    """One event or row that is not what it should be, and where the topic has it (of a row: the last event that made it)."""

    what: str
    key: str
    why: str
    domain: str = ""
    partition: int | None = None
    offset: int | None = None
    notification_id: int = 0
    repaired: bool = False
    refused: str = ""
    """Why it is not repaired."""

    def line(self) -> str:
        """For people."""
        at = f" ({self.domain} [{self.partition}] offset {self.offset})" if self.partition is not None else ""
        end = "; repaired" if self.repaired else f"; not repaired: {self.refused}" if self.refused else ""
        return f"{self.what} {self.key}: {self.why}{at}{end}"


@dataclass
class Checked:
    """What was compared, in `rows` (or events), and how it differs: `count` in all, the first of them in `differences`.

    `note`: what should be known of it although it is no difference, as how far a read model is behind. `compared`: False when it was not.
    `parts` of it differ, of which only so many are looked at row by row in one go: `count` has those rows, and each of the other parts once.
    """

    what: str
    rows: int = 0
    count: int = 0
    differences: list[Difference] = field(default_factory=list)
    note: str = ""
    compared: bool = True
    parts: int = 0

    @property
    def agrees(self) -> bool:
        """Whether it was compared, and there is nothing left that differs."""
        return self.compared and self.count == sum(one.repaired for one in self.differences)

    def document(self) -> dict[str, Any]:
        """For machines."""
        first = [vars(one) for one in self.differences[:SHOWN_MAX]]
        return {
            "verified": self.what, "rows": self.rows, "agrees": self.agrees, "differences": self.count, "first": first,
            "compared": self.compared, "note": self.note,
        }  # fmt: skip
