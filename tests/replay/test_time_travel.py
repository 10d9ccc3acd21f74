"""Read models as they were, what changed between two moments, and what other code would have made: in all three stores."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_client
from psycopg import sql
from psycopg.rows import dict_row

from aggregates.kernel.wire import MICROSECOND
from infra.settings import Settings
from projections.kernel.clauses import PROJECTIONS
from projections.kernel.clickhouse_sink import ClickHouseSink
from projections.kernel.postgres import Table
from projections.kernel.redis import RedisTable
from projections.kernel.tables import AnyTable
from replay import diff, projection, verify, whatif
from replay.compare import EVENT, Difference, compare
from replay.log import ReplayError, read, spans
from replay.moments import Cut, cut_of
from replay.postgres import PostgresShadows
from replay.shadow import shadow_of
from replay.until import lying
from tests.kernel.servers import Stack, fresh_settings
from tests.projections.kernel.live import make_topic, publish
from tests.projections.kernel.purse import DOMAIN, Filled, Log, purses
from tests.projections.kernel.stores import PURSES, Store
from tests.projections.kernel.test_sinks import history

EVENTS = 240
Rows = dict[tuple[Any, ...], dict[str, Any]]


class Past:
    """A history in the topic, and in the live tables of all stores."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.log = settings, history(4, EVENTS)
        make_topic(settings)
        publish(settings, self.log.rows)
        self.stores = [Store(name, settings) for name in ("postgres", "redis", "clickhouse")]
        for to in self.stores:
            runner = to.runner(self.log)
            runner.handle(self.log.deliveries())

    def until(self, count: int) -> Log:
        """The log of the first so many events."""
        log = Log()
        log.rows = self.log.rows[:count]
        return log

    def at(self, count: int) -> str:
        """When the last of so many events happened."""
        return self.log.rows[count - 1].occurred_at.isoformat()

    def run(self, *argv: str) -> int:
        return projection.main(argv, [PURSES], self.settings)

    def rows(self, table: AnyTable) -> Rows:
        """All that a table holds, by key; rows of ClickHouse by their event."""
        if isinstance(table, Table):
            with psycopg.connect(self.settings.postgres, row_factory=dict_row) as connection:
                found = connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table.name))).fetchall()
            return {tuple(row.pop(name) for name in table.key): row for row in found}
        if isinstance(table, RedisTable):
            with redis_client.Redis.from_url(self.settings.redis) as client:
                found = list(table.scan(client, self.settings.namespace))
            return {tuple(row.pop(name) for name in table.key): row for row in found}
        names = [*EVENT, *table.columns]
        with closing(ClickHouseSink(self.settings.clickhouse)) as sink:
            values = sink.query(f"SELECT {', '.join(names)} FROM {table.name} FINAL", {})
        return {tuple(row[:4]): dict(zip(names[4:], row[4:], strict=True)) for row in values}


@pytest.fixture(scope="module")
def past(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    with fresh_settings(stack, tmp_path_factory.mktemp("past")) as settings:
        made = Past(settings)
        yield made
        for to in made.stores:
            to.close()


@pytest.fixture(autouse=True)
def tidy(past: Past) -> Iterator[None]:
    yield
    for name in sorted({name for _, name in lying(past.settings)}):
        past.run("--drop", name)


@pytest.mark.parametrize(("past_the_event", "count"), [(timedelta(0), 100), (-MICROSECOND, 99)])
def test_a_read_model_as_it_was_at_a_microsecond(past: Past, past_the_event: timedelta, count: int) -> None:
    moment = past.log.rows[99].occurred_at + past_the_event
    past.run("purse", "--until", moment.isoformat())
    for to in past.stores:
        assert to.holds(f"__{Cut(moment).purpose}") == to.should_hold(past.until(count)), to.name
        assert to.holds() == to.should_hold(past.log)


def test_a_read_model_as_it_was_before_the_record_at_an_offset(past: Past) -> None:
    """Its own partition ends there, the others at the same moment."""
    ninetieth = past.log.rows[89]
    place = next(d for d in published(past) if d[2] == ninetieth.notification_id)
    past.run("purse", "--until-offset", f"{DOMAIN}:{place[0]}={place[1]}")
    for to in past.stores:
        assert to.holds(f"__at_{DOMAIN}_{place[0]}_{place[1]}") == to.should_hold(past.until(89)), to.name


def test_a_dry_run_tells_what_would_be_built_or_removed_and_does_neither(
    past: Past, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, at = tmp_path / "purse.py", past.at(50)
    file.write_text(CHANGED)
    past.run("purses", "--until", at)
    [(_, name)] = before = lying(past.settings)
    capsys.readouterr()
    for argv in (
        ["purses", "totals", "--until", at],
        ["purses", "--with", str(file)],
        ["--drop", name],
        ["--list"],
    ):
        past.run(*argv, "--dry-run", "--json")
    until, changed, today, dropped, listed = map(json.loads, capsys.readouterr().out.splitlines())
    assert until["would_build"] == {"postgres.purses": name, "postgres.totals": f"totals__{cut_of(at, None).purpose}"}
    assert (until["events"], until["events_done"], until["begun"]) == (
        50,
        0,
        [name],
    )  # one is complete, the other to be made
    assert set(changed["would_build"].values()) == {"large_fills__with", "purses__with"}
    assert set(today["would_build"].values()) == {"purses__asis"}
    assert changed["events"] == today["events"] == EVENTS and changed["seconds"] >= 0 < today["events_per_s"]
    assert dropped == {"would_drop": name} and listed["name"] == name
    past.run("purses", "--until", at, "--dry-run")
    said = capsys.readouterr().out
    assert f"would take {name}, which is complete, for postgres.purses, as of {cut_of(at, None)}" in said
    assert "from 0 events of" in said and "with 50 that are in it already: about 0 s" in said
    assert lying(past.settings) == before


def published(past: Past) -> list[tuple[int, int, int]]:
    """(partition, offset, notification id) of every record."""
    batches = read(past.settings, spans(past.settings, [DOMAIN]))
    return [(d.partition, d.offset, d.notification_id) for batch in batches for d in batch]


def test_what_was_built_is_listed_used_again_and_removed(past: Past, capsys: pytest.CaptureFixture[str]) -> None:
    at = past.at(50)
    past.run("purses", "--until", at)
    capsys.readouterr()
    past.run("purses", "--until", at)  # again: it is there
    assert "purses as of 2024-" in capsys.readouterr().out
    past.run("--list", "--json")
    [listed] = map(json.loads, capsys.readouterr().out.splitlines())
    assert listed == {"sink": "postgres", "name": f"purses__{cut_of(at, None).purpose}", "kind": "as it was"}
    past.run("--drop", listed["name"])
    assert lying(past.settings) == []
    with pytest.raises(ReplayError, match="there is no purses__at_20241004"):
        past.run("--drop", "purses__at_20241004")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["purse", "--until", "yesterday"], "'yesterday' is no time: write it as 2026-11-01T12:00:00Z"),
        (["purse", "--until", "2024-10-04T00:00:00"], "2024-10-04T00:00:00 needs its zone"),
        (["purse", "--until", "2999-01-01T00:00:00Z"], "2999-01-01T00:00:00.00:00 is in the future"),
        (["purse", "--until-offset", "pouch=3"], "'pouch=3' is no offset: write it as order:0=1200"),
        (["purse", "--until-offset", "pouch:99=3"], r"there is no partition 99 of .*pouch"),
        (["purse", "--until-offset", "pouch:0=99999"], r"pouch \[0\] ends at offset \d+, before 99999"),
        (["purse", "--until-offset", "order:0=3"], "events of order change none of these tables"),
        (["nothing", "--until", "2024-10-04T00:00:00Z"], "nothing"),
        (["purse", "--with", "nowhere.py"], "there is no projection nowhere.py"),
        (["purse", "--with", __file__], "is no projection"),
        (["purse", "--with", __file__, "--clean"], "--with builds something: give --clean"),
        (["purse", "--until", "2024-10-04T00:00:00Z", "--clean"], "--clean goes alone or before a rebuild"),
    ],
)
def test_nonsense_is_one_clear_line_and_touches_nothing(past: Past, argv: list[str], said: str) -> None:
    with pytest.raises(ReplayError, match=said) as told:
        past.run(*argv)
    assert "\n" not in str(told.value)
    assert lying(past.settings) == []
    for to in past.stores:
        assert to.holds() == to.should_hold(past.log)


def applied(rows: Rows, differences: list[Difference]) -> Rows:
    """What a table comes to when it is changed as the differences say."""
    made = {key: dict(row) for key, row in rows.items()}
    for one in differences:
        key = tuple(one.key.values())
        if one.kind == "removed":
            assert made.pop(key) == one.before
        elif one.kind == "added":
            assert key not in made
            made[key] = dict(one.after)
        else:
            assert {name: made[key][name] for name in one.before} == one.before
            made[key] |= one.after
    return made


@pytest.mark.parametrize(("a", "b"), [(40, 160), (160, 40), (0, 1), (100, 101)])
def test_the_difference_applied_to_the_first_state_comes_to_the_second(past: Past, a: int, b: int) -> None:
    cuts = [Cut(past.log.rows[0].occurred_at + (count - 1) * timedelta(seconds=1)) for count in (a, b)]
    for cut in cuts:
        past.run("purse", "--until", str(cut))
    for table in PURSES.tables:
        before, after = (table.named(f"{table.name}__{cut.purpose}") for cut in cuts)
        shown: list[Difference] = []
        found = compare(past.settings, before, after, shown.append)
        assert applied(past.rows(before), shown) == past.rows(after), table
        kinds = [one.kind for one in shown]
        assert [kinds.count(k) for k in ("added", "removed", "changed")] == [found.added, found.removed, found.changed]
        assert found.columns == {
            name: n for name in table.columns if (n := sum(name in o.after for o in shown if o.kind == "changed"))
        }
        assert [tuple(o.key.values()) for o in shown] == sorted(
            (tuple(o.key.values()) for o in shown),
            key=lambda key: [str(p) if table.sink == "redis" else p for p in key],
        )
        first: list[Difference] = []
        assert compare(past.settings, before, after, first.append, 2) == found
        assert first == shown[:2]


def test_diff_tells_what_changed_until_now_and_leaves_nothing_behind(
    past: Past, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["purses", "--at", past.at(100), "--at", "now"]
    assert diff.main([*argv, "--json", "--limit", "0"], [PURSES], past.settings) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows, [total] = [one for one in told if "kind" in one], [one for one in told if "between" in one]
    assert total["between"] == [past.at(100), "now"]
    assert len(rows) == total["added"] + total["removed"] + total["changed"] > 0
    diff.main([*argv, "--limit", "1"], [PURSES], past.settings)
    said = capsys.readouterr().out
    assert f"{total['added']:,} added, {total['removed']:,} removed, {total['changed']:,} changed" in said
    assert f"and {len(rows) - 1:,} more rows" in said
    assert lying(past.settings) == []
    with pytest.raises(ReplayError, match="nothing changes in no time"):
        diff.main(["purses", "--at", "now", "--at", "now"], [PURSES], past.settings)


def test_a_disk_that_is_full_while_keys_are_sorted(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sqlite3.connect

    def small(name: str) -> sqlite3.Connection:
        file = whole(name)
        file.execute("PRAGMA max_page_count = 1")
        return file

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(ReplayError, match="the keys don't fit into a temporary file: database or disk is full") as told:
        diff.main(["pockets", "--at", past.at(100), "--at", "now"], [PURSES], past.settings)
    assert "\n" not in str(told.value)
    assert lying(past.settings) == []


def test_a_diff_or_a_verify_that_was_killed_is_cleaned_up_and_what_is_kept_is_not(
    past: Past, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, at, names = past.at(50), past.at(100), ["purses", "pockets"]
    clean = ["--clean", "--json"]
    past.run(*names, "--until", kept)
    before = lying(past.settings)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        for name in ("told", "drop"):
            patched.setattr(diff, name, killed)
        with pytest.raises(KeyboardInterrupt):
            diff.main([*names, "--at", kept, "--at", at], [PURSES], past.settings)
    with closing(PostgresShadows(past.settings)) as shadows:
        shadows.make(shadow_of(purses, verify.PURPOSE))
    own = f"diff_{Cut(past.log.rows[99].occurred_at).purpose.removeprefix('at_')}"
    ours = {f"postgres.purses__{own}", f"redis.pockets__{own}", "postgres.purses__verify"}
    past.run("--list")
    assert "of an unfinished diff" in (said := capsys.readouterr().out) and "of an unfinished verify" in said
    past.run(*clean, "--dry-run")
    assert set(json.loads(capsys.readouterr().out)["would_remove"]) == ours
    past.run(*clean)
    assert set(json.loads(capsys.readouterr().out)["removed"]) == ours
    assert lying(past.settings) == before
    diff.main([*names, "--at", kept, "--at", at, "--keep"], [PURSES], past.settings)
    capsys.readouterr()
    past.run(*clean)
    assert len(lying(past.settings)) == 2 * len(before)


def test_a_redis_that_was_lost_is_rebuilt_as_a_whole(past: Past) -> None:
    with redis_client.Redis.from_url(past.settings.redis) as client:
        client.flushdb()
    past.run("--all", "--sink", "redis")
    [red] = [to for to in past.stores if to.name == "redis"]
    assert red.holds() == red.should_hold(past.log)


CHANGED = '''
"""Fills above 200 count twice, notes are kept with their length, and large fills have a table of their own."""

from tests.projections.kernel.purse import Blessed, Closed, Filled, Noted, Opened, Torn
from projections.kernel import Change, ClickTable, RedisTable, Table, ignore, project
from uuid import UUID
from datetime import datetime

purses = Table("purses", key="id", id=UUID, owner=UUID, balance=int, fills=int, note=str | None, letters=int)
pockets = RedisTable("pockets", key="id", id=UUID, owner=UUID, balance=int, closed=bool, counts=dict[str, int])
fills = ClickTable("fills", order_by=("at",), purse=UUID, at=datetime, amount=int, large=bool)
large = Table("large_fills", key="purse", purse=UUID, fills=int)


@project
def opened(e: Opened) -> list[Change]:
    return [purses.put(e.id, owner=e.owner), pockets.put(e.id, owner=e.owner, closed=False)]


@project
def filled(e: Filled) -> list[Change]:
    amount = e.amount * (2 if e.amount > 200 else 1)
    made = [purses.add(e.id, balance=amount, fills=1), pockets.add(e.id, balance=amount), pockets.add_item(e.id, "counts", "fills", 1)]
    made += [fills.row(purse=e.id, at=e.at, amount=amount, large=e.amount > 200)]
    return [*made, large.add(e.id, fills=1)] if e.amount > 200 else made


@project
def noted(e: Noted) -> list[Change]:
    return [purses.put(e.id, note=e.text, letters=len(e.text))]


@project
def closed(e: Closed) -> list[Change]:
    return [purses.drop(e.id), pockets.drop(e.id)]


ignore(Torn, Blessed)
'''


def test_a_changed_projection_is_built_beside_and_its_difference_told(
    past: Past, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, known = tmp_path / "purse.py", dict(PROJECTIONS)
    file.write_text(CHANGED)
    assert past.run("purse", "--with", str(file), "--json") == 0
    assert known == PROJECTIONS
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    totals = {one["table"]: one for one in told if "between" in one}
    filled = [one.event for one in past.log.events() if isinstance(one.event, Filled)]
    assert totals["fills"]["columns"] == {"amount": sum(e.amount > 200 for e in filled)}
    assert totals["fills"]["added"] == totals["fills"]["removed"] == 0
    assert totals["purses"]["columns"]["balance"] > 0
    assert set(totals) == {"purses", "pockets", "fills"}
    assert sorted(name for _, name in lying(past.settings)) == [
        "fills__with",
        "large_fills__with",
        "pockets__with",
        "purses__with",
    ]
    changed = whatif.load(str(file))
    [large] = [table for table in changed.tables if table.name == "large_fills"]
    assert sum(row["fills"] for row in past.rows(large.named("large_fills__with")).values()) == sum(
        e.amount > 200 for e in filled
    )
    for to in past.stores:
        assert to.holds() == to.should_hold(past.log)
