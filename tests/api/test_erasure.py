"""Erased people stay erased: their key is gone, so no store, no read, no replay has them any more, and nothing breaks for it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis as redis_client
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from api.kernel import vault
from api.kernel.vault import Pool, Vault, read_master_key
from infra.settings import Settings
from projections.kernel import ClickTable, RedisTable, Table
from projections.kernel.clauses import projections
from projections.kernel.clickhouse import client_of
from tests.api.conftest import Market
from tests.api.test_order import ADDRESS, TOTAL, Case, asked
from tests.kernel.topic import rows_in

SECRETS = ("Ada Lovelace", "12 Analytical Row", "Engineville", "W1A 1AA")
HERS = dict(zip(("recipient", "street", "city", "postcode"), SECRETS, strict=True)) | {"country": "GB"}
BLANK = dict.fromkeys(HERS, "") | {"country": "GB"}


def erase(settings: Settings, subject: UUID) -> bool:
    """What an erasure does, in a process that is not the API's."""

    async def main() -> bool:
        pool: Pool
        async with AsyncConnectionPool(settings.postgres, connection_class=psycopg.AsyncConnection, open=False) as pool:
            return await Vault(pool, read_master_key(settings.master_key)).erase(subject)

    return asyncio.run(main())


def everything(settings: Settings) -> str:
    """All that the stores hold, as text; bytes too."""
    found: list[str] = []
    with psycopg.connect(settings.postgres) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (name,) in tables:
            query = sql.SQL("SELECT t::text, encode({state}, 'escape') FROM {table} t")
            state = sql.Identifier("state") if name.endswith("_events") else sql.SQL("NULL::bytea")
            rows = connection.execute(query.format(state=state, table=sql.Identifier(name))).fetchall()
            found += [f"{text} {body}" for text, body in rows]
    with redis_client.Redis.from_url(settings.redis) as client:
        for key in client.scan_iter(match=f"*{settings.namespace}*", count=1_000):
            if client.type(key) == b"hash":
                found += [repr(key), repr(client.hgetall(key))]
    client = client_of(settings.clickhouse)
    for table in ("events", "sales"):
        found += [repr(row) for row in client.query(f"SELECT * FROM {table}").result_rows]
    client.close()
    return "\n".join(found)


def read_models(settings: Settings) -> dict[str, Any]:
    """Every table of Postgres and Redis by key, and those of ClickHouse as rows."""
    tables = [table for one in projections() for table in one.tables]
    found: dict[str, Any] = {t.name: rows_in(settings, t) for t in tables if isinstance(t, Table | RedisTable)}
    client = client_of(settings.clickhouse)
    for table in (t for t in tables if isinstance(t, ClickTable)):
        rows = client.query(f"SELECT {', '.join(table.columns)} FROM {table.name} FINAL").result_rows
        found[table.name] = sorted(rows, key=repr)
    client.close()
    return found


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API's servers, threads of this process, remember no key: else an erasure shows half a minute later."""
    monkeypatch.setattr(vault, "CACHED_S", -1.0)


def addresses(case: Case) -> list[dict[str, Any]]:
    """The order's address by every way that shows it."""
    listed = case.mall.read("/orders", case.me, after=case.after)["items"]
    shown = [
        case.read()["address"],
        case.read(version=1)["address"],
        case.read("/events")["items"][0]["data"]["address"],
        *[one["address"] for one in listed if one["id"] == case.id and "address" in one],
    ]
    return [{name: one[name] for name in HERS} for one in shown]


def test_an_erased_person_is_gone_from_every_store_and_read_and_stays_so_after_a_rebuild(mall: Market) -> None:
    ada, bob = Case(mall, address=HERS), Case(mall)
    assert all(one == HERS for one in addresses(ada))
    stored = everything(mall.settings)
    assert f"sealed:1:{ada.customer}:" in stored  # it is there, and closed
    assert not [secret for secret in SECRETS if secret in stored]

    assert erase(mall.settings, ada.customer)
    assert not erase(mall.settings, ada.customer)
    assert all(one == BLANK for one in addresses(ada))
    assert all(one == ADDRESS for one in addresses(bob))

    ada.go("pay", payment=str(uuid4()), amount=TOTAL)  # business goes on: aggregates never needed to read it
    ada.go("cancel", 200, ada.me, reason="who am I")
    assert ada.read()["status"] == "cancelled"

    live = mall.live
    with live.paused():
        live.catch_up()
        before = read_models(mall.settings)
        live.wipe()
        assert not any(read_models(mall.settings).values())
        live.catch_up()
    assert read_models(mall.settings) == before
    assert all(one == BLANK for one in addresses(ada))
    assert all(one == ADDRESS for one in addresses(bob))
    with psycopg.connect(mall.settings.postgres) as connection:
        assert connection.execute("SELECT count(*) FROM parked").fetchone() == (0,)


def test_who_was_erased_may_come_back_as_somebody_new(mall: Market) -> None:
    """The new key opens what is sealed from now on, and nothing of before."""
    old = Case(mall, address=HERS)
    assert erase(mall.settings, old.customer)
    made = mall.post("/orders", asked(old.customer, address=HERS), old.till, 201)
    new = mall.read(f"/orders/{made['id']}", old.me, after=made["position"])
    assert {name: new["address"][name] for name in HERS} == HERS
    assert all(one == BLANK for one in addresses(old))
