"""The built-in test gateway: as a process of its own for tests that pay, and in this one for those that only save ways to pay."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
from pydantic import SecretStr

from infra.children import Child
from infra.servers import free_port, http_ready
from infra.settings import ROOT, Settings
from streams.gateways.settings import GatewaySettings
from streams.gateways.test_gateway.app import create
from tests.api.kernel.conftest import serving


def gateway_settings(folder: Path, **fields: object) -> GatewaySettings:
    """Settings of a gateway of this test's own: patience is short, state and secret are in `folder`."""
    defaults: dict[str, object] = {
        "data": folder,
        "test_gateway": f"http://127.0.0.1:{free_port()}",
        "test_gateway_secret": folder / "gateway-secret",
        "test_gateway_webhook": f"http://127.0.0.1:{free_port()}/nobody",
        "gateway_timeout_s": 0.5,
        "test_gateway_hold_s": 5.0,
    }
    return GatewaySettings(**{**defaults, **fields})  # type: ignore[arg-type]


@contextmanager
def with_gateways(settings: Settings) -> Iterator[GatewaySettings]:
    """The settings with each of their test gateways up, in threads of this process."""
    given = {
        "test_gateway_secret": settings.data / "gateway-secret",
        "gateway_timeout_s": 1.0,
        **settings.model_dump(exclude_unset=True),
    }
    made = GatewaySettings(**given)
    with ExitStack() as stack:
        urls = {name: stack.enter_context(serving(create(made.at(name)))) for name in made.gateways}
        terms = {
            name: one.model_copy(update={"set": {**one.set, "test_gateway": urls[name]}})
            for name, one in made.gateways.items()
        }
        yield made.model_copy(update={"gateways": terms})


def environment(settings: GatewaySettings) -> dict[str, str]:
    """The same settings for a process."""
    given = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    for name in given:
        match getattr(settings, name):
            case SecretStr() as secret:
                given[name] = secret.get_secret_value()
            case (SecretStr(), *_) as several:
                given[name] = [one.get_secret_value() for one in several]
    return {
        f"TITAN_{name.upper()}": json.dumps(value) if isinstance(value, dict | list) else str(value)
        for name, value in given.items()
    }


def gateway_process(settings: GatewaySettings) -> Child:
    """The one named in the settings, not started yet."""
    return Child(
        f"gateway {settings.gateway_name}",
        [sys.executable, "-m", "streams.gateways.test_gateway", "--name", settings.gateway_name],
        log=settings.data / f"gateway-{settings.gateway_name}.log",
        address=settings.test_gateway_url,
        ready=partial(http_ready, settings.test_gateway_url + "/health"),
        env=environment(settings),
        cwd=ROOT,
    )


@contextmanager
def running_gateway(settings: GatewaySettings) -> Iterator[httpx.Client]:
    """The gateway, up; a client with its key, to ask it what it thinks."""
    child = gateway_process(settings)
    child.start()
    try:
        child.wait_ready()
        with client(settings) as shop:
            yield shop
    finally:
        child.stop()


def client(settings: GatewaySettings) -> httpx.Client:
    key = settings.test_key("api").decode()
    return httpx.Client(base_url=settings.test_gateway_url, headers={"authorization": f"Bearer {key}"}, timeout=10)
