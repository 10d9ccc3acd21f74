"""What goes wrong comes out in one line: whichever server goes away, and whenever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from projections.kernel.runner import BadData, Broken, Down, Fenced, Poison
from replay.log import ReplayError

AGAIN = "Start again when that is mended"
# By the package that raises it: none of them is imported to find out.
SERVERS = {
    "psycopg": "Postgres",
    "psycopg_pool": "Postgres",
    "redis": "Redis",
    "clickhouse_connect": "ClickHouse",
    "urllib3": "ClickHouse",  # in the middle of an answer
    "cimpl": "Kafka",
}


class said:
    """What goes wrong inside comes out as a `ReplayError` of one line."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Fenced):
            raise ReplayError("another replay writes the same shadow: wait for its end") from error
        if isinstance(error, Poison):
            raise ReplayError(f"{line(error)}. Mend its cause and start again, this goes on") from error
        if isinstance(error, BadData):
            raise ReplayError(f"the store refuses what the events come to: {line(error)}") from error
        if isinstance(error, (Down, Broken)):
            words, its = line(error), server_of(error.__cause__) or ""
            raise ReplayError(f"{words if its in words else f'{its}: {words}'}. {AGAIN}, this goes on") from error
        if isinstance(error, Exception) and (server := server_of(error)):
            raise ReplayError(f"{server}: {line(error)}. {AGAIN}") from error


def server_of(error: BaseException | None) -> str | None:
    """Whose client has raised this; None for an error of our own."""
    packages = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    return next((SERVERS[package] for package in packages if package in SERVERS), None)


@contextmanager
def afterwards(tidy: Callable[[], object]) -> Iterator[None]:
    """Tidy up in the end. A failure in that does not hide what went wrong before: whatever is left then, `--clean` finds."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            tidy()
        raise
    tidy()


def line(error: object) -> str:
    """Its words on one line."""
    return " ".join(str(error).split()) or type(error).__name__
