"""Wallet: the money of one owner in one currency, and what of it is held for orders.

All of it stands in a ledger, so that money is only ever moved. What moves it from one wallet to another is decided on both of
them at once and committed together: neither half exists without the other. Real money comes in by a top-up
(`aggregates/wallet/topup.py`), which rests on a captured payment, and goes out again to that payment.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid5

from aggregates.kernel import OUTSIDE, Aggregate, Causes, Ledger, Money, event, require
from aggregates.kernel.currency import digits
from aggregates.kernel.money import payable
from aggregates.wallet.events import (
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
    TopUpReversed,
    Unfrozen,
    WithdrawalFailed,
    WithdrawalRequested,
    Withdrawn,
    _Moved,
)
from aggregates.wallet.parts import AVAILABLE, PEERS, Ending, Escrow, Source, escrowed, leaving
from aggregates.wallet.topup import TopUp, payment_of
from schemas import Sealed

__all__ = [
    "AVAILABLE",
    "PEERS",
    "Captured",
    "Deposited",
    "Escrow",
    "Expired",
    "Frozen",
    "Held",
    "Opened",
    "Received",
    "Refunded",
    "Released",
    "Sent",
    "Source",
    "Spent",
    "TopUp",
    "TopUpReversed",
    "Unfrozen",
    "Wallet",
    "WithdrawalFailed",
    "WithdrawalRequested",
    "Withdrawn",
    "payment_of",
    "wallet_id",
]

ESCROWS_MAX = 1_000  # open ones of a wallet
WITHDRAWALS_MAX = 20  # on their way at a time
CLOSED_KEPT = timedelta(days=180)  # how long a captured escrow can be refunded, and the end of any is remembered
UNFROZEN_LEFT = timedelta(days=1)  # what a dispute leaves of an escrow's time, at the least
REASON_CHARS_MAX = 200
WALLETS = UUID("0c1f4f5a-53a6-5f0e-8f5b-3f9c6a1e7d42")


def wallet_id(owner: UUID, currency: str) -> UUID:
    """The one wallet of an owner in a currency: the id follows from both, so it can't be opened twice."""
    return uuid5(WALLETS, f"{owner}/{currency}")


class Wallet(Aggregate):
    """`ledger` has the accounts; `escrows` are open, `closed` ones never open again; `withdrawals` are on their way;
    `deposits` have come in of late, `reversals` were taken out again."""

    @event(Opened)
    def __init__(self, owner: UUID, currency: str) -> None:
        self.owner, self.currency = owner, currency
        self.ledger = Ledger(currency, outside=(OUTSIDE, PEERS))
        self.escrows: dict[UUID, Escrow] = {}
        self.closed: dict[UUID, Escrow] = {}
        self.withdrawals: dict[UUID, int] = {}
        self.deposits, self.reversals = Causes(), Causes()

    @classmethod
    def open(cls, owner: UUID, currency: str) -> Wallet:
        """An empty wallet, under the id that `wallet_id` gives. Opened already: `Conflict` at the commit."""
        digits(currency)  # raises for what is no currency
        return cls(owner, currency)

    @staticmethod
    def create_id(owner: UUID, currency: str) -> UUID:
        return wallet_id(owner, currency)

    @property
    def balance(self) -> int:
        """What can be spent, minor units."""
        return self.ledger[AVAILABLE]

    @property
    def held(self) -> int:
        """What is held for orders, minor units."""
        return sum(self.ledger[escrowed(escrow)] for escrow in self.escrows)

    # Money that comes from outside, and goes there.
    def deposit(self, amount: Money, source: Source, reference: UUID) -> None:
        """Money comes in, once for a reference: its cause."""
        units = self.units(amount)
        if self.deposits.may_take(reference, units):
            self._move(Deposited, units, OUTSIDE, AVAILABLE, source=source, reference=reference)

    def take_back(self, topup: UUID, capture: UUID, amount: Money) -> None:
        """A top-up's money was never ours: what can be spent of it still is gone, once for a capture. Nothing that is held is touched."""
        units = self.units(amount)
        if self.reversals.may_take(capture, units):
            taken = min(units, self.balance)
            more: dict[str, object] = {"topup": topup, "capture": capture, "owed": units - taken}
            if taken:
                self._move(TopUpReversed, taken, AVAILABLE, OUTSIDE, **more)
            else:
                self.trigger_event(TopUpReversed, amount=0, balance=self.balance, **more)

    def withdraw(self, withdrawal: UUID, amount: Money, payment: UUID) -> None:
        """Have money given back to the payment that it came from. It can't be spent from now on."""
        units = self.units(amount)
        if withdrawal in self.withdrawals:
            require(self.withdrawals[withdrawal] == units, f"withdrawal {withdrawal} is of another amount")
            return
        require(
            len(self.withdrawals) < WITHDRAWALS_MAX, f"{WITHDRAWALS_MAX} withdrawals are on their way: wait for one"
        )
        way = AVAILABLE, leaving(withdrawal)
        self._move(WithdrawalRequested, units, *way, withdrawal=withdrawal, payment=payment)

    def withdrawn(self, withdrawal: UUID) -> None:
        """The money has gone out. Of one that has ended, or is not ours, nothing."""
        if units := self.withdrawals.get(withdrawal):
            self._move(Withdrawn, units, leaving(withdrawal), OUTSIDE, withdrawal=withdrawal)

    def withdrawal_failed(self, withdrawal: UUID, reason: str) -> None:
        """The money could not go out."""
        if units := self.withdrawals.get(withdrawal):
            why = reason[:REASON_CHARS_MAX]
            self._move(WithdrawalFailed, units, leaving(withdrawal), AVAILABLE, withdrawal=withdrawal, reason=why)

    # Money between two wallets.
    def transfer(self, to: Wallet, transfer: UUID, amount: Money) -> None:
        """Give money to another wallet. Once for a transfer, by the id of the command."""
        units = self.units(amount)
        self._payable(to, units, AVAILABLE)
        self._move(Sent, units, AVAILABLE, PEERS, transfer=transfer, recipient=to.id)
        to._move(Received, units, PEERS, AVAILABLE, transfer=transfer, sender=self.id)

    def capture(self, payee: Wallet, escrow: UUID, amount: Money | None = None) -> None:
        """Give what is left in an escrow, or a part of it, to the payee."""
        ended = self.closed.get(escrow)
        if ended and ended.ending == "captured" and amount is None and payee.id in ended.captured:
            return
        require(not ended, f"escrow {escrow} is already {ended.ending if ended else ''}")
        units, left = self._part(escrow, amount)
        self._payable(payee, units, escrowed(escrow))
        self._move(Captured, units, escrowed(escrow), PEERS, escrow=escrow, payee=payee.id, left=left)
        payee._move(Received, units, PEERS, AVAILABLE, transfer=escrow, sender=self.id)

    def refund(self, payee: Wallet, escrow: UUID, amount: Money) -> None:
        """The payee gives captured money back, never more than went there."""
        units, found = self.units(amount), self.escrow(escrow)
        taken = found.captured.get(payee.id, 0) if found else 0
        require(units <= taken, f"{units} is more than the {taken} that this payee has of escrow {escrow}")
        payee._payable(self, units, AVAILABLE)
        self._move(Refunded, units, PEERS, AVAILABLE, escrow=escrow, payee=payee.id)
        payee._move(Sent, units, AVAILABLE, PEERS, transfer=escrow, recipient=self.id)

    # Money held for an order.
    def hold(self, escrow: UUID, amount: Money, expires_at: datetime | None) -> None:
        """Set money aside until a time, or until it is settled. The same again does nothing; an escrow that ended stays closed."""
        units, known = self.units(amount), self.escrow(escrow)
        if known is not None:
            require(known.ending in (None, "captured", "spent"), f"escrow {escrow} is already {known.ending}")
            require(known.amount == units, f"escrow {escrow} is of {known.amount}, not {units}")
            return
        require(len(self.escrows) < ESCROWS_MAX, f"a wallet has at most {ESCROWS_MAX} open escrows")
        self._move(Held, units, AVAILABLE, escrowed(escrow), escrow=escrow, expires_at=expires_at)

    def release(self, escrow: UUID, amount: Money | None = None) -> None:
        """Make held money spendable again, all or a part. With nothing held it closes the escrow: a late hold finds it closed."""
        known = self.escrow(escrow)
        if known is None:
            require(amount is None, f"nothing is in escrow {escrow}")
            self.trigger_event(Released, escrow=escrow, amount=0, balance=self.balance, left=0)
            return
        require(known.ending not in ("captured", "spent"), f"escrow {escrow} is already {known.ending}")
        if known.ending is None:
            units, left = self._part(escrow, amount)
            self._move(Released, units, escrowed(escrow), AVAILABLE, escrow=escrow, left=left)

    def spend(self, escrow: UUID, order: UUID, amount: Money) -> None:
        """Held money pays for an order of the shop's, all of it: it leaves the wallets. The same again does nothing."""
        units, ended = self.units(amount), self.closed.get(escrow)
        if ended:
            require(ended.ending == "spent", f"escrow {escrow} is already {ended.ending}")
            require(ended.amount == units, f"escrow {escrow} was of {ended.amount}, not {units}")
            return
        held, left = self._part(escrow, None)
        require(held == units, f"{held} are in escrow {escrow}, not {units}")
        self._move(Spent, units, escrowed(escrow), OUTSIDE, escrow=escrow, order=order, left=left)

    def expire(self, escrow: str) -> None:
        """The escrow's timer rings. It ended meanwhile, or a dispute stopped it: nothing."""
        found = self.escrows.get(id := UUID(escrow))
        if found is not None and not found.frozen:
            self._move(Expired, self.ledger[escrowed(id)], escrowed(id), AVAILABLE, escrow=id, left=0)

    def freeze(self, escrow: UUID, because: Sealed | None) -> None:
        """A dispute: what is held is neither captured nor released, and does not expire."""
        require(escrow in self.escrows, f"nothing is in escrow {escrow}")
        if not self.escrows[escrow].frozen:
            self.trigger_event(Frozen, escrow=escrow, reason="", because=because)

    def unfreeze(self, escrow: UUID, now: datetime) -> None:
        """The dispute is settled. There is a day, at the least, to do what was agreed."""
        require(escrow in self.escrows, f"nothing is in escrow {escrow}")
        if self.escrows[escrow].frozen:
            until = self.escrows[escrow].expires_at
            if until is not None:
                until = max(until, now + UNFROZEN_LEFT)
            self.trigger_event(Unfrozen, escrow=escrow, expires_at=until)

    def escrow(self, escrow: UUID) -> Escrow | None:
        """An escrow, open or closed."""
        return self.escrows.get(escrow) or self.closed.get(escrow)

    def close(self, escrow: UUID, ending: Ending, at: datetime) -> None:
        """Record the end of an escrow, and forget those that ended long ago: for the events."""
        ended = self.escrows.pop(escrow, None) or Escrow(0, at)
        ended.ending, ended.ended_at = ending, at
        self.closed[escrow] = ended
        for oldest, other in list(self.closed.items()):  # in the order in which they ended
            if other.ended_at is None or at - other.ended_at <= CLOSED_KEPT:
                break
            del self.closed[oldest]

    def units(self, amount: Money) -> int:
        """The amount in minor units. Raises `Refused` for another currency than the wallet's, and for what nobody can pay."""
        payable(amount)
        require(amount.currency == self.currency, f"the wallet is in {self.currency}, not {amount.currency}")
        return amount.amount

    def _part(self, escrow: UUID, amount: Money | None) -> tuple[int, int]:
        """Of an open escrow: so much, and what is left then. Raises `Refused` when it is not held, frozen, or has less."""
        require(escrow in self.escrows, f"nothing is in escrow {escrow}")
        require(not self.escrows[escrow].frozen, f"escrow {escrow} is frozen: there is a dispute")
        held = self.ledger[escrowed(escrow)]
        units = held if amount is None else self.units(amount)
        require(units <= held, f"{units} is more than the {held} left in escrow {escrow}")
        return units, held - units

    def _payable(self, to: Wallet, units: int, source: str) -> None:
        """Raises `Refused` unless both sides of a payment can be: neither has begun to change then."""
        require(to.id != self.id, "a wallet does not pay itself")
        require(to.currency == self.currency, f"the other wallet is in {to.currency}, not {self.currency}")
        self.ledger.may_move(units, source, PEERS)
        to.ledger.may_move(units, PEERS, AVAILABLE)

    def _move(self, kind: type[_Moved], amount: int, here: str, there: str, /, **fields: object) -> None:
        self.ledger.may_move(amount, here, there)
        after = self.balance + amount * ((there == AVAILABLE) - (here == AVAILABLE))
        self.trigger_event(kind, amount=amount, balance=after, **fields)
        assert self.balance == after, f"{kind.type} moves money another way"

    def check(self) -> None:
        self.ledger.check()
        inside = {escrowed(id): one.amount for id, one in self.escrows.items()}
        out = {leaving(id): amount for id, amount in self.withdrawals.items()}
        assert self.ledger.balances.keys() <= {AVAILABLE, OUTSIDE, PEERS, *inside, *out}, self.ledger.balances
        assert all(0 < self.ledger[account] <= amount for account, amount in inside.items())
        assert all(self.ledger[account] == amount for account, amount in out.items())
        assert self.escrows.keys().isdisjoint(self.closed)
