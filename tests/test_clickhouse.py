"""The ClickHouse front as its clients see it: the real process, the stock clickhouse-connect, curl, and kill -9."""

from __future__ import annotations

import gzip
import http.client
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
import cramjam
import lz4.frame  # type: ignore[import-untyped]
import psutil
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from infra.children import tie
from infra.clickhouse.statement import Insert, answer_format, outline, split_insert
from infra.servers import free_port
from tests.kernel.platform import wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ADMIN_PASSWORD, ANALYST_PASSWORD = "boss word", "reader: word"
READY_S, STOP_S = 30, 30
ROWS = 200_000
FORBIDDEN, READONLY, DENIED = 403, 164, 497


class Front:
    """One front process on one data folder; `start` after `kill` serves the same data again, on the same port."""

    def __init__(self, data: Path, env: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.data = data
        passwords = {
            "TITAN_CLICKHOUSE_ADMIN_PASSWORD": ADMIN_PASSWORD,
            "TITAN_CLICKHOUSE_ANALYST_PASSWORD": ANALYST_PASSWORD,
        }
        self.env = {**os.environ, **(passwords if env is None else env)}
        self.process: subprocess.Popen[str] | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "infra.clickhouse", "--port", str(self.port), "--data", str(self.data)]

    def start(self) -> Front:
        self.process = subprocess.Popen(
            self.command(), env=self.env, stderr=subprocess.PIPE, text=True, preexec_fn=tie()
        )
        until(lambda: self.pings() or self.process is None or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        return self

    def pings(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2) as answer:
                return bool(answer.read() == b"Ok.\n")
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End it; returns its exit code and what it wrote to stderr."""
        assert self.process is not None and self.process.stderr is not None
        self.process.send_signal(number)
        said = self.process.stderr.read()
        code = self.process.wait(STOP_S)
        self.process = None
        return code, said

    def client(self, user: str = "titan", **named: Any) -> Client:
        password = ADMIN_PASSWORD if user == "titan" else ANALYST_PASSWORD
        return clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, username=user, password=password, **named
        )

    def ask(
        self,
        query: str | bytes | None,
        body: bytes | None = None,
        user: str = "titan",
        method: str | None = None,
        headers: dict[str, str] | None = None,
        **args: Any,
    ) -> tuple[int, Message, bytes]:
        """A bare request; returns status, headers and body, also of an error."""
        password = ADMIN_PASSWORD if user == "titan" else ANALYST_PASSWORD
        token = b64encode(f"{user}:{password}".encode()).decode()
        given = args if query is None else {"query": query, **args}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/?{urlencode(given)}",
            data=body,
            headers={"Authorization": f"Basic {token}", **(headers or {})},
            method=method or ("POST" if body is not None else "GET"),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()


def until(done: Callable[[], object], seconds: float = READY_S) -> None:
    """Wait for a condition."""
    wait_for(done, "what it waits for", seconds)


def first(client: Client, query: str, parameters: dict[str, Any] | None = None) -> tuple[Any, ...]:
    """The only row of an answer."""
    (row,) = client.query(query, parameters).result_rows
    return tuple(row)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("clickhouse")).start()
    try:
        yield front
    finally:
        front.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Front]:
    """A front of one test's own, to be killed."""
    front = Front(tmp_path / "data")
    try:
        yield front
    finally:
        if front.process is not None:
            front.stop(signal.SIGKILL)


@pytest.fixture
def client(front: Front) -> Iterator[Client]:
    with closing(front.client()) as client:
        yield client


@pytest.fixture
def table(client: Client) -> Iterator[str]:
    """An empty table `rows` of (a UInt64, b String), with a window for deduplication."""
    client.command("DROP TABLE IF EXISTS rows")
    client.command(
        "CREATE TABLE rows (a UInt64, b String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    yield "rows"
    client.command("DROP TABLE rows")


# What the stock client does.


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_200_000_rows_are_counted_back_exactly(front: Front, table: str, compress: str | bool) -> None:
    """The client sends several blocks, each a compressed frame of its own."""
    with closing(front.client(compress=compress)) as client:
        summary = client.insert(table, [(at, f"row {at}") for at in range(ROWS)], column_names=["a", "b"])
        assert summary.written_rows == ROWS
        found = client.query(f"SELECT count(), uniqExact(a), max(a), sum(length(b)) FROM {table}").result_rows
    assert found == [(ROWS, ROWS, ROWS - 1, sum(len(f"row {at}") for at in range(ROWS)))]


def test_parameters_are_typed_and_never_sql(client: Client) -> None:
    values = {"n": 7, "s": "it's\t\\\n{x} '; DROP", "l": ["a", "b'"], "none": None}
    query = "SELECT {n:UInt8} + 1, {s:String}, {l:Array(String)}, {none:Nullable(String)}"
    assert first(client, query, values) == (8, values["s"], values["l"], None)
    with pytest.raises(DatabaseError, match="BAD_QUERY_PARAMETER"):
        client.query("SELECT {n:UInt8}", {"n": "seven"})


def test_parameters_too_long_for_a_url_come_as_a_form(client: Client) -> None:
    text = "x'\n" * 40_000
    assert first(client, "SELECT {s:String}", {"s": text}) == (text,)


def test_insert_values_take_parameters(client: Client, table: str) -> None:
    client.command(f"INSERT INTO {table} VALUES ({{a:UInt64}}, {{b:String}})", {"a": 5, "b": "it's; VALUES (6, 'x')"})
    assert client.query(f"SELECT * FROM {table}").result_rows == [(5, "it's; VALUES (6, 'x')")]


def test_raw_inserts(client: Client, table: str) -> None:
    client.raw_insert(table, ["a", "b"], b"1,one\n2,two\n", fmt="CSV")
    packed = zstd.compress(b'{"a": 3, "b": "three"}\n') + zstd.compress(b'{"a": 4, "b": "four"}\n')
    client.raw_insert(table, ["a", "b"], packed, fmt="JSONEachRow", compression="zstd")
    assert first(client, f"SELECT groupArray(a) FROM (SELECT a FROM {table} ORDER BY a)") == ([1, 2, 3, 4],)


def test_streams_are_not_held_in_memory(front: Front, client: Client) -> None:
    """A result of 500 MB comes block by block while the front stays small."""
    assert front.process is not None
    process = psutil.Process(front.process.pid)
    before, most, size = process.memory_info().rss, 0, 0
    query = "SELECT number, repeat('x', 40) FROM numbers(10_000_000)"
    with client.raw_stream(query, fmt="RowBinary", settings={"enable_http_compression": 0}) as stream:
        while piece := stream.read(1 << 20):
            size += len(piece)
            most = max(most, process.memory_info().rss)
    assert size == 10_000_000 * (8 + 1 + 40)
    assert most - before < 150 << 20


def test_an_abandoned_stream_ends_its_query(front: Front, client: Client) -> None:
    running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT number FROM numbers(10%'"
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    headers = {"X-ClickHouse-User": "titan", "X-ClickHouse-Key": ADMIN_PASSWORD}
    connection.request("POST", "/", "SELECT number FROM numbers(10_000_000_000)", headers)
    with connection.getresponse() as answer:
        assert answer.read(4) == b"0\n1\n"
        assert client.command(running) == 1
    connection.close()
    until(lambda: client.command(running) == 0)


def test_errors_carry_clickhouse_codes(front: Front, client: Client) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.query("SELECT nope FROM system.one")
    assert caught.value.code == 47
    for query, code, status in (
        ("SELECT 1 FROM nope", 60, 404),
        ("SELEC 1", 62, 400),
        ("SELECT * FROM nope.t", 81, 404),
        ("SELECT nope(1)", 46, 404),
        ("SELECT toUInt8('x')", 6, 400),
        ("SELECT throwIf(1)", 395, 500),
        ("SELECT 1; SELECT 2", 62, 400),
        ("SELECT sleepEachRow(1) FROM numbers(9) SETTINGS max_execution_time = 1, max_block_size = 1", 159, 408),
        (f"SELECT 1 INTO OUTFILE '{NEVER}'", 358, 500),
        ("SELECT 1 FORMAT Nope", 73, 404),
        ("INSERT INTO FUNCTION null('a UInt8') SELECT a FROM input('a UInt8') FORMAT CSV\n1\n", 48, 501),
        (" -- nothing\n", 62, 400),
    ):
        got, headers, body = front.ask(None, query.encode())
        assert (got, headers["X-ClickHouse-Exception-Code"]) == (status, str(code)), (query, body)
        assert body.startswith(f"Code: {code}. DB::Exception: ".encode()) and body.endswith(b"\n")
    assert front.ask(None, b"SELECT 1", nope=1)[:1] == (404,)
    assert client.command("SELECT 1") == 1


def test_an_error_behind_rows_is_seen(front: Front, client: Client) -> None:
    """The status is already 200 then: the client must fail, not take the rows for all of them."""
    query = (
        "SELECT throwIf(number = 3_000_000) FROM numbers(10_000_000) SETTINGS max_block_size = 65_000, max_threads = 1"
    )
    for settings in ({"enable_http_compression": 0}, {}):
        with (
            pytest.raises((DatabaseError, StreamFailureError), match="throwIf"),
            client.query_rows_stream(query, settings=settings) as rows,
        ):
            for _ in rows:
                pass
    with pytest.raises(http.client.IncompleteRead):
        front.ask(query)


def test_a_failed_insert_says_why_and_leaves_others_alone(client: Client, table: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        client.raw_insert(table, ["a", "b"], b"1,one\nnot a number,two\n", fmt="CSV")
    assert caught.value.code in (6, 27, 72)
    assert client.command(f"SELECT count() FROM {table}") == 0


def test_an_insert_that_the_table_refuses_is_not_acknowledged(client: Client, table: str) -> None:
    """The engine's own stream for inserts answers as if all was well."""
    client.command(f"ALTER TABLE {table} ADD CONSTRAINT few CHECK a < 1000000")
    rows = [(at, "x") for at in range(1_000_001)]
    with pytest.raises(DatabaseError) as caught:
        client.insert(table, rows, column_names=["a", "b"])
    assert caught.value.code == 469
    with pytest.raises(DatabaseError, match="VIOLATED_CONSTRAINT"):
        client.command(f"INSERT INTO {table} VALUES (1000000, 'x')")
    assert client.command(f"SELECT count() FROM {table}") == 0
    client.insert(table, rows[:-1], column_names=["a", "b"])
    assert client.command(f"SELECT count() FROM {table}") == 1_000_000


def test_sessions_keep_settings_database_and_temporary_tables(front: Front) -> None:
    with closing(front.client()) as one, closing(front.client()) as two:
        one.command("CREATE DATABASE IF NOT EXISTS aside")
        one.command("CREATE TEMPORARY TABLE kept (a UInt8)")
        one.command("INSERT INTO kept VALUES (1), (2)")
        one.command("SET max_block_size = 1234")
        assert one.command("SELECT sum(a) FROM kept") == 3
        block = "SELECT getSetting('max_block_size'), currentDatabase()"
        assert one.query(block, settings={"max_block_size": 99}).first_row == (99, "default")
        assert one.query(block).first_row == (1234, "default")
        one.command("USE aside")
        assert one.query(block).first_row == (1234, "aside")
        other: Any = {"session_id": one.get_client_setting("session_id"), "database": "system"}
        assert front.ask(block, **other)[2] == b"1234\tsystem\n"
        assert one.query(block).first_row == (1234, "aside")
        assert two.query("SELECT getSetting('max_block_size') != 1234").first_row == (True,)
        with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
            two.command("SELECT * FROM kept")


def test_a_session_serves_one_request_at_a_time_and_ends(front: Front) -> None:
    slow = threading.Thread(
        target=front.ask, args=("SELECT sleepEachRow(1) FROM numbers(2)",), kwargs={"session_id": "s"}
    )
    slow.start()
    until(lambda: front.ask("SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEach%'")[2] == b"1\n")
    assert front.ask("SELECT 1", session_id="s")[1]["X-ClickHouse-Exception-Code"] == "373"
    slow.join()
    assert front.ask("SELECT 1", session_id="s", session_timeout=0, session_check=1)[0] == 200
    until(
        lambda: front.ask("SELECT 1", session_id="s", session_timeout=0, session_check=1)[1][
            "X-ClickHouse-Exception-Code"
        ]
    )
    assert front.ask("SELECT 1", session_id="s", session_timeout=99_999)[1]["X-ClickHouse-Exception-Code"] == "374"


def test_external_tables(client: Client) -> None:
    external = ExternalData(
        file_name="given", data=b"1\tone\n2\ttwo\n", fmt="TSV", structure=["n UInt8", "word String"]
    )
    query = "SELECT word FROM given WHERE n = {n:UInt8}"
    assert client.query(query, {"n": 2}, external_data=external).result_rows == [("two",)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM given")


# curl, and what other HTTP clients rely on.


def curl(front: Front, *args: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{front.port}/"
    done = subprocess.run(
        [program, "-sS", "-u", f"titan:{ADMIN_PASSWORD}", url, *args], capture_output=True, check=True
    )
    return done.stdout.decode()


def test_curl(front: Front, table: str, tmp_path: Path) -> None:
    assert curl(front, "-d", "SELECT 1") == "1\n"
    assert curl(front, "-G", "--data-urlencode", "query=SELECT 1 AS a FORMAT JSONEachRow") == '{"a":1}\n'
    assert curl(front, "--compressed", "-d", "SELECT number FROM numbers(3)") == "0\n1\n2\n"
    assert curl(front, "-I", "-G", "--data-urlencode", "query=SELECT 1").startswith("HTTP/1.1 200 OK")
    rows = tmp_path / "rows.csv.gz"
    rows.write_bytes(b"".join(gzip.compress(b"%d,x\n" % at) for at in range(300)))
    insert = ["-X", "POST", "--data-binary", f"@{rows}", "-H", "Content-Encoding: gzip", "-G", "--data-urlencode"]
    insert = [*insert[:6], "--url-query", f"query=INSERT INTO {table} FORMAT CSV"]
    assert curl(front, *insert) == ""
    assert curl(front, "-d", f"SELECT count(), sum(a) FROM {table}") == f"300\t{sum(range(300))}\n"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("lz4", lz4.frame.compress),
        ("zstd", zstd.compress),
        ("br", lambda data: bytes(cramjam.brotli.compress(data, level=4))),
    ],
)
def test_every_encoding_both_ways(
    front: Front, client: Client, table: str, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    parts = [b"".join(b"%d,row\n" % at for at in range(first, first + 50_000)) for first in range(0, ROWS, 50_000)]
    body = pack(b"".join(parts)) if encoding in ("br", "deflate") else b"".join(map(pack, parts))
    assert front.ask(f"INSERT INTO {table} FORMAT CSV", body, headers={"Content-Encoding": encoding})[0] == 200
    assert client.command(f"SELECT count() = {ROWS} AND uniqExact(a) = {ROWS} FROM {table}") == 1
    status, headers, answer = front.ask(f"SELECT a FROM {table} ORDER BY a", headers={"Accept-Encoding": encoding})
    unpack: dict[str, Callable[[bytes], bytes]] = {
        "identity": bytes,
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
        "lz4": lz4.frame.decompress,
        "zstd": zstd.decompress,
        "br": lambda data: bytes(cramjam.brotli.decompress(data)),
    }
    assert (status, headers["Content-Encoding"]) == (200, None if encoding == "identity" else encoding)
    assert unpack[encoding](answer) == b"".join(b"%d\n" % at for at in range(ROWS))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd", "br", "nope"])
def test_a_damaged_body_is_an_error_and_no_rows(front: Front, client: Client, table: str, encoding: str) -> None:
    whole = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "lz4": lz4.frame.compress,
        "zstd": zstd.compress,
    }.get(encoding, bytes)(b"1,one\n" * 5000)
    for body in (whole[: len(whole) // 2], b"not packed at all"):
        headers = {"Content-Encoding": encoding}
        assert front.ask(f"INSERT INTO {table} FORMAT CSV", body, headers=headers)[0] >= 400
    assert client.command(f"SELECT count() FROM {table}") == 0


def test_headers(front: Front, table: str) -> None:
    _, headers, body = front.ask("SELECT number AS n FROM numbers(3)", query_id="mine", default_format="JSONCompact")
    assert json.loads(body)["data"] == [[0], [1], [2]] or json.loads(body)["data"] == [["0"], ["1"], ["2"]]
    assert headers["X-ClickHouse-Query-Id"] == "mine" and headers["X-ClickHouse-Format"] == "JSONCompact"
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert json.loads(headers["X-ClickHouse-Summary"])["result_rows"] == "3"
    assert headers["X-ClickHouse-Timezone"] and headers["X-ClickHouse-Server-Display-Name"]
    _, headers, _ = front.ask(None, f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')".encode())
    assert json.loads(headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert front.ask("SELECT currentDatabase()", database="system")[2] == b"system\n"
    assert front.ask("SELECT currentDatabase()", headers={"X-ClickHouse-Database": "system"})[2] == b"system\n"
    assert front.ask("SELECT 1", headers={"X-ClickHouse-Format": "CSVWithNames"})[2] == b'"1"\n1\n'
    assert front.ask(None)[2] == b"Ok.\n"
    assert front.ask("SELECT 1", method="HEAD")[2] == b""


def test_get_only_reads(front: Front, client: Client, table: str) -> None:
    for query in (f"INSERT INTO {table} VALUES (1, 'a')", f"DROP TABLE {table}", f"ALTER TABLE {table} DELETE WHERE 1"):
        assert front.ask(query)[1]["X-ClickHouse-Exception-Code"] == str(READONLY)
        assert front.ask(None, query.encode(), readonly=1)[1]["X-ClickHouse-Exception-Code"] == str(READONLY)
    assert client.command(f"SELECT count() FROM {table}") == 0


def test_query_in_the_url_and_data_in_the_body(front: Front, client: Client, table: str) -> None:
    assert front.ask("SELECT 1 +", b"2")[2] == b"3\n"
    for query, body in (
        (f"INSERT INTO {table} VALUES", b"(1, 'FORMAT CSV'), (2, lower('B'))"),
        (f"INSERT INTO {table} (a, b) FORMAT JSONEachRow", b'{"a": 3, "b": "c"} {"a": 4, "b": "d"}'),
        (f"INSERT INTO {table} FORMAT CSV SETTINGS format_csv_delimiter = ';'", b"5;e\n"),
        (f"INSERT INTO {table} SETTINGS async_insert = 1 FORMAT TSV", b"6\tf"),
        (f"INSERT INTO {table} (a, b) SELECT number, 'g' FROM", b"numbers(7, 1)"),
        (f"/* FORMAT CSV */ INSERT INTO {table} -- VALUES (9)\n (* EXCEPT (b)) VALUES (8)", b""),
    ):
        status, _, answer = front.ask(query, body)
        assert status == 200, answer
    assert client.command(f"SELECT groupConcat(',')(a) FROM (SELECT a FROM {table} ORDER BY a)") == "1,2,3,4,5,6,7,8"


def test_bytes_that_are_no_text(front: Front, client: Client, table: str) -> None:
    odd = bytes(range(1, 256)).replace(b"\\", b"").replace(b"'", b"")
    for user in ("titan", "analyst"):
        assert front.ask(None, b"SELECT '" + odd + b"' FORMAT RawBLOB", user=user)[2] == odd
    assert front.ask(b"SELECT '\xff' FORMAT RawBLOB")[2] == b"\xff"
    assert front.ask("SELECT {x:String}", param_x=b"\xff")[0] == 400
    assert front.ask(None, b"INSERT INTO rows VALUES (1, '" + odd + b"')")[0] == 200
    assert front.ask("SELECT b FROM rows FORMAT RawBLOB")[2] == odd


def test_too_large_a_result_or_query_fails_alone(front: Front, client: Client) -> None:
    """The engine's own limits hold: the query ends with code 241, the process and everybody else go on."""
    for query in (
        "SELECT groupArray(number) FROM numbers(1_000_000_000)",
        "SELECT repeat('x', 100_000) FROM numbers(100_000) FORMAT JSON",
        "SELECT uniqExact(number) FROM numbers(100_000_000) SETTINGS max_memory_usage = 100_000_000",
    ):
        assert front.ask(None, query.encode())[1]["X-ClickHouse-Exception-Code"] == "241", query
        assert client.command("SELECT 1") == 1


def test_an_insert_that_breaks_off_leaves_no_rows_and_no_token(front: Front, client: Client, table: str) -> None:
    query = urlencode({"query": f"INSERT INTO {table} (a) FORMAT CSV", "insert_deduplication_token": "broken"})
    with socket.create_connection(("127.0.0.1", front.port)) as connection:
        head = (
            f"POST /?{query} HTTP/1.1\r\nHost: x\r\nX-ClickHouse-User: titan\r\nX-ClickHouse-Key: {ADMIN_PASSWORD}\r\n"
        )
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b"1\n" * 200_000)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # until the front is done with it
            pass
    assert client.command(f"SELECT count() FROM {table}") == 0
    client.insert(table, [(1,), (2,)], column_names=["a"], settings={"insert_deduplication_token": "broken"})
    assert client.command(f"SELECT count() FROM {table}") == 2


FORMATS = [
    *("Native", "TabSeparated", "TSVWithNames", "TSVWithNamesAndTypes", "CSV", "CSVWithNames", "CSVWithNamesAndTypes"),
    *(
        "RowBinary",
        "RowBinaryWithNamesAndTypes",
        "JSONEachRow",
        "JSONCompactEachRowWithNames",
        "Values",
        "TSKV",
        "Null",
    ),
    *(
        "JSONCompactEachRowWithNamesAndTypes",
        "JSON",
        "JSONCompact",
        "Arrow",
        "Parquet",
        "XML",
        "PrettyCompact",
        "Vertical",
    ),
]


@pytest.mark.parametrize("format", FORMATS)
def test_a_streamed_answer_is_the_whole_one(front: Front, format: str) -> None:
    """Blocks are joined so that nobody can tell: `wait_end_of_query` gives what the engine writes in one piece."""
    for query in (
        'SELECT number AS "a\n""b", toString(number) || \'\n"x\' AS c FROM numbers(150_000)',
        "SELECT number AS a FROM numbers(0)",
        "SELECT number % 3 AS a, count() FROM numbers(10) GROUP BY a WITH TOTALS ORDER BY a",
    ):
        streamed = front.ask(query, default_format=format, output_format_write_statistics=0)
        whole = front.ask(query, default_format=format, output_format_write_statistics=0, wait_end_of_query=1)
        assert streamed[0] == whole[0] == 200
        if format == "Native":
            assert len(streamed[2]) == len(whole[2])
        else:
            assert streamed[2] == whole[2], query


# Who may do what.


def test_credentials(front: Front, tmp_path: Path) -> None:
    def status(headers: dict[str, str], **args: str) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{front.port}/?{urlencode({'query': 'SELECT 1', **args})}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    assert status({"X-ClickHouse-User": "titan", "X-ClickHouse-Key": ADMIN_PASSWORD}) == (200, b"1\n")
    assert status({}, user="analyst", password=ANALYST_PASSWORD) == (200, b"1\n")
    for headers, args in (
        ({}, {}),
        ({"X-ClickHouse-User": "titan"}, {}),
        ({"X-ClickHouse-User": "titan", "X-ClickHouse-Key": ANALYST_PASSWORD}, {}),
        ({"X-ClickHouse-User": "default"}, {}),
        ({"Authorization": "Basic ???"}, {}),
        ({}, {"user": "nobody"}),
    ):
        code, body = status(headers, **args)
        assert code == FORBIDDEN and body.startswith(b"Code: 516. DB::Exception: ")


def test_without_a_password_only_loopback_is_served(tmp_path: Path) -> None:
    front = Front(tmp_path, env={}).start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{front.port}/?query=SELECT+1", timeout=30) as answer:
            assert answer.read() == b"1\n"
    finally:
        assert front.stop() == (0, "")
    done = subprocess.run(
        [*front.command(), "--host", "0.0.0.0"], env=front.env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "ADMIN_PASSWORD" in done.stderr


def test_the_stock_client_works_for_an_analyst(front: Front, client: Client, table: str) -> None:
    client.insert(table, [(1, "a"), (2, "b")], column_names=["a", "b"])
    with closing(front.client("analyst")) as analyst:
        assert analyst.query(f"SELECT sum(a) FROM {table} WHERE b != {{b:String}}", {"b": "a"}).first_row == (2,)
        assert table in str(analyst.command("SHOW TABLES FROM default")).split("\n")
        assert analyst.query(f"EXPLAIN SELECT * FROM {table}").result_rows
        assert [column[0] for column in analyst.query(f"DESCRIBE {table}").result_rows] == ["a", "b"]


SECRET = "/etc/passwd"
NEVER = f"{tempfile.gettempdir()}/titan-never"  # no query makes this file


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO rows VALUES (1, 'a')",
        "INSERT INTO rows SELECT 1, 'a'",
        "/* SELECT */ INSERT INTO rows FORMAT CSV\n1,a",
        "CREATE TABLE mine (a UInt8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE mine (a UInt8)",
        "DROP TABLE rows",
        "TRUNCATE TABLE rows",
        "ALTER TABLE rows DELETE WHERE 1",
        "DELETE FROM rows WHERE 1",
        "OPTIMIZE TABLE rows",
        "RENAME TABLE rows TO other",
        "CREATE USER me",
        "GRANT ALL ON *.* TO default",
        "SET ROLE titan_admin",
        "SET ROLE ALL",
        "SET DEFAULT ROLE titan_admin TO default",
        "SET readonly = 0",
        "SET max_memory_usage = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_memory_usage = 0",
        "SELECT * FROM (SELECT 1 SETTINGS max_memory_usage = 0)",
        "SELECT 1; DROP TABLE rows",
        "SYSTEM SHUTDOWN",
        "SYSTEM STOP MERGES",
        "KILL QUERY WHERE 1",
        f"BACKUP TABLE rows TO File('{NEVER}')",
        f"SELECT 1 INTO OUTFILE '{NEVER}'",
        f"SELECT * FROM file('{SECRET}', LineAsString)",
        f"SELECT file('{SECRET}')",
        f"SELECT `fil\\x65`('{SECRET}')",
        f"SELECT /* */ \"file\" /* */ ('{SECRET}')",
        f"SELECT arrayMap(file, ['{SECRET}'])",
        f"SELECT * APPLY file FROM (SELECT '{SECRET}')",
        f"SELECT * APPLY(x -> file(x)) FROM (SELECT '{SECRET}')",
        f"WITH file AS f SELECT arrayMap(f, ['{SECRET}'])",
        f"SELECT * FROM default.`{SECRET}`",
        f"SELECT 1 FORMAT Template SETTINGS format_template_resultset = '{SECRET}'",
        f"SELECT * FROM eval('SELECT file(''{SECRET}'')')",
        "SELECT * FROM url('http://127.0.0.1:1/', LineAsString)",
        "SELECT * FROM s3('http://127.0.0.1:9000/bucket/x.tsv', 'k', 's', TSV, 'a String')",
        "SELECT * FROM remote('127.0.0.1', system.one)",
        "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
        "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
        f"SELECT * FROM sqlite('{NEVER}', 'a')",
        "SELECT * FROM executable('id', TSV, 'a String')",
        "SELECT * FROM Python(users)",
        f"INSERT INTO FUNCTION file('{NEVER}', TSV, 'a UInt8') VALUES (1)",
        "EXECUTE AS default SELECT 1",
        "DESCRIBE TABLE file('/etc/passwd')",
        "EXPLAIN SELECT * FROM file('/etc/passwd', LineAsString)",
    ],
)
def test_an_analyst_only_reads_tables(front: Front, client: Client, table: str, query: str) -> None:
    sessions: tuple[dict[str, Any], ...] = ({}, {"session_id": "shared"})
    for args in sessions:
        status, headers, body = front.ask(None, query.encode(), user="analyst", **args)
        assert status >= 400, body
        assert headers["X-ClickHouse-Exception-Code"] in ("60", "62", "164", "358", "497"), body
        assert b"root:" not in body
    assert client.command(f"SELECT count() FROM {table}") == 0
    assert not Path(NEVER).exists()
    assert front.ask("SELECT currentRoles()", user="analyst")[2] == b"['titan_analyst']\n"


def test_an_analyst_has_no_way_round_by_arguments(front: Front, table: str) -> None:
    def code(query: str, **args: Any) -> str | None:
        return front.ask(None, query.encode(), user="analyst", **args)[1]["X-ClickHouse-Exception-Code"]

    for setting, value in (
        ("dialect", "kusto"),
        ("allow_ddl", 1),
        ("format_template_resultset", SECRET),
        ("format_schema", SECRET),
        ("output_format_schema", NEVER),
        ("additional_result_filter", f"file('{SECRET}') != ''"),
        ("allow_experimental_eval_table_function", 1),
    ):
        assert code("SELECT 1", **{setting: value}) == str(READONLY), setting
    assert code("SELECT 1", max_memory_usage=0) == code("SELECT 1", max_memory_usage=1 << 40) == "452"
    assert code("SELECT 1", max_execution_time="1 SETTINGS readonly=0") == "452"
    assert code("SELECT 1", role="titan_admin") == "512"
    assert code("SELECT 1", **{"max_threads = 1, readonly": 0}) == str(READONLY)
    assert code("SELECT arrayMap({f:Identifier}, ['/etc/passwd'])", param_f="file") == str(DENIED)
    assert code("SELECT arrayMap({f:Identifier}, ['/etc/passwd'])", param_f="fil\\x65") == str(DENIED)
    assert front.ask("SELECT getSetting('readonly')", user="analyst", readonly=0)[2] == b"1\n"
    assert (
        front.ask("SELECT getSetting('max_block_size')", user="analyst", max_block_size=99, max_threads=1)[2] == b"99\n"
    )
    boundary = "----b"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\n1\n\r\n--{boundary}--\r\n'
    form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    for structure in ("a UInt8 DEFAULT length(file('/etc/passwd'))", "a UInt8) ENGINE = Memory AS SELECT (1"):
        _, _, body = front.ask("SELECT * FROM x", part.encode(), user="analyst", headers=form, x_structure=structure)
        assert b"root:" not in body
    assert front.ask("SELECT * FROM x", part.encode(), user="analyst", headers=form, x_structure="a UInt8")[2] == b"1\n"


def test_no_user_reads_local_files(front: Front) -> None:
    for query in (
        f"SELECT * FROM file('{SECRET}', LineAsString)",
        f"INSERT INTO FUNCTION file('{NEVER}', TSV, 'a UInt8') VALUES (1)",
    ):
        assert front.ask(None, query.encode())[1]["X-ClickHouse-Exception-Code"] == str(DENIED)
    assert front.ask(None, b"INSERT INTO FUNCTION null('a UInt8') FROM INFILE '/etc/passwd' FORMAT CSV")[0] == 500


# Many at once, and processes that end.


def count_and_insert(port: int, number: int, rows: int) -> tuple[int, int]:
    """In a process of its own: insert in batches, read between them; returns rows acknowledged and errors seen."""
    client = clickhouse_connect.get_client(host="127.0.0.1", port=port, username="titan", password=ADMIN_PASSWORD)
    errors = acknowledged = 0
    for first in range(0, rows, rows // 5):
        batch = [(number * rows + at, "x") for at in range(first, first + rows // 5)]
        acknowledged += client.insert("rows", batch, column_names=["a", "b"]).written_rows
        try:
            client.query("SELECT throwIf(count() >= 0) FROM rows")
        except DatabaseError:
            errors += 1
        assert client.command(f"SELECT countIf(intDiv(a, {rows}) = {number}) FROM rows") == acknowledged
    return acknowledged, errors


@pytest.mark.slow
def test_several_processes_at_once(front: Front, client: Client, table: str) -> None:
    workers, rows = 4, 10_000
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        done = pool.starmap(count_and_insert, [(front.port, number, rows) for number in range(workers)])
    assert done == [(rows, 5)] * workers
    assert client.query(f"SELECT count(), uniqExact(a) FROM {table}").first_row == (workers * rows, workers * rows)


def test_slow_analytics_hold_up_nobody(front: Front, client: Client, table: str) -> None:
    """More heavy queries than analysts have threads: inserts go on, and the queries can all be cancelled."""
    heavy = "SELECT count() FROM numbers(1_000_000_000_000) WHERE NOT ignore(sipHash64(number))"
    connections = []
    for _ in range(10):
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
        token = b64encode(f"analyst:{ANALYST_PASSWORD}".encode()).decode()
        connection.request("POST", "/?max_threads=1", heavy, {"Authorization": f"Basic {token}"})
        connections.append(connection)
    running = "SELECT count() FROM system.processes WHERE query LIKE 'SELECT count() FROM numbers(1_000%'"
    until(lambda: client.command(running) == 6)
    begun = time.monotonic()
    for at in range(10):
        client.insert(table, [(at, "x")], column_names=["a", "b"])
    assert time.monotonic() - begun < 10
    for connection in connections:
        connection.close()
    until(lambda: client.command(running) == 0)
    assert front.ask("SELECT 1", user="analyst")[2] == b"1\n"


def test_a_repeated_block_is_dropped_across_restarts(own: Front) -> None:
    """What a sink relies on: the token makes an INSERT happen once, also in the tables that views fill."""
    own.start()
    with closing(own.client()) as client:
        client.command(
            "CREATE TABLE sales (k UInt8, v UInt64) ENGINE = MergeTree ORDER BY k "
            "SETTINGS non_replicated_deduplication_window = 100"
        )
        client.command(
            "CREATE TABLE totals (k UInt8, v UInt64) ENGINE = SummingMergeTree ORDER BY k "
            "SETTINGS non_replicated_deduplication_window = 100"
        )
        client.command("CREATE MATERIALIZED VIEW adding TO totals AS SELECT k, sum(v) AS v FROM sales GROUP BY k")

    def insert(token: str) -> tuple[int, int]:
        with closing(own.client()) as client:
            settings = {"insert_deduplication_token": token}
            client.insert("sales", [(1, 10), (2, 20)], column_names=["k", "v"], settings=settings)
            rows, total = first(client, "SELECT (SELECT count() FROM sales), (SELECT sum(v) FROM totals)")
            return int(rows), int(total)

    assert insert("orders/0/17") == insert("orders/0/17") == (2, 30)
    assert insert("orders/0/18") == (4, 60)  # the same rows with another token are other rows
    own.stop(signal.SIGKILL)
    own.start()
    assert insert("orders/0/17") == insert("orders/0/18") == (4, 60)
    own.stop()
    own.start()
    assert insert("orders/0/18") == (4, 60)
    assert insert("orders/0/19") == (6, 90)


def test_a_kill_between_token_and_rows_loses_nothing(own: Front) -> None:
    """The engine logs a token just before its part takes its name. Killed there, the repeated insert must not be dropped."""
    own.start()

    def insert(n: int) -> int:
        with closing(own.client()) as client:
            client.insert("once", [(n,)], column_names=["n"], settings={"insert_deduplication_token": f"t{n}"})
            return int(str(client.command("SELECT count() FROM once")))

    with closing(own.client()) as client:
        client.command(
            "CREATE TABLE once (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100"
        )
    assert [insert(1), insert(2), insert(2)] == [1, 2, 2]
    own.stop(signal.SIGKILL)
    (part,) = own.data.glob("store/store/*/*/all_2_2_0")
    part.rename(part.with_name("tmp_insert_all_2_2_0"))  # what such a kill leaves
    own.start()
    assert [insert(1), insert(2), insert(2), insert(3)] == [1, 2, 2, 3]
    own.stop(signal.SIGKILL)
    own.start()
    assert [insert(2), insert(3)] == [3, 3]


def test_what_was_acknowledged_survives_kill_9(own: Front) -> None:
    """A writer inserts numbered rows one by one until the front dies: each acknowledged one is there afterwards."""
    own.start()
    with closing(own.client()) as client:
        client.command("CREATE TABLE log (n UInt64) ENGINE = MergeTree ORDER BY n")
        assert (
            client.query(
                "SELECT name FROM system.merge_tree_settings WHERE name LIKE 'fsync%' AND value = '1'"
            ).row_count
            == 2
        )
    acknowledged: list[int] = []

    def write() -> None:
        with closing(own.client()) as client:
            for n in range(100_000):
                try:
                    client.command(f"INSERT INTO log VALUES ({n})")
                except Exception:
                    return
                acknowledged.append(n)

    writer = threading.Thread(target=write)
    writer.start()
    until(lambda: len(acknowledged) >= 50)
    own.stop(signal.SIGKILL)
    writer.join()
    own.start()
    with closing(own.client()) as client:
        found = {row[0] for row in client.query("SELECT n FROM log").result_rows}
    assert set(acknowledged) <= found <= {*acknowledged, len(acknowledged)}


def test_sigterm_lets_a_running_query_end(own: Front) -> None:
    own.start()
    answer: list[bytes] = []
    slow = threading.Thread(target=lambda: answer.append(own.ask("SELECT sum(sleepEachRow(1)) FROM numbers(2)")[2]))
    slow.start()
    until(lambda: own.ask("SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(sleep%'")[2] == b"1\n")
    assert own.stop() == (0, "")
    slow.join()
    assert answer == [b"0\n"]


def test_a_folder_or_port_in_use_is_one_line(own: Front) -> None:
    own.start()
    second = Front(own.data)
    done = subprocess.run(second.command(), env=own.env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "another process" in done.stderr
    done = subprocess.run(
        [*own.command(), "--data", f"{own.data}2"], env=own.env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and f"{own.port}" in done.stderr


def test_it_takes_little_when_idle(own: Front) -> None:
    own.start()
    assert own.process is not None
    process = psutil.Process(own.process.pid)
    with closing(own.client()) as client:
        client.command("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        for at in range(20):
            client.insert("t", [(at,)], column_names=["a"])
    before = process.cpu_times()
    begun = time.monotonic()
    until(lambda: time.monotonic() - begun > 5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.25  # 5 % of a core, mostly noise
    assert process.memory_info().rss < 320 << 20


# Where an insert's data begins.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"INSERT INTO t FORMAT CSV\n1,2", Insert("INSERT INTO t ", "", "CSV", 25)),
        (b"INSERT INTO t FORMAT CSV  \r\n\n1", Insert("INSERT INTO t ", "", "CSV", 28)),
        (
            b'insert into t (a, `FORMAT x`, "VALUES") values (1)',
            Insert('insert into t (a, `FORMAT x`, "VALUES") ', "", "Values", 46),
        ),
        (
            b"INSERT INTO t SETTINGS a = 'FORMAT CSV' FORMAT TSV 1",
            Insert("INSERT INTO t ", "a = 'FORMAT CSV'", "TSV", 51),
        ),
        (
            b"INSERT INTO t FORMAT TSV SETTINGS a = 1, b = 'x'\n1",
            Insert("INSERT INTO t ", "a = 1, b = 'x'", "TSV", 49),
        ),
        (
            b"INSERT INTO FUNCTION null('a UInt8') VALUES (1)",
            Insert("INSERT INTO FUNCTION null('a UInt8') ", "", "Values", 43),
        ),
        (
            b"INSERT INTO settings SETTINGS a = 1 FORMAT TSV SETTINGS b = 2\n1",
            Insert("INSERT INTO settings ", "a = 1, b = 2", "TSV", 62),
        ),
        (b"INSERT INTO t SELECT 'FORMAT CSV' FORMAT CSV", None),
        (b"INSERT INTO t (a) WITH 1 AS x SELECT x", None),
        (b"INSERT INTO t (SELECT 1)", None),
        (b"INSERT INTO t (a) (SELECT 1 FORMAT CSV)", None),
        (b"SELECT 1 FORMAT CSV", None),
        (b"INSERT INTO t", None),
    ],
)
def test_an_insert_is_split_where_its_data_begins(text: bytes, expected: Insert | None) -> None:
    assert split_insert(text, whole=True) == expected
    for size in range(len(text)):  # however little has arrived, the answer is right or "not yet"
        assert split_insert(text[:size], whole=False) in (False, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"SELECT 1 FORMAT JSON", "JSON"),
        (b"select 1 format JSON;", "JSON"),
        (b"SELECT 1 FORMAT JSON SETTINGS a = 1, b = 'x'", "JSON"),
        (b"SELECT 1 SETTINGS a = 1 FORMAT JSON -- FORMAT CSV", "JSON"),
        (b"SELECT 'FORMAT CSV'", None),
        (b"SELECT a AS format FROM t", None),
        (b"SELECT format FROM (SELECT 1 AS format FORMAT CSV)", None),
        (b"SELECT a format, b", None),
        (b"SELECT format('{}', a) FROM format WHERE x", None),
    ],
)
def test_the_format_that_a_query_asks_for(text: bytes, expected: str | None) -> None:
    assert answer_format(outline(text)) == expected


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_starts_again_whatever_is_in_its_default_database(own: Front, number: int) -> None:
    """Nothing, a table in another database, a table of its own, a table that was dropped again."""
    steps = [
        "SELECT 1",
        "CREATE DATABASE shop",
        "CREATE TABLE shop.one (n UInt64) ENGINE = MergeTree ORDER BY n",
        "CREATE TABLE two (n UInt64) ENGINE = MergeTree ORDER BY n",
        "DROP TABLE two",
        "SELECT 1",
    ]
    for step in steps:
        own.start()
        with closing(own.client()) as client:
            client.command(step)
        own.stop(number)
    own.start()
    with closing(own.client()) as client:
        assert client.command("SELECT count() FROM shop.one") == 0
