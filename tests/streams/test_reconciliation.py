"""Reconciliation end to end: a gateway's process that errs in its report, the store, the read model, the daily run, the command."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

import streams.reconciliation
from aggregates.kernel import Money, Recorded, wire
from aggregates.kernel.migrate import migrate
from aggregates.payment import Difference, Payment, Reconciliation, ReportDue, Requested, Routed
from infra.reconcile import main
from infra.servers import free_port
from projections.kernel.clauses import PROJECTIONS
from projections.payment import differences, reconciliations
from streams.gateways.interface import calls, fact, open_gateway
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from tests.kernel.gateway import environment, gateway_settings
from tests.kernel.gateway_sites import Site, site
from tests.kernel.paying import EUR, Desk, at_desk
from tests.kernel.topic import Live, rows_in, settings_of, stored

ERRORS = ("omitted", "doubled", "amount", "currency", "fee", "unknown")
GATEWAYS = ("test", "stripe", "adyen")
TERMS = Terms(fee_bp=140, fee_fixed={"EUR": 25}, settles_days=0)


class Office:
    """Payments captured today at a gateway of its own, and their read model."""

    def __init__(self, settings: GatewaySettings, live: Live, there: Site) -> None:
        self.settings, self.live, self.there = settings, live, there
        self.name = there.name
        self.fed = 0

    def follow(self) -> None:
        """The read model has all that is stored."""
        rows = stored(self.settings.postgres, "payment", self.fed)
        if rows:
            self.fed = rows[-1].notification_id
            self.live.feed(rows)

    async def react(self, desk: Desk) -> None:
        """What payments ask for is done at the gateway, and what it tells is recorded."""
        await desk.react()
        gateway = open_gateway(self.name, self.settings)
        for headers, body in self.there.webhooks():
            notice = gateway.notice(headers.get, body, datetime.now(UTC))
            if notice is not None:
                await desk.commands.tell_all(calls(self.name, notice.payment, notice.facts))
        await gateway.close()

    async def captured(self, desk: Desk, *amounts: Money) -> list[tuple[UUID, UUID]]:
        """Payments and the captures of theirs."""
        good = self.there.cards["good"]
        made = [(await desk.pay(good, one.amount, one.currency), uuid4(), one) for one in amounts]
        await self.react(desk)
        for id, capture, amount in made:
            await desk.commands.tell(id, Payment.capture, capture, amount)
        await self.react(desk)
        return [(id, capture) for id, capture, _ in made]

    async def refunded(self, desk: Desk, id: UUID, amount: Money) -> UUID:
        await desk.commands.tell(id, Payment.refund, refund := uuid4(), amount)
        await self.react(desk)
        return refund

    async def reversed(self, desk: Desk, payment: UUID, operation: UUID) -> None:
        """The bank takes something back, and the gateway says so."""
        self.there.reverse(payment, operation)
        await self.react(desk)
        gateway = open_gateway(self.name, self.settings)
        known = await gateway.lookup(await desk.payment(payment))
        await desk.commands.tell_all(calls(self.name, payment, known))
        await gateway.close()

    async def reconciled(self, desk: Desk, days: int = 2) -> list[Reconciliation]:
        """The days from today on, as they are compared by themselves once each is over. The read model has none of it."""
        await handle(desk)
        desk.later += until_midnight() + timedelta(hours=6)
        found = []
        for n in range(days):
            await desk.timers.fire_due()
            await handle(desk)
            day = datetime.now(UTC).date() + timedelta(days=n)
            found.append(await desk.store.load(Reconciliation, Reconciliation.id_of(self.name, day)))
            desk.later += timedelta(days=1)
        return found


def euros(amount: int) -> Money:
    return Money(amount, EUR)


@pytest.fixture(params=GATEWAYS)
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with site(request.param, tmp_path, TERMS) as found:
        yield found


@pytest.fixture
def terms() -> Terms:
    return TERMS


@pytest.fixture
def office(
    there: Site, terms: Terms, postgres: str, redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Office]:
    plain = settings_of(postgres, redis, tmp_path).model_dump(exclude_unset=True, exclude={"data"})
    fields = {name: getattr(there.settings, name) for name in there.settings.model_fields_set}
    settings = GatewaySettings(**{**fields, **plain, "gateways": {there.name: terms}})
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(streams.reconciliation, "OPENED", set())
    migrate(postgres, ["payment"])
    live = Live(settings, [PROJECTIONS["projections.payment"]], sinks=("postgres",))
    yield Office(settings, live, there)
    live.close()


async def handle(desk: Desk) -> None:
    """What the process of reactors does for reconciliation."""
    reactors: dict[type, Any] = {
        Requested: streams.reconciliation.open_day,
        Routed: streams.reconciliation.open_day,
        ReportDue: streams.reconciliation.fetch,
    }
    for row in stored(desk.dsn, "payment"):
        recorded: Recorded[Any] = wire.recorded("payment", row)
        if reactor := reactors.get(type(recorded.event)):
            await reactor.call(recorded, desk.store.commands(desk.origin))


def until_midnight() -> timedelta:
    now = datetime.now(UTC)
    return datetime.combine(now.date() + timedelta(days=1), time(), UTC) - now


def test_a_day_is_reconciled_by_itself_and_again_by_hand(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    today = datetime.now(UTC).date()

    async def story() -> int:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            made = await office.captured(desk, *[euros(1000)] * (len(ERRORS) + 2))
            await office.refunded(desk, made[0][0], euros(300))
            wrong = {error: capture for error, (_, capture) in zip(ERRORS, made[1:], strict=False)}
            for error, capture in wrong.items():
                office.there.err(capture, error)
            days = await office.reconciled(desk)
            for _ in range(2):  # delivered again: the same result is no news
                await handle(desk)
            days = [await desk.store.load(Reconciliation, day.id) for day in days]
            found = [one for day in days for one in day.found]  # of both: late in the evening some are the next day's
            assert Counter(one.kind for one in found) == Counter(
                {"missing_there": 2, "missing_here": 1, "duplicate": 1, "amount": 1, "currency": 1, "fee": 1}
            )
            assert [day.runs for day in days] == [1, 1] and days[
                0
            ].agree == 4  # the doubled one agrees once, the refund too
            by_kind: dict[str, Difference] = {one.kind: one for one in found}
            for error in ("amount", "currency", "fee"):
                assert by_kind[error].operation == wrong[error]
            assert {one.operation for one in found if one.kind == "missing_there"} == {
                wrong["omitted"],
                wrong["unknown"],
            }
            assert by_kind["amount"].ours.startswith("capture of 1000 EUR, fee 39")
            assert by_kind["amount"].theirs.startswith("capture of 1001 EUR")
            office.follow()
            return len(days[0].found)

    differing = asyncio.run(story())
    id = Reconciliation.id_of(office.name, today)
    row = rows_in(office.settings, reconciliations)[id,]
    assert (row["status"], row["differences"], row["agree"], row["run"]) == ("compared", differing, 4, 1)
    shown = [one for one in rows_in(office.settings, differences).values() if one["reconciliation"] == id]
    assert {one["run"] for one in shown} == {1} and len(shown) == differing
    assert (
        main(["--gateway", office.name, "--day", today.isoformat(), "--json"]) == 2
    )  # its day is not over by this clock
    assert "the day is not over" in capsys.readouterr().err


def test_every_currency_agrees_to_the_unit(office: Office) -> None:
    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            amounts = [
                Money(5_000, "JPY"),
                Money(12_340, "KWD"),
                Money(1, "EUR") if office.name != "stripe" else euros(51),
            ]
            made = await office.captured(desk, *amounts)
            await office.refunded(desk, made[0][0], Money(999, "JPY"))
            odd = await office.refunded(desk, made[1][0], Money(2_340, "KWD"))
            office.there.err(odd, "amount")
            days = await office.reconciled(desk)
            assert sum(day.agree for day in days) == 4
            [one] = [one for day in days for one in day.found]
            by = 10 if office.name == "stripe" else 1  # Stripe's dinars end in a zero
            assert one.ours.startswith("refund of 2340 KWD") and one.operation == odd
            assert one.theirs.startswith((f"refund of {2_340 - by} KWD", f"refund of {2_340 + by} KWD"))

    asyncio.run(story())


@pytest.mark.parametrize("terms", [TERMS.model_copy(update={"settles_days": 1})])
def test_what_settles_a_day_later_is_neither_lost_nor_told_of(office: Office, terms: Terms) -> None:
    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            made = await office.captured(desk, *[euros(1000)] * 3)
            refund = await office.refunded(desk, made[0][0], euros(400))
            for operation, error in ((made[1][1], "next_day"), (refund, "next_day"), (made[2][1], "omitted")):
                office.there.err(operation, error)
            days = await office.reconciled(desk, 4)
            assert [day.agree for day in days] == [1, 2, 0, 0]
            [one] = [one for day in days for one in day.found]
            assert (one.kind, one.operation) == ("missing_there", made[2][1])

    asyncio.run(story())


def test_what_a_bank_took_back_is_two_rows_or_none(office: Office) -> None:
    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            made = await office.captured(desk, *[euros(1000)] * 3)
            refunds = [await office.refunded(desk, id, euros(300)) for id, _ in made[:2]]
            back = [*zip((id for id, _ in made), refunds, strict=False)]
            if office.name != "stripe":  # a card's captures are final there
                back.append(made[2])
            for payment, operation in back:
                await office.reversed(desk, payment, operation)
            office.there.err(refunds[1], "omitted")  # of what was taken back at once there may be no row at all
            days = await office.reconciled(desk)
            assert [one for day in days for one in day.found] == []
            assert sum(day.agree for day in days) == (3 if office.name == "stripe" else 4) + 2

    asyncio.run(story())


@pytest.mark.parametrize("there", ["stripe", "adyen"], indirect=True)
def test_what_was_taken_back_and_nobody_told_is_heard_of_from_the_report(office: Office) -> None:
    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            [(id, _)] = await office.captured(desk, euros(1000))
            refund = await office.refunded(desk, id, euros(300))
            office.there.reverse(id, refund)
            assert office.there.webhooks()  # they are lost
            days = await office.reconciled(desk)
            assert [(one.kind, one.operation) for day in days for one in day.found] == [("missing_here", refund)]
            assert (await desk.payment(id)).refunds[refund].state == "reversed"
            assert (await desk.kinds(id))[-1] == "RefundReversed"
            for _ in range(4):
                await desk.timers.fire_due()
                await handle(desk)
                desk.later += timedelta(days=1)
            days = [await desk.store.load(Reconciliation, day.id) for day in days]
            assert [day.differences for day in days] == [0, 0] and sum(day.agree for day in days) == 3

    asyncio.run(story())


@pytest.mark.parametrize("there", ["adyen"], indirect=True)
def test_what_is_heard_of_after_the_report_agrees_a_day_later(office: Office) -> None:
    """The second look replaces the first, and there is no third."""

    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            id = await desk.pay(office.there.cards["good"])
            await office.react(desk)
            other = await desk.pay(office.there.cards["good"])
            await office.react(desk)
            capture, unheard = uuid4(), uuid4()
            await desk.commands.tell(id, Payment.capture, capture, euros(1000))
            await office.react(desk)
            gateway = open_gateway(office.name, office.settings)
            of_other = await desk.payment(other)
            of_other.capture(unheard, euros(1000))
            said = await gateway.capture(of_other, unheard, euros(1000))
            await gateway.close()
            today, [day, *_] = datetime.now(UTC).date(), await office.reconciled(desk, 1)
            assert day.day == today.isoformat() and [one.kind for one in day.found] == ["missing_here"]
            told = said or [fact(Payment.captured, unheard, euros(1000))]  # Adyen's webhook
            await desk.commands.tell(other, Payment.capture, unheard, euros(1000))
            await desk.commands.tell_all(calls(office.name, other, [one for one in told if unheard in one.args]))
            for _ in range(3):
                await desk.timers.fire_due()
                await handle(desk)
                desk.later += timedelta(days=1)
            day = await desk.store.load(Reconciliation, day.id)
            assert (day.runs, day.agree, day.differences, day.found) == (2, 2, 0, [])
            office.follow()
            row = rows_in(office.settings, reconciliations)[day.id,]
            assert (row["run"], row["agree"], row["differences"]) == (2, 2, 0)
            assert not [one for one in rows_in(office.settings, differences).values() if one["run"] == 2]

    asyncio.run(story())


def test_several_captures_of_a_payment_are_told_apart(office: Office) -> None:
    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            id = await desk.pay(office.there.cards["good"])
            await office.react(desk)
            captures = {uuid4(): amount for amount in (300, 300, 150)}
            for capture, amount in captures.items():
                await desk.commands.tell(id, Payment.capture, capture, euros(amount))
                await office.react(desk)
            office.there.err([*captures][2], "omitted")
            days = await office.reconciled(desk)
            [one] = [one for day in days for one in day.found]
            assert sum(day.agree for day in days) == 2
            assert (one.kind, one.operation) == ("missing_there", [*captures][2])

    asyncio.run(story())


def test_a_day_without_payments_and_a_gateway_that_is_not_there(
    office: Office, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--gateway", office.name, "--day", "2026-01-02"]
    for _ in range(2):
        assert main(given) == 0
        assert "0 agree, 0 differences" in capsys.readouterr().out
    assert main(["--gateway", "nobody", "--day", "2026-01-02"]) == 2
    assert capsys.readouterr().err == "error: there is no gateway nobody\n"


def test_a_report_that_cannot_be_had_or_read_is_one_line(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--gateway", office.name, "--day", "2026-01-02"]
    file = tmp_path / "report"
    for content in (b"id\n", b"\xff\xfe", b'a,"b\n', b'{"id": 1}\n'):
        file.write_bytes(content)
        assert main([*given, "--report", str(file)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and told.count("\n") == 1 and len(told) < 400
    assert main([*given, "--report", str(tmp_path / "none.csv")]) == 2
    nowhere = f"http://127.0.0.1:{free_port()}"
    for name in ("TEST_GATEWAY", "STRIPE_URL", "ADYEN_REPORTS_URL"):
        monkeypatch.setenv(f"TITAN_{name}", nowhere)
    capsys.readouterr()
    assert main(given) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and ("not reached" in told or "no answer" in told)


def test_a_report_out_of_a_file(office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if office.name != "test":
        return  # theirs: tests/streams/test_settlement.py
    past, file = date(2026, 1, 2), tmp_path / "report.csv"
    payment = uuid4()
    file.write_text(
        "id,kind,payment,operation,amount,currency,fee,at\n"
        f"set_1,capture,{payment},,1000,EUR,39,2026-01-02T10:00:00+00:00\n"
    )
    given = ["--gateway", "test", "--day", past.isoformat(), "--json"]
    assert main([*given, "--report", str(file)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(one["kind"], one["payment"]) for one in told["differences"]] == [("missing_here", str(payment))]
    assert main([*given, "--report", str(file), "--report", str(file)]) == 1  # the second one is of the day before
    assert json.loads(capsys.readouterr().out) == told


def test_a_report_that_is_not_there_is_asked_for_again(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = gateway_settings(tmp_path, postgres=postgres)  # nobody is there
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(streams.reconciliation, "OPENED", set())

    async def story() -> None:
        async with at_desk(postgres, settings) as desk:
            await desk.pay("tok_visa", gateway="test")
            await handle(desk)
            desk.later += until_midnight() + timedelta(hours=6)
            for tries in (1, 2):
                await desk.timers.fire_due()
                await handle(desk)
                day = await desk.store.load(Reconciliation, Reconciliation.id_of("test", datetime.now(UTC).date()))
                assert (day.tries, day.runs) == (tries, 0)
                desk.later += timedelta(hours=1)

    asyncio.run(story())


def test_live_is_replayed(office: Office) -> None:
    async def story() -> None:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            await office.captured(desk, euros(1000), euros(500))
            await office.reconciled(desk)

    asyncio.run(story())
    office.follow()
    shown = rows_in(office.settings, reconciliations), rows_in(office.settings, differences)
    office.live.wipe()
    office.fed = 0
    office.follow()
    assert (rows_in(office.settings, reconciliations), rows_in(office.settings, differences)) == shown
