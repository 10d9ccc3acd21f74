"""What every process of streams/ begins with: its log, and its figures for Prometheus where they are asked for."""

from __future__ import annotations

import argparse

from prometheus_client import start_http_server

from infra import logs
from infra.errors import StackError
from infra.settings import Settings, settings


def parser(module: str, about: str) -> argparse.ArgumentParser:
    """The arguments that all of them take: `begin` reads them."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    made.add_argument("--metrics-port", type=int, help="serve Prometheus metrics there")
    made.add_argument("--metrics-host", default="127.0.0.1", help="0.0.0.0 where Prometheus is on another machine")
    return made


def begin(given: argparse.Namespace) -> Settings:
    """Log and serve metrics as asked for. Raises `StackError`, one line, for a port that can't be had."""
    logs.begin()
    chosen = settings()
    logs.configure(chosen.log_level)
    if given.metrics_port is not None:
        try:
            start_http_server(given.metrics_port, addr=given.metrics_host)
        except OSError as error:
            where = f"{given.metrics_host}:{given.metrics_port}"
            raise StackError(f"metrics can't be served at {where}: {error.strerror or error}") from error
    return chosen
