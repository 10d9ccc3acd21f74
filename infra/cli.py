"""The `titan` command: a table of subcommands, each a module with `main(argv) -> int`, imported when it is used."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from pathlib import Path

from infra.errors import StackError

BYTECODE = Path(__file__).resolve().parent.parent / ".titan" / "bytecode"

COMMANDS = {
    "up": (
        "infra.stack",
        "start the servers, the platform and the sample shop; [--detach] [--port N] [--no-shop] [--servers]",
    ),
    "down": ("infra.down", "stop what `up` started here"),
    "status": ("infra.status", "URLs, processes, topics, lag, positions; [--json]"),
    "demo": ("infra.demo", "shoppers over HTTP, then a check that all stores agree"),
    "token": ("infra.token", "a signed token to try things with; --role customer|seller|admin|analyst|service"),
    "schemas": ("schemas.cli", "check | lock the event schemas"),
    "golden": ("tests.golden", "add | accept the histories by which old events stay readable"),
    "dlq": ("streams.kernel.dlq", "list | retry events that a processor could not handle"),
    "replay": ("replay.cli", "rebuild and verify read models and event stores"),
    "reconcile": (
        "infra.reconcile",
        "a gateway's settlement report against what we know; --gateway G --day D [--report FILE]",
    ),
    "test": ("infra.check", "format, lint, types, import rules, then every test; arguments go to pytest"),
    "format": ("infra.format", "format the code and fix what can be fixed"),
    "bench": ("tests.bench", "measure, each figure beside its baseline"),
    "chaos": ("tests.chaos", "break things under load and check that nothing is lost"),
    "servers": ("infra.servers_main", "the four servers alone, in the foreground; --data DIR"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit code. Expected failures are one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    keep_bytecode()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print("usage: titan <command> [arguments]    (python3 -m infra <command> is the same)\n")
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:<9} {what}")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(f"error: there is no command {argv[0]!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module, _ = COMMANDS[argv[0]]
    try:
        return int(import_module(module).main(argv[1:]) or 0)
    except StackError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `titan status | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(
                f"error: the disk is full ({error.filename or 'writing'}): free some space and start again",
                file=sys.stderr,
            )
            return 1
        raise


def keep_bytecode() -> None:
    """Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each of our processes would compile all that it imports, every
    time: twice the processor time of its start. What they compile is kept out of the way instead, in `.titan`."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(BYTECODE))
        sys.dont_write_bytecode = False


if __name__ == "__main__":
    sys.exit(main())
