"""A table in ClickHouse against its shadow, up to what the shadow has seen: rows never change there, so later ones are left out.

First a sum of hashes by partition and range of ids, then the rows of the ranges that differ, each known by its event and number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any, cast
from uuid import uuid4

from projections.kernel.clickhouse import ClickTable, client_of, quoted
from replay.checks import SHOWN_MAX, Checked, Difference
from replay.checks.model import Ahead, Found, Shadowed
from replay.log import ReplayError

RANGE = 4_096  # ids
RANGES_MAX = 25  # that are looked at row by row in one go
DELETE_MAX = 500
IDENTITY = ("log_domain", "log_partition", "log_id", "log_row")

BEYOND = (
    "arrayExists((d, p, i) -> log_domain = d AND log_partition = p AND log_id > i,"
    " {domains:Array(String)}, {partitions:Array(UInt32)}, {ids:Array(UInt64)})"
)
IN_RANGES = (
    "arrayExists((d, p, r) -> log_domain = d AND log_partition = p AND intDiv(log_id, {range:UInt64}) = r,"
    " {in_domains:Array(String)}, {in_partitions:Array(UInt32)}, {in_ranges:Array(UInt64)})"
)
THESE = (
    "arrayExists((d, p, i, r) -> log_domain = d AND log_partition = p AND log_id = i AND log_row = r,"
    " {in_domains:Array(String)}, {in_partitions:Array(UInt32)}, {in_ids:Array(UInt64)}, {in_rows:Array(UInt32)})"
)
Identity = tuple[str, int, int, int]


class ClickHouseCheck:
    """`compare`, then `repair` what it found."""

    def __init__(self, its: Shadowed) -> None:
        self._its = its
        self._table = cast(ClickTable, its.table)
        self._columns = list(self._table.types)
        self._hash = f"cityHash64(toString(tuple(log_row, {', '.join(map(quoted, self._columns))})))"
        seen = its.seen()
        self._cut = {
            "domains": [domain for domain, _ in seen],
            "partitions": [partition for _, partition in seen],
            "ids": list(seen.values()),
            "range": RANGE,
            "fed": sorted({domain for domain, _ in seen}),
        }
        # Of an event of a domain that is not looked at nothing is known; a row of no domain's belongs nowhere.
        self._where = f"NOT ({BEYOND}) AND (log_domain IN {{fed:Array(String)}} OR log_domain = '')"
        self.found: list[Found] = []

    def compare(self) -> Checked:
        checked: Checked = self._its.caught(self._compare)
        return checked

    def _compare(self) -> Checked:
        its, checked = self._its, self._its.checked()
        seen = its.seen()
        if any(position.notification_id < seen[lane] for lane, position in its.live().items()):
            raise Ahead
        with self._client() as client:
            mine, true = (self._sums(client, name) for name in (its.table.name, its.shadow.name))
            checked.rows = sum(count for count, _ in mine.values())
            differing = sorted(one for one in mine.keys() | true.keys() if mine.get(one) != true.get(one))
            some = differing[:RANGES_MAX]
            told, real = (self._rows(client, name, some) for name in (its.table.name, its.shadow.name))
            wrong = sorted(one for one in told.keys() | real.keys() if told.get(one) != real.get(one))
            values = [self._values(client, name, wrong[:SHOWN_MAX]) for name in (its.table.name, its.shadow.name)]
            offsets = self._offsets(client, wrong)
        self.found = [
            Found(one, self._why(told.get(one), real.get(one), *(of.get(one) for of in values)), told.get(one))
            for one in wrong
        ]
        checked.count, checked.parts = len(self.found) + len(differing[RANGES_MAX:]), len(differing)
        if len(differing) > RANGES_MAX:
            checked.note = f"{len(differing) - RANGES_MAX} more ranges of {RANGE:,} events differ"
        for (domain, partition, id, row), why, _ in self.found:
            offset = offsets.get((domain, partition, id))
            key = f"row {row} of notification {id}"
            checked.differences.append(Difference(checked.what, key, why, domain, partition, offset, id))
        return checked

    def repair(self) -> None:
        """Insert what is right, then remove what is not: with FINAL no row is seen missing meanwhile. Positions stay."""
        its, live = self._its, quoted(self._its.table.name)
        names = ", ".join(map(quoted, [*self._columns, *IDENTITY, "log_offset", "log_build"]))
        wrong = [(one.key, hash) for one in self.found for hash in one.values or ()]
        with self._client() as client:
            client.command(
                f"INSERT INTO {live} ({names}) SELECT * REPLACE ({{build:String}} AS log_build) FROM"
                f" (SELECT {names} FROM {quoted(its.shadow.name)} FINAL WHERE {THESE})",
                parameters=_these([one.key for one in self.found]) | {"build": self._build(client)},
                settings={"insert_deduplication_token": f"repair {uuid4()}"},
            )
            for some in (wrong[at : at + DELETE_MAX] for at in range(0, len(wrong), DELETE_MAX)):
                client.command(
                    f"DELETE FROM {live} WHERE {THESE} AND has({{hashes:Array(UInt64)}}, {self._hash})",
                    parameters=_these([one for one, _ in some]) | {"hashes": [hash for _, hash in some]},
                )

    def _build(self, client: Any) -> str:
        """Of the live table: rows of no other build are taken."""
        query = "SELECT comment FROM system.tables WHERE database = currentDatabase() AND name = {name:String}"
        [[comment]] = client.query(query, parameters={"name": self._its.table.name}).result_rows
        return str(comment)

    def _sums(self, client: Any, name: str) -> dict[tuple[str, int, int], tuple[int, int]]:
        query = (
            "SELECT log_domain, log_partition, intDiv(log_id, {range:UInt64}) AS part, count(), sum(hash) FROM"
            f" (SELECT log_domain, log_partition, log_id, {self._hash} AS hash FROM {quoted(name)} FINAL WHERE {self._where})"
            " GROUP BY log_domain, log_partition, part"
        )
        rows = client.query(query, parameters=self._cut).result_rows
        return {(domain, partition, part): (count, sum) for domain, partition, part, count, sum in rows}

    def _rows(self, client: Any, name: str, some: Collection[tuple[str, int, int]]) -> dict[Identity, list[int]]:
        """The hashes of the rows in these ranges."""
        if not some:
            return {}
        columns = list(zip(*some, strict=True))
        where = dict(zip(("in_domains", "in_partitions", "in_ranges"), map(list, columns), strict=True))
        query = (
            f"SELECT {', '.join(IDENTITY)}, {self._hash} AS hash FROM {quoted(name)} FINAL"
            f" WHERE {self._where} AND {IN_RANGES} ORDER BY hash"
        )
        found: dict[Identity, list[int]] = {}
        for *identity, hash in client.query(query, parameters=self._cut | where).result_rows:
            found.setdefault(cast(Identity, tuple(identity)), []).append(hash)
        return found

    def _values(self, client: Any, name: str, wanted: Collection[Identity]) -> dict[Identity, tuple[Any, ...]]:
        if not wanted:
            return {}
        columns = ", ".join([*IDENTITY, *map(quoted, self._columns)])
        query = f"SELECT {columns} FROM {quoted(name)} FINAL WHERE {THESE}"
        rows = client.query(query, parameters=_these(wanted)).result_rows
        return {cast(Identity, tuple(row[:4])): tuple(row[4:]) for row in rows}

    def _offsets(self, client: Any, wanted: Collection[Identity]) -> dict[tuple[str, int, int], int]:
        """Where the topic has the events of these rows: the shadow's word before the live one's."""
        found: dict[tuple[str, int, int], int] = {}
        for name in (self._its.table.name, self._its.shadow.name):
            if wanted:
                query = f"SELECT log_domain, log_partition, log_id, log_offset FROM {quoted(name)} FINAL WHERE {THESE}"
                rows = client.query(query, parameters=_these(wanted)).result_rows
                found |= {(domain, partition, id): offset for domain, partition, id, offset in rows}
        return found

    def _why(self, told: Any, real: Any, values: tuple[Any, ...] | None, true: tuple[Any, ...] | None) -> str:
        if told is None:
            return "is missing"
        if real is None:
            return "should not be there"
        if len(told) > 1:
            return f"is there {len(told)} times"
        if values is None or true is None:
            return "differs"
        return "; ".join(
            f"{name} is {one!s:.200}, but its event says {right!s:.200}"
            for name, one, right in zip(self._columns, values, true, strict=True)
            if one != right
        )

    @contextmanager
    def _client(self) -> Iterator[Any]:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        try:
            with closing(client_of(self._its.of.clickhouse)) as client:
                yield client
        except (ClickHouseError, OSError) as error:
            raise ReplayError(f"ClickHouse: {' '.join(str(error).split())[:300]}") from error


def _these(wanted: Collection[Identity]) -> dict[str, Any]:
    columns = list(zip(*wanted, strict=True)) or [()] * 4
    return dict(zip(("in_domains", "in_partitions", "in_ids", "in_rows"), map(list, columns), strict=True))
