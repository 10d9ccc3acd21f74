"""`python -m streams.gateways.test_gateway`: at the address of TITAN_TEST_GATEWAY, unless told another."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

import uvicorn

from streams.gateways.settings import GatewaySettings
from streams.gateways.test_gateway.app import create


def main() -> None:
    settings = GatewaySettings()
    address = urlsplit(settings.test_gateway_url)
    parser = argparse.ArgumentParser(prog="python -m streams.gateways.test_gateway", description=__doc__)
    parser.add_argument("--host", default=address.hostname, help="to listen at")
    parser.add_argument("--port", type=int, default=address.port)
    given = parser.parse_args()
    uvicorn.run(
        create(settings),
        host=given.host,
        port=given.port,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=2,  # requests that are held are not waited for
    )


if __name__ == "__main__":
    main()
