"""Checkouts on a real store: whoever pays, all of it is spent once, or given back to the unit; the bank's word is the test's."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aggregates.checkout import Checkout, payment_of
from aggregates.inventory import Stock
from aggregates.kernel import OUTSIDE, NotFound, Refused, Store, wire
from aggregates.kernel.migrate import migrate
from aggregates.kernel.money import Line, Tender, TenderKind
from aggregates.kernel.process import Ending, StepState
from aggregates.kernel.token import Way
from aggregates.order import Order
from aggregates.payment import Payment
from aggregates.voucher import Voucher
from aggregates.wallet import Wallet
from streams.checkout import checkout
from streams.kernel.runner import SagaRunner
from streams.kernel.saga import Begin, Do, Effect, Finish, Undo
from tests.kernel import SAID, accepted
from tests.kernel.buying import DOMAINS, EUR, HOME, NOON, TOTAL, Shop, eur, run
from tests.kernel.topic import stored

YEARS = timedelta(days=3_650)


@pytest.fixture
def dsn(postgres: str) -> str:
    migrate(postgres, DOMAINS)
    return postgres


def test_all_three_pay_and_the_order_says_so(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        voucher, wallet = await shop.voucher(300), await shop.wallet(500)
        id = await shop.buy(Tender("wallet", wallet, 500), Tender("voucher", voucher, 300))
        assert (await shop.store.load(Voucher, voucher)).balance == 0
        assert (await shop.store.load(Wallet, wallet)).held == 500
        assert (await shop.store.load(Payment, payment_of(id))).amount == eur(200)
        await shop.authorises(id)
        assert (await shop.store.load(Voucher, voucher)).quota.used == {}, "nothing is spent before the card has paid"
        await shop.captures(id)
        assert await shop.ended(id) == (Ending.DONE, "")
        spent, purse = await shop.store.load(Voucher, voucher), await shop.store.load(Wallet, wallet)
        assert (spent.quota.used, spent.quota.holds) == ({"value": 300}, {})
        assert (purse.balance, purse.held, purse.ledger[OUTSIDE]) == (0, 0, 0)
        order = await shop.store.load(Order, id)
        assert order.status == "paid"
        assert order.tenders == (
            Tender("voucher", voucher, 300), Tender("wallet", wallet, 500), Tender("card", payment_of(id), 200),
        )  # fmt: skip

    run(dsn, work)


def test_what_prepaid_value_covers_is_bought_at_once_and_no_payment_is_made(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        voucher, wallet = await shop.voucher(1_200), await shop.wallet(1_000)
        offered = [Tender("voucher", voucher, 1_200)], [Tender("wallet", wallet, 1_000)]
        for offers in offered:
            id = await shop.buy(*offers, method=None)
            assert await shop.ended(id) == (Ending.DONE, "")
            order = await shop.store.load(Order, id)
            assert (order.status, order.payment, order.tenders[0].amount) == ("paid", None, 1_000)
            with pytest.raises(NotFound):
                await shop.store.load(Payment, payment_of(id))
        assert (await shop.store.load(Voucher, voucher)).balance == 200
        assert (await shop.store.load(Wallet, wallet)).balance == 0

    run(dsn, work)


async def declines(shop: Shop, id: UUID) -> None:
    await shop.bank(id, Payment.declined, "no", "the card is declined")


async def never_answers(shop: Shop, id: UUID) -> None:
    await shop.passes(timedelta(minutes=15))


async def does_not_capture(shop: Shop, id: UUID) -> None:
    await shop.authorises(id)
    [(capture, asked)] = (await shop.store.load(Payment, payment_of(id))).captures.items()
    await shop.bank(id, Payment.capture_failed, capture, eur(asked.amount), "no", "the account is closed")


@pytest.mark.parametrize(
    ("bank", "why"),
    [
        (declines, "the card is declined"),
        (never_answers, "authorise the payment: no answer in time"),
        (does_not_capture, "the account is closed"),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
def test_a_card_that_does_not_pay_gives_back_what_vouchers_and_wallet_would_have(
    dsn: str, bank: Callable[[Shop, UUID], Awaitable[None]], why: str
) -> None:
    async def work(shop: Shop) -> None:
        voucher, wallet = await shop.voucher(300), await shop.wallet(500)
        id = await shop.buy(Tender("voucher", voucher, 300), Tender("wallet", wallet, 500))
        await bank(shop, id)
        assert await shop.ended(id) == (Ending.UNDONE, why)
        await shop.nothing_is_left_behind(id, voucher, wallet)
        assert (await shop.store.load(Voucher, voucher)).balance == 300
        assert (await shop.store.load(Wallet, wallet)).balance == 500

    run(dsn, work)


def test_what_was_spent_elsewhere_meanwhile_is_refused_and_the_rest_given_back(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        one, other, wallet = await shop.voucher(300), await shop.voucher(300), await shop.wallet(500)
        offers = [Tender("voucher", one, 300), Tender("voucher", other, 300), Tender("wallet", wallet, 400)]
        id = await shop.start(*offers)
        await shop.commands.tell(other, Voucher.redeem, uuid4(), eur(1), uuid4(), NOON)
        await shop.go_on()
        assert await shop.ended(id) == (Ending.UNDONE, "300 of value is more than the 299 left")
        await shop.nothing_is_left_behind(id)
        for voucher in (one, other):  # both or neither
            assert id not in (await shop.store.load(Voucher, voucher)).quota.holds
        id = await shop.start(Tender("voucher", one, 300), Tender("wallet", wallet, 500))
        await shop.commands.tell(wallet, Wallet.hold, uuid4(), eur(1), None)
        await shop.go_on()
        assert await shop.ended(id) == (Ending.UNDONE, "500 is more than the 499 available")
        await shop.nothing_is_left_behind(id, one)
        assert (await shop.store.load(Voucher, one)).balance == 300

    run(dsn, work)


def test_what_is_set_aside_outlives_any_wait_for_the_card(dsn: str) -> None:
    """The gateway captures ten years late, when vouchers and wallets were long to be free again if they ever were."""

    async def work(shop: Shop) -> None:
        voucher, wallet = await shop.voucher(300), await shop.wallet(500)
        id = await shop.buy(Tender("voucher", voucher, 300), Tender("wallet", wallet, 500))
        await shop.commands.tell(voucher, Voucher.void, SAID)  # it can't be spent any more, but for what is reserved
        await shop.authorises(id)
        await shop.passes(YEARS)
        assert (await shop.store.load(Checkout, id)).progress.steps["take the money"] is StepState.OVERDUE
        assert (await shop.store.load(Wallet, wallet)).held == 500
        await shop.captures(id)
        order = await shop.store.load(Order, id)
        assert sum(one.amount for one in order.tenders) == TOTAL
        assert (await shop.store.load(Voucher, voucher)).quota.used == {"value": 300}
        assert (await shop.store.load(Wallet, wallet)).ledger[OUTSIDE] == 0
        assert (await shop.ended(id))[0] is Ending.DONE
        assert (await shop.store.load(Stock, shop.shelf)).on_hand == 100 - 2

    run(dsn, work)


def test_a_dispute_holds_an_order_up_until_it_is_settled(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        wallet = await shop.wallet(500)
        id = await shop.buy(Tender("wallet", wallet, 500))
        await shop.commands.tell(wallet, Wallet.freeze, id, SAID)
        await shop.authorises(id)
        await shop.captures(id)
        assert (await shop.store.load(Checkout, id)).progress.trouble.endswith("is frozen: there is a dispute")
        await shop.commands.tell(wallet, Wallet.unfreeze, id, NOON)
        await shop.passes(timedelta(minutes=1))
        assert (await shop.ended(id))[0] is Ending.DONE

    run(dsn, work)


def test_many_at_once_on_one_voucher_and_one_wallet_spend_no_more_than_there_is(dsn: str) -> None:
    """All are offered everything, by two processes that know nothing of each other; who comes too late gets nothing."""

    async def work(shop: Shop) -> None:
        voucher, wallet, dice = await shop.voucher(1_500), await shop.wallet(1_700), Random(1)
        both = (Tender("voucher", voucher, 600), Tender("wallet", wallet, 400))
        ids = [await shop.start(*both, method=None) for _ in range(6)]
        async with Store.open(dsn) as rival:
            runners = [shop.runner, SagaRunner(checkout, rival, lambda: NOON)]
            started = [wire.recorded("checkout", row) for row in stored(dsn, "checkout", 0)]
            woken = [(dice.choice(runners), one) for one in started for _ in range(2)]
            dice.shuffle(woken)
            await asyncio.gather(*(runner.handle(one) for runner, one in woken))
        endings = [(await shop.ended(id))[0] for id in ids]
        assert endings.count(Ending.DONE) == 2 and endings.count(Ending.UNDONE) == 4
        spent, purse = await shop.store.load(Voucher, voucher), await shop.store.load(Wallet, wallet)
        assert (spent.quota.used["value"], spent.balance, spent.quota.holds) == (1_200, 300, {})
        assert (purse.balance, purse.held) == (1_700 - 800, 0)
        assert (await shop.store.load(Stock, shop.shelf)).on_hand == 100 - 4

    run(dsn, work)


def test_an_order_that_was_cancelled_before_it_was_paid_is_paid_and_then_to_be_given_back(dsn: str) -> None:
    async def work(shop: Shop) -> None:
        voucher = await shop.voucher(300)
        id = await shop.buy(Tender("voucher", voucher, 300))
        await shop.authorises(id)
        await shop.commands.tell(id, Order.cancel, SAID)
        await shop.captures(id)
        assert await shop.ended(id) == (Ending.DONE, "")
        cancelled = (await shop.store.history(Order, id))[-1].event
        assert [one.kind for one in cancelled.parts] == ["voucher", "card"]  # type: ignore[attr-defined]

    run(dsn, work)


class Purchases(RuleBasedStateMachine):
    """Checkouts at once on two vouchers and a wallet, carried out by the saga's own steps in any order, on offers out of date, while
    others spend, too. Carts, stock, cards and orders answer as they like.
    """

    def __init__(self) -> None:
        super().__init__()
        wallet = Wallet.open(UUID(int=1), EUR)
        wallet.deposit(eur(1_500), "credit", uuid4())
        vouchers = [Voucher.gift(eur(amount), f"hash {amount}", "hint", None, NOON) for amount in (700, 900)]
        self.there: dict[UUID, Any] = {one.id: one for one in (*vouchers, wallet)}
        self.ids = list(self.there)
        self.had = {one.id: one.balance for one in self.there.values()}
        self.elsewhere = Counter[UUID]()
        self.checkouts: list[Checkout] = []
        self.look()

    @rule()
    def look(self) -> None:
        kinds: list[TenderKind] = ["voucher", "voucher", "wallet"]
        self.offers = [Tender(kind, id, self.there[id].balance) for kind, id in zip(kinds, self.ids, strict=True)]

    @precondition(lambda self: len(self.checkouts) < 4)
    @rule(which=st.sets(st.integers(0, 2), min_size=1), most=st.integers(200, 600))
    def start(self, which: set[int], most: int) -> None:
        line = Line("mug", uuid4(), "A mug", 2, TOTAL // 2, 0, 0, 0, "main")
        offers = [Tender(one.kind, one.source, min(one.amount, most)) for one in (self.offers[n] for n in which)]
        made = Checkout.start(UUID(int=1), uuid4(), 2, EUR, [line], HOME, Way("tok_visa"), offers=offers)
        assert sum(one.amount for one in made.tenders) == TOTAL
        self.checkouts.append(made)

    @rule(which=st.integers(0, 2), amount=st.integers(1, 400))
    def others_spend(self, which: int, amount: int) -> None:
        one = self.there[id := self.ids[which]]
        if isinstance(one, Voucher):
            spent = accepted(one.redeem, uuid4(), eur(amount), uuid4(), NOON)
        else:
            spent = accepted(one.transfer, Wallet.open(uuid4(), EUR), uuid4(), eur(amount))
        self.elsewhere[id] += amount * spent

    @precondition(lambda self: self.checkouts)
    @rule(which=st.integers(0, 3), moves=st.integers(0, 6), says=st.sampled_from(["no", "nothing"]), late=st.booleans())
    def go_on(self, which: int, moves: int, says: str, late: bool) -> None:
        """Some moves of one of them, and one that may go wrong."""
        one = self.checkouts[which % len(self.checkouts)]
        for _ in range(moves):
            self.move(one, "yes", False)
        self.move(one, says, late)

    def move(self, one: Checkout, says: str, late: bool) -> None:
        """`late`: the deadline passes before anybody has heard whether the step has its effect."""
        match checkout.move(one):
            case Begin(step):
                one.begin(step, NOON)
            case Do(step) if says == "nothing":
                if late:
                    one.overdue(step)
            case Do(step):
                no = self.carry_out(checkout.steps[step].do(one))
                if no is None and says == "no" and (checkout.before_pivot(step) or step == checkout.pivot):
                    no = "somebody else refuses it"
                if late and one.progress.steps[step] is StepState.BEGUN:
                    one.overdue(step)
                elif no:
                    one.refuse(step, no)
                else:
                    one.done(step, checkout.after(step, one), NOON)
                assert not no or checkout.before_pivot(step) or step == checkout.pivot, f"{step} is refused: {no}"
            case Undo(step):
                undo = checkout.steps[step].undo
                assert callable(undo)
                assert not self.carry_out(undo(one)), "an undo is never refused"
                one.undone(step)
            case Finish(ending):
                one.finish(ending)

    def carry_out(self, effect: Effect) -> str | None:
        """An effect on what is there, all or nothing: why it is refused, "" if it is not, None when it is somebody else's affair."""
        calls = [one for one in effect if one.id in self.there] if isinstance(effect, list) else []
        changed = {one.id: deepcopy(self.there[one.id]) for one in calls}
        try:
            for one in calls:
                one.method(changed[one.id], *one.args)
        except Refused as no:
            return str(no)
        self.there |= changed
        return "" if calls else None

    @invariant()
    def nothing_is_spent_that_is_not_there(self) -> None:
        for one in self.there.values():
            one.check()
            one.collect_events()
            assert one.balance >= 0

    def teardown(self) -> None:
        """In the end each has all or nothing, and the rest can be spent."""
        for one in self.checkouts:
            while one.progress.ended is None:
                self.move(one, "yes", False)
        spent = Counter[UUID]()
        for one in self.checkouts:
            for part in one.tenders if one.progress.ended is Ending.DONE else ():
                spent[part.source] += part.amount
        for id, thing in self.there.items():
            assert thing.balance == self.had[id] - self.elsewhere[id] - spent[id]


TestPurchases = Purchases.TestCase
TestPurchases.settings = hypothesis(max_examples=100, stateful_step_count=40, deadline=None)
