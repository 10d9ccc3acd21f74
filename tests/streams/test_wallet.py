"""Wallets on a real store: a hot one under many at once, timers, and money that comes in by payments and goes out by refunds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest

import streams.reversal
import streams.wallet
from aggregates.kernel import OUTSIDE, Commands, Money, NotFound, Origin, Refused, Reused, Sealed, Store, wire
from aggregates.kernel.migrate import migrate
from aggregates.kernel.token import Way
from aggregates.payment import Methods, Payment
from aggregates.wallet import PEERS, TopUp, Wallet, payment_of, wallet_id
from streams.kernel import Reactor
from streams.kernel.runner import SagaRunner
from streams.kernel.timers import Timers
from streams.wallet import top_up
from tests.kernel import SAID
from tests.kernel.topic import stored

T = TypeVar("T")
NOON = datetime(2031, 1, 1, 12, tzinfo=UTC)
ADA = uuid4()
EUR, AT_ONCE, OTHERS = "EUR", 64, 16
FOLLOWERS = [
    {kind: one for one in vars(module).values() if isinstance(one, Reactor) for kind in one.kinds}
    for module in (streams.wallet, streams.reversal)
]


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, ["wallet", "payment", "order", "refund"])
    return postgres


def run(dsn: str, work: Callable[[Store, Commands], Awaitable[T]]) -> T:
    async def main() -> T:
        async with Store.open(dsn) as store:
            return await work(store, store.commands(Origin("user:test")))

    return asyncio.run(main())


def eur(amount: int) -> Money:
    return Money(amount, EUR)


async def wallet(commands: Commands, amount: int = 0, owner: UUID | None = None) -> UUID:
    """A wallet with some money in it."""
    opened = await commands.open(Wallet.open, owner or uuid4(), EUR)
    if amount:
        await commands.tell(opened.id, Wallet.deposit, eur(amount), "credit", uuid4())
    return opened.id


def test_a_hot_wallet_neither_loses_nor_makes_a_cent(dsn: str) -> None:
    """64 transfers at once, into and out of one wallet, by two processes that know nothing of each other."""

    async def work(store: Store, commands: Commands) -> None:
        dice = Random(1)
        hot, others = await wallet(commands, 500), [await wallet(commands, 100) for _ in range(OTHERS)]
        async with Store.open(dsn) as rival:
            doors = [commands, rival.commands(Origin("user:rival"))]

            async def one(n: int) -> int:
                """What the hot wallet has more then."""
                other, amount, out = dice.choice(others), dice.randint(1, 120), dice.random() < 0.5
                ends = (hot, other) if out else (other, hot)
                try:
                    await doors[n % 2].tell_with(*ends, Wallet.transfer, uuid4(), eur(amount))
                except Refused:
                    return 0
                return -amount if out else amount

            by = await asyncio.gather(*(one(n) for n in range(AT_ONCE)))
        found = [await store.load(Wallet, id) for id in (hot, *others)]
        assert found[0].balance == 500 + sum(by)
        assert sum(one.balance for one in found) == 500 + 100 * OTHERS == -sum(one.ledger[OUTSIDE] for one in found)
        assert sum(one.ledger[PEERS] for one in found) == 0
        assert any(amount < 0 for amount in by) and any(amount > 0 for amount in by)

    run(dsn, work)


def test_two_wallets_that_pay_each_other_at_once_wait_for_nobody(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        one, other = await wallet(commands, 1_000), await wallet(commands, 1_000)
        ways = [(one, other), (other, one)] * (AT_ONCE // 2)
        await asyncio.gather(*(commands.tell_with(a, b, Wallet.transfer, uuid4(), eur(1)) for a, b in ways))
        assert [(await store.load(Wallet, id)).balance for id in (one, other)] == [1_000, 1_000]

    run(dsn, work)


def test_a_transfer_is_made_once_however_often_it_is_asked_for(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        here, there, transfer = await wallet(commands, 100), await wallet(commands), uuid4()

        def asked(amount: int) -> Awaitable[Any]:
            same = commands.under(command=transfer, fingerprint=str(amount).encode())
            return same.tell_with(here, there, Wallet.transfer, transfer, eur(amount))

        receipts = await asyncio.gather(*(asked(60) for _ in range(8)))
        assert len({(one.version, one.position) for one in receipts}) == 1
        assert [one.replayed for one in receipts].count(False) == 1
        with pytest.raises(Reused):
            await asked(40)
        assert [(await store.load(Wallet, id)).balance for id in (here, there)] == [40, 60]

    run(dsn, work)


def test_a_transfer_that_is_refused_there_is_not_made_here(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        here = await wallet(commands, 100)
        dollars = (await commands.open(Wallet.open, ADA, "USD")).id
        with pytest.raises(Refused, match="in USD"):
            await commands.tell_with(here, dollars, Wallet.transfer, uuid4(), eur(1))
        with pytest.raises(Refused, match="does not pay itself"):
            await commands.tell_with(here, here, Wallet.transfer, uuid4(), eur(1))
        assert ((await store.load(Wallet, here)).version, (await store.load(Wallet, dollars)).version) == (2, 1)

    run(dsn, work)


def test_an_escrow_expires_at_its_time_unless_a_dispute_stops_it(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        now = NOON
        timers = Timers(store, ["wallet"], lambda: now)
        id, payee = await wallet(commands, 100), await wallet(commands)
        short, frozen, sold = (uuid4() for _ in range(3))
        for escrow in (short, frozen, sold):
            await commands.tell(id, Wallet.hold, escrow, eur(30), NOON + timedelta(hours=1))
        await commands.tell(id, Wallet.freeze, frozen, SAID)
        await commands.tell_with(id, payee, Wallet.capture, sold)
        now = NOON + timedelta(hours=1) - timedelta(microseconds=1)
        assert await timers.fire_due() == 0
        now += timedelta(microseconds=1)
        assert await timers.fire_due() == 1
        found = await store.load(Wallet, id)
        assert (found.balance, found.held, set(found.escrows)) == (40, 30, {frozen})
        await commands.tell(id, Wallet.unfreeze, frozen, now)
        assert await timers.fire_due() == 0
        now += timedelta(days=1)
        assert await timers.fire_due() == 1
        assert (await store.load(Wallet, id)).balance == 70

    run(dsn, work)


class Bank:
    """The saga and the reactors at the logs of wallets and payments, and a gateway whose word the test speaks."""

    def __init__(self, store: Store, dsn: str) -> None:
        self.store, self.dsn = store, dsn
        self.commands = store.commands(Origin("gateway:test"))
        self.runner = SagaRunner(top_up, store, lambda: NOON)
        self.seen = {"wallet": 0, "payment": 0}

    async def react(self) -> None:
        """Handle all that is stored, twice each, until nothing comes of it any more."""
        while any([await self._handle(domain) for domain in self.seen]):
            pass

    async def _handle(self, domain: str) -> bool:
        rows = stored(self.dsn, domain, self.seen[domain])
        for recorded in [wire.recorded(domain, row) for row in rows for _ in range(2)]:
            self.seen[domain] = recorded.position
            await self.runner.handle(recorded)
            for reactor in [one[type(recorded.event)] for one in FOLLOWERS if type(recorded.event) in one]:
                commands = self.store.commands(Origin("reactor.wallet", recorded.correlation, recorded.event_id))
                await reactor.call(recorded, commands)
        return bool(rows)

    async def top_up(self, id: UUID, amount: int, country: str | None = None, saved: UUID | None = None) -> UUID:
        way = Way("tok_visa", saved, "test" if saved else "")
        asked = await self.commands.open(TopUp.start, id, ADA, eur(amount), way, country)
        await self.react()
        return asked.id

    async def says(self, top_up: UUID, method: Callable[..., None], *args: object) -> None:
        await self.commands.tell(payment_of(top_up), method, *args)
        await self.react()

    async def topped_up(self, id: UUID, amount: int) -> UUID:
        """A top-up to its end."""
        top_up = await self.top_up(id, amount)
        payment = await self.store.load(Payment, payment_of(top_up))
        assert (payment.customer, payment.amount, payment.order) == (ADA, eur(amount), top_up)
        await self.says(top_up, Payment.authorised, "txn", NOON + timedelta(days=7))
        assert (await self.store.load(Wallet, id)).balance == 0, "credited before it was captured"
        [capture] = (await self.store.load(Payment, payment.id)).captures
        await self.says(top_up, Payment.captured, capture, eur(amount))
        return top_up

    async def balance(self, id: UUID) -> int:
        return (await self.store.load(Wallet, id)).balance


def test_a_top_up_is_credited_once_its_payment_is_captured(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id = Bank(store, dsn), await wallet(commands, owner=ADA)
        await bank.topped_up(id, 1_000)
        assert await bank.balance(id) == 1_000

    run(dsn, work)


def test_a_top_up_that_is_declined_or_not_captured_credits_nothing(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id = Bank(store, dsn), await wallet(commands, owner=ADA)
        declined = await bank.top_up(id, 1_000)
        await bank.says(declined, Payment.declined, "no", "card declined")
        failed = await bank.top_up(id, 1_000)
        await bank.says(failed, Payment.authorised, "txn", NOON + timedelta(days=7))
        [capture] = (await store.load(Payment, payment_of(failed))).captures
        await bank.says(failed, Payment.capture_failed, capture, eur(1_000), "no", "account closed")
        for one in (declined, failed):
            assert (await store.load(TopUp, one)).progress.ended == "undone"
        assert (await store.load(Payment, payment_of(failed))).voiding, "the authorisation is kept"
        assert await bank.balance(id) == 0

    run(dsn, work)


def test_a_top_up_by_a_saved_method_is_its_gateways_and_nobodys_once_it_is_removed(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id, card = Bank(store, dsn), await wallet(commands, owner=ADA), uuid4()
        digits = Sealed("sealed:1:somebody:digits")
        await commands.open_as(ADA, Methods)
        await commands.tell(ADA, Methods.ask, card, "test", "tok_visa", "visa", digits, "2099-12")
        await commands.tell(ADA, Methods.attached, card, "test", "tok_visa")
        paid = payment_of(await bank.top_up(id, 100, "DE", card))
        payment = await store.load(Payment, paid)
        assert (payment.gateway, payment.pinned, payment.country) == ("test", True, "DE")
        routed = await store.load(Payment, payment_of(await bank.top_up(id, 100, "CH")))
        assert (routed.pinned, routed.country) == (False, "CH")
        await commands.tell(ADA, Methods.remove, card)
        gone = await bank.top_up(id, 100, "DE", card)
        assert (await store.load(TopUp, gone)).progress.ended == "undone"
        with pytest.raises(NotFound):
            await store.load(Payment, payment_of(gone))

    run(dsn, work)


def test_a_withdrawal_goes_back_to_its_payment_or_stays(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id = Bank(store, dsn), await wallet(commands, owner=ADA)
        payment = payment_of(await bank.topped_up(id, 1_000))
        await commands.tell(id, Wallet.deposit, eur(500), "credit", uuid4())
        out, closed, much = (uuid4() for _ in range(3))
        for withdrawal, amount in ((out, 700), (closed, 300)):
            await commands.tell(id, Wallet.withdraw, withdrawal, eur(amount), payment)
        await bank.react()
        assert {n: one.amount for n, one in (await store.load(Payment, payment)).refunds.items()} == {
            out: 700,
            closed: 300,
        }
        await commands.tell(payment, Payment.refunded, out, eur(700))
        await commands.tell(payment, Payment.refund_failed, closed, eur(300), "no", "account closed")
        await bank.react()
        found = await store.load(Wallet, id)
        assert (found.balance, found.withdrawals, found.ledger[OUTSIDE]) == (800, {}, -800)
        await commands.tell(id, Wallet.withdraw, much, eur(301), payment)  # 300 are left of the payment
        await bank.react()
        assert await bank.balance(id) == 800
        assert much not in (await store.load(Payment, payment)).refunds

    run(dsn, work)


def test_a_withdrawal_that_comes_back_is_in_the_wallet_again_and_can_be_made_anew(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id = Bank(store, dsn), await wallet(commands, owner=ADA)
        top_up = await bank.topped_up(id, 1_000)
        first, second = uuid4(), uuid4()
        for withdrawal, balance in ((first, 1_000), (second, 0)):
            await commands.tell(id, Wallet.withdraw, withdrawal, eur(1_000), payment_of(top_up))
            await bank.react()
            await bank.says(top_up, Payment.refunded, withdrawal, eur(1_000))
            assert await bank.balance(id) == 0
            if balance:
                await bank.says(top_up, Payment.refund_reversed, withdrawal, eur(1_000), "no", "account closed")
            assert await bank.balance(id) == balance

    run(dsn, work)


def test_a_top_up_that_the_bank_takes_back_is_taken_from_the_wallet_once(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id = Bank(store, dsn), await wallet(commands, owner=ADA)
        top_up = await bank.topped_up(id, 1_000)
        await commands.tell(id, Wallet.hold, uuid4(), eur(400), None)
        [capture] = (await store.load(Payment, payment_of(top_up))).captures
        await bank.says(top_up, Payment.capture_reversed, capture, eur(1_000), "no", "account closed")
        found = await store.load(Wallet, id)
        assert (found.balance, found.held, found.ledger[OUTSIDE]) == (0, 400, -400)
        await commands.tell(id, Wallet.deposit, eur(100), "credit", uuid4())
        bank.seen = dict.fromkeys(bank.seen, 0)
        await bank.react()
        assert await bank.balance(id) == 100

    run(dsn, work)


def test_another_refund_is_no_withdrawal(dsn: str) -> None:
    async def work(store: Store, commands: Commands) -> None:
        bank, id = Bank(store, dsn), await wallet(commands, owner=ADA)
        top_up = await bank.topped_up(id, 1_000)
        refund = uuid4()
        await commands.tell(payment_of(top_up), Payment.refund, refund, eur(100))
        await bank.says(top_up, Payment.refunded, refund, eur(100))
        assert id == wallet_id(ADA, EUR)
        assert await bank.balance(id) == 1_000
        other = await commands.open(Payment, uuid4(), uuid4(), eur(100), "tok_visa")  # of one without a wallet
        capture = uuid4()
        for method, *args in (
            (Payment.authorised, "txn", NOON),
            (Payment.capture, capture, eur(100)),
            (Payment.captured, capture, eur(100)),
            (Payment.refund, refund, eur(100)),
            (Payment.refunded, refund, eur(100)),
        ):
            await commands.tell(other.id, method, *args)  # type: ignore[arg-type]
        await bank.react()

    run(dsn, work)
