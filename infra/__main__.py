"""`python3 -m infra <command>`: makes the environment when it is missing or old, then runs the command inside it."""

import sys

OLDEST = (3, 11)

if sys.version_info < OLDEST:
    sys.exit(
        f"error: Titan Commerce needs Python {OLDEST[0]}.{OLDEST[1]} or newer and this is {sys.version.split()[0]}: "
        "start it with another, as in python3.12 -m infra"
    )

from infra.bootstrap import inside, prepare

if not inside():
    prepare(sys.argv[1:])

from infra.cli import main

sys.exit(main())
