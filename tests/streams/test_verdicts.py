"""Fraud rules as a platform runs them: from a request over HTTP to a case in the read model, by Faust processes that share, are killed
and come back; a third party's rules with them; and afterwards a back-test says hit for hit what stands.

Orders and payments come with times of their own, late ones too, so that nothing has to be waited for.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition

from aggregates.fraud import Case
from aggregates.kernel import Commands, Money, Origin, Sealed, Store, clock
from aggregates.kernel.money import Line
from aggregates.order import Order
from aggregates.payment import Payment
from infra.settings import ROOT, Settings
from replay import cli
from replay import rule as replaying
from replay import verdicts as verdicts_again
from replay.log import ReplayError
from schemas import Address
from streams.kernel.rules.found import discover
from streams.kernel.rules.rule import Rule
from tests.kernel.connections import connected
from tests.kernel.pipeline import newest_by_partition, reached
from tests.kernel.platform import Platform, wait_for
from tests.kernel.servers import Stack, fresh_settings

WAIT_S = 90
OURS = ["address_velocity", "card_testing", "order_velocity", "unusual_amount"]
THEIRS = '''"""Somebody's own rules."""

from aggregates.order import Placed
from streams.kernel.rules import Hit, rule


@rule(version=7, window_s=60, key=lambda e: e.id)
def large_order(e: Placed, window) -> Hit | None:
    return Hit(e.customer, 50, f"an order of {e.total}") if e.total >= 1_000_000 else None


@rule(version=1, window_s=60, key=lambda e: e.id)
def poison(e: Placed, window) -> Hit | None:
    raise ArithmeticError("poison")
'''
POINTS = "[titan.fraud_rules]\nlarge = someones_rules\nbroken = someones_broken_rules\nmissing = nowhere:rule\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with somebody's package, as pip would have installed it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "someones_rules.py").write_text(THEIRS)
    (folder / "someones_broken_rules.py").write_text("raise RuntimeError('broken')\n")
    info = folder / "someones_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    return folder


@pytest.fixture(scope="module")
def platform(stack: Stack, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    path = os.pathsep.join([str(package), str(ROOT)])
    with (
        fresh_settings(stack, tmp_path_factory.mktemp("rules")) as settings,
        Platform(settings, PYTHONPATH=path) as made,
    ):
        made.table["other"] = made.table["faust"]._replace(name="other")
        made.start("relay", "worker", "api", "faust")
        yield made


def until(platform: Platform, condition: Callable[[], object], what: str) -> None:
    try:
        wait_for(condition, what, WAIT_S)
    except AssertionError as error:
        raise AssertionError(
            "\n".join([str(error), *(f"{n}: {platform.log(n)[-5000:]}" for n in platform.children)])
        ) from error


def query(platform: Platform, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(platform.settings.postgres) as connection:
        return connection.execute(statement.encode(), values or None).fetchall()


def test_what_somebody_orders_over_http_becomes_a_case_that_an_analyst_reviews(platform: Platform) -> None:
    ada = uuid4()
    address = {
        "recipient": "Ada",
        "street": "12 St James's Square",
        "city": "London",
        "postcode": "SW1Y 4JH",
        "country": "GB",
    }
    with platform.client("service", uuid4()) as shop, platform.client("analyst", uuid4()) as analyst:

        def ok(answer: Any) -> Any:
            assert answer.status_code < 300, answer.text
            return answer.json()

        traces = {uuid4().hex for _ in range(6)}
        for n, trace in enumerate(traces):
            headers = {"Idempotency-Key": uuid4().hex, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            ok(shop.post("/payments", headers=headers, json={
                "order": str(uuid4()), "customer": str(ada), "amount": 100 + n, "currency": "EUR", "method": f"tok_visa{n}",
            }))  # fmt: skip
        for n in range(9):
            line = {"sku": "mug", "product": str(uuid4()), "title": "A mug", "quantity": 1, "unit_price": 550}
            written = address | {
                "street": ("12 St. James's SQUARE", address["street"])[n % 2],
                "recipient": f"Person {n}",
            }
            ok(
                shop.post(
                    "/orders", json={"customer": str(uuid4()), "currency": "EUR", "lines": [line], "address": written}
                )
            )

        def cases(**wanted: Any) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = ok(analyst.get("/fraud", params=wanted))["items"]
            return found

        until(platform, lambda: cases(rule="card_testing", subject=str(ada)), "card testing is a case")
        until(platform, lambda: cases(rule="address_velocity"), "nine orders to one address are a case")
        [case] = cases(rule="card_testing")
        assert "6 payments" in case["why"] and "6 different cards" in case["why"]
        [other] = cases(rule="address_velocity")
        assert other["why"] == "9 orders of 9 accounts to one address within an hour, over 4950 EUR"
        [raised] = ok(analyst.get(f"/fraud/{case['id']}/events"))["items"]
        assert (raised["type"], raised["actor"]) == ("fraud.Raised", "rule:card_testing@1")
        assert raised["correlation"] in traces, "the payment's"
        receipt = ok(analyst.post(f"/fraud/{case['id']}/confirm", json={"reason": "the bank says so"}))
        shown = ok(analyst.get(f"/fraud/{case['id']}", params={"after": receipt["position"]}))
        assert (shown["verdict"], shown["stands"]) == ("confirmed", True)
        assert shop.get("/fraud").status_code == 403
    kept = query(platform, "SELECT count(*) FROM rule_events WHERE rule = 'address_velocity@1' AND key ~ 'james'")
    assert kept == [(0,)]  # a digest, and nothing that says where


READ = "SELECT partition, notification_id FROM processor_positions WHERE processor = %s AND topic = %s"
SHOWN = (
    "SELECT partition, notification_id FROM projection_positions WHERE projection = 'fraud_cases' AND topic = 'fraud'"
)


def sealed(text: str) -> Sealed:
    return Sealed(f"sealed:1:{text}")


async def shopping(settings: Settings, dice: Random, rounds: int) -> None:
    """Payments and orders of few accounts, at times that jump back and forth within hours: late, tied and out of order."""
    accounts = [UUID(int=n) for n in range(1, 5)]
    back = timedelta(0)
    before = clock.set_clock(lambda: clock.wall() - back)
    try:
        async with Store.open(settings.postgres) as store:
            commands = store.commands(Origin("user:test"))
            for _ in range(rounds):
                back = timedelta(seconds=dice.choice([0, 10, 300, 590, 610, 3600, 3590, 86_400]) + dice.random())
                by, amount = dice.choice(accounts), dice.choice([100, 300, 301, 900, 50_000, 1_000_000])
                if dice.random() < 0.5:
                    made = await commands.open(Payment, uuid4(), by, Money(amount, "EUR"), f"tok_{dice.randrange(9)}")
                    if dice.random() < 0.5:
                        back = timedelta(seconds=dice.choice([0, 599, 700]))
                        await commands.tell(made.id, Payment.declined, "no", "No.")
                else:
                    await order(commands, by, amount)
    finally:
        clock.set_clock(before)


async def order(commands: Commands, by: UUID, amount: int) -> None:
    line = Line("mug", uuid4(), "A mug", 1, amount, 0, 0, 0, "main")
    home = Address(sealed("a"), sealed("b"), sealed("c"), sealed("d"), "GB")
    await commands.open(Order.place, by, "EUR", [line], home, clock.now())


async def ordering(settings: Settings, by: UUID, amount: int, ago_s: float) -> None:
    """One order of somebody's, so long ago."""
    before = clock.set_clock(lambda: clock.wall() - timedelta(seconds=ago_s))
    try:
        async with Store.open(settings.postgres) as store:
            await order(store.commands(Origin("user:test")), by, amount)
    finally:
        clock.set_clock(before)


def standing(platform: Platform) -> dict[tuple[str, UUID], tuple[UUID, int, str]]:
    """What stands of titan.fraud in the read model."""
    rows = query(platform, "SELECT rule, cause, subject, score, why FROM fraud_cases WHERE stands")
    return {(rule, cause): (subject, score, why) for rule, cause, subject, score, why in rows}


def judged(platform: Platform, name: str) -> dict[tuple[str, UUID], tuple[UUID, int, str]]:
    """What the rule's host says."""
    said = "SELECT event_id, hit FROM rule_verdicts WHERE hit IS NOT NULL AND rule LIKE %s"
    return {
        (name, id): (UUID(hit["subject"]), hit["score"], hit["why"]) for id, hit in query(platform, said, f"{name}@%")
    }


def back_tested(platform: Platform, rule: Rule[Any]) -> dict[tuple[str, UUID], tuple[UUID, int, str]]:
    """What a back-test says."""
    spans = replaying.span_of(platform.settings, rule, None, None)
    hits = asyncio.run(replaying.run(platform.settings, rule, spans)).hits
    return {(rule.name, one.event_id): (one.hit.subject, one.hit.score, one.hit.why) for one in hits}


def caught_up(platform: Platform, *theirs: Rule[Any]) -> bool:
    """Rules have read all there is, titan.fraud knows it, and the read model shows it: each of them in each partition."""
    of = platform.settings

    newest = {domain: newest_by_partition(of, domain, of.partitions) for domain in ("order", "payment")}
    for rule in (*discover(), *theirs):
        for domain in rule.domains:
            if not reached(newest[domain], dict(query(platform, READ, f"rule.{rule.id}", domain))):
                return False
    if query(platform, "SELECT 1 FROM rule_verdicts WHERE told < revision LIMIT 1"):
        return False
    return reached(newest_by_partition(of, "fraud", of.partitions), dict(query(platform, SHOWN)))


@pytest.mark.slow
def test_two_share_the_rules_one_is_killed_and_what_stands_is_what_the_back_test_says(platform: Platform) -> None:
    dice = Random(5)

    def working(name: str) -> bool:
        said = [line["event"] for line in platform.lines(name)]
        shares = [words for words in said if words.startswith("rule.order_velocity@1: ") and "partitions" in words]
        return bool(shares) and shares[-1].endswith(" 2 partitions")

    platform.start("other")
    asyncio.run(shopping(platform.settings, dice, 60))
    until(platform, lambda: working("faust") and working("other"), "both have their share")
    for victim in ("faust", "other"):
        verdicts = len(query(platform, "SELECT 1 FROM rule_verdicts"))
        asyncio.run(shopping(platform.settings, dice, 80))
        until(platform, lambda: len(query(platform, "SELECT 1 FROM rule_verdicts")) > verdicts, "verdicts come")  # noqa: B023
        platform.kill(victim)
        asyncio.run(shopping(platform.settings, dice, 40))
        if victim == "faust":
            platform.start(victim)
    # An order is far above all before it, until a larger one, that was on its way for long, turns out to have been before it.
    eve = UUID(int=5)
    for ago_s in range(900, 400, -100):
        asyncio.run(ordering(platform.settings, eve, 100, ago_s))
    unusual = "SELECT why FROM fraud_cases WHERE stands AND rule = 'unusual_amount' AND subject = %s"
    asyncio.run(ordering(platform.settings, eve, 100_000, 0))
    until(platform, lambda: query(platform, unusual, eve), "it is a hit")
    asyncio.run(ordering(platform.settings, eve, 900_000, 60))
    until(
        platform,
        lambda: ["900000" in why for (why,) in query(platform, unusual, eve)] == [True],
        "the later one alone is",
    )
    until(platform, lambda: caught_up(platform), "all is read, told and shown")
    stands = standing(platform)
    rules = {rule.name: rule for rule in discover()}
    assert sorted(rules) == OURS
    for name in OURS:
        says = back_tested(platform, rules[name])
        assert judged(platform, name) == says, f"{name}, its host"
        assert {key: hit for key, hit in stands.items() if key[0] == name} == says, f"{name}, the read model"
    assert {rule for rule, _ in stands} >= {"card_testing", "order_velocity", "unusual_amount"}
    # Each verdict is one event: as many as there were revisions told at the most, each of a case once.
    events = query(platform, "SELECT originator_id, event_type FROM fraud_events WHERE actor LIKE 'rule:%%'")
    assert len([1 for _, kind in events if kind == "fraud.Raised"]) == len({id for id, _ in events})
    [[told]] = query(platform, "SELECT sum(told) FROM rule_verdicts")
    assert len(events) <= told
    assert (
        query(platform, "SELECT 1 FROM parked WHERE processor LIKE 'rule.%%@1' AND processor <> 'rule.poison@1'") == []
    )
    # What was told is known again from the cases alone, revisions and all, when the rules' own tables are lost.
    said = "SELECT rule, domain, position, event_id, event_type, id, at, hit, revision, told FROM rule_verdicts ORDER BY 1, 2, 3"
    with psycopg.connect(platform.settings.postgres) as connection:
        cases = {id for (id,) in connection.execute("SELECT DISTINCT originator_id FROM fraud_events")}
        before = connection.execute(said.encode()).fetchall()
        connection.execute("DELETE FROM rule_verdicts")
        verdicts_again.resume(connection)
        assert connection.execute(said.encode()).fetchall() == [row for row in before if case_of(row) in cases]
        connection.rollback()
    assert any(revision > 1 for *_, revision, _ in before) and any(hit is None for *_, hit, _, _ in before)


def case_of(row: Sequence[Any]) -> UUID:
    rule, version = row[0].split("@")
    return Case.id_of(rule, int(version), row[3])


def test_somebodys_rule_runs_beside_ours_and_what_is_wrong_with_others_stops_none(
    platform: Platform, package: Path
) -> None:
    large = query(platform, "SELECT count(*) FROM order_events WHERE event_type = 'order.Placed'")
    assert large[0][0] > 0
    until(platform, lambda: any(rule == "large_order" for rule, _ in standing(platform)), "somebody's rule has hits")
    logs = platform.log("faust") + platform.log("other")
    assert "ALARM: titan.fraud_rules: broken = someones_broken_rules has no rules to run: RuntimeError: broken" in logs
    assert "ALARM: titan.fraud_rules: missing = nowhere:rule has no rules to run" in logs
    assert "ALARM: rule poison@1 is suspended" in logs
    [[parked]] = query(platform, "SELECT count(*) FROM parked WHERE processor = 'rule.poison@1'")
    assert parked >= 19
    rule = replaying.chosen("large_order", package / "someones_rules.py")
    until(platform, lambda: caught_up(platform, rule), "all is read, told and shown")
    mine = {key: hit for key, hit in standing(platform).items() if key[0] == "large_order"}
    assert mine == back_tested(platform, rule)


def test_rules_are_found_by_entry_points(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert [rule.name for rule in discover()] == OURS
    monkeypatch.syspath_prepend(str(package))
    assert [rule.id for rule in discover()] == ["address_velocity@1", "card_testing@1", "large_order@7", "order_velocity@1", "poison@1",
                                                "unusual_amount@1"]  # fmt: skip
    (package / "someones_rules-1.0.dist-info" / "entry_points.txt").write_text(POINTS + "again = someones_clash\n")
    (package / "someones_clash.py").write_text(THEIRS.replace("large_order", "card_testing"))
    caplog.clear()
    assert [rule.version for rule in discover() if rule.name == "card_testing"] == [1]
    assert "ALARM: titan.fraud_rules: again = someones_clash: there is a rule card_testing already" in caplog.text


# The command.


def ends(settings: Settings) -> dict[str, int]:
    """How many records each topic has, and each table of the store events: whatever leaves a back-test shows here."""
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": uuid4().hex})
    found: dict[str, int] = {}
    for name, topic in consumer.list_topics(timeout=10).topics.items():
        if name.startswith(settings.topic_prefix):
            found[name] = sum(
                consumer.get_watermark_offsets(TopicPartition(name, n), timeout=10)[1] for n in topic.partitions
            )
    consumer.close()
    with psycopg.connect(settings.postgres) as connection:
        for table in (
            "rule_events",
            "rule_verdicts",
            "rule_starts",
            "processor_positions",
            "parked",
            "fraud_events",
            "follower_positions",
        ):
            [[found[table]]] = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchall()
    return found


def test_the_command_tells_people_and_machines_and_leaves_everything_alone(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    until(platform, lambda: caught_up(platform), "all is read")
    monkeypatch.setattr(replaying, "settings", lambda: platform.settings)
    before = ends(platform.settings)
    assert cli.main(["rule", "order_velocity"]) == 0
    told = capsys.readouterr().out
    assert "rule order_velocity, version 1, from the beginning to now" in told
    assert "orders of one account within an hour" in told

    assert cli.main(["rule", "order_velocity", "--json", "--hits", "--examples", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    result = lines[-1]
    hits = [line for line in lines if "why" in line]
    stands = {cause for rule, cause in standing(platform) if rule == "order_velocity"}
    assert {UUID(one["event"]) for one in hits} == stands
    assert result["hits"] == len(hits) and len(result["examples"]) == 2
    assert 0 < result["hit_rate"] == round(len(hits) / result["judged"], 6) < 1

    # A part of time: the same hits, those of that time.
    times = sorted(one["at"] for one in hits)
    since, until_ = times[len(times) // 3], times[2 * len(times) // 3]
    assert cli.main(["rule", "order_velocity", "--json", "--hits", "--since", since, "--until", until_]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    part = [line for line in lines if "why" in line]
    assert part == [one for one in hits if since <= one["at"] <= until_]
    assert lines[-1]["judged"] < result["judged"]

    mine = tmp_path / "mine.py"
    mine.write_text(THEIRS)
    assert cli.main(["rule", "poison", "--with", str(mine), "--json"]) == 1
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["errors"] == told["judged"] > 0 and "ArithmeticError: poison" in told["error"] and told["hits"] == 0
    assert cli.main(["rule", "large_order", "--with", str(mine)]) == 0
    assert "an order of 1000000" in capsys.readouterr().out
    assert ends(platform.settings) == before


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["card_test"], "there is no rule card_test; did you mean card_testing"),
        (["nonsense"], "there is no rule nonsense; there are: address_velocity, card_testing"),
        ([], "say which rule, one of: address_velocity"),
        (["card_testing", "--since", "2999-01-01T00:00:00Z"], "2999-01-01T00:00:00+00:00 is in the future"),
        (["card_testing", "--until", "2999-01-01T00:00:00Z"], "is in the future"),
        (["card_testing", "--since", "2026-01-02T00:00:00Z", "--until", "2026-01-01T00:00:00Z"], "is after --until"),
        (["mine", "--with", "nowhere.py"], "nowhere.py is no Python file"),
        (["mine", "--with", "EMPTY"], "has no function under @rule"),
        (["mine", "--with", "WRONG"], "can't be loaded: SyntaxError"),
        (["mine", "--with", "THEIRS"], "there is no rule mine in"),
    ],
)
def test_bad_input_is_one_clear_line(
    argv: list[str], why: str, platform: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("EMPTY", "x = 1\n"), ("WRONG", "def\n"), ("THEIRS", THEIRS)):
        (tmp_path / f"{name}.py").write_text(text)
        argv = [str(tmp_path / f"{name}.py") if one == name else one for one in argv]
    monkeypatch.setattr(replaying, "settings", lambda: platform.settings)
    with pytest.raises(ReplayError, match=".*") as raised:
        cli.main(["rule", *argv])
    assert why in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T00:00:00"])
def test_a_moment_that_is_none(moment: str) -> None:
    with pytest.raises(ReplayError, match=f"{moment}.* (is no time|needs its zone): write it as 2026-"):
        cli.main(["rule", "card_testing", "--since", moment])


def test_a_broker_that_is_away_is_one_clear_line(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "settings", lambda: platform.settings.model_copy(update={"kafka": "127.0.0.1:9"}))
    monkeypatch.setattr("replay.log.ANSWER_S", 1.0)
    with pytest.raises(ReplayError, match="does not answer"):
        cli.main(["rule", "card_testing"])
