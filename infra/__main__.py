from __future__ import annotations

import sys

from infra.servers_main import main

sys.exit(main(sys.argv[2:]))
