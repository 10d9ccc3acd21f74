"""A domain's notification log written with plain SQL, by the tables' contract alone, and its topic read back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID, uuid4

import psycopg
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from psycopg import sql

from aggregates.kernel.wire import COLUMNS, Row, row_of

PARTITIONS = 4


def make_topics(bootstrap: str, topics: Iterable[str], partitions: int = PARTITIONS) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for future in admin.create_topics([NewTopic(topic, partitions, 1) for topic in topics]).values():
        future.result(timeout=30)


def append(
    connection: psycopg.Connection[tuple[object, ...]], domain: str, ids: Sequence[UUID], body: bytes = b"x"
) -> None:
    """Store an event of each aggregate in one commit, as a committer does."""
    insert = sql.SQL(
        "INSERT INTO {} (notification_id, originator_id, originator_version, event_type, state, event_id, occurred_at,"
        " correlation_id, causation_id, actor) SELECT %s + no, id, %s + no, %s, %s, gen_random_uuid(), clock_timestamp(), %s,"
        " CASE WHEN no %% 2 = 0 THEN gen_random_uuid() END, 'user:test' FROM unnest(%s::uuid[]) WITH ORDINALITY AS a(id, no)"
    ).format(sql.Identifier(f"{domain}_events"))
    with connection.transaction():
        row = connection.execute("SELECT last FROM log_heads WHERE domain = %s FOR UPDATE", (domain,)).fetchone()
        assert row is not None
        last = int(str(row[0]))
        connection.execute(insert, (last, last, f"{domain}.Counted", body, uuid4().hex, list(ids)))
        connection.execute("UPDATE log_heads SET last = last + %s WHERE domain = %s", (len(ids), domain))
        connection.execute("SELECT pg_notify('titan_events', %s)", (domain,))


def stored(connection: psycopg.Connection[tuple[object, ...]], domain: str) -> list[Row]:
    query = sql.SQL(f"SELECT {COLUMNS} FROM {{}} ORDER BY notification_id").format(sql.Identifier(f"{domain}_events"))
    return [Row(*row) for row in connection.execute(query).fetchall()]  # type: ignore[arg-type]


def published(bootstrap: str, topic: str) -> list[list[Row]]:
    """All records of a topic as rows, by partition, in order."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": uuid4().hex, "enable.auto.commit": False})
    try:
        parts = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1] for p in parts}
        found: list[list[Row]] = [[] for _ in parts]
        consumer.assign([TopicPartition(topic, p, 0) for p in parts])
        at = dict.fromkeys(parts, 0)
        while any(at[p] < ends[p] for p in parts):
            for message in consumer.consume(5_000, 0.2):
                assert message.error() is None, message.error()
                partition, offset = message.partition(), message.offset()
                key, value, headers = message.key(), message.value(), message.headers()
                assert partition is not None and offset is not None and key is not None and value is not None
                row = row_of(key, value, headers.items() if isinstance(headers, dict) else headers or [])
                assert message.timestamp()[1] == int(row.occurred_at.timestamp() * 1000)
                found[partition].append(row)
                at[partition] = offset + 1
        return found
    finally:
        consumer.close()


def without_duplicates(partition: Sequence[Row]) -> list[Row]:
    """What a consumer takes of a partition: whatever is above its position."""
    position, taken = 0, []
    for row in partition:
        if row.notification_id > position:
            position = row.notification_id
            taken.append(row)
    return taken
