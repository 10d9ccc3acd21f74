"""Everything that a platform has written anywhere, as bytes: what is to be found nowhere is looked for here."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import redis as redis_client
from confluent_kafka import Consumer, TopicPartition
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from api.kernel.vault import Pool, Vault, read_master_key
from infra.settings import Settings
from projections.kernel.clickhouse import client_of

HEX = re.compile(rb"\\\\x([0-9a-f]+)")  # bytes of Postgres, as COPY writes them


def everything(of: Settings) -> Iterator[tuple[str, bytes]]:
    """Where, and what: records of Kafka, rows of Postgres and ClickHouse, keys and values of Redis, files of the data folder."""
    yield from topics(of)
    yield from postgres(of)
    yield from redis(of)
    yield from clickhouse(of)
    for file in of.data.rglob("*"):
        if file.is_file():
            yield f"file {file.relative_to(of.data)}", file.read_bytes()


def topics(of: Settings) -> Iterator[tuple[str, bytes]]:
    """Every record of every topic of this platform, dead letters and what processors keep included."""
    consumer = Consumer({"bootstrap.servers": of.kafka, "group.id": uuid4().hex, "fetch.wait.max.ms": 50})
    try:
        found = consumer.list_topics(timeout=10).topics
        mine = [
            TopicPartition(name, n, 0)
            for name, topic in found.items()
            if name.startswith(of.namespace)
            for n in topic.partitions
        ]
        ends = {(one.topic, one.partition): consumer.get_watermark_offsets(one, timeout=10)[1] for one in mine}
        consumer.assign([one for one in mine if ends[one.topic, one.partition]])
        left = {where for where, end in ends.items() if end}
        while left:
            messages = consumer.consume(1_000, timeout=1)
            for message in messages:
                assert message.error() is None, message.error()
                headers: Any = message.headers() or ()
                whole = [message.key(), message.value(), *(value for _, value in headers)]
                where = str(message.topic()), int(message.partition() or 0)
                yield f"topic {where[0]}", b"\n".join(part if isinstance(part, bytes) else b"" for part in whole)
                if int(message.offset() or 0) + 1 >= ends[where]:
                    left.discard(where)
    finally:
        consumer.close()


def postgres(of: Settings) -> Iterator[tuple[str, bytes]]:
    """Every table of every database, snapshots, stored answers and rebuilds' shadows included."""
    for dsn in {of.postgres, *of.postgres_domains.values()}:
        with psycopg.connect(dsn) as connection:
            tables = connection.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            for table in tables:
                with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(*table))) as rows:
                    text = b"".join(bytes(part) for part in rows)
                yield f"table {table[1]}", text
                yield f"bytes in {table[1]}", b"\n".join(bytes.fromhex(one.decode()) for one in HEX.findall(text))


def redis(of: Settings) -> Iterator[tuple[str, bytes]]:
    """Every key and value of the database."""
    with redis_client.Redis.from_url(of.redis) as client:
        for key in client.scan_iter(count=1_000):
            read: dict[bytes, Any] = {
                b"string": client.get, b"hash": client.hgetall, b"set": client.smembers,
                b"list": lambda key: client.lrange(key, 0, -1), b"zset": lambda key: client.zrange(key, 0, -1),
            }  # fmt: skip
            kind: Any = client.type(key)
            value = read[kind](key) if kind != b"none" else b""  # it expired just now
            yield f"key {key!r}", key + b"\n" + b"\n".join(_flat(value))


def clickhouse(of: Settings) -> Iterator[tuple[str, bytes]]:
    """Every row of every table."""
    client = client_of(of.clickhouse)
    try:
        tables = client.query("SELECT name FROM system.tables WHERE database = currentDatabase() AND engine <> 'View'")
        for (name,) in tables.result_rows:
            yield f"clickhouse {name}", client.raw_query(f"SELECT * FROM `{name}`", fmt="TabSeparatedRaw")
    finally:
        client.close()


def opened(of: Settings, person: UUID, found: Iterable[tuple[str, bytes]]) -> set[str]:
    """What a reader with the vault gets now of all that is sealed for a person in there."""
    pattern = re.compile(rb"sealed:1:%s:[A-Za-z0-9+/=]+" % str(person).encode())
    sealed = {one.decode() for _, content in found for one in pattern.findall(content)}

    async def main() -> set[str]:
        pool: Pool
        async with AsyncConnectionPool(
            of.postgres, connection_class=psycopg.AsyncConnection, min_size=1, open=False
        ) as pool:
            return set(await Vault(pool, read_master_key(of.master_key)).open_all(sorted(sealed)))

    return asyncio.run(main())


def _flat(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from pair
    else:
        yield from value
