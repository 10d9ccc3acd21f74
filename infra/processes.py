"""What the platform consists of beside the servers. One row a process; `titan up` starts them in this order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from infra.settings import Settings
from streams.gateways.settings import GatewaySettings


class Process(NamedTuple):
    """Run as `python -m module *arguments`. One with a `url` takes requests, and is ready when `url + health` answers 200.
    `metrics` is the URL of its figures for Prometheus.

    On one machine, what works in the background is `nice`: a customer's request does not wait for it.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    url: str = ""
    health: str = ""
    nice: int = 0
    metrics: str = ""


def processes(settings: Settings, metrics_port: Callable[[str], int] | None = None) -> list[Process]:
    """`metrics_port` gives each of those that take no requests a port for its figures; without it they serve none."""

    def background(name: str, module: str) -> Process:
        if metrics_port is None:
            return Process(name, module, nice=5)
        port = metrics_port(name)
        arguments = ("--metrics-port", str(port))
        return Process(name, module, arguments, nice=5, metrics=f"http://127.0.0.1:{port}/metrics")

    host, port = settings.api_host, str(settings.api_port)
    gateway = GatewaySettings.of(settings)
    quick = (
        "--loop",
        "uvloop",
        "--http",
        "api.kernel.protocol:Protocol",
        "--no-access-log",
        "--log-level",
        "warning",  # what it has to say before the app's own log begins has another form
        "--no-server-header",
        "--timeout-graceful-shutdown",
        "10",
    )
    return [
        background("relay", "streams.relay"),
        background("worker", "streams.worker"),
        background("sagas", "streams.sagas"),
        background("faust", "streams.faust_app"),
        *(
            Process(
                "gateway" if name == "test" else f"gateway-{name}",
                "streams.gateways.test_gateway",
                ("--name", name),
                url=gateway.at(name).test_gateway_url,
                health="/health",
            )
            for name in gateway.test_gateways
        ),
        Process(
            "api",
            "uvicorn",
            ("api.app:app", "--host", host, "--port", port, *quick),
            f"http://{host}:{port}",
            "/health",
            metrics=f"http://{host}:{port}/metrics",
        ),
    ]
