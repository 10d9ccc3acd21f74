"""Where a build of the past ends: at a moment, or before a record; and what its shadow is called then.

A moment is a prefix of each partition (see `replay.log`). Before the record at an offset is what had happened when it came: its own
partition ends there, and every other one before the first event that is not earlier than it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from aggregates.kernel.wire import MICROSECOND
from infra.settings import Settings
from projections.kernel.tables import MARK, AnyTable
from replay import log
from replay.log import ReplayError, Span
from replay.shadow import shadow_of

AT = "at_"
DIFF = "diff_"
"""Of what `titan replay diff` builds for itself and removes again, in place of `AT`."""
NAME_MAX = 63  # bytes of a table's name in Postgres
_OFFSET = re.compile(r"([a-z_]+):(\d{1,9})=(\d{1,18})")

Offsets = Mapping[tuple[str, int], int]


class Cut(NamedTuple):
    """`moment`: events up to it are in; `offsets`: of these partitions instead the records below."""

    moment: datetime | None = None
    offsets: Offsets = {}

    @property
    def purpose(self) -> str:
        """What its shadows are called behind the table's name: `at_20261101t120000z`, `at_order_0_1200`."""
        if self.offsets:
            named = "_".join(f"{domain}_{partition}_{n}" for (domain, partition), n in sorted(self.offsets.items()))
            return AT + (named if len(named) < 30 else hashlib.sha256(named.encode()).hexdigest()[:16])
        assert self.moment is not None
        fraction = f"_{self.moment.microsecond:06d}" if self.moment.microsecond else ""
        return f"{AT}{self.moment:%Y%m%dt%H%M%S}{fraction}z"

    def __str__(self) -> str:
        if self.offsets:
            return ", ".join(f"{domain}:{partition}={n}" for (domain, partition), n in sorted(self.offsets.items()))
        assert self.moment is not None
        return self.moment.isoformat().replace("+00:00", "Z")


def moment_of(text: str) -> datetime:
    """A moment with its zone, in UTC. Raises ReplayError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ReplayError(f"{text!r} is no time: write it as 2026-11-01T12:00:00Z") from None
    if moment.tzinfo is None:
        raise ReplayError(f"{text} needs its zone: write it as {text}Z, or with +01:00 behind it")
    return moment.astimezone(UTC)


def cut_of(until: str | None, offsets: Sequence[str] | None) -> Cut:
    """From the words of the command line. Raises ReplayError."""
    if until and offsets:
        raise ReplayError("either --until or --until-offset")
    if until:
        return Cut(moment_of(until))
    found: dict[tuple[str, int], int] = {}
    for text in offsets or ():
        if (match := _OFFSET.fullmatch(text)) is None:
            raise ReplayError(f"{text!r} is no offset: write it as order:0=1200")
        found[match[1], int(match[2])] = int(match[3])
    return Cut(offsets=found)


def spans(settings: Settings, domains: Collection[str], cut: Cut) -> list[Span]:
    """What a cut leaves of these domains' topics. Raises ReplayError, also for an offset of another domain."""
    if not cut.offsets:
        return log.spans(settings, domains, until=cut.moment)
    if strange := {domain for domain, _ in cut.offsets} - set(domains):
        raise ReplayError(f"events of {', '.join(sorted(strange))} change none of these tables")
    exact = {(one.domain, one.partition): one for one in log.spans(settings, domains, offsets=cut.offsets)}
    whole = {(one.domain, one.partition): one for one in log.spans(settings, domains)}
    last = [
        exact[where]._replace(first=offset, end=offset + 1)
        for where, offset in cut.offsets.items()
        if offset < whole[where].end
    ]
    if len(last) < len(cut.offsets):  # one is at the end of its topic: nothing has come since
        return list(exact.values())
    moments = [log.occurred_at(delivery) for batch in log.read(settings, last) for delivery in batch]
    others = log.spans(settings, domains, until=max(moments) - MICROSECOND)
    return [exact[one.domain, one.partition] if (one.domain, one.partition) in cut.offsets else one for one in others]


def shadows(tables: Collection[AnyTable], purpose: str) -> dict[AnyTable, AnyTable]:
    """Each table's shadow for a purpose. Raises ReplayError for a name that no store would take."""
    for table in tables:
        if len(f"{table.name}{MARK}{purpose}") > NAME_MAX:
            raise ReplayError(f"the name {table.name}{MARK}{purpose} is longer than {NAME_MAX} characters")
    return {table: shadow_of(table, purpose) for table in tables}
