"""What the platform consists of beside the servers. One row a process; `titan up` starts them in this order."""

from __future__ import annotations

from typing import NamedTuple

from infra.settings import Settings
from streams.gateways.settings import GatewaySettings


class Process(NamedTuple):
    """Run as `python -m module *arguments`. One with a `url` takes requests, and is ready when `url + health` answers 200.

    On one machine, what works in the background is `nice`: a customer's request does not wait for it.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    url: str = ""
    health: str = ""
    nice: int = 0


def processes(settings: Settings) -> list[Process]:
    host, port = settings.api_host, str(settings.api_port)
    gateway = GatewaySettings.of(settings)
    quick = (
        "--loop",
        "uvloop",
        "--http",
        "api.kernel.protocol:Protocol",
        "--no-access-log",
        "--no-server-header",
        "--timeout-graceful-shutdown",
        "10",
    )
    return [
        Process("relay", "streams.relay", nice=5),
        Process("worker", "streams.worker", nice=5),
        Process("sagas", "streams.sagas", nice=5),
        Process("faust", "streams.faust_app", nice=5),
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
        ),
    ]
