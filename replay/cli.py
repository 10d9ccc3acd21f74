"""`titan replay <command>`: rebuild any state from the topics, at any time. A table of subcommands, each a module with `main`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "projection": (
        "replay.projection",
        "rebuild read models with no downtime; [--until T] [--with FILE] [--dry-run] [--clean] [--all]",
    ),
    "diff": ("replay.diff", "what changed in a read model between two moments: --at A --at B"),
    "aggregate": ("replay.aggregate", "one aggregate's state and timeline: DOMAIN ID [--at T]"),
    "store": ("replay.store", "a domain's event store from its topic alone: DOMAIN [--into DSN] [--keys FILE]"),
    "keys": ("replay.keys", "a copy of the keys of personal data and of secrets, which no topic has: --save FILE"),
    "topic": ("replay.topic", "a domain's topic from its event store"),
    "verify": ("replay.verify", "compare event stores, topics and read models; [--repair]"),
    "rule": ("replay.rule", "a fraud rule over history: NAME [--since T] [--until T]"),
}


def main(argv: list[str]) -> int:
    """Run one subcommand; returns its exit code. Raises `ReplayError`, one line, whatever server goes away."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: titan replay <command> [arguments]    (each has --help and --json)\n")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:<10} {what}")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"error: there is no replay command {argv[0]!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[argv[0]]
    from replay.failures import said

    with said():
        return int(import_module(module).main(argv[1:]) or 0)
