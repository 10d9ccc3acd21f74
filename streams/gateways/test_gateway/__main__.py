"""`python -m streams.gateways.test_gateway`: at the address of TITAN_TEST_GATEWAY."""

from __future__ import annotations

from urllib.parse import urlsplit

import uvicorn

from streams.gateways.settings import GatewaySettings
from streams.gateways.test_gateway.app import create


def main() -> None:
    settings = GatewaySettings()
    address = urlsplit(settings.test_gateway_url)
    uvicorn.run(
        create(settings),
        host=address.hostname or "127.0.0.1",
        port=address.port or 80,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=2,  # requests that are held are not waited for
    )


if __name__ == "__main__":
    main()
