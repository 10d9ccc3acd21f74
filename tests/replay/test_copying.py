"""Rows that come by COPY are stored as those that come as JSON, whatever is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from projections.kernel import Table
from projections.kernel.postgres import PostgresSink, created, fold, statements
from projections.kernel.tables import json_bytes
from replay.copying import copied
from replay.postgres import PostgresLoader, _copy
from replay.shadow import NICE


class Size(Enum):
    SMALL = "small"


kinds = Table(
    "kinds", key="id", id=int, text=str, maybe=str | None, yes=bool, real=float, exact=Decimal, whose=UUID, at=datetime,
    on=date, raw=bytes, items=list[int], named=dict[str, str], size=Size,
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = {
    "text": TEXT,
    "maybe": st.none() | TEXT,
    "yes": st.booleans(),
    "real": st.floats(allow_nan=False, allow_infinity=False),
    "exact": st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12),
    "whose": st.uuids(),
    "at": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    "on": st.dates(date(1900, 1, 1), date(2200, 1, 1)),
    "raw": st.binary(max_size=20),
    "items": st.lists(st.integers(-(2**53), 2**53), max_size=3),
    "named": st.dictionaries(TEXT, TEXT, max_size=2),
    "size": st.just(Size.SMALL) | st.just("small"),
}


@pytest.fixture
def connection(postgres: str) -> Iterator[psycopg.Connection[Any]]:
    sink = PostgresSink(postgres)
    with sink._working() as made:
        for name in ("by_json", "by_copy"):
            made.execute(created(kinds.named(name)).encode())
        yield made
    sink.close()


@hypothesis(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    puts=st.lists(st.tuples(st.integers(-9, 9), st.fixed_dictionaries({}, optional=VALUES)), min_size=1, max_size=12)
)
def test_by_copy_as_by_json(connection: psycopg.Connection[Any], puts: list[tuple[int, dict[str, Any]]]) -> None:
    with connection.transaction(force_rollback=True):
        for name in ("by_json", "by_copy"):
            table = kinds.named(name)
            for statement in statements(table, fold(table, [table.put(key, **values) for key, values in puts])):
                packed = copied(table, statement.rows)
                if name == "by_json":
                    connection.execute(statement.query.encode(), [json_bytes(statement.rows).decode()])
                else:
                    assert packed is not None
                    _copy(connection, packed, statement.query)
        found = [connection.execute(f"TABLE {name} ORDER BY id".encode()).fetchall() for name in ("by_json", "by_copy")]
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "unlike",
    [{"text": 5}, {"yes": 1}, {"real": float("nan")}, {"real": 1}, {"exact": 1}, {"whose": str(UUID(int=1))},
     {"at": datetime(2026, 1, 1)}, {"on": datetime(2026, 1, 1, tzinfo=UTC)}, {"raw": bytearray(b"x")}, {"text": b"x"}],
)  # fmt: skip
def test_what_is_not_exactly_of_its_type_goes_the_live_way(unlike: dict[str, Any]) -> None:
    assert copied(kinds, [{"id": 1, **unlike}]) is None
    assert copied(kinds, [{"id": 2**63}]) is None


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="a processor's groups are Linux's")
def test_the_server_steps_back_for_a_loader_and_for_nobody_else(postgres: str) -> None:
    """What runs inside the server would run before the live platform's workers otherwise."""

    def nice_of(connection: psycopg.Connection[Any]) -> tuple[int, str]:
        pid = connection.info.backend_pid
        return os.getpriority(os.PRIO_PROCESS, pid), Path(f"/proc/{pid}/autogroup").read_text().split()[-1]

    loader, live = PostgresLoader(postgres), PostgresSink(postgres)
    with closing(loader), closing(live), loader._working() as aside, live._working() as ahead:
        assert nice_of(aside) == (NICE, str(NICE))
        assert nice_of(ahead) == (0, "0")
