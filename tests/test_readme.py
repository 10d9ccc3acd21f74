"""README.md's examples work as they are printed: every block that is fenced as ```sh example, in one shell, in order, and each ```sql example."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import clickhouse_connect
import pytest

from infra.settings import ROOT
from infra.shop import lines_of, load
from streams.kernel.rules.found import from_file
from tests.kernel.platform import Platform
from tests.kernel.servers import Stack, fresh_settings

pytestmark = pytest.mark.slow

README = ROOT / "README.md"
SHOP = "http://127.0.0.1:8000"
TITAN, MAILS = ".titan/env/bin/titan", ".titan/mail"
INVOICES = 20  # the first ones have the products that the examples name
# An answer that is an error ends the shell, which a person would only see.
PRELUDE = 'set -euo pipefail\ncurl() { command curl --fail-with-body --no-progress-meter "$@" && echo; }\n'
SECONDS_MAX = 240


def examples(text: str, language: str = "sh") -> list[str]:
    """The blocks' text."""
    return re.findall(rf"^```{language} example\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_examples_do_what_they_say(stack: Stack, tmp_path: Path) -> None:
    blocks = examples(README.read_text())
    assert blocks
    with fresh_settings(stack, tmp_path / "shop") as settings, Platform(settings) as platform:
        platform.start("relay", "worker", "sagas", "gateway", "api")
        asyncio.run(load(platform.settings, lines_of(invoices=INVOICES), lambda line: None))
        script = PRELUDE + "\n".join(blocks)
        here = {
            SHOP: platform.url,
            TITAN: str(Path(sys.executable).with_name("titan")),
            MAILS: str(platform.settings.data / "mail"),
        }
        for printed, meant in here.items():
            assert printed in script
            script = script.replace(printed, meant)
        ran = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env={**os.environ, **platform.env},
            capture_output=True,
            text=True,
            timeout=SECONDS_MAX,
        )
        statements = examples(README.read_text(), "sql")
        assert statements
        with closing(clickhouse_connect.get_client(dsn=settings.clickhouse)) as analyst:
            for statement in statements:
                assert analyst.query(statement).result_rows, statement
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    for shown in (
        '"sku":"85123A"',
        '"status":"completed"',
        '"what":"paid"',
        '"what":"cancelled"',
        '"status":"pending"',
        '"what":"refunded"',
        '"type":"order.Placed"',
        '"refresh_token":"',
    ):
        assert shown in ran.stdout, ran.stdout


def test_the_rule_of_the_example_is_one(tmp_path: Path) -> None:
    [text] = re.findall(r"^```python rule\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    file = tmp_path / "large_first_order.py"
    file.write_text(text)
    [found] = from_file(file)
    assert (found.name, found.version) == ("large_first_order", 1)


def test_every_shell_block_is_an_example() -> None:
    """A block of shell or SQL that no test runs would rot."""
    assert not re.findall(r"^```(?:sh|shell|bash|console|sql)[ \t]*$", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize("word", ["sh", "bash", "text"])
def test_only_marked_blocks_are_run(word: str) -> None:
    assert examples(f"```{word}\nrm\n```\n```sh example\ntrue\n```\n") == ["true\n"]
