"""Shadows in ClickHouse: a table of a build of its own, filled in large blocks, and exchanged with the live one by name.

A worker may insert at the very moment of the exchange. Its rows carry the build that it looked up, so the server takes them into
the old table or refuses them, and never into the new one; its positions are those of the old build. At its next batch it sees the
new build's and reads on from there, so nothing is missed whatever is frozen or killed, and when. The hold only keeps readers from
seeing the table go back for as long: what a worker may still have on its way was in the topics before, so the shadow is brought
to their ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from uuid import uuid4

from infra.settings import Settings
from projections.kernel.clickhouse import POSITIONS, ClickTable, create, quoted
from projections.kernel.clickhouse_sink import HELD, ClickHouseSink, Rows, gathered
from projections.kernel.runner import Batch, Down, Fenced, Move
from projections.kernel.tables import MARK, AnyTable
from replay.log import spans
from replay.shadow import Loader, Reach

HELD_MS = 30_000  # live tables are held still at most so long, whatever becomes of this process
AS_ONE = 5  # rows by column take as much memory as one that is folded, and the server takes a few large parts faster
BUILD_MARK = "~"  # between a table's name and the number of its build
WAS_LIVE = "!live"  # the topic that a build has once it was held still: what an exchange left behind is no shadow
NAMES = """
SELECT name FROM system.tables WHERE database = currentDatabase() AND position(name, {mark:String}) > 0 AND comment != ''
ORDER BY name
"""
MARKED = """
INSERT INTO projection_positions (read_model, topic, partition, notification_id, offset)
SELECT arrayJoin({builds:Array(String)}), {topic:String}, 0, toUnixTimestamp64Milli(now64(3)) + {ms:UInt32}, 0
"""
HOLDING = """
SELECT uniqExact(read_model) FROM projection_positions
WHERE read_model IN {builds:Array(String)} AND topic = {topic:String} AND notification_id > toUnixTimestamp64Milli(now64(3))
"""
TOPICS = """
SELECT DISTINCT topic FROM projection_positions WHERE read_model IN {builds:Array(String)} AND position(topic, '!') = 0
"""
# A parked event that is put right is not applied to a table that was built with it.
RETRIES = """
INSERT INTO projection_positions (read_model, topic, partition, notification_id, offset)
SELECT read_model, concat(lane, '!'), partition, id, at FROM (
    SELECT read_model, topic AS lane, partition, max(notification_id) AS id, argMax(offset, notification_id) AS at
    FROM projection_positions WHERE read_model IN {builds:Array(String)} AND position(topic, '!') = 0
    GROUP BY read_model, topic, partition
)
"""


class ClickHouseLoader(ClickHouseSink):
    """Gathers rows by column, as they will be sent, and inserts them as one part at the checkpoint."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._rows: dict[AnyTable, Rows] = {}
        self._moves: dict[tuple[AnyTable, str, int], Move] = {}

    @property
    def rows(self) -> int:
        return sum(rows.count for rows in self._rows.values()) // AS_ONE

    def apply(self, batch: Batch) -> None:
        for table, changes in batch.changes.items():
            if table not in self._rows:
                self._rows[table] = gathered(table)
            self._rows[table].add(changes)
        for move in batch.moves:
            lane = move.table, move.topic, move.partition
            before = self._moves.get(lane)
            if before is not None and before.new != move.old:
                raise Fenced
            self._moves[lane] = move if before is None else before._replace(new=move.new)

    def checkpoint(self) -> None:
        moves = list(self._moves.values())
        self.fence(moves)
        for table, rows in self._rows.items():
            if rows.count:
                self.insert(table, rows, moves)
        self.store(moves)
        self._rows, self._moves = {}, {}


class ClickHouseShadows:
    """In the database of the settings, whose engine has to be Atomic, as a server's is."""

    name = "clickhouse"

    def __init__(self, settings: Settings) -> None:
        self._settings, self._sink = settings, ClickHouseSink(settings.clickhouse)

    def make(self, shadow: AnyTable) -> None:
        assert isinstance(shadow, ClickTable)
        self._sink.command(POSITIONS)
        self.drop(shadow.name)
        build = f"{shadow.name.partition(MARK)[0]}{BUILD_MARK}{uuid4().hex[:12]}"
        self._sink.command(create(shadow, build))

    def there(self, shadow: AnyTable) -> bool:
        builds = list(self._sink.builds([shadow.name]).values())
        return bool(builds) and not self._sink.query(
            "SELECT 1 FROM projection_positions WHERE read_model IN {builds:Array(String)} AND topic = {topic:String} LIMIT 1",
            {"builds": builds, "topic": WAS_LIVE},
        )

    def loader(self) -> Loader:
        return ClickHouseLoader(self._settings.clickhouse)

    def finished(self, shadow: AnyTable) -> bool:
        """Loaders and the ordinary sink have the same positions, so a loader always can."""
        return False

    def finish(self, shadow: AnyTable) -> None:
        """Nothing is left to do: its positions are where they are looked for, and parts are merged in the background."""

    def switch(self, pairs: Mapping[AnyTable, AnyTable], catch_up: Callable[[Reach], None]) -> None:
        live = self._sink.builds([table.name for table in pairs])
        builds = list(live.values())
        self._sink.command(MARKED, {"builds": builds, "topic": WAS_LIVE, "ms": 0})
        try:
            self._sink.command(MARKED, {"builds": builds, "topic": HELD, "ms": HELD_MS})
            shadows = list(self._sink.builds([shadow.name for shadow in pairs.values()]).values())
            catch_up(self._ends([*builds, *shadows]))
            self._sink.command(RETRIES, {"builds": shadows})
            if self._sink.query(HOLDING, {"builds": builds, "topic": HELD}) != [(len(builds),)]:
                raise Down(f"catching up took more than {HELD_MS / 1000:.0f} s; nothing was switched, try again")
            for table, shadow in pairs.items():
                verb = "EXCHANGE TABLES {0} AND {1}" if table.name in live else "RENAME TABLE {1} TO {0}"
                self._sink.command(verb.format(quoted(table.name), quoted(shadow.name)))
        finally:
            with suppress(Down):  # it ends by itself
                self._sink.command(
                    "DELETE FROM projection_positions WHERE read_model IN {builds:Array(String)} AND topic = {topic:String}",
                    {"builds": builds, "topic": HELD},
                )
        for shadow in pairs.values():
            self.drop(shadow.name)

    def drop(self, name: str) -> None:
        assert MARK in name, name
        builds = list(self._sink.builds([name]).values())
        self._sink.command(f"DROP TABLE IF EXISTS {quoted(name)} SYNC")
        self._sink.command(
            "DELETE FROM projection_positions WHERE read_model IN {builds:Array(String)}", {"builds": builds}
        )

    def names(self) -> list[str]:
        return [name for (name,) in self._sink.query(NAMES, {"mark": MARK})]

    def close(self) -> None:
        self._sink.close()

    def _ends(self, builds: Collection[str]) -> Reach:
        """The last records of the topics that feed these builds."""
        domains = [topic for (topic,) in self._sink.query(TOPICS, {"builds": list(builds)})]
        return {(one.domain, one.partition): one.end - 1 for one in spans(self._settings, domains) if one.end > 0}
