"""The registry, asked by somebody else's client over HTTP; and a registry of the company's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest
from confluent_kafka import DeserializingConsumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, topic_record_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext
from fastapi import FastAPI
from fastavro import parse_schema, schemaless_writer

from schemas import Address, Money, SchemaError, Sealed, Unreadable, bind, cli, codec, decode, external, history
from schemas.registry import BODY_BYTES_MAX, MEDIA_TYPE, router
from tests.kernel.registry import company, served

ID, AT = UUID("0b9ff4ef-9f5b-4a6b-9d0b-1a2b3c4d5e6f"), datetime(2026, 11, 24, 12, 0, 0, 123456, UTC)
SUBJECT, LOST_SUBJECT, CRATE = (
    "titan.parcel-titan.parcel.Sent",
    "titan.parcel-titan.parcel.Lost",
    "titan.crate-titan.crate.Filled",
)
SENT = {
    "type": "record",
    "name": "Sent",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "price", "type": "titan.common.Money"},
        {"name": "to", "type": "titan.common.Address"},
        {"name": "way", "type": {"type": "enum", "name": "Way", "symbols": ["air", "sea"]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}
REFUND = {"name": "refund", "type": ["null", "titan.common.Money"], "default": None}
LOST = {"type": "record", "name": "Lost", "fields": [{"name": "value", "type": "titan.common.Money"}]}
SEEN = {"type": "record", "name": "Seen", "fields": list[Any]()}
ADDRESS = Address(Sealed("sealed:1:a"), Sealed("sealed:1:b"), Sealed("sealed:1:c"), Sealed("sealed:1:d"), "DE")
VALUES = {"id": ID, "at": AT, "price": Money(995, "EUR"), "to": ADDRESS, "way": "sea", "tags": ["fragile", ""]}
CONTEXT = SerializationContext("titan.parcel", MessageField.VALUE)
TOPIC_RECORD = {"subject.name.strategy": topic_record_subject_name_strategy}
# The same as others read it.
TO = dict(
    zip(("recipient", "street", "city", "postcode", "country"), [*(f"sealed:1:{n}" for n in "abcd"), "DE"], strict=True)
)
READ = VALUES | {"price": {"amount": 995, "currency": "EUR"}, "to": TO}
REFUNDED = READ | {"refund": {"amount": 5, "currency": "EUR"}}
LOST_READ = {"value": {"amount": 1, "currency": "USD"}}
SEEN_READ = {"_empty": False}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    """A history of two versions of an event and one of each of three others, and events of a topic: Sent, Lost, Seen, Sent again."""
    shop = tmp_path_factory.mktemp("schemas")
    with pytest.MonkeyPatch.context() as patch:
        (shop / "common.avsc").write_text((codec.AVRO / "common.avsc").read_text())
        patch.setattr(codec, "AVRO", shop)
        patch.setattr(history, "FILE", shop / "history.jsonl")
        patch.setattr(codec, "_domains", {})
        patch.setattr(codec, "_readers", {})
        patch.setattr(codec, "_locked", history.load)
        types = {
            "id": UUID,
            "at": datetime,
            "price": Money,
            "to": Address,
            "way": Literal["air", "sea"],
            "tags": list[str],
        }

        def lock(domain: str, *records: Any) -> None:
            (shop / f"{domain}.avsc").write_text(json.dumps(records))
            assert cli.main(["lock"]) == 0

        lock("parcel", SENT)
        first = bind("parcel", "Sent", types).encode(VALUES)
        lock("crate", {"type": "record", "name": "Filled", "fields": []})
        lock("parcel", LOST, SEEN, SENT | {"fields": [*SENT["fields"], REFUND]})
        codec._domains.clear()
        codec._readers.clear()
        lost = bind("parcel", "Lost", {"value": Money}).encode({"value": Money(1, "USD")})
        seen = bind("parcel", "Seen", {}).encode({})
        second = bind("parcel", "Sent", types | {"refund": Money | None}).encode(VALUES | {"refund": Money(5, "EUR")})
        yield [first, lost, seen, second]


@pytest.fixture(scope="module")
def url(written: list[bytes]) -> Iterator[str]:
    app = FastAPI()
    app.include_router(router)
    with served(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": url})


@pytest.mark.parametrize("conf", [{}, TOPIC_RECORD], ids=["by default", "TopicRecordNameStrategy"])
def test_the_stock_deserializer_reads_every_generation(
    client: SchemaRegistryClient, written: list[bytes], conf: dict[str, Any]
) -> None:
    read = AvroDeserializer(client, conf=conf)
    assert [read(data, CONTEXT) for data in written] == [READ, LOST_READ, SEEN_READ, REFUNDED]


def test_the_stock_deserializer_reads_the_past_as_the_latest(
    client: SchemaRegistryClient, written: list[bytes]
) -> None:
    """It finds an event's subject by TopicRecordNameStrategy, and that schema reads all versions before."""
    read = AvroDeserializer(client, conf={"use.latest.version": True, **TOPIC_RECORD})
    assert [read(data, CONTEXT) for data in written] == [READ | {"refund": None}, LOST_READ, SEEN_READ, REFUNDED]


def test_a_stock_consumer_reads_a_topic_of_several_events(url: str, written: list[bytes], kafka: Any) -> None:
    topic, servers = f"{kafka.prefix}parcel", {"bootstrap.servers": kafka.bootstrap}
    admin, producer = AdminClient(servers), Producer(servers)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    for data in written:
        producer.produce(topic, data, key=str(ID))
    assert producer.flush(30) == 0
    consumer = DeserializingConsumer(
        {
            **servers,
            "group.id": topic,
            "auto.offset.reset": "earliest",
            "value.deserializer": AvroDeserializer(SchemaRegistryClient({"url": url})),
        }
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        messages = [consumer.poll(30) for _ in written]
        assert [message and message.value() for message in messages] == [READ, LOST_READ, SEEN_READ, REFUNDED]
    finally:
        consumer.close()


def clickhouse(url: str, *queries: str) -> list[list[Any]]:
    """The rows of each query, by a ClickHouse of its own whose registry is at `url`: it would hold this process's interpreter."""
    script = """if True:
        import chdb, json, sys
        server = chdb.connect()  # one for all: `chdb.query` starts one for each
        for query in json.load(sys.stdin):
            print(json.dumps([json.loads(row) for row in str(server.query(query, "JSONEachRow")).splitlines()]))
    """
    settings = f"SETTINGS format_avro_schema_registry_url = '{url}', session_timezone = 'UTC'"
    asked = json.dumps([f"{query} {settings}" for query in queries])
    ran = subprocess.run([sys.executable, "-c", script], input=asked, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def shown(value: Any) -> Any:
    """A value as ClickHouse's JSON has it."""
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S.%f}"
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def test_clickhouse_reads_an_event_and_a_whole_topic(url: str, written: list[bytes], tmp_path: Path) -> None:
    sent, topic = tmp_path / "sent", tmp_path / "topic"
    sent.write_bytes(written[3])
    topic.write_bytes(b"".join(written))
    columns = (
        "id Nullable(UUID), refund Tuple(amount Int64, currency String), value Tuple(amount Int64, currency String)"
    )
    one, kinds, all_ = clickhouse(
        url,
        f"SELECT * FROM file('{sent}', 'AvroConfluent')",
        f"SELECT toTypeName(id) AS id, toTypeName(at) AS at, toTypeName(way) AS way FROM file('{sent}', 'AvroConfluent')",
        # Other events' columns are left out, and those that an event lacks are empty.
        f"SELECT id, value.amount AS value FROM (SELECT * FROM file('{topic}', 'AvroConfluent', '{columns}') "
        "SETTINGS input_format_avro_allow_missing_fields = 1)",
    )
    assert one == [shown(REFUNDED)]
    assert kinds == [{"id": "UUID", "at": "DateTime64(6)", "way": "Enum8('air' = 0, 'sea' = 1)"}]
    sent_id = str(ID)
    assert all_ == [
        {"id": sent_id, "value": 0},
        {"id": None, "value": 1},
        {"id": None, "value": 0},
        {"id": sent_id, "value": 0},
    ]


def sample(tree: Any) -> Any:
    """A value of an Avro type, as fastavro takes and gives it."""
    kind = tree if isinstance(tree, str) else "union" if isinstance(tree, list) else tree["type"]
    match kind, tree.get("logicalType") if isinstance(tree, dict) else None:
        case "union", _:
            return sample(tree[-1])
        case "record", _:
            return {field["name"]: sample(field["type"]) for field in tree["fields"]}
        case "array", _:
            return [sample(tree["items"])] * 2
        case "map", _:
            return {"key": sample(tree["values"])}
        case "enum", _:
            return tree["symbols"][-1]
        case _, "uuid":
            return ID
        case _, "timestamp-micros":
            return AT
        case _, "date":
            return AT.date()
    return {"string": "é", "long": 2**53, "double": 0.5, "boolean": True}[kind]


def test_others_read_every_event_of_ours(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the platform's own history holds, by the stock deserializer and by ClickHouse, event by event and topic by topic."""
    monkeypatch.setattr(history, "FILE", Path(history.__file__).with_name("history.jsonl"))
    read, queries, expected = AvroDeserializer(SchemaRegistryClient({"url": url})), list[str](), list[Any]()
    topics: dict[str, list[bytes]] = {}
    for entry in history.load():
        value, body = sample(entry.tree), BytesIO(b"\0" + entry.id.to_bytes(4))
        body.seek(5)
        schemaless_writer(body, parse_schema(json.loads(entry.text)), value)
        assert read(body.getvalue(), SerializationContext(f"titan.{entry.domain}", MessageField.VALUE)) == value
        topics.setdefault(entry.domain, []).append(body.getvalue())
        file = tmp_path / f"{entry.id}"
        file.write_bytes(body.getvalue())
        queries.append(f"SELECT * FROM file('{file}', 'AvroConfluent')")
        expected.append([shown(value)])
    for domain, events in topics.items():
        (tmp_path / domain).write_bytes(b"".join(events))
        queries.append(
            f"SELECT count() AS n FROM (SELECT * FROM file('{tmp_path / domain}', 'AvroConfluent', 'none Nullable(String)') "
            "SETTINGS input_format_avro_allow_missing_fields = 1)"
        )
        expected.append([{"n": len(events)}])
    assert len(topics) > 4
    assert clickhouse(url, *queries) == expected


def test_what_the_stock_serializer_writes_is_ours(client: SchemaRegistryClient, written: list[bytes]) -> None:
    schema = client.get_latest_version(LOST_SUBJECT).schema
    for conf in ({"auto.register.schemas": False}, {"auto.register.schemas": False, "use.latest.version": True}, {}):
        write = AvroSerializer(client, schema, conf=conf | TOPIC_RECORD)
        lost = write(LOST_READ, CONTEXT)
        assert lost == written[1]
        assert decode("parcel", lost) == ("Lost", {"value": Money(1, "USD")})


def test_the_stock_client_finds_its_way(client: SchemaRegistryClient) -> None:
    assert client.get_subjects() == [CRATE, LOST_SUBJECT, "titan.parcel-titan.parcel.Seen", SUBJECT]
    assert client.get_versions(SUBJECT) == [1, 2]
    assert client.get_versions(LOST_SUBJECT) == [1]
    latest = client.get_latest_version(SUBJECT)
    assert (latest.schema_id, latest.version) == (5, 2)
    assert client.get_version(SUBJECT, 1).schema_id == 1
    assert client.get_schema(5).schema_str == latest.schema.schema_str
    assert client.get_compatibility() == "BACKWARD_TRANSITIVE"
    assert client.get_compatibility(SUBJECT) == "BACKWARD_TRANSITIVE"

    assert latest.schema.schema_str is not None
    spaced = Schema(json.dumps(json.loads(latest.schema.schema_str), indent=2), "AVRO")
    assert client.lookup_schema(SUBJECT, spaced).version == 2
    assert client.register_schema(SUBJECT, spaced) == 5
    assert client.test_compatibility(SUBJECT, latest.schema, "1")
    other = Schema('{"type": "record", "name": "titan.parcel.Other", "fields": []}', "AVRO")
    assert not client.test_compatibility(SUBJECT, other)
    heir = Schema('{"type": "record", "name": "titan.parcel.Other", "aliases": ["Sent"], "fields": []}', "AVRO")
    assert client.test_compatibility(SUBJECT, heir)


NEW_SCHEMA = '{"type": "record", "name": "titan.parcel.New", "fields": []}'
NEW = Schema(NEW_SCHEMA, "AVRO")


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        (lambda c: c.get_schema(99), 404, 40403),
        (lambda c: c.get_versions("nosuch"), 404, 40401),
        (lambda c: c.get_latest_version("nosuch"), 404, 40401),
        (lambda c: c.get_version(SUBJECT, 9), 404, 40402),
        (lambda c: c.lookup_schema(SUBJECT, NEW), 404, 40403),
        (lambda c: c.lookup_schema("nosuch", NEW), 404, 40401),
        (lambda c: c.register_schema(SUBJECT, NEW), 422, 42205),
        (lambda c: c.register_schema("nosuch", NEW), 422, 42205),
        (lambda c: c.lookup_schema(SUBJECT, Schema("{", "AVRO")), 422, 42201),
    ],
)
def test_errors_have_the_codes_that_clients_know(
    client: SchemaRegistryClient, ask: Any, status: int, code: int
) -> None:
    with pytest.raises(SchemaRegistryError) as caught:
        ask(client)
    assert (caught.value.http_status_code, caught.value.error_code) == (status, code)


def test_the_rest_of_the_read_side(url: str) -> None:
    with httpx.Client(base_url=url) as http:

        def get(path: str) -> Any:
            answer = http.get(path)
            assert answer.headers["content-type"] == MEDIA_TYPE
            return answer.json()

        assert get("/subjects?subjectPrefix=titan.c") == [CRATE]
        assert get(f"/subjects/{SUBJECT}/versions/latest")["version"] == 2
        assert get(f"/subjects/{SUBJECT}/versions/-1")["id"] == 5
        schema = get(f"/subjects/{SUBJECT}/versions/2/schema")
        assert (schema["name"], schema["fields"][-1]["name"]) == ("titan.parcel.Sent", "refund")
        assert get("/schemas/ids/5/schema") == schema
        assert get("/schemas/ids/2?fetchMaxId=true")["maxId"] == 5
        assert get(f"/schemas/ids/3?subject={LOST_SUBJECT}") == get("/schemas/ids/3")
        assert get("/schemas/ids/5/subjects") == [SUBJECT]
        assert get("/schemas/ids/5/versions") == [{"subject": SUBJECT, "version": 2}]
        assert [entry["id"] for entry in get("/schemas?latestOnly=true")] == [2, 3, 4, 5]
        assert get("/schemas/types") == ["AVRO"]
        assert get(f"/subjects/{SUBJECT}/versions/1/referencedby") == []
        assert get("/mode") == get(f"/mode/{SUBJECT}") == {"mode": "READONLY"}
        assert get("/config/nosuch")["error_code"] == 40401
        assert get("/config/nosuch?defaultToGlobal=true") == {"compatibilityLevel": "BACKWARD_TRANSITIVE"}
        for version in ("0", "x", "-2", "99999999999999999999", "²"):
            assert get(f"/subjects/{SUBJECT}/versions/{version}")["error_code"] == 42202
        assert get("/schemas/ids/x")["error_code"] == 422
        assert get("/schemas/ids/99999999999999999999")["error_code"] == 40403
        ask = f"/compatibility/subjects/{SUBJECT}/versions?verbose=true"
        answer = http.post(ask, json={"schema": NEW_SCHEMA})
        assert "titan.parcel.Sent is gone" in answer.json()["messages"][0]
        for schema in ('"long"', f"[{NEW_SCHEMA}]", '["null", "long"]'):
            assert http.post(ask, json={"schema": schema}).json()["error_code"] == 42201


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 100_000, 400),
        (b"x" * (BODY_BYTES_MAX + 1), 413),
        (b"[]", 42201),
        (b'{"schema": 1}', 42201),
        (b'{"schema": "long", "schemaType": "JSON"}', 42201),
        (b'{"schema": "\\"Nosuch\\""}', 42201),
        (b'{"schema": "{\\"type\\":\\"record\\",\\"name\\":\\"R\\"}"}', 42201),
        (b'{"schema": "{\\"type\\":\\"record\\",\\"name\\":\\"R\\",\\"fields\\":[1]}"}', 42201),
        (b'{"schema": "\\"long\\""}', 40403),
    ],
)
def test_a_malformed_schema_is_the_callers_fault(url: str, body: bytes, code: int) -> None:
    answer = httpx.post(f"{url}/subjects/{SUBJECT}", content=body)
    assert (answer.status_code, answer.json()["error_code"]) == (int(str(code)[:3]), code)


def test_a_lock_is_seen_without_a_restart(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "history.jsonl"
    copy.write_bytes(history.FILE.read_bytes())
    monkeypatch.setattr(history, "FILE", copy)
    history.append([("titan.parcel-titan.parcel.New", json.loads(NEW_SCHEMA))])
    assert httpx.get(f"{url}/schemas/ids/6/subjects").json() == ["titan.parcel-titan.parcel.New"]


def test_an_external_registry_gets_the_history_and_gives_the_ids(written: list[bytes]) -> None:
    with served(company()) as url:
        ids = external.register(url)
        assert external.register(url) == ids
    assert ids.theirs == {id: 999 + id for id in range(1, 6)}
    for data in written:
        published = ids.published(data)
        assert int.from_bytes(published[1:5]) == 999 + int.from_bytes(data[1:5])
        assert (published[:1], published[5:]) == (b"\0", data[5:])
        assert ids.stored(published) == data
    for wrong in (b"", b"\0\1", written[0][:4], b"\1" + written[0][1:], b"\0\0\0\1\0\0"):
        with pytest.raises(Unreadable, match="not written with a schema of the history"):
            ids.published(wrong)


def test_an_external_registry_that_refuses_or_is_away_is_told(written: list[bytes]) -> None:
    strict = company()
    strict.state.refused.add(CRATE)
    with (
        served(strict) as url,
        pytest.raises(SchemaError, match=r"refused titan\.crate-titan\.crate\.Filled version 1: .*incompatible"),
    ):
        external.register(url)
    with pytest.raises(SchemaError, match=r"the schema registry at 127\.0\.0\.1 cannot be used"):
        external.register(url)
