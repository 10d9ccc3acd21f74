from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aggregates.kernel import OUTSIDE, Event, Invalid, Money, NotFound, Refused
from aggregates.kernel.ledger import ACCOUNT_MAX
from aggregates.kernel.money import AMOUNT_MAX
from aggregates.kernel.process import Ending
from aggregates.kernel.token import Way
from aggregates.wallet import (
    CLOSED_KEPT,
    ESCROWS_MAX,
    PEERS,
    UNFROZEN_LEFT,
    WITHDRAWALS_MAX,
    Captured,
    Deposited,
    Expired,
    Frozen,
    Held,
    Opened,
    Received,
    Refunded,
    Released,
    Sent,
    Spent,
    TopUp,
    TopUpReversed,
    Unfrozen,
    Wallet,
    WithdrawalFailed,
    WithdrawalRequested,
    Withdrawn,
    wallet_id,
)
from aggregates.wallet.parts import escrowed
from aggregates.wallet.topup import Started, payment_of
from api.kernel.reads import row_at
from projections.kernel.clauses import PROJECTIONS, changes
from projections.wallet import top_ups
from streams.kernel.saga import Begin
from streams.wallet import top_up
from tests.kernel import SAID, Fact, fact, fact_of, given, through_avro

ADA, BOB, E, E2, W, PAYMENT, REF = (UUID(int=n) for n in range(1, 8))
NOW = datetime.now(UTC)
SOON = NOW + timedelta(hours=1)
VISA, DECLINED = Way("tok_visa"), Way("tok_declined")
OPENED = fact(Opened, owner=ADA, currency="EUR")


def eur(amount: int) -> Money:
    return Money(amount, "EUR")


def deposited(amount: int, balance: int) -> Fact:
    return fact(Deposited, amount=amount, balance=balance, source="credit", reference=REF)


HUNDRED = (OPENED, deposited(100, 100))
HELD = fact(Held, escrow=E, amount=60, balance=40, expires_at=SOON)
SIXTY = (*HUNDRED, HELD)
RELEASED = fact(Released, escrow=E, amount=60, balance=100, left=0)
EXPIRED = fact(Expired, escrow=E, amount=60, balance=100, left=0)
FROZEN = fact(Frozen, escrow=E, reason="", because=SAID)


def captured(amount: int = 60, left: int = 0, payee: UUID = BOB) -> Fact:
    return fact(Captured, escrow=E, amount=amount, balance=40, payee=payee, left=left)


def test_a_wallet_is_one_owners_in_one_currency() -> None:
    given(Wallet).opening(Wallet.open, ADA, "EUR").then(OPENED)
    given(Wallet).opening(Wallet.open, ADA, "EURO").refused("EURO")
    assert Wallet.open(ADA, "EUR").id == wallet_id(ADA, "EUR")
    assert len({wallet_id(ADA, "EUR"), wallet_id(ADA, "USD"), wallet_id(BOB, "EUR")}) == 3


def test_money_comes_in() -> None:
    given(Wallet, OPENED).when(Wallet.deposit, eur(100), "credit", REF).then(HUNDRED[1])
    wallet = given(Wallet, *HUNDRED).state
    assert (wallet.balance, wallet.held, wallet.ledger[OUTSIDE]) == (100, 0, -100)


def test_money_comes_in_once_for_its_cause() -> None:
    again = given(Wallet, *HUNDRED)
    again.when(Wallet.deposit, eur(100), "credit", REF).nothing()
    again.when(Wallet.deposit, eur(101), "credit", REF).refused(f"{REF} was of 100, not 101")
    again.when(Wallet.deposit, eur(100), "credit", W).then(
        fact(Deposited, amount=100, balance=200, source="credit", reference=W)
    )
    spent = fact(Sent, amount=100, balance=0, transfer=E, recipient=BOB)
    given(Wallet, *HUNDRED, spent).when(Wallet.deposit, eur(100), "credit", REF).nothing()


def test_a_top_up_that_was_reversed_is_taken_out_again_as_far_as_it_is_there() -> None:
    def out(amount: int, balance: int, owed: int) -> Fact:
        return fact(TopUpReversed, amount=amount, balance=balance, capture=E2, topup=REF, owed=owed)

    given(Wallet, *HUNDRED).when(Wallet.take_back, REF, E2, eur(70)).then(out(70, 30, 0))
    given(Wallet, *SIXTY).when(Wallet.take_back, REF, E2, eur(70)).then(out(40, 0, 30))  # what is held stays so
    given(Wallet, OPENED).when(Wallet.take_back, REF, E2, eur(70)).then(out(0, 0, 70))
    again = given(Wallet, OPENED, out(0, 0, 70), deposited(100, 100))
    again.when(Wallet.take_back, REF, E2, eur(70)).nothing()
    again.when(Wallet.take_back, REF, E2, eur(71)).refused("was of 70, not 71")


def test_amounts_have_a_limit_and_the_wallets_currency() -> None:
    empty = given(Wallet, OPENED)
    empty.when(Wallet.deposit, eur(AMOUNT_MAX), "credit", REF).then(deposited(AMOUNT_MAX, AMOUNT_MAX))
    for amount in (0, -1, AMOUNT_MAX + 1):
        empty.when(Wallet.deposit, eur(amount), "credit", REF).refused(f"between 1 and {AMOUNT_MAX}")
    empty.when(Wallet.deposit, Money(1, "USD"), "credit", REF).refused("in EUR, not USD")
    full = given(Wallet, OPENED, deposited(ACCOUNT_MAX, ACCOUNT_MAX))
    full.when(Wallet.deposit, eur(1), "credit", W).refused("the 0 that still fit")
    for command in (Wallet.hold, Wallet.withdraw):
        given(Wallet, *HUNDRED).when(command, E, Money(1, "USD"), SOON).refused("in EUR, not USD")  # type: ignore[arg-type]


def test_a_hold_moves_money_into_escrow() -> None:
    given(Wallet, *HUNDRED).when(Wallet.hold, E, eur(60), SOON).then(HELD)
    wallet = given(Wallet, *SIXTY).state
    assert (wallet.balance, wallet.held) == (40, 60)


def test_the_last_cent_can_be_held_and_no_more() -> None:
    given(Wallet, *SIXTY).when(Wallet.hold, E2, eur(40), SOON).then(
        fact(Held, escrow=E2, amount=40, balance=0, expires_at=SOON)
    )
    given(Wallet, *SIXTY).when(Wallet.hold, E2, eur(41), SOON).refused("41 is more than the 40 available")


def test_the_same_hold_again_does_nothing() -> None:
    given(Wallet, *SIXTY).when(Wallet.hold, E, eur(60), SOON).nothing()
    given(Wallet, *SIXTY).when(Wallet.hold, E, eur(59), SOON).refused("is of 60, not 59")
    given(Wallet, *SIXTY, captured()).when(Wallet.hold, E, eur(60), SOON).nothing()
    given(Wallet, *SIXTY, RELEASED).when(Wallet.hold, E, eur(60), SOON).refused("already released")
    given(Wallet, *SIXTY, EXPIRED).when(Wallet.hold, E, eur(60), SOON).refused("already expired")


def test_a_release_before_its_hold_closes_the_escrow() -> None:
    closed = fact(Released, escrow=E, amount=0, balance=100, left=0)
    given(Wallet, *HUNDRED).when(Wallet.release, E).then(closed)
    given(Wallet, *HUNDRED, closed).when(Wallet.release, E).nothing()
    given(Wallet, *HUNDRED, closed).when(Wallet.hold, E, eur(60), SOON).refused("already released")
    given(Wallet, *HUNDRED).when(Wallet.release, E, eur(1)).refused("nothing is in escrow")


def test_an_escrow_is_released_in_parts() -> None:
    part = fact(Released, escrow=E, amount=25, balance=65, left=35)
    given(Wallet, *SIXTY).when(Wallet.release, E, eur(25)).then(part)
    rest = given(Wallet, *SIXTY, part)
    rest.when(Wallet.release, E, eur(36)).refused("36 is more than the 35 left")
    rest.when(Wallet.release, E).then(fact(Released, escrow=E, amount=35, balance=100, left=0))
    rest.when(Wallet.expire, str(E)).then(fact(Expired, escrow=E, amount=35, balance=100, left=0))


def test_an_escrow_ends_once() -> None:
    given(Wallet, *SIXTY).when(Wallet.release, E).then(RELEASED)
    given(Wallet, *SIXTY).when(Wallet.expire, str(E)).then(EXPIRED)
    for end in (RELEASED, EXPIRED):
        given(Wallet, *SIXTY, end).when(Wallet.release, E).nothing()
        given(Wallet, *SIXTY, end).when(Wallet.expire, str(E)).nothing()
    given(Wallet, *SIXTY, captured()).when(Wallet.release, E).refused("already captured")
    given(Wallet, *SIXTY, captured()).when(Wallet.expire, str(E)).nothing()


def test_a_dispute_keeps_an_escrow_where_it_is() -> None:
    given(Wallet, *SIXTY).when(Wallet.freeze, E, SAID).then(FROZEN)
    frozen = given(Wallet, *SIXTY, FROZEN)
    frozen.when(Wallet.freeze, E, SAID).nothing()
    frozen.when(Wallet.release, E).refused("frozen: there is a dispute")
    frozen.when(Wallet.release, E, eur(1)).refused("frozen")
    frozen.when(Wallet.expire, str(E)).nothing()
    for method in (lambda w: Wallet.freeze(w, E2, SAID), lambda w: Wallet.unfreeze(w, E2, NOW)):
        given(Wallet, *SIXTY).when(method).refused("nothing is in escrow")
    given(Wallet, *SIXTY).when(Wallet.unfreeze, E, NOW).nothing()
    with pytest.raises(Refused, match="frozen"):
        frozen.state.capture(Wallet.open(BOB, "EUR"), E)


def test_a_settled_dispute_leaves_time_to_do_what_was_agreed() -> None:
    frozen = given(Wallet, *SIXTY, FROZEN)
    frozen.when(Wallet.unfreeze, E, SOON).then(fact(Unfrozen, escrow=E, expires_at=SOON + UNFROZEN_LEFT))
    late = SOON - UNFROZEN_LEFT
    frozen.when(Wallet.unfreeze, E, late).then(fact(Unfrozen, escrow=E, expires_at=SOON))
    given(Wallet, *SIXTY, FROZEN, fact(Unfrozen, escrow=E, expires_at=SOON)).when(Wallet.release, E).then(RELEASED)


def test_a_timer_runs_while_an_escrow_does() -> None:
    wallet = given(Wallet, *HUNDRED).state

    def timers() -> list[tuple[str, object]]:
        [event] = wallet.collect_events()
        return [(one.key, getattr(one, "due", None)) for one in event.timers()]

    key = f"escrow:{E}"
    wallet.hold(E, eur(60), SOON)
    assert timers() == [(key, SOON)]
    wallet.release(E, eur(1))
    assert timers() == []
    wallet.freeze(E, SAID)
    assert timers() == [(key, None)]
    wallet.unfreeze(E, SOON)
    assert timers() == [(key, SOON + UNFROZEN_LEFT)]
    wallet.capture(Wallet.open(BOB, "EUR"), E, eur(1))
    assert timers() == []
    wallet.release(E)
    assert timers() == [(key, None)]


def two(balance: int = 100) -> tuple[Wallet, Wallet]:
    """Ada's wallet with some money and Bob's empty one."""
    ada, bob = Wallet.open(ADA, "EUR"), Wallet.open(BOB, "EUR")
    ada.deposit(eur(balance), "credit", REF)
    made(ada, bob)
    return ada, bob


def made(*wallets: Wallet) -> list[list[Fact]]:
    for one in wallets:
        one.check()
    return [[fact_of(through_avro(event)) for event in one.collect_events()] for one in wallets]


def test_a_transfer_takes_here_what_it_gives_there() -> None:
    ada, bob = two()
    ada.transfer(bob, REF, eur(100))
    assert made(ada, bob) == [
        [fact(Sent, amount=100, balance=0, transfer=REF, recipient=bob.id)],
        [fact(Received, amount=100, balance=100, transfer=REF, sender=ada.id)],
    ]
    assert ada.ledger[PEERS] + bob.ledger[PEERS] == 0


def test_a_transfer_that_cannot_be_changes_neither() -> None:
    ada, bob = two()
    dollars, full = Wallet.open(ADA, "USD"), Wallet.open(UUID(int=9), "EUR")
    for _ in range(ACCOUNT_MAX // AMOUNT_MAX):
        full.deposit(eur(AMOUNT_MAX), "credit", uuid4())
    for to, amount, why in (
        (bob, 101, "101 is more than the 100 available"),
        (dollars, 1, "in USD, not EUR"),
        (ada, 1, "does not pay itself"),
        (full, 1, "still fit"),
        (bob, 0, "between 1"),
    ):
        to.collect_events()
        with pytest.raises(Refused, match=why):
            ada.transfer(to, REF, eur(amount))
        assert made(ada, to) == [[], []]


def test_a_captured_escrow_is_the_payees() -> None:
    ada, bob = two()
    ada.hold(E, eur(60), SOON)
    made(ada)
    ada.capture(bob, E, eur(20))
    ada.capture(bob, E)
    assert made(ada, bob) == [
        [captured(20, 40, bob.id), captured(40, 0, bob.id)],
        [fact(Received, amount=n, balance=b, transfer=E, sender=ada.id) for n, b in ((20, 20), (40, 60))],
    ]
    ada.capture(bob, E)  # asked again
    assert made(ada, bob) == [[], []]
    for payee, amount in ((Wallet.open(W, "EUR"), None), (bob, eur(1))):
        with pytest.raises(Refused, match="already captured"):
            ada.capture(payee, E, amount)


def test_an_escrow_that_is_not_there_is_not_captured() -> None:
    ada, bob = two()
    with pytest.raises(Refused, match="nothing is in escrow"):
        ada.capture(bob, E)
    ada.hold(E, eur(60), SOON)
    with pytest.raises(Refused, match="61 is more than the 60 left"):
        ada.capture(bob, E, eur(61))
    with pytest.raises(Refused, match="does not pay itself"):
        ada.capture(ada, E)
    with pytest.raises(Refused, match="in USD"):
        ada.capture(Wallet.open(BOB, "USD"), E)
    ada.release(E)
    with pytest.raises(Refused, match="already released"):
        ada.capture(bob, E)


def test_what_was_captured_can_be_refunded_and_no_more() -> None:
    ada, bob = two()
    ada.hold(E, eur(60), SOON)
    ada.capture(bob, E, eur(50))
    ada.refund(bob, E, eur(10))  # of an open one, too
    ada.capture(bob, E)
    made(ada, bob)
    with pytest.raises(Refused, match="51 is more than the 50 that this payee has"):
        ada.refund(bob, E, eur(51))
    ada.refund(bob, E, eur(50))
    assert made(ada, bob) == [
        [fact(Refunded, amount=50, balance=100, escrow=E, payee=bob.id)],
        [fact(Sent, amount=50, balance=0, transfer=E, recipient=ada.id)],
    ]
    for payee, escrow in ((bob, E), (bob, E2), (Wallet.open(W, "EUR"), E)):
        with pytest.raises(Refused, match="1 is more than the 0"):
            ada.refund(payee, escrow, eur(1))


def test_a_payee_refunds_what_it_still_has() -> None:
    ada, bob = two()
    ada.hold(E, eur(60), SOON)
    ada.capture(bob, E)
    bob.transfer(Wallet.open(W, "EUR"), REF, eur(1))
    made(ada, bob)
    with pytest.raises(Refused, match="60 is more than the 59 available"):
        ada.refund(bob, E, eur(60))
    assert made(ada, bob) == [[], []]


def test_a_withdrawal_is_under_way_until_it_is_out_or_back() -> None:
    asked = fact(WithdrawalRequested, withdrawal=W, amount=70, balance=30, payment=PAYMENT)
    given(Wallet, *HUNDRED).when(Wallet.withdraw, W, eur(70), PAYMENT).then(asked)
    under_way = given(Wallet, *HUNDRED, asked)
    under_way.when(Wallet.withdraw, W, eur(70), PAYMENT).nothing()
    under_way.when(Wallet.withdraw, W, eur(71), PAYMENT).refused("another amount")
    under_way.when(Wallet.withdraw, E, eur(31), PAYMENT).refused("31 is more than the 30 available")
    out = fact(Withdrawn, withdrawal=W, amount=70, balance=30)
    back = fact(WithdrawalFailed, withdrawal=W, amount=70, balance=100, reason="closed")
    under_way.when(Wallet.withdrawn, W).then(out)
    under_way.when(Wallet.withdrawal_failed, W, "closed").then(back)
    for end in (out, back):
        given(Wallet, *HUNDRED, asked, end).when(Wallet.withdrawn, W).nothing()
        given(Wallet, *HUNDRED, asked, end).when(Wallet.withdrawal_failed, W, "x").nothing()
    given(Wallet, *HUNDRED).when(Wallet.withdrawn, W).nothing()


def test_held_money_pays_for_an_order_all_of_it_and_once() -> None:
    spent = fact(Spent, escrow=E, order=W, amount=60, balance=40, left=0)
    given(Wallet, *SIXTY).when(Wallet.spend, E, W, eur(60)).then(spent)
    gone = given(Wallet, *SIXTY, spent)
    assert (gone.state.balance, gone.state.held, gone.state.ledger[OUTSIDE]) == (40, 0, -40)
    gone.when(Wallet.spend, E, W, eur(60)).nothing()
    gone.when(Wallet.hold, E, eur(60), SOON).nothing()
    gone.when(Wallet.expire, str(E)).nothing()
    gone.when(Wallet.release, E).refused("already spent")
    gone.when(Wallet.spend, E, W, eur(59)).refused("was of 60, not 59")


def test_what_is_not_held_in_full_pays_for_nothing() -> None:
    given(Wallet, *SIXTY).when(Wallet.spend, E, W, eur(59)).refused("60 are in escrow")
    given(Wallet, *SIXTY).when(Wallet.spend, E, W, Money(60, "USD")).refused("in EUR, not USD")
    given(Wallet, *HUNDRED).when(Wallet.spend, E, W, eur(60)).refused("nothing is in escrow")
    given(Wallet, *SIXTY, FROZEN).when(Wallet.spend, E, W, eur(60)).refused("frozen")
    for over, how in ((RELEASED, "released"), (EXPIRED, "expired")):
        given(Wallet, *SIXTY, over).when(Wallet.spend, E, W, eur(60)).refused(f"already {how}")


def test_what_is_held_without_a_time_stays_until_it_is_settled() -> None:
    held = fact(Held, escrow=E, amount=60, balance=40, expires_at=None)
    given(Wallet, *HUNDRED).when(Wallet.hold, E, eur(60), None).then(held)
    kept = given(Wallet, *HUNDRED, held)
    assert list(kept.events[-1].timers()) == []
    kept.when(Wallet.release, E).then(RELEASED)
    thawed = fact(Unfrozen, escrow=E, expires_at=None)
    given(Wallet, *HUNDRED, held, FROZEN).when(Wallet.unfreeze, E, NOW).then(thawed)
    assert list(given(Wallet, *HUNDRED, held, FROZEN, thawed).events[-1].timers()) == []


def test_so_many_are_open_at_a_time_and_no_more() -> None:
    wallet = Wallet.open(ADA, "EUR")
    wallet.deposit(eur(10_000), "credit", REF)
    for n in range(ESCROWS_MAX):
        wallet.hold(UUID(int=n), eur(1), SOON)
    with pytest.raises(Refused, match=f"at most {ESCROWS_MAX}"):
        wallet.hold(UUID(int=ESCROWS_MAX), eur(1), SOON)
    for n in range(WITHDRAWALS_MAX):
        wallet.withdraw(UUID(int=n), eur(1), PAYMENT)
    with pytest.raises(Refused, match=f"{WITHDRAWALS_MAX} withdrawals are on their way"):
        wallet.withdraw(uuid4(), eur(1), PAYMENT)
    wallet.check()


def test_ends_are_remembered_for_as_long_as_they_can_be_refunded() -> None:
    wallet = Wallet.open(ADA, "EUR")
    for n, days in enumerate((0, 1, 179, 181)):
        wallet.close(UUID(int=n), "released", NOW + timedelta(days=days))
    assert list(wallet.closed) == [UUID(int=n) for n in (1, 2, 3)]
    wallet.close(UUID(int=9), "released", NOW + 3 * CLOSED_KEPT)
    assert list(wallet.closed) == [UUID(int=9)]


def test_a_top_up_names_its_wallet_and_a_token() -> None:
    for way, country in ((Way("pm_1"), None), (Way("pm_1", E, "stripe"), "DE")):
        stated = {"method": way.token, "saved": way.saved, "gateway": way.gateway, "country": country}
        given(TopUp).opening(TopUp.start, W, ADA, eur(100), way, country).then(
            fact(Started, wallet=W, owner=ADA, amount=eur(100), **stated)
        )
    given(TopUp).opening(TopUp.start, W, ADA, eur(0), VISA).refused("between 1")
    given(TopUp).opening(TopUp.start, W, ADA, eur(1), Way("4242424242424242")).refused("gateway's token")
    given(TopUp).opening(TopUp.start, W, ADA, eur(1), Way("tok_4242424242424242")).refused("card number")
    one = TopUp.start(W, ADA, eur(100), VISA)
    assert one.payment == payment_of(one.id) != payment_of(W)


def test_a_saved_method_is_looked_at_before_its_payment_is_asked_for() -> None:
    assert top_up.move(TopUp.start(W, ADA, eur(1), Way("pm_1", E, "stripe"))) == Begin("use the saved method")
    assert top_up.move(TopUp.start(W, ADA, eur(1), Way("pm_1"))) == Begin("authorise the payment")


def test_money_goes_back_to_a_top_up_of_that_wallet_that_brought_some() -> None:
    failed = TopUp.start(W, ADA, eur(100), DECLINED)
    with pytest.raises(Refused, match="no money in"):
        failed.returns_to(W)
    failed.finish(Ending.UNDONE)
    with pytest.raises(Refused, match="no money in"):
        failed.returns_to(W)
    done = TopUp.start(W, ADA, eur(100), VISA)
    done.finish(Ending.DONE)
    done.returns_to(W)
    with pytest.raises(NotFound):
        done.returns_to(E)


def shown(top_up: TopUp, events: list[Event]) -> tuple[str, str]:
    """Status and reason as the read model has them after these events."""
    events += [through_avro(event) for event in top_up.collect_events()]
    row = row_at(
        top_ups,
        top_up.id,
        (change for event in events for change in changes(event, [PROJECTIONS["projections.wallet"]])),
    )
    assert row is not None and (row["wallet"], row["amount"], row["payment"]) == (W, 100, payment_of(top_up.id))
    return row["status"], row["why"]


def test_a_top_up_is_shown_as_far_as_it_is() -> None:
    good, events = TopUp.start(W, ADA, eur(100), VISA), list[Event]()
    first = next(iter(top_up.steps))
    good.begin(first, SOON)
    good.fail(first, "Unavailable", SOON)
    good.retry(first)
    for step in top_up.steps:
        assert shown(good, events) == ("running", "")
        good.done(step, top_up.after(step, good), SOON)
    assert shown(good, events) == ("done", "")
    for end in ("refuse", "overdue"):
        bad, events = TopUp.start(W, ADA, eur(100), DECLINED), []
        bad.begin(first, SOON)
        bad.refuse(first, "card declined") if end == "refuse" else bad.overdue(first)
        why = shown(bad, events)[1]
        assert why == {"refuse": "card declined", "overdue": f"{first}: no answer in time"}[end]
        bad.undone(first)
        bad.finish(Ending.UNDONE)
        assert shown(bad, events) == ("failed", why)


class Machine(RuleBasedStateMachine):
    """Three wallets in two currencies and the world outside: nothing is made and nothing lost, by currency, to the unit."""

    wallets = st.integers(0, 3)
    amounts = st.integers(-1, 60)
    ids = st.sampled_from([UUID(int=n) for n in range(3)])

    def __init__(self) -> None:
        super().__init__()
        owners = [(ADA, "EUR"), (BOB, "EUR"), (W, "EUR"), (ADA, "USD")]
        self.all = [Wallet.open(*owner) for owner in owners]
        self.came_in = {"EUR": 0, "USD": 0}
        self.balances = [0, 0, 0, 0]
        self.deposits: dict[tuple[int, int], int] = {}
        self.keep()

    def keep(self) -> None:
        """What happened goes through Avro; each event says rightly what can be spent after it."""
        for n, wallet in enumerate(self.all):
            wallet.check()
            for event in wallet.collect_events():
                through_avro(event)
                self.balances[n] = getattr(event, "balance", self.balances[n])

    def tell(self, command: object, *args: object) -> bool:
        before = [wallet.version for wallet in self.all]
        try:
            command(*args)  # type: ignore[operator]
        except (Refused, Invalid):
            assert [wallet.version for wallet in self.all] == before, "refused, but it had begun to change"
            return False
        self.keep()
        return True

    @rule(n=wallets, amount=amounts, cause=st.integers(0, 19))
    def deposit(self, n: int, amount: int, cause: int) -> None:
        wallet = self.all[n]
        before = self.deposits.get((n, cause), amount)
        done = self.tell(wallet.deposit, Money(amount, wallet.currency), "credit", UUID(int=cause))
        assert done == (0 < amount == before)
        if done and (n, cause) not in self.deposits:
            self.came_in[wallet.currency] += amount
            self.deposits[n, cause] = amount

    @rule(n=wallets, amount=amounts, capture=ids)
    def take_back(self, n: int, amount: int, capture: UUID) -> None:
        wallet = self.all[n]
        before = wallet.balance
        self.tell(wallet.take_back, REF, capture, Money(amount, wallet.currency))
        self.came_in[wallet.currency] -= before - wallet.balance

    @rule(n=wallets, to=wallets, amount=amounts)
    def transfer(self, n: int, to: int, amount: int) -> None:
        one, other = self.all[n], self.all[to]
        fits = n != to and one.currency == other.currency and 0 < amount <= one.balance
        assert self.tell(one.transfer, other, REF, Money(amount, one.currency)) == fits

    @rule(n=wallets, escrow=ids, amount=amounts)
    def hold(self, n: int, escrow: UUID, amount: int) -> None:
        wallet = self.all[n]
        new = wallet.escrow(escrow) is None
        fits = 0 < amount <= wallet.balance
        done = self.tell(wallet.hold, escrow, Money(amount, wallet.currency), SOON)
        assert not new or done == fits

    @rule(n=wallets, escrow=ids, amount=st.none() | amounts)
    def release(self, n: int, escrow: UUID, amount: int | None) -> None:
        wallet = self.all[n]
        self.tell(wallet.release, escrow, None if amount is None else Money(amount, wallet.currency))

    @rule(n=wallets, to=wallets, escrow=ids, amount=st.none() | amounts)
    def capture(self, n: int, to: int, escrow: UUID, amount: int | None) -> None:
        wallet = self.all[n]
        self.tell(wallet.capture, self.all[to], escrow, None if amount is None else Money(amount, wallet.currency))

    @rule(n=wallets, escrow=ids, amount=amounts)
    def spend(self, n: int, escrow: UUID, amount: int) -> None:
        wallet = self.all[n]
        held = wallet.ledger[escrowed(escrow)]
        self.tell(wallet.spend, escrow, W, Money(amount, wallet.currency))
        self.came_in[wallet.currency] -= held - wallet.ledger[escrowed(escrow)]

    @rule(n=wallets, to=wallets, escrow=ids, amount=amounts)
    def refund(self, n: int, to: int, escrow: UUID, amount: int) -> None:
        wallet = self.all[n]
        self.tell(wallet.refund, self.all[to], escrow, Money(amount, wallet.currency))

    @rule(n=wallets, escrow=ids, thaw=st.booleans())
    def dispute(self, n: int, escrow: UUID, thaw: bool) -> None:
        wallet = self.all[n]
        self.tell(wallet.unfreeze, escrow, NOW) if thaw else self.tell(wallet.freeze, escrow, SAID)

    @rule(n=wallets, escrow=ids)
    def expire(self, n: int, escrow: UUID) -> None:
        assert self.tell(self.all[n].expire, str(escrow))

    @rule(n=wallets, withdrawal=ids, amount=amounts)
    def withdraw(self, n: int, withdrawal: UUID, amount: int) -> None:
        wallet = self.all[n]
        self.tell(wallet.withdraw, withdrawal, Money(amount, wallet.currency), PAYMENT)

    @rule(n=wallets, withdrawal=ids, fails=st.booleans())
    def end(self, n: int, withdrawal: UUID, fails: bool) -> None:
        wallet = self.all[n]
        out = wallet.withdrawals.get(withdrawal, 0)
        if fails:
            assert self.tell(wallet.withdrawal_failed, withdrawal, "closed")
        else:
            assert self.tell(wallet.withdrawn, withdrawal)
            self.came_in[wallet.currency] -= out

    @invariant()
    def money_is_conserved(self) -> None:
        for currency, came_in in self.came_in.items():
            mine = [wallet for wallet in self.all if wallet.currency == currency]
            there = sum(one.balance + one.held + sum(one.withdrawals.values()) for one in mine)
            assert there == came_in == -sum(one.ledger[OUTSIDE] for one in mine)
            assert sum(one.ledger[PEERS] for one in mine) == 0

    @invariant()
    def each_event_told_the_balance_after_it(self) -> None:
        assert self.balances == [wallet.balance for wallet in self.all]


TestWallet = Machine.TestCase
