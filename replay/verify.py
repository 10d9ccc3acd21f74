"""`titan replay verify DOMAIN… | --all [--repair]`: event stores, topics and read models compared with each other, live.

An event store and its topic have to hold the same events, byte for byte, and what the store keeps beside them, unique keys, timers
and snapshots, has to be what they come to, as far as they tell it (`replay/checks/kept.py`). A read model has to hold what its events come to: it is built
once more from the topics beside the live one, by the same projections, and compared at one position, so nothing has to stop and
nothing that is merely under way is taken for a difference. What differs is named with its partition and offset.

--repair rebuilds just what differs. A read model's rows are taken from that copy, positions stay. A row that is missing or changed in an
event store is taken from the topic, whose records nobody can change. A key that events give is taken again, one that none gives is
freed, a timer is set as they say or ended, and a wrong snapshot removed, to be made anew in its time. A topic that lacks events is written anew from its store. Refused is
whatever would be a guess: ids that the topic has and the store ends before, an id under which both tell of different aggregates, a key that two have taken, and what
stands beside events while these still differ from the topic's.

A table whose worker has parked events is compared as it should be without them; the aggregates are named. Only one that was rebuilt
since, and so has them, is not compared, nor is one whose dead-letter queue changes meanwhile.

Exits with 1 when something differs and was not repaired, and when a table was not compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from importlib import import_module
from typing import Protocol

import psycopg

from aggregates.kernel import discover
from infra.settings import Settings, settings
from projections.kernel.clauses import Projection, projections
from projections.kernel.tables import AnyTable
from replay import domains
from replay.build import build
from replay.checks import SHOWN_MAX, Checked, Difference
from replay.checks.kept import KeptCheck
from replay.checks.log import LogCheck
from replay.checks.model import Shadowed, ends
from replay.failures import afterwards, line, said
from replay.log import ReplayError, ids_of, spans
from replay.progress import tell
from replay.runs import Runs, full
from replay.shadow import shadow_of, shadows_of
from replay.switch import Waiting, rebuilt, waiting

PURPOSE = "verify"
CHECKS = {
    "postgres": "replay.checks.postgres:PostgresCheck",
    "redis": "replay.checks.redis:RedisCheck",
    "clickhouse": "replay.checks.clickhouse:ClickHouseCheck",
}
DOUBTFUL = "by the store's own events, which differ from the topic's"
ROUNDS_MAX = 100_000  # of repairs, as long as each leaves less


class Check(Protocol):
    """Raises ReplayError, and what its store's client raises."""

    def compare(self) -> Checked: ...

    def repair(self) -> None: ...


def verify(
    of: Settings,
    wanted: Collection[str],
    known: Mapping[Projection, str],
    repair: bool = False,
    as_json: bool = False,
    sinks: Collection[str] = tuple(CHECKS),
) -> Iterator[Checked]:
    """Compare stores and topics of these domains, and the read models that they feed; one answer each, as they come.

    `known`: projections with their modules. Raises ReplayError for a server that does not answer.
    """
    ids = ids_of(of)
    try:
        for domain in wanted:
            log = _checked(LogCheck(of, domain, ids, as_json), repair)
            yield log
            with closing(KeptCheck(of, domain, as_json)) as kept:
                checked = _checked(kept, repair and log.agrees)
            if not log.agrees:
                checked.note = "; ".join([*[checked.note] * bool(checked.note), DOUBTFUL])
                for one in checked.differences if repair else ():
                    one.refused = "its events are mended first"
            yield checked
    except psycopg.Error as error:
        raise ReplayError(f"the event store: {line(error)}") from error
    with Runs(of.postgres) as runs:
        for sink in sinks:
            its = [
                (one, table)
                for one in known
                for table in one.tables
                if table.sink == sink and (one.everything or one.domains & set(wanted))
            ]
            if its:
                yield from _models(of, runs, known, its, wanted, repair, as_json)


def _models(
    of: Settings,
    runs: Runs,
    known: Mapping[Projection, str],
    its: Collection[tuple[Projection, AnyTable]],
    wanted: Collection[str],
    repair: bool,
    as_json: bool,
) -> Iterator[Checked]:
    """The tables of one sink."""
    [sink] = {table.sink for _, table in its}
    parked = waiting(of, {f"{sink}.{projection.name}" for projection, _ in its})
    targets: dict[AnyTable, AnyTable] = {}
    for projection, table in its:
        aside = parked.get(f"{sink}.{projection.name}")
        if aside and rebuilt(of, table, aside.events):
            note = f"it was rebuilt with {len(aside.events)} events that wait in the dead-letter queue: not compared until titan dlq retry"
            yield Checked(f"{sink} {table.name}", note=note, compared=False)
        else:
            targets[table] = shadow_of(table, PURPOSE)
    if not targets:
        return
    with ExitStack() as stack:
        stack.enter_context(said())
        shadows = stack.enter_context(closing(shadows_of(sink, of)))
        stack.enter_context(runs.locked(map(full, targets.values())))

        def clear() -> None:
            for shadow in targets.values():
                shadows.drop(shadow.name)
                runs.forget(sink, shadow.name)

        clear()  # what a killed run has left
        stack.enter_context(afterwards(clear))
        feeds = {table: _fed(projection, table, wanted) for projection, table in its if table in targets}
        logs = spans(of, sorted(set().union(*feeds.values())))
        source = {one: module for one, module in known.items() if any(table in targets for table in one.tables)}
        build(
            of, runs, source, targets, ends(of, targets, feeds, logs), until=f"verify {time.time_ns()}", as_json=as_json,
            aside={processor: its_own.events for processor, its_own in parked.items()},
        )  # fmt: skip
        for projection, table in its:
            if table in targets:
                reads = [span for span in logs if span.domain in feeds[table]]
                processor = f"{sink}.{projection.name}"
                aside = parked.get(processor)
                with closing(
                    Shadowed(of, projection, table, targets[table], reads, aside.events if aside else ())
                ) as shadowed:
                    checked = _model(shadowed, repair)
                if waiting(of, [processor]).get(processor) != aside:
                    note = "its dead-letter queue has changed meanwhile: give the command again"
                    checked = Checked(checked.what, note=note, compared=False)
                elif aside:
                    checked.note = "; ".join([*[checked.note] * bool(checked.note), _left_out(aside)])
                yield checked


def _left_out(aside: Waiting) -> str:
    some, more = aside.aggregates[:SHOWN_MAX], len(aside.aggregates) - SHOWN_MAX
    named = ", ".join(some) + (f" and {more} more" if more > 0 else "")
    return f"without {len(aside.events)} events that wait in the dead-letter queue, of {named}"


def _fed(projection: Projection, table: AnyTable, wanted: Collection[str]) -> set[str]:
    """The domains whose events are looked at. Rows of ClickHouse are each of one event: there those asked for are enough."""
    reads = set(discover.domains()) if projection.everything else projection.domains
    return reads & set(wanted) if table.sink == "clickhouse" else reads


def _model(shadowed: Shadowed, repair: bool) -> Checked:
    try:
        module, _, name = CHECKS[shadowed.table.sink].partition(":")
        checked = _checked(getattr(import_module(module), name)(shadowed), repair)
        if behind := shadowed.stuck():
            checked.count += 1
            why = f"is {behind:,} events behind and does not come on: is its worker running?"
            checked.differences.append(Difference(checked.what, "position", why))
        return checked
    except psycopg.Error as error:
        raise ReplayError(f"Postgres: {line(error)}") from error
    except ReplayError as error:
        what = f"{shadowed.table.sink} {shadowed.table.name}"
        return Checked(what, count=1, differences=[Difference(what, "table", str(error))])


def _checked(check: Check, repair: bool) -> Checked:
    """Compare; when there is something to repair, do it, and look again until nothing is left or nothing gets better."""
    first = checked = check.compare()
    for _ in range(ROUNDS_MAX if repair else 0):
        if not checked.count:
            break
        check.repair()
        before, checked = checked, check.compare()
        left = {one.key: one for one in checked.differences}
        for one in before.differences:
            one.repaired = one.key not in left
            if one.key in left:
                one.refused = one.refused or "it still differs"
        if (checked.parts, checked.count) >= (before.parts, before.count):
            break
        if before is not first:
            first.differences += [
                one for one in before.differences if one.key not in {old.key for old in first.differences}
            ]
    first.note = checked.note
    if repair and not checked.count:
        for one in first.differences:
            one.repaired, one.refused = True, ""
        first.count = len(first.differences)
    return first


def known() -> dict[Projection, str]:
    """Every projection of the checkout."""
    return {one: one.module for one in projections()}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="titan replay verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("domain", nargs="*")
    parser.add_argument("--all", action="store_true", help="every domain")
    parser.add_argument("--repair", action="store_true", help="rebuild just what differs")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    wanted = domains.chosen(given.domain, given.all)
    domains.chosen((), True)  # a projection may take events of any
    wrong = skipped = 0
    for checked in verify(settings(), wanted, known(), given.repair, given.json):
        wrong += checked.compared and not checked.agrees
        skipped += not checked.compared
        if given.json:
            tell(checked.document())
            continue
        _show(checked)
    if given.json:
        tell({"verified": "all", "differ": wrong, "not_compared": skipped})
    elif wrong or skipped:
        print(", ".join([f"{wrong} of them differ"] * bool(wrong) + [f"{skipped} were not compared"] * bool(skipped)))
    else:
        print("all agree")
    return 1 if wrong or skipped else 0


def _show(checked: Checked) -> None:
    unit = "events" if checked.what.startswith("event store") else "rows"
    if not checked.compared:
        print(f"{checked.what}: {checked.note}")
        return
    words = f"{checked.count:,} differ" if checked.count else "agrees"
    print(f"{checked.what}: {checked.rows:,} {unit}, {words}{f' ({checked.note})' if checked.note else ''}")
    for one in checked.differences[:SHOWN_MAX]:
        print(f"  {one.line()}")
    if len(checked.differences) > SHOWN_MAX:
        print(f"  and {len(checked.differences) - SHOWN_MAX:,} more")
