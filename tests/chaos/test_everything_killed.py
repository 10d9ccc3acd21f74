"""Each server and each process killed with -9 once under shoppers' load: nothing acknowledged is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos import PROCESSES, SERVERS, Chaos, chaos

pytestmark = pytest.mark.slow

ALL = (*SERVERS, *PROCESSES)
PAIRS = list(zip(ALL[::2], ALL[1::2], strict=True))


@pytest.fixture(scope="module")
def made() -> Iterator[Chaos]:
    with chaos() as one:
        yield one


@pytest.mark.parametrize("victims", PAIRS, ids=" and ".join)
def test_killed_under_load_nothing_is_lost_and_nothing_doubled(made: Chaos, victims: tuple[str, ...]) -> None:
    assert made.round(f"test {victims}", victims) == []
