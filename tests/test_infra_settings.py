"""Settings, tokens, import rules, the command line and the deployment files."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from traceback import format_exception
from typing import Any
from uuid import uuid4

import pytest
import yaml
from joserfc import jwt
from joserfc.jwk import KeySet
from pydantic import ValidationError
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from infra import cli, jars
from infra.bootstrap import LOCK
from infra.errors import StackError
from infra.imports import refusal
from infra.processes import processes
from infra.settings import ROOT, Settings, as_given, running_file
from infra.state import write_private
from infra.token import ROLES, make_keys, token
from streams.gateways.settings import GatewaySettings, gateway_settings


@pytest.fixture
def keys(tmp_path: Path) -> Settings:
    return Settings(
        jwt_jwks=tmp_path / "jwks.json", jwt_private_key=tmp_path / "jwt.json", master_key=tmp_path / "keys" / "master"
    )


def test_variables_win_over_the_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITAN_DATA", str(tmp_path))
    (tmp_path / "run").mkdir()
    write_private(tmp_path / "run" / "settings.json", {"kafka": "127.0.0.1:1", "redis": "redis://127.0.0.1:2/0"})
    monkeypatch.setenv("TITAN_KAFKA", "broker:9092")
    monkeypatch.setenv("TITAN_POSTGRES_DOMAINS", '{"order": "postgresql://orders/db"}')
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", "http://registry:8081")
    read = Settings()
    assert (read.kafka, read.redis) == ("broker:9092", "redis://127.0.0.1:2/0")
    assert read.dsn("order") == "postgresql://orders/db" and read.dsn("cart") == read.postgres
    assert read.schema_registry_url == "http://registry:8081"
    assert read.data == tmp_path and read.topic("cart") == "titan.cart"
    with pytest.raises(ValidationError):
        read.kafka = "other:9092"  # type: ignore[misc]  # frozen: that is what is tested


SECRET = "s3cret:hunter2/"
NONSENSE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("kafka", "postgres", "redis", "clickhouse", "mail", "log_level", "namespace", "topic_prefix"), (SECRET,)),
    **dict.fromkeys(("schema_registry_url", "public_url", "gateway_return"), (SECRET, f"ftp://{SECRET}", "http://a:b:c")),
    **dict.fromkeys(("test_gateway", "test_gateway_public", "test_gateway_webhook"), (SECRET,)),
    **dict.fromkeys(("stripe_url", "adyen_url", "adyen_reports_url"), (SECRET,)),
    **dict.fromkeys(("partitions", "replication", "api_port"), (SECRET, "0", "1e9")),
    **dict.fromkeys(("kafka_session_s", "kafka_refresh_s", "abandoned_after_s", "gateway_timeout_s", "test_gateway_hold_s"), (SECRET, "-1")),
    **dict.fromkeys(("stripe_webhook_secrets", "adyen_hmac_keys"), (SECRET, json.dumps({"key": SECRET}), f'["{SECRET}", 1]')),
    "postgres_domains": (SECRET, json.dumps({"order": SECRET}), json.dumps({f"postgresql://u:{SECRET}@h/d": 1})),
    "oidc_providers": (SECRET, json.dumps({"partner": {"client_secret": SECRET}})),
    "routes": (SECRET, json.dumps([{"gateways": SECRET}]), '[{"gateways": ["other"]}]'),
    "gateways": (
        SECRET,
        json.dumps({"one": {"takes": SECRET}}),
        json.dumps({"stripe": {"set": {"stripe_url": SECRET}}}),
        json.dumps({"stripe": {"set": {"gateway_timeout_s": SECRET}}}),
        '{"one": {}}',
    ),
}  # fmt: skip
ANY_TEXT = {
    "instance", "data", "api_host", "jwt_issuer", "jwt_audience", "jwt_jwks", "jwt_private_key", "master_key", "mail_from",
    "gateway_name", "test_gateway_secret", "stripe_secret_key", "adyen_api_key", "adyen_merchant_account", "adyen_report_user",
    "adyen_report_password",
}  # fmt: skip


def test_nonsense_in_any_setting_is_one_line_that_repeats_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NONSENSE.keys() | ANY_TEXT == GatewaySettings.model_fields.keys(), "each is tried, or may be any text"
    for name, values in NONSENSE.items():
        for value in values:
            with monkeypatch.context() as given:
                given.setenv(variable := f"TITAN_{name.upper()}", value)
                with pytest.raises(StackError) as raised:
                    gateway_settings()
            told = str(raised.value)
            assert told.startswith(variable) and "\n" not in told
            assert "hunter2" not in "".join(format_exception(raised.value)), told
    with pytest.raises(ValidationError) as shown:
        Settings(postgres=SECRET)
    assert SECRET not in str(shown.value), "nor where a library shows the error itself"


def test_what_up_was_given_is_what_later_commands_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITAN_DATA", str(tmp_path))
    terms = {
        "adapter": "test",
        "currencies": ["GBP", "EUR"],
        "amounts": {"EUR": [1, 9]},
        "set": {"test_gateway": "http://127.0.0.1:9"},
    }
    given = {
        "TITAN_GATEWAYS": json.dumps({"one": terms, "stripe": {"takes": ["pm_"]}}),
        "TITAN_ROUTES": json.dumps([{"currencies": ["EUR"], "gateways": ["one"], "by": "cost"}]),
        "TITAN_STRIPE_SECRET_KEY": "sk_test_1",
        "TITAN_STRIPE_WEBHOOK_SECRETS": '["whsec_1", "whsec_2"]',
        "TITAN_JWT_JWKS": "keys.json",
        "TITAN_INSTANCE": "this process alone",
        "SCHEMA_REGISTRY_URL": "http://registry:8081",
    }  # fmt: skip
    with monkeypatch.context() as up:
        for name, value in given.items():
            up.setenv(name, value)
        there = gateway_settings()
    (tmp_path / "run").mkdir()
    write_private(running_file(), as_given(there))
    assert stat.S_IMODE(running_file().stat().st_mode) == 0o600, "there are secrets in it"
    assert gateway_settings() == there.model_copy(update={"instance": None, "jwt_jwks": Path("keys.json").absolute()})
    assert Settings().schema_registry_url == "http://registry:8081"
    running_file().write_text('{"kafka": "127')
    with pytest.raises(StackError, match="settings.json is damaged"):
        gateway_settings()


@pytest.mark.parametrize(("replication", "in_sync"), [(1, 1), (2, 1), (3, 2)])
def test_one_replica_may_be_away(replication: int, in_sync: int) -> None:
    assert Settings(replication=replication).min_insync_replicas == in_sync


def test_a_token_is_signed_by_the_key_that_the_api_reads(keys: Settings) -> None:
    make_keys(keys)
    before = keys.jwt_private_key.read_text(), keys.master_key.read_text()
    make_keys(keys)
    assert (keys.jwt_private_key.read_text(), keys.master_key.read_text()) == before
    assert len(base64.b64decode(keys.master_key.read_text())) == 32
    assert stat.S_IMODE(keys.jwt_private_key.stat().st_mode) == stat.S_IMODE(keys.master_key.stat().st_mode) == 0o600
    assert '"d"' not in keys.jwt_jwks.read_text(), "the private part must not be among the public keys"
    public, subject = KeySet.import_key_set(json.loads(keys.jwt_jwks.read_text())), uuid4()
    for role in ROLES:
        read = jwt.decode(token(keys, role, subject, ("orders:read",), seconds=60), public, algorithms=["ES256"])
        claims = read.claims
        assert (claims["iss"], claims["aud"], claims["sub"]) == ("titan", "titan-api", str(subject))
        assert (claims["role"], claims["scope"], claims["exp"] - claims["iat"]) == (role, "orders:read", 60)


def test_a_new_persons_token_says_how_to_sign_the_next_one(
    keys: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_keys(keys)
    monkeypatch.setattr("infra.token.settings", lambda: keys)
    assert cli.main(["token", "--role", "seller"]) == 0
    out, err = capsys.readouterr()
    subject = jwt.decode(out.strip(), KeySet.import_key_set(json.loads(keys.jwt_jwks.read_text()))).claims["sub"]
    assert err == f"--sub {subject}\n"
    assert cli.main(["token", "--sub", subject]) == 0
    assert capsys.readouterr().err == ""


def test_no_key_says_what_to_do(keys: Settings) -> None:
    with pytest.raises(StackError, match="run titan up once"):
        token(keys, "customer", uuid4())


DOMAINS = frozenset({"order", "wallet"})


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("aggregates.order", "aggregates.kernel.event", True),
        ("aggregates.order", "schemas.types", True),
        ("aggregates.order.lines", "aggregates.order.totals", True),
        ("aggregates.order", "aggregates.wallet", False),
        ("aggregates.order", "streams.kernel", False),
        ("aggregates.kernel.store", "aggregates.order", False),
        ("aggregates.kernel.store", "infra.settings", True),
        ("aggregates.kernel.store", "infra.stack", False),
        ("aggregates.kernel", "projections.kernel", False),
        ("schemas.history", "infra.settings", False),
        ("projections.order", "aggregates.order", True),
        ("projections.order", "aggregates.wallet", False),
        ("projections.order", "projections.wallet", False),
        ("projections.order", "projections.kernel", True),
        ("projections.order", "api.kernel", False),
        ("streams.checkout", "aggregates.wallet", True),
        ("streams.checkout", "projections.wallet", False),
        ("streams.rules.testing", "aggregates.wallet", True),
        ("streams.worker", "projections.kernel", True),
        ("api.order", "projections.order", True),
        ("api.order", "aggregates.order", True),
        ("api.order", "projections.wallet", True),
        ("api.order", "api.wallet", False),
        ("api.order", "streams.kernel", True),
        ("api.kernel", "api.order", False),
        ("replay.rebuild", "projections.kernel", True),
        ("infra.migrate", "aggregates.kernel.migrate", True),
    ],
)
def test_who_may_import_whom(importer: str, imported: str, allowed: bool) -> None:
    assert (refusal(importer, imported, DOMAINS) is None) == allowed


def test_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["dance"]) == 2
    assert "there is no command 'dance'" in capsys.readouterr().err
    for raised, line in (
        (StackError("port 1 is in use"), "error: port 1 is in use\n"),
        (OSError(28, "x", "f"), "disk is full"),
    ):

        def fail(argv: list[str], error: Exception = raised) -> int:
            raise error

        monkeypatch.setattr("infra.token.main", fail)
        assert cli.main(["token"]) == 1
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1


def test_what_our_processes_compile_is_kept(tmp_path: Path) -> None:
    program = "import subprocess, sys; from infra import cli; cli.main([]); subprocess.run([sys.executable, '-c', 'import infra.settings'])"
    given = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=given, capture_output=True).returncode == 0
    assert any(tmp_path.rglob("settings.*.pyc"))


def test_direct_dependencies_are_exact_and_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    locked = {line.split(" ")[0].partition("[")[0].partition("==")[0]: line for line in _requirements()}
    for line in wanted:
        name, _, version = line.partition(";")[0].partition("==")
        assert version, f"{line} is not pinned exactly"
        assert f"=={version.strip()}" in locked[name.partition("[")[0]], (
            f"{line} is not what infra/requirements.txt has"
        )
    blocks = LOCK.read_text().replace("\\\n", " ").splitlines()
    assert all("--hash=sha256:" in block for block in blocks if block and not block.startswith("#"))
    assert "://" not in LOCK.read_text(), "the lock names no host"


def test_a_changed_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [line] = [line for line in jars.LOCK.read_text().splitlines() if ":slf4j-api:" in line]
    monkeypatch.setattr(jars, "LOCK", tmp_path / "jars.lock")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "jars.lock").write_text(f"{'0' * 64} {line.split()[1]}\n")
    with pytest.raises(StackError, match="is not the file that infra/jars.lock names"):
        jars.kafka_jars()
    assert not list(tmp_path.rglob("slf4j-api*.jar"))
    (tmp_path / "jars.lock").write_text(line)
    [jar] = jars.kafka_jars()
    assert jar.name == "slf4j-api-1.7.36.jar"


def test_a_missing_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "LOCK", tmp_path / "jars.lock")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "jars.lock").write_text(f"{'0' * 64} org.slf4j:slf4j-api:0.0.0\n")
    with pytest.raises(StackError, match="can't download org.slf4j:slf4j-api:0.0.0"):
        jars.kafka_jars()


LISTENS = ("--host", "--port", "--metrics-host", "--metrics-port")
ANALYST = ROOT / "infra" / "clickhouse" / "analyst.xml"


def without_addresses(command: Sequence[str]) -> list[str]:
    """A command but for where it listens, which is another place in a container."""
    left = iter(command)
    return [word for word in left if word not in LISTENS or not next(left)]


def as_on_one_machine() -> dict[str, list[str]]:
    """The commands of `titan up`."""
    return {one.name: without_addresses(["python", "-m", one.module, *one.arguments]) for one in processes(Settings())}


def test_compose_file() -> None:
    text = (ROOT / "infra" / "compose.yaml").read_text()
    compose = yaml.safe_load(text)
    services = compose["services"]
    assert {"kafka", "postgres", "redis", "clickhouse"} <= services.keys()
    for service in services.values():
        assert "image" in service or "build" in service
        assert service.get("depends_on", {}).keys() <= services.keys()
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / "infra" / source).is_file() if source.startswith("./") else source in compose["volumes"]
    ours = {name: without_addresses(one["command"]) for name, one in services.items() if "build" in one}
    assert as_on_one_machine().items() <= ours.items()
    for number, process in enumerate(one for one in processes(Settings(), lambda _: 9464) if not one.url):
        assert services[process.name]["command"][3:] == ["--metrics-host", "0.0.0.0", *process.arguments]
        assert services[process.name]["ports"] == [f"127.0.0.1:{9464 + number}:9464"]
    for line in "\n".join(re.findall(r"^#   (.*)", text, re.MULTILINE)).replace("\\\n", "").splitlines():
        assert "=" not in shlex.split(line)[-1], f"nothing is run by: {line}"


def test_the_image_runs_the_api_as_up_does() -> None:
    text = (ROOT / "infra" / "Containerfile").read_text().replace("\\\n", "")
    [command] = re.findall(r"^CMD (.*)", text, re.MULTILINE)
    assert without_addresses(json.loads(command)) == as_on_one_machine()["api"]


def test_kubernetes_manifests() -> None:
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for file in sorted((ROOT / "infra" / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            assert {"apiVersion", "kind", "metadata"} <= document.keys(), file
            found[document["kind"]][document["metadata"]["name"]] = document
    run = {
        container["name"]: without_addresses(container["command"])
        for kind in ("Deployment", "StatefulSet")
        for workload in found[kind].values()
        for container in workload["spec"]["template"]["spec"]["containers"]
        if container["image"] == "titan-commerce"
    }
    assert run == as_on_one_machine()
    for process in processes(Settings(), lambda _: 9464):
        if process.metrics:
            template = found["Deployment"][process.name]["spec"]["template"]
            [container] = template["spec"]["containers"]
            port = 8000 if process.url else 9464
            scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
            assert template["metadata"]["annotations"] == scraped
            assert [one["containerPort"] for one in container["ports"]] == [port]
            assert process.url or container["command"][3:] == ["--metrics-host", "0.0.0.0", *process.arguments]
    for kind in ("Deployment", "StatefulSet"):
        for workload in found[kind].values():
            spec, template = workload["spec"], workload["spec"]["template"]
            assert spec["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            for container in template["spec"]["containers"]:
                assert container["resources"]["requests"].keys() == {"cpu", "memory"}
                for source in container.get("envFrom", []):
                    [(kind_of, reference)] = source.items()
                    assert kind_of == "secretRef" or reference["name"] in found["ConfigMap"]
    for service in found["Service"].values():
        wanted = service["spec"]["selector"].items()
        assert any(
            wanted <= workload["spec"]["template"]["metadata"]["labels"].items()
            for kind in ("Deployment", "StatefulSet")
            for workload in found[kind].values()
        )
    settings = found["ConfigMap"]["titan"]["data"]
    ours = {name for name in settings if name != "FORWARDED_ALLOW_IPS"}
    assert {name.lower().removeprefix("titan_") for name in ours} <= GatewaySettings.model_fields.keys()
    assert int(settings["TITAN_REPLICATION"]) <= found["StatefulSet"]["kafka"]["spec"]["replicas"]
    [rule] = found["Ingress"]["api"]["spec"]["rules"]
    assert settings["TITAN_PUBLIC_URL"] == f"https://{rule['host']}"
    assert found["ConfigMap"]["clickhouse-users"]["data"]["analyst.xml"] == ANALYST.read_text()
    assert network_of(settings["FORWARDED_ALLOW_IPS"], "10.1.2.3", "6.6.6.6, 203.0.113.7, 10.9.9.9") == "203.0.113.7"
    assert network_of(settings["FORWARDED_ALLOW_IPS"], "198.51.100.1", "203.0.113.7") == "198.51.100.1"


def network_of(trusted: str, peer: str, forwarded: str) -> str:
    """Where a request comes from to limits, as uvicorn hands it on: by `peer`, who says that it is `forwarded`."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    scope: Any = {
        "type": "http", "scheme": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())],
    }  # fmt: skip
    asyncio.run(ProxyHeadersMiddleware(app, trusted)(scope, None, None))  # type: ignore[arg-type]
    return seen[0]


def test_an_analyst_of_a_real_clickhouse_may_only_read(tmp_path: Path) -> None:
    """By the engine itself, which is that of the servers."""
    expected = {
        "SELECT x FROM sales": "7",
        "SELECT name FROM system.tables WHERE database IN ('default', 'other')": "sales",
        "SELECT 1 SETTINGS max_threads = 1": "1",
        "SELECT x FROM other.secrets": "ACCESS_DENIED",
        "INSERT INTO sales VALUES (8)": "ACCESS_DENIED",
        "CREATE TABLE mine (x Int8) ENGINE = Memory": "ACCESS_DENIED",
        "DROP TABLE sales": "ACCESS_DENIED",
        "SELECT * FROM url('http://127.0.0.1:9/', 'CSV', 'x Int8')": "ACCESS_DENIED",
        "SELECT 1 SETTINGS max_execution_time = 0": "SETTING_CONSTRAINT_VIOLATION",
        "SELECT 1 SETTINGS max_memory_usage = 0": "SETTING_CONSTRAINT_VIOLATION",
        "SET readonly = 0": "READONLY",
    }
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kernel.analyst", str(ANALYST), str(tmp_path)],
        input=json.dumps(list(expected)), env={**os.environ, "CLICKHOUSE_ANALYST_PASSWORD": "pass"}, cwd=ROOT,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert dict(zip(expected, json.loads(ran.stdout), strict=True)) == expected


def _requirements() -> list[str]:
    return [line for line in LOCK.read_text().splitlines() if line and not line.startswith((" ", "#"))]
