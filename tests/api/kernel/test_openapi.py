"""OpenAPI says all that a route can answer, and a generic fuzzer that believes it finds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from infra.settings import ROOT
from infra.token import token
from tests.api.kernel.conftest import Shop, shop_on

CONFIG = """
[generation]
allow-x00 = false
database = "none"

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "412", "503"]

[checks.missing_required_header]
expected-statuses = ["401", "403", "404", "422"]
"""
PUBLIC = {"/health", "/health/live", "/health/ready", "/metrics", "/purses/hello/there"}


def hooked(known: Path | None = None, sent: Path | None = None, whole: bool = False) -> dict[str, str]:
    """The environment of a fuzzer that does as `fuzzing.py` says there."""
    given = {"KNOWN": known, "SENT": sent, "WHOLE": whole or None}
    made = {f"TITAN_FUZZ_{name}": str(value) for name, value in given.items() if value is not None}
    kept = {
        "HYPOTHESIS_STORAGE_DIRECTORY": str(ROOT / ".hypothesis")
    }  # which characters there are, seconds to find out
    return {**kept, **os.environ, **made, "SCHEMATHESIS_HOOKS": "tests.api.kernel.fuzzing", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def document(shop: Shop) -> dict[str, Any]:
    found: dict[str, Any] = shop.http.get("/openapi.json").json()
    return found


def test_each_route_has_a_summary_a_model_an_example_and_its_errors(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            where = f"{method} {path}"
            responses = operation["responses"]
            assert operation["summary"], where
            [good] = [responses[status] for status in responses if status.startswith("2")]
            if path != "/metrics":
                [content] = good["content"].values()
                assert content["schema"], where
                assert "example" in content, where
            secured = "security" in operation
            assert secured == (path not in PUBLIC or path == "/purses/hello/there"), where
            assert ({"401", "403"} <= responses.keys()) == secured, where
            assert ("404" in responses) == (
                path.startswith("/purses") and ("{id}" in path or method == "get") and "hello" not in path
            ), where
            assert ({"413", "415"} <= responses.keys()) == ("requestBody" in operation), where
            assert ("409" in responses) == (method == "post"), where
            assert ("412" in responses) == (method == "post" and "{id}" in path), where
            assert ("429" in responses) == (path.startswith("/purses")), where
            assert ("422" in responses) == (path.startswith("/purses") and "hello" not in path), where
            if body := operation.get("requestBody"):
                assert body["content"]["application/json"]["example"], where


def test_examples_are_accepted_as_they_stand(document: dict[str, Any], shop: Shop) -> None:
    body = document["paths"]["/purses"]["post"]["requestBody"]["content"]["application/json"]["example"]
    me = shop.of()
    made = shop.http.post("/purses", json=body, headers=me)
    assert made.status_code == 201
    fill = document["paths"]["/purses/{id}/fill"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert shop.http.post(f"/purses/{made.json()['id']}/fill", json=fill, headers=me).status_code == 200


def test_the_documentation_is_served(shop: Shop) -> None:
    page = shop.http.get("/docs")
    assert page.status_code == 200
    assert "/purses/{id}/fill" in page.text
    assert "src=" not in page.text  # it needs nothing from elsewhere
    assert shop.http.get("/").headers["location"] == "/docs"
    assert "HTTPValidationError" not in shop.http.get("/openapi.json").text


def test_a_fuzzer_finds_nothing_that_is_not_written(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    for name in ("CALLER_PER_S", "CALLER_BURST", "IP_PER_S", "IP_BURST"):
        monkeypatch.setenv(f"TITAN_API_{name}", "1000000")
    monkeypatch.setenv("TITAN_API_VIEW_WAIT_S", "2")
    settings = shop.settings.model_copy(update={"namespace": f"test-{uuid4().hex}"})
    stop = threading.Event()

    def project() -> None:
        while not stop.wait(0.1):
            other.project()

    with shop_on(settings) as other:
        worker = threading.Thread(target=project)
        worker.start()
        try:
            ran = subprocess.run(
                [
                    sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml"), "run",
                    str(other.http.base_url.join("/openapi.json")), "-H", f"Authorization: Bearer {token(settings, 'admin', uuid4())}",
                    "--checks", "all", "--mode", "all", "--max-examples", "12", "--seed", "1",
                    "--exclude-path-regex", "^/health",  # 503: there is no ClickHouse here
                ],
                cwd=tmp_path, env=hooked(), capture_output=True, text=True, timeout=300,
            )  # fmt: skip
        finally:
            stop.set()
            worker.join()
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
