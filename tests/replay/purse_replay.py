"""`titan replay projection` on the toy read models, as a process: `python -m tests.replay.purse_replay NAME … [options]`."""

from __future__ import annotations

import sys

from infra.errors import StackError
from infra.settings import settings
from replay import projection
from tests.projections.kernel.stores import PURSES


def main() -> int:
    try:
        return projection.main(sys.argv[1:], [PURSES], settings())
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
