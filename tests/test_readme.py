"""README.md says what is there, and its examples work as they are printed: every block that is fenced as ```sh example, in one shell, in order, and each ```sql example."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import closing
from importlib import import_module
from itertools import starmap
from pathlib import Path

import clickhouse_connect
import pytest

from aggregates.kernel.discover import domains
from infra.settings import ROOT
from infra.shop import lines_of, load
from projections.kernel.tables import AnyTable
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


def paths(module: str) -> dict[str, dict[str, object]]:
    """The paths of a module's app, and their methods; without those that each app has."""
    found = import_module(module).app.openapi()["paths"]
    return {path: methods for path, methods in found.items() if path.split("/")[1] not in ("health", "metrics")}


def services() -> dict[str, list[str]]:
    """The table of services: what stands in the columns behind each name."""
    rows = re.findall(r"^\| ([a-z]+) \| (.*) \|$", README.read_text(), re.MULTILINE)
    return {name: cells for name, rest in rows if name != "service" and len(cells := rest.split(" | ")) == 4}


def routes(domain: str) -> str:
    """A service's routes by method; those that only end differently are mentioned together."""
    ends: dict[str, dict[str, list[str]]] = {}
    for path, methods in paths(f"api.{domain}").items():
        start, _, end = path.rpartition("/")
        for method in methods:
            ends.setdefault(method.upper(), {}).setdefault(start, []).append(end)

    def mention(start: str, ends: list[str]) -> str:
        if len(ends) > 1 and start:
            return f"`{start}/[{', '.join(ends)}]`"
        return " ".join(f"`{start}/{end}`" for end in ends)

    used = [method for method in ("GET", "POST", "PUT", "DELETE") if method in ends]
    assert len(used) == len(ends)
    return "; ".join(" ".join([method, *starmap(mention, ends[method].items())]) for method in used)


def test_the_table_of_services_says_what_there_is() -> None:
    shown = services()
    assert set(shown) == set(domains()) | {"analytics"}
    for name, (_, ways, topic, models) in shown.items():
        assert ways == routes(name), f"{name} has the routes {routes(name)}"
        assert topic == ("all" if name == "analytics" else f"`titan.{name}`")
        tables = import_module(f"projections.{name}").__dict__.values()
        assert set(re.findall("`([a-z_]+)`", models)) == {table.name for table in tables if isinstance(table, AnyTable)}


def test_every_shell_block_is_an_example() -> None:
    """A block of shell or SQL that no test runs would rot."""
    assert not re.findall(r"^```(?:sh|shell|bash|console|sql)[ \t]*$", README.read_text(), re.MULTILINE)


@pytest.mark.parametrize("word", ["sh", "bash", "text"])
def test_only_marked_blocks_are_run(word: str) -> None:
    assert examples(f"```{word}\nrm\n```\n```sh example\ntrue\n```\n") == ["true\n"]
