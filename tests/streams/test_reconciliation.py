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

import httpx
import pytest

import streams.reconciliation
from aggregates.kernel import Money, Recorded, wire
from aggregates.kernel.migrate import migrate
from aggregates.payment import Payment, Reconciliation, ReportDue, Requested, Routed
from infra.reconcile import main
from projections.kernel.clauses import PROJECTIONS
from projections.payment import differences, reconciliations
from streams.gateways.routing import Terms
from streams.gateways.settings import GatewaySettings
from tests.kernel.gateway import environment, gateway_settings, running_gateway
from tests.kernel.paying import EUR, Desk, at_desk
from tests.kernel.topic import Live, rows_in, settings_of, stored

ERRORS = ("omitted", "doubled", "amount", "currency", "fee", "unknown")


class Office:
    """Payments captured today at a gateway of its own, and their read model."""

    def __init__(self, settings: GatewaySettings, live: Live, shop: httpx.Client) -> None:
        self.settings, self.live, self.shop = settings, live, shop
        self.fed = 0

    def follow(self) -> None:
        """The read model has all that is stored."""
        rows = stored(self.settings.postgres, "payment", self.fed)
        if rows:
            self.fed = rows[-1].notification_id
            self.live.feed(rows)


@pytest.fixture
def office(postgres: str, redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    plain = settings_of(postgres, redis, tmp_path)
    terms = Terms(fee_bp=140, fee_fixed={"EUR": 25})
    settings = gateway_settings(
        tmp_path, gateways={"test": terms}, **plain.model_dump(exclude_unset=True, exclude={"data"})
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(streams.reconciliation, "OPENED", set())
    migrate(postgres, ["payment"])
    live = Live(settings, [PROJECTIONS["projections.payment"]], sinks=("postgres",))
    with running_gateway(settings) as shop:
        yield Office(settings, live, shop)
    live.close()


async def captured(desk: Desk, count: int, refund: bool = False) -> list[tuple[UUID, UUID]]:
    """Payments and the captures of theirs; with `refund` the first of them is given back in part."""
    made = [(await desk.pay("tok_visa"), uuid4()) for _ in range(count)]
    await desk.react()
    for id, capture in made:
        await desk.commands.tell(id, Payment.capture, capture, Money(1000, EUR))
    await desk.react()
    if refund:
        await desk.commands.tell(made[0][0], Payment.refund, uuid4(), Money(300, EUR))
        await desk.react()
    return made


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

    async def story() -> dict[str, UUID]:
        async with at_desk(office.settings.postgres, office.settings) as desk:
            made = await captured(desk, len(ERRORS) + 2, refund=True)
            wrong = {error: capture for error, (_, capture) in zip(ERRORS, made[1:], strict=False)}
            for error, capture in wrong.items():
                office.shop.put(f"/errors/{capture}", params={"error": error}).raise_for_status()
            office.follow()
            await handle(desk)
            day = await desk.store.load(Reconciliation, Reconciliation.id_of("test", today))
            assert (day.tries, day.runs) == (0, 0)
            desk.later += until_midnight() + timedelta(hours=6)
            await desk.timers.fire_due()
            await handle(desk)
            for _ in range(2):  # delivered again: the same result is no news
                await handle(desk)
            day = await desk.store.load(Reconciliation, day.id)
            late = {"late"} if datetime.now(UTC).hour >= 22 else set()
            expected = Counter(
                {"missing_there": 2, "missing_here": 1, "duplicate": 1, "amount": 1, "currency": 1, "fee": 1}
            )
            if not late:
                assert Counter(one.kind for one in day.found) == expected
            assert (day.runs, day.agree) == (1, 4)  # the doubled one agrees once, the refund too
            by_kind = {one.kind: one for one in day.found}
            for error in ("amount", "currency", "fee"):
                assert by_kind[error].operation == wrong[error]  # type: ignore[index]
            assert by_kind["amount"].ours.startswith("capture of 1000 EUR, fee 39")
            assert by_kind["amount"].theirs.startswith("capture of 1001 EUR")
            following = await desk.store.load(Reconciliation, Reconciliation.id_of("test", today + timedelta(days=1)))
            assert following.day == (today + timedelta(days=1)).isoformat()
            office.follow()
            return wrong

    asyncio.run(story())
    id = Reconciliation.id_of("test", today)
    row = rows_in(office.settings, reconciliations)[id,]
    assert (row["status"], row["differences"], row["agree"], row["run"]) == ("compared", 7, 4, 1)
    shown = rows_in(office.settings, differences)
    assert {one["run"] for one in shown.values()} == {1} and len(shown) == 7
    assert main(["--gateway", "test", "--day", today.isoformat(), "--json"]) == 2  # its day is not over by this clock
    assert "the day is not over" in capsys.readouterr().err


def test_a_report_out_of_a_file(office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    past, file = date(2026, 1, 2), tmp_path / "report.csv"
    payment = uuid4()
    file.write_text(
        "id,kind,payment,operation,amount,currency,fee,at\n"
        f"set_1,capture,{payment},,1000,EUR,39,2026-01-02T10:00:00+00:00\n"
    )
    given = ["--gateway", "test", "--day", past.isoformat()]
    assert main([*given, "--report", str(file), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [(one["kind"], one["payment"]) for one in told["differences"]] == [("missing_here", str(payment))]
    assert main(given) == 0  # the gateway's own report of that day has nothing
    assert "0 differences" in capsys.readouterr().out
    file.write_text("id\n")
    assert main([*given, "--report", str(file)]) == 2
    assert "the columns are not" in capsys.readouterr().err
    assert main(["--gateway", "nobody", "--day", past.isoformat()]) == 2
    assert main([*given, "--report", str(tmp_path / "none.csv")]) == 2


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
            await captured(desk, 2)
            await handle(desk)
            desk.later += until_midnight() + timedelta(hours=6)
            await desk.timers.fire_due()
            await handle(desk)

    asyncio.run(story())
    office.follow()
    shown = rows_in(office.settings, reconciliations), rows_in(office.settings, differences)
    office.live.wipe()
    office.fed = 0
    office.follow()
    assert (rows_in(office.settings, reconciliations), rows_in(office.settings, differences)) == shown
