"""`titan replay rule NAME`: what a fraud rule says of history, equal hit for hit to what stands of the live stream's. Nothing goes out.

    titan replay rule card_testing --since 2026-11-01T00:00:00Z --until 2026-11-08T00:00:00Z
    titan replay rule my_rule --with my_rule.py          one that is not deployed yet

Events between the two moments are judged, by their own times, with all that is in their windows from before; late events count
wherever the log has them. Those that come when live has forgotten their windows, where they are parked, are left out: `late`.
With --json: progress a line a second, then `{"rule", "version", "since", "until", "read", "judged", "hits", "hit_rate", "subjects",
"late", "errors", "error", "seconds", "events_per_s", "examples"}`; with --hits before that each hit as a line.
Exit code 1 if the rule failed for any event.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from heapq import merge
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any

from aggregates.kernel import Unavailable, domains
from aggregates.kernel.event import EPOCH
from aggregates.kernel.wire import MICROSECOND
from api.kernel.blind import blinded
from infra.settings import Settings, settings
from projections.kernel.runner import Delivery
from replay.backtest import BackTest, Found, TooManyErrors
from replay.log import ReplayError, Span, ids_of, messages, spans
from replay.moments import moment_of
from replay.progress import Progress, tell
from streams.kernel.rules.found import NoRule, discover, from_file
from streams.kernel.rules.rule import Rule
from streams.kernel.rules.secret import NoKey

CHUNK = 5_000  # records taken over at once
READ_AT_ONCE = 2_000  # of each partition
FORGET_EVERY = 50_000
EXAMPLES = 5


def chosen(name: str | None, file: Path | None) -> Rule[Any]:
    """The rule of that name: of the file's, if one is given, else of those deployed. Raises `ReplayError`."""
    for domain in domains():
        import_module(f"aggregates.{domain}")
    try:
        there = from_file(file) if file else discover()
    except NoRule as error:
        raise ReplayError(str(error)) from error
    if name is None:
        if file and len(there) == 1:
            return there[0]
        raise ReplayError(f"say which rule, one of: {', '.join(one.name for one in there)}")
    found = next((one for one in there if one.name == name), None)
    if found is None:
        names = [one.name for one in there]
        near = difflib.get_close_matches(name, names, 3, 0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names) or 'none'}"
        raise ReplayError(f"there is no rule {name}{f' in {file}' if file else ''}; {hint}")
    return found


def span_of(of: Settings, rule: Rule[Any], since: datetime | None, until: datetime | None) -> list[Span]:
    """What has to be read: from a window before `since` to the latest that an event from before `until` may come. Raises ReplayError."""
    now = datetime.now(UTC)
    for moment in (since, until):
        if moment is not None and moment > now:
            raise ReplayError(f"{moment.isoformat()} is in the future")
    if since is not None and until is not None and since > until:
        raise ReplayError(f"--since {since.isoformat()} is after --until {until.isoformat()}")
    last = None if until is None or until + rule.late >= now else until + rule.late
    # The first record that is later than that moment: whatever lies before it is too old for every window.
    first = None if since is None else since - rule.window - MICROSECOND
    return spans(of, rule.domains, since=first, until=last)


async def run(
    of: Settings,
    rule: Rule[Any],
    wanted: Collection[Span],
    since: datetime | None = None,
    until: datetime | None = None,
    progress: Progress | None = None,
) -> BackTest:
    """Take all that is in the spans. Raises what `read` and `BackTest.take` do."""
    async with blinded(of) as blind:
        lanes = [(span.domain, span.partition) for span in wanted]
        test, sieve, taken = BackTest(rule, since, until, blind, lanes), Sieve(of, rule), 0
        for chunk in in_time(of, wanted):
            await test.take(sieve.wanted(chunk))
            taken += len(chunk)
            last = {(one.topic(), one.partition()): one for one in chunk}
            for one in last.values():
                test.passed((sieve.domain(one), one.partition()), EPOCH + timedelta(milliseconds=_millis(one)))
            if progress:
                ends = {f"{sieve.domain(one)}:{one.partition()}": one.offset() + 1 for one in last.values()}
                progress.moved(len(chunk), ends)
            if taken % FORGET_EVERY < len(chunk):
                test.forget()
    return test


def in_time(of: Settings, wanted: Collection[Span]) -> Iterator[list[Any]]:
    """The messages of several partitions by their times, as nearly as each partition's own order has them."""
    lanes = [chain.from_iterable(messages(of, [span], READ_AT_ONCE)) for span in wanted if span.records]
    ordered = merge(*lanes, key=_millis) if len(lanes) > 1 else chain(*lanes)
    while chunk := list(islice(ordered, CHUNK)):
        yield chunk


def _millis(message: Any) -> int:
    """A record has the time of its event."""
    millis: int = message.timestamp()[1]
    return millis


class Sieve:
    """Which messages are of a rule's events. Reading the headers of each costs more than decoding one: what a schema's id stands
    for is looked up in the first of its messages alone."""

    def __init__(self, of: Settings, rule: Rule[Any]) -> None:
        self._prefix, self._types = of.topic_prefix, {kind.type for kind in rule.kinds}
        self._known: dict[tuple[str, bytes], bool] = {}
        self._delivery = Delivery.written_with(ids_of(of))

    def domain(self, message: Any) -> str:
        topic: str = message.topic()
        return topic.removeprefix(self._prefix)

    def wanted(self, messages: Iterable[Any]) -> Iterator[Delivery]:
        """The records that may be of the rule's events, and those that are none of ours."""
        for one in messages:
            value = one.value() or b""
            schema = one.topic(), value[:5]
            known = self._known.get(schema)
            if known is False:
                continue
            made = self._delivery(
                self.domain(one), one.partition(), one.offset(), one.key() or b"", value, one.headers() or ()
            )
            if known is None and made.notification_id:
                known = self._known[schema] = made.type in self._types
            if known is not False:
                yield made


def report(test: BackTest, read: int, seconds: float, examples: int) -> dict[str, Any]:
    """What the module's first lines describe."""
    hits = test.hits
    return {
        "rule": test.rule.name, "version": test.rule.version, "since": _iso(test.since), "until": _iso(test.until),
        "read": read, "judged": test.judged, "hits": len(hits),
        "hit_rate": round(len(hits) / test.judged, 6) if test.judged else 0.0,
        "subjects": len({one.hit.subject for one in hits}), "late": test.late, "errors": len(test.errors),
        "error": next(iter(test.errors.values()), None), "seconds": round(seconds, 3),
        "events_per_s": round(read / max(seconds, 1e-9)),
        "examples": [shown(one) for one in sorted(hits, key=lambda one: -one.hit.score)[:examples]],
    }  # fmt: skip


def shown(one: Found) -> dict[str, Any]:
    return {
        "at": one.at.isoformat(), "event": str(one.event_id), "type": one.event_type, "position": f"{one.domain}:{one.position}",
        "id": str(one.id), "subject": str(one.hit.subject), "score": one.hit.score, "why": one.hit.why,
    }  # fmt: skip


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def main(argv: Sequence[str]) -> int:
    """0; 1 if the rule failed for some event, or nothing could be done."""
    parser = argparse.ArgumentParser(
        prog="titan replay rule", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="the rule")
    parser.add_argument("--with", dest="file", type=Path, metavar="FILE", help="a Python file with the rule")
    parser.add_argument("--since", metavar="T", help="judge events from then on")
    parser.add_argument("--until", metavar="T", help="judge events up to then")
    parser.add_argument(
        "--examples", type=int, default=EXAMPLES, metavar="N", help=f"hits shown, the surest first ({EXAMPLES})"
    )
    parser.add_argument("--hits", action="store_true", help="every hit as a line of JSON")
    parser.add_argument("--json", action="store_true", help="for machines")
    given = parser.parse_args(argv)
    of = settings()
    since, until = (text and moment_of(text) for text in (given.since, given.until))
    try:
        rule = chosen(given.name, given.file)
        wanted = span_of(of, rule, since, until)
        began = time.monotonic()
        with Progress(f"rule {rule.id}", wanted, given.json) as progress:
            test = asyncio.run(run(of, rule, wanted, since, until, progress))
        told = report(test, progress.events, time.monotonic() - began, given.examples)
    except (TooManyErrors, NoKey, Unavailable) as error:
        raise ReplayError(str(error)) from error
    if given.hits:
        for one in test.hits:
            print(json.dumps(shown(one)))
    if given.json:
        tell(told)
    else:
        _show(told)
    return 1 if told["errors"] else 0


def _show(told: dict[str, Any]) -> None:
    from rich.console import Console  # not for machines

    out = Console(highlight=False, soft_wrap=True)
    span = f"{told['since'] or 'the beginning'} to {told['until'] or 'now'}"
    out.print(f"rule {told['rule']}, version {told['version']}, from {span}")
    out.print(
        f"{told['hits']:,} hits in {told['judged']:,} events ({told['hit_rate']:.4%}), of {told['subjects']:,} subjects; "
        f"{told['read']:,} events read in {told['seconds']:.1f} s, {told['events_per_s']:,} events/s"
    )
    if told["late"]:
        out.print(f"{told['late']:,} events were left out: they came too late for the live stream, which parks them")
    for one in told["examples"]:
        out.print(f"  {one['at']}  {one['score']:>3}  {one['type']} {one['id']}  {one['why']}", markup=False)
    if told["errors"]:
        print(f"error: the rule failed for {told['errors']:,} events, first {told['error']}", file=sys.stderr)
