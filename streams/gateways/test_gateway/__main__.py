"""`python -m streams.gateways.test_gateway`: at the address of TITAN_TEST_GATEWAY, unless told another."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit

import uvicorn

from infra import logs
from streams.gateways.settings import gateway_settings
from streams.gateways.test_gateway.app import create


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m streams.gateways.test_gateway", description=__doc__)
    parser.add_argument("--name", default="test", help="of the gateway in TITAN_GATEWAYS, when there are several")
    parser.add_argument("--host", help="to listen at")
    parser.add_argument("--port", type=int)
    given = parser.parse_args()
    logs.begin()
    settings = gateway_settings().at(given.name)
    logs.configure(settings.log_level)
    address = urlsplit(settings.test_gateway_url)
    uvicorn.run(
        create(settings),
        host=given.host or address.hostname or "127.0.0.1",
        port=given.port or address.port or 80,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=2,  # requests that are held are not waited for
    )


if __name__ == "__main__":
    main()
