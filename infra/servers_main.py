"""`python -m infra servers --data DIR`: the four servers alone, in the foreground, their addresses in DIR/servers.json, each once it is ready."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from infra.errors import StackError
from infra.servers import SERVERS


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="titan servers", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder for their data; made when missing")
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=list(SERVERS))
    given = parser.parse_args(argv)
    data = given.data.resolve()
    addresses = data / "servers.json"

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    children = []
    try:
        for name in given.only:
            child = SERVERS[name](data, 0, lambda line: print(line, file=sys.stderr, flush=True))
            children.append(child)
            child.start()
            child.wait_ready()  # before the next: Kafka is the last, and may have to be fetched first
            print(f"{child.name} {child.address}", flush=True)
            _publish(addresses, {child.name: child.address})
        print(f"ready: {addresses}", flush=True)
        for child in children:
            assert child.process is not None
            while child.process.wait() is not None:
                raise StackError(f"{child.name} ended: {child.last_words()}")
    except KeyboardInterrupt:
        return 0
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        _publish(addresses, {child.name: "" for child in children})
        for child in reversed(children):
            child.stop()
    return 0


def _publish(file: Path, addresses: dict[str, str]) -> None:
    """Merge `addresses` into `file`; an empty one is taken out, and with the last one the file."""
    known = json.loads(file.read_text()) if file.exists() else {}
    known = {name: address for name, address in (known | addresses).items() if address}
    if not known:
        file.unlink(missing_ok=True)
        return
    written = file.with_suffix(".new")
    written.touch(mode=0o600)
    written.write_text(json.dumps(known, indent=1) + "\n")
    written.replace(file)
