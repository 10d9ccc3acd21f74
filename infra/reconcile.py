"""`titan reconcile`: hold a gateway's settlement report of a day against what we know, record and list what does not agree."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg

from aggregates.kernel import KernelError, Origin, Store
from aggregates.payment import Reconciliation
from infra.errors import StackError
from streams.gateways.interface import Unknown, open_gateway
from streams.gateways.settings import gateway_settings
from streams.gateways.settlement import NoReport
from streams.reconciliation import opened, reconcile, reports, settling


def main(argv: Sequence[str] | None = None) -> int:
    """0: all agree; 1: there are differences; 2: nothing could be compared, one line on standard error says why."""
    parser = argparse.ArgumentParser(prog="titan reconcile", description=__doc__)
    parser.add_argument("--gateway", required=True, help="its name in TITAN_GATEWAYS")
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    parser.add_argument("--day", type=date.fromisoformat, default=yesterday, help="UTC, 2026-11-24; yesterday")
    parser.add_argument(
        "--report",
        type=Path,
        action="append",
        default=[],
        help="a file as the gateway hands it out, else it is fetched; again for those of the days before",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    given = parser.parse_args(argv)
    try:
        files = [one.read_bytes() for one in given.report]
        made = asyncio.run(run(given.gateway, given.day, files))
    except (LookupError, Unknown, NoReport, ValueError, KernelError, OSError, psycopg.Error, StackError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if given.json:
        found = [asdict(one) for one in made.found]
        told = {
            "gateway": made.gateway,
            "day": made.day,
            "agree": made.agree,
            "report": made.report,
            "count": made.differences,
            "differences": found,
        }
        print(json.dumps(told, default=str))
    else:
        print(f"{made.gateway}, {made.day}: {made.agree} agree, {made.differences} differences")
        for one in made.found:
            what = f"payment {one.payment}" if one.payment else "no payment of ours"
            print(f"  {one.kind:<13} {what}: ours {one.ours or 'nothing'}; theirs {one.theirs or 'nothing'}")
        if more := made.differences - len(made.found):
            print(f"  and {more} more, which are not listed")
    return 1 if made.differences else 0


async def run(name: str, day: date, files: Sequence[bytes]) -> Reconciliation:
    settings = gateway_settings()
    gateway = open_gateway(name, settings)
    try:
        settles = settling(gateway)
        report, *earlier = files or await reports(settles, day)
        async with Store.open(settings.postgres, settings.postgres_domains) as store:
            commands = store.commands(Origin("operator:reconcile"))
            await opened(name, day, commands)
            return await reconcile(name, day, report, earlier, settles, settings, commands)
    finally:
        await gateway.close()
