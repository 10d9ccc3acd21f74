"""What can't be rebuilt is refused in one line, and the live read models stay as they are."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import psycopg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from infra import cli
from infra.settings import ROOT, Settings, settings
from replay import log, projection
from replay.build import build
from replay.log import ReplayError, spans
from replay.postgres import PostgresShadows
from replay.runs import Runs, fingerprint
from replay.shadow import shadow_of
from tests.kernel.platform import variables
from tests.kernel.servers import Stack, fresh_settings
from tests.projections.kernel.live import count, make_topic, publish
from tests.projections.kernel.purse import DOMAIN, TOO_MUCH, Filled, Log, Opened, purses, totals
from tests.projections.kernel.stores import PURSES, store
from tests.replay.test_rebuild import contents, live, rebuild, traffic

SHADOW = shadow_of(totals)


@pytest.fixture(scope="module")
def here(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A platform with something in its live tables, which every test here leaves as it was."""
    with fresh_settings(stack, tmp_path_factory.mktemp("refused")) as settings:
        make_topic(settings)
        made = Log()
        traffic(made, 100)
        publish(settings, made.rows)
        with store("postgres", settings) as to:
            live(to, settings)
            yield settings


@pytest.fixture(autouse=True)
def untouched(here: Settings) -> Iterator[None]:
    before = contents(here)
    yield
    assert contents(here) == before


def refused(settings: Settings, *argv: str) -> str:
    """The one line that a rebuild ends with."""
    with pytest.raises(ReplayError) as error:
        rebuild(settings, *argv)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_read_model_that_there_is_not(here: Settings) -> None:
    assert refused(here, "purse_s") == "there is no read model 'purse_s'; purses or purse? in postgres"
    assert refused(here, "zzz").startswith("there is no read model 'zzz', only purse, purses, totals")


def test_nothing_asked_for(here: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["purse", "--all"], ["purse", "--workers", "0"]):
        with pytest.raises(SystemExit) as left:
            rebuild(here, *argv)
        assert left.value.code == 2
    assert "0 is not a number from 1 to 64" in capsys.readouterr().err


def test_no_broker(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "ANSWER_S", 1.0)
    gone = here.model_copy(update={"kafka": "127.0.0.1:9"})
    assert refused(gone, "totals").startswith("Kafka at 127.0.0.1:9 does not answer")


def test_a_wrong_dsn(here: Settings) -> None:
    nowhere = here.model_copy(update={"postgres": "postgresql://nobody@127.0.0.1:9/nowhere"})
    assert "connection refused" in refused(nowhere, "totals").lower()
    none = here.model_copy(update={"postgres": here.postgres.rsplit("/", 1)[0] + "/not_there"})
    assert 'database "not_there" does not exist' in refused(none, "totals")


COMMANDS = (
    ("projection", "order_summary"),
    ("projection", "--all", "--dry-run"),
    ("projection", "--list"),
    ("projection", "--clean"),
    ("projection", "order_summary", "--until", "2020-01-01T00:00:00Z"),
    ("projection", "order_summary", "--with", "projections/order.py"),
    ("diff", "order_summary", "--at", "2020-01-01T00:00:00Z", "--at", "now"),
    ("aggregate", "order", "00000000-0000-4000-8000-000000000001"),
    ("aggregate", "order", "00000000-0000-4000-8000-000000000001", "--from", "topic"),
    ("store", "order", "--into", "postgresql://nobody@127.0.0.1:9/nowhere"),
    ("topic", "order"),
    ("verify", "order"),
    ("rule", "order_velocity"),
)
NOBODY = {
    "TITAN_KAFKA": "127.0.0.1:9",
    "TITAN_POSTGRES": "postgresql://nobody@127.0.0.1:9/nowhere",
    "TITAN_REDIS": "redis://127.0.0.1:9/0",
    "TITAN_CLICKHOUSE": "http://127.0.0.1:9/nowhere",
}


@pytest.fixture
def commanded(
    here: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Gives a command in this process, with variables of its environment; answers with its exit code and what it says is wrong."""

    def command(argv: Sequence[str], **given: str) -> tuple[int, str]:
        with monkeypatch.context() as patched:
            for name, value in (variables(here) | given).items():
                patched.setenv(name, value)
            settings.cache_clear()
            capsys.readouterr()
            code = cli.main(["replay", *argv])
            return code, capsys.readouterr().err

    yield command
    settings.cache_clear()


@pytest.mark.parametrize("variable", NOBODY)
def test_a_setting_that_is_nonsense(commanded: Callable[..., tuple[int, str]], variable: str) -> None:
    for argv in COMMANDS:
        code, said = commanded(argv, **{variable: "nonsense"})
        assert code == 1 and said.startswith(f"error: {variable}: write it as ") and said.count("\n") == 1, (argv, said)


@pytest.mark.parametrize("variable", NOBODY)
def test_nobody_is_there(
    commanded: Callable[..., tuple[int, str]], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("log", "topic"):
        monkeypatch.setattr(f"replay.{module}.ANSWER_S", 0.1)
    for argv in COMMANDS:
        code, said = commanded(argv, **{variable: NOBODY[variable]})
        assert (code, said) == (0, "") or (code == 1 and said.startswith("error: ") and said.count("\n") == 1), (
            argv,
            said,
        )


def test_a_time_that_is_none(commanded: Callable[..., tuple[int, str]]) -> None:
    for argv in (
        ("projection", "order_summary", "--until", "yesterday"),
        ("diff", "order_summary", "--at", "yesterday", "--at", "now"),
        ("aggregate", "order", "00000000-0000-4000-8000-000000000001", "--at", "yesterday"),
        ("rule", "order_velocity", "--since", "yesterday"),
        ("rule", "order_velocity", "--until", "yesterday"),
    ):
        assert commanded(argv) == (1, "error: 'yesterday' is no time: write it as 2026-11-01T12:00:00Z\n"), argv


def test_no_topic(here: Settings) -> None:
    assert refused(here.model_copy(update={"topic_prefix": "nowhere."}), "totals").startswith(
        "there is no topic nowhere.pouch"
    )


def test_the_broker_is_gone_midway(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SILENT_S", 0.5)
    longer = [span._replace(end=span.end + 100) for span in spans(here, [DOMAIN])]  # what will not come
    monkeypatch.setattr(log, "spans", lambda *_: longer)
    assert "nothing came from Kafka" in refused(here, "totals")


def test_the_disk_is_full(here: Settings) -> None:
    shadows = PostgresShadows(here)
    with Runs(here.postgres) as runs:
        runs.begin(totals, SHADOW, fingerprint(PURSES, totals))
        shadows.make(SHADOW)
    with psycopg.connect(here.postgres) as connection:  # as Postgres says it
        connection.execute(
            """CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"""
        )
        connection.execute("CREATE TRIGGER f BEFORE INSERT ON totals__rebuild EXECUTE FUNCTION full_disk()")
    assert "No space left on device" in refused(here, "totals")
    with psycopg.connect(here.postgres) as connection:
        connection.execute("DROP FUNCTION full_disk CASCADE")
    projection.main(["--clean", "--sink", "postgres"], [PURSES], here)
    shadows.close()


def test_a_value_that_the_store_does_not_hold(here: Settings) -> None:
    """Its sum is beyond 64 bits: live it would be parked, a rebuild stops at it."""
    own = here.model_copy(update={"topic_prefix": f"{here.topic_prefix}much."})
    make_topic(own)
    made = Log()
    made.add(1, Opened, owner=made.purse(1), currency="EUR")
    made.add(1, Filled, amount=TOO_MUCH)
    made.add(1, Filled, amount=TOO_MUCH)
    publish(own, made.rows)
    there = spans(own, [DOMAIN])
    with Runs(here.postgres) as runs, pytest.raises(ReplayError, match="the store refuses what the events come to"):
        build(own, runs, {PURSES: PURSES.module}, {purses: shadow_of(purses)}, there)
    projection.main(["--clean", "--sink", "postgres"], [PURSES], here)


def test_a_topic_whose_beginning_is_gone(here: Settings) -> None:
    own = here.model_copy(update={"topic_prefix": f"{here.topic_prefix}cut."})
    make_topic(own)
    made = Log()
    traffic(made, 100)
    publish(own, made.rows)
    cut = TopicPartition(own.topic(DOMAIN), 0, 3)
    admin = AdminClient({"bootstrap.servers": own.kafka})
    admin.delete_records([cut])[cut].result(30)
    assert refused(own, "totals").startswith(f"the beginning of {own.topic(DOMAIN)} [0] is gone: it starts at offset 3")


def test_a_topic_that_ends_before_what_is_live(here: Settings) -> None:
    own = here.model_copy(update={"topic_prefix": f"{here.topic_prefix}anew."})
    make_topic(own)
    made = Log()
    traffic(made, 30, 3)
    publish(own, made.rows)
    began = time.monotonic()
    assert "the topic was made anew or cut off. Nothing was changed" in refused(own, "totals")
    assert time.monotonic() - began < 20
    assert count(here, "SELECT count(*) FROM totals__rebuild") == 1  # it waits for another try
    projection.main(["--clean", "--sink", "postgres"], [PURSES], here)


def test_the_command_says_it_in_one_line_and_exits_with_1() -> None:
    command = [sys.executable, "-m", "infra.cli", "replay", "projection", "order_sumary", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: there is no read model 'order_sumary'; order_summary or ")
    assert done.stderr.count("\n") == 1
