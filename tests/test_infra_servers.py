"""The four real servers: they answer, keep their data, and go with whoever started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from uuid import uuid4

import clickhouse_connect
import psutil
import psycopg
import pytest
import redis as redis_client
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec
from confluent_kafka.cimpl import NewTopic

from infra import jars, servers
from infra.children import Child
from infra.errors import StackError
from infra.jars import Progress
from infra.kafka import topics
from infra.migrate import migrate
from infra.servers import SERVERS, free_port, port_is_free
from infra.settings import ROOT, Settings
from tests.kernel.servers import Kafka, folder
from tests.test_infra_children import gone, wait_until


@pytest.fixture
def data() -> Iterator[Path]:
    with folder() as made:
        yield made


def test_fresh_corners(postgres: str, redis: str, clickhouse: str) -> None:
    with psycopg.connect(postgres) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        assert str(connection.info.server_version).startswith("18")
    with redis_client.Redis.from_url(redis) as client:
        assert client.dbsize() == 0
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    with clickhouse_connect.get_client(dsn=clickhouse) as client:
        assert client.query("SHOW TABLES").result_rows == []


def test_offsets_of_a_partition_whose_leader_is_being_chosen_are_waited_for(kafka: Kafka) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    new = TopicPartition(f"{kafka.prefix}new", 0)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(topics.offsets, admin, [new], OffsetSpec.latest(), 20)
        admin.create_topics([NewTopic(new.topic, 1, 1)])[new.topic].result(10)
        assert asked.result(20) == {new: 0}
    with pytest.raises(KafkaException, match="No leaders found|UNKNOWN_TOPIC"):
        topics.offsets(admin, [TopicPartition(f"{kafka.prefix}none", 0)], OffsetSpec.latest(), 0.5)


def test_topics_are_made_once_and_kept_for_ever(kafka: Kafka) -> None:
    to = Settings(kafka=kafka.bootstrap, topic_prefix=kafka.prefix, partitions=3)
    names = [f"{kafka.prefix}{name}" for name in ("cart", "cart.dlq", "order", "order.dlq")]
    assert sorted(topics.create(to, ["order", "cart"])) == names
    assert topics.create(to, ["order", "cart"]) == []
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    there = admin.list_topics(timeout=10).topics
    assert {len(there[name].partitions) for name in names} == {3}
    [config] = [f.result() for f in admin.describe_configs([ConfigResource("topic", names[0])]).values()]
    assert config["retention.ms"].value == config["retention.bytes"].value == "-1"
    with pytest.raises(StackError, match="has 3 partitions and TITAN_PARTITIONS is 4"):
        topics.create(to.model_copy(update={"partitions": 4}), ["order"])


@pytest.mark.parametrize("away", ["postgres", "clickhouse"])
def test_no_database_is_one_line(away: str, postgres: str) -> None:
    there = Settings(postgres=postgres, clickhouse="http://me:hunter2@127.0.0.1:9/x")
    if away == "postgres":
        there = Settings(postgres="postgresql://me:hunter2@127.0.0.1:9/x")
    with pytest.raises(StackError, match=r"^can't make the tables: .*127\.0\.0\.1.*refused") as raised:
        migrate(there)
    assert "\n" not in str(raised.value) and "hunter2" not in str(raised.value)


def test_no_broker_is_one_line() -> None:
    nobody = Settings(kafka=f"127.0.0.1:{free_port()}")
    with pytest.raises(StackError, match="can't create topics at 127.0.0.1"):
        topics.create(nobody, ["order"], answer_s=1)


def test_a_misspelt_topic_is_an_error(kafka: Kafka) -> None:
    failed: list[object] = []
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "message.timeout.ms": 3000})
    producer.produce(f"{kafka.prefix}oder", b"x", on_delivery=lambda error, message: failed.append(error))
    producer.flush(10)
    assert len(failed) == 1 and failed[0] is not None


def test_kafka_starts_without_what_makes_it_start_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broker(java: list[str], data: Path, *_: int) -> Child:
        return Child("kafka", ["false"], log=data / "log", ready=lambda: False)

    monkeypatch.setattr(servers, "_broker", broker)
    said: list[str] = []
    servers._train(["java"], tmp_path / "kafka.aot", said.append)
    assert said == ["Kafka starts without that for now: kafka ended while starting: it said nothing"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "is killed"])
def test_what_kafka_prepares_as_it_ends_is_kept_if_it_comes_to_its_end(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broker(java: list[str], data: Path, *_: int) -> Child:
        up, made = data / "up", java[1].partition("=")[2]
        script = f"trap 'echo classes > {made}; {'exit 143' if ends else ':'}' TERM; touch {up}; while :; do sleep 0.02; done"
        return Child("kafka", ["sh", "-c", script], log=data / "log", ready=up.exists)

    monkeypatch.setattr(servers, "_broker", broker)
    if not ends:
        monkeypatch.setattr(servers, "TRAINING_S_MAX", 0.3)
    servers._train(["java"], tmp_path / "kafka.aot", pytest.fail)
    assert [file.read_text() for file in tmp_path.iterdir()] == (["classes\n"] if ends else [])


@pytest.mark.slow
def test_what_is_stored_outlives_a_kill_and_an_orderly_stop(data: Path) -> None:
    """Each server in turn: write, kill -9, read, stop, read. The second start keeps the address."""
    written = uuid4().hex
    for name, make in SERVERS.items():
        child = make(data, 0, lambda line: None)
        child.start()
        child.wait_ready()
        address = child.address
        _write(name, address, written)
        assert child.process is not None
        child.process.kill()
        child.process.wait()
        child.stop()
        if name == "postgres":  # its backends notice that it is gone and end
            wait_until(lambda: not _postgres_backends(data))
        for _ in range(2):
            child = make(data, 0, lambda line: None)
            assert child.address == address
            child.start()
            child.wait_ready()
            assert _read(name, address) == written, name
            child.stop()


@pytest.mark.slow
def test_servers_go_with_a_killed_parent(data: Path) -> None:
    command = [sys.executable, "-m", "infra", "servers", "--data", str(data)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        while not parent.stdout.readline().startswith("ready"):
            assert parent.poll() is None
        assert set(json.loads((data / "servers.json").read_text())) == set(SERVERS)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) >= len(SERVERS)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: all(gone(process.pid) for process in family))


def test_a_port_that_is_taken_is_not_free(data: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not port_is_free(port)
        (data / "ports").mkdir()
        (data / "ports" / "redis").write_text(str(port))
        child = SERVERS["redis"](data, 0, lambda line: None)
        assert not child.address.endswith(f":{port}/0")
    assert port_is_free(port)


def test_the_same_java_is_the_same_in_every_clone(tmp_path: Path) -> None:
    """What was prepared for its Kafka once is used by all; another Java has its own, and one that says nothing of itself too."""
    java = Path(servers.java_path())
    mine, home = servers._build(str(java)), java.resolve().parent.parent
    other = tmp_path / "bin" / "java"
    assert servers._build(str(other)) == str(other)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "modules").symlink_to(home / "lib" / "modules")
    (tmp_path / "release").write_text((home / "release").read_text())
    assert servers._build(str(other)) == mine != str(java)
    (tmp_path / "release").write_text('JAVA_VERSION="99"')
    assert servers._build(str(other)) != mine


def test_kafka_is_prepared_by_one_of_those_that_start_it_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, made = Barrier(2), list[Path]()

    def train(java: list[str], ready_classes: Path, progress: Progress) -> None:
        with suppress(BrokenBarrierError):
            both.wait(0.5)  # the other one would come, too
        made.append(ready_classes)
        ready_classes.touch()

    monkeypatch.setattr(servers, "_train", train)
    monkeypatch.setattr(servers, "cache", lambda: tmp_path)
    monkeypatch.setattr(servers, "kafka_jars", lambda progress: [])
    monkeypatch.setattr(servers, "_version", lambda java: [servers.AOT_JAVA_MIN])
    monkeypatch.setattr(servers, "_broker", lambda java, *of: Child("kafka", java, log=data / "log"))
    with ThreadPoolExecutor(2) as threads:
        started = list(threads.map(lambda _: servers.kafka(data, 1), range(2)))
    [ready_classes] = made
    assert all(f"-XX:AOTCache={ready_classes}" in child.argv for child in started)


def test_what_was_fetched_once_is_found_without_the_client_that_fetches() -> None:
    """It would be a fifth of what every command of the stack takes to begin."""
    jars.kafka_jars()
    code = "import sys, infra.stack; infra.jars.kafka_jars(print); print('jgo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _postgres_backends(data: Path) -> list[int]:
    return [
        p.pid
        for p in psutil.process_iter(["cmdline"])
        if p.info["cmdline"] and str(data) in " ".join(p.info["cmdline"])
    ]


def _write(name: str, address: str, value: str) -> None:
    if name == "postgres":
        with psycopg.connect(address) as connection:
            connection.execute("CREATE TABLE kept (value text)")
            connection.execute("INSERT INTO kept VALUES (%s)", (value,))
            hashed = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = current_user").fetchone()
            assert hashed is not None and hashed[0].startswith("SCRAM-SHA-256$1:")  # else each connection takes long
    elif name == "redis":
        with redis_client.Redis.from_url(address) as client:
            client.set("kept", value)
            assert client.waitaof(1, 0, 5000)[0] == 1
    elif name == "clickhouse":
        with clickhouse_connect.get_client(dsn=address) as client:
            client.command("CREATE TABLE kept (value String) ENGINE = MergeTree ORDER BY value")
            client.insert("kept", [[value]], column_names=["value"])
    else:
        topics.create(Settings(kafka=address, topic_prefix="", partitions=1), ["kept"])
        producer = Producer({"bootstrap.servers": address, "acks": "all"})
        producer.produce("kept", value.encode())
        assert producer.flush(20) == 0


def _read(name: str, address: str) -> str:
    if name == "postgres":
        with psycopg.connect(address) as connection:
            row = connection.execute("SELECT value FROM kept").fetchone()
            assert row is not None
            return str(row[0])
    if name == "redis":
        with redis_client.Redis.from_url(address, decode_responses=True) as client:
            return str(client.get("kept"))
    if name == "clickhouse":
        with clickhouse_connect.get_client(dsn=address) as client:
            return str(client.query("SELECT value FROM kept").result_rows[0][0])
    consumer = Consumer({"bootstrap.servers": address, "group.id": uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe(["kept"])
    message = consumer.poll(30)
    consumer.close()
    assert message is not None and message.error() is None
    return (message.value() or b"").decode()
