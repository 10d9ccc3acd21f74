"""The registry, asked by somebody else's client over HTTP; and a registry of the company's own."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from schemas import Address, Money, SchemaError, Sealed, Unreadable, bind, cli, codec, decode, external, history
from schemas.registry import BODY_BYTES_MAX, MEDIA_TYPE, router

ID, AT = UUID("0b9ff4ef-9f5b-4a6b-9d0b-1a2b3c4d5e6f"), datetime(2026, 11, 24, 12, 0, 0, 123456, UTC)
SUBJECT = "titan.parcel-value"
SENT = {
    "type": "record",
    "name": "Sent",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "price", "type": "titan.common.Money"},
        {"name": "refund", "type": ["null", "titan.common.Money"], "default": None},
        {"name": "to", "type": "titan.common.Address"},
    ],
}
LOST = {"type": "record", "name": "Lost", "fields": [{"name": "value", "type": "titan.common.Money"}]}
ADDRESS = Address(Sealed("sealed:1:a"), Sealed("sealed:1:b"), Sealed("sealed:1:c"), Sealed("sealed:1:d"), "DE")
VALUES = {"id": ID, "at": AT, "price": Money(995, "EUR"), "refund": None, "to": ADDRESS}
CONTEXT = SerializationContext("titan.parcel", MessageField.VALUE)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app on a free port, by a real server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[bytes]]:
    """A history of two versions of a domain and one of another, and events written with each version."""
    shop = tmp_path_factory.mktemp("schemas")
    with pytest.MonkeyPatch.context() as patch:
        (shop / "common.avsc").write_text((codec.AVRO / "common.avsc").read_text())
        patch.setattr(codec, "AVRO", shop)
        patch.setattr(history, "FILE", shop / "history.jsonl")
        patch.setattr(codec, "_domains", {})
        patch.setattr(codec, "_readers", {})
        patch.setattr(codec, "_locked", history.load)
        types = {"id": UUID, "at": datetime, "price": Money, "refund": Money | None, "to": Address}

        def lock(domain: str, *records: Any) -> None:
            (shop / f"{domain}.avsc").write_text(json.dumps(records))
            assert cli.main(["lock"]) == 0

        lock("parcel", SENT)
        first = bind("parcel", "Sent", types).encode(VALUES)
        lock("crate", {"type": "record", "name": "Filled", "fields": []})
        lock("parcel", LOST, SENT)
        codec._domains.clear()
        codec._readers.clear()
        lost = bind("parcel", "Lost", {"value": Money}).encode({"value": Money(1, "USD")})
        second = bind("parcel", "Sent", types).encode(VALUES | {"refund": Money(5, "EUR")})
        yield [first, lost, second]


@pytest.fixture(scope="module")
def url(written: list[bytes]) -> Iterator[str]:
    app = FastAPI()
    app.include_router(router)
    with served(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": url})


def test_the_stock_deserializer_reads_every_generation(client: SchemaRegistryClient, written: list[bytes]) -> None:
    read = AvroDeserializer(client, return_record_name=True)
    money = {"amount": 995, "currency": "EUR"}
    to = {
        "recipient": "sealed:1:a",
        "street": "sealed:1:b",
        "city": "sealed:1:c",
        "postcode": "sealed:1:d",
        "country": "DE",
    }
    sent = {"id": ID, "at": AT, "price": money, "refund": None, "to": to}
    assert read(written[0], CONTEXT)[1] == sent
    assert read(written[1], CONTEXT) == ("titan.parcel.Lost", {"value": {"amount": 1, "currency": "USD"}})
    name, second = read(written[2], CONTEXT)
    assert (name, second["id"], second["at"]) == ("titan.parcel.Sent", ID, AT)
    assert {"amount": 5, "currency": "EUR"} in (second["refund"], second["refund"][1])


def test_what_the_stock_serializer_writes_is_ours(client: SchemaRegistryClient, written: list[bytes]) -> None:
    conf = {"auto.register.schemas": False, "use.latest.version": True}
    write = AvroSerializer(client, conf=conf)
    lost = write(("titan.parcel.Lost", {"value": {"amount": 1, "currency": "USD"}}), CONTEXT)
    assert lost == written[1]
    assert decode("parcel", lost) == ("Lost", {"value": Money(1, "USD")})


def test_the_stock_client_finds_its_way(client: SchemaRegistryClient) -> None:
    assert client.get_subjects() == ["titan.crate-value", SUBJECT]
    assert client.get_versions(SUBJECT) == [1, 2]
    latest = client.get_latest_version(SUBJECT)
    assert (latest.schema_id, latest.version) == (3, 2)
    assert client.get_version(SUBJECT, 1).schema_id == 1
    assert client.get_schema(3).schema_str == latest.schema.schema_str
    assert client.get_compatibility() == "BACKWARD_TRANSITIVE"
    assert client.get_compatibility(SUBJECT) == "BACKWARD_TRANSITIVE"

    assert latest.schema.schema_str is not None
    spaced = Schema(json.dumps(json.loads(latest.schema.schema_str), indent=2), "AVRO")
    assert client.lookup_schema(SUBJECT, spaced).version == 2
    assert client.register_schema(SUBJECT, spaced) == 3
    assert client.test_compatibility(SUBJECT, latest.schema, "1")
    other = Schema('[{"type": "record", "name": "titan.parcel.Other", "fields": []}]', "AVRO")
    assert not client.test_compatibility(SUBJECT, other)


NEW_SCHEMA = '[{"type": "record", "name": "titan.parcel.New", "fields": []}]'
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

        assert get("/subjects?subjectPrefix=titan.c") == ["titan.crate-value"]
        assert get(f"/subjects/{SUBJECT}/versions/latest")["version"] == 2
        assert get(f"/subjects/{SUBJECT}/versions/-1")["id"] == 3
        schema = get(f"/subjects/{SUBJECT}/versions/2/schema")
        assert [record["name"] for record in schema] == ["titan.parcel.Lost", "titan.parcel.Sent"]
        assert get("/schemas/ids/3/schema") == schema
        assert get("/schemas/ids/2?fetchMaxId=true")["maxId"] == 3
        assert get("/schemas/ids/3/subjects") == [SUBJECT]
        assert get("/schemas/ids/3/versions") == [{"subject": SUBJECT, "version": 2}]
        assert [entry["id"] for entry in get("/schemas?latestOnly=true")] == [2, 3]
        assert get("/schemas/types") == ["AVRO"]
        assert get(f"/subjects/{SUBJECT}/versions/1/referencedby") == []
        assert get("/mode") == get(f"/mode/{SUBJECT}") == {"mode": "READONLY"}
        assert get("/config/nosuch")["error_code"] == 40401
        assert get("/config/nosuch?defaultToGlobal=true") == {"compatibilityLevel": "BACKWARD_TRANSITIVE"}
        for version in ("0", "x", "-2", "99999999999999999999", "²"):
            assert get(f"/subjects/{SUBJECT}/versions/{version}")["error_code"] == 42202
        assert get("/schemas/ids/x")["error_code"] == 422
        assert get("/schemas/ids/99999999999999999999")["error_code"] == 40403
        answer = http.post(f"/compatibility/subjects/{SUBJECT}/versions?verbose=true", json={"schema": NEW_SCHEMA})
        assert "titan.parcel.Sent is gone" in answer.json()["messages"][0]


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
    history.append([("titan.new-value", json.loads(NEW_SCHEMA))])
    assert httpx.get(f"{url}/schemas/ids/4/subjects").json() == ["titan.new-value"]


@pytest.fixture
def company() -> FastAPI:
    """A registry of somebody else: it gives ids of its own, and refuses one subject."""
    app, ids = FastAPI(), dict[tuple[str, str], int]()
    app.state.strict = False

    @app.post("/subjects/{subject}/versions")
    async def register(subject: str, request: Request) -> Any:
        asked = await request.json()
        if subject == "titan.crate-value" and app.state.strict:
            return JSONResponse({"error_code": 409, "message": "incompatible with an earlier schema"}, 409)
        return {"id": ids.setdefault((subject, asked["schema"]), 1000 + len(ids))}

    return app


def test_an_external_registry_gets_the_history_and_gives_the_ids(company: FastAPI, written: list[bytes]) -> None:
    with served(company) as url:
        ids = external.register(url)
        assert external.register(url) == ids
    assert ids.theirs == {1: 1000, 2: 1001, 3: 1002}
    for data in written:
        published = ids.published(data)
        assert int.from_bytes(published[1:5]) == 999 + int.from_bytes(data[1:5])
        assert (published[:1], published[5:]) == (b"\0", data[5:])
        assert ids.stored(published) == data
    for wrong in (b"", b"\1" + written[0][1:], b"\0\0\0\1\0\0"):
        with pytest.raises(Unreadable, match="not written with a schema of the history"):
            ids.published(wrong)


def test_an_external_registry_that_refuses_or_is_away_is_told(company: FastAPI, written: list[bytes]) -> None:
    company.state.strict = True
    with (
        served(company) as url,
        pytest.raises(SchemaError, match=r"refused titan\.crate-value version 1: .*incompatible"),
    ):
        external.register(url)
    with pytest.raises(SchemaError, match=r"the schema registry at 127\.0\.0\.1 cannot be used"):
        external.register(url)
